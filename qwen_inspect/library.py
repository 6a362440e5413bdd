"""The functions exported by `qwen_inspect`, one per command, and their results."""

from __future__ import annotations

import json
from collections.abc import Sequence

from .language import Language
from .loaders.resolve import DEFAULT_MODEL, Access
from .results.compare import Comparison
from .results.fit import FitReport
from .results.memory import MemoryReport, Run
from .results.model import Report
from .structure import inspect as structure
from .typed import Any, ClassVar, TypeVar
from .units import size
from .values import dataclass, fields

DEFAULT_RUN = Run()
Answered = TypeVar("Answered", bound="_Answer")


class _Answer:
    """A result with JSON and a one-line repr."""

    __slots__ = ()
    command: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """The output of `qwen-inspect COMMAND --format json`, by the JSON Schema in the package."""
        from .renderers.json import render

        answer: dict[str, Any] = json.loads(render(self.command, self, Language("en")))
        return answer

    @classmethod
    def of(cls: type[Answered], result: Any) -> Answered:
        return cls(**{field.name: getattr(result, field.name) for field in fields(result)})


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Inspection(_Answer, Report):
    """A model's parameters, attention, cache and files: see `Report`."""

    command = "structure"

    def __repr__(self) -> str:
        if self.design is None:
            return f"<{self.ref.id}: {len(self.tensors or ())} tensors of an architecture that is not known>"
        count, cache = self.parameters.theory, self.design.cache
        tokens = "" if cache is None else f", {cache.bytes_per_token:,} bytes of cache a token"
        return f"<{self.ref.id}: {self.spec.class_name}, {count:,} parameters{tokens}>"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Memory(_Answer, MemoryReport):
    """A run's memory, predicted and, if measured, measured: see `MemoryReport`."""

    command = "memory"

    def __repr__(self) -> str:
        required = self.predicted.required_bytes
        needs = "peak not known" if required is None else " to ".join(map(size, dict.fromkeys(required)))
        return f"<{self.report.ref.id}, {self.run.mode}: {needs}>"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Fit(_Answer, FitReport):
    """Whether a run fits each card, with the largest context and batch: see `FitReport`."""

    command = "fit"

    def __repr__(self) -> str:
        verdict = {True: "fits", False: "does not fit", None: "not known whether it fits"}[self.fits]
        return f"<{self.report.ref.id} on {', '.join(card.gpu.name for card in self.cards)}: {verdict}>"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Compared(_Answer, Comparison):
    """Models side by side, or two hubs' files: see `Comparison`."""

    command = "compare"

    def __repr__(self) -> str:
        if self.models is not None:
            return f"<{' beside '.join(report.ref.id for report in self.models.reports)}>"
        return f"<files: {'not proven the same' if self.unproven else 'the same'}>"


def inspect(
    model: str = DEFAULT_MODEL,
    *,
    source: str = "auto",
    revision: str | None = None,
    file: str | None = None,
    dtype: str | None = None,
    group_size: int | None = None,
    instantiate: bool = False,
    access: Access | None = None,
) -> Inspection:
    """Everything known about `model` without its weights.

    model: a directory, a file, or ORG/NAME on a hub or in the catalog (a prefix `hf:`, `ms:` or `catalog:` pins the source).
    file: selects one of several GGUF files. dtype: overrides the configuration's dtype, or names a quantisation scheme with
    groups of `group_size` numbers. instantiate: also build transformers' class (needs the torch extra).

    Raises a QwenInspectError: NotFoundError, AccessError, NetworkError, MalformedError, UnsupportedError or UnavailableError.
    """
    report = structure.inspect(
        model,
        source=source,
        revision=revision,
        file=file,
        dtype=dtype,
        group_size=group_size,
        access=access,
        instantiate=instantiate,
    )
    return Inspection.of(report)


def memory(model: str | Report, run: Run = DEFAULT_RUN) -> Memory:
    """Predicts the device memory of `run` without a device. `predicted.required_bytes`, (low, high), is what a card must have.

    Raises what `inspect` raises, and UnsupportedError if not even the weights' bytes are known.
    """
    from .predicting.predict import predict

    return Memory.of(predict(_report(model), run))


def fit(model: str | Report, cards: str | Sequence[str], run: Run = DEFAULT_RUN) -> Fit:
    """Whether `run` fits each of `cards` (names in `qwen-inspect gpus`, or "auto"), and its largest context and batch there.

    Raises what `memory` raises, and UsageError for an unknown card.
    """
    from .fitting import search

    names = cards if isinstance(cards, str) else ",".join(cards)
    return Fit.of(search.fit(_report(model), run, search.cards(names)))


def compare(*models: str, run: Run = DEFAULT_RUN, access: Access | None = None) -> Compared:
    """Compares two or more models for one run; for two hub models, first their files.

    Raises what `inspect` raises, and UsageError for fewer than two models.
    """
    from .comparing.side_by_side import compare as side_by_side
    from .errors import UsageError

    if len(models) < 2:
        raise UsageError("compare_needs_two")
    return Compared.of(side_by_side(models, run, access=access))


def measure(
    model: str | Report,
    run: Run = DEFAULT_RUN,
    *,
    device: str = "cpu",
    random_weights: bool = False,
    access: Access | None = None,
) -> Memory:
    """Predicts `run` and executes it on `device` ("cpu", "cuda", "cuda:N"); each difference is attributed to its causes.

    random_weights: builds the model from its configuration and downloads nothing. Needs the torch extra. Raises what `memory`
    raises, and UnavailableError without the device, the packages or enough memory.
    """
    from .measuring.measure import Request, measured

    request = Request(device=device, random_weights=random_weights)
    return Memory.of(measured(_report(model), run, request, access or Access()))


def _report(model: str | Report) -> Report:
    if not isinstance(model, str):
        return model
    return structure.inspect(model, require_design=False, access=Access(headers=False))

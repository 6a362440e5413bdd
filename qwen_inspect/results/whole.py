"""The content of `report`, and the results of checking a committed one."""

from __future__ import annotations

from ..typed import TYPE_CHECKING
from ..values import dataclass, replace

if TYPE_CHECKING:
    from ..language import Message
    from .cache import CacheReport
    from .fit import CardLimits, Saving
    from .measurement import KeptMeasurement
    from .memory import MemoryReport, Run
    from .model import Report


TABLE_CONTEXTS = (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
TABLE_BATCHES = (1, 4, 16, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """The options of `report` as typed, stored next to a committed report so that a check can repeat it.

    file: which of several GGUF files. context_tokens: an additional prompt length to predict. form: "md", "html" or "json".
    measured: files that `memory --device --format json` wrote. gpus: names of cards, comma-separated (None: common ones).
    """

    model: str
    source: str = "auto"
    revision: str | None = None
    file: str | None = None
    context_tokens: int | None = None
    batch: int = 1
    new_tokens: int = 128
    instantiate: bool = False
    language: str = "en"
    form: str = "md"
    measured: tuple[str, ...] = ()
    gpus: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """How far the model goes on some cards, and what changes save, largest first.

    run: whose batch and prompt `limits` refer to. saving_run: the run that `savings` refer to.
    """

    run: Run
    limits: tuple[CardLimits, ...]
    saving_run: Run
    savings: tuple[Saving, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeReport:
    """The content of `report`. name: the base name of its files. memory: a prediction for each prompt length.

    config_sha256: of the configuration in canonical form. tensors_sha256: of every stored tensor's name, dtype and shape; None if
    no file was read. built_by: the libraries that instantiated the model; None if it was not instantiated. advice: None if no
    run's memory is known.
    """

    request: ReportRequest
    name: str
    report: Report
    memory: tuple[MemoryReport, ...]
    config_sha256: str
    tensors_sha256: str | None
    built_by: str | None = None
    measured: tuple[KeptMeasurement, ...] = ()
    advice: Advice | None = None

    @property
    def cache_as_mha(self) -> CacheReport | None:
        """The cache if every query head had a KV head of its own; None if no layer's cache is by heads."""
        heads = {layer.index: layer for layer in self.report.attention.softmax}
        cache = self.report.cache
        if not any(layer.index in heads for layer in cache.layers):
            return None
        return replace(
            cache,
            layers=tuple(
                replace(
                    layer, bytes_per_token=layer.bytes_per_token * own.query_heads // own.kv_heads
                )  # exact: K and V by head
                if (own := heads.get(layer.index)) is not None
                else layer
                for layer in cache.layers
            ),
        )

    @property
    def cache_points(self) -> list[tuple[int, int]]:
        """(context, batch) pairs to show the cache for: usual contexts up to the model's limit, the limit, the requested one."""
        limit, requested = self.report.spec.context_tokens, self.request.context_tokens
        contexts = {tokens for tokens in TABLE_CONTEXTS if limit is None or tokens <= limit}
        contexts |= {tokens for tokens in (limit, requested) if tokens is not None}
        batches = sorted({*TABLE_BATCHES, self.request.batch})
        return [(tokens, batch) for tokens in sorted(contexts) for batch in batches]


Figure = int | float | str | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A figure of a committed report that the tool now computes differently. None: absent or unknown."""

    figure: str
    was: Figure
    now: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportCheck:
    """A committed report compared with what the tool computes now.

    problem: why it cannot be compared, or is not what the tool wrote. note: a remark that is not a failure.
    """

    document: str
    drifts: tuple[Drift, ...] = ()
    problem: Message | None = None
    note: Message | None = None

    @property
    def agrees(self) -> bool:
        return self.problem is None and not self.drifts


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """An expectation of CI about a model. message: a sentence with the actual value."""

    message: Message
    holds: bool

"""What `report` tells of a model, and what CI holds against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..language import Message
    from .measurement import KeptMeasurement
    from .memory import MemoryReport
    from .model import Report


TABLE_CONTEXTS = (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)


TABLE_BATCHES = (1, 4, 16, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """What `report` was asked for, in the user's words: kept beside a committed report, so that a check can ask again.

    file: the one of several GGUF files. context_tokens: a prompt's length to be among those predicted. form: "md", "html" or
    "json". measured: files of measurements that `memory --device --format json` wrote.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeReport:
    """All that `report` tells of a model. name: what its files are called. memory: one prediction for each prompt's length.

    config_sha256: of the configuration in its canonical form. tensors_sha256: of every stored tensor's name, dtype and shape;
    None where no file was read. built_by: the libraries that instantiated the model, None where it was not.
    """

    request: ReportRequest
    name: str
    report: Report
    memory: tuple[MemoryReport, ...]
    config_sha256: str
    tensors_sha256: str | None
    built_by: str | None = None
    measured: tuple[KeptMeasurement, ...] = ()

    @property
    def cache_points(self) -> list[tuple[int, int]]:
        """(context, batch) pairs to show the cache for: usual contexts up to the model's limit, the limit, what was asked for."""
        limit, asked = self.report.spec.context_tokens, self.request.context_tokens
        contexts = {tokens for tokens in TABLE_CONTEXTS if limit is None or tokens <= limit}
        contexts |= {tokens for tokens in (limit, asked) if tokens is not None}
        batches = sorted({*TABLE_BATCHES, self.request.batch})
        return [(tokens, batch) for tokens in sorted(contexts) for batch in batches]


Figure = int | float | str | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A figure of a committed report that is no longer what the tool finds. None: it was not there, or is unknown."""

    figure: str
    was: Figure
    now: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportCheck:
    """A committed report held against what the tool finds now.

    problem: why it cannot be compared, or is not what the tool wrote. note: told, and no fault.
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
    """Something that CI asks of a model, in a sentence that says what was found."""

    message: Message
    holds: bool

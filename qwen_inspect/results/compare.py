"""Models side by side: rows with a value for each model, and tensors that differ from the first model's."""

from __future__ import annotations

from ..checkpoint import Origin, Tensor
from ..language import Message
from ..typed import TYPE_CHECKING, Any, Literal
from ..values import dataclass
from .listing import FilesComparison
from .memory import MemoryReport, Run
from .model import Report

if TYPE_CHECKING:
    from .fit import CardReach

ChangeKind = Literal["added", "removed", "reshaped", "retyped"]
KINDS: tuple[ChangeKind, ...] = ("added", "removed", "reshaped", "retyped")
Section = Literal["model", "parameters", "components", "attention", "cache", "memory"]
LayerKind = Literal["full", "sliding", "linear"]
Unit = Literal["parameters", "bytes", "tokens", ""]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigRow:
    """A key of the configurations: its value in each, and whether it is present (None: no configuration was read)."""

    key: str
    values: tuple[Any, ...]
    present: tuple[bool | None, ...]
    same: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FactRow:
    """A fact of each model, None if unknown. unit: "parameters", "bytes", "tokens" or "" (a name, or a plain number).

    name: of the row within its section. layer_kind: in the attention section, the kind of layers described. at_least: for each
    model, whether its value is a lower bound; empty if none can be.
    """

    section: Section
    name: str
    values: tuple[int | str | None, ...]
    unit: Unit = ""
    layer_kind: LayerKind | None = None
    at_least: tuple[bool, ...] = ()

    @property
    def same(self) -> bool | None:
        """Whether all values are equal; None if some are unknown and the others equal, or if any is only a bound."""
        if any(self.at_least):
            return None
        distinct = {value for value in self.values if value is not None}
        if len(distinct) > 1:
            return False
        return None if None in self.values else True


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorChange:
    """How a tensor differs from the first model's. before: None if added; after: None if removed."""

    kind: ChangeKind
    name: str
    before: Tensor | None
    after: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorChanges:
    """A model's tensors compared with the first model's by name, shape and dtype; values are not read.

    base_origin, origin: "stored" or "theory". equal: how many tensors are equal. A tensor that is reshaped and retyped is listed
    twice. notes: differences evened out before the comparison, such as a prefix.
    """

    base_origin: Origin
    origin: Origin
    equal: int
    changes: tuple[TensorChange, ...]
    notes: tuple[Message, ...] = ()

    def count(self, kind: ChangeKind) -> int:
        return sum(change.kind == kind for change in self.changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySide:
    """Two or more models. tensors: for each model after the first; None if either's tensor names are unknown.

    reaches: for each model, on each requested card; None if the model's memory cannot be predicted.
    """

    reports: tuple[Report, ...]
    memories: tuple[MemoryReport | None, ...]
    run: Run
    config: tuple[ConfigRow, ...]
    facts: tuple[FactRow, ...]
    tensors: tuple[TensorChanges | None, ...]
    reaches: tuple[tuple[CardReach, ...] | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The answer of `compare`. files: the listings of two hub models, if they were compared. models: None if the listings prove
    equal weights, or if the models could not be read (`notices` say why)."""

    files: FilesComparison | None
    models: SideBySide | None
    notices: tuple[Message, ...] = ()

    @property
    def unproven(self) -> bool:
        """Whether listings were compared and do not prove equal weights."""
        return self.files is not None and not self.files.identical

"""Models side by side, as found: rows of values, one for each model, and tensors that are not the same in two of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..checkpoint import Origin, Tensor
from ..language import Message
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
    """A key of the configurations: its value in each, and whether it is there (None: no configuration was read)."""

    key: str
    values: tuple[Any, ...]
    present: tuple[bool | None, ...]
    same: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FactRow:
    """A fact of each model, None where it is not known. unit: "parameters", "bytes", "tokens" or "" (a name, or a plain number).

    name: the row's within its section; layer_kind: of attention, the kind of layers that it tells of. at_least: of each model,
    whether its value is a lower bound; empty where none can be.
    """

    section: Section
    name: str
    values: tuple[int | str | None, ...]
    unit: Unit = ""
    layer_kind: LayerKind | None = None
    at_least: tuple[bool, ...] = ()

    @property
    def same(self) -> bool | None:
        """Whether all have the same value; None where those that are known do, and others are not known, or a bound is all."""
        if any(self.at_least):
            return None
        known = {value for value in self.values if value is not None}
        if len(known) > 1:
            return False
        return None if None in self.values else True


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorChange:
    """What became of a tensor of the first model; before and after are None where there is none. kind: one of KINDS."""

    kind: ChangeKind
    name: str
    before: Tensor | None
    after: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorChanges:
    """A model's tensors held against the first model's by name, shape and dtype; values are not read.

    base_origin, origin: "stored" or "theory". equal: tensors that are the same in both. One that is reshaped and retyped stands
    twice. notes: what was evened out before.
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
    """Two or more models. tensors: of each after the first, None where the names of one of the two are not known.

    reaches: of each, on each card that was asked for; None where nothing is predicted of it.
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
    """files: the listings of two hub models, where those were asked. models: None where the listings prove them the same, or
    where no more could be read; `notices` then say why."""

    files: FilesComparison | None
    models: SideBySide | None
    notices: tuple[Message, ...] = ()

    @property
    def unproven(self) -> bool:
        """Whether listings were asked and do not prove the weights the same."""
        return self.files is not None and not self.files.identical

"""Parameters by witness and by use, and two witnesses held against each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ..language import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCounts:
    """Parameters by witness and by use.

    theory: predicted from the configuration, tied weights once. instantiated: what transformers builds. stored: elements
    in the files, tied copies included. stored_predicted: the same as the release's layout predicts it. unique: parameters
    in the files, tied copies once; by theory where no file was read; None where the files cannot be read as this model.
    active: what a token's forward pass uses, embedding and output layer whole among it; None where it cannot be told.
    buffers: elements that no training changes.
    """

    theory: int
    instantiated: int | None
    stored: int | None
    stored_predicted: int | None
    unique: int | None
    active: int | None
    embedding: int
    head: int
    buffers: int

    @property
    def non_embedding(self) -> int:
        """What model cards call so: without the input embedding and without an output layer of its own."""
        return self.theory - self.embedding - self.head

    @property
    def active_non_embedding(self) -> int | None:
        """`active` by the other convention in use, as `non_embedding` counts."""
        return None if self.active is None else self.active - self.embedding - self.head


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A row of the statistics. `share_basis_points`: hundredths of a per cent, which add up to 10,000 over all rows.

    size_bytes: None where it is not known how the files hold the weights.
    """

    name: str
    parameters: int
    size_bytes: int | None
    share_basis_points: int
    tied_to: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A named reason why two witnesses differ: by how many parameters, in how many tensors (0 parameters: told, not counted)."""

    name: str
    message: Message
    parameters: int
    tensors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unexplained:
    """A tensor that nothing accounts for. kind: "missing", "unexpected", "reshaped" or "retyped".

    packed: of an unexpected one, whether its number format is one that only packed weights have.
    """

    kind: Literal["missing", "unexpected", "reshaped", "retyped"]
    name: str
    parameters: int
    expected: str | None = None
    found: str | None = None
    packed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Two witnesses' counts, the causes of the difference, and the tensors that no cause accounts for."""

    left: str
    right: str
    left_parameters: int
    right_parameters: int
    causes: tuple[Cause, ...] = ()
    unexplained: tuple[Unexplained, ...] = ()

    @property
    def difference(self) -> int:
        return self.right_parameters - self.left_parameters

    @property
    def residual(self) -> int:
        return self.difference - sum(cause.parameters for cause in self.causes)

    @property
    def agrees(self) -> bool:
        return self.residual == 0 and not self.unexplained

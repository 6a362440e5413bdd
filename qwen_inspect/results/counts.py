"""Parameter counts by witness and by use, and checks of two witnesses against each other."""

from __future__ import annotations

from ..typed import TYPE_CHECKING, Literal
from ..values import dataclass

if TYPE_CHECKING:
    from ..language import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCounts:
    """Parameters by witness and by use.

    theory: predicted from the configuration, tied weights once. instantiated: what transformers builds. stored: elements
    in the files, tied copies included. hub: the same by the hub's own count. stored_predicted: the same, as predicted from the
    release's layout. unique: parameters in the files, tied copies once; equal to theory if no file was read; None if the files
    do not hold this model. active: parameters that a token's forward pass uses, with the whole embedding and output layer; None
    if unknown. buffers: elements of buffers, which are not trained.
    """

    theory: int
    instantiated: int | None
    stored: int | None
    hub: int | None = None
    stored_predicted: int | None
    unique: int | None
    active: int | None
    embedding: int
    head: int
    buffers: int

    @property
    def non_embedding(self) -> int:
        """As model cards count: without the input embedding and an untied output layer."""
        return self.theory - self.embedding - self.head

    @property
    def active_non_embedding(self) -> int | None:
        """`active` without embedding and output layer, the other convention in use."""
        return None if self.active is None else self.active - self.embedding - self.head


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A row of the statistics. `share_basis_points`: hundredths of a per cent, which add up to 10,000 over all rows.

    size_bytes: None if it is unknown how the files store the weights.
    """

    name: str
    parameters: int
    size_bytes: int | None
    share_basis_points: int
    tied_to: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A named reason why two witnesses differ, and by how many parameters (0: it changes no count), in how many tensors."""

    name: str
    message: Message
    parameters: int
    tensors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unexplained:
    """A tensor that nothing accounts for. kind: "missing", "unexpected", "reshaped" or "retyped".

    packed: for an unexpected tensor, whether its number format is used only for packed weights.
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

"""Weights that are not as they are built: quantised, or a low-rank adapter's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..language import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptModules:
    """Linear modules that a quantised model keeps as they are: one name for those of all layers."""

    name: str
    modules: int
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisedWeights:
    """The quantised matrices of a model and all else, in parameters and in bytes as stored (tied copies once).

    method: the configuration's quant_method. schemes: each in a phrase. matrices: how many are quantised. kept: which of the
    linear modules are not. largest_parameters: of the largest matrix, all experts of a layer counting as one. widths: the most
    inputs and outputs together of a matrix that every token takes, and of an expert's.
    """

    method: str
    schemes: tuple[Message, ...]
    matrices: int
    parameters: int
    size_bytes: int
    other_parameters: int
    other_bytes: int
    kept: tuple[KeptModules, ...]
    largest_parameters: int = 0
    widths: tuple[int, int] = (0, 0)

    @property
    def total_bytes(self) -> int:
        return self.size_bytes + self.other_bytes

    @property
    def bits_per_weight(self) -> float:
        """Bits that a quantised parameter takes, with its share of scales, zeros and indices."""
        return self.size_bytes * 8 / self.parameters if self.parameters else 0.0

    @property
    def bits_per_parameter(self) -> float:
        """Bits that a parameter of the whole model takes."""
        return self.total_bytes * 8 / (self.parameters + self.other_parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterWeights:
    """A low-rank adapter beside its base. ranks, scales (what B A is multiplied by): each one that occurs.

    modules: what it trains, one name for all layers. unmerged_bytes: base, copies of modules, and matrices as PEFT loads them
    (float32). merged_bytes: None where the base is quantised.
    """

    kind: str
    base: str | None
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    modules: tuple[KeptModules, ...]
    trainable: int
    base_parameters: int
    stored_bytes: int
    unmerged_bytes: int
    merged_bytes: int | None

    @property
    def share(self) -> float:
        """Of the base's parameters."""
        return self.trainable / self.base_parameters

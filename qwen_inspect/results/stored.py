"""Weights that are not stored as the model is built: quantised ones and LoRA adapters."""

from __future__ import annotations

from ..typed import TYPE_CHECKING
from ..values import dataclass

if TYPE_CHECKING:
    from ..language import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptModules:
    """Modules of all layers under one name, and their parameters: unquantised linear modules, or trained ones."""

    name: str
    modules: int
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisedWeights:
    """A model's quantised matrices and the rest, in parameters and in stored bytes (tied copies once).

    method: the configuration's quant_method. schemes: each as a phrase. matrices: the number of quantised ones. kept: the
    unquantised linear modules. largest_parameters: of the largest matrix, with a layer's experts as one. widths: the largest sum
    of inputs and outputs of a matrix outside the experts, and of an expert's.
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
        """Bits of a quantised parameter, including its share of scales, zeros and indices."""
        return self.size_bytes * 8 / self.parameters if self.parameters else 0.0

    @property
    def bits_per_parameter(self) -> float:
        """Average bits of a parameter over the whole model."""
        return self.total_bytes * 8 / (self.parameters + self.other_parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterWeights:
    """A LoRA adapter and its base. ranks, scales (factors of B A): the distinct values.

    modules: the trained ones, all layers under one name. unmerged_bytes: base, copies of modules, and matrices as PEFT loads them
    (float32). merged_bytes: None if the base is quantised.
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
        """Trainable parameters as a fraction of the base's."""
        return self.trainable / self.base_parameters

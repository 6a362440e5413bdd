"""What a training run trains. `predicting.training` computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..values import dataclass

if TYPE_CHECKING:
    from .stored import KeptModules


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The parameters that get gradients, derived from shapes.

    trainable: their number. adapters: whether they are LoRA matrices, with all of the model's own parameters frozen.
    base_parameters: the model's own, tied ones once. trained_bytes, frozen_bytes: as the run holds them. modules: the trained
    modules, all layers under one name.
    """

    trainable: int
    base_parameters: int
    adapters: bool
    trained_bytes: int
    frozen_bytes: int
    modules: tuple[KeptModules, ...]

    @property
    def all_parameters(self) -> int:
        """As PEFT's print_trainable_parameters counts them."""
        return self.base_parameters + (self.trainable if self.adapters else 0)

    @property
    def share(self) -> float:
        """Trainable parameters as a fraction of all: PEFT's "trainable%" / 100."""
        return self.trainable / self.all_parameters

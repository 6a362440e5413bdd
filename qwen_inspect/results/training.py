"""What a run of training trains, as nouns; `predicting.training` has the sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .stored import KeptModules


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The parameters that get gradients, told by shapes alone.

    trainable: their number; adapters: whether they are matrices beside the model's own, of which all are then frozen.
    base_parameters: the model's own, tied ones once. trained_bytes, frozen_bytes: as the run holds them. modules: what is trained
    of which, one name for all layers.
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
        """Of all parameters: PEFT's "trainable%", as a fraction."""
        return self.trainable / self.all_parameters

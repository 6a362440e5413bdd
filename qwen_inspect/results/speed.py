"""Bounds of a run's speed on a card: what its bandwidth and its arithmetic allow at best."""

from __future__ import annotations

from typing import Literal

from ..values import dataclass
from .gpu import Gpu

Limit = Literal["arithmetic", "memory"]
StepName = Literal["prompt", "first", "last"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One forward pass. tokens: computed in it, over all sequences; context_tokens: that each sequence's last token sees.

    operations: multiplications and additions of matrices and of softmax attention. weight_bytes, cache_bytes: read at least once.
    rate: operations a second; bandwidth: bytes a second; each None if no source gives it for the card.
    even_weight_bytes: the weights read if the tokens spread evenly over a mixture's experts; equal to weight_bytes without one.
    """

    name: StepName
    tokens: int
    context_tokens: int
    operations: int
    weight_bytes: int
    even_weight_bytes: int
    cache_bytes: int
    rate: int | None
    bandwidth: int

    @property
    def memory_seconds(self) -> float:
        return (self.weight_bytes + self.cache_bytes) / self.bandwidth

    @property
    def seconds(self) -> float:
        """The least time; of the memory alone if the rate is unknown."""
        return max(self.memory_seconds, self.operations / self.rate if self.rate else 0.0)

    @property
    def even_seconds(self) -> float:
        """The least time with evenly spread experts."""
        return max(self.seconds, (self.even_weight_bytes + self.cache_bytes) / self.bandwidth)

    @property
    def limit(self) -> Limit:
        return "memory" if self.seconds == self.memory_seconds else "arithmetic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """The steps of a run. mixture: whether tokens choose among experts. uncounted: layers whose attention is left out."""

    gpu: Gpu
    sequences: int
    steps: tuple[Step, ...]
    mixture: bool
    uncounted: int

    @property
    def first_token_seconds(self) -> float:
        return self.steps[0].seconds

    def tokens_a_second(self, step: Step) -> float:
        """New tokens of all sequences."""
        return self.sequences / step.seconds

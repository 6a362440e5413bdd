"""Bounds of a run's speed on a card: what its bandwidth and its arithmetic allow at best."""

from __future__ import annotations

from ..typed import Literal
from ..values import dataclass
from .gpu import Gpu

Limit = Literal["arithmetic", "memory"]
StepName = Literal["prompt", "first", "last"]
# What a token of `Gpu.generation` reads. 32 layers of 4 x 4,096^2 + 3 x 4,096 x 11,008 numbers in Q4_0 (18 B for 32), the head of
# 32,000 x 4,096 in Q6_K (210 B for 256), 65 norms in float32, keys and values in float16 of 64.5 tokens, the mean of 1 to 128.
# Source: TheBloke/Llama-2-7B-GGUF, llama-2-7b.Q4_0.gguf; llama.cpp, ggml-common.h (block_q4_0, block_q6_K)
GENERATION_BYTES = 3_642_753_024 + 107_520_000 + 1_064_960 + 33_816_576


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

    @property
    def measured_share(self) -> float | None:
        """Of the memory's bandwidth, in the card's published run of llama.cpp; None without one."""
        if self.gpu.generation is None or self.gpu.bandwidth is None:
            return None
        return self.gpu.generation * GENERATION_BYTES / self.gpu.bandwidth

    def tokens_a_second(self, step: Step) -> float:
        """New tokens of all sequences."""
        return self.sequences / step.seconds

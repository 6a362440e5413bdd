"""GRPO on one card: what the trained model, its reference, a reward model and an engine take in each phase of a step."""

from __future__ import annotations

from ..language import Message
from ..typed import Literal
from ..values import dataclass
from .gpu import Gpu

RolloutEngine = Literal["vllm", "transformers"]
PhaseName = Literal["rollout", "score", "reward", "train"]
SleepLevel = Literal[0, 1, 2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Bytes at the fullest moment of a phase. policy: the trained model's allocated bytes. cached: free segments that PyTorch
    keeps beside them. engine_least, engine_most: what the engine has, awake or asleep. context_*: CUDA's context.
    """

    name: PhaseName
    policy: int
    cached: int
    reference: int
    reward: int
    engine_least: int
    engine_most: int
    context_least: int
    context_most: int

    @property
    def least(self) -> int:
        exact = self.policy + self.cached + self.reference + self.reward
        return exact + self.engine_least + self.context_least

    @property
    def most(self) -> int:
        exact = self.policy + self.cached + self.reference + self.reward
        return exact + self.engine_most + self.context_most


@dataclass(frozen=True, slots=True, kw_only=True)
class Colocated:
    """A step of GRPO on `gpu`. rollouts: sequences generated at once. utilization, sleep: vLLM's; None, 0 for transformers.

    host_bytes: what a sleeping vLLM keeps of its weights in the host's memory. kv_cache_tokens: the least that its cache holds;
    None for transformers, or if that is unknown.
    """

    engine: RolloutEngine
    gpu: Gpu
    rollouts: int
    utilization: float | None
    sleep: SleepLevel
    phases: tuple[Phase, ...]
    host_bytes: int
    kv_cache_tokens: int | None
    assumptions: tuple[Message, ...]

    @property
    def fullest(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.most)

    @property
    def required(self) -> tuple[int, int]:
        """What the card must have, at both ends."""
        return max(phase.least for phase in self.phases), self.fullest.most

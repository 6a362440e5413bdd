"""A step of GRPO -> JSON."""

from __future__ import annotations

from ...language import Language
from ...results.colocated import Colocated, Phase, PhaseName, RolloutEngine, SleepLevel
from ...typed import Annotated
from .values import Count, Keywords, Positive, TypedDict


class PhaseJSON(TypedDict):
    """What is on the card at the fullest moment of a phase."""

    phase: PhaseName
    policy_bytes: Count
    """The trained model with gradients, optimizer states and activations, as PyTorch allocates them."""
    cached_bytes: Count
    """Free segments that PyTorch keeps."""
    reference_bytes: Count
    reward_bytes: Count
    engine_low_bytes: Count
    engine_high_bytes: Count
    context_low_bytes: Count
    context_high_bytes: Count
    required_low_bytes: Count
    required_high_bytes: Count


class GrpoJSON(TypedDict):
    """A step of GRPO on one card, phase by phase."""

    gpu: str
    available_bytes: Count
    engine: RolloutEngine
    rollouts: Positive
    """Sequences generated at once."""
    utilization: Annotated[float, Keywords(exclusiveMinimum=0, maximum=1)] | None
    sleep: SleepLevel
    """The level at which vLLM sleeps in other phases; 0: it stays awake."""
    host_bytes: Count
    """Of the host's memory, for the weights of a sleeping vLLM."""
    kv_cache_tokens: Count | None
    """The least that vLLM's cache holds."""
    phases: list[PhaseJSON]
    assumptions: list[str]


def colocated_content(step: Colocated, say: Language) -> GrpoJSON:
    return {
        "gpu": step.gpu.name,
        "available_bytes": step.gpu.available_bytes,
        "engine": step.engine,
        "rollouts": step.rollouts,
        "utilization": step.utilization,
        "sleep": step.sleep,
        "host_bytes": step.host_bytes,
        "kv_cache_tokens": step.kv_cache_tokens,
        "phases": [_phase(phase) for phase in step.phases],
        "assumptions": [say(message) for message in step.assumptions],
    }


def _phase(phase: Phase) -> PhaseJSON:
    return {
        "phase": phase.name,
        "policy_bytes": phase.policy,
        "cached_bytes": phase.cached,
        "reference_bytes": phase.reference,
        "reward_bytes": phase.reward,
        "engine_low_bytes": phase.engine_least,
        "engine_high_bytes": phase.engine_most,
        "context_low_bytes": phase.context_least,
        "context_high_bytes": phase.context_most,
        "required_low_bytes": phase.least,
        "required_high_bytes": phase.most,
    }

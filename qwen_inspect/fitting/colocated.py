"""GRPO on one card: the memory of each phase of a step, as TRL's GRPOTrainer makes it.

The phases are rollouts by an engine, log-probabilities without gradients, rewards, and the training step. Everything that stays
on the card in a phase is added to what the phase itself takes.
Sources: TRL 1.16, trainer/grpo_trainer.py (a reference model only if beta is not 0 and without adapters) and
generation/vllm_generation.py (empty_cache before vLLM wakes up, and the level at which it sleeps); vLLM 0.19,
v1/worker/gpu_worker.py, sleep, and device_allocator/cumem.py (weights and cache are in its own pool).
"""

from __future__ import annotations

from collections.abc import Iterator

from ..engines import engine_of
from ..engines.vllm.capacity import requested_bytes
from ..engines.vllm.logs import GRAPHS_MOST_BYTES, beside_weights
from ..errors import UnsupportedError, UsageError
from ..language import Message
from ..predicting.predict import predict
from ..predicting.scoring import scoring_bytes
from ..results.colocated import Colocated, Phase, PhaseName, RolloutEngine, SleepLevel
from ..results.fit import Gpu
from ..results.memory import MemoryReport, Moment, Run
from ..results.model import Report
from ..results.serving import Serving
from ..structure.inspect import in_scheme
from ..typed import Any
from ..units import size
from ..values import dataclass, replace

UTILIZATION = 0.3  # TRL 1.16, trainer/grpo_config.py
STEP_TOKENS = 4096  # TRL 1.16, generation/vllm_generation.py: max_num_batched_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """How completions are generated, and what else is on the card. count: sequences at once. reference: whether there is a
    reference model. reward: a reward model; None if rewards are computed by functions."""

    engine: RolloutEngine
    gpu: Gpu
    count: int
    utilization: float | None = None
    sleep: SleepLevel = 0
    reference: bool = False
    reward: Report | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """Bytes of an engine while it generates and at other times, at both ends of their ranges."""

    awake: tuple[int, int] = (0, 0)
    asleep: tuple[int, int] = (0, 0)
    host_bytes: int = 0
    kv_cache_tokens: int | None = None


def with_chunked_head(run: Run) -> Run:
    """The run with the loss of TRL's chunked head, for which the completion alone has labels.

    Unchanged if the completion is not shorter than the sequence, or if sequences lie in one row. Source: TRL 1.16,
    trainer/grpo_trainer.py, lines 1068-1078 (add_fused_lm_head) and 1494-1499 (_get_per_token_logps_and_entropies).
    """
    if run.new_tokens >= run.prompt_tokens or run.loop.padding_free:
        return run
    return replace(run, loop=replace(run.loop, loss="trl", completion_tokens=run.new_tokens, hits=False))


def check_step(run: Run, *, reference: bool) -> None:
    """UsageError for a completion that leaves no prompt, or a reference beside adapters."""
    if run.new_tokens >= run.prompt_tokens:
        raise UsageError("grpo_completion", tokens=run.prompt_tokens, completion=run.new_tokens)
    if reference and run.lora_rank is not None:
        raise UsageError("grpo_reference")


def colocated(memory: MemoryReport, rollouts: Rollouts) -> Colocated:
    """The phases of a step whose training `memory` predicts; its run's tokens are those of prompt and completion.

    UsageError for a contradiction, or a share of vLLM's that holds no sequence; the refusal of a prediction without a peak.
    """
    run, trained = memory.run, memory.predicted
    check_step(run, reference=rollouts.reference)
    _check_peak(memory)
    engine = _vllm(memory.report, run, rollouts) if rollouts.engine == "vllm" else _Held()
    work = _work(memory, rollouts)
    phases = tuple(_phases(memory, rollouts, engine, work))
    return Colocated(
        engine=rollouts.engine,
        gpu=rollouts.gpu,
        rollouts=rollouts.count,
        utilization=_share(rollouts) if rollouts.engine == "vllm" else None,
        sleep=rollouts.sleep,
        phases=phases,
        host_bytes=engine.host_bytes,
        kv_cache_tokens=engine.kv_cache_tokens,
        assumptions=(*_assumptions(memory, rollouts, bounded=work.bounded), *trained.assumptions),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What phases take beyond what stays: the policy while it generates and scores, and the reward model. bounded: scoring is an
    upper bound."""

    rollout: int
    score: int
    bounded: bool
    reward_weights: int
    reward: int


def _work(memory: MemoryReport, rollouts: Rollouts) -> _Work:
    run = memory.run
    traced = scoring_bytes(memory.report, run, sequences=rollouts.count, reference=rollouts.reference)
    bounded = traced is None
    score = _beyond_weights(_peak(memory.report, _plain(run, mode="forward"))) if traced is None else traced
    rollout = 0
    if rollouts.engine == "transformers":
        prompt = run.prompt_tokens - run.new_tokens
        generating = _plain(run, mode="generate", batch=rollouts.count, prompt_tokens=prompt)
        rollout = _beyond_weights(_peak(memory.report, generating))
    if rollouts.reward is None:
        return _Work(rollout=rollout, score=score, bounded=bounded, reward_weights=0, reward=0)
    judging = _peak(rollouts.reward, replace(_plain(run, mode="forward"), attention="auto", autocast=None))
    weights = judging.weights + (judging.buffers or 0)
    judged = _beyond_weights(judging)
    return _Work(rollout=rollout, score=score, bounded=bounded, reward_weights=weights, reward=judged)


def _phases(memory: MemoryReport, rollouts: Rollouts, engine: _Held, work: _Work) -> Iterator[Phase]:
    trained = memory.predicted
    peak, rest, reserved = trained.peak_allocated_bytes, trained.steady_allocated_bytes, trained.peak_reserved
    assert peak is not None  # see `_check_peak`
    assert rest is not None
    assert reserved is not None
    context_least, context_most = trained.context_ends
    reference = trained.steady.weights + (trained.steady.buffers or 0) if rollouts.reference else 0
    taken: tuple[tuple[PhaseName, int, int], ...] = (
        ("rollout", rest + work.rollout, 0),
        # Training's forward requests as much as a bound's, and keeps more.
        ("score", min(rest + work.score, peak) if work.bounded else rest + work.score, 0),
        *((("reward", rest, work.reward),) if rollouts.reward is not None else ()),
        ("train", peak, 0),
    )
    for name, policy, judging in taken:
        emptied = rollouts.sleep > 0 and name != "train"  # before vLLM wakes up
        held = engine.awake if name == "rollout" or not rollouts.sleep else engine.asleep
        yield Phase(
            name=name,
            policy=policy,
            cached=0 if emptied else max(reserved - policy - judging, 0),
            reference=reference,
            reward=work.reward_weights + judging,
            engine_least=held[0],
            engine_most=held[1],
            context_least=context_least,
            context_most=context_most,
        )


def _plain(run: Run, **changes: Any) -> Run:
    """The run's workload without its training. Adapters are left out: beside a forward's own, their activations are small."""
    kept = {
        name: getattr(run, name)
        for name in ("batch", "prompt_tokens", "new_tokens", "attention", "loader", "gpu", "allocator", "autocast", "padded")
    }  # fmt: skip
    return Run(**{**kept, **changes})


def _peak(report: Report, run: Run) -> Moment:
    memory = predict(report, run)
    _check_peak(memory)
    assert memory.predicted.peak is not None
    return memory.predicted.peak


def _check_peak(memory: MemoryReport) -> None:
    """Raises if the prediction has no peak."""
    if None in (memory.predicted.peak_allocated_bytes, memory.predicted.peak_reserved):
        raise memory.refusal or UnsupportedError("grpo_no_peak", name=memory.report.ref.id)


def _beyond_weights(moment: Moment) -> int:
    return sum(getattr(moment, term) or 0 for term in ("activations", "cache", "state"))


# --- vLLM


def _share(rollouts: Rollouts) -> float:
    return UTILIZATION if rollouts.utilization is None else rollouts.utilization


def _vllm(report: Report, run: Run, rollouts: Rollouts) -> _Held:
    """vLLM's share of the card while awake. Asleep it has neither weights nor cache, but what is outside its pool.

    CUDA graphs come on top of the share and stay; how large they are depends on the sequences that they are captured for.
    """
    if run.autocast is not None:
        report = in_scheme(report, run.autocast)  # it loads weights of its own, in 16 bits
    budget = requested_bytes(rollouts.gpu.available_bytes, _share(rollouts))
    weights = sum(report.known.loaded_bytes)
    if weights >= budget:
        raise UsageError("grpo_share", share=size(budget), weights=size(weights))
    _, outside = beside_weights(ranks=1)
    return _Held(
        awake=(budget, budget + GRAPHS_MOST_BYTES),
        asleep=(outside.least_bytes, (outside.most_bytes or 0) + GRAPHS_MOST_BYTES),
        host_bytes=weights if rollouts.sleep == 1 else 0,
        kv_cache_tokens=_cache_tokens(report, run, rollouts),
    )


def _cache_tokens(report: Report, run: Run, rollouts: Rollouts) -> int | None:
    """The least that vLLM's cache holds; None if its other memory is unknown. UsageError if that is not one sequence."""
    vllm = engine_of("vllm")
    serving = Serving(
        engine="vllm",
        batch=rollouts.count,
        context_tokens=run.prompt_tokens,
        utilization=_share(rollouts),
        step_tokens=STEP_TOKENS,
    )
    try:
        reserve = vllm.demand(vllm.reads(report), serving, rollouts.gpu).reserve(
            rollouts.gpu, rollouts.count, run.prompt_tokens
        )
    except UnsupportedError:
        return None
    if reserve.most.blocks < reserve.most.sequence_blocks:
        raise UsageError("grpo_cache", share=f"{_share(rollouts):g}", tokens=run.prompt_tokens)
    return int(reserve.cache_tokens)


def _assumptions(memory: MemoryReport, rollouts: Rollouts, *, bounded: bool) -> Iterator[Message]:
    yield Message("assume_grpo_step", completion=memory.run.new_tokens)
    yield Message("assume_grpo_head" if memory.run.loop.loss == "trl" else "assume_grpo_logits")
    yield Message("assume_grpo_score_bound" if bounded else "assume_grpo_scored", batch=memory.run.batch)
    if rollouts.engine == "vllm":
        yield Message(f"assume_grpo_sleep_{rollouts.sleep}")
        yield Message("assume_grpo_graphs", most=size(GRAPHS_MOST_BYTES))
    if memory.run.lora_rank is not None:
        yield Message("assume_grpo_adapters")

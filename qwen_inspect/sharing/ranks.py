"""What each device holds of a model and a run that several devices share."""

from __future__ import annotations

from collections.abc import Mapping

from ..architectures.generic import build_generic
from ..checkpoint import Tensor
from ..errors import UnavailableError, UnsupportedError, UsageError
from ..language import Message
from ..predicting.families.family_training import MICRO_BATCHES
from ..predicting.footprint import traced_footprint
from ..predicting.sources import timeline_of
from ..predicting.training import check_training
from ..predicting.training_plan import plan_of
from ..results.memory import Run
from ..results.model import Report
from ..results.ranks import DeviceMapReport, Parallelism, Place, RankBytes, RanksReport
from ..structure.adapters import PREFIX
from ..values import replace
from .deepspeed_peaks import deepspeed_peaks
from .four_bits import base_on_ranks, four_bit_weights
from .loops import check_loop, mixed_dtype
from .plans import NOT_LOADED_BY_RANKS, built_plans, plans_of
from .shares import Sharded, rank_bytes


def ranks_report(report: Report, run: Run, how: Parallelism) -> RanksReport:
    """Each rank's bytes for `run`, computed from the plans, without peaks (see `with_peaks`).

    UsageError for degrees that contradict each other or the run; UnsupportedError if transformers has no plan for the class or
    cannot cut it into so many parts, or if the weights are quantised.
    """
    check_training(run)
    _check_read(report)
    check_loop(how, run, tied=report.spec.tied_embeddings)
    if how.expert > 1 and how.tensor == how.fsdp == 1:
        # Expert ranks are ranks of another kind too; those that share one batch are tensor-parallel.
        how = replace(how, tensor=how.expert)
    if how.tensor * how.expert > 1 and report.spec.family in NOT_LOADED_BY_RANKS:
        raise UnsupportedError("ranks_not_loaded", class_name=report.spec.class_name)
    four_bits = four_bit_weights(report, run, how)
    ranks = rank_bytes(replace(sharded(report, run), four_bits=four_bits), how, run)
    assumptions = _assumptions(how, run)
    if four_bits is not None:
        assumptions.append(Message("assume_ranks_four_bits"))
    return RanksReport(parallelism=how, ranks=ranks, assumptions=tuple(assumptions))


def with_peaks(shared: RanksReport, report: Report, run: Run) -> RanksReport:
    """`shared` with each rank's peak from a trace of that rank; with the reason instead if it cannot be traced."""
    if shared.parallelism.tensor > 1 and run.lora_rank is not None:
        return _without_peaks(shared, Message("ranks_trace_adapters"))
    by_deepspeed = shared.parallelism.by_deepspeed
    try:
        if by_deepspeed:
            ranks = tuple(deepspeed_peaks(shared.ranks, report, run, shared.parallelism))
        else:
            ranks = tuple(_with_peak(rank, report, run, shared.parallelism) for rank in shared.ranks)
    except (UnavailableError, UnsupportedError) as error:
        return _without_peaks(shared, error.message)
    stage_3 = "_3" if shared.parallelism.zero_stage == 3 else ""
    assumptions = [Message(f"assume_ranks_traced_deepspeed{stage_3}" if by_deepspeed else "assume_ranks_traced")]
    if shared.parallelism.fsdp > 1 and not by_deepspeed:
        assumptions.append(Message("assume_ranks_streams"))
    return replace(shared, ranks=ranks, assumptions=(*shared.assumptions, *assumptions))


def _with_peak(group: RankBytes, report: Report, run: Run, how: Parallelism) -> RankBytes:
    """`group` with the traced peak of its first rank; UnsupportedError if the trace ends with other bytes than the plans give."""
    shortest = replace(run, accumulate=min(run.accumulate, MICRO_BATCHES))
    timeline, provenance = timeline_of(report, shortest, Place(how=how, rank=group.ranks[0]), base_on_ranks(report))
    footprint = traced_footprint(timeline, run, provenance=provenance)
    terms = ("weights", "adapters", "buffers", "optimizer", *(("cache", "state") if run.mode == "generate" else ()))
    for term in terms:
        expected, traced = getattr(group, term), getattr(footprint.steady, term)
        if expected is not None and traced != expected:
            raise UnsupportedError(
                "ranks_trace_differs", term=Message(f"term_{term}"), traced=traced, expected=expected
            )
    # FSDP gathers on its own CUDA streams, and the allocator does not share blocks between streams.
    reserved = footprint.peak_reserved if how.fsdp == 1 else None
    return replace(group, peak=footprint.peak, peak_reserved=reserved)


def _without_peaks(shared: RanksReport, reason: Message) -> RanksReport:
    assumptions = Message("assume_ranks_unknown"), Message("assume_ranks_untraced", reason=reason)
    return replace(shared, assumptions=(*shared.assumptions, *assumptions))


def sharded(report: Report, run: Run | None = None) -> Sharded:
    """A report's model as input of `rank_bytes`, with the run's adapters. The plans are ours for a described family, else
    transformers'."""
    spec, design = report.spec, report.known
    plans = built_plans(build_generic(report.config or {})) if spec.built else plans_of(spec, report.tree)
    settled = design.attention is not None and design.cache is not None
    adapters: tuple[Tensor, ...] = ()
    if run is not None and run.lora_rank is not None:
        named = (each.tensor for each in plan_of(report, run).matrices)
        adapters = tuple(replace(tensor, name=tensor.name.removeprefix(PREFIX)) for tensor in named)
    return Sharded(
        tree=report.tree,
        adapters=adapters,
        plans=plans,
        tied=spec.tied_embeddings,
        attention=design.attention.layers if settled and design.attention is not None else None,
        cache=design.cache.layers if settled and design.cache is not None else None,
    )


def device_map_report(report: Report, run: Run, capacities: Mapping[str, int] | None) -> DeviceMapReport:
    """What accelerate puts on each device. capacities: device -> bytes; None: this machine's.

    UsageError for a training run, UnavailableError without accelerate, UnsupportedError if the model does not fit or its weights
    are quantised.
    """
    from ..tracing.device_map import placed
    from ..tracing.instantiate import build

    if run.mode == "train":
        raise UsageError("device_map_train")
    _check_dense(report)
    spec, config = report.spec, report.config or {}
    return placed(build_generic(config) if spec.built else build(spec, config, device="meta"), capacities)


def _check_dense(report: Report) -> None:
    _check_read(report)
    if (quantised := report.known.quantised) is not None:
        raise UnsupportedError("ranks_quantised", method=quantised.method)


def _check_read(report: Report) -> None:
    if report.design is None:
        assert report.refusal is not None  # nothing else leaves a report without a design
        raise report.refusal
    if report.design.unread is not None:
        raise report.design.unread


def _assumptions(how: Parallelism, run: Run) -> list[Message]:
    assumptions = []
    if how.tensor > 1:
        assumptions.append(Message("assume_ranks_tensor"))
    if how.expert > 1:
        assumptions.append(Message("assume_ranks_expert", ranks=how.expert))
    if how.pipeline > 1:
        assumptions.append(Message("assume_ranks_pipeline"))
    if run.lora_rank is not None:
        kind = "_columns" if how.tensor > 1 else "_engine" if how.by_deepspeed else ""
        assumptions.append(Message(f"assume_ranks_adapters{kind}"))
    if how.offload:
        assumptions.append(Message("assume_ranks_offload"))
        if run.mode == "train" and run.loop.clip:
            assumptions.append(Message("assume_ranks_offload_clip"))
    if how.by_deepspeed:
        assumptions.append(Message("assume_ranks_batch"))
        on_card = "_on_card" if how.zero_stage == 2 and not how.offload_optimizer else ""
        by = "zero" if how.zero_stage == 1 else "deepspeed"
        assumptions.append(Message(f"assume_{by}_{how.zero_stage}{on_card}"))
        if how.offload_optimizer:
            assumptions.append(Message(f"assume_ranks_offload_optimizer{'_3' if how.zero_stage == 3 else ''}"))
        if how.offload_params:
            assumptions.append(Message("assume_ranks_offload_params"))
    elif how.fsdp > 1:
        assumptions += [Message("assume_ranks_batch"), Message(f"assume_zero_{how.zero_stage}")]
        if how.zero_stage == 3 and how.ranks == how.fsdp and how.expert == 1:
            assumptions.append(Message("assume_gathered_train" if run.mode == "train" else "assume_gathered"))
        if run.mode == "train" and run.loop.accelerated:
            assumptions.append(Message("assume_ranks_accelerate"))
            if run.lora_rank is not None:
                assumptions.append(Message("assume_ranks_peft"))
        if (mixed := mixed_dtype(how, run)) is not None:
            assumptions.append(Message("assume_ranks_mixed", dtype=mixed.torch_name))
    return assumptions

"""A model, a run, and how several devices share them -> what each device holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..architectures.generic import build_generic
from ..errors import UnavailableError, UnsupportedError, UsageError
from ..language import Message
from ..predicting.footprint import traced_footprint
from ..predicting.predict import MICRO_BATCHES, timeline_of
from ..predicting.training import check_training
from ..results.memory import Run
from ..results.model import Report
from ..results.ranks import DeviceMapReport, Parallelism, Place, RankBytes, RanksReport
from .plans import NOT_LOADED_BY_RANKS, built_plans, plans_of
from .shares import Sharded, rank_bytes


def ranks_report(report: Report, run: Run, how: Parallelism) -> RanksReport:
    """Each rank's bytes for `run`, by the plans alone: without peaks (see `with_peaks`).

    UsageError for degrees that contradict each other or the run, UnsupportedError where transformers has no plan for the class,
    cannot cut it into so many parts, or its weights are quantised.
    """
    check_training(run)
    if run.autocast is not None:
        raise UnsupportedError("autocast_ranks")
    _check_dense(report)
    if how.expert > 1 and how.tensor == how.fsdp == 1:
        # The ranks of experts lie on others': those that share one batch are tensor-parallel ones.
        how = replace(how, tensor=how.expert)
    if how.tensor * how.expert > 1 and report.spec.family in NOT_LOADED_BY_RANKS:
        raise UnsupportedError("ranks_not_loaded", class_name=report.spec.class_name)
    ranks = rank_bytes(sharded(report), how, run)
    return RanksReport(parallelism=how, ranks=ranks, assumptions=tuple(_assumptions(how, run)))


def with_peaks(found: RanksReport, report: Report, run: Run) -> RanksReport:
    """The same with each rank's peak, from a trace of what that rank does; without, and why, where it cannot be traced."""
    if found.parallelism.fsdp > 1 and found.parallelism.zero_stage == 1:
        return _without_peaks(found, Message("ranks_trace_deepspeed"))
    try:
        ranks = tuple(_with_peak(rank, report, run, found.parallelism) for rank in found.ranks)
    except (UnavailableError, UnsupportedError) as error:
        return _without_peaks(found, error.message)
    said = [Message("assume_ranks_traced")]
    if found.parallelism.fsdp > 1:
        said.append(Message("assume_ranks_streams"))
    return replace(found, ranks=ranks, assumptions=(*found.assumptions, *said))


def _with_peak(one: RankBytes, report: Report, run: Run, how: Parallelism) -> RankBytes:
    """UnsupportedError where the trace ends with other bytes than those that the plans give."""
    shortest = replace(run, accumulate=min(run.accumulate, MICRO_BATCHES))
    timeline, made_by = timeline_of(report, shortest, Place(how=how, rank=one.ranks[0]))
    footprint = traced_footprint(timeline, run, provenance=made_by)
    held = footprint.steady
    terms = ("weights", "buffers", "optimizer", *(("cache", "state") if run.mode == "generate" else ()))
    for term in terms:
        expected, traced = getattr(one, term), getattr(held, term)
        if expected is not None and traced != expected:
            raise UnsupportedError(
                "ranks_trace_differs", term=Message(f"term_{term}"), traced=traced, expected=expected
            )
    # FSDP gathers in streams of its own, whose blocks the allocator keeps apart.
    reserved = footprint.peak_reserved if how.fsdp == 1 else None
    return replace(one, peak=footprint.peak, peak_reserved=reserved)


def _without_peaks(found: RanksReport, reason: Message) -> RanksReport:
    said = (Message("assume_ranks_unknown"), Message("assume_ranks_untraced", reason=reason))
    return replace(found, assumptions=(*found.assumptions, *said))


def sharded(report: Report) -> Sharded:
    """The model of a report in the words of `rank_bytes`; its plans are transformers' own where no family here describes it."""
    spec, design = report.spec, report.known
    plans = built_plans(build_generic(report.config or {})) if spec.built else plans_of(spec, report.tree)
    settled = design.attention is not None and design.cache is not None
    return Sharded(
        tree=report.tree,
        plans=plans,
        tied=spec.tied_embeddings,
        attention=design.attention.layers if settled and design.attention is not None else None,
        cache=design.cache.layers if settled and design.cache is not None else None,
    )


def device_map_report(report: Report, run: Run, capacities: Mapping[str, int] | None) -> DeviceMapReport:
    """What accelerate puts on each device, of `capacities` bytes (None: this machine's).

    UsageError for a training, UnavailableError without accelerate, UnsupportedError where there is no place for the model, or its
    weights are quantised.
    """
    from ..tracing.device_map import placed
    from ..tracing.instantiate import build

    if run.mode == "train":
        raise UsageError("device_map_train")
    _check_dense(report)
    spec, config = report.spec, report.config or {}
    return placed(build_generic(config) if spec.built else build(spec, config, device="meta"), capacities)


def _check_dense(report: Report) -> None:
    if report.design is None:
        assert report.refusal is not None  # nothing else leaves a report without a design
        raise report.refusal
    if report.design.unread is not None:
        raise report.design.unread
    if report.design.quantised is not None:
        raise UnsupportedError("ranks_quantised", method=report.design.quantised.method)


def _assumptions(how: Parallelism, run: Run) -> list[Message]:
    said = []
    if how.tensor > 1:
        said.append(Message("assume_ranks_tensor"))
    if how.expert > 1:
        said.append(Message("assume_ranks_expert", ranks=how.expert))
    if how.pipeline > 1:
        said.append(Message("assume_ranks_pipeline"))
    if how.fsdp > 1:
        said += [Message("assume_ranks_batch"), Message(f"assume_zero_{how.zero_stage}")]
        if how.zero_stage == 3 and how.ranks == how.fsdp and how.expert == 1:
            said.append(Message("assume_gathered_train" if run.mode == "train" else "assume_gathered"))
    return said

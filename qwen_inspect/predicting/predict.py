"""Predicts a run's footprint: from its trace, else by formula alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..architectures.thinkers import has_thinker, refuse_whole
from ..checkpoint import DType
from ..errors import NoModelError, QwenInspectError, UnavailableError, UnsupportedError, UsageError
from ..language import Message
from ..loaders import calibration
from ..results.cache import CacheReport
from ..results.exploration import Exploration, RequestSize
from ..results.memory import Footprint, MemoryReport, PeakRange, Run
from ..results.model import Report
from ..typed import TYPE_CHECKING
from ..values import replace
from .footprint import (
    bytes_of,
    cache_bytes,
    formula_footprint,
    layered_footprint,
    stored_footprint,
    traced_footprint,
)
from .sources import (
    family_trace,
    installed,
    is_point,
    layered_run,
    symbolic_trace,
    timeline_and_base,
    training_timeline,
    with_kernel,
)

if TYPE_CHECKING:
    from ..tracing.bases import Base
    from .families.family_trace import Composed


def predict(report: Report, run: Run, *, course_points: int = 0) -> MemoryReport:
    """The footprint of `run` for the model of `report`. course_points: with a trace, also its course in about that many points.

    From a trace if possible. Without torch, if transformers cannot be traced, or for a cache format that transformers does not
    have, by formula, which gives no peak; for an unknown architecture, the stored bytes alone. The reason is then the result's
    `refusal`; it is raised if there is no result at all.
    """
    if run.mode != "generate":
        refuse_whole(report.config or {})
    run = with_kernel(run, report)
    if run.device == "cuda" and run.calibration is None:
        run = replace(run, calibration=calibration.find(run.gpu, installed()))
    if run.mode == "train" or run.training_options:
        from .training import check_training

        check_training(run)
    if run.autocast is not None:
        _check_autocast(report, run)
    if run.transformers is not None:
        from .version import with_version

        run = with_version(run, report)
    if report.design is None:
        assert report.refusal is not None
        if report.tensors is None or isinstance(report.refusal, NoModelError):
            raise report.refusal
        footprint = stored_footprint(bytes_of(report.tensors), report.ref.id)
        return MemoryReport(report=report, run=run, predicted=footprint, refusal=report.refusal)
    if (unread := report.known.unread) is not None:
        if report.tensors is None:
            raise unread
        weights_bytes = bytes_of(report.tensors)
        footprint = stored_footprint(weights_bytes, report.ref.id, tree=report.tree, cache=report.known.cache, run=run)
        return MemoryReport(report=report, run=run, predicted=footprint, refusal=unread)
    if report.known.cache is None and run.mode == "generate":
        footprint = _without_trace(report, run)
        return MemoryReport(report=report, run=run, predicted=footprint, refusal=report.known.cache_refusal)
    limit = report.spec.context_tokens
    tokens = run.prompt_tokens // run.loop.packing + (run.new_tokens if run.mode == "generate" else 0)
    if limit is not None and tokens > limit:
        beyond = Message("context_beyond", tokens=tokens, limit=limit)
        report = replace(report, notices=(*report.notices, beyond))
    if run.mode == "train":
        return _training_report(report, run, course_points)
    refusal = None
    try:
        footprint = _footprint(report, run, course_points)
    except UnsupportedError as error:
        if run.autocast is not None:
            raise
        footprint = _without_trace(report, run)
        refusal = error
        report = replace(report, notices=(*report.notices, Message("no_trace", reason=error.message)))
    return MemoryReport(report=report, run=run, predicted=_with_assumptions(footprint, report, run), refusal=refusal)


def _check_autocast(report: Report, run: Run) -> None:
    """Raises if autocast is not modelled for such weights; UsageError for float16 gradients, which no scaler accepts."""
    if run.autocast not in ("bfloat16", "float16"):
        raise UsageError("autocast_dtype", found=run.autocast)
    refusal = report.refusal if report.design is None else report.known.unread
    if refusal is None and run.mode == "generate":
        refusal = report.known.cache_refusal
    if refusal is not None:
        raise refusal
    if (quantised := report.known.quantised) is not None:
        from ..tracing.adapting import FourBits
        from .quantised import base_of

        base = None if quantised.method == "gguf" else base_of(report)
        if run.lora_rank is None or not isinstance(base, FourBits) or base.dtype != run.autocast:
            raise UnsupportedError("autocast_quantised", method=quantised.method)
    elif run.mode == "train" and run.lora_rank is None and run.autocast == str(report.spec.dtype) == "float16":
        raise UsageError("autocast_scaled")


def _without_trace(report: Report, run: Run) -> Footprint:
    """By formula; if the cache is unknown, the weights alone."""
    weights_bytes = report.known.loaded_bytes
    if report.known.cache is None:
        return stored_footprint(weights_bytes, report.ref.id)
    return formula_footprint(report.tree, report.cache, run, weights_bytes=weights_bytes)


def _with_assumptions(footprint: Footprint, report: Report, run: Run) -> Footprint:
    """The footprint with the assumptions about autocast and about a kernel other than sdpa."""
    spec = report.spec
    messages = [*footprint.assumptions, *_autocast_assumptions(report, run)]
    if run.mode == "train":
        from .fused_loss import loss_assumption
        from .one_row import rows_assumption

        messages += [*loss_assumption(spec, run), *rows_assumption(run)]
    if run.mode == "train" and run.device == "cuda" and run.autocast is None and spec.dtype is DType.F32:
        messages.append(Message("assume_tf32"))
    if has_thinker(report.config or {}):
        speaking = [child.name for child in report.tree.children if child.component == "speech"]
        messages += [Message("assume_thinker", parts=", ".join(speaking))] if speaking else []
    if run.attention == spec.kernel != "sdpa":
        messages.append(Message("assume_no_sdpa", class_name=spec.class_name, kernel=spec.kernel))
    return replace(footprint, assumptions=tuple(messages))


def _autocast_assumptions(report: Report, run: Run) -> Iterator[Message]:
    if run.autocast is None:
        return
    what = Message("autocast_forward" if run.mode == "train" else "autocast_run")
    yield Message("assume_autocast", dtype=run.autocast, what=what, device=run.device)
    if report.known.quantised is None:
        yield Message("assume_autocast_weights", dtype=str(report.spec.dtype))
    if run.mode == "train" and run.autocast == "float16":
        yield Message("assume_scaler")


def _training_report(report: Report, run: Run, course_points: int) -> MemoryReport:
    """What is trained, and the footprint of training; without a trace only that at a step's end, by formula."""
    from .fused_loss import check_loss
    from .one_row import check_rows
    from .training_plan import plan_of

    check_rows(report, run)
    check_loss(report, run)
    plan = plan_of(report, run)
    run, training = plan.run, plan.training
    refusal: QwenInspectError | None = None
    try:
        timeline, provenance = training_timeline(report, plan)
        footprint = traced_footprint(timeline, run, provenance=provenance, course_points=course_points)
        if training.adapters and footprint.steady.adapters != training.trained_bytes:
            raise UnsupportedError("lora_differs", traced=footprint.steady.adapters, expected=training.trained_bytes)
    except (UnavailableError, UnsupportedError) as error:
        if error.message.key == "loss_class":
            raise
        without_torch = error.message.key == "extra_missing"
        footprint = formula_footprint(
            report.tree,
            report.known.cache or CacheReport(dtype=str(report.spec.dtype), layers=()),  # training keeps no cache
            run,
            weights_bytes=bytes_of(plan.weights),
            matrices=plan.matrices,
            unknown=(Message("assume_no_torch", extras="torch,peft" if training.adapters else "torch"),)
            if without_torch
            else (),
        )
        if not without_torch:
            refusal = error
            report = replace(report, notices=(*report.notices, Message("no_trace", reason=error.message)))
    footprint = _with_assumptions(footprint, report, run)
    return MemoryReport(report=report, run=run, training=training, predicted=footprint, refusal=refusal)


def _footprint(report: Report, run: Run, course_points: int) -> Footprint:
    if run.mode == "generate" and report.attention.both_ways:  # of an encoder no trace is needed to tell
        raise UnsupportedError("trace_no_head", class_name=report.spec.class_name, mode=run.mode)
    quantised = report.known.quantised
    if quantised is not None:
        refuse_whole(report.config or {})
    if quantised is not None and quantised.method == "gguf":
        return _by_formula(report, run, Message("assume_gguf", method=quantised.method))
    if report.known.cache is not None and report.cache.dtype != str(report.spec.dtype):
        return _by_formula(report, run, *_quantised_assumptions(report))
    base = None
    layered = None if course_points else layered_run(report, run)
    footprint = None if layered is None else layered_footprint(layered, run)
    if footprint is None:
        try:
            timeline, provenance, base = timeline_and_base(report, run)
        except UnavailableError:
            unknown = (*_quantised_assumptions(report), Message("assume_no_torch", extras="torch"))
            return _by_formula(report, run, *unknown)
        except UnsupportedError:
            if quantised is None:
                raise
            return _by_formula(report, run, *_quantised_assumptions(report))
        footprint = traced_footprint(timeline, run, provenance=provenance, course_points=course_points)
    counted = run.mode == "generate" and run.autocast is None  # autocast changes the cache's dtype
    if report.spec.built and counted and not _shows_cache(footprint, report, run):
        raise UnsupportedError("generic_trace_cache", class_name=report.spec.class_name)
    if run.decodes_untraced:
        why = () if base is not None else _quantised_assumptions(report)
        return _with_range(report, run, footprint, None, Message("assume_static_decode"), *why)
    if base is not None:
        return replace(footprint, assumptions=(*footprint.assumptions, _layout_assumption(base)))
    return footprint if quantised is None else _quantised_range(report, run, footprint)


def _layout_assumption(base: Base) -> Message:
    from ..tracing.adapting import FourBits
    from ..tracing.bases import EightBits

    match base:
        case FourBits():
            return Message("assume_four_bits_inference")
        case EightBits():
            return Message("assume_eight_bits", threshold=f"{base.threshold:g}")


def _by_formula(report: Report, run: Run, *unknown: Message) -> Footprint:
    if run.autocast is not None:
        raise UnsupportedError("autocast_untraced")
    return formula_footprint(report.tree, report.cache, run, weights_bytes=report.known.loaded_bytes, unknown=unknown)


def _quantised_assumptions(report: Report) -> tuple[Message, ...]:
    quantised = report.known.quantised
    return () if quantised is None else (Message("assume_quantised", method=quantised.method),)


def _quantised_range(report: Report, run: Run, low: Footprint) -> Footprint:
    """The footprint of a model whose kernels cannot be traced. low: the lower bound, a dense run with the quantised weights."""
    from .quantised import scratch_of

    assert report.known.quantised is not None
    fixed_bytes, token_bytes, source = scratch_of(report, run)
    scratch_bytes = fixed_bytes + token_bytes * run.batch * run.prompt_tokens
    assumed = Message("assume_quantised_range", method=report.known.quantised.method, source=source)
    return _with_range(report, run, low, scratch_bytes, assumed)


def _with_range(
    report: Report, run: Run, low: Footprint, scratch_bytes: int | None, source: Message, *others: Message
) -> Footprint:
    """The footprint of a run whose peak is `low`'s plus up to `scratch_bytes`; None: there is no upper bound."""
    assert low.peak is not None
    reserved = low.peak_reserved if low.peak_reserved is not None else low.peak.allocated or 0
    return replace(
        low,
        steady=_by_formula(report, run).steady,
        peak=None,
        peak_reserved=None,
        alive=(),
        course=None,
        peak_range=PeakRange(low=low.peak, low_reserved_bytes=reserved, scratch_bytes=scratch_bytes, source=source),
        assumptions=(source, *others, *low.assumptions),
    )


def _shows_cache(footprint: Footprint, report: Report, run: Run) -> bool:
    """Whether a generic class's trace ends with the cache that a run on meta showed."""
    moment = footprint.steady
    return (moment.cache or 0) + (moment.state or 0) == sum(cache_bytes(layer, run) for layer in report.cache.layers)


def explored(memory: MemoryReport) -> MemoryReport:
    """Adds what a page needs to calculate any other workload; returns `memory` unchanged if only this one's figures are known.

    If the trace covers this workload alone (a hybrid's makes no polynomials), the memory at the end goes by the formula.
    """
    report, run = memory.report, memory.run
    if not _explorable(report, run):
        return memory  # covered neither by kept traces nor by formulas
    from .explore import explore_formula, explore_trace

    if (everywhere := explored_everywhere(memory)) is not None:
        return replace(memory, exploration=everywhere)
    weights_bytes = report.known.loaded_bytes
    exploration = explore_formula(report.tree, report.cache, run, weights_bytes=weights_bytes)
    if memory.predicted.peak_range is not None and is_point(run):
        dense = symbolic_trace(report, run)
        if dense is not None:
            from .packed import packed_trace
            from .quantised import scratch_of

            fixed_bytes, token_bytes, _ = scratch_of(report, run)
            low = explore_trace(packed_trace(dense, weights_bytes), run)
            most = RequestSize((fixed_bytes, 0, 0, 0, 0, token_bytes, 0, 0))
            least_new_tokens = max(low.least_new_tokens, exploration.least_new_tokens)
            exploration = replace(exploration, low=low, scratch=most, least_new_tokens=least_new_tokens)
    return replace(memory, exploration=exploration)


def _explorable(report: Report, run: Run) -> bool:
    if not report.settled or report.known.unread is not None or run.mode != "generate" or run.device != "cuda":
        return False
    return run.cache != "static" and run.autocast is None and not report.cache.source_bytes_per_token


def explored_everywhere(
    memory: MemoryReport, composed_of: Callable[[Report, Run], Composed | None] = family_trace
) -> Exploration | None:
    """The predicted run for all workloads, from one trace; None if there is no such trace. composed_of: `family_trace`."""
    report, run = memory.report, memory.run
    of_shape = memory.predicted.method == "trace" and is_point(run) and report.known.quantised is None
    kept = symbolic_trace(report, run, composed_of) if of_shape and _explorable(report, run) else None
    if kept is None:
        return None
    from .explore import explore_trace

    return explore_trace(kept, run)

"""What a training run reserves at its peak, not what that consists of: for changes to a run and for other cards."""

from __future__ import annotations

from itertools import accumulate

from ..results.memory import Run
from ..results.model import Report
from ..results.timeline import ADAPTER, Timeline
from .allocation.allocator_settings import read_settings
from .allocation.quick_replay import quick_reserved
from .allocation.reserved import can_be_worked_out
from .footprint import whole_on_device
from .sources import point_of, with_kernel
from .traces.turns import with_all_turns
from .training import check_training


def learnt_timeline(report: Report, run: Run) -> Timeline | None:
    """The run of the default loop from its family's trace, on any card; None if no trace has it. Raises what `predict` raises."""
    from .families.family_training import is_of_loop, learnt_training
    from .training_plan import plan_of

    run = with_kernel(run, report)
    if report.design is None or report.known.unread is not None or run.device != "cuda":
        return None
    if run.loop.ema or run.media is not None or not is_of_loop(report, run):
        return None
    check_training(run)
    plan = plan_of(report, run)
    composed = learnt_training(report, plan)
    if composed is None:
        return None
    adapters_bytes = sum([size[0] for size, _, operator in composed.allocations if operator == ADAPTER])
    if plan.training.adapters and adapters_bytes != plan.training.trained_bytes:
        return None
    return with_all_turns(composed.at(point_of(plan.run)), plan.run)


def reserved_on_card(timeline: Timeline, run: Run) -> int | None:
    """`peak_reserved` of `predict`'s footprint; None if only a whole replay tells it. timeline: `learnt_timeline` of the run."""
    settings = read_settings(run.allocator)
    return quick_reserved(whole_on_device(timeline, run), settings) if can_be_worked_out(settings) else None


def most_requested(timeline: Timeline) -> int:
    """The most bytes that are requested at a time, as the trace has it."""
    sizes = {event[0]: event[1] for event in timeline.events if len(event) > 1}
    steps = [event[1] if len(event) > 1 else -sizes[event[0]] for event in timeline.events]
    return max(accumulate(steps), default=0)

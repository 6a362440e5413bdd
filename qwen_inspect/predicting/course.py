"""Memory by term after each event of a run, and the same course in fewer points that keep every peak."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ..results.course import Course, CourseStage
from ..results.memory import LOADED_TERMS, TERMS
from ..results.timeline import Allocate, Free, Record, Timeline
from .allocation.allocator import Usage

LOADER = "loader"  # the block of all weights' size that the loader allocates and frees first; no moment includes it
STAYING = (*LOADED_TERMS, "optimizer")
# From the bottom of the stack up: lasting terms first.
STACKED_TERMS = (*STAYING, LOADER, *(term for term in TERMS if term not in STAYING))
POINTS_KEPT = 3  # of each stretch: most allocated, least allocated, most reserved
FEWEST_POINTS = POINTS_KEPT + 2  # of a stage: one stretch and the stage's first and last points


def course_of(timeline: Timeline, usages: Sequence[Usage], term_of: Callable[[Allocate], str]) -> Course:
    """A point after each event. usages: the allocator's figures then; term_of: the term that a request belongs to.

    "rounding" is allocated minus requested bytes, so that the terms add up to `allocated_bytes`.
    """
    bytes_by_term = dict.fromkeys(STACKED_TERMS, 0)
    alive: dict[int, tuple[str, int]] = {}
    allocated = []
    for event, usage in zip(timeline.events, usages, strict=True):
        match event:
            case Allocate():
                term, size_bytes = alive[event.id] = term_of(event), event.size_bytes
                bytes_by_term[term] += size_bytes
            case Free():
                term, size_bytes = alive.pop(event.id)
                bytes_by_term[term] -= size_bytes
        bytes_by_term["rounding"] = usage.rounding_bytes
        allocated.append(tuple(bytes_by_term.values()))
    starts = [stage.first_event for stage in timeline.stages]
    ends = [*starts[1:], len(allocated)]
    return Course(
        stages=tuple(
            CourseStage(name=stage.name, first_point=stage.first_event)
            for stage, end in zip(timeline.stages, ends, strict=True)
            if stage.first_event < end
        ),
        terms=STACKED_TERMS,
        events=tuple(range(len(allocated))),
        allocated=tuple(allocated),
        reserved=tuple(usage.reserved_bytes for usage in usages),
    )


def thinned(course: Course, *, most_points: int) -> Course:
    """The same course in at most `most_points` points, or FEWEST_POINTS for each stage where that is more.

    Each stage keeps its first and last point, and is cut into equal stretches that keep their largest and smallest
    allocated and their largest reserved: no peak is lost, and none moves by more than a stretch.
    """
    if len(course.events) <= most_points:
        return course
    stretches = max(0, most_points - FEWEST_POINTS * len(course.stages)) // POINTS_KEPT
    kept: list[int] = []
    stages = []
    totals = course.totals
    for name, first, end in course.spans:
        stages.append(CourseStage(name=name, first_point=len(kept)))
        share = stretches * (end - first) // len(totals)
        kept += sorted({first, end - 1, *_extremes(totals, course.reserved, first, end, 1 + share)})
    return Course(
        stages=tuple(stages),
        terms=course.terms,
        events=tuple(course.events[point] for point in kept),
        allocated=tuple(course.allocated[point] for point in kept),
        reserved=tuple(course.reserved[point] for point in kept),
    )


def _extremes(allocated: Sequence[int], reserved: Sequence[int], first: int, end: int, stretches: int) -> Iterator[int]:
    """The points to keep of each stretch of [first, end)."""
    for index in range(stretches):
        begin, stop = (first + (end - first) * at // stretches for at in (index, index + 1))
        if begin < stop:
            yield max(range(begin, stop), key=allocated.__getitem__)
            yield min(range(begin, stop), key=allocated.__getitem__)
            yield max(range(begin, stop), key=reserved.__getitem__)


def measured_course(record: Record, held_bytes: int, *, most_points: int) -> Course:
    """The course of a real run: `held_bytes` of the loaded model plus the requests alive after each change.

    Of decoding only the last step, as in a trace. A single term, and reserved equals allocated: a record has only requests.
    """
    alive: dict[int, int] = {}
    total = held_bytes
    totals = []
    for change in record.changes:
        if change.size_bytes > 0:
            alive[change.address] = change.size_bytes
            total += change.size_bytes
        else:
            total -= alive.pop(change.address, 0)
        totals.append(total)
    stages = [CourseStage(name="load", first_point=0)]
    kept = [held_bytes]
    ends = [*(stage.first_event for stage in record.stages[1:]), len(totals)]
    steps = [index for index, stage in enumerate(record.stages) if stage.name == "decode"]
    for index, (stage, end) in enumerate(zip(record.stages, ends, strict=True)):
        if stage.first_event < end and index not in steps[:-1]:
            stages.append(CourseStage(name=stage.name, first_point=len(kept)))
            kept += totals[stage.first_event : end]
    course = Course(
        stages=tuple(stages),
        terms=("allocated",),
        events=tuple(range(len(kept))),
        allocated=tuple((value,) for value in kept),
        reserved=tuple(kept),
    )
    return thinned(course, most_points=most_points)

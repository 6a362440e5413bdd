"""What the allocator holds over a run, for a plot."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CourseStage:
    """A part of a run and the first of its points; it lasts to the next one's."""

    name: str
    first_point: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What the allocator holds over a run, in bytes, at points in the order of its events.

    terms: what `allocated` is made of, in the order of stacking; for each point a value for each term. events: the event
    after which each point holds, rising. stages: in order, none without a point, the first at point 0.
    """

    stages: tuple[CourseStage, ...]
    terms: tuple[str, ...]
    events: tuple[int, ...]
    allocated: tuple[tuple[int, ...], ...]
    reserved: tuple[int, ...]

    @property
    def totals(self) -> tuple[int, ...]:
        """Allocated bytes at each point."""
        return tuple(map(sum, self.allocated))

    @property
    def spans(self) -> tuple[tuple[str, int, int], ...]:
        """Each stage's name, first point and the point after its last."""
        ends = [*(stage.first_point for stage in self.stages[1:]), len(self.events)]
        return tuple((stage.name, stage.first_point, end) for stage, end in zip(self.stages, ends, strict=True))

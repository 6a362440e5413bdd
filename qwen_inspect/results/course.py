"""The allocator's memory over a run, for a plot."""

from __future__ import annotations

from ..values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CourseStage:
    """A stage of a run; it lasts from its first point to the next stage's."""

    name: str
    first_point: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """The allocator's memory over a run, in bytes, sampled at points in event order.

    terms: the terms of `allocated`, in stacking order. allocated: for each point, the bytes of each term. events: the event
    after which each point was taken, increasing. stages: in order; each has at least one point, the first starts at point 0.
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

"""Turns of a loop up to one that takes another region, known from turns that began alike, in this layer or in any other.

What turns do depends on the free blocks that may serve their requests, on their order and on that of the regions which are taken
next: `RegionCycles.alike` and the ranks of those regions. Then blocks of the same sizes at the same offsets go and come.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Sequence

from ...typed import NamedTuple
from .allocator import SMALL_BYTES
from .regions import ADDRESS, ADDRESS_BITS, Regions

ELSEWHERE = -1  # in the other pool
Place = tuple[int, int, int]  # number of the region, offset therein, bytes


class Usage(NamedTuple):
    """Of turns: how many bytes more are allocated after them than before, and at most meanwhile."""

    allocated_bytes: int
    most_bytes: int


class Step(NamedTuple):
    """turns: so many. gone, come: free blocks. state: where it is then. ranks: of the regions that are taken, among the others.
    deepest: how many regions more are taken at once than at first."""

    turns: int
    gone: Sequence[Place]
    come: Sequence[Place]
    state: Place
    ranks: Sequence[int]
    deepest: int
    usage: Usage


class Before(NamedTuple):
    """What turns begin with. key: on which they depend. partly: regions from which requests may be served. whole: next ones, of
    `region_bytes` each; if there is none, new segments. free: blocks of the outputs' pool; others: of the other one. regions:
    how many there are.
    """

    key: Hashable
    partly: Sequence[int]
    whole: Sequence[int]
    region_bytes: int
    free: frozenset[int]
    others: Sequence[int]
    regions: int

    @staticmethod
    def of(
        key: Hashable, partly: Sequence[int], whole: Sequence[int], region_bytes: int, regions: Regions, pool: int
    ) -> Before:
        free, others = regions.free[pool], regions.free[1 - pool]
        return Before(key, partly, whole, region_bytes, frozenset(free), [*others], len(regions.starts))


class Steps:
    """by_key: steps that are known, each with other ranks of regions; None among them for turns that no step describes."""

    def __init__(self) -> None:
        self.by_key: dict[Hashable, list[Step | None]] = {}

    def learn(self, before: Before, regions: Regions, pool: int, turns: int, deepest: int, usage: Usage) -> None:
        """Keeps what turns did, unless they did something in any other region."""
        known = self.by_key.setdefault(before.key, [])
        known.append(self._step(before, regions, pool, turns, deepest, usage))

    def _step(self, before: Before, regions: Regions, pool: int, turns: int, deepest: int, usage: Usage) -> Step | None:
        now = {*regions.free[pool]}
        gone, come = before.free - now, now - before.free
        state, state_bytes = regions.state
        is_here = (state_bytes > SMALL_BYTES) == pool
        used = {regions.region_of(entry & ADDRESS) for entry in (*gone, *come)}
        used |= {regions.region_of(state)} if is_here else set()
        taken = sorted(used.difference(before.partly))
        new = len(regions.starts) - before.regions
        if before.whole and (new or taken != before.whole[: len(taken)]):
            return None
        if (not before.whole and not new == len(taken) == 1) or regions.free[1 - pool] != before.others:
            return None
        number = {start: index for index, start in enumerate((*before.partly, *taken))}

        def place(start: int, size: int) -> Place:
            region = regions.region_of(start)
            return number[region], start - region, size

        return Step(
            turns,
            [place(entry & ADDRESS, entry >> ADDRESS_BITS) for entry in gone],
            [place(entry & ADDRESS, entry >> ADDRESS_BITS) for entry in come],
            place(state, state_bytes) if is_here else (ELSEWHERE, state, state_bytes),
            [bisect_left(before.partly, start) for start in taken],
            deepest,
            usage,
        )


def can_do(step: Step, regions: Regions, partly: Sequence[int], whole: Sequence[int]) -> bool:
    """Whether the regions are in the same order and have the blocks that go. partly, whole: as in `Before`."""
    taken = whole[: len(step.ranks)]
    if [bisect_left(partly, start) for start in taken] != step.ranks:
        return False
    starts = (*partly, *taken)
    size_at = regions.size_at
    return all(size_at.get(starts[number] + offset) == size for number, offset, size in step.gone)


def do(step: Step, regions: Regions, pool: int, partly: Sequence[int], whole: Sequence[int]) -> None:
    """Does what the turns of a step did."""
    starts = (*partly, *whole[: len(step.ranks)])
    size_at, start_of, free = regions.size_at, regions.start_of, regions.free[pool]
    for number, offset, size in step.gone:
        start = starts[number] + offset
        del free[bisect_left(free, size << ADDRESS_BITS | start)]
        del size_at[start], start_of[start + size]
    for number, offset, size in step.come:
        start = starts[number] + offset
        size_at[start], start_of[start + size] = size, start
        insort(free, size << ADDRESS_BITS | start)
    regions.use(*step.usage)
    number, offset, size = step.state
    regions.state = offset + (0 if number == ELSEWHERE else starts[number]), size

"""Turns of a loop that do in further regions what earlier turns did in theirs, done at once.

A turn leaves an output behind, so that the allocator is never in the same state twice. But two states are alike if the regions
from which requests may be served have the same blocks in the same order of addresses. If the turns between took free regions of
one size, or new segments, further turns take the next ones likewise.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from .allocator import OWN_SEGMENT_BYTES, SMALL_BYTES
from .regions import ADDRESS, ADDRESS_BITS, Regions, side_by_side

FEWEST_REGIONS = 6  # of one size, whose taking is followed


class _Moment(NamedTuple):
    """Between two turns. turns: still to do. regions: from which requests may be served, and which has the state. free: whole
    ones of the size that is taken. All by start, in order. outputs: so many were made. number: of moments before."""

    turns: int
    regions: list[int]
    free: list[int]
    reserved_bytes: int
    allocated_bytes: int
    outputs: int
    number: int


class RegionCycles:
    """Follows a loop in the pool of its outputs. region_bytes: of the regions that it takes now, or of new segments."""

    def __init__(self, regions: Regions, sizes: Sequence[int], output_bytes: int) -> None:
        self._regions = regions
        self._pool = int(output_bytes > SMALL_BYTES)
        in_pool = [size for size in sizes if (size > SMALL_BYTES) == self._pool]
        self._least_bytes = min(in_pool)
        self._segment_bytes = regions.allocator.settings.segment_bytes(self._least_bytes)
        counts = Counter(entry >> ADDRESS_BITS for entry in regions.free[self._pool])
        self._later = sorted(size for size, count in counts.items() if count >= FEWEST_REGIONS and size >= max(in_pool))
        self._shares_segments = max(in_pool) < OWN_SEGMENT_BYTES
        self._seen: dict[object, _Moment] = {}
        self._fewest_left: list[int] = []  # free regions at any time between a moment and the next
        self._next()

    def _next(self) -> None:
        self._of_new = not self._later
        self.region_bytes = self._later.pop(0) if self._later else self._segment_bytes
        self._fewest = self._count() + 1
        self._begin()

    def _begin(self) -> None:
        self._seen.clear()
        self._fewest_left = [self._count()]

    def note_request(self) -> None:
        """To be called when a request has got a region of the size."""
        if not self._of_new:
            self._fewest_left[-1] = min(self._fewest_left[-1], self._count())

    def _count(self) -> int:
        """Free regions of the size; of new segments, less those that were made."""
        if self._of_new:
            return -self._regions.allocator.reserved_bytes // self._segment_bytes
        free = self._regions.free[self._pool]
        return bisect_left(free, self.region_bytes + 1 << ADDRESS_BITS) - bisect_left(
            free, self.region_bytes << ADDRESS_BITS
        )

    def has_taken_region(self) -> bool:
        """Whether fewer regions are left than ever."""
        count = self._count()
        while not (count or self._of_new):
            self._next()
            count = self._count()
        is_less = count < self._fewest
        self._fewest = min(count, self._fewest)
        return is_less and (self._shares_segments or not self._of_new)

    def skip(self, turns: int) -> int:
        """Does some of the next `turns` turns, if they do what earlier turns did; returns how many."""
        alike, now = self._moment(turns)
        before = self._seen.setdefault(alike, now)
        if before is now:
            self._fewest_left.append(self._count())
            return 0
        passed, taken = self._passed(before, now)
        # The last cycle is replayed, for its peak.
        cycles = min(turns // (before.turns - turns) - 1, self._room(before, now) // taken) if taken else 0
        if cycles <= 0:
            self._fewest_left.append(self._count())
            return 0
        self._repeat(passed, taken, cycles, before, now)
        self._begin()
        return cycles * (before.turns - turns)

    def _moment(self, turns: int) -> tuple[object, _Moment]:
        regions, free = self._regions, self._regions.free[self._pool]
        begin, end, stop = (
            bisect_left(free, size << ADDRESS_BITS)
            for size in (self._least_bytes, self.region_bytes, self.region_bytes + 1)
        )
        state, state_bytes = regions.state
        here = regions.region_of(state) if (state_bytes > SMALL_BYTES) == self._pool else None
        # Smaller blocks decide nothing, but those that the state leaves beside it when it is freed.
        blocks = {entry & ADDRESS: entry >> ADDRESS_BITS for entry in free[begin:end]}
        layouts: dict[int, list[tuple[int, int]]] = {} if here is None else {here: []}
        for start in sorted(blocks):
            region = regions.region_of(start)
            layouts.setdefault(region, []).append((start - region, blocks[start]))
        partly = sorted(layouts)
        alike = (
            self.region_bytes,
            self._of_new,
            tuple([(regions.by_start[start].size_bytes, *layouts[start]) for start in partly]),
            (state, None) if here is None else (state - here, partly.index(here)),
            (state_bytes, regions.size_at.get(state + state_bytes), state - regions.start_of.get(state, state)),
            tuple(regions.free[1 - self._pool]),
            tuple(free[stop:]),
        )
        made = len(regions.outputs)
        whole = [entry & ADDRESS for entry in free[end:stop]]
        reserved = regions.allocator.reserved_bytes
        number = len(self._fewest_left)
        return alike, _Moment(turns, partly, whole, reserved, regions.allocated_bytes, made, number)

    def _layouts(self, starts: set[int]) -> dict[int, list[tuple[int, int]]]:
        """Offset and size of the free blocks of these regions."""
        layouts: dict[int, list[tuple[int, int]]] = {start: [] for start in starts}
        for entry in self._regions.free[self._pool]:
            start = self._regions.region_of(entry & ADDRESS)
            if start in layouts:
                layouts[start].append(((entry & ADDRESS) - start, entry >> ADDRESS_BITS))
        return {start: sorted(layout) for start, layout in layouts.items()}

    def _passed(self, before: _Moment, now: _Moment) -> tuple[list[int], int]:
        """The regions that moved on since a moment and those taken, in order; and how many were taken, 0 if that was not regular.

        A region that has the same place at both moments stays; it must lie below all others.
        """
        by_start = self._regions.by_start
        stay = {start for start, other in zip(before.regions, now.regions, strict=True) if start == other}
        first, last = ([start for start in moment.regions if start not in stay] for moment in (before, now))
        if self._of_new:
            taken = [start for start in last if start not in first]
            new_bytes = now.reserved_bytes - before.reserved_bytes
            is_regular = not (before.free or now.free) and new_bytes == len(taken) * self._segment_bytes
        else:
            taken = before.free[: len(before.free) - len(now.free)]
            is_regular = before.free == taken + now.free and before.reserved_bytes == now.reserved_bytes
            is_regular = is_regular and all(
                start in by_start and by_start[start].size_bytes == self.region_bytes for start in before.free
            )
        passed = first + taken
        is_regular = is_regular and passed == sorted(passed) and passed[len(taken) :] == last
        is_regular = is_regular and max(stay, default=-1) < min(passed, default=0)
        return passed, len(taken) if is_regular else 0

    def _room(self, before: _Moment, now: _Moment) -> int:
        """How many regions further cycles may take: those that were never needed, or new segments that lie above all others."""
        if not self._of_new:
            return min(self._fewest_left[before.number :])
        last = self._regions.by_start[now.regions[-1]].address
        return self._regions.allocator.room_above(last, self._segment_bytes)

    def _repeat(self, passed: list[int], taken: int, cycles: int, before: _Moment, now: _Moment) -> None:
        """Moves the last regions' blocks so many cycles on, and leaves the first ones' behind in each."""
        regions, more = self._regions, cycles * taken
        layouts = self._layouts({*passed})
        new = [regions.add_segment(self._least_bytes)[0] for _ in range(more if self._of_new else 0)]
        starts = passed + (new or now.free[:more])
        regions.drop({*starts[taken:]}, self._pool)
        last = taken + more  # where the last regions come to stand
        for number, start in list(enumerate(starts))[taken:]:
            for offset, size in layouts[passed[number - more if number >= last else number % taken]]:
                regions.put(start + offset, size, self._pool)
        place = {start: number for number, start in enumerate(passed)}
        outputs = side_by_side(regions.outputs[before.outputs :])
        regions.outputs[before.outputs :] = outputs
        for at, size, count in outputs:
            start = regions.region_of(at)
            regions.outputs += [
                (starts[place[start] + cycle * taken] + at - start, size, count) for cycle in range(1, cycles + 1)
            ]
        state, state_bytes = regions.state
        if (start := regions.region_of(state)) in place:
            regions.state = starts[place[start] + more] + state - start, state_bytes
        regions.allocated_bytes += cycles * (now.allocated_bytes - before.allocated_bytes)

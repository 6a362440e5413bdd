"""Turns of a loop that do in further regions what earlier turns did in theirs, done at once.

A turn leaves an output behind, so that the allocator is never in the same state twice. But two states are alike if the regions
from which requests may be served have the same blocks in the same order of addresses. If the turns between took free regions of
one size, or new segments, further turns take the next ones likewise.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence

from ...typed import NamedTuple
from .allocator import OWN_SEGMENT_BYTES, SMALL_BYTES
from .region_steps import Before, Steps, Usage, can_do, do
from .regions import ADDRESS, ADDRESS_BITS, Regions, side_by_side

FEWEST_REGIONS = 6  # of one size, whose taking is followed
MOST_STEPS = 8  # that are known of turns that began alike, with regions in other orders


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
    """Follows a loop in the pool of its outputs. program: of a turn each block's bytes, 0 to free it, and its number. steps: that
    are known. region_bytes: of the regions that it takes now, or of new segments."""

    def __init__(
        self, regions: Regions, program: Sequence[tuple[int, int]], output_bytes: int, steps: Steps | None
    ) -> None:
        sizes = [size for size, _ in program if size]
        self._regions, self._program, self._steps = regions, program, steps
        self._begun: tuple[tuple[object, ...], _Moment] | None = None  # where the next turns begin, if that is known
        self._learning: Before | None = None
        self._pool = int(output_bytes > SMALL_BYTES)
        in_pool = [size for size in sizes if (size > SMALL_BYTES) == self._pool]
        self._has_both_pools = len(in_pool) < len(sizes)
        self._least_bytes = min(in_pool)
        self._segment_bytes = regions.settings.segment_bytes(self._least_bytes)
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

    def known(self, turns: int) -> int:
        """Does turns, at most so many, that began alike before; returns how many, 0 if none did."""
        self._learning = None
        if self._steps is None:
            return 0
        regions, (alike, now) = self._regions, self._begun or self._moment(turns)
        count = self._count()
        if self._of_new and (now.free or alike[-1]):
            return 0
        # Larger blocks decide nothing, nor those of a pool that serves no request; no more regions than these can come free.
        gap = min(self._fewest - count, len(now.regions) + 1)
        key = self._program, gap, *alike[:-2], alike[-2] if self._has_both_pools else None
        whole = [regions.next_segment(self._least_bytes)] if self._of_new else now.free
        known = self._steps.by_key.get(key, ())
        for step in known:
            if step is None or can_do(step, regions, now.regions, whole):
                break
        else:
            if len(known) < MOST_STEPS:
                self._learning = Before.of(key, now.regions, now.free, self.region_bytes, regions, self._pool)
            return 0
        if step is None or step.turns > turns or (step.deepest >= count and not self._of_new):
            return 0
        if self._of_new:
            regions.add_segment(self._least_bytes)
        do(step, regions, self._pool, now.regions, whole)
        self._fewest_left[-1] -= step.deepest
        self._fewest = min(self._fewest, self._count())
        return step.turns

    def learn(self, turns: int, usage: Usage, *, at_most: int) -> None:
        """Keeps what the turns did that were just played, if they ended with one that takes another region of the same size."""
        before = self._learning
        if before is None or self._steps is None or turns == at_most or self.region_bytes != before.region_bytes:
            return
        deepest = 0 if self._of_new else len(before.whole) - self._fewest_left[-1]
        self._steps.learn(before, self._regions, self._pool, turns, deepest, usage)

    def _count(self) -> int:
        """Free regions of the size; of new segments, less those that were made."""
        if self._of_new:
            return -self._regions.reserved_bytes // self._segment_bytes
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
        self._begun = alike, now
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
        self._begun = None
        self._begin()
        return cycles * (before.turns - turns)

    def _moment(self, turns: int) -> tuple[tuple[object, ...], _Moment]:
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
            tuple([(regions.sizes[start], *layouts[start]) for start in partly]),
            (state, None) if here is None else (state - here, partly.index(here)),
            (state_bytes, regions.size_at.get(state + state_bytes), state - regions.start_of.get(state, state)),
            tuple(regions.free[1 - self._pool]),
            tuple(free[stop:]),
        )
        made = len(regions.outputs)
        whole = [entry & ADDRESS for entry in free[end:stop]]
        reserved = regions.reserved_bytes
        number = len(self._fewest_left)
        return alike, _Moment(turns, partly, whole, reserved, regions.allocated_bytes, made, number)

    def _layouts(self, starts: Iterable[int]) -> dict[int, list[tuple[int, int]]]:
        """Offset and size of the free blocks of these regions."""
        regions, free = self._regions, sorted(self._regions.size_at)
        layouts: dict[int, list[tuple[int, int]]] = {}
        for start in starts:
            begin, end = bisect_left(free, start), bisect_left(free, start + regions.sizes[start])
            layouts[start] = [(block - start, regions.size_at[block]) for block in free[begin:end]]
        return layouts

    def _passed(self, before: _Moment, now: _Moment) -> tuple[list[int], int]:
        """The regions that moved on since a moment and those taken, in order; and how many were taken, 0 if that was not regular.

        A region that has the same place at both moments stays; it must lie below all others.
        """
        sizes = self._regions.sizes
        stay = {start for start, other in zip(before.regions, now.regions, strict=True) if start == other}
        first, last = ([start for start in moment.regions if start not in stay] for moment in (before, now))
        if self._of_new:
            taken = [start for start in last if start not in first]
            new_bytes = now.reserved_bytes - before.reserved_bytes
            is_regular = not (before.free or now.free) and new_bytes == len(taken) * self._segment_bytes
        else:
            taken = before.free[: len(before.free) - len(now.free)]
            is_regular = before.free == taken + now.free and before.reserved_bytes == now.reserved_bytes
            is_regular = is_regular and all(sizes.get(start) == self.region_bytes for start in before.free)
        passed = first + taken
        is_regular = is_regular and passed == sorted(passed) and passed[len(taken) :] == last
        is_regular = is_regular and max(stay, default=-1) < min(passed, default=0)
        return passed, len(taken) if is_regular else 0

    def _room(self, before: _Moment, now: _Moment) -> int:
        """How many regions further cycles may take: those that were never needed, or new segments that lie above all others."""
        if not self._of_new:
            return min(self._fewest_left[before.number :])
        return self._regions.room_above(now.regions[-1], self._segment_bytes)

    def _repeat(self, passed: list[int], taken: int, cycles: int, before: _Moment, now: _Moment) -> None:
        """Moves the last regions' blocks so many cycles on, and leaves the first ones' behind in each."""
        regions, more = self._regions, cycles * taken
        layouts = self._layouts(passed)
        new = [regions.add_segment(self._least_bytes)[0] for _ in range(more if self._of_new else 0)]
        starts = passed + (new or now.free[:more])
        gone = [(start + offset, size) for start in passed[taken:] for offset, size in layouts[start]]
        gone += [] if self._of_new else [(start, self.region_bytes) for start in now.free[:more]]
        regions.drop(gone, self._pool)
        last = taken + more  # where the last regions come to stand
        like = [layouts[passed[number % taken]] for number in range(taken, last)]
        like += [layouts[passed[number - more]] for number in range(last, len(starts))]
        regions.put(
            [
                (start + offset, size)
                for start, layout in zip(starts[taken:], like, strict=True)
                for offset, size in layout
            ],
            self._pool,
        )
        place = {start: number for number, start in enumerate(passed)}
        if regions.counts_outputs:
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

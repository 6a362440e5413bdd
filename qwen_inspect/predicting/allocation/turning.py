"""Replays the turns that one request of a folded run stands for: on integers, and many at once where they do the same.

If all requests of a turn get the blocks that they got some turns before, but for the output, which is cut from the free block
behind the last one, further turns do the same as long as that block stays larger than all that requests get instead of it. What
is done alike in region after region, `regions` skips. The last turns are replayed nevertheless: with the most outputs, they have
the highest peak.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import accumulate

from ...results.timeline import Allocate
from ..traces.token_loops import Turn
from .allocator import SMALL_BYTES, UNLIMITED_BYTES, Allocator, Block
from .region_cycles import RegionCycles
from .region_steps import Steps, Usage
from .regions import ADDRESS, ADDRESS_BITS, AllocatorRegions, Regions

LONGEST_CYCLE = 4  # turns after which requests get the same blocks again


def replay_turns(allocator: Allocator, blocks: dict[int, Block], turn: Turn, count: int) -> list[Block]:
    """Replays so many turns; returns the blocks of their outputs. blocks: in use, by the request's id."""
    settings = allocator.settings
    sizes = [event.size_bytes for event in turn.events if isinstance(event, Allocate)]
    limited = settings.expandable_segments or settings.max_split_bytes != UNLIMITED_BYTES
    if limited or allocator.capacity_bytes != UNLIMITED_BYTES or not min(*sizes, count):
        return [_replay(allocator, blocks, turn) for _ in range(count)]
    regions = AllocatorRegions(allocator, blocks[turn.state])
    Turns(regions, turn).replay(count)
    return _written(regions, blocks, turn, count)


def _written(regions: AllocatorRegions, blocks: dict[int, Block], turn: Turn, count: int) -> list[Block]:
    """Writes what was replayed to the allocator and to `blocks`; returns the outputs' blocks."""
    made = {event.id: event.size_bytes for event in turn.events if isinstance(event, Allocate)}
    state, outputs = regions.written(output_bytes=turn.output.size_bytes, state_bytes=made[turn.state])
    blocks[turn.state] = state or blocks[turn.state]
    made[turn.before] = made[turn.state]
    sizes = (made[event.id] if isinstance(event, Allocate) else -made[event.id] for event in turn.events)
    before_last = (count - 1) * turn.output.size_bytes
    regions.allocator.record(
        allocated_bytes=regions.allocated_bytes,
        most_allocated_bytes=regions.most_allocated_bytes,
        requested_bytes=count * turn.output.size_bytes,
        most_requested_bytes=before_last + max(accumulate(sizes)),
    )
    return outputs


def _replay(allocator: Allocator, blocks: dict[int, Block], turn: Turn) -> Block:
    """Replays a turn; returns its output's block."""
    now = {turn.before: blocks[turn.state]}
    for event in turn.events:
        if isinstance(event, Allocate):
            now[event.id] = allocator.allocate(event.size_bytes)
        else:
            allocator.free(now.pop(event.id))
    blocks[turn.state] = now[turn.state]
    return now[turn.output.id]


class Turns:
    """A loop over the regions of an allocator."""

    def __init__(self, regions: Regions, turn: Turn, steps: Steps | None = None) -> None:
        self._regions = regions
        block_bytes = regions.settings.block_bytes
        places: dict[int, int] = {turn.before: 0, turn.state: 1, turn.output.id: 2}
        self._program = tuple(
            [  # block size, 0 to free; place of the block
                (
                    block_bytes(event.size_bytes) if isinstance(event, Allocate) else 0,
                    places.setdefault(event.id, len(places)),
                )
                for event in turn.events
            ]
        )
        self._places = len(places)
        self._output_bytes = block_bytes(turn.output.size_bytes)
        self._cycles = RegionCycles(regions, self._program, self._output_bytes, steps)

    def replay(self, count: int) -> None:
        left = count
        while left:
            done = self._cycles.known(left)
            if not done:
                done, usage = self._play(left)
                self._cycles.learn(done, usage, at_most=left)
            left -= done
            left -= self._cycles.skip(left) if left else 0

    def _play(self, turns: int) -> tuple[int, Usage]:
        """Plays turns, at most so many, until one takes a region of those that `RegionCycles` counts; returns how many."""
        regions, cycles, steps, output_bytes = self._regions, self._cycles, self._program, self._output_bytes
        small, large = regions.free
        size_at, start_of, outputs = regions.size_at, regions.start_of, regions.outputs
        starts, sizes = [0] * self._places, [0] * self._places
        starts[0], sizes[0] = regions.state
        allocated = most_allocated = 0
        end = fitting = cut = done = 0  # end: of the last output; cut: outputs in a row, each cut behind the last
        placed: list[tuple[int, ...]] = []  # by turn: the starts of all but the output, and the largest block that fits
        while done < turns:
            taken = False
            behind, fitting, row = size_at.get(end, 0), 0, []
            for size, place in steps:
                if size:
                    free, smallest_rest = (large, SMALL_BYTES + 1) if size > SMALL_BYTES else (small, 512)
                    index = bisect_left(free, size << ADDRESS_BITS)
                    if index < len(free):
                        entry = free.pop(index)
                        start, whole = entry & ADDRESS, entry >> ADDRESS_BITS
                        del size_at[start]
                        if whole == cycles.region_bytes:
                            cycles.note_request()
                            taken = True
                    else:
                        start, whole = regions.add_segment(size)
                        taken, cut = True, 0
                    rest = whole - size
                    if rest >= smallest_rest:
                        after = start + size
                        size_at[after], start_of[start + whole] = rest, after
                        insort(free, rest << ADDRESS_BITS | after)
                        sizes[place] = size
                    else:
                        start_of.pop(start + whole, None)
                        sizes[place] = whole
                    starts[place] = start
                    allocated += sizes[place]
                    if allocated > most_allocated:
                        most_allocated = allocated
                    if place != 2:
                        row.append(start)
                        if fitting < whole < behind:
                            fitting = whole
                else:
                    start, whole = starts[place], sizes[place]
                    allocated -= whole
                    free, stop = large if whole > SMALL_BYTES else small, start + whole
                    if after_bytes := size_at.pop(stop, 0):
                        del free[bisect_left(free, after_bytes << ADDRESS_BITS | stop)]
                        stop += after_bytes
                    before = start_of.pop(start, None)
                    if before is not None:
                        del free[bisect_left(free, (start - before) << ADDRESS_BITS | before)]
                        start = before
                    size_at[start], start_of[stop] = stop - start, start
                    insort(free, (stop - start) << ADDRESS_BITS | start)
            starts[0], sizes[0] = starts[1], sizes[1]
            done += 1
            start, whole = starts[2], sizes[2]
            cut = cut + 1 if start == end and whole == output_bytes else 0
            end = start + whole
            outputs.append((start, whole, 1))
            placed.append((*row, fitting))
            if cut and done < turns and (many := self._alike(placed, cut, size_at.get(end, 0), turns - done)):
                regions.cut(end, many, output_bytes)
                allocated += many * output_bytes
                done, cut, end = done + many, 0, end + many * output_bytes
                placed.clear()
            if taken and cycles.has_taken_region():
                break
        regions.state = starts[0], sizes[0]
        usage = Usage(allocated, most_allocated)
        regions.use(*usage)
        return done, usage

    def _alike(self, placed: list[tuple[int, ...]], cut: int, behind: int, most: int) -> int:
        """How many turns, of at most so many, do the same as the last ones. cut: outputs that are behind one another, but one."""
        last = placed[-1][:-1]
        smallest_rest = SMALL_BYTES + 1 if self._output_bytes > SMALL_BYTES else 512
        for cycle in range(1, min(LONGEST_CYCLE, cut, len(placed) - 1) + 1):
            if placed[-1 - cycle][:-1] == last:
                least = max(*(turn[-1] + 1 for turn in placed[-cycle:]), smallest_rest)
                return max(0, min((behind - least) // self._output_bytes, most) // cycle - 1) * cycle
        return 0

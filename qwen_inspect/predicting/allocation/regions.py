"""The free memory of an allocator as integers, for a loop that keeps what it makes.

A region is what lies between two blocks that stay in use. A free block is one integer, its size and start, sorted in the order of
the best fit. Starts are addresses of regions, doubled so that blocks of different regions never touch, and the offset therein.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Iterable, Sequence

from ...typed import NamedTuple
from .allocator import SMALL_BYTES, Allocator, Block, Settings

ADDRESS_BITS = 72
ADDRESS = (1 << ADDRESS_BITS) - 1
HIGHEST_ADDRESS = 1 << 71
FREE, STATE = 0, -1
Span = tuple[int, int]  # start, bytes
Piece = tuple[int, int, int]  # start, bytes, and how many outputs, FREE or STATE


class Regions:
    """free: of the small pool and of the large. size_at, start_of: of free blocks, by their starts and by their ends. state:
    start and size of the block that each turn replaces. outputs: those that were made, if `counts_outputs`. sizes: of regions, by
    their starts."""

    counts_outputs = True

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.sizes: dict[int, int] = {}
        self.free: tuple[list[int], list[int]] = ([], [])
        self.size_at: dict[int, int] = {}
        self.start_of: dict[int, int] = {}
        self.outputs: list[Piece] = []
        self.state = 0, 0
        self.allocated_bytes = self.most_allocated_bytes = 0
        self.starts: list[int] = []  # of the regions, in order

    @property
    def reserved_bytes(self) -> int:
        raise NotImplementedError

    def add_segment(self, size_bytes: int) -> tuple[int, int]:
        """The start and the size of a new segment for a block of this size, not yet among the free ones."""
        raise NotImplementedError

    def next_segment(self, size_bytes: int) -> int:
        """The start of the segment that `add_segment` would add."""
        raise NotImplementedError

    def room_above(self, start: int, segment_bytes: int) -> int:
        """How many of the next segments of this size lie in ascending order above a region."""
        raise NotImplementedError

    def use(self, allocated_bytes: int, most_bytes: int) -> None:
        """Counts turns that allocate so many bytes, at most so many meanwhile."""
        self.most_allocated_bytes = max(self.most_allocated_bytes, self.allocated_bytes + most_bytes)
        self.allocated_bytes += allocated_bytes

    def region_of(self, start: int) -> int:
        return self.starts[bisect_right(self.starts, start) - 1]

    def put(self, blocks: Sequence[Span], pool: int) -> None:
        """Adds free blocks."""
        self.size_at.update(blocks)
        self.start_of.update([(start + size, start) for start, size in blocks])
        self.free[pool].extend([size << ADDRESS_BITS | start for start, size in blocks])
        self.free[pool].sort()

    def drop(self, blocks: Sequence[Span], pool: int) -> None:
        """Takes free blocks away."""
        for start, size in blocks:
            del self.size_at[start], self.start_of[start + size]
        free = self.free[pool]
        free[:] = sorted({*free}.difference([size << ADDRESS_BITS | start for start, size in blocks]))

    def cut(self, start: int, count: int, output_bytes: int) -> None:
        """Makes so many outputs side by side from the free block that starts here."""
        size, pool, taken = self.size_at[start], int(output_bytes > SMALL_BYTES), count * output_bytes
        del self.size_at[start]
        self.free[pool].remove(size << ADDRESS_BITS | start)
        insort(self.free[pool], (size - taken) << ADDRESS_BITS | start + taken)
        self.size_at[start + taken], self.start_of[start + size] = size - taken, start + taken
        self.outputs.append((start, taken, count))


class Region(NamedTuple):
    """pool: 0 small, 1 large. pieces: what it had at first. before, after: the blocks around it."""

    address: int
    pool: int
    pieces: list[Piece]
    before: Block | None
    after: Block | None


class AllocatorRegions(Regions):
    """Those of an `Allocator`, to which they are written at the end. by_start: each region."""

    def __init__(self, allocator: Allocator, state: Block) -> None:
        super().__init__(allocator.settings)
        self.allocator = allocator
        self.by_start: dict[int, Region] = {}
        self.allocated_bytes = self.most_allocated_bytes = allocator.allocated_bytes
        for pool in allocator.pools:
            for _, _, block in pool.free:
                self._add(block, state)
        self._add(state, state)
        self.starts = sorted(self.by_start)

    @property
    def reserved_bytes(self) -> int:
        return self.allocator.reserved_bytes

    def room_above(self, start: int, segment_bytes: int) -> int:
        return self.allocator.room_above(self.by_start[start].address, segment_bytes)

    def _add(self, block: Block, state: Block) -> None:
        """Adds the region of a block, unless it is there."""
        while block.previous is not None and (block.previous is state or not block.previous.in_use):
            block = block.previous
        first = 2 * block.address + HIGHEST_ADDRESS
        if first in self.by_start:
            return
        start, pool, pieces = first, self.allocator.pools.index(block.pool), []
        after: Block | None = block
        while after is not None and (after is state or not after.in_use):
            pieces.append((start, after.size_bytes, STATE if after is state else FREE))
            if after is state:
                self.state = start, after.size_bytes
            else:
                self.put([(start, after.size_bytes)], pool)
            start, after = start + after.size_bytes, after.next
        self.by_start[first] = Region(block.address, pool, pieces, block.previous, after)
        self.sizes[first] = start - first

    def add_segment(self, size_bytes: int) -> tuple[int, int]:
        segment_bytes = self.settings.segment_bytes(size_bytes)
        address = self.allocator.place_segment(segment_bytes)
        start = 2 * address + HIGHEST_ADDRESS
        self.by_start[start] = Region(address, int(size_bytes > SMALL_BYTES), [], None, None)
        self.sizes[start] = segment_bytes
        insort(self.starts, start)
        return start, segment_bytes

    def _by_region(self, pieces: Iterable[Piece]) -> dict[int, list[Piece]]:
        """The pieces of each region, in order."""
        grouped: dict[int, list[Piece]] = defaultdict(list)
        for piece in sorted(pieces):
            grouped[self.region_of(piece[0])].append(piece)
        return grouped

    def written(self, *, output_bytes: int, state_bytes: int) -> tuple[Block | None, list[Block]]:
        """Writes all to the allocator; returns the blocks of the state, unless it is where it was, and of the outputs.

        output_bytes, state_bytes: as requested.
        """
        free = [(start, size, FREE) for start, size in self.size_at.items()]
        outputs: list[Block] = []
        state: Block | None = None
        old: tuple[set[int], set[int]] = set(), set()  # of either pool the addresses of free blocks
        new: tuple[list[Block], list[Block]] = [], []
        for start, pieces in self._by_region([*free, *side_by_side(self.outputs), (*self.state, STATE)]).items():
            region = self.by_start[start]
            if pieces == region.pieces:
                continue
            blocks = []
            for at, size, count in pieces:
                block = Block(self.allocator.pools[region.pool], region.address + at - start, size)
                block.in_use = count != FREE
                block.requested_bytes = state_bytes if count == STATE else count * output_bytes
                state = block if count == STATE else state
                outputs += [block] if count > 0 else []
                new[region.pool].extend([block] if count == FREE else [])
                blocks.append(block)
            self.allocator.link(blocks, region.before, region.after)
            old[region.pool].update(region.address + at - start for at, _, count in region.pieces if count == FREE)
        for pool, addresses, blocks in zip(self.allocator.pools, old, new, strict=True):
            pool.replace(addresses, blocks)
        return state, outputs


def side_by_side(outputs: Iterable[Piece]) -> list[Piece]:
    """Outputs in order, those that touch as one."""
    merged: list[Piece] = []
    for start, size, count in sorted(outputs):
        if merged and sum(merged[-1][:2]) == start:
            first, before, several = merged.pop()
            start, size, count = first, before + size, several + count
        merged.append((start, size, count))
    return merged

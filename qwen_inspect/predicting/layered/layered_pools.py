"""Both pools of the allocator for a layered run: what a stretch of requests did in one is remembered, and not replayed again.

What a stretch does in a pool depends on where the blocks are that it frees, and on the free blocks that it takes or merges with.
It takes the same ones whatever else is free, as long as no other free block fits a request better and none touches what is freed.
Then it leaves them as it did before. Between stretches are the requests that outlive their piece, and the frees of those of
earlier pieces: a cache lies elsewhere in each layer.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby

from ...typed import NamedTuple
from ..allocation.allocator import ROUNDING_BYTES, SMALL_BYTES, UNLIMITED_BYTES, Driver, Settings
from ..allocation.reserved import ADDRESS, ADDRESS_BITS, segment_address
from .layered_run import OTHER, Doing, NotLayered

NO_POOL = 2  # of a request of 0 bytes
LARGEST_SMALL = SMALL_BYTES << ADDRESS_BITS | ADDRESS  # of a block's entry
FEWEST_ENTRIES = 6  # of a stretch that is remembered
MOST_MISSES = 3  # of one that is, beyond the times that it was known


class Memory(NamedTuple):
    """What a stretch did, with blocks as entries of a pool. needed: free blocks that it took or merged with. gone, come: free
    blocks that there are no longer, and new ones. better: the ranges of entries that would have been taken instead. no_after,
    no_before: where no free block may start and end, unless it is needed. made: each request's block."""

    needed: frozenset[int]
    gone: Sequence[int]
    come: Sequence[int]
    better: Sequence[tuple[int, int]]
    no_after: frozenset[int]
    no_before: frozenset[int]
    made: Sequence[tuple[int, int]]


class Stretch:
    """Entries of a program's order in one pool. freed: requests from before that it frees. memories: by where those are; None if
    nothing is to be remembered."""

    __slots__ = ("freed", "memories", "misses", "order")

    def __init__(self, order: list[int], *, is_remembered: bool) -> None:
        self.order, self.misses = order, 0
        made = {entry for entry in order if entry >= 0}
        self.freed = [-1 - entry for entry in order if entry < 0 and -1 - entry not in made]
        self.memories: dict[tuple[int, ...], list[Memory]] | None = {} if is_remembered else None


class Program:
    """What pieces do whose targets are in the same pools. orders: the entries in the small pool, in the large one, and in both.
    stretches: of each of the first two. outliving: the requests that are left. wanted: bytes of each request's block, then 0 for
    each target. fits: of each of these, once it is played."""

    __slots__ = ("fits", "orders", "outliving", "requested", "stretches", "wanted")

    def __init__(self, doing: Doing, target_pools: Sequence[int], settings: Settings) -> None:
        requests = len(doing.requests)
        self.fits: list[_Fit] = []
        self.requested = [request.size_bytes for request in doing.requests]
        by_size = {size: settings.block_bytes(size) if size else 0 for size in set(self.requested)}
        self.wanted = [*map(by_size.__getitem__, self.requested), *[0] * len(target_pools)]
        pools = [NO_POOL if not size else int(size > SMALL_BYTES) for size in self.wanted[:requests]] + [*target_pools]
        self.orders: tuple[list[int], list[int], list[int]] = ([], [], [])
        freed = set()
        made = []
        for entry in doing.order:
            if entry >= 0:
                number = entry
                made.append(entry)
            else:
                number = requests + OTHER - entry if entry <= OTHER else -1 - entry
                entry = -1 - number
                freed.add(number)
            if (pool := pools[number]) != NO_POOL:
                self.orders[pool].append(entry)
                self.orders[2].append(entry)
        self.outliving = [number for number in made if number not in freed]
        apart = {*self.outliving, *range(requests, len(pools))}
        self.stretches = [list(_stretches(order, apart)) for order in self.orders[:2]]


def _stretches(order: Sequence[int], apart: Collection[int]) -> Iterator[Stretch]:
    """apart: requests that belong to no stretch that is remembered."""
    for is_apart, entries in groupby(order, key=lambda entry: max(entry, -1 - entry) in apart):
        stretch = list(entries)
        yield Stretch(stretch, is_remembered=not is_apart and len(stretch) >= FEWEST_ENTRIES)


class _NeedsSegmentError(Exception):
    """In the small pool, before the large one is replayed."""


class _NoDriver(Driver):
    def place(self, size_bytes: int) -> int:
        raise _NeedsSegmentError


class _Fit(NamedTuple):
    """How a block of some bytes is found. wanted: the least entry that it fits in. least_rest: of what a split leaves free."""

    size_bytes: int
    wanted: int
    free: list[int]
    least_rest: int
    segment_bytes: int


class Pools:
    """Both pools, for one program after the other: as a `QuickAllocator`, but free blocks are looked up by either end as entries
    of their pool. A block in use is such an entry too, its bytes above its address; sums and differences of entries are those of
    both."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.reserved_bytes = 0
        self._driver = Driver()
        self._fits: dict[int, _Fit] = {}  # by bytes of a block
        self._small: list[int] = []
        self._large: list[int] = []
        self._program: list[_Fit] = []  # of each request
        self._blocks: list[int] = []  # in use, of each request and target
        self._at: dict[int, int] = {}  # by start
        self._before: dict[int, int] = {}  # by end

    def play(self, program: Program, blocks: list[int]) -> None:
        """blocks: of the program's requests, which are written, then of its targets."""
        program.fits = program.fits or self._fits_of(program.wanted)
        self._program, self._blocks = program.fits, blocks
        if not self.reserved_bytes:  # all that is loaded takes new segments
            self._play(program.orders[2])
            return
        driver, small, before = self._driver, tuple(self._small), blocks.copy()
        try:
            # Segments are asked for in the order of both pools' requests: one pool alone may not ask.
            self._driver = _NoDriver() if program.orders[1] else driver
            self._play_stretches(0, program)
            self._driver = driver
            self._play_stretches(1, program)
        except _NeedsSegmentError:
            self._driver = driver
            self._exchange(0, [*self._small], small)
            blocks[:] = before
            self._play(program.orders[2])

    def _fits_of(self, wanted: Sequence[int]) -> list[_Fit]:
        fits = self._fits
        for size in {*wanted}.difference(fits):
            free, rest = (self._large, SMALL_BYTES + 1) if size > SMALL_BYTES else (self._small, ROUNDING_BYTES)
            segment = self.settings.segment_bytes(size)
            fits[size] = _Fit(size, size << ADDRESS_BITS, free, rest << ADDRESS_BITS, segment)
        return list(map(fits.__getitem__, wanted))

    def grow(self, wanted: Sequence[int], olds: list[int]) -> list[int]:
        """Takes a block of so many bytes instead of each old one, one after the other; returns the new ones."""
        count = len(olds)
        self._program, self._blocks = self._fits_of(wanted), [*[0] * count, *olds]
        self._play([entry for number in range(count) for entry in (number, -1 - count - number)])
        return self._blocks[:count]

    def _play_stretches(self, pool: int, program: Program) -> None:
        for stretch in program.stretches[pool]:
            if stretch.memories is None:
                self._play(stretch.order)
                continue
            where = (*map(self._blocks.__getitem__, stretch.freed),)
            known = stretch.memories.setdefault(where, [])
            for memory in known:
                if self._is_alike(pool, memory):
                    self._repeat_stretch(pool, memory)
                    stretch.misses -= 1
                    break
            else:
                stretch.misses += 1
                if stretch.misses > MOST_MISSES:
                    stretch.memories = None
                    self._play(stretch.order)
                elif (new := self._remembered(pool, stretch)) is not None:
                    known.insert(0, new)

    def _is_alike(self, pool: int, memory: Memory) -> bool:
        """Whether the stretch would do now what it did then."""
        free, at, before, needed = (self._small, self._large)[pool], self._at, self._before, memory.needed
        for entry in needed:
            if at.get(entry & ADDRESS) != entry:
                return False
        for first, last in memory.better:
            begin, end = bisect_left(free, first), bisect_left(free, last)
            if begin < end and not needed.issuperset(free[begin:end]):
                return False
        return needed.issuperset([at[start] for start in memory.no_after & at.keys()]) and needed.issuperset(
            [before[end] for end in memory.no_before & before.keys()]
        )

    def _exchange(self, pool: int, gone: Iterable[int], come: Iterable[int]) -> None:
        """Takes free blocks away and adds others."""
        free, at, before = (self._small, self._large)[pool], self._at, self._before
        for entry in gone:
            del free[bisect_left(free, entry)]
            start = entry & ADDRESS
            del at[start], before[start + (entry >> ADDRESS_BITS)]
        for entry in come:
            insort(free, entry)
            start = entry & ADDRESS
            at[start] = before[start + (entry >> ADDRESS_BITS)] = entry

    def _repeat_stretch(self, pool: int, memory: Memory) -> None:
        self._exchange(pool, memory.gone, memory.come)
        blocks = self._blocks
        for number, block in memory.made:
            blocks[number] = block

    def _play(self, order: Sequence[int]) -> None:
        """Does what `Allocator.allocate` and `Allocator.free` do; NotLayered for sizes beyond all addresses."""
        small, large, at, before = self._small, self._large, self._at, self._before
        program, blocks = self._program, self._blocks
        for entry in order:
            if entry >= 0:
                size, wanted, free, least_rest, segment_bytes = program[entry]
                index = bisect_left(free, wanted)
                if index < len(free):
                    block = free.pop(index)
                    start = block & ADDRESS
                    del at[start]
                else:
                    start = segment_address(self._driver.place(segment_bytes))
                    block = segment_bytes << ADDRESS_BITS | start
                    self.reserved_bytes += segment_bytes
                    if self.reserved_bytes > UNLIMITED_BYTES:
                        raise NotLayered
                rest = block - wanted + size
                if rest >= least_rest:
                    at[start + size] = before[start + (block >> ADDRESS_BITS)] = rest
                    insort(free, rest)
                    blocks[entry] = wanted | start
                else:
                    before.pop(start + (block >> ADDRESS_BITS), None)
                    blocks[entry] = block
            else:
                block = blocks[-1 - entry]
                free = large if block > LARGEST_SMALL else small
                start = block & ADDRESS
                end = start + (block >> ADDRESS_BITS)
                if after := at.pop(end, 0):
                    del free[bisect_left(free, after)]
                    block += after - end
                    end += after >> ADDRESS_BITS
                if left := before.pop(start, 0):
                    del free[bisect_left(free, left)]
                    block += left - start
                    start = left & ADDRESS
                at[start] = before[end] = block
                insort(free, block)

    def _remembered(self, pool: int, stretch: Stretch) -> Memory | None:
        """Does what `_play` does in one pool; None if it needed a segment."""
        free, at, before = (self._small, self._large)[pool], self._at, self._before
        program, blocks = self._program, self._blocks
        begun, needed = {*free}, set()
        ranges: list[tuple[int, int]] = []
        no_after, no_before = set(), set()
        for place, entry in enumerate(stretch.order):
            if entry >= 0:
                size, wanted, _, least_rest, _ = program[entry]
                index = bisect_left(free, wanted)
                if index == len(free):
                    self._play(stretch.order[place:])
                    return None
                block = free.pop(index)
                needed.add(block)
                ranges.append((wanted, block))
                start = block & ADDRESS
                del at[start]
                rest = block - wanted + size
                if rest >= least_rest:
                    at[start + size] = before[start + (block >> ADDRESS_BITS)] = rest
                    insort(free, rest)
                    blocks[entry] = wanted | start
                else:
                    del before[start + (block >> ADDRESS_BITS)]
                    blocks[entry] = block
                continue
            block = blocks[-1 - entry]
            start = block & ADDRESS
            end = start + (block >> ADDRESS_BITS)
            if after := at.pop(end, 0):
                del free[bisect_left(free, after)]
                needed.add(after)
                block += after - end
                end += after >> ADDRESS_BITS
            else:
                no_after.add(end)
            if left := before.pop(start, 0):
                del free[bisect_left(free, left)]
                needed.add(left)
                block += left - start
                start = left & ADDRESS
            else:
                no_before.add(start)
            at[start] = before[end] = block
            insort(free, block)
        needed &= begun
        return Memory(
            needed=frozenset(needed),
            gone=[*needed.difference(free)],
            come=[*set(free) - begun],
            better=_united(ranges),
            no_after=frozenset(no_after),
            no_before=frozenset(no_before),
            made=[(entry, blocks[entry]) for entry in stretch.order if entry >= 0],
        )


def _united(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges that do not overlap, with the same numbers."""
    united: list[tuple[int, int]] = []
    for first, last in sorted(set(ranges)):
        if united and first <= united[-1][1]:
            united[-1] = united[-1][0], max(united[-1][1], last)
        else:
            united.append((first, last))
    return united

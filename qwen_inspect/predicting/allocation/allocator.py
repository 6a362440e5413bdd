"""A model of PyTorch's caching allocator for CUDA: bytes handed out (allocated) and bytes in segments (reserved).

Follows class DeviceCachingAllocator in c10/cuda/CUDACachingAllocator.cpp, the native backend; a docstring that names only a
function means one of that class. Read at a commit of pytorch's main before 2.13, checked against 2.13's headers and libc10.so.

Assumed: one stream, and new segments at the addresses that `Driver` gives. Not modelled: CUDA graphs and other private pools,
and blocks that wait for a second stream. Replayed with a real driver's addresses, every block of every run in
benchmarks/recorded lies at the address where PyTorch put it (tests/predicting/test_recordings.py).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import groupby, takewhile

from ...typed import NamedTuple
from ...values import dataclass, field

MIB = 1 << 20
# c10/core/AllocatorConfig.h, torch 2.13; in brackets the name there.
ROUNDING_BYTES = 512  # every block is a multiple of it [kMinBlockSize]
SMALL_BYTES = 1 * MIB  # the largest block of the small pool [kSmallSize]
SMALL_SEGMENT_BYTES = 2 * MIB  # [kSmallBuffer]
LARGE_SEGMENT_BYTES = 20 * MIB  # shared by blocks below OWN_SEGMENT_BYTES [large_segment_size_]
OWN_SEGMENT_BYTES = 10 * MIB  # from here on a new segment is the block's own [kMinLargeAlloc]
OWN_SEGMENT_ROUNDING_BYTES = 2 * MIB  # [kRoundLarge]
UNLIMITED_BYTES = 2**64 - 1  # [max_split_size_]
INTERVALS = 16  # [kRoundUpPowerOfTwoIntervals], of roundup_power2_divisions: below 2 MiB, below 4 MiB, ..., all above
DRIVER_STEP_BYTES = 32 * MIB
# Of an expandable segment. PyTorch reserves addresses for 9/8 of the device's memory, which is never reached either.
ADDRESS_PAGES = 1 << 30


class OutOfMemory(Exception):
    """A request of `size_bytes` does not fit the capacity, even after every free segment is released."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.size_bytes = size_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of PYTORCH_CUDA_ALLOC_CONF that change sizes; the defaults are torch's.

    max_split_bytes: free blocks of this size or more are never split and only serve requests of this size or more, each less
    than max_non_split_rounding_bytes smaller than the block. roundup_divisions: how many steps lie between one power of 2 and the
    next, for each of the INTERVALS; 0 and 1 switch this rounding off.
    """

    large_segment_bytes: int = LARGE_SEGMENT_BYTES
    max_split_bytes: int = UNLIMITED_BYTES
    max_non_split_rounding_bytes: int = LARGE_SEGMENT_BYTES
    roundup_divisions: tuple[int, ...] = (0,) * INTERVALS
    expandable_segments: bool = False

    def block_bytes(self, size_bytes: int) -> int:
        """The block size for a request: round_size, roundup_power2_next_division."""
        interval = min(max(size_bytes.bit_length() - MIB.bit_length(), 0), INTERVALS - 1)
        divisions = self.roundup_divisions[interval]
        step = ROUNDING_BYTES
        if divisions > 1 and size_bytes > ROUNDING_BYTES * divisions:
            step = (1 << size_bytes.bit_length() - 1) // divisions
        return max(-(-size_bytes // step) * step, ROUNDING_BYTES)

    def segment_bytes(self, block_bytes: int) -> int:
        """The size of a new segment for a block: get_allocation_size."""
        if block_bytes <= SMALL_BYTES:
            return SMALL_SEGMENT_BYTES
        if block_bytes < OWN_SEGMENT_BYTES:
            return self.large_segment_bytes
        return -(-block_bytes // OWN_SEGMENT_ROUNDING_BYTES) * OWN_SEGMENT_ROUNDING_BYTES


DEFAULTS = Settings()


@dataclass(slots=True, eq=False)
class Block:
    """A part of a segment, handed out or free; `previous` and `next` are its neighbours there (struct Block).

    mapped: whether memory backs it; only an expandable segment has unmapped address ranges.
    """

    pool: Pool = field(repr=False)
    address: int
    size_bytes: int
    mapped: bool = True
    requested_bytes: int = 0
    in_use: bool = False
    previous: Block | None = field(default=None, repr=False)
    next: Block | None = field(default=None, repr=False)

    def cut(self, size_bytes: int) -> Block:
        """Shrinks this block to `size_bytes` and returns the rest as a new block."""
        rest = Block(self.pool, self.address + size_bytes, self.size_bytes - size_bytes, self.mapped)
        rest.previous, rest.next = self, self.next
        if self.next is not None:
            self.next.previous = rest
        self.next = rest
        self.size_bytes = size_bytes
        return rest

    def absorb_next(self, block: Block) -> None:
        self.size_bytes += block.size_bytes
        self.next = block.next
        if block.next is not None:
            block.next.previous = self


class Pool:
    """Free blocks by size, then address; unmapped ones by address alone (struct BlockPool and its two comparators).

    smallest_rest_bytes: a block is split only if at least this much remains. page_bytes: the step by which an expandable segment
    grows.
    """

    __slots__ = ("free", "page_bytes", "smallest_rest_bytes", "unmapped")

    def __init__(self, *, smallest_rest_bytes: int, page_bytes: int) -> None:
        self.smallest_rest_bytes = smallest_rest_bytes
        self.page_bytes = page_bytes
        self.free: list[tuple[int, int, Block]] = []
        self.unmapped: list[tuple[int, int, Block]] = []

    def add(self, block: Block) -> None:
        if block.mapped:
            insort(self.free, (block.size_bytes, block.address, block))
        else:
            insort(self.unmapped, (0, block.address, block))

    def take(self, block: Block) -> None:
        if block.mapped:
            del self.free[bisect_left(self.free, (block.size_bytes, block.address))]
        else:
            del self.unmapped[bisect_left(self.unmapped, (0, block.address))]

    def replace(self, old: Collection[int], new: Sequence[Block]) -> None:
        """Exchanges the free blocks at the addresses `old` for others."""
        kept = [entry for entry in self.free if entry[1] not in old]
        self.free[:] = sorted([*kept, *((block.size_bytes, block.address, block) for block in new)])

    def merge(self, block: Block) -> Block:
        """Merges `block`, which must not be in a list, with free neighbours of its kind: try_merge_blocks. Returns the result."""
        after, before = block.next, block.previous
        if after is not None and not after.in_use and after.mapped == block.mapped:
            self.take(after)
            block.absorb_next(after)
        if before is not None and not before.in_use and before.mapped == block.mapped:
            self.take(before)
            before.absorb_next(block)
            return before
        return block


class Driver:
    """Gives segments their addresses, by which the allocator chooses between free blocks of equal size.

    The driver takes address ranges from the system in multiples of DRIVER_STEP_BYTES, each below the last, as mmap on Linux
    returns them. A segment lies at the bottom of its range; later segments fill what is left of it (the rests), lowest address
    first. A range that is free again goes back to the system, and is not reused here.

    Derived from the addresses of the runs in benchmarks/recorded (driver 580, H100); NVIDIA documents none of it. Not modelled:
    allocations of the driver and of libraries in between, and addresses that the system hands out again: the four recorded runs
    that got such addresses reserve to the byte what ranges above one another would give.
    """

    __slots__ = ("lowest", "rests", "steps")

    def __init__(self) -> None:
        self.lowest = 0  # addresses are relative to the start
        self.steps: dict[int, int] = {}  # address of each range -> its bytes
        self.rests: dict[int, list[int]] = {}  # size -> heap of addresses

    def copy(self) -> Driver:
        other = Driver()
        other.lowest, other.steps = self.lowest, dict(self.steps)
        other.rests = {size: list(addresses) for size, addresses in self.rests.items()}
        return other

    def place(self, size_bytes: int) -> int:
        """The address of a new segment."""
        if (room := self.next_rest(size_bytes)) is not None:
            address, rest = room
            heappop(self.rests[rest])
            self._leave(address + size_bytes, rest - size_bytes)
            return address
        step_bytes = -(-size_bytes // DRIVER_STEP_BYTES) * DRIVER_STEP_BYTES
        self.lowest -= step_bytes
        self.steps[self.lowest] = step_bytes
        self._leave(self.lowest + size_bytes, step_bytes - size_bytes)
        return self.lowest

    def next_address(self, size_bytes: int) -> int:
        """The address that the next segment will have, if it is of this size."""
        room = self.next_rest(size_bytes)
        return self.lowest - -(-size_bytes // DRIVER_STEP_BYTES) * DRIVER_STEP_BYTES if room is None else room[0]

    def next_rest(self, size_bytes: int) -> tuple[int, int] | None:
        """The address and size of the rest in which a segment of this size is placed; None if that needs a new range."""
        with_room = [(addresses[0], rest) for rest, addresses in self.rests.items() if rest >= size_bytes and addresses]
        return min(with_room, default=None)

    def give_back(self, address: int, size_bytes: int) -> None:
        """Frees a segment and merges it with the free neighbours in its range."""
        start = max(step for step in self.steps if step <= address)
        end = start + self.steps[start]
        free = [(address, size_bytes)]
        for rest, addresses in self.rests.items():
            free += [(free_address, rest) for free_address in addresses if start <= free_address < end]
            addresses[:] = [free_address for free_address in addresses if not start <= free_address < end]
            heapify(addresses)
        at, room = 0, 0
        for free_address, rest in sorted(free):
            if at + room != free_address:
                self._leave(at, room)
                at, room = free_address, 0
            room += rest
        if room == self.steps[start]:
            del self.steps[start]
        else:
            self._leave(at, room)

    def _leave(self, address: int, size_bytes: int) -> None:
        if size_bytes:
            heappush(self.rests.setdefault(size_bytes, []), address)


class Usage(NamedTuple):
    """allocated: bytes of blocks handed out. reserved: bytes of segments. requested: bytes before rounding."""

    allocated_bytes: int
    reserved_bytes: int
    requested_bytes: int

    @property
    def rounding_bytes(self) -> int:
        return self.allocated_bytes - self.requested_bytes

    @property
    def cached_bytes(self) -> int:
        return self.reserved_bytes - self.allocated_bytes


class Allocator:
    """The allocator of one device with room for `capacity_bytes` of segments (None: unlimited)."""

    def __init__(
        self, settings: Settings = DEFAULTS, capacity_bytes: int | None = None, driver: Driver | None = None
    ) -> None:
        self.settings = settings
        self._driver = driver or Driver()
        self.capacity_bytes = UNLIMITED_BYTES if capacity_bytes is None else capacity_bytes
        self.allocated_bytes = self.reserved_bytes = self.requested_bytes = 0
        self._peak_allocated = self._peak_reserved = self._peak_requested = 0
        # should_split: in the large pool more than 1 MiB must remain; with expandable segments the small pool's limit applies.
        large_rest = ROUNDING_BYTES if settings.expandable_segments else SMALL_BYTES + 1
        self._small = Pool(smallest_rest_bytes=ROUNDING_BYTES, page_bytes=SMALL_SEGMENT_BYTES)
        self._large = Pool(smallest_rest_bytes=large_rest, page_bytes=settings.large_segment_bytes)
        self._whole_bytes = UNLIMITED_BYTES if settings.expandable_segments else settings.max_split_bytes
        self._heads: dict[int, Block] = {}
        self._rounded: dict[int, int] = {}  # cache: a run requests few distinct sizes, each many times
        if settings.expandable_segments:
            for pool in (self._small, self._large):
                start = 0 if pool is self._small else pool.page_bytes * ADDRESS_PAGES
                self._heads[start] = Block(pool, start, pool.page_bytes * ADDRESS_PAGES, mapped=False)
                pool.add(self._heads[start])

    @property
    def usage(self) -> Usage:
        return Usage(self.allocated_bytes, self.reserved_bytes, self.requested_bytes)

    @property
    def peak(self) -> Usage:
        """Each figure's own maximum since the last reset."""
        return Usage(self._peak_allocated, self._peak_reserved, self._peak_requested)

    def reset_peak(self) -> None:
        self._peak_allocated, self._peak_reserved, self._peak_requested = self.usage

    def allocate(self, size_bytes: int) -> Block:
        """The block for a request (malloc, alloc_found_block). Raises OutOfMemory; a request of 0 bytes allocates nothing."""
        if size_bytes < 0:
            raise ValueError(f"a request of {size_bytes} bytes")
        if size_bytes == 0:
            return Block(self._small, 0, 0, in_use=True)  # NativeCachingAllocator::allocate: a null pointer
        size = self._rounded.get(size_bytes) or self._rounded.setdefault(
            size_bytes, self.settings.block_bytes(size_bytes)
        )
        pool = self._small if size <= SMALL_BYTES else self._large
        block = self._best_fit(pool, size) or self._new_block(pool, size)
        if block.size_bytes - size >= pool.smallest_rest_bytes and size < self._whole_bytes:
            pool.add(block.cut(size))
        block.in_use = True
        block.requested_bytes = size_bytes
        self.allocated_bytes += block.size_bytes
        self.requested_bytes += size_bytes
        if self.allocated_bytes > self._peak_allocated:
            self._peak_allocated = self.allocated_bytes
        if self.requested_bytes > self._peak_requested:
            self._peak_requested = self.requested_bytes
        if self.reserved_bytes > self._peak_reserved:
            self._peak_reserved = self.reserved_bytes
        return block

    def free(self, block: Block) -> None:
        """Frees a block and merges it with its free neighbours: free_block."""
        if not block.in_use:
            raise ValueError(f"{block} is free already")
        block.in_use = False
        self.allocated_bytes -= block.size_bytes
        self.requested_bytes -= block.requested_bytes
        block.requested_bytes = 0
        if block.size_bytes:
            block.pool.add(block.pool.merge(block))

    def empty_cache(self) -> None:
        """Releases every free segment, or every free page of expandable ones: release_cached_blocks."""
        for pool in (self._large, self._small):
            for _, _, block in tuple(pool.free):
                if self.settings.expandable_segments:
                    self._unmap(block)
                elif block.previous is None and block.next is None:
                    self._release(block)

    def segments(self) -> Iterator[tuple[Block, ...]]:
        """The blocks of each segment (of an expandable one: each mapped range), as torch.cuda.memory_snapshot lists them."""
        for head in self._heads.values():
            for mapped, blocks in groupby(_from(head), key=lambda block: block.mapped):
                if mapped:
                    yield tuple(blocks)

    # --- for `turning`, where segments do not expand and nothing is released

    @property
    def pools(self) -> tuple[Pool, Pool]:
        """The small one and the large one."""
        return self._small, self._large

    def room_above(self, address: int, segment_bytes: int) -> int:
        """How many of the next segments of this size lie at ascending addresses above this one."""
        start, size_bytes = self._driver.next_rest(segment_bytes) or (address, 0)
        return size_bytes // segment_bytes if start > address else 0

    def place_segment(self, segment_bytes: int) -> int:
        """The address of a new segment, to be filled."""
        self.reserved_bytes += segment_bytes
        if self.reserved_bytes > self.capacity_bytes:
            raise OutOfMemory(segment_bytes)
        return self._driver.place(segment_bytes)

    def link(self, blocks: Sequence[Block], before: Block | None, after: Block | None) -> None:
        """Puts blocks between two others, instead of what was there."""
        if before is None:
            self._heads[blocks[0].address] = blocks[0]
        else:
            before.next = blocks[0]
        if after is not None:
            after.previous = blocks[-1]
        for left, block, right in zip((before, *blocks), blocks, (*blocks[1:], after), strict=False):
            block.previous, block.next = left, right

    def record(
        self, *, allocated_bytes: int, most_allocated_bytes: int, requested_bytes: int, most_requested_bytes: int
    ) -> None:
        """The bytes in use after requests that were made elsewhere, and their peaks; requested_bytes: more than before."""
        self.allocated_bytes = allocated_bytes
        self._peak_allocated = max(self._peak_allocated, most_allocated_bytes)
        self._peak_requested = max(self._peak_requested, self.requested_bytes + most_requested_bytes)
        self._peak_reserved = max(self._peak_reserved, self.reserved_bytes)
        self.requested_bytes += requested_bytes

    def _best_fit(self, pool: Pool, size: int) -> Block | None:
        """The smallest free block that is large enough; among equals, the lowest address: get_free_block."""
        free = pool.free
        index = bisect_left(free, (size,))
        if index == len(free):
            return None
        if self.settings.expandable_segments:
            # A block that can grow counts with the size it can grow to.
            while index + 1 < len(free) and _reach(free[index + 1][2]) < _reach(free[index][2]):
                index += 1
        fit_bytes = free[index][0]
        whole = self.settings.max_split_bytes
        if fit_bytes >= (whole if size < whole else size + self.settings.max_non_split_rounding_bytes):
            return None
        return free.pop(index)[2]

    def _new_block(self, pool: Pool, size: int) -> Block:
        """Gets memory from the driver, after releasing free blocks if it has none left: the rest of malloc."""
        get = self._grow_segment if self.settings.expandable_segments else self._new_segment
        block = get(pool, size)
        if block is None and self._release_whole_blocks(pool, size):
            block = get(pool, size)
        if block is None:
            self.empty_cache()
            block = get(pool, size)
        if block is None:
            raise OutOfMemory(size)
        return block

    def _new_segment(self, pool: Pool, size: int) -> Block | None:
        """alloc_block."""
        segment_bytes = self.settings.segment_bytes(size)
        if self.reserved_bytes + segment_bytes > self.capacity_bytes:
            return None
        address = self._driver.place(segment_bytes)
        block = self._heads[address] = Block(pool, address, segment_bytes)
        self.reserved_bytes += segment_bytes
        return block

    def _release(self, block: Block) -> None:
        """Releases the segment that consists of this free block alone: release_block."""
        block.pool.take(block)
        del self._heads[block.address]
        self._driver.give_back(block.address, block.size_bytes)
        self.reserved_bytes -= block.size_bytes

    def _release_whole_blocks(self, pool: Pool, size: int) -> bool:
        """Releases unsplittable free blocks until `size` bytes are available: release_available_cached_blocks."""
        whole = self._whole_bytes
        if whole == UNLIMITED_BYTES:
            return False
        needed = max(size, whole)
        index = bisect_left(pool.free, (needed,))
        if index < len(pool.free):
            self._release(pool.free[index][2])
            return True
        released = 0
        while released < needed and pool.free and pool.free[-1][0] >= whole:
            released += pool.free[-1][0]
            self._release(pool.free[-1][2])
        return released >= needed

    def _grow_segment(self, pool: Pool, size: int) -> Block | None:
        """Maps pages at the lowest address with room: try_allocate_expandable_block."""
        block = _lowest_room(pool, size)
        if block is not None and not block.mapped:
            block = self._map(block, min(block.size_bytes, size))
        while block is not None and block.size_bytes < size:
            assert block.next is not None  # _lowest_room counted it
            block = self._map(block.next, min(size - block.size_bytes, block.next.size_bytes))
        if block is not None:
            pool.take(block)
        return block

    def _map(self, block: Block, size: int) -> Block | None:
        """Maps whole pages under the first `size` bytes of a range; returns the free block that contains them: map_block."""
        pool = block.pool
        mapped_bytes = -(-size // pool.page_bytes) * pool.page_bytes
        if self.reserved_bytes + mapped_bytes > self.capacity_bytes:
            return None
        pool.take(block)
        if mapped_bytes < block.size_bytes:
            pool.add(block.cut(mapped_bytes))
        block.mapped = True
        block = pool.merge(block)
        pool.add(block)
        self.reserved_bytes += mapped_bytes
        return block

    def _unmap(self, block: Block) -> None:
        """Releases the pages that lie wholly within a free block: unmap_block."""
        pool = block.pool
        start = -(-block.address // pool.page_bytes) * pool.page_bytes
        end = (block.address + block.size_bytes) // pool.page_bytes * pool.page_bytes
        if start >= end:
            return
        pool.take(block)
        if end < block.address + block.size_bytes:
            pool.add(block.cut(end - block.address))
        if start > block.address:
            before, block = block, block.cut(start - block.address)
            pool.add(before)
        block.mapped = False
        pool.add(pool.merge(block))
        self.reserved_bytes -= end - start


class HostAllocator(Allocator):
    """The host's allocator: no rounding and no cache. Source: torch 2.13, CPUAllocator.cpp

    It aligns blocks to 64 bytes; PyTorch's profiler counts requests, without this padding.
    """

    def allocate(self, size_bytes: int) -> Block:
        if self.allocated_bytes + size_bytes > self.capacity_bytes:
            raise OutOfMemory(size_bytes)
        self._count(size_bytes)
        return Block(self._small, 0, size_bytes, in_use=True, requested_bytes=size_bytes)

    def free(self, block: Block) -> None:
        self._count(-block.size_bytes)

    def _count(self, size_bytes: int) -> None:
        self.allocated_bytes += size_bytes
        self.reserved_bytes = self.requested_bytes = self.allocated_bytes
        self._peak_allocated = max(self._peak_allocated, self.allocated_bytes)
        self._peak_reserved = self._peak_requested = self._peak_allocated


def _from(block: Block | None) -> Iterator[Block]:
    """A block and all that follow it in its segment."""
    while block is not None:
        yield block
        block = block.next


def _reach(block: Block) -> int:
    """The size that a free block can grow to: expandable_size in get_free_block."""
    after = block.next
    return block.size_bytes + (after.size_bytes if after is not None and not after.mapped else 0)


def _lowest_room(pool: Pool, size: int) -> Block | None:
    """The first block of the lowest run of free or unmapped blocks with `size` bytes in all: find_expandable_block."""
    for _, _, unmapped in pool.unmapped:
        before = unmapped.previous
        start = before if before is not None and not before.in_use else unmapped
        room = 0
        for block in takewhile(lambda block: not block.in_use, _from(start)):
            room += block.size_bytes
            if room >= size:
                return start
    return None

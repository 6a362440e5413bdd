"""The results of `allocator.Allocator`, to the byte and many times faster, for searches that replay many runs.

For unlimited memory and segments that do not expand, so that no segment is ever released. The blocks in use determine a pool's
state: whatever lies between two of them is one free block. A free block is one integer, its size and address, sorted in the
order of the best fit, and is looked up by either end. Where layers repeat their requests and one layer meets the same free
blocks as an earlier one, the rest of the cycle repeats too and is not replayed.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify
from itertools import accumulate, compress

from ...typed import NamedTuple
from ...values import dataclass, replace
from .allocator import (
    MIB,
    ROUNDING_BYTES,
    SMALL_BYTES,
    UNLIMITED_BYTES,
    Allocator,
    Driver,
    OutOfMemory,
    Settings,
)

ADDRESS_BITS = 72
ADDRESS = (1 << ADDRESS_BITS) - 1
HIGHEST_ADDRESS = 1 << 70  # below it there is room for more than UNLIMITED_BYTES
WINDOW_EVENTS = 48  # fewer than a layer has; nothing within a layer repeats this long
FEWEST_TIMES = 4
TURN_EVENTS = 200  # up to which turns are taken together, since each turn's state is compared


def can_be_worked_out(settings: Settings) -> bool:
    return not settings.expandable_segments and settings.max_split_bytes == UNLIMITED_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """Events that occur `times` times in a row, each turn on the next `requests` requests. inherited: requests from before the
    first turn that it frees; each later turn frees those `requests` later."""

    first_event: int
    events: int
    times: int
    first_request: int = 0
    requests: int = 0
    inherited: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Stream:
    """Events in order: an entry that is not negative makes the request of that index, -1 - index frees it. size_of: for each
    request, the index of its size among the distinct sizes."""

    order: Sequence[int]
    size_of: Sequence[int]
    repeats: tuple[Repeat, ...] = ()

    def of_sizes(self, sizes: Sequence[bool]) -> Stream:
        """Only the requests of the distinct sizes marked True in `sizes`, renumbered."""
        if all(sizes):
            return Stream(self.order, self.size_of, tuple(_exact(self.order, self.size_of, self.repeats)))
        chosen = list(map(sizes.__getitem__, self.size_of))
        number = [before - 1 for before in accumulate(chosen)]
        number += [-1 - after for after in reversed(number)]  # negative indices: entry -1 - i frees request i
        chosen_by_entry = [*chosen, *reversed(chosen)]
        chosen_entries = list(map(chosen_by_entry.__getitem__, self.order))
        order = list(map(number.__getitem__, compress(self.order, chosen_entries)))
        size_of = list(compress(self.size_of, chosen))
        place = [*accumulate(chosen_entries, initial=0)]
        shorter = [
            Repeat(
                first_event=place[repeat.first_event],
                events=place[repeat.first_event + repeat.events] - place[repeat.first_event],
                times=repeat.times,
            )
            for repeat in self.repeats
        ]
        return Stream(order, size_of, tuple(_exact(order, size_of, shorter)))


def stream_of(order: Sequence[int], size_of: Sequence[int]) -> Stream:
    """Marks candidate repeats; `Stream.of_sizes` keeps the real ones."""
    text = "".join([chr(2 * size_of[entry]) if entry >= 0 else chr(2 * size_of[-1 - entry] + 1) for entry in order])
    return Stream(order=order, size_of=size_of, repeats=tuple(_repeats(text)))


def _repeats(text: str) -> Iterator[Repeat]:
    at = 0
    while at < len(text):
        events = text.find(text[at : at + WINDOW_EVENTS], at + 1) - at
        times = 1
        while events > 0 and text.startswith(text[at : at + events], at + times * events):
            times += 1
        if times >= FEWEST_TIMES:
            together = max(1, min(TURN_EVENTS // events, times // (2 * FEWEST_TIMES)))  # short turns, as one
            yield Repeat(first_event=at, events=together * events, times=times // together)
            at += times // together * together * events
        else:
            at += WINDOW_EVENTS


def _exact(order: Sequence[int], size_of: Sequence[int], repeats: Sequence[Repeat]) -> Iterator[Repeat]:
    """The repeats whose turns are all alike and free only requests of the same turn or the one before."""
    made = (
        [before + 1 for before in accumulate(order, max, initial=-1)] if repeats else []
    )  # requests before each entry
    for repeat in repeats:
        start, end = repeat.first_event, repeat.first_event + repeat.events * repeat.times
        request_counts = [*accumulate([entry >= 0 for entry in order[start:end]], initial=made[start])]
        first, requests = request_counts[0], request_counts[repeat.events] - request_counts[0]
        relative_order = [
            size_of[entry] if entry >= 0 else -1 - (before + entry)
            for entry, before in zip(order[start:end], request_counts, strict=False)
        ]
        freed = [-1 - entry for entry in order[start : start + repeat.events] if entry < 0]
        inherited = tuple(request for request in freed if request < first)
        is_alike = repeat.events > 0 and relative_order[: -repeat.events] == relative_order[repeat.events :]
        if is_alike and all(request >= first - requests for request in inherited):
            yield replace(repeat, first_request=first, requests=requests, inherited=inherited)


def allocated_after_loading(sizes: Sequence[int], settings: Settings, *, warm_up_bytes: int = 0) -> int:
    """Allocated bytes after requests of these sizes; as of `after_loading`, for all settings. OutOfMemory as from `Allocator`."""
    if not can_be_worked_out(settings):
        allocator = Allocator(settings)
        allocator.free(allocator.allocate(warm_up_bytes))
        for size in sizes:
            allocator.allocate(size)
        return allocator.allocated_bytes
    loaded = _Loaded(settings)
    if warm_up_bytes:
        loaded.free(warm_up_bytes)
    blocks = {size: settings.block_bytes(size) for size in set(sizes)}
    loaded.load([blocks[size] for size in sizes if size])
    if loaded.reserved > UNLIMITED_BYTES:
        raise OutOfMemory(max(sizes))
    return loaded.allocated


class _Loaded:
    """The sizes of free blocks while nothing is freed. Their addresses decide nothing, since blocks never merge."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._small: list[int] = []
        self._large: list[int] = []
        self.allocated = self.reserved = 0

    def free(self, size_bytes: int) -> None:
        """Takes a block and gives it back."""
        block = self._settings.block_bytes(size_bytes)
        segment = self._settings.segment_bytes(block)
        (self._large if block > SMALL_BYTES else self._small).append(segment)
        self.reserved += segment

    def load(self, blocks: Sequence[int]) -> None:
        numbers = {size: number for number, size in enumerate(dict.fromkeys(blocks))}
        at = 0
        for repeat in _repeats("".join([chr(numbers[size]) for size in blocks])):
            self._take(blocks[at : repeat.first_event])
            self._repeat(blocks[repeat.first_event : repeat.first_event + repeat.events], repeat.times)
            at = repeat.first_event + repeat.times * repeat.events
        self._take(blocks[at:])

    def _repeat(self, blocks: Sequence[int], times: int) -> None:
        """Takes the blocks so many times; once the free blocks are those of an earlier time, whole cycles at once."""
        seen: dict[object, tuple[int, int, int]] = {}
        turn = 0
        while turn < times:
            state = (*self._small, None, *self._large)
            if state in seen:
                earlier, allocated, reserved = seen[state]
                cycles, left = divmod(times - turn, turn - earlier)
                self.allocated += cycles * (self.allocated - allocated)
                self.reserved += cycles * (self.reserved - reserved)
                turn = times - left
                seen.clear()
                if not left:
                    return
            seen[state] = turn, self.allocated, self.reserved
            self._take(blocks)
            turn += 1

    def _take(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            free, smallest_rest = (
                (self._large, SMALL_BYTES + 1) if block > SMALL_BYTES else (self._small, ROUNDING_BYTES)
            )
            index = bisect_left(free, block)
            if index < len(free):
                whole = free.pop(index)
            else:
                whole = self._settings.segment_bytes(block)
                self.reserved += whole
            if whole - block >= smallest_rest:
                insort(free, whole - block)
                whole = block
            self.allocated += whole


def after_loading(weights_bytes: Iterable[int], settings: Settings, *, warm_up_bytes: int = 0) -> QuickAllocator:
    """The allocator after requests of these sizes, of which none is freed. warm_up_bytes: of a block taken and freed before."""
    sizes = list(filter(None, weights_bytes))
    numbers = {size: number for number, size in enumerate(dict.fromkeys(sizes))}
    size_of = list(map(numbers.__getitem__, sizes))
    text = "".join(map(chr, size_of))
    repeats = tuple(
        replace(repeat, first_request=repeat.first_event, requests=repeat.events) for repeat in _repeats(text)
    )
    warm_up = Stream(order=(0, -1), size_of=(0,)) if warm_up_bytes else Stream(order=(), size_of=())
    begun = QuickAllocator([settings.block_bytes(warm_up_bytes)], warm_up, settings)
    begun.replay()
    blocks = [settings.block_bytes(size) for size in numbers]
    loaded = _Loader(blocks, Stream(order=range(len(size_of)), size_of=size_of, repeats=repeats), settings, begun)
    loaded.replay()
    loaded.note_ends()
    return loaded


def segment_address(address: int) -> int:
    """Maps a driver address to one that is not negative, with gaps between segments so that their blocks never merge."""
    return HIGHEST_ADDRESS + address + address // MIB


class QuickAllocator:
    """Both pools, for the requests of a stream from `Stream.of_sizes`. blocks: the block size for each distinct size.

    before: the allocator to go on from; none of what it handed out is freed.
    """

    def __init__(
        self, blocks: Sequence[int], stream: Stream, settings: Settings, before: QuickAllocator | None = None
    ) -> None:
        self._stream, self.settings = stream, settings
        self._blocks = list(map(blocks.__getitem__, stream.size_of))
        self._segments = {size: settings.segment_bytes(size) for size in set(blocks)}
        self._addresses, self._sizes = [0] * len(self._blocks), list(self._blocks)
        self._driver = Driver()
        self._segment_sizes: list[int] = []  # bytes of the segments, in order
        self._small: list[int] = []  # size and address of each free block
        self._large: list[int] = []
        self._size_at: dict[int, int] = {}  # by start address of a free block
        self._start_of: dict[int, int] = {}  # by its end address
        self.reserved_bytes = 0
        if before is not None:
            self._driver = before._driver.copy()
            self._small, self._large = list(before._small), list(before._large)
            self._size_at, self._start_of = dict(before._size_at), dict(before._start_of)
            self.reserved_bytes = before.reserved_bytes

    @property
    def allocated_bytes(self) -> int:
        return self.reserved_bytes - sum(self._size_at.values())

    @property
    def block_sizes(self) -> list[int]:
        """Bytes of the block that each request of the stream got."""
        return self._sizes

    def replay(self, most_bytes: int | None = None) -> None:
        """Replays the stream; stops when more than `most_bytes` are reserved."""
        most, at = UNLIMITED_BYTES if most_bytes is None else most_bytes, 0
        order = self._stream.order
        for repeat in self._stream.repeats:
            self._play(order[at : repeat.first_event], most)
            self._repeat(order, repeat, most)
            at = repeat.first_event + repeat.times * repeat.events
        self._play(order[at:], most)

    def _repeat(self, order: Sequence[int], repeat: Repeat, most: int) -> None:
        """Replays turns until one starts in the state of an earlier one; the turns between form a cycle that is then skipped."""
        seen: dict[object, _Turn] = {}
        turn = 0
        while turn < repeat.times and self.reserved_bytes <= most:
            inherited = [request + turn * repeat.requests for request in repeat.inherited]
            blocks = [(self._addresses[request], self._sizes[request]) for request in inherited]
            state = (*self._small, None, *self._large, None, *blocks)
            now = _Turn(turn, self.reserved_bytes, self._driver.lowest, len(self._segment_sizes), self._rests())
            earlier = seen.get(state)
            if earlier is not None and self._left_alike(earlier, now):
                turn = self._skip(repeat, earlier, now)
                seen.clear()  # less than one cycle is left
                if turn == repeat.times:
                    return
            else:
                seen[state] = now
            start = repeat.first_event + turn * repeat.events
            self._play(order[start : start + repeat.events], most)
            turn += 1

    def _rests(self) -> dict[int, tuple[int, int]]:
        """For each size, how many rests the driver has and the lowest address: enough to compare, as the lowest is used first."""
        rests = self._driver.rests
        return {size: (len(addresses), addresses[0]) for size, addresses in rests.items() if addresses}

    def _left_alike(self, earlier: _Turn, now: _Turn) -> bool:
        """Whether the rests that could hold a segment requested between the two turns are unchanged."""
        segment_sizes = self._segment_sizes[earlier.segments : now.segments]
        if not segment_sizes:
            return True
        least = min(segment_sizes)
        before, after = ({size: rest for size, rest in turn.rests.items() if size >= least} for turn in (earlier, now))
        return before == after

    def _skip(self, repeat: Repeat, earlier: _Turn, now: _Turn) -> int:
        """Repeats the cycle since the `earlier` turn as often as it fits, without a replay; returns the next turn.

        The free blocks are unchanged, so whatever a cycle keeps lies in new segments of its own, below all others.
        """
        turns = now.turn - earlier.turn
        cycles, length = (repeat.times - now.turn) // turns, turns * repeat.requests
        first = repeat.first_request + earlier.turn * repeat.requests
        addresses, sizes = self._addresses[first : first + length], self._sizes[first : first + length]
        moved, lowest = earlier.lowest - now.lowest, segment_address(earlier.lowest)
        moved_address = moved + moved // MIB
        for cycle in range(1, cycles + 1):
            begin = first + cycle * length
            self._addresses[begin : begin + length] = [
                address if address >= lowest else address - cycle * moved_address for address in addresses
            ]
            self._sizes[begin : begin + length] = sizes
        for rests in self._driver.rests.values() if moved else ():
            left = [address for address in rests if address < earlier.lowest]
            for cycle in range(1, cycles + 1):
                rests += [address - cycle * moved for address in left]
            heapify(rests)
        self._driver.lowest -= cycles * moved
        self.reserved_bytes += cycles * (now.reserved - earlier.reserved)
        return now.turn + cycles * turns

    def _play(self, order: Sequence[int], most: int) -> None:
        """Does what `Allocator.allocate` and `Allocator.free` do."""
        small, large, size_at, start_of = self._small, self._large, self._size_at, self._start_of
        blocks, addresses, sizes = self._blocks, self._addresses, self._sizes
        take_size, take_start = size_at.pop, start_of.pop
        if self.reserved_bytes > most:
            return
        for entry in order:
            if entry >= 0:
                size = blocks[entry]
                # should_split, as in `Allocator`
                if size > SMALL_BYTES:
                    free, smallest_rest = large, SMALL_BYTES + 1
                else:
                    free, smallest_rest = small, ROUNDING_BYTES
                index = bisect_left(free, size << ADDRESS_BITS)
                if index < len(free):
                    start = free.pop(index) & ADDRESS
                    whole = take_size(start)
                else:
                    whole = self._segments[size]
                    start = segment_address(self._driver.place(whole))
                    self._segment_sizes.append(whole)
                    self.reserved_bytes += whole
                    if self.reserved_bytes > most:
                        return
                addresses[entry] = start
                rest = whole - size
                if rest >= smallest_rest:
                    end = start + whole
                    start += size
                    size_at[start], start_of[end] = rest, start
                    insort(free, rest << ADDRESS_BITS | start)
                else:
                    take_start(start + whole, None)
                    sizes[entry] = whole
            else:
                entry = ~entry  # -1 - entry
                start, size = addresses[entry], sizes[entry]
                free = large if size > SMALL_BYTES else small
                end = start + size
                after_bytes = take_size(end, 0)
                if after_bytes:
                    del free[bisect_left(free, after_bytes << ADDRESS_BITS | end)]
                    end += after_bytes
                before = take_start(start, None)
                if before is not None:
                    del free[bisect_left(free, (start - before) << ADDRESS_BITS | before)]
                    start = before
                size_at[start] = size = end - start
                start_of[end] = start
                insort(free, size << ADDRESS_BITS | start)


class _Loader(QuickAllocator):
    """Of requests of which none is freed, so that no free block is looked up by its ends before `note_ends`."""

    def _play(self, order: Sequence[int], most: int) -> None:
        small, large = self._small, self._large
        for size in map(self._blocks.__getitem__, order):
            free, smallest_rest = (large, SMALL_BYTES + 1) if size > SMALL_BYTES else (small, ROUNDING_BYTES)
            index = bisect_left(free, size << ADDRESS_BITS)
            if index < len(free):
                best_fit = free.pop(index)
                start, whole = best_fit & ADDRESS, best_fit >> ADDRESS_BITS
            else:
                whole = self._segments[size]
                start = segment_address(self._driver.place(whole))
                self._segment_sizes.append(whole)
                self.reserved_bytes += whole
                if self.reserved_bytes > most:
                    return
            if whole - size >= smallest_rest:
                insort(free, (whole - size) << ADDRESS_BITS | start + size)

    def note_ends(self) -> None:
        blocks = [(entry & ADDRESS, entry >> ADDRESS_BITS) for entry in (*self._small, *self._large)]
        self._size_at, self._start_of = dict(blocks), {start + size: start for start, size in blocks}


class _Turn(NamedTuple):
    """The state at the start of a turn. lowest: the driver's lowest address. segments: their number. rests: see `_rests`."""

    turn: int
    reserved: int
    lowest: int
    segments: int
    rests: dict[int, tuple[int, int]]

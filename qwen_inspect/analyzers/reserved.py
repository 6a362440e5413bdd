"""What requests take of `allocator.Allocator`, to the byte and many times as fast, for questions that are asked many times.

For memory without end in segments that do not expand. Then the pools share nothing, and no segment is given back. A pool's state
follows from the blocks in use: what lies between two of them is one free block. So a free block is one number, its size and
address, in the order in which the allocator looks for the best fit, and is found by its two ends. And where layers ask for the
same and one of them finds the free blocks as an earlier one did, all later ones do as those between, and need no replay.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, compress

from .allocator import ROUNDING_BYTES, SMALL_BYTES, UNLIMITED_BYTES, Allocator, Block, OutOfMemory, Settings

ADDRESS_BITS = 64
ADDRESS = (1 << ADDRESS_BITS) - 1
WINDOW_EVENTS = 48  # a layer has more, and nothing within it repeats that long
FEWEST_TIMES = 4


def can_be_worked_out(settings: Settings) -> bool:
    return not settings.expandable_segments and settings.max_split_bytes == UNLIMITED_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """Events that come `times` over, each time on the `requests` next ones. inherited: requests from just before the first time
    that it frees; of later times they are as much later."""

    first_event: int
    events: int
    times: int
    first_request: int = 0
    requests: int = 0
    inherited: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Events in order: an entry that is not negative makes the request of that index, -1 - index frees it. size_of: an index of
    each request's size among the distinct ones."""

    order: Sequence[int]
    size_of: Sequence[int]
    repeats: tuple[Repeat, ...] = ()

    def of_sizes(self, sizes: Sequence[bool]) -> Stream:
        """The requests of some of the distinct sizes alone, renumbered."""
        chosen = list(map(sizes.__getitem__, self.size_of))
        number = [before - 1 for before in accumulate(chosen)]
        number += [-1 - after for after in reversed(number)]  # by an entry that is negative: of request -1 - entry
        chosen_by_entry = [*chosen, *reversed(chosen)]
        taken = list(map(chosen_by_entry.__getitem__, self.order))
        order = list(map(number.__getitem__, compress(self.order, taken)))
        size_of = list(compress(self.size_of, chosen))
        shorter = [
            Repeat(
                first_event=sum(taken[: one.first_event]),
                events=sum(taken[one.first_event : one.first_event + one.events]),
                times=one.times,
            )
            for one in self.repeats
        ]
        return Stream(order=order, size_of=size_of, repeats=tuple(_exact(order, size_of, shorter)))


def stream_of(order: Sequence[int], size_of: Sequence[int]) -> Stream:
    """With stretches that look as if they repeated; `Stream.of_sizes` keeps those that do."""
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
            yield Repeat(first_event=at, events=events, times=times)
            at += times * events
        else:
            at += WINDOW_EVENTS


def _exact(order: Sequence[int], size_of: Sequence[int], repeats: Sequence[Repeat]) -> Iterator[Repeat]:
    """Those whose every turn frees what the turn itself or the one before it asked for, each turn alike."""
    for one in repeats:
        start, end = one.first_event, one.first_event + one.events * one.times
        made = [*accumulate((entry >= 0 for entry in order[start:end]), initial=_made(order[:start]))]
        first, requests = made[0], made[one.events] - made[0]
        alike = [
            size_of[entry] if entry >= 0 else -1 - (before + entry)
            for entry, before in zip(order[start:end], made, strict=False)
        ]
        freed = [-1 - entry for entry in order[start : start + one.events] if entry < 0]
        inherited = tuple(request for request in freed if request < first)
        is_alike = one.events > 0 and alike[: -one.events] == alike[one.events :]
        if is_alike and all(request >= first - requests for request in inherited):
            yield replace(one, first_request=first, requests=requests, inherited=inherited)


def _made(order: Sequence[int]) -> int:
    """How many requests were made."""
    return max(order, default=-1) + 1


def allocated_bytes(sizes: Sequence[int], order: Sequence[int], settings: Settings) -> int:
    """What is handed out after all requests, made and freed in an order as a Stream's; OutOfMemory as of an Allocator."""
    if not can_be_worked_out(settings):
        allocator = Allocator(settings)
        made: dict[int, Block] = {}
        for entry in order:
            if entry >= 0:
                made[entry] = allocator.allocate(sizes[entry])
            else:
                allocator.free(made.pop(-1 - entry))
        return allocator.allocated_bytes
    distinct = {size: index for index, size in enumerate(dict.fromkeys(sizes))}
    stream = Stream(order=order, size_of=[distinct[size] for size in sizes])
    allocated = 0
    for blocks in pools([settings.block_bytes(size) if size else 0 for size in distinct]):
        part = stream.of_sizes(list(map(bool, blocks)))
        pool = Pool([blocks[size] for size in part.size_of], settings, large=max(blocks) > SMALL_BYTES)
        pool.replay(part)
        if pool.reserved_bytes > UNLIMITED_BYTES:
            raise OutOfMemory(max(sizes))
        allocated += pool.allocated_bytes
    return allocated


def pools(blocks: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes of blocks that are in the large pool, then of those in the small one; 0 in the other."""
    large = tuple([size if size > SMALL_BYTES else 0 for size in blocks])
    return large, tuple([size if size <= SMALL_BYTES else 0 for size in blocks])


class Pool:
    """One pool, for requests that are rounded up to `blocks`, all of them of that pool."""

    def __init__(self, blocks: Sequence[int], settings: Settings, *, large: bool) -> None:
        self._blocks = blocks
        self._segments = {size: settings.segment_bytes(size) for size in set(blocks)}
        self._smallest_rest = SMALL_BYTES + 1 if large else ROUNDING_BYTES  # should_split, as in `Allocator`
        self._free: list[int] = []  # size and address of each
        self._size_at: dict[int, int] = {}  # by where a free block begins
        self._start_of: dict[int, int] = {}  # by where it ends
        self._addresses, self._sizes = [0] * len(blocks), list(blocks)
        self._top = 0
        self.reserved_bytes = 0

    @property
    def allocated_bytes(self) -> int:
        return self.reserved_bytes - sum(self._size_at.values())

    def replay(self, stream: Stream, most_bytes: int | None = None) -> None:
        """All events of a stream; up to where more than `most_bytes` are reserved."""
        most, at = UNLIMITED_BYTES if most_bytes is None else most_bytes, 0
        for repeat in stream.repeats:
            self._play(stream.order[at : repeat.first_event], most)
            self._repeat(stream.order, repeat, most)
            at = repeat.first_event + repeat.times * repeat.events
        self._play(stream.order[at:], most)

    def _repeat(self, order: Sequence[int], repeat: Repeat, most: int) -> None:
        """Turn by turn until one begins as an earlier one: what came between comes over and over."""
        seen: dict[object, tuple[int, int, int]] = {}
        turn = 0
        while turn < repeat.times and self.reserved_bytes <= most:
            inherited = [request + turn * repeat.requests for request in repeat.inherited]
            state = (*self._free, None, *((self._addresses[one], self._sizes[one]) for one in inherited))
            if state in seen:
                turn = self._skip(repeat, turn, *seen[state])
                seen.clear()  # what is left is less than a cycle
                if turn == repeat.times:
                    return
            else:
                seen[state] = turn, self.reserved_bytes, self._top
            start = repeat.first_event + turn * repeat.events
            self._play(order[start : start + repeat.events], most)
            turn += 1

    def _skip(self, repeat: Repeat, turn: int, earlier: int, reserved: int, top: int) -> int:
        """Whole cycles as the one since an `earlier` turn, when `reserved` and `top` were as given; the turn that is next then.

        Its free blocks are those of before, so that what it keeps fills segments of its own, at the top.
        """
        cycles, length = (repeat.times - turn) // (turn - earlier), (turn - earlier) * repeat.requests
        first = repeat.first_request + earlier * repeat.requests
        addresses, sizes = self._addresses[first : first + length], self._sizes[first : first + length]
        moved = self._top - top
        for cycle in range(1, cycles + 1):
            begin = first + cycle * length
            self._addresses[begin : begin + length] = [
                address if address < top else address + cycle * moved for address in addresses
            ]
            self._sizes[begin : begin + length] = sizes
        self._top += cycles * moved
        self.reserved_bytes += cycles * (self.reserved_bytes - reserved)
        return turn + cycles * (turn - earlier)

    def _play(self, order: Sequence[int], most: int) -> None:
        """As `Allocator.allocate` and `Allocator.free` do."""
        free, size_at, start_of = self._free, self._size_at, self._start_of
        blocks, addresses, sizes, smallest_rest = self._blocks, self._addresses, self._sizes, self._smallest_rest
        if self.reserved_bytes > most:
            return
        for entry in order:
            if entry >= 0:
                size = blocks[entry]
                index = bisect_left(free, size << ADDRESS_BITS)
                if index < len(free):
                    found = free.pop(index)
                    start, whole = found & ADDRESS, found >> ADDRESS_BITS
                    del size_at[start]
                else:
                    start, whole = self._top, self._segments[size]
                    self._top += whole + 1  # segments are no neighbours
                    self.reserved_bytes += whole
                    if self.reserved_bytes > most:
                        return
                rest = whole - size
                if rest >= smallest_rest:
                    after = start + size
                    size_at[after] = rest
                    start_of[start + whole] = after
                    insort(free, rest << ADDRESS_BITS | after)
                else:
                    start_of.pop(start + whole, None)
                    sizes[entry] = whole
                addresses[entry] = start
            else:
                start = addresses[-1 - entry]
                end = start + sizes[-1 - entry]
                after_bytes = size_at.pop(end, 0)
                if after_bytes:
                    del free[bisect_left(free, after_bytes << ADDRESS_BITS | end)]
                    end += after_bytes
                before = start_of.pop(start, None)
                if before is not None:
                    del free[bisect_left(free, (start - before) << ADDRESS_BITS | before)]
                    start = before
                size_at[start] = end - start
                start_of[end] = start
                insort(free, (end - start) << ADDRESS_BITS | start)

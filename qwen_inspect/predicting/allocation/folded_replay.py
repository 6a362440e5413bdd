"""What a run with folded loops over its tokens reserves: as `replay.reserved_up_to`, on integers throughout.

For unlimited memory and segments that do not expand, as `reserved`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from ...results.timeline import Allocate, Timeline
from ...typed import NamedTuple
from ..traces.token_loops import REPEATED, Turn, turns_of
from .allocator import SMALL_BYTES, UNLIMITED_BYTES, Driver, Settings
from .quick_replay import Peak
from .region_steps import Steps, Usage
from .regions import ADDRESS, ADDRESS_BITS, Regions, Span
from .reserved import QuickAllocator, Stream, segment_address
from .turning import Turns


def folded_reserved(timeline: Timeline, settings: Settings, most_bytes: int, steps: Steps) -> int | None:
    """Reserved bytes; if more than `most_bytes`, some figure above that. None for a loop of which something takes no memory.

    steps: known from other runs.
    """
    folded = FoldedAllocator(timeline, settings, most_bytes, steps)
    return folded.reserved_up_to_most() if folded.covers else None


def folded_peak(timeline: Timeline, settings: Settings) -> Peak | None:
    """As `quick_peak`; None also for a loop of which something takes no memory."""
    folded = FoldedAllocator(timeline, settings, UNLIMITED_BYTES, Steps())
    if not folded.covers or folded.reserved_up_to_most() > UNLIMITED_BYTES:
        return None
    return folded.peak()


class Loop(NamedTuple):
    """place: in the order. request: that stands for the turns. turn: None for the end, where the outputs are freed. state: its
    request."""

    place: int
    request: int
    turn: Turn | None
    state: int


class FoldedAllocator(QuickAllocator):
    """Both pools, for a timeline. covers: whether all loops make something in each of their turns.

    most_allocated_bytes: known with `peak`.
    """

    def __init__(self, timeline: Timeline, settings: Settings, most_bytes: int, steps: Steps) -> None:
        numbers: dict[int, int] = {}  # of the requests alive, by id
        kinds: dict[int, int] = {}  # of the distinct sizes
        order: list[int] = []
        size_of: list[int] = []
        self.covers = True
        self.most_allocated_bytes = 0
        self._loops: list[Loop] = []
        self._used: dict[int, Usage] = {}  # of each loop
        self._first_sizes: dict[int, int] = {}  # of states, before any loop
        self._events: list[int] = []  # of each request
        self._requested: list[int] = []  # bytes
        self._turns: dict[int, int] = {}  # of a request that stands for so many
        once: set[str] = set()  # operators of requests that stand for no others
        for index, event in enumerate(timeline.events):
            if len(event) == 1:  # a `Free`
                number = numbers.pop(event.id)
                if number in self._turns:
                    self._loops.append(Loop(len(order), number, None, 0))
                elif number >= 0:
                    order.append(-1 - number)
                continue
            if event.operator not in once and not event.operator.endswith(REPEATED):
                once.add(event.operator)
            if event.operator not in once and (turn := Turn.ending_at(timeline.events, index)):
                numbers[event.id] = number = len(size_of)
                size_of.append(kinds.setdefault(event.size_bytes, len(kinds)))
                sizes = [part.size_bytes for part in turn.events if isinstance(part, Allocate)]
                self.covers = self.covers and min(*sizes, event.size_bytes) > 0
                if self.covers:
                    self._turns[number] = turns_of(event, turn)
                    self._loops.append(Loop(len(order), number, turn, numbers[turn.state]))
            elif event.size_bytes:
                numbers[event.id] = number = len(size_of)
                order.append(number)
                size_of.append(kinds.setdefault(event.size_bytes, len(kinds)))
            else:
                numbers[event.id] = -1
            if len(size_of) > len(self._events):
                self._events.append(index)
                self._requested.append(event.size_bytes)
        self._most, self._steps = most_bytes, steps
        self._outputs: dict[int, _Outputs] = {}  # of each loop
        blocks = [settings.block_bytes(size) for size in kinds]
        super().__init__(blocks, Stream(order, size_of), settings)
        self._driver: _NotedDriver = _NotedDriver()

    def reserved_up_to_most(self) -> int:
        at, order = 0, self._stream.order
        for place, request, turn, state in self._loops:
            self._play(order[at:place], self._most)
            if self.reserved_bytes > self._most:
                break
            at = place
            if turn is None:
                self._free_outputs(self._outputs.pop(request), place)
            else:
                self._play_turns(place, request, turn, state)
        self._play(order[at:], self._most)
        return self.reserved_bytes

    def _play_turns(self, place: int, request: int, turn: Turn, state: int) -> None:
        begun = self._addresses[state], self._sizes[state]
        pool = int(self.settings.block_bytes(turn.output.size_bytes) > SMALL_BYTES)
        free, segments = [*self.pools[pool]], len(self._driver.placed)
        regions = _QuickRegions(self, begun)
        try:
            Turns(regions, turn, self._steps).replay(self._turns[request])
        except _EnoughError:
            return
        self._used[request] = Usage(regions.allocated_bytes, regions.most_allocated_bytes)
        self._first_sizes.setdefault(state, self._sizes[state])
        self._addresses[state], self._sizes[state] = regions.state
        regions.size_at = {**regions.size_at}  # as it is now
        self._outputs = {number: other._replace(is_alone=False) for number, other in self._outputs.items()}
        is_alone = not self._outputs
        self._outputs[request] = _Outputs(pool, free, state, begun, segments, place, regions, is_alone)

    def peak(self) -> Peak | None:
        """Of the run that was replayed; None if it allocates nothing, or most within the turns of a loop."""
        allocated = added = most = at_peak = in_turns = at = 0
        first: int | None = None
        outputs: dict[int, tuple[int, int]] = {}  # of loops: bytes of their blocks, and what rounding adds
        sizes, requested, order = self._sizes, self._requested, self._stream.order
        seen = {**self._first_sizes}
        for place, request, turn, state in (*self._loops, Loop(len(order), 0, None, 0)):
            for entry in order[at:place]:
                number = entry if entry >= 0 else -1 - entry
                size = seen.pop(number) if entry in seen else sizes[number]
                if entry < 0:
                    allocated -= size
                    added -= size - requested[number]
                    continue
                allocated += size
                added += size - requested[number]
                if allocated > most:
                    most, at_peak, first = allocated, added, number
            at = place
            if turn is not None:
                used = self._used[request]
                in_turns = max(in_turns, allocated + used.most_bytes)
                allocated += used.allocated_bytes
                added += used.allocated_bytes - requested[request]
                grown = sizes[state] - self._first_sizes[state]
                outputs[request] = used.allocated_bytes - grown, used.allocated_bytes - grown - requested[request]
                if allocated > most:
                    most, at_peak, first = allocated, added, request
            elif request in outputs:
                size, rounding = outputs.pop(request)
                allocated -= size
                added -= rounding
        self.most_allocated_bytes = max(in_turns, most)
        if first is None or in_turns > most:
            return None
        return Peak(
            event=self._events[first],
            rounding_bytes=at_peak,
            end_rounding_bytes=added,
            reserved_bytes=self.reserved_bytes,
        )

    def _free_outputs(self, outputs: _Outputs, place: int) -> None:
        """Frees them where the order has come to this place."""
        if outputs.is_alone:
            self._begin_again(outputs, place)
        else:
            self._free_spans(outputs.pool, outputs.regions.in_use())

    def _begin_again(self, outputs: _Outputs, place: int) -> None:
        """Frees the outputs: what was free when the loop began is so again, less what was made since then and is in use."""
        pool, state, since = outputs.pool, outputs.state, self._stream.order[outputs.place : place]
        free, size_at, start_of = self.pools[pool], self._size_at, self._start_of
        addresses, sizes = self._addresses, self._sizes
        for entry in free:
            start = entry & ADDRESS
            del size_at[start], start_of[start + (entry >> ADDRESS_BITS)]
        free[:] = outputs.free
        blocks = [(entry & ADDRESS, entry >> ADDRESS_BITS) for entry in free]
        size_at.update(blocks)
        start_of.update([(start + size, start) for start, size in blocks])
        made = {entry for entry in since if entry >= 0}
        freed = {-1 - entry for entry in since if entry < 0}
        left = [(addresses[number], sizes[number]) for number in made - freed]
        left += [] if state in freed else [(addresses[state], sizes[state])]
        gone = [(addresses[number], sizes[number]) for number in freed - made if number != state]
        small = self.settings.segment_bytes(1)
        new = [
            (segment_address(address), size)
            for address, size in self._driver.placed[outputs.segments :]
            if (size > small) == pool
        ]
        in_pool = [span for span in (outputs.begun, *gone) if (span[1] > SMALL_BYTES) == pool]
        self._free_spans(pool, sorted([*new, *in_pool]))
        for start, size in left:
            if (size > SMALL_BYTES) == pool:
                self._take(pool, start, size)

    def _take(self, pool: int, start: int, size: int) -> None:
        """Takes a block out of the free one in which it lies."""
        free, size_at, start_of = self.pools[pool], self._size_at, self._start_of
        around = max(at for at in size_at if at <= start)
        stop, end = around + size_at.pop(around), start + size
        del free[bisect_left(free, stop - around << ADDRESS_BITS | around)], start_of[stop]
        for first, last in ((around, start), (end, stop)):
            if first < last:
                size_at[first], start_of[last] = last - first, first
                insort(free, last - first << ADDRESS_BITS | first)

    def _free_spans(self, pool: int, spans: Sequence[Span]) -> None:
        size_at, start_of = self._size_at, self._start_of
        free = self.pools[pool]
        gone: set[int] = set()
        starts: set[int] = set()
        for start, size in spans:
            stop = start + size
            if after := size_at.pop(stop, 0):
                gone.add(after << ADDRESS_BITS | stop)
                stop += after
            before = start_of.pop(start, None)
            if before is not None:
                gone.add((start - before) << ADDRESS_BITS | before)
                start = before
            size_at[start], start_of[stop] = stop - start, start
            starts.add(start)
        free[:] = sorted({*free}.difference(gone).union([size_at[start] << ADDRESS_BITS | start for start in starts]))

    @property
    def pools(self) -> tuple[list[int], list[int]]:
        return self._small, self._large

    @property
    def by_ends(self) -> tuple[dict[int, int], dict[int, int]]:
        """The sizes of free blocks by their starts, and their starts by their ends."""
        return self._size_at, self._start_of

    def new_segment(self, size_bytes: int) -> Span:
        """_EnoughError if there are now more bytes than matter."""
        segment_bytes = self.settings.segment_bytes(size_bytes)
        self.reserved_bytes += segment_bytes
        if self.reserved_bytes > self._most:
            raise _EnoughError
        return segment_address(self._driver.place(segment_bytes)), segment_bytes

    def next_segment(self, size_bytes: int) -> int:
        return segment_address(self._driver.next_address(self.settings.segment_bytes(size_bytes)))

    def room_above(self, start: int, segment_bytes: int) -> int:
        address, size_bytes = self._driver.next_rest(segment_bytes) or (0, 0)
        return size_bytes // segment_bytes if segment_address(address) > start else 0


class _EnoughError(Exception):
    """More is reserved than matters."""


class _NotedDriver(Driver):
    """placed: address and size of each segment, in the order of their making."""

    __slots__ = ("placed",)

    def __init__(self) -> None:
        super().__init__()
        self.placed: list[tuple[int, int]] = []

    def place(self, size_bytes: int) -> int:
        address = super().place(size_bytes)
        self.placed.append((address, size_bytes))
        return address


class _Outputs(NamedTuple):
    """Those of a loop, which are alive. free, begun: the free blocks of their pool and the state, before the loop. segments: made
    before. place: in the order. state: its request. regions: after the loop. is_alone: whether no other loop ran or had outputs
    meanwhile."""

    pool: int
    free: Sequence[int]
    state: int
    begun: Span
    segments: int
    place: int
    regions: _QuickRegions
    is_alone: bool


class _QuickRegions(Regions):
    """Those of a `FoldedAllocator`, whose free blocks they share."""

    counts_outputs = False

    def __init__(self, allocator: FoldedAllocator, state: Span) -> None:
        super().__init__(allocator.settings)
        self._allocator = allocator
        self.free, (self.size_at, self.start_of) = allocator.pools, allocator.by_ends
        self.state = state
        start, size = state
        self.sizes = {**self.size_at}
        before = self.start_of.get(start, start)
        self.sizes.pop(before, None)
        self.sizes[before] = start - before + size + self.sizes.pop(start + size, 0)
        self.starts = sorted(self.sizes)

    @property
    def reserved_bytes(self) -> int:
        return self._allocator.reserved_bytes

    def add_segment(self, size_bytes: int) -> Span:
        start, segment_bytes = self._allocator.new_segment(size_bytes)
        self.sizes[start] = segment_bytes
        insort(self.starts, start)
        return start, segment_bytes

    def next_segment(self, size_bytes: int) -> int:
        return self._allocator.next_segment(size_bytes)

    def room_above(self, start: int, segment_bytes: int) -> int:
        return self._allocator.room_above(start, segment_bytes)

    def in_use(self) -> list[Span]:
        """Where the outputs are: all but free blocks and the state, in order."""
        spans: list[Span] = []
        blocks = sorted([*self.size_at.items(), self.state])
        number = 0
        for at in self.starts:
            stop = at + self.sizes[at]
            while number < len(blocks) and blocks[number][0] < stop:
                start, size = blocks[number]
                if start > at:
                    spans.append((at, start - at))
                at, number = start + size, number + 1
            if at < stop:
                spans.append((at, stop - at))
        return spans

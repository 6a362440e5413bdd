"""What a run with folded loops over its tokens reserves: as `replay.reserved_up_to`, on integers throughout.

For unlimited memory and segments that do not expand, as `reserved`.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

from ..results.timeline import Allocate, Free, Timeline
from .allocator import SMALL_BYTES, Settings
from .region_steps import Steps
from .regions import ADDRESS_BITS, Regions, Span
from .reserved import QuickAllocator, Stream, segment_address
from .token_loops import REPEATED, Turn, turns_of
from .turning import Turns


def folded_reserved(timeline: Timeline, settings: Settings, most_bytes: int, steps: Steps) -> int | None:
    """Reserved bytes; if more than `most_bytes`, some figure above that. None for a loop of which something takes no memory.

    steps: known from other runs.
    """
    folded = FoldedAllocator(timeline, settings, most_bytes, steps)
    return folded.reserved_up_to_most() if folded.covers else None


class FoldedAllocator(QuickAllocator):
    """Both pools, for a timeline. covers: whether all loops make something in each of their turns."""

    def __init__(self, timeline: Timeline, settings: Settings, most_bytes: int, steps: Steps) -> None:
        numbers: dict[int, int] = {}  # of the requests alive, by id
        kinds: dict[int, int] = {}  # of the distinct sizes
        order: list[int] = []
        size_of: list[int] = []
        self.covers = True
        self._loops: list[tuple[int, int, Turn | None, int]] = []  # where in the order, request, turn or its end, state
        self._turns: dict[int, int] = {}  # of a request that stands for so many
        for index, event in enumerate(timeline.events):
            if isinstance(event, Free):
                number = numbers.pop(event.id)
                if number in self._turns:
                    self._loops.append((len(order), number, None, 0))
                elif number >= 0:
                    order.append(-1 - number)
            elif event.operator.endswith(REPEATED) and (turn := Turn.ending_at(timeline.events, index)):
                numbers[event.id] = number = len(size_of)
                size_of.append(kinds.setdefault(event.size_bytes, len(kinds)))
                sizes = [part.size_bytes for part in turn.events if isinstance(part, Allocate)]
                self.covers = self.covers and min(*sizes, event.size_bytes) > 0
                if self.covers:
                    self._turns[number] = turns_of(event, turn)
                    self._loops.append((len(order), number, turn, numbers[turn.state]))
            elif event.size_bytes:
                numbers[event.id] = number = len(size_of)
                order.append(number)
                size_of.append(kinds.setdefault(event.size_bytes, len(kinds)))
            else:
                numbers[event.id] = -1
        self._most, self._steps = most_bytes, steps
        self._outputs: dict[int, tuple[int, list[Span]]] = {}  # of each loop: their pool, and where they are
        blocks = [settings.block_bytes(size) for size in kinds]
        super().__init__(blocks, Stream(order, size_of), settings)

    def reserved_up_to_most(self) -> int:
        at, order = 0, self._stream.order
        for place, request, turn, state in self._loops:
            self._play(order[at:place], self._most)
            if self.reserved_bytes > self._most:
                break
            at = place
            if turn is None:
                self._free_outputs(*self._outputs.pop(request))
            else:
                self._play_turns(request, turn, state)
        self._play(order[at:], self._most)
        return self.reserved_bytes

    def _play_turns(self, request: int, turn: Turn, state: int) -> None:
        regions = _QuickRegions(self, (self._addresses[state], self._sizes[state]))
        try:
            Turns(regions, turn, self._steps).replay(self._turns[request])
        except _EnoughError:
            return
        self._addresses[state], self._sizes[state] = regions.state
        is_large = self.settings.block_bytes(turn.output.size_bytes) > SMALL_BYTES
        self._outputs[request] = int(is_large), regions.in_use()

    def _free_outputs(self, pool: int, outputs: Sequence[Span]) -> None:
        """Frees outputs side by side, in order of their starts."""
        size_at, start_of = self._size_at, self._start_of
        free = self._large if pool else self._small
        gone: set[int] = set()
        starts: set[int] = set()
        for start, size in outputs:
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

"""A run's allocator requests with symbolic sizes: what is reserved for any batch and lengths, computed fast."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from itertools import accumulate, zip_longest

from ...predicting.allocation.allocator import UNLIMITED_BYTES, Allocator, OutOfMemory
from ...predicting.allocation.allocator_settings import read_settings
from ...predicting.allocation.region_steps import Steps
from ...predicting.allocation.replay import warm_up_bytes
from ...predicting.allocation.reserved import QuickAllocator, Stream, after_loading, can_be_worked_out, stream_of
from ...predicting.allocation.turned_streams import TurnedStreams
from ...predicting.explore import LossRows, SumScratch
from ...predicting.footprint import reserved_within
from ...predicting.traces.kept_trace import ChunkedPoint, Coefficients, KeptTrace, Point
from ...predicting.traces.training_turns import Loop
from ...predicting.traces.turns import missing_turns, with_turns
from ...results.exploration import GROWTHS, Exploration, grown_bytes, grown_tokens
from ...results.memory import Run
from ...typed import NamedTuple
from ...values import replace

# Runs whose peaks are located: what is alive at such a peak is a lower bound for any other run.
CORNERS = (Point(1, 16, 24), Point(1, 4096, 4224), Point(64, 1024, 1152), Point(1, 131_072, 131_200))


class TracedRun:
    """What a run's allocator reserves for any batch and lengths, from its requests with symbolic sizes.

    weights_bytes: of each loaded tensor, if they are not the exploration's.
    """

    def __init__(
        self,
        exploration: Exploration,
        corners: Sequence[Point] = CORNERS,
        *,
        weights_bytes: Sequence[int] | None = None,
    ) -> None:
        self._settings = read_settings(exploration.allocator)
        self._sizes = exploration.sizes
        self._grows = any(size.growth for size in self._sizes)
        self._loading = loading_of(exploration, weights_bytes)
        begin, requests = self._loading.events, self._loading.requests
        self._all = (
            [entry - requests if entry >= 0 else entry + requests for entry in exploration.order[begin:]],
            [size for size, _ in exploration.requests[requests:]],
        )
        self._loops = tuple(replace(loop, first_event=loop.first_event - begin) for loop in exploration.loops)
        self._runs: dict[tuple[int, int], tuple[Sequence[int], Sequence[int]]] = {}  # by growths and added turns
        self._held: dict[Point, int] = {}
        self._streams: dict[tuple[tuple[int, int], tuple[bool, ...]], Stream] = {}
        self._reserved: dict[tuple[tuple[int, int], tuple[int, ...]], tuple[int, bool]] = {}  # and whether that is all
        self._leaping, self._size_of = self._run((1, 0))  # whose caches are no larger than any other run's
        self._peaks = sorted({self._requested_at(self._peak(point)) for point in corners})

    def held_bytes(self, point: Point) -> int:
        """The peak of reserved bytes, equal to that of `predicting.footprint.traced_footprint` for the same run.

        With unlimited memory no segment is released, so the peak is what is reserved at the end.
        """
        if point not in self._held:
            if can_be_worked_out(self._settings):
                self._held[point] = self._reserved_bytes(point)
            else:
                self._held[point] = self._replayed(point, Allocator(self._settings))
        return self._held[point]

    def fits(self, point: Point, room_bytes: int) -> bool:
        """Whether `held_bytes` is within `room_bytes`; the replay stops as soon as it is not."""
        if self.least_bytes(point) > room_bytes:
            return False
        if point in self._held or not can_be_worked_out(self._settings):
            return self.held_bytes(point) <= room_bytes
        return self._reserved_bytes(point, room_bytes) <= room_bytes

    def _reserved_bytes(self, point: Point, most_bytes: int | None = None) -> int:
        """Reserved bytes; if more than `most_bytes`, any figure above it."""
        blocks = tuple([self._settings.block_bytes(size) if size else 0 for size in self._distinct(point)])
        key = self._shape(point), blocks
        reserved, is_exact = self._reserved.get(key, (0, False))
        if not is_exact and (most_bytes is None or reserved <= most_bytes):
            stream = self._stream_of(point, tuple(map(bool, blocks)))
            quick = QuickAllocator(blocks, stream, self._settings, self._loaded)
            quick.replay(most_bytes)
            reserved = quick.reserved_bytes
            self._reserved[key] = reserved, most_bytes is None or reserved <= most_bytes
        return reserved

    @cached_property
    def _loaded(self) -> QuickAllocator:
        return after_loading(self._loading.sizes, self._settings, warm_up_bytes=self._loading.warm_up_bytes)

    def _stream_of(self, point: Point, sizes: tuple[bool, ...]) -> Stream:
        key = self._shape(point), sizes
        if key not in self._streams:
            self._streams[key] = stream_of(*self._run(self._shape(point))).of_sizes(sizes)
        return self._streams[key]

    def _shape(self, point: Point) -> tuple[int, int]:
        """How many growths a run makes of its cache before the last step, and turns that the trace's loops lack."""
        growths = min(max(point.total_tokens - point.prompt_tokens - 1, 0), GROWTHS)
        return growths, missing_turns(point.prompt_tokens, self._loops)

    def _run(self, shape: tuple[int, int]) -> tuple[Sequence[int], Sequence[int]]:
        """The order and each request's size, but for growths that make the cache no longer where there are so many steps."""
        if shape not in self._runs:
            steps, turns = shape
            order, size_of = self._shortened(steps) if steps < GROWTHS and self._grows else self._all
            if turns:
                order, sources = with_turns(order, len(size_of), self._loops, turns)
                size_of = [*size_of, *(size_of[source] for source in sources)]
            self._runs[shape] = order, size_of
        return self._runs[shape]

    def _shortened(self, steps: int) -> tuple[list[int], list[int]]:
        number: dict[int, int] = {}  # request -> its new number, or that of the request whose storage it keeps
        order: list[int] = []
        size_of: list[int] = []
        events = iter(self._all[0])
        for entry in events:
            if entry < 0:
                order.append(-1 - number[-1 - entry])
                continue
            size = self._all[1][entry]
            growth = self._sizes[size].growth
            if growth and grown_tokens(steps, growth) == grown_tokens(steps, growth - 1):
                number[entry] = number[-1 - next(events)]
                continue
            number[entry] = len(size_of)
            order.append(len(size_of))
            size_of.append(size)
        return order, size_of

    def least_bytes(self, point: Point) -> int:
        """The most requested at events where some run peaks: a lower bound of what is reserved."""
        monomials = point.monomials
        return max(sum(map(int.__mul__, peak, monomials)) for peak in self._peaks)

    def passes(self, point: Point, capacity_bytes: int) -> bool:
        """Whether the run finishes within a capacity, with cached segments released when a request finds no room."""
        if self.least_bytes(point) > capacity_bytes:
            return False
        try:
            self._replayed(point, Allocator(self._settings, capacity_bytes))
        except OutOfMemory:
            return False
        return True

    def _replayed(self, point: Point, allocator: Allocator) -> int:
        order, size_of = self._run(self._shape(point))
        distinct = self._distinct(point)
        sizes = [distinct[size] for size in size_of]
        allocate, free = allocator.allocate, allocator.free
        if self._loading.warm_up_bytes:
            free(allocate(self._loading.warm_up_bytes))
        for size in self._loading.sizes:
            allocate(size)
        blocks = [allocator.allocate(0)] * len(sizes)
        for entry in order:
            if entry >= 0:
                blocks[entry] = allocate(sizes[entry])
            else:
                free(blocks[-1 - entry])
        return allocator.reserved_bytes

    def _distinct(self, point: Point) -> list[int]:
        """The bytes of each distinct size."""
        monomials, steps = point.monomials, point.total_tokens - point.prompt_tokens - 1
        sizes = []
        for size in self._sizes:
            after = sum(map(int.__mul__, size.coefficients, monomials))
            if size.growth:
                before = sum(map(int.__mul__, size.before, monomials))
                after = grown_bytes(before, after, steps, size.growth)
            sizes.append(after)
        return sizes

    def _peak(self, point: Point) -> int:
        """The first event after loading at which the requested bytes peak."""
        distinct = self._distinct(point)
        sizes = list(map(distinct.__getitem__, self._size_of))
        sizes += [-size for size in reversed(sizes)]  # negative indices: entry -1 - i frees request i
        requested = list(accumulate(map(sizes.__getitem__, self._leaping)))
        most = max(requested, default=0)
        return requested.index(most) if most > 0 else -1

    def _requested_at(self, event: int) -> tuple[int, ...]:
        """Summed coefficients of the requests alive after an event; the same requests for every workload."""
        entries = self._leaping[: event + 1]
        alive = {entry for entry in entries if entry >= 0}.difference([-1 - entry for entry in entries if entry < 0])
        coefficients: list[Coefficients] = [(sum(self._loading.sizes),)]
        for size, count in Counter(map(self._size_of.__getitem__, alive)).items():
            coefficients.append(tuple([count * number for number in self._sizes[size].coefficients]))
        return tuple(map(sum, zip_longest(*coefficients, fillvalue=0)))  # what is constant may have fewer


class Loading(NamedTuple):
    """What a run requests first and never frees. events, requests: how many of an exploration's. warm_up_bytes: of a block taken
    and freed before."""

    events: int
    requests: int
    warm_up_bytes: int
    sizes: Sequence[int]


def loading_of(exploration: Exploration, weights_bytes: Sequence[int] | None) -> Loading:
    """The stage "load"; nothing if the exploration has no stages, or if something of it is freed later."""
    begin = exploration.stages[1].first_event if len(exploration.stages) > 1 else 0
    load, rest = exploration.order[:begin], exploration.order[begin:]
    requests = max(load, default=-1) + 1
    if any(-requests <= entry < 0 for entry in rest):
        return Loading(0, 0, 0, ())
    warm_up = load[1:2] == (-1,)
    sizes = [(exploration.sizes[size].coefficients[0], exploration.terms[term]) for size, term in exploration.requests]
    held = sizes[warm_up:requests]
    if weights_bytes is None:
        return Loading(begin, requests, sizes[0][0] if warm_up else 0, [size for size, _ in held])
    others = [size for size, term in held if term != "weights"]
    return Loading(begin, requests, warm_up_bytes(sum(weights_bytes)) if warm_up else 0, [*weights_bytes, *others])


class TrainedRun(TracedRun):
    """A `TracedRun` of training on a card with so many multiprocessors, each with room for so many threads."""

    def __init__(
        self, exploration: Exploration, corners: Sequence[Point], *, multiprocessors: int, threads: int
    ) -> None:
        self._card = multiprocessors, threads
        super().__init__(exploration, corners)

    def on_card(self, multiprocessors: int, threads: int) -> TrainedRun:
        """The same requests on another card, where sums over rows take other scratch."""
        other = copy(self)
        other._card = multiprocessors, threads
        other._held, other._reserved = {}, {}
        return other

    def streams(self, loops: Sequence[Loop]) -> TurnedStreams:
        """Its requests with any number of turns. loops: over chunks, in the exploration's order."""
        begin = self._loading.events
        return TurnedStreams(*self._all, [loop._replace(first=loop.first - begin) for loop in loops])

    def turned(self, streams: TurnedStreams, missing: int, corner: Point) -> TrainedRun:
        """The run with so many turns more; UnsupportedError as from `Turned`. corner: as in a `TracedRun`."""
        return _TurnedRun(self, streams, missing, corner)

    def _distinct(self, point: Point) -> list[int]:
        return [
            size.bytes_at(point, *self._card) if isinstance(size, (SumScratch, LossRows)) else given
            for size, given in zip(self._sizes, super()._distinct(point), strict=True)
        ]


class FoldedRun:
    """A run of a trace whose loops over the tokens are folded, for any batch and lengths. run: of any of them."""

    def __init__(self, trace: KeptTrace, run: Run) -> None:
        self._trace, self._run, self._steps = trace, run, Steps()
        self._reserved: dict[Point, tuple[int, bool]] = {}  # and whether that is all
        self._peaks: set[Coefficients] = set()  # what is requested at events where a run that does not fit peaks

    def fits(self, point: Point, room_bytes: int) -> bool:
        monomials = ChunkedPoint.of(point, self._trace.chunk_tokens).monomials
        if any(sum(map(int.__mul__, peak, monomials)) > room_bytes for peak in self._peaks):
            return False
        fits = self._reserved_bytes(point, room_bytes) <= room_bytes
        if not fits:
            self._peaks.add(self._requested_at_peak(monomials))
        return fits

    def _requested_at_peak(self, monomials: Sequence[int]) -> Coefficients:
        """Summed coefficients of the requests alive when a run requests most: a lower bound for any other run too."""
        polynomials = [polynomial for polynomial, *_ in self._trace.allocations]
        by_polynomial = {polynomial: sum(map(int.__mul__, polynomial, monomials)) for polynomial in {*polynomials}}
        sizes = [by_polynomial[polynomial] for polynomial in polynomials]
        order = self._trace.order
        requested = [*accumulate([sizes[entry] if entry >= 0 else -sizes[-1 - entry] for entry in order])]
        until = order[: requested.index(max(requested)) + 1]
        alive = {entry for entry in until if entry >= 0}.difference([-1 - entry for entry in until if entry < 0])
        return tuple(map(sum, zip_longest(*(polynomials[entry] for entry in alive), fillvalue=0)))

    def held_bytes(self, point: Point) -> int:
        return self._reserved_bytes(point, UNLIMITED_BYTES)

    def _reserved_bytes(self, point: Point, most_bytes: int) -> int:
        """Reserved bytes; if more than `most_bytes`, any figure above it."""
        reserved, is_exact = self._reserved.get(point, (0, False))
        if not is_exact and reserved <= most_bytes:
            run = replace(self._run, batch=point.batch, prompt_tokens=point.prompt_tokens)
            reserved = reserved_within(self._trace.at(point), run, most_bytes, self._steps)
            self._reserved[point] = reserved, reserved <= most_bytes
        return reserved


class _TurnedRun(TrainedRun):
    """A `TrainedRun` with so many turns more than another, which shares what is loaded."""

    def __init__(self, run: TrainedRun, streams: TurnedStreams, missing: int, corner: Point) -> None:
        vars(self).update(vars(run))
        self._turned, self._missing = streams, missing
        self._runs, self._held, self._streams, self._reserved = {}, {}, {}, {}
        taken = tuple(map(bool, self._distinct(corner)))
        if any(any(size.coefficients) for size, is_taken in zip(self._sizes, taken, strict=True) if not is_taken):
            taken = (True,) * len(taken)
        stream = self._stream_of(corner, taken)
        self._leaping, self._size_of = stream.order, stream.size_of
        self._peaks = [self._requested_at(self._peak(corner))]

    def _stream_of(self, point: Point, sizes: tuple[bool, ...]) -> Stream:
        key = self._shape(point), sizes
        if key not in self._streams:
            self._streams[key] = self._turned.of(self._missing, sizes)
        return self._streams[key]

    def _run(self, shape: tuple[int, int]) -> tuple[Sequence[int], Sequence[int]]:
        if shape not in self._runs:
            stream = self._turned.of(self._missing, (True,) * len(self._sizes))
            self._runs[shape] = stream.order, stream.size_of
        return self._runs[shape]

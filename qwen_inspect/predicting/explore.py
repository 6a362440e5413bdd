"""Builds an Exploration from a kept trace or a formula: the run of `predicting.footprint` with symbolic sizes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from itertools import chain, zip_longest

from ..results.cache import CacheReport
from ..results.exploration import GROWTHS, Exploration, RequestSize
from ..results.memory import Run
from ..results.timeline import Allocate, ColumnSum, Event, Free, Stage
from ..spec import Module
from ..tracing.scratch import CUDNN_BYTES, CUDNN_SCRATCH, SUM_IDS, SUM_SCRATCH, attentions, sum_scratch
from ..typed import TYPE_CHECKING, NamedTuple
from ..values import dataclass, replace
from .allocation.on_device import (
    GROWN_IDS,
    OWN_IDS,
    SORT_CONSTANT_BYTES,
    SORTED_IDS,
    laid_out,
    leap,
    on_device,
)
from .allocation.uses import term_of, use_of, uses_of
from .footprint import formula_requests
from .traces.kept_trace import CHUNK_TOKENS, Coefficients, KeptTrace, Point, Vectors, alignment
from .traces.training_turns import Loop, regular_loops
from .traces.turns import loops_of

if TYPE_CHECKING:
    from .fused_loss import LossBuffer


def explore_trace(kept: KeptTrace, run: Run, point: Point | None = None) -> Exploration:
    """The run of a kept trace, valid for two or more new tokens. point: the run's, if it is not a plain `Point`."""
    timeline = kept.at(point or Point(run.batch, run.prompt_tokens, run.cached_tokens))
    uses = uses_of(timeline)
    whole = on_device(timeline, run)
    grown = leap(whole)
    before = {new.id: old.id for old, new in grown}

    sizes: dict[object, RequestSize] = {}
    allocated = kept.allocations

    def size_of(event: Allocate) -> RequestSize:
        identity = event[0]
        if identity < SORTED_IDS and identity not in before:  # most are
            coefficients = allocated[identity][0]
            # A size is needed many times, and is costly to make.
            return sizes.get(coefficients) or sizes.setdefault(coefficients, RequestSize(coefficients))
        growth, last = divmod(identity, GROWN_IDS)
        if last >= OWN_IDS:
            return _constant(event)
        if last >= SORTED_IDS:
            number, is_scratch = divmod(last - SORTED_IDS, 2)
            keys = kept.allocations[number][0]
            return RequestSize(_sort_scratch(keys) if is_scratch else keys)
        grown = allocated[last][0], allocated[before[last]][0], growth or GROWTHS
        return sizes.get(grown) or sizes.setdefault(grown, RequestSize(grown[0], before=grown[1], growth=grown[2]))

    leaps = None
    if grown:
        begin = next(stage.first_event for stage in whole.stages if stage.name == "decode")
        alike = [(allocated[old.id][0], allocated[new.id][0], uses.get(new.id)) for old, new in grown]
        leaps = _Growth(begin, grown, alike)
    exploration = _exploration(
        *("trace", whole.events, whole.stages, size_of, lambda event: use_of(event, uses), run),
        least_new_tokens=2,
        growth=leaps,
    )
    return replace(exploration, loops=loops_of(whole))


@dataclass(frozen=True, slots=True)
class SumScratch(RequestSize):
    """Scratch of a sum over rows: 0 bytes if each output has one block of threads. part: 0 partial sums, 1 semaphores."""

    outputs: Coefficients = ()
    inputs: Coefficients = ()
    vectors: Vectors = ()
    part: int = 0

    def bytes_at(self, point: Point, multiprocessors: int, threads: int) -> int:
        outputs, inputs = (sum(map(int.__mul__, numbers, point.monomials)) for numbers in (self.outputs, self.inputs))
        summed = ColumnSum(outputs=outputs, inputs=inputs, vector=self.vectors[alignment(point)])
        sizes = sum_scratch(summed, multiprocessors, threads)
        return 0 if sizes is None else sizes[self.part]


@dataclass(frozen=True, slots=True)
class LossRows(RequestSize):
    """So many bytes for each row of a fused loss's buffer."""

    row_bytes: int = 0
    buffer: LossBuffer | None = None

    def bytes_at(self, point: Point, *_: int) -> int:
        assert self.buffer is not None
        return self.row_bytes * self.buffer.rows(point.batch, point.prompt_tokens)


class TrainingExplored:
    """The training run of a kept trace on CUDA, with the scratch of all sums over rows, which may take 0 bytes.

    exploration: with as many turns of loops over chunks as the trace has. turns: how many that are; 0 if it has no loops.
    """

    def __init__(self, kept: KeptTrace, run: Run, *, turns: int) -> None:
        self._turns = turns
        self.exploration, self._trace = _explored(kept, run)

    def missing(self, prompt_tokens: int) -> int:
        """How many turns it lacks for the chunks of such a prompt."""
        return -(-prompt_tokens // CHUNK_TOKENS) - self._turns if self._turns else 0

    @cached_property
    def loops(self) -> Sequence[Loop]:
        """Of the exploration's order; UnsupportedError as from `training_turns.with_chunks`."""
        return regular_loops(self._trace)


def _explored(kept: KeptTrace, run: Run) -> tuple[Exploration, KeptTrace]:
    """The exploration, and its events as a trace whose sizes are the exploration's requests."""
    timeline = replace(kept.at(Point(run.batch, run.prompt_tokens, run.prompt_tokens)), sums=())
    uses = uses_of(timeline)
    # cuDNN's attention requests all of its backward's scratch at once.
    parts_of = {parts[0][1].id: [event for _, event in parts] for parts in attentions(timeline.events)}
    sums = {output: summed for output, *summed in kept.sums}
    buffers = dict(kept.buffers)
    events: list[Event] = []
    scratch: dict[int, RequestSize] = {}
    whole = on_device(timeline, run)
    moved: list[int] = []  # the new index of each event
    sizes_of: dict[object, RequestSize] = {}  # a size is needed many times, and is costly to make and to compare
    for event in whole.events:
        moved.append(len(events))
        events.append(event)
        if len(event) > 1 and event[0] in sums:
            assert isinstance(event, Allocate)
            outputs, inputs, vectors = summed = sums[event.id]
            ids = [SUM_IDS + len(scratch), SUM_IDS + len(scratch) + 1]
            for part, identity in enumerate(ids):
                key = *summed, part
                if key not in sizes_of:
                    sizes_of[key] = SumScratch((0,), outputs=outputs, inputs=inputs, vectors=vectors, part=part)
                scratch[identity] = sizes_of[key]
                events.append(event._replace(id=identity, operator=SUM_SCRATCH))
            events += map(Free, reversed(ids))

    def size_of(event: Allocate) -> RequestSize:
        identity = event[0]
        if identity < SORTED_IDS and identity not in buffers and event[3] != CUDNN_SCRATCH:  # most are
            coefficients = kept.allocations[identity][0]
            return sizes_of.get(coefficients) or sizes_of.setdefault(coefficients, RequestSize(coefficients))
        if identity in scratch:
            return scratch[identity]
        if identity in buffers:
            return LossRows((0,), row_bytes=kept.allocations[identity][0][0], buffer=buffers[identity])
        if identity >= OWN_IDS:
            return _constant(event)
        if identity >= SORTED_IDS:
            number, is_scratch = divmod(identity - SORTED_IDS, 2)
            keys = kept.allocations[number][0]
            return RequestSize(_sort_scratch(keys) if is_scratch else keys)
        sizes = (kept.allocations[part.id][0] for part in parts_of[event.id] if isinstance(part, Allocate))
        constant, *others = map(sum, zip_longest(*sizes, fillvalue=0))
        return RequestSize((constant + CUDNN_BYTES, *others))

    explored = _exploration("trace", events, (), size_of, lambda event: use_of(event, uses), run, least_new_tokens=1)
    made = [event for event in events if len(event) > 1]
    moved.append(len(events))
    return explored, KeptTrace(
        stages=tuple(replace(stage, first_event=moved[stage.first_event]) for stage in whole.stages),
        allocations=tuple(
            (request, event[2], event[3]) for request, event in zip(explored.requests, made, strict=True)
        ),
        order=explored.order,
        made_by=kept.made_by,
    )


def _sort_scratch(keys: tuple[int, ...]) -> tuple[int, ...]:
    """The coefficients of `sort_scratch_bytes`."""
    constant, *others = (2 * key + -(-key // 32) for key in keys)
    return (constant + SORT_CONSTANT_BYTES, *others)


def explore_formula(
    tree: Module, cache: CacheReport, run: Run, *, weights_bytes: Sequence[int] | None = None
) -> Exploration:
    """The requests that `formula_footprint` counts for generation."""
    requests, uses = formula_requests(tree, cache, run, weights_bytes=weights_bytes)
    cache_ids = iter([request.id for request in requests if uses.get(request.id) in ("cache", "state")])
    sizes: dict[int, RequestSize] = {}
    for layer in cache.layers:
        most_tokens = None if layer.window_tokens is None else layer.window_tokens - 1
        for half in (1, 2) if layer.bytes_per_token else ():
            sizes[next(cache_ids)] = RequestSize((0, 0, 0, 0, 0, 0, 0, layer.bytes_per_token), most_tokens, half)
        for state in layer.states_bytes:
            sizes[next(cache_ids)] = RequestSize((0, 0, 0, 0, state, 0, 0, 0))

    def size_of(event: Allocate) -> RequestSize:
        return sizes.get(event.id) or _constant(event)

    events = laid_out(requests, run.loader)
    return _exploration("formula", events, (), size_of, lambda event: use_of(event, uses), run, least_new_tokens=1)


class _Growth(NamedTuple):
    """A cache that grows step by step, as `on_device.growing` has it, instead of the leap that begins with this event.

    pairs: of the leap. alike: what each of them has in common with others, of the same sizes and use.
    """

    begin: int
    pairs: Sequence[tuple[Allocate, Allocate]]
    alike: Sequence[Hashable]


def _constant(event: Allocate) -> RequestSize:
    return RequestSize((event.size_bytes, 0, 0, 0, 0, 0, 0, 0))


def _exploration(
    method: str,
    events: Sequence[Event],
    stages: tuple[Stage, ...],
    size_of: Callable[[Allocate], RequestSize],
    use: Callable[[Allocate], str],
    run: Run,
    *,
    least_new_tokens: int,
    growth: _Growth | None = None,
) -> Exploration:
    sizes: dict[RequestSize, int] = {}
    terms: dict[str, int] = {}
    term_numbers: dict[str, int] = {}  # by use
    size_numbers: dict[int, int] = {}  # by the size's id: equal sizes are mostly one, and costly to compare
    made: list[RequestSize] = []  # so that no id is taken twice
    numbers: dict[int, int] = {}
    requests: list[tuple[int, int]] = []
    order: list[int] = []

    def request(event: Allocate) -> tuple[int, int]:
        used, size = use(event), size_of(event)
        if (term := term_numbers.get(used)) is None:
            term = term_numbers[used] = terms.setdefault(term_of(used), len(terms))
        if (number := size_numbers.get(id(size))) is None:
            number = size_numbers[id(size)] = sizes.setdefault(size, len(sizes))
            made.append(size)
        return number, term

    def add(events: Sequence[Event]) -> None:
        for event in events:
            if len(event) == 1:  # a `Free`
                order.append(-1 - numbers[event[0]])
                continue
            numbers[event[0]] = len(requests)
            order.append(len(requests))
            requests.append(request(event))

    def grow(pairs: Sequence[tuple[Allocate, Allocate]], alike: Sequence[Hashable]) -> None:
        examples = dict(zip(alike, (new for _, new in pairs), strict=True))
        held: Sequence[int] = [numbers[old.id] for old, _ in pairs]
        for step in range(1, GROWTHS + 1):
            first = 0 if step == GROWTHS else step * GROWN_IDS
            grown = {key: request(new._replace(id=first + new.id)) for key, new in examples.items()}
            news = range(len(requests), len(requests) + len(pairs))
            order.extend(chain.from_iterable(zip(news, [-1 - number for number in held], strict=True)))
            requests.extend(map(grown.__getitem__, alike))
            held = news
        numbers.update(zip((new.id for _, new in pairs), held, strict=True))

    if growth is None:
        add(events)
    else:
        add(events[: growth.begin])
        grow(growth.pairs, growth.alike)
        add(events[growth.begin + 2 * len(growth.pairs) :])
    return Exploration(
        method=method,
        terms=tuple(terms),
        sizes=tuple(sizes),
        requests=tuple(requests),
        order=tuple(order),
        stages=stages,
        allocator=run.allocator,
        least_new_tokens=least_new_tokens,
    )

"""A run in segments, one for each layer and pass, from which a run of any other sequence of the same layers is composed.

A stage is parts: outside of the layers, a pass over them, outside again, and so on; a backward passes over them from the last to
the first. What a layer does depends on its kind and on its place: the first finds no layer before it. It frees what it made
itself, what is left of another segment, such as the output of the layer before, or something made outside of the layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import groupby, pairwise
from operator import gt, lt

from ...errors import UnsupportedError
from ...results.timeline import Free, Stage, Timeline
from ...standard import re
from ...typed import Any, NamedTuple
from ...values import dataclass, replace
from .kept_trace import KeptTrace

# A tower's blocks are no layers of the decoder.
LAYER = (  # compiled when it is first used
    r"(?:(?<=\blayers\.)|(?<=\bh\.)|(?<=\bencoder\.layer\.)|(?<=\btransformer\.layer\.)|(?<=^blocks\.)|(?<=\btransformer\.blocks\.))\d+\b"
)
ANY_LAYER = "#"  # in a module's name, instead of the layer's number
FORWARD, BACKWARD = "forward", "backward"
LOADED = -1  # the part of what the first stage loads
FIRST, LAST, FIRST_OF_KIND, LAST_OF_KIND = 1, 2, 4, 8


class Request(NamedTuple):
    """size: bytes, a polynomial or a formula. use: "cache" or "state" if the trace says so; of a gradient its parameter.

    summed: outputs, inputs and vectors of a sum over rows, as in a `KeptTrace`.
    """

    size: Any
    module: str
    operator: str
    use: str = ""
    summed: tuple[Any, Any, tuple[int, ...]] | None = None


class Address(NamedTuple):
    """A request of another segment. layer: how far from this one, or from the last that the other's pass goes over if the free is
    outside of the layers; None for a request outside of them. number: among all of that segment; in a layer among those that
    outlive it, the last is 0.
    """

    part: int
    layer: int | None
    number: int


@dataclass(frozen=True, slots=True)
class Segment:
    """The events of one layer in one pass, or between passes. order: 0 makes the next request, -1 - i frees request i of this
    segment, 1 + i frees `others[i]`.
    """

    requests: tuple[Request, ...] = ()
    order: tuple[int, ...] = ()
    others: tuple[Address, ...] = ()

    @property
    def outliving(self) -> tuple[int, ...]:
        """The requests that the segment does not free, the last first."""
        freed = {-1 - entry for entry in self.order if entry < 0}
        return tuple(number for number in range(len(self.requests) - 1, -1, -1) if number not in freed)


class Place(NamedTuple):
    """Where a segment stands. kind: of the layer, None outside of the layers. ends: FIRST if no layer comes before; in training
    also the others, since the first layer of a kind frees last what all of its kind share.
    """

    part: int
    kind: Hashable = None
    ends: int = 0


def ends_of(kinds: Sequence[Hashable], stages: Iterable[tuple[str, int]]) -> list[int]:
    """`Place.ends` of each layer."""
    if all(name != BACKWARD for name, _ in stages):
        return [FIRST if layer == 0 else 0 for layer in range(len(kinds))]
    names = [getattr(kind, "structure", kind) for kind in kinds]
    last = {name: layer for layer, name in enumerate(names)}
    first = {name: layer for layer, name in reversed(list(enumerate(names)))}
    return [
        FIRST * (layer == 0)
        + LAST * (layer == len(names) - 1)
        + FIRST_OF_KIND * (layer == first[name])
        + LAST_OF_KIND * (layer == last[name])
        for layer, name in enumerate(names)
    ]


@dataclass(frozen=True, slots=True)
class Segments:
    """stages: each one's name and number of parts, which alternate: outside of the layers, over the layers, ..., outside."""

    stages: tuple[tuple[str, int], ...]
    by_place: Mapping[Place, Segment]


def fixed(timeline: Timeline) -> KeptTrace:
    """The trace of one workload with constant sizes."""
    numbers: dict[int, int] = {}
    allocations: list[tuple[tuple[int, ...], str, str]] = []
    order = []
    for event in timeline.events:
        if isinstance(event, Free):
            order.append(-1 - numbers[event.id])
            continue
        numbers[event.id] = len(allocations)
        order.append(len(allocations))
        allocations.append(((event.size_bytes,), event.module, event.operator))
    kept = tuple(sorted((numbers[identity], use) for identity, use in timeline.kept))
    return KeptTrace(stages=timeline.stages, allocations=tuple(allocations), order=tuple(order), made_by="", kept=kept)


# --- apart


def cut(trace: KeptTrace, kinds: Sequence[Hashable]) -> Segments:
    """The segments of a trace whose layers are of these kinds; UnsupportedError if equal layers do not do the same."""
    by_place: dict[Place, Segment] = {}
    stages, segments = _segments(trace, len(kinds))
    ends = ends_of(kinds, stages)
    for part, layer, segment in segments:
        place = Place(part) if layer is None else Place(part, kinds[layer], ends[layer])
        if by_place.setdefault(place, segment) != segment:
            raise UnsupportedError("trace_no_period")
    return Segments(stages=stages, by_place=by_place)


def _segments(
    trace: KeptTrace, layers: int
) -> tuple[tuple[tuple[str, int], ...], list[tuple[int, int | None, Segment]]]:
    """The stages with their number of parts; and (part, layer, segment) of all."""
    uses = dict(trace.kept)
    sums = {entry: (outputs, inputs, vectors) for entry, outputs, inputs, vectors in trace.sums}
    owners: dict[int, tuple[int, int | None, int]] = {}  # of each request: part, layer, number in its segment
    pieces: list[tuple[int, int | None, list[int]]] = []
    stages = []
    descending: set[int] = set()  # parts
    for name, parts in _parts(trace):
        begin = pieces[-1][0] + 1 if pieces else 0
        if name == BACKWARD:
            descending |= {begin + part for part, _, _ in parts}
        for part, layer, entries in parts:
            pieces.append((begin + part, layer, entries))
            for number, entry in enumerate(entry for entry in entries if entry >= 0):
                owners[entry] = (begin + part, layer, number)
        stages.append((name, pieces[-1][0] + 1 - begin))
    freed_at = {-1 - entry: (part, layer) for part, layer, entries in pieces for entry in entries if entry < 0}
    outliving: dict[tuple[int, int | None], dict[int, int]] = {}
    for layer, entries in _by_layer(trace.allocations[: trace.loaded]).items():
        owners |= {entry: (LOADED, layer, number) for number, entry in enumerate(entries)}
        outliving[LOADED, layer] = {entry: number for number, entry in enumerate(entries)}
    for part, layer, entries in pieces:
        left = [entry for entry in reversed(entries) if entry >= 0 and freed_at.get(entry) != (part, layer)]
        outliving[part, layer] = {entry: number for number, entry in enumerate(left)}
    segments = []
    for part, layer, entries in pieces:
        others: dict[Address, int] = {}
        requests, order = [], []
        for entry in entries:
            if entry >= 0:
                size, module, operator = trace.allocations[entry]
                module = module if layer is None else re.sub(LAYER, ANY_LAYER, module, count=1)
                use = uses.get(entry, "")
                use = use if layer is None else re.sub(LAYER, ANY_LAYER, use, count=1)
                requests.append(Request(size, module, operator, use, sums.get(entry)))
                order.append(0)
                continue
            owning_part, owner, number = owners[-1 - entry]
            if (owning_part, owner) == (part, layer):
                order.append(-1 - number)
                continue
            if owner is not None:
                number = outliving[owning_part, owner][-1 - entry]
                end = 0 if owning_part in descending else layers - 1
                owner -= end if layer is None else layer
            others.setdefault(Address(owning_part, owner, number), len(others))
            order.append(1 + others[Address(owning_part, owner, number)])
        segments.append((part, layer, Segment(tuple(requests), tuple(order), tuple(others))))
    present = {(part, layer) for part, layer, _ in segments if layer is not None}
    for part in {part for part, _ in present}:  # a layer without a cache has nothing to grow
        segments += [(part, layer, Segment()) for layer in range(layers) if (part, layer) not in present]
    return tuple(stages), segments


def _parts(trace: KeptTrace) -> Iterator[tuple[str, list[tuple[int, int | None, list[int]]]]]:
    """Each stage: its name, and (part, layer, entries of the trace's order) of each of its segments."""
    labels = _labels(trace)
    bounds = [*(stage.first_event for stage in trace.stages), len(trace.order)]
    for stage, (begin, end) in zip(trace.stages, pairwise(bounds), strict=True):
        segments: list[tuple[int, int | None, list[int]]] = [(0, None, [])]
        follows: Callable[[Any, Any], bool] = gt if stage.name == BACKWARD else lt
        for label, run in groupby(range(begin, end), labels.__getitem__):
            entries = [trace.order[index] for index in run]
            part, layer, last = segments[-1]
            if label is None:
                if layer is None:
                    last += entries
                else:
                    segments.append((part + 1, None, entries))
            elif layer is None and part and follows(segments[-2][1], label):  # a pass goes on
                segments.pop()
                segments[-1][2].extend(last)
                segments.append((part - 1, label, entries))
            elif layer is None or follows(layer, label):
                segments.append((part + 1 if layer is None else part, label, entries))
            else:
                segments += [(part + 1, None, []), (part + 2, label, entries)]
        if segments[-1][1] is not None:
            segments.append((segments[-1][0] + 1, None, []))
        yield stage.name, segments


def _by_layer(loaded: Sequence[tuple[Any, str, str]]) -> dict[int | None, list[int]]:
    """The numbers of what is loaded, in each layer and outside of the layers."""
    numbers: dict[int | None, list[int]] = defaultdict(list)
    for number, (_, module, _) in enumerate(loaded):
        match = re.search(LAYER, module)
        numbers[int(match[0]) if match else None].append(number)
    return numbers


def _labels(trace: KeptTrace) -> list[int | None]:
    """The layer of each event. A free belongs to what is around it, or to the layer of what it frees if that was made in a stage
    before, and there is no backward: so a cache is freed that grows. Behind the last layer, what was made outside of the layers
    is freed there. In training, of frees behind the last layer that are not all its own, each belongs to its layer: so autocast's
    cache goes.
    """
    starts = {stage.first_event for stage in trace.stages}
    trains = any(stage.name == BACKWARD for stage in trace.stages)
    made: dict[int, tuple[int, int | None]] = {}  # stage and layer of each request
    labels: list[int | None] = []
    stage, label = -1, None
    for index, entry in enumerate(trace.order):
        if index in starts:
            stage, label = stage + 1, None
        if entry >= 0:
            match = re.search(LAYER, trace.allocations[entry][1])
            label = int(match[0]) if match else None
            made[entry] = (stage, label)
        else:
            before, owner = made.get(-1 - entry, (stage, None))  # what is loaded stands before all
            if owner is not None and before < stage and not trains:
                label = owner
        labels.append(label)
    if trains:
        owners = {entry: owner for entry, (_, owner) in made.items()}
        bounds = [*(stage.first_event for stage in trace.stages), len(trace.order)]
        for one, events in zip(trace.stages, map(range, bounds, bounds[1:]), strict=True):
            if one.name == FORWARD:
                _free_by_layer(trace.order, events, labels, owners)
    else:
        _end_passes(trace.order, labels, {entry for entry, (_, owner) in made.items() if owner is None})
    return labels


def _free_by_layer(
    order: Sequence[int], events: range, labels: list[int | None], owners: Mapping[int, int | None]
) -> None:
    in_layers = (index for index in events if order[index] >= 0 and labels[index] is not None)
    behind = range(max(in_layers, default=events.stop - 1) + 1, events.stop)
    # What goes before something is made outside of the layers, the last layer frees.
    outside = next((index for index in behind if order[index] >= 0), events.stop)
    last = max((owner for owner in owners.values() if owner is not None), default=0)
    for is_free, run in groupby(range(outside, events.stop), key=lambda index: order[index] < 0):
        freed = {index: owners.get(-1 - order[index]) for index in run} if is_free else {}
        if not {None, last}.issuperset(freed.values()):
            for index, owner in freed.items():
                labels[index] = owner


def _end_passes(order: Sequence[int], labels: list[int | None], outside: Set[int]) -> None:
    """Takes the first free of what was made outside, and all frees after it, from the layer that no other layer follows."""
    behind: int | None = None  # a request's layer, of the next one
    run: list[int] = []  # of frees before it
    for index in range(len(order) - 1, -1, -1):
        if order[index] < 0:
            run.append(index)
            continue
        frees = run[::-1] if behind is None and labels[index] is not None else []
        first = next((number for number, free in enumerate(frees) if -1 - order[free] in outside), len(frees))
        for free in frees[first:]:
            labels[free] = None
        behind, run = labels[index], []


# --- together


class _Ready(NamedTuple):
    """A segment as `compose` needs it. requests: size, module before and after the layer's number (None: it has none), operator.

    uses: of what is kept, with the number of the request. sums: over rows, with the number of their result.
    """

    requests: Sequence[tuple[Any, str, str | None, str]]
    uses: Sequence[tuple[int, str]]
    sums: Sequence[tuple[int, tuple[Any, Any, tuple[int, ...]]]]
    order: Sequence[int]
    others: Sequence[Address]
    outliving: Sequence[int]


def _ready(segment: Segment) -> _Ready:
    return _Ready(
        [(size, *_around_layer(module), operator) for size, module, operator, *_ in segment.requests],
        [(number, request.use) for number, request in enumerate(segment.requests) if request.use],
        [(number, request.summed) for number, request in enumerate(segment.requests) if request.summed],
        segment.order,
        segment.others,
        segment.outliving,
    )


def _around_layer(module: str) -> tuple[str, str | None]:
    before, number, after = module.partition(ANY_LAYER)
    return before, after if number else None


def compose(
    stages: Sequence[tuple[str, int]],
    kinds: Sequence[Hashable],
    segment_at: Callable[[Place], Segment],
    *,
    loaded: Sequence[tuple[Any, str, str]] = (),
    made_by: str = "",
) -> KeptTrace:
    """The run of layers of these kinds, after a stage that loads; KeyError from `segment_at` for a segment that is not known."""
    allocations: list[tuple[Any, str, str]] = [*loaded]
    order: list[int] = [*range(len(loaded))]
    kept: list[tuple[int, str]] = []
    sums: list[tuple[int, Any, Any, tuple[int, ...]]] = []
    begun: dict[tuple[int, int | None], tuple[int, Sequence[int]]] = {}  # first request and what outlives, by segment
    begins = [Stage(name="load", first_event=0)] if loaded else []
    begun |= {(LOADED, layer): (0, numbers) for layer, numbers in _by_layer(loaded).items()}
    ready: dict[Place, _Ready] = {}
    ends, part = ends_of(kinds, stages), -1
    pass_ends: dict[int, int] = {}  # the last layer of each part
    for stage, parts in stages:
        begins.append(Stage(name=stage, first_event=len(order)))
        layers = range(len(kinds))[:: -1 if stage == BACKWARD else 1]
        for number in range(parts):
            part += 1
            pass_ends[part] = layers[-1]
            for layer in layers if number % 2 else (None,):
                place = Place(part) if layer is None else Place(part, kinds[layer], ends[layer])
                if place not in ready:
                    ready[place] = _ready(segment_at(place))
                requests, uses, summed, entries, others, outliving = ready[place]
                begin = len(allocations)
                begun[part, layer] = (begin, outliving)
                targets = []
                for other in others:
                    end = pass_ends[other.part] if layer is None else layer
                    owner = None if other.layer is None else end + other.layer
                    start, left = begun[other.part, owner]
                    targets.append(
                        -1 - start - (other.number if owner is None and other.part != LOADED else left[other.number])
                    )
                name = "" if layer is None else str(layer)
                allocations += [
                    (size, before if after is None else f"{before}{name}{after}", operator)
                    for size, before, after, operator in requests
                ]
                kept += [(begin + index, use.replace(ANY_LAYER, name)) for index, use in uses]
                sums += [(begin + index, *of_rows) for index, of_rows in summed]
                following = begin
                for entry in entries:
                    if entry == 0:
                        order.append(following)
                        following += 1
                    else:
                        order.append(entry - begin if entry < 0 else targets[entry - 1])
    return KeptTrace(
        stages=tuple(begins),
        allocations=tuple(allocations),
        order=tuple(order),
        made_by=made_by,
        sums=tuple(sums),
        kept=tuple(kept),
    )


def apart(trace: KeptTrace) -> tuple[tuple[tuple[Any, str, str], ...], KeptTrace]:
    """What the trace's first stage loads, and the rest, which may free some of that."""
    begin = trace.stages[1].first_event
    stages = (Stage(name=stage.name, first_event=stage.first_event - begin) for stage in trace.stages[1:])
    return trace.allocations[:begin], replace(trace, stages=tuple(stages), order=trace.order[begin:], loaded=begin)


def deepen(shallow: KeptTrace, shallow_kinds: Sequence[Hashable], kinds: Sequence[Hashable]) -> KeptTrace:
    """The trace of a model with layers of these kinds, from that of one with fewer; UnsupportedError if it lacks some."""
    segments = cut(shallow, shallow_kinds)
    try:
        return compose(segments.stages, kinds, segments.by_place.__getitem__, made_by=shallow.made_by)
    except (KeyError, IndexError):
        raise UnsupportedError("trace_no_period") from None

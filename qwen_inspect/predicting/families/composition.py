"""Composes a deep model's training run from a shallow model's: each layer's events are those of a shallow layer like it.

A training run goes over the layers in passes: up in a forward, down in a backward, in lists of parameters, gradients or temporary
tensors in an optimizer. An allocation belongs to the layer whose module or parameter it is made for. A free belongs to the layer
that is running; outside of layers and in lists over several, to the layer of what is freed. What is freed is addressed by its
pass, its layer (relative to the freeing one, or absolute if only one layer is like it) and its number among that layer's
allocations of the same form in that pass.

Layers are alike if they and their neighbours are of the same kinds, and none of them is the first or last of its kind: the first
frees what all of its kind share. Where several layers of the shallow model are alike, their events must be equal.
UnsupportedError where a run is less regular than this.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import groupby, takewhile, zip_longest

from ...errors import UnsupportedError
from ...results.timeline import Stage
from ...standard import re
from ...values import dataclass
from ..allocation.uses import NORM
from ..traces.kept_trace import Coefficients, KeptTrace
from ..traces.optimizer_steps import OPTIMIZER

Allocation = tuple[Coefficients, str, str]  # size, module, operator
STACKED = OPTIMIZER, "aten.stack.default"
FEWEST_LAYERS = 4  # first, two alike, last

# A layer's kind between those of its neighbours, None beyond either end; whether it is the first and the last of its kind.
Surroundings = tuple[Hashable, Hashable, Hashable, bool, bool]


def shallow_layers(kinds: Sequence[Hashable]) -> int | None:
    """How many of a model's first layers stand for all of them; None if all are needed.

    They have every surroundings that occur, end as the model ends, and two of them are alike.
    """
    needed = set(surroundings_of(kinds))
    for layers in range(FEWEST_LAYERS, len(kinds)):
        present = Counter(surroundings_of(kinds[:layers]))
        if present.keys() == needed and max(present.values()) > 1:
            return layers
    return None


def surroundings_of(kinds: Sequence[Hashable]) -> list[Surroundings]:
    around = [None, *kinds, None]
    first = {kind: layer for layer, kind in reversed(list(enumerate(kinds)))}
    last = {kind: layer for layer, kind in enumerate(kinds)}
    return [
        (around[layer], kind, around[layer + 2], layer == first[kind], layer == last[kind])
        for layer, kind in enumerate(kinds)
    ]


def compose(shallow: KeptTrace, kinds: Sequence[Hashable], layers: int, stack: str) -> KeptTrace:
    """The trace of a model with layers of these kinds, from the trace of a model with the first `layers` of them.

    stack: the name of the module that has the layers, which are named by their numbers.
    """
    return composed_of(shallow, surroundings_of(kinds[:layers]), surroundings_of(kinds), stack)


def composed_of(shallow: KeptTrace, few: Sequence[Hashable], deep: Sequence[Hashable], stack: str) -> KeptTrace:
    """The same with each layer's surroundings: those of the shallow model's layers, and those of the deep one's."""
    if not set(deep) <= set(few):
        raise UnsupportedError("trace_no_period")
    return _Composition(shallow, few, deep, stack).composed()


@dataclass(frozen=True, slots=True)
class _Part:
    """Consecutive events of one layer, or of none, in a pass. number: of the pass. first, stop: indices of events."""

    number: int
    layer: int | None
    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class _Freed:
    """An allocation to free: its pass, its layer, its form, and its number among that layer's of this form there.

    layer: None outside of layers, relative to the layer that frees unless `absolute`.
    """

    number: int
    layer: int | None
    absolute: bool
    form: int
    ordinal: int


class _Composition:
    def __init__(self, shallow: KeptTrace, few: Sequence[Hashable], deep: Sequence[Hashable], stack: str) -> None:
        self.shallow = shallow
        self.numbered = re.compile(rf"(?<=^{re.escape(stack)}\.)\d+(?=\.|$)")
        self._alike: dict[Hashable, list[int]] = defaultdict(list)
        for layer, surroundings in enumerate(few):
            self._alike[surroundings].append(layer)
        self._source = [self._alike[surroundings][0] for surroundings in deep]
        count = Counter(self._source)
        # The layer that a shallow layer stands for, if that is one alone.
        self._only = {source: layer for layer, source in enumerate(self._source) if count[source] == 1}
        self.owners = dict(shallow.owners)
        layer_of = {
            module: self._layer(module) for module in {*self.owners.values(), *(row[1] for row in shallow.allocations)}
        }
        self._layer_of = [layer_of[self.owners.get(entry, row[1])] for entry, row in enumerate(shallow.allocations)]
        self._sums = {entry: (outputs, inputs, vector) for entry, outputs, inputs, vector in shallow.sums}
        self._buffers = dict(shallow.buffers)
        numbers: dict[object, int] = {}
        alike = {module: self.numbered.sub("", module) for module in layer_of}
        # A form: what allocations that differ in nothing but their layer have in common.
        self._form = [
            numbers.setdefault((size, alike[module], operator, self._sums.get(entry)), len(numbers))
            for entry, (size, module, operator) in enumerate(shallow.allocations)
        ]
        self._parts = list(self._divided())
        self._place: dict[int, tuple[int, int | None, int, int]] = {}  # pass, layer, form and number there
        # By pass and layer: the number among all its allocations there of each (form, number).
        self._numbers: dict[tuple[int, int | None], dict[tuple[int, int], int]] = {}
        for part in self._parts:
            of_form: Counter[int] = Counter()
            numbers_there = self._numbers[part.number, part.layer] = {}
            for entry in shallow.order[part.first : part.stop]:
                if entry >= 0:
                    form = self._form[entry]
                    numbers_there[form, of_form[form]] = len(numbers_there)
                    self._place[entry] = part.number, part.layer, form, of_form[form]
                    of_form[form] += 1

    def _layer(self, module: str) -> int | None:
        match = self.numbered.search(module)
        return int(match[0]) if match else None

    # --- the shallow run in parts

    def _labels(self) -> Iterator[list[int | None]]:
        """The layer of each event, stage by stage."""
        order, begins = self.shallow.order, [stage.first_event for stage in self.shallow.stages]
        for begin, end in zip(begins, [*begins[1:], len(order)], strict=True):
            labels: list[int | None] = []
            current: int | None = None
            for frees, group in groupby(order[begin:end], key=lambda entry: entry < 0):
                layers = [self._layer_of[-1 - entry if frees else entry] for entry in group]
                if frees and current is not None and self._are_near(layers, current):
                    layers = [current] * len(layers)
                labels += layers
                current = layers[-1]
            yield labels

    @staticmethod
    def _are_near(layers: Sequence[int | None], current: int) -> bool:
        return all(layer is None or abs(layer - current) <= 1 for layer in layers)

    def _divided(self) -> Iterator[_Part]:
        """The parts in order. Events outside of layers, between two layers of one pass, belong to the first of the two."""
        number, index = 0, 0
        for labels in self._labels():
            pending: _Part | None = None  # a layer's part, which may go on
            gap: _Part | None = None  # events outside of layers after it
            direction = 0
            for layer, events in groupby(labels):
                run = _Part(number, layer, index, index := index + len(list(events)))
                if layer is None:
                    gap = run
                    continue
                step = 0 if pending is None or pending.layer is None else layer - pending.layer
                if pending is not None and step * direction >= 0:  # the pass goes on
                    direction = direction or step
                    if step:
                        yield _Part(number, pending.layer, pending.first, run.first)
                    pending = _Part(number, layer, run.first if step else pending.first, run.stop)
                else:
                    for part in (pending, gap):
                        if part is not None:
                            yield _Part(number, part.layer, part.first, part.stop)
                            number += 1
                    pending, direction = _Part(number, layer, run.first, run.stop), 0
                gap = None
            for part in (pending, gap):
                if part is not None:
                    yield _Part(number, part.layer, part.first, part.stop)
                    number += 1

    # --- what stands for many layers

    def _shared(self) -> dict[tuple[int, int], list[int | _Freed]]:
        """By pass and shallow layer that stands for others, its events: allocations of the shallow run, and what is freed.

        UnsupportedError unless the events of layers that are alike are equal.
        """
        events_of = {(part.number, part.layer): self.shallow.order[part.first : part.stop] for part in self._parts}
        shared = {}
        for number in {part.number for part in self._parts}:
            for layers in self._alike.values():
                runs = [events_of.get((number, layer), ()) for layer in layers]
                if len({len(run) for run in runs}) > 1:
                    raise UnsupportedError("trace_no_period")
                if runs[0]:
                    shared[number, layers[0]] = [self._common(layers, entries) for entries in zip(*runs, strict=True)]
        return shared

    def _common(self, layers: Sequence[int], entries: Sequence[int]) -> int | _Freed:
        """One event of layers that are alike. entries: that of each layer, in the shallow run's order."""
        if entries[0] >= 0:
            if min(entries) < 0 or len({self._form[entry] for entry in entries}) > 1:
                raise UnsupportedError("trace_no_period")
            return entries[0]
        if max(entries) >= 0:
            raise UnsupportedError("trace_no_period")
        places = [self._place[-1 - entry] for entry in entries]
        number, owner, form, ordinal = places[0]
        if any(place[:1] + place[2:] != (number, form, ordinal) for place in places):
            raise UnsupportedError("trace_no_period")
        owners = {place[1] for place in places}
        steps = {None if place[1] is None else place[1] - layer for place, layer in zip(places, layers, strict=True)}
        if len(steps) == 1 and owner is not None and abs(owner - layers[0]) <= 1:
            return _Freed(number, owner - layers[0], False, form, ordinal)
        if len(owners) == 1:
            return self._outside(entries[0])
        raise UnsupportedError("trace_no_period")

    def _outside(self, entry: int) -> int | _Freed:
        """An event whose place does not depend on the layer."""
        if entry >= 0:
            return entry
        number, owner, form, ordinal = self._place[-1 - entry]
        if owner is not None and owner not in self._only:
            raise UnsupportedError("trace_no_period")
        return _Freed(number, None if owner is None else self._only[owner], True, form, ordinal)

    def numbers_at(self, number: int, owner: int | None) -> Mapping[tuple[int, int], int]:
        """The number of each (form, ordinal) among all allocations of the layer `owner` in this pass."""
        source = None if owner is None else self._source[owner]
        return self._numbers.get((number, source), {})

    # --- the deep run

    def composed(self) -> KeptTrace:
        shallow, shared, run = self.shallow, self._shared(), _Run(self)
        begins: dict[int, list[str]] = defaultdict(list)
        for stage in shallow.stages:
            begins[stage.first_event].append(stage.name)
        stages: list[Stage] = []
        for number, group in groupby(self._parts, key=lambda part: part.number):
            parts = list(group)
            stages += [Stage(name=name, first_event=len(run.order)) for name in begins.pop(parts[0].first, ())]
            if parts[0].layer is None:
                run.add(number, None, list(map(self._outside, shallow.order[parts[0].first : parts[0].stop])))
            for layer in self._layers([part.layer for part in parts if part.layer is not None]):
                run.add(number, layer, shared[number, self._source[layer]])
        stages += [Stage(name=name, first_event=len(run.order)) for names in begins.values() for name in names]
        uses = dict(shallow.kept)
        return KeptTrace(
            stages=tuple(stages),
            allocations=tuple(self._stacked(run.allocations, run.made)),
            order=tuple(run.order),
            made_by=shallow.made_by,
            sums=tuple((index, *self._sums[entry]) for index, entry in enumerate(run.made) if entry in self._sums),
            cast=shallow.cast,
            kept=tuple((index, uses[entry]) for index, entry in enumerate(run.made) if entry in uses),
            owners=tuple(run.owners),
            buffers=tuple(
                (index, self._buffers[entry]) for index, entry in enumerate(run.made) if entry in self._buffers
            ),
        )

    def _stacked(self, allocations: Sequence[Allocation], made: Sequence[int]) -> Iterator[Allocation]:
        """With as much for the norms of all gradients together, which clipping stacks, as the deep run has of them."""
        stacked: dict[int, Coefficients] = {}  # by number in the shallow run, whose own must be so large
        for number, allocation in enumerate(self.shallow.allocations):
            if allocation[1:] == STACKED:
                if (of_all := _of_norms(self.shallow.allocations, number)) != allocation[0]:
                    raise UnsupportedError("trace_no_period")
                stacked[number] = of_all
        for number, allocation in enumerate(allocations):
            is_stacked = made[number] in stacked
            yield (_of_norms(allocations, number), *STACKED) if is_stacked else allocation

    def _layers(self, passed: Sequence[int]) -> list[int]:
        """The layers that a pass goes over, in its order. passed: those of the shallow run."""
        layers = [layer for layer, source in enumerate(self._source) if source in passed]
        if len(passed) == 1 < len(layers):
            raise UnsupportedError("trace_no_period")  # in which order is unknown
        return layers[::-1] if len(passed) > 1 and passed[0] > passed[1] else layers


def _of_norms(allocations: Sequence[Allocation], number: int) -> Coefficients:
    """The size of all norms of gradients that are made directly before the allocation of this number."""
    before = (allocations[index] for index in range(number - 1, -1, -1))
    norms = takewhile(lambda allocation: allocation[1:] == (OPTIMIZER, NORM), before)
    return tuple(map(sum, zip_longest(*(size for size, *_ in norms), fillvalue=0)))


class _Run:
    """The deep run, as far as it is composed. made: the shallow run's allocation that each allocation is like."""

    def __init__(self, composition: _Composition) -> None:
        self._composition = composition
        self.allocations: list[tuple[tuple[int, ...], str, str]] = []
        self.made: list[int] = []
        self.order: list[int] = []
        self.owners: list[tuple[int, str]] = []
        self._begun: dict[tuple[int, int | None], int] = {}
        self._freed: set[int] = set()

    def add(self, number: int, layer: int | None, events: Sequence[int | _Freed]) -> None:
        """Adds a layer's part of a pass, or a part outside of layers."""
        composition = self._composition
        given, numbered = composition.shallow.allocations, composition.numbered
        self._begun[number, layer] = len(self.made)
        moved: dict[str, str] = {}  # modules, as they are named in this layer
        numbers: dict[tuple[int, int | None], Mapping[tuple[int, int], int]] = {}  # by pass and layer
        for event in events:
            if isinstance(event, int):
                size, module, operator = given[event]
                owner_of_it = composition.owners.get(event)
                for name in (module, owner_of_it):
                    if name is not None and name not in moved:
                        moved[name] = name if layer is None else numbered.sub(str(layer), name)
                if owner_of_it is not None:
                    self.owners.append((len(self.made), moved[owner_of_it]))
                self.order.append(len(self.made))
                self.made.append(event)
                self.allocations.append((size, moved[module], operator))
                continue
            owner = event.layer if event.absolute or event.layer is None else (layer or 0) + event.layer
            place = event.number, owner
            if place not in numbers:
                numbers[place] = composition.numbers_at(*place)
            begun, ordinal = self._begun.get(place), numbers[place].get((event.form, event.ordinal))
            if begun is None or ordinal is None or begun + ordinal >= len(self.made):
                raise UnsupportedError("trace_no_period")
            index = begun + ordinal
            if index in self._freed:
                raise UnsupportedError("trace_no_period")
            self._freed.add(index)
            self.order.append(-1 - index)

"""Learns the run of a family with images from samples: what repeats for each image and window, what frees what, and all sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import accumulate, combinations_with_replacement, product
from typing import Any

from benchmarks.learning import MODULUS
from benchmarks.repeats import Loop as Found
from benchmarks.repeats import NoPattern, loops, tokens_of
from qwen_inspect.predicting.families.family_trace import Variables
from qwen_inspect.predicting.families.image_numbers import PICTURES
from qwen_inspect.predicting.families.repeats import (
    PARTS,
    Group,
    Loop,
    Part,
    Place,
    Program,
    Size,
    Summed,
    Target,
    Token,
    loops_in_order,
    part_of,
)
from qwen_inspect.predicting.traces.kept_trace import KeptTrace

FACTORS = 3  # variables in a product, at most
SEARCHED = 12  # occurrences that a size is searched in; all check it
ONE = Place(False, 0, 0)
SHIFTS = (0, -1, 1, -2, 2)
# A backward goes over images and windows from the last to the first.
ITEMS = tuple(Place(from_end, -1 if from_end else 1, shift) for from_end in (False, True) for shift in SHIFTS[:3])
ENDS = tuple(Place(from_end, 0, shift) for from_end, shift in ((False, 0), (True, 0), (False, 1), (True, -1)))


@dataclass(frozen=True, slots=True)
class Sample:
    """A traced run without what is loaded, with its dimensions and the numbers of its images."""

    trace: KeptTrace
    dimensions: tuple[int, ...]
    numbers: Mapping[str, int]
    items: Mapping[str, Sequence[Mapping[str, int]]]

    @property
    def counts(self) -> dict[str, int]:
        return {axis: len(each) for axis, each in self.items.items()}


@dataclass(slots=True)
class Occurrence:
    """A token in a sample. turn, count: of its loop. size: of a request. freed: token, turn and count of what a free frees.

    outer, outers: of the loop's group, which has 0 outside of groups. freed_outer: turn and count of the group of what is freed.
    """

    sample: int
    turn: int
    count: int
    size: int = 0
    freed: tuple[int, int, int] | None = None
    outer: int = 0
    outers: int = 0
    freed_outer: tuple[int, int] = (0, 0)
    summed: tuple[int, int, int] | None = None  # outputs, inputs and vector of a sum over rows

    @property
    def driver(self) -> int:
        return self.outer if self.outers else self.turn


Shape = list[tuple[str, int, tuple[Any, ...]]]  # loops: axis, turns beyond its count, tokens


def shape_of(base: Sample, longer: Mapping[str, Sample]) -> Shape:
    """The loops of a run. longer: by axis, a run with more."""
    tokens = tokens_of(base.trace)
    sequences = base.counts.get("sequences", 1)
    found: list[Found] = sorted(
        (
            loop
            for axis, sample in longer.items()
            for loop in loops(
                axis,
                tokens,
                tokens_of(sample.trace),
                max(1, sample.counts[axis] - base.counts[axis]),
                sequences=sequences,
            )
        ),
        key=lambda loop: loop.begin,
    )
    shape: Shape = []
    at = 0
    for loop in _of_pictures(found):
        if loop.begin < at:
            raise NoPattern(f"loops overlap at {loop.begin}: {loop.block}")
        shape += [("", 0, (token,)) for token in tokens[at : loop.begin]]
        shape.append((loop.axis, loop.count - base.counts[loop.axis], loop.block))
        at = loop.stop
    return shape + [("", 0, (token,)) for token in tokens[at:]]


def _of_pictures(found: Sequence[Found]) -> Iterator[Found]:
    """The loops, of which one that goes over images and over frames is found twice."""
    axes: dict[tuple[int, int], set[str]] = defaultdict(set)
    for loop in found:
        axes[loop.begin, loop.stop].add(loop.axis)
    for loop in found:
        if axes[loop.begin, loop.stop] != {"images", "frames"}:
            yield loop
        elif loop.axis == "images":
            yield replace(loop, axis=PICTURES)


def grouped(shape: Shape, wider: Shape, sequences: int) -> tuple[Shape, list[Group]]:
    """The shape with what it has for each of so many sequences once. wider: of a run with one more."""
    whole: Shape = []
    groups: list[Group] = []
    at = 0
    for loop in loops("sequences", shape, wider, token_of=lambda entry: entry[2][0]):
        whole += shape[at : loop.begin]
        more = loop.count - sequences
        if all(not axis for axis, _, _ in loop.block):
            whole.append(("sequences", more, tuple(token for _, _, block in loop.block for token in block)))
        else:
            groups.append(Group(len(whole), len(whole) + len(loop.block), more))
            whole += loop.block
        at = loop.stop
    return whole + shape[at:], groups


def occurrences(shape: Shape, samples: Sequence[Sample], groups: Sequence[Group] = ()) -> list[list[Occurrence]]:
    """Of each token of the shape where it is in the samples; NoPattern for a sample of another shape."""
    found: list[list[Occurrence]] = [[] for _, _, block in shape for _ in block]
    firsts = [*accumulate((len(block) for _, _, block in shape), initial=0)]
    for number, sample in enumerate(samples):
        tokens, counts = tokens_of(sample.trace), sample.counts
        sums = {entry: (outputs[0], inputs[0], vectors[0]) for entry, outputs, inputs, vectors in sample.trace.sums}
        made: dict[int, tuple[tuple[int, int, int], tuple[int, int]]] = {}
        index = 0
        for loop, outer, outers in loops_in_order(len(shape), groups, counts):
            axis, more, block = shape[loop]
            count = counts[axis] + more if axis else 1
            for turn, (place, token) in product(range(count), enumerate(block, firsts[loop])):
                if index >= len(tokens) or tokens[index] != token:
                    seen = tokens[index] if index < len(tokens) else None
                    raise NoPattern(f"sample {number}, {counts}: {token}, not {seen}")
                entry = sample.trace.order[index]
                occurrence = Occurrence(number, turn, count, outer=outer, outers=outers)
                if entry >= 0:
                    made[entry] = (place, turn, count), (outer, outers or 1)
                    occurrence.size = sample.trace.allocations[entry][0][0]
                    occurrence.summed = sums.get(entry)
                else:
                    occurrence.freed, occurrence.freed_outer = made[-1 - entry]
                found[place].append(occurrence)
                index += 1
        if index < len(tokens):
            raise NoPattern(f"sample {number}, {counts}: {tokens[index]} beyond")
    return found


def split(many: Sequence[Occurrence], one: Any) -> tuple[tuple[Any, ...], str] | None:
    """What `one` finds for all turns of a loop, else for the first, the last or both and the others apart; else so in the first,
    the last or both and the other turns of its group apart.
    """
    groups = ["", *(f"{way}/" for way in PARTS if way)] if max(each.outers for each in many) > 1 else [""]
    for group, own in product(groups, PARTS if max(each.count for each in many) > 1 else [""]):
        way = group + own
        parts: dict[int, list[Occurrence]] = defaultdict(list)
        for each in many:
            parts[part_of(way, each.turn, each.count, each.outer, each.outers)].append(each)
        found = [one(parts[part]) if parts[part] else None for part in range(PARTS[group.strip("/")] * PARTS[own])]
        if all(each is not None for each in found):
            return tuple(found), way
    return None


def target_of(many: Sequence[Occurrence]) -> Target | None:
    tokens = {each.freed[0] for each in many if each.freed is not None}
    if len(tokens) != 1:
        return None
    freed = [each.freed for each in many if each.freed is not None]
    place = place_of((each.turn, turn, count) for each, (_, turn, count) in zip(many, freed, strict=True))
    outer = place_of((each.driver, *each.freed_outer) for each in many)
    return None if place is None or outer is None else Target(tokens.pop(), place, outer)


def place_of(places: Iterable[tuple[int, int, int]]) -> Place | None:
    """What gives a place among so many by the turn, each as (turn, place, number)."""
    of_all = set(places)
    for from_end, step, offset in product((False, True), (0, 1, -1), SHIFTS):
        if all((count - 1 if from_end else 0) + step * turn + offset == place for turn, place, count in of_all):
            return Place(from_end, step, offset)
    return None


@dataclass
class Sizes:
    """Finds sizes: products of variables and a number of the workload or of an image, and sums of two."""

    samples: Sequence[Sample]
    variables: Variables
    found: dict[str, dict[Size, None]]
    known: dict[Any, Size | None] = field(default_factory=dict)
    tables: dict[Any, list[dict[int, Part]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values = [self.variables.values(sample.dimensions) for sample in self.samples]
        follow = {relation.top[0] for relation in self.variables.relations if len(relation.top) == 1}
        constants = self.variables.constants
        self.free = [number for number, value in enumerate(constants) if value is None and number not in follow]

    def number(self, part: Part, each: Occurrence, axis: str) -> int | None:
        sample = self.samples[each.sample]
        if part.item is None:
            return sample.numbers.get(part.number)
        items = sample.items[axis]
        index = (len(items) - 1 if part.item.from_end else 0) + part.item.step * each.turn + part.item.offset
        return items[index][part.number] if 0 <= index < len(items) else None

    def value(self, part: Part, each: Occurrence, axis: str) -> int | None:
        total = self.number(part, each, axis)
        if total is None:
            return None
        for variable in part.variables:
            total *= self.values[each.sample][variable]
        return total

    def holds(self, size: Size, many: Iterable[Occurrence], axis: str) -> bool:
        for each in many:
            total = Fraction(0)
            for part in size:
                value = self.value(part, each, axis)
                if value is None:
                    return False
                total += Fraction(value * part.numerator, part.denominator)
            if total != each.size:
                return False
        return True

    def request(self, many: Sequence[Occurrence], axis: str, operator: str) -> tuple[Size, Summed | None] | None:
        """A request's size, and the sum over rows that it is the result of, if all of them are."""
        size = self.size(many, axis, operator)
        if size is None or all(each.summed is None for each in many):
            return None if size is None else (size, None)
        sums = [each.summed for each in many if each.summed is not None]
        if len(sums) < len(many) or len({vector for _, _, vector in sums}) > 1:
            return None
        outputs, inputs = (
            self.size([replace(each, size=summed[place]) for each, summed in zip(many, sums, strict=True)], axis, kind)
            for place, kind in enumerate(("outputs", "inputs"))
        )
        return None if outputs is None or inputs is None else (size, Summed(outputs, inputs, sums[0][2]))

    def size(self, many: Sequence[Occurrence], axis: str, operator: str) -> Size | None:
        axis = axis or "images"
        for size in self.found[axis + operator]:
            if self.holds(size, many, axis):
                return size
        key = axis, tuple((each.sample, each.turn, each.size) for each in many)
        if key not in self.known:
            self.known[key] = self._searched(many, axis)
        if (found := self.known[key]) is not None:
            self.found[axis + operator][found] = None
        return found

    def _searched(self, many: Sequence[Occurrence], axis: str) -> Size | None:
        some = many[:: max(1, len(many) // SEARCHED)]
        wanted = [each.size for each in some]
        candidates = list(self._numbers(some, axis))
        for factors in range(FACTORS + 1):
            table = self._table(some, axis, candidates, factors)
            if (part := table.get(_key(wanted))) is not None:
                value = self.value(part, some[0], axis)
                assert value is not None
                ratio = Fraction(wanted[0], value)
                product_of = part._replace(numerator=ratio.numerator, denominator=ratio.denominator)
                if self.holds((product_of,), many, axis):
                    return (product_of,)
            if factors < 2:
                for size in self._sums(some, axis, [*table.values()]):
                    if self.holds(size, many, axis):
                        return size
        return None

    def _numbers(self, some: Sequence[Occurrence], axis: str) -> Iterator[Part]:
        for name in self.samples[0].numbers:
            yield Part(1, 1, (), name, None)
        looped = max(each.count for each in some) > 1
        names = next(each.items[axis][0] for each in self.samples if each.items[axis])
        for place, name in product(ITEMS if looped else ENDS, names):
            yield Part(1, 1, (), name, place)

    def _table(
        self, some: Sequence[Occurrence], axis: str, candidates: Sequence[Part], factors: int
    ) -> dict[int, Part]:
        """By their ratios, the products with so many variables; those of fewer are before them."""
        key = axis, tuple((each.sample, each.turn) for each in some)
        tables = self.tables.setdefault(key, [])
        while len(tables) <= factors:
            table: dict[int, Part] = {}
            for part in candidates:
                base = [self.number(part, each, axis) for each in some]
                if not all(base):
                    continue
                for chosen in combinations_with_replacement(self.free, len(tables)):
                    values = [int(value or 0) for value in base]
                    for variable in chosen:
                        values = [
                            value * self.values[each.sample][variable] for value, each in zip(values, some, strict=True)
                        ]
                    table.setdefault(_key(values), part._replace(variables=chosen))
            tables.append(table)
        return tables[factors]

    def _sums(self, some: Sequence[Occurrence], axis: str, parts: Sequence[Part]) -> Iterator[Size]:
        """Two products of small fractions."""
        import numpy

        wanted = numpy.array([each.size for each in some], dtype=float)
        columns = numpy.array([[float(self.value(part, each, axis) or 0) for each in some] for part in parts])
        for first in range(len(parts)):
            for second in range(first):
                if parts[first].variables != parts[second].variables:
                    continue
                matrix = columns[[first, second]].T
                solved, *_ = numpy.linalg.lstsq(matrix, wanted, rcond=None)
                if numpy.abs(matrix @ solved - wanted).max() < 1e-6 * max(1.0, wanted.max()):
                    size = []
                    for index, value in zip((first, second), solved, strict=True):
                        fraction = Fraction(float(value)).limit_denominator(64)
                        if fraction:
                            size.append(
                                parts[index]._replace(numerator=fraction.numerator, denominator=fraction.denominator)
                            )
                    yield tuple(size)


def _key(values: Sequence[int]) -> int:
    inverse = pow(values[0], -1, MODULUS)
    key = 0
    for value in values[1:]:
        key = (key * 1_000_003 + value * inverse) % MODULUS
    return key


def learn(
    base: Sample,
    longer: Mapping[str, Sample],
    samples: Sequence[Sample],
    variables: Variables,
    known: dict[str, dict[Size, None]],
    wider: tuple[Sample, Mapping[str, Sample]] | None = None,
) -> Program:
    """NoPattern if a sample does something else, or a size is not found. known: sizes of other runs, by axis and operator, which
    are tried first; those of this one are added. wider: `base` and `longer` with one sequence more, of sequences with several
    images.
    """
    shape, groups = shape_of(base, longer), list[Group]()
    samples = [*samples, base, *longer.values()]
    if wider is not None:
        shape, groups = grouped(shape, shape_of(*wider), base.counts["sequences"])
        samples += [wider[0], *wider[1].values()]
    places = iter(occurrences(shape, samples, groups))
    inside = {number for group in groups for number in range(group.first, group.stop)}
    sizes = Sizes(samples, variables, known)
    made: list[Loop] = []
    stages: list[tuple[str, int]] = []
    for axis, more, block in shape:
        if block[0][-1]:
            stages.append((block[0][-1], len(made)))
        if any(token[-1] for token in block[1:]) or ((axis or len(made) in inside) and block[0][-1]):
            raise NoPattern("a stage begins within a loop")
        tokens = []
        for is_request, module, operator, use, _ in block:
            many = next(places)
            if not is_request:
                if (found := split(many, target_of)) is None:
                    raise NoPattern(
                        f"frees {module}, {operator}: {[(each.turn, each.count, each.freed) for each in many][:30]}"
                    )
                tokens.append(Token(*found))
                continue
            found = split(many, lambda part, axis=axis, operator=operator: sizes.request(part, axis, operator))
            if found is None:
                seen = [(each.sample, each.turn, each.size, each.summed) for each in many]
                raise NoPattern(f"{axis} {module}, {operator}: {seen[:30]}")
            turns, sums = zip(*found[0], strict=True)
            if len({each is None for each in sums}) > 1:
                raise NoPattern(f"{axis} {module}, {operator}: sums of some turns alone")
            tokens.append(Token(turns, found[1], module, operator, use, sums if sums[0] is not None else ()))
        made.append(Loop(axis, more, tuple(tokens)))
    fewest = {axis: min(sample.counts[axis] for sample in samples) for axis in base.counts}
    return Program(tuple(stages), tuple(made), fewest, tuple(groups))

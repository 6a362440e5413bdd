"""Learns a family's trace from traces of sample configurations: its segments, with sizes as formulas of dimensions and workload.

Needs the torch extra. A formula is found by search, and must give the bytes of every sample exactly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, combinations_with_replacement, count
from math import prod
from typing import Any, NamedTuple

from qwen_inspect.predicting.families.family_trace import (
    BASIS,
    LENGTHS,
    Formula,
    NotCovered,
    Regime,
    Term,
    Variables,
    coefficients,
    dimensions_of,
)
from qwen_inspect.predicting.traces.kept_trace import ALIGNMENTS, ChunkedPoint, KeptTrace, Point, Vectors, alignment
from qwen_inspect.predicting.traces.outline import WHOLE_CHUNKS, Outline, Part
from qwen_inspect.predicting.traces.segments import Place, Request, Segment, cut

MODULUS = (1 << 61) - 1
MOST_FACTORS = 4  # of a size, besides constants and the workload
FEWEST = 8  # samples that a formula must hold for
FEWEST_AGAIN = 3  # samples of another regime that a formula must hold for
SEARCHED = 14  # samples that a formula is searched in; the others check it


@dataclass(frozen=True, slots=True)
class Sample:
    """A traced configuration. trace: without what is loaded, sizes in bytes."""

    outline: Outline
    point: Point
    trace: KeptTrace


class NotLearnt(Exception):
    """Samples that do different things, or whose sizes no formula gives."""


class Condition(NamedTuple):
    """What sizes may depend on: dimensions, and the workload's monomials."""

    dimensions: tuple[int, ...]
    workload: tuple[int, ...]


Sizes = dict[Condition, tuple[int, ...]]  # of the requests of a segment


def learn(
    samples: Mapping[str, Sequence[Sample]], *, aligned: int = 1
) -> tuple[dict[str, Regime], dict[str, Variables]]:
    """The regimes of a variant, from samples of each, and the variables of each kind of layer, "" for what is outside of them.

    aligned: beyond which dimensions' divisors do not matter. NotLearnt if samples of a regime do not do the same, or no formula
    gives a size.
    """
    by_number = sorted(samples.items(), key=lambda item: -len(item[1]))
    skeletons = {name: _skeleton(name, many) for name, many in by_number}
    conditions: dict[str, dict[Condition, None]] = defaultdict(dict)
    for _, segments in skeletons.values():
        for place, (_, sizes) in segments.items():
            conditions[_kind(place)].update(dict.fromkeys(sizes))
    searches = {kind: _Search([*many], aligned) for kind, many in conditions.items()}
    regimes = {
        name: Regime(
            stages,
            {
                place: _with_formulas(place, segment, sizes, searches[_kind(place)])
                for place, (segment, sizes) in segments.items()
            },
        )
        for name, (stages, segments) in skeletons.items()
    }
    return regimes, {kind: search.variables for kind, search in searches.items()}


def _kind(place: Place) -> str:
    return str(place.kind or "")


def _skeleton(
    name: str, samples: Sequence[Sample]
) -> tuple[tuple[tuple[str, int], ...], dict[Place, tuple[Segment, Sizes]]]:
    """The stages that all samples have, and by place the segment without sizes, and these."""
    stages = set()
    segments: dict[Place, tuple[Segment, Sizes]] = {}
    vectors: dict[Place, dict[int, dict[int, set[int]]]] = defaultdict(lambda: defaultdict(dict))
    for sample in samples:
        apart = cut(sample.trace, sample.outline.layers)
        stages.add(apart.stages)
        for place, segment in apart.by_place.items():
            part = place.kind if isinstance(place.kind, Part) else None
            at = Place(place.part, part.structure if part else None, place.ends)
            skeleton = Segment(
                tuple([_without_sizes(request) for request in segment.requests]), segment.order, segment.others
            )
            before, sizes = segments.setdefault(at, (skeleton, {}))
            if before != skeleton:
                raise NotLearnt(f"{name} {sample.point}: {_difference(at, before, skeleton)}")
            workload = ChunkedPoint.of(sample.point, sample.outline.chunk_tokens).monomials
            condition = Condition(dimensions_of(sample.outline, part), workload)
            made = tuple([size for request in segment.requests for size in _sizes(request)])
            if sizes.setdefault(condition, made) != made:
                raise NotLearnt(f"{name}, {at}: other sizes for {condition}")
            for number, request in enumerate(segment.requests):
                if request.summed is not None:
                    index = alignment(sample.point)
                    vectors[at][number].setdefault(index, set()).add(request.summed[2][index])
    if len(stages) != 1:
        raise NotLearnt(f"{name}: stages {stages}")
    whole = WHOLE_CHUNKS in name
    return stages.pop(), {
        at: (_with_vectors(segment, vectors[at], whole=whole), sizes) for at, (segment, sizes) in segments.items()
    }


def _with_vectors(segment: Segment, vectors: Mapping[int, Mapping[int, set[int]]], *, whole: bool) -> Segment:
    requests = [
        request
        if number not in vectors
        else request._replace(summed=(None, None, _vectors(request, vectors[number], whole=whole)))
        for number, request in enumerate(segment.requests)
    ]
    return Segment(tuple(requests), segment.order, segment.others)


def _vectors(request: Request, known: Mapping[int, set[int]], *, whole: bool) -> Vectors:
    """Of each alignment how many numbers a sum loads at a time; more of a better one. NotLearnt if some are not known.

    whole: all prompts of the regime have whole chunks, and with them the best alignment.
    """
    if all(len(of_one) == 1 for of_one in known.values()):
        if whole and known.keys() == {len(ALIGNMENTS) - 1}:
            return tuple(known[len(ALIGNMENTS) - 1]) * len(ALIGNMENTS)
        of_any = {index: next(iter(of_one)) for index, of_one in known.items()}
        at_least = [max((of_any[i] for i in of_any if i <= index), default=1) for index in range(len(ALIGNMENTS))]
        at_most = [
            min((of_any[i] for i in of_any if i >= index), default=ALIGNMENTS[-1]) for index in range(len(ALIGNMENTS))
        ]
        if at_least == at_most:
            return tuple(at_least)
    raise NotLearnt(f"{request.module}, {request.operator}: vectors {known}")


def _without_sizes(request: Request) -> Request:
    return request._replace(size=None, summed=request.summed and (None, None, ()))


def _sizes(request: Request) -> Iterator[int]:
    """Its bytes, and of a sum over rows the outputs and the inputs."""
    yield request.size[0]
    for (size,) in (request.summed or ())[:2]:
        yield size


def _with_formulas(place: Place, segment: Segment, sizes: Sizes, search: _Search) -> Segment:
    requests: list[Request] = []
    if segment.requests and len(sizes) < FEWEST_AGAIN:
        raise NotLearnt(f"{place}: {len(sizes)} samples")
    number = count()

    def formula(request: Request) -> Formula:
        column = next(number)
        wanted = {condition: made[column] for condition, made in sizes.items()}
        if (formula := search.formula(wanted, (request.module, request.operator))) is None:
            few = [(size, condition) for condition, size in wanted.items()][:4]
            raise NotLearnt(f"part {place.part}, {request.module}, {request.operator}: {few}")
        return formula

    for request in segment.requests:
        size, summed = formula(request), request.summed
        summed = summed and (formula(request), formula(request), summed[2])
        requests.append(request._replace(size=size, summed=summed))
    return Segment(tuple(requests), segment.order, segment.others)


def _difference(place: Place, first: Segment, second: Segment) -> str:
    for number, (one, other) in enumerate(zip(first.requests, second.requests, strict=False)):
        if one != other:
            return f"{place}: request {number}: {one} and {other}"
    return f"{place}: {len(first.order)} and {len(second.order)} events; {first.others}, {second.others}"


class _Search:
    """Finds formulas for the sizes of one kind of layer, or of what is outside of the layers."""

    def __init__(self, conditions: Sequence[Condition], aligned: int) -> None:
        conditions = list(dict.fromkeys(conditions))
        self.variables = Variables.of_samples([condition.dimensions for condition in conditions], alignment=aligned)
        self._values = {condition: self.variables.values(condition.dimensions) for condition in conditions}
        # Products stay: a chain of them may have too many factors.
        follow = {relation.top[0] for relation in self.variables.relations if len(relation.top) == 1}
        self._free = [
            number
            for number, constant in enumerate(self.variables.constants)
            if constant is None and number not in follow
        ]
        self._found: dict[Any, Formula | None] = {}
        self._of: dict[tuple[str, str], list[Formula]] = defaultdict(list)
        self._tables: dict[tuple[Condition, ...], list[dict[int, Term]]] = {}

    def formula(self, sizes: Mapping[Condition, int], made_by: tuple[str, str]) -> Formula | None:
        """A formula of another size, if it is right, those of the same module and operator first; else a new one."""
        known = self._of[made_by]
        others = (formula for formula in self._found.values() if formula is not None)
        for formula in chain(known, others if len(sizes) < FEWEST else ()):
            if self._is_right(formula, sizes):
                return formula
        key = tuple(sizes.items())
        if key not in self._found:
            self._found[key] = self._search(sizes) if len(sizes) >= FEWEST else _constant(sizes)
        if (found := self._found[key]) is not None:
            known.append(found)
        return found

    def _search(self, sizes: Mapping[Condition, int]) -> Formula | None:
        searched = tuple(sizes)[:: max(1, len(sizes) // SEARCHED)]
        candidates = chain(self._products(searched, sizes), self._sums(searched, sizes))
        return next((formula for formula in candidates if self._is_right(formula, sizes)), None)

    def _is_right(self, formula: Formula, sizes: Mapping[Condition, int]) -> bool:
        try:
            return all(
                sum(map(int.__mul__, coefficients(formula, self._values[condition]), condition.workload)) == size
                for condition, size in sizes.items()
            )
        except NotCovered:  # a part of a byte
            return False

    def _products(self, searched: tuple[Condition, ...], sizes: Mapping[Condition, int]) -> Iterator[Formula]:
        """Formulas of one term, those of few variables first."""
        wanted = [sizes[condition] for condition in searched]
        if 0 in wanted:
            return
        key = _key([size % MODULUS for size in wanted])
        for table in self._products_of(searched):
            if key in table:
                term = table[key]
                of_one = self._value(term, searched[0])
                factor = Fraction(wanted[0]) / of_one
                yield (term._replace(numerator=factor.numerator, denominator=factor.denominator),)

    def _products_of(self, searched: tuple[Condition, ...]) -> Iterator[dict[int, Term]]:
        """By the sizes' ratios, the terms of 0, 1, 2, ... variables."""
        tables = self._tables.setdefault(searched, [])
        for factors in range(MOST_FACTORS + 1):
            if factors == len(tables):
                columns = {n: [self._values[condition][n] for condition in searched] for n in self._free}
                workloads = [
                    [sum(map(int.__mul__, row, condition.workload)) for condition in searched] for row in BASIS
                ]
                table: dict[int, Term] = {}
                for basis, workload in enumerate(workloads):
                    for chosen in combinations_with_replacement(self._free, factors):
                        values = workload
                        for number in chosen:
                            values = [value * size for value, size in zip(values, columns[number], strict=True)]
                        if all(values):
                            table.setdefault(_key(values), Term(1, 1, chosen, basis))
                tables.append(table)
            yield tables[factors]

    def _value(self, term: Term, condition: Condition) -> int:
        row = sum(map(int.__mul__, BASIS[term.basis], condition.workload))
        return row * prod(self._values[condition][number] for number in term.variables)

    def _sums(self, searched: tuple[Condition, ...], sizes: Mapping[Condition, int]) -> Iterator[Formula]:
        """Formulas of a product times a sum of two variables or lengths and a constant."""
        import numpy

        wanted = numpy.array([sizes[condition] for condition in searched], dtype=float)
        lengths = [Term(1, 1, (), basis) for basis in (1, 2, LENGTHS - 1)]
        linear = [Term(1, 1, (number,), 0) for number in self._free] + lengths
        values = [numpy.array([self._value(term, condition) for condition in searched], dtype=float) for term in linear]
        for table in [*self._products_of(searched)][:3]:
            factors = list(table.values())
            if not factors:
                continue
            of_factors = numpy.array([[self._value(term, one) for one in searched] for term in factors], dtype=float)
            quotients = wanted / of_factors
            for first in range(len(linear)):
                for second in range(first + 1):
                    columns = [values[first], numpy.ones_like(wanted)]
                    if second < first:
                        columns.append(values[second])
                    matrix = numpy.stack(columns, axis=1)
                    solved = quotients @ numpy.linalg.pinv(matrix).T
                    wrong = numpy.abs(solved @ matrix.T - quotients).max(axis=1)
                    for index in numpy.flatnonzero(wrong < 1e-7 * numpy.abs(quotients).max(axis=1)):
                        terms = (linear[first], Term(1, 1, (), 0), linear[second])
                        formula = []
                        for part, value in zip(terms, solved[index], strict=False):
                            fraction = Fraction(float(value)).limit_denominator(64)
                            if fraction and (term := _product(factors[index], part)) is not None:
                                formula.append(
                                    term._replace(numerator=fraction.numerator, denominator=fraction.denominator)
                                )
                        yield tuple(formula)


def _constant(sizes: Mapping[Condition, int]) -> Formula | None:
    size, *others = set(sizes.values())
    return (Term(size, 1, (), 0),) if size and not others else None


def _product(factor: Term, part: Term) -> Term | None:
    """None for a product of two lengths that is no function of the workload here."""
    variables = tuple(sorted(factor.variables + part.variables))
    if part.basis == 0:
        return Term(1, 1, variables, factor.basis)
    if factor.basis in (0, LENGTHS):
        return Term(1, 1, variables, factor.basis + part.basis)
    if factor.basis in (1, LENGTHS + 1) and part.basis == 1:  # T times T
        return Term(1, 1, variables, factor.basis + 2)
    return None


def _key(values: Sequence[int]) -> int:
    """Equal for vectors that differ by a factor, and for no others in practice."""
    inverse = pow(values[0], -1, MODULUS)
    key = 0
    for value in values[1:]:
        key = (key * 1_000_003 + value * inverse) % MODULUS
    return key

"""A family's trace: segments with formulas of a design's dimensions for sizes, from which any configuration's run is composed.

A variant is a set of kinds of layers, what is around them, a kernel and the options of the class. A design with a structure, an
option or a relation between dimensions that no sample had is not covered.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from functools import lru_cache
from itertools import chain, combinations_with_replacement, product
from math import gcd, prod
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import MalformedError
from ..spec import Module, each_buffer, each_tensor
from ..values import dataclass
from .kept_trace import CHUNKS, LARGEST_BYTES, Coefficients, KeptTrace, Point
from .on_device import BUFFER, PARAMETER
from .outline import Outline, Part, regime_of
from .segments import Address, Place, Request, Segment, compose

# Functions of a workload's lengths in which sizes are linear: coefficients of 1, T, T², S and the chunks, for prompts of T tokens
# and S tokens at the end. Each is there for one sequence, then for the whole batch.
_OF_LENGTHS = (
    (1, 0, 0, 0, 0),
    (0, 1, 0, 0, 0),
    (0, 0, 0, 1, 0),
    (0, 0, 1, 0, 0),
    (-1, 0, 0, 1, 0),
    (1, 0, 0, 1, 0),
    (1, 1, 0, 0, 0),
    (0, 0, 0, 0, 1),
)
LENGTHS = len(_OF_LENGTHS)
BASIS: tuple[Coefficients, ...] = tuple(
    (0, 0, 0, 0, *lengths[:4], 0, lengths[4]) if batch else (*lengths[:4], 0, 0, 0, 0, lengths[4], 0)
    for batch, lengths in product((False, True), _OF_LENGTHS)
)


class Term(NamedTuple):
    """A fraction times variables times a function of the workload."""

    numerator: int
    denominator: int
    variables: tuple[int, ...]
    basis: int


Formula = tuple[Term, ...]  # a sum


class NotCovered(Exception):
    """A design or a workload that a family's trace does not cover."""


class Relation(NamedTuple):
    """The product of the variables `top` is so many times that of `bottom` in every sample."""

    top: tuple[int, ...]
    bottom: tuple[int, ...]
    numerator: int
    denominator: int

    def holds(self, values: Sequence[int]) -> bool:
        top, bottom = (prod([values[variable] for variable in variables]) for variables in (self.top, self.bottom))
        return top * self.denominator == bottom * self.numerator


@dataclass(frozen=True, slots=True)
class Variables:
    """Which dimensions are equal in every sample, and so are one variable. of: of each dimension its variable. constants: of each
    variable its value, if that was the same in every sample. relations: in which samples could not tell one from others.
    """

    of: tuple[int, ...]
    constants: tuple[int | None, ...]
    relations: tuple[Relation, ...] = ()

    @staticmethod
    def of_samples(samples: Sequence[Sequence[int]]) -> Variables:
        numbers: dict[tuple[int, ...], int] = {}
        of = tuple(numbers.setdefault(column, len(numbers)) for column in zip(*samples, strict=True))
        constants = tuple(column[0] if len(set(column)) == 1 else None for column in numbers)
        return Variables(of, constants, tuple(_relations([*numbers], constants)))

    def values(self, dimensions: Sequence[int]) -> tuple[int, ...]:
        """The variables' values; NotCovered for dimensions that differ where no sample's did, are 0 or 1 where none was, or are
        not related as all samples' were.
        """
        if len(dimensions) != len(self.of):
            raise NotCovered
        values = dict(zip(self.of, dimensions, strict=True))
        if any(values[variable] != size for variable, size in zip(self.of, dimensions, strict=True)):
            raise NotCovered
        for variable, constant in enumerate(self.constants):
            if values[variable] < 2 if constant is None else values[variable] != constant:
                raise NotCovered
        of_all = tuple(values[variable] for variable in range(len(self.constants)))
        if not all(relation.holds(of_all) for relation in self.relations):
            raise NotCovered
        return of_all


def _relations(columns: Sequence[Sequence[int]], constants: Sequence[int | None]) -> Iterator[Relation]:
    """Variables that are always so many times another, or whose product is so many times another."""
    apart: list[int] = []  # no two of which are so
    for variable, constant in enumerate(constants):
        if constant is not None:
            continue
        for other in apart:
            if relation := _relation(columns, (variable,), (other,)):
                yield relation
                break
        else:
            apart.append(variable)
    for bottom in apart:
        for top in combinations_with_replacement([variable for variable in apart if variable != bottom], 2):
            if relation := _relation(columns, top, (bottom,)):
                yield relation


def _relation(columns: Sequence[Sequence[int]], top: tuple[int, ...], bottom: tuple[int, ...]) -> Relation | None:
    samples = zip(*(columns[variable] for variable in (*top, *bottom)), strict=True)
    products = ((prod(sample[: len(top)]), prod(sample[len(top) :])) for sample in samples)
    first_top, first_bottom = next(products)
    if any(above * first_bottom != below * first_top for above, below in products):
        return None
    divisor = gcd(first_top, first_bottom)
    return Relation(top, bottom, first_top // divisor, first_bottom // divisor)


def coefficients(formula: Formula, values: Sequence[int]) -> Coefficients:
    """The polynomial of `Point.monomials`, or of `ChunkedPoint.monomials`, for these values; NotCovered for a part of a byte."""
    total = [0] * len(BASIS[0])
    for numerator, denominator, variables, basis in formula:
        factor, rest = divmod(numerator * prod([values[variable] for variable in variables]), denominator)
        if rest:
            raise NotCovered
        for index, coefficient in enumerate(BASIS[basis]):
            total[index] += factor * coefficient
    return tuple(total) if any(total[CHUNKS:]) else tuple(total[:CHUNKS])


def dimensions_of(outline: Outline, part: Part | None) -> tuple[int, ...]:
    """What a segment's sizes may depend on: dimensions outside of the layers, and the layer's, or a layer's of each kind."""
    if part is not None:
        return (*outline.outside.dimensions, *part.dimensions)
    firsts = {layer.structure: layer.dimensions for layer in reversed(outline.layers)}
    return (*outline.outside.dimensions, *chain.from_iterable(firsts[kind] for kind in sorted(firsts)))


@dataclass(frozen=True, slots=True)
class Regime:
    """Stages with their numbers of parts, and segments with formulas for sizes."""

    stages: tuple[tuple[str, int], ...]
    segments: Mapping[Place, Segment]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """kinds: of layers, in order of their names. variables: of each kind, "" for what is outside. regimes: by `regime_of`, whose
    argument is `singles`. least_tokens: of a sample's prompt.
    """

    kernel: str
    options: Mapping[str, Any]
    outside: str
    kinds: tuple[str, ...]
    variables: Mapping[str, Variables]
    regimes: Mapping[str, Regime]
    singles: int = 0
    least_tokens: int = 1

    def at(self, outline: Outline, point: Point, tree: Module) -> KeptTrace:
        """The run of a design with the structure of this variant, for workloads of the same regime as this one."""
        if point.prompt_tokens < self.least_tokens:
            raise NotCovered
        regime = self.regimes.get(regime_of(outline.thresholds, point, singles=self.singles))
        if regime is None:
            raise NotCovered
        values: dict[Part | None, tuple[int, ...]] = {}
        sizes: dict[tuple[Part | None, Formula], Coefficients] = {}
        for part in (None, *dict.fromkeys(outline.layers)):
            variables = self.variables["" if part is None else part.structure]
            values[part] = variables.values(dimensions_of(outline, part))

        def segment_at(place: Place) -> Segment:
            part = place.kind if isinstance(place.kind, Part) else None
            segment = regime.segments[place._replace(kind=part and part.structure)]
            requests = []
            for request in segment.requests:
                key = part, request.size
                if key not in sizes:
                    sizes[key] = coefficients(request.size, values[part])
                requests.append(request._replace(size=sizes[key]))
            return Segment(tuple(requests), segment.order, segment.others)

        try:
            return compose(regime.stages, outline.layers, segment_at, loaded=tuple(_loaded(tree)))
        except KeyError:
            raise NotCovered from None


def _loaded(tree: Module) -> Iterable[tuple[Coefficients, str, str]]:
    """What is loaded, in the order of a trace: parameters, then buffers, as polynomials."""
    for operator, tensors in ((PARAMETER, each_tensor(tree)), (BUFFER, each_buffer(tree))):
        for tensor in tensors:
            if tensor.size_bytes:
                module = tensor.name.rpartition(".")[0] or tree.class_name
                yield (tensor.size_bytes, *[0] * (CHUNKS - 1)), module, operator


class Composed(NamedTuple):
    """A run with sizes for all workloads of its regime. everywhere: whether all workloads are of this regime."""

    trace: KeptTrace
    everywhere: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyTrace:
    """defaults: of the options that a design does not show, each one's value in the class."""

    made_by: str
    defaults: Mapping[str, Any]
    variants: tuple[Variant, ...]

    def variants_for(self, outline: Outline, kernel: str, options: Mapping[str, Any]) -> Iterable[Variant]:
        kinds = tuple(sorted({layer.structure for layer in outline.layers}))
        if options.get("_attn_implementation") == kernel:
            options = {key: value for key, value in options.items() if key != "_attn_implementation"}
        for variant in self.variants:
            same = variant.kernel == kernel and variant.outside == outline.outside.structure and variant.kinds == kinds
            if same and variant.options == options:
                yield variant

    def at(
        self, outline: Outline, kernel: str, options: Mapping[str, Any], point: Point, tree: Module
    ) -> Composed | None:
        """The run of a design; None if it is not covered."""
        for variant in self.variants_for(outline, kernel, options):
            try:
                trace = variant.at(outline, point, tree)
            except NotCovered:
                continue
            return Composed(
                replace(trace, made_by=self.made_by), everywhere=len(variant.regimes) == 1 and not outline.thresholds
            )
        return None


# --- as a file


def dump(family: FamilyTrace) -> bytes:
    """As gzipped JSON; equal traces give equal bytes."""
    tables: list[dict[Any, int]] = [{} for _ in range(6)]
    modules, operators, formulas, requests, segments, variables = tables

    def number(table: dict[Any, int], value: Any) -> int:
        return table.setdefault(value, len(table))

    def request_row(request: Request) -> int:
        row = (number(formulas, request.size), number(modules, request.module), number(operators, request.operator))
        return number(requests, (*row, request.use))

    def segment_row(segment: Segment) -> int:
        others = tuple((*other,) for other in segment.others)
        return number(segments, (tuple(map(request_row, segment.requests)), segment.order, others))

    variants = [
        {
            "kernel": variant.kernel,
            "options": variant.options,
            "outside": variant.outside,
            "kinds": variant.kinds,
            "singles": variant.singles,
            "least_tokens": variant.least_tokens,
            "variables": [number(variables, astuple(variant.variables[kind])) for kind in ("", *variant.kinds)],
            "regimes": {
                name: [
                    regime.stages,
                    [
                        (
                            place.part,
                            -1 if place.kind is None else variant.kinds.index(place.kind),
                            int(place.first),
                            segment_row(segment),
                        )
                        for place, segment in regime.segments.items()
                    ],
                ]
                for name, regime in variant.regimes.items()
            },
        }
        for variant in family.variants
    ]
    content = {
        "version": 1,
        "made_by": family.made_by,
        "defaults": family.defaults,
        "modules": list(modules),
        "operators": list(operators),
        "formulas": list(formulas),
        "requests": list(requests),
        "segments": list(segments),
        "variables": list(variables),
        "variants": variants,
    }
    return gzip.compress(json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode(), mtime=0)


def load(content: bytes, *, file: str) -> FamilyTrace:
    """Reads what `dump` wrote; MalformedError for anything else."""
    try:
        with gzip.open(io.BytesIO(content)) as stream:
            kept = json.loads(stream.read(LARGEST_BYTES))
        if kept["version"] != 1:
            raise ValueError(file)
        modules, operators = kept["modules"], kept["operators"]
        formulas = [
            tuple(Term(top, bottom, tuple(chosen), basis) for top, bottom, chosen, basis in formula)
            for formula in kept["formulas"]
        ]
        requests = [
            Request(formulas[size], modules[module], operators[operator], use)
            for size, module, operator, use in kept["requests"]
        ]
        segments = [
            Segment(tuple([requests[row] for row in rows]), tuple(order), tuple([Address(*other) for other in others]))
            for rows, order, others in kept["segments"]
        ]
        variables = [
            Variables(
                tuple(of),
                tuple(constants),
                tuple([Relation(tuple(top), tuple(bottom), *factor) for top, bottom, *factor in relations]),
            )
            for of, constants, relations in kept["variables"]
        ]
        variants = tuple(_variant(entry, segments, variables) for entry in kept["variants"])
        return FamilyTrace(made_by=kept["made_by"], defaults=kept["defaults"], variants=variants)
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError):
        raise MalformedError("trace_file", file=file) from None


def _variant(entry: Mapping[str, Any], segments: Sequence[Segment], variables: Sequence[Variables]) -> Variant:
    kinds = tuple(entry["kinds"])
    names = (None, *kinds)
    return Variant(
        kernel=entry["kernel"],
        options=entry["options"],
        outside=entry["outside"],
        kinds=kinds,
        singles=entry["singles"],
        least_tokens=entry["least_tokens"],
        variables={kind or "": variables[row] for kind, row in zip(names, entry["variables"], strict=True)},
        regimes={
            name: Regime(
                tuple((stage, parts) for stage, parts in stages),
                {Place(part, names[kind + 1], bool(first)): segments[segment] for part, kind, first, segment in places},
            )
            for name, (stages, places) in entry["regimes"].items()
        },
    )


@lru_cache(maxsize=4)
def read(path: Path) -> FamilyTrace | None:
    """The family's trace in this file; None if there is no such file."""
    return load(path.read_bytes(), file=path.name) if path.is_file() else None

"""A family's trace: segments with formulas of a design's dimensions for sizes, from which any configuration's run is composed.

A variant is a set of kinds of layers, what is around them, a kernel and the options of the class. A design with a structure, an
option or a relation between dimensions that no sample had is not covered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, combinations_with_replacement, product
from math import gcd, prod
from operator import mod

from ...checkpoint import DType, Tensor
from ...spec import Module, each_buffer, each_tensor
from ...typed import TYPE_CHECKING, Any, NamedTuple
from ...values import dataclass, replace
from ..allocation.on_device import BUFFER, PARAMETER
from ..traces.kept_trace import CHUNKS, ChunkedPoint, Coefficients, KeptTrace, Point, fixed_size
from ..traces.outline import Outline, Part, regime_of
from ..traces.segments import Place, Segment, compose

if TYPE_CHECKING:
    from ...results.model import Report
    from ..layered.layered_run import LayeredRun, Made

# Functions of a workload's lengths in which sizes are linear: coefficients of 1, T, T², S, the chunks and their square, for
# prompts of T tokens and S tokens at the end. Each is there for one sequence, then for the whole batch.
_OF_LENGTHS = (
    (1, 0, 0, 0, 0, 0),
    (0, 1, 0, 0, 0, 0),
    (0, 0, 0, 1, 0, 0),
    (0, 0, 1, 0, 0, 0),
    (-1, 0, 0, 1, 0, 0),
    (1, 0, 0, 1, 0, 0),
    (1, 1, 0, 0, 0, 0),
    (0, 0, 0, 0, 1, 0),
)
_OF_STATES = ((1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 2, 1))  # a state before each chunk and one behind the last; their pairs
LENGTHS = len(_OF_LENGTHS)
BASIS: tuple[Coefficients, ...] = tuple(
    (0, 0, 0, 0, *lengths[:4], 0, lengths[4], 0, lengths[5])
    if batch
    else (*lengths[:4], 0, 0, 0, 0, lengths[4], 0, lengths[5], 0)
    for batch, lengths in (*product((False, True), _OF_LENGTHS), *product((False, True), _OF_STATES))
)


class Term(NamedTuple):
    """A fraction times variables times a function of the workload."""

    numerator: int
    denominator: int
    variables: tuple[int, ...]
    basis: int


Formula = tuple[Term, ...]  # a sum
Loaded = tuple[tuple[Coefficients, str, str], ...]  # size, module and operator of each tensor


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
    divisors: of each variable a divisor in every sample, where alignment matters.
    """

    of: tuple[int, ...]
    constants: tuple[int | None, ...]
    relations: tuple[Relation, ...] = ()
    divisors: tuple[int, ...] = ()

    @staticmethod
    def of_samples(samples: Sequence[Sequence[int]], *, alignment: int = 1) -> Variables:
        """alignment: beyond which divisors do not matter."""
        numbers: dict[tuple[int, ...], int] = {}
        of = tuple(numbers.setdefault(column, len(numbers)) for column in zip(*samples, strict=True))
        constants = tuple(column[0] if len(set(column)) == 1 else None for column in numbers)
        divisors = tuple(gcd(alignment, *column) for column in numbers)
        return Variables(of, constants, tuple(_relations([*numbers], constants)), divisors if alignment > 1 else ())

    def values(self, dimensions: Sequence[int]) -> tuple[int, ...]:
        """The variables' values; NotCovered for dimensions that differ where no sample's did, are 0 or 1 where none was, or are
        not related or aligned as all samples' were.
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
        if any(map(mod, of_all, self.divisors)):
            raise NotCovered
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
    argument is `singles`. least_tokens: of a sample's prompt. halves: the model_type of a model in float16 that runs on CUDA.
    """

    kernel: str
    options: Mapping[str, Any]
    outside: str
    kinds: tuple[str, ...]
    variables: Mapping[str, Variables]
    regimes: Mapping[str, Regime]
    singles: int = 0
    least_tokens: int = 1
    halves: str = ""

    def at(
        self, outline: Outline, point: Point, loaded: Sequence[tuple[Coefficients, str, str]], schedule: str = ""
    ) -> KeptTrace:
        """The run of a design with the structure of this variant, for workloads of the same regime as this one.

        loaded: size, module and operator of each tensor, in the order of a trace. schedule: of a training run, as in `regimes`.
        """
        regime, polynomial = self._sizes(outline, point, schedule)

        def segment_at(place: Place) -> Segment:
            part = place.kind if isinstance(place.kind, Part) else None
            segment = regime.segments[place._replace(kind=part and part.structure)]
            requests = []
            for request in segment.requests:
                summed = request.summed
                if summed is not None:
                    summed = polynomial(part, summed[0]), polynomial(part, summed[1]), summed[2]
                requests.append(request._replace(size=polynomial(part, request.size), summed=summed))
            return Segment(tuple(requests), segment.order, segment.others)

        try:
            composed = compose(regime.stages, outline.layers, segment_at, loaded=loaded)
            return replace(composed, chunk_tokens=outline.chunk_tokens)
        except (KeyError, IndexError):  # a segment, or what one frees of another, that no sample had
            raise NotCovered from None

    def layered_at(self, outline: Outline, point: Point, loaded: Sequence[Made]) -> LayeredRun:
        """The same in pieces, for this workload; NotLayered for a run that has none. loaded: with bytes for sizes."""
        from ..layered.layered_run import layered

        regime, polynomial = self._sizes(outline, point)
        monomials = ChunkedPoint.of(point, outline.chunk_tokens).monomials
        known: dict[Part | None, dict[int, int]] = {}  # bytes by the formula's id

        def segment_at(place: Place) -> tuple[Segment, Callable[[Formula], int]]:
            part = place.kind if isinstance(place.kind, Part) else None
            sizes = known.setdefault(part, {})

            def bytes_of(formula: Formula) -> int:
                size = sizes.get(id(formula))
                if size is None:
                    size = sizes[id(formula)] = sum(map(int.__mul__, polynomial(part, formula), monomials))
                return size

            return regime.segments[place._replace(kind=part and part.structure)], bytes_of

        try:
            return layered(regime.stages, outline.layers, segment_at, loaded)
        except (KeyError, IndexError):
            raise NotCovered from None

    def _sizes(
        self, outline: Outline, point: Point, schedule: str = ""
    ) -> tuple[Regime, Callable[[Part | None, Formula], Coefficients]]:
        """The regime of a workload, and its sizes as polynomials, in a layer or outside of them."""
        if point.prompt_tokens < self.least_tokens:
            raise NotCovered
        regime = self.regimes.get(schedule + regime_of(outline.thresholds, point, singles=self.singles))
        if regime is None:
            raise NotCovered
        if self.halves:
            from ..traces.half_softmax import in_float16

            segments = in_float16(regime.segments, self.halves)
            if segments is None:
                raise NotCovered
            regime = replace(regime, segments=segments)
        values: dict[Part | None, tuple[int, ...]] = {}
        sizes: dict[tuple[Part | None, Formula], Coefficients] = {}
        for part in (None, *dict.fromkeys(outline.layers)):
            variables = self.variables["" if part is None else part.structure]
            values[part] = variables.values(dimensions_of(outline, part))

        def polynomial(part: Part | None, formula: Formula) -> Coefficients:
            if (part, formula) not in sizes:
                sizes[part, formula] = coefficients(formula, values[part])
            return sizes[part, formula]

        return regime, polynomial


def halves_of(report: Report, device: str) -> str:
    """The model_type of a model in float16 that runs on CUDA, "" for others."""
    return str((report.config or {}).get("model_type")) if device == "cuda" and report.spec.dtype is DType.F16 else ""


def loaded_of(tree: Module) -> Loaded:
    """What is loaded, in the order of a trace: parameters, then buffers, as polynomials."""
    return tuple((fixed_size(size_bytes), module, operator) for size_bytes, module, operator in loaded_bytes_of(tree))


def loaded_bytes_of(tree: Module) -> Iterator[tuple[int, str, str]]:
    """The same in bytes."""
    return chain(_bytes_of(each_tensor(tree), tree, PARAMETER), buffers_bytes_of(tree))


def buffers_bytes_of(tree: Module) -> Iterator[tuple[int, str, str]]:
    """The buffers of these."""
    return _bytes_of(each_buffer(tree), tree, BUFFER)


def _bytes_of(tensors: Iterable[Tensor], tree: Module, operator: str) -> Iterator[tuple[int, str, str]]:
    for tensor in tensors:
        if size_bytes := tensor.size_bytes:
            yield size_bytes, tensor.name.rpartition(".")[0] or tree.class_name, operator


class Composed(NamedTuple):
    """A run with sizes for all workloads of its regime. everywhere: whether all workloads are of this regime."""

    trace: KeptTrace
    everywhere: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyTrace:
    """defaults: of the options that a design does not show, each one's value in the class. loop: of training, which it is of."""

    made_by: str
    defaults: Mapping[str, Any]
    variants: tuple[Variant, ...]
    loop: str = ""

    def variants_for(
        self, outline: Outline, kernel: str, options: Mapping[str, Any], halves: str = ""
    ) -> Iterable[Variant]:
        """halves: as in `Variant`."""
        kinds = tuple(sorted({layer.structure for layer in outline.layers}))
        if options.get("_attn_implementation") == kernel:
            options = {key: value for key, value in options.items() if key != "_attn_implementation"}
        for variant in self.variants:
            same = variant.kernel == kernel and variant.outside == outline.outside.structure and variant.kinds == kinds
            if same and variant.options == options:
                yield replace(variant, halves=halves) if halves else variant

    def at(
        self,
        outline: Outline,
        kernel: str,
        options: Mapping[str, Any],
        point: Point,
        loaded: Sequence[tuple[Coefficients, str, str]],
        schedule: str = "",
        halves: str = "",
    ) -> Composed | None:
        """The run of a design; None if it is not covered. loaded, schedule: as in `Variant.at`; halves: as in `variants_for`."""
        for variant in self.variants_for(outline, kernel, options, halves):
            try:
                trace = variant.at(outline, point, loaded, schedule)
            except NotCovered:
                continue
            return Composed(
                replace(trace, made_by=self.made_by), everywhere=len(variant.regimes) == 1 and not outline.thresholds
            )
        return None

    def layered_at(
        self,
        outline: Outline,
        kernel: str,
        options: Mapping[str, Any],
        point: Point,
        loaded: Sequence[Made],
        halves: str = "",
    ) -> LayeredRun | None:
        """The run in pieces, for one workload; NotLayered for a run that has none, None if it is not covered. loaded: with bytes
        for sizes. halves: as in `variants_for`."""
        for variant in self.variants_for(outline, kernel, options, halves):
            try:
                return variant.layered_at(outline, point, loaded)._replace(made_by=self.made_by)
            except NotCovered:
                continue
        return None

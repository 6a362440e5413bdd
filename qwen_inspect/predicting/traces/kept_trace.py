"""A trace whose sizes are polynomials in the workload, evaluated for any workload in milliseconds.

The events of a forward do not depend on the workload, only their sizes do: each is a polynomial in the batch, the prompt tokens
and the total tokens. As many traces as there are monomials give the coefficients exactly, as integers; one more trace, of
another workload, must be reproduced to the byte, or the polynomials are rejected.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import gcd

from ...errors import MalformedError, UnsupportedError
from ...results.timeline import Allocate, ColumnSum, Event, Free, Stage, Timeline, allocations, frees
from ...standard import json, loads
from ...typed import TYPE_CHECKING, Any
from ...values import dataclass, field

if TYPE_CHECKING:
    from fractions import Fraction

    from ..fused_loss import LossBuffer

EMPTY = "aten.empty.memory_format"
LARGEST_BYTES = 50_000_000
CHUNK_TOKENS = 64  # transformers 5.23, qwen3_next/modeling_qwen3_next.py, torch_chunk_gated_delta_rule
CHUNKS = 8  # index of the chunks of one sequence in `ChunkedPoint.monomials`


@dataclass(frozen=True, slots=True)
class Point:
    """A workload as a trace sees it: sequences, tokens of each prompt, tokens of each sequence at the end."""

    batch: int
    prompt_tokens: int
    total_tokens: int

    @property
    def monomials(self) -> tuple[int, ...]:
        """The terms of a size: activations grow with batch x prompt, scores with batch x prompt², a cache with batch x total."""
        lengths = (1, self.prompt_tokens, self.prompt_tokens**2, self.total_tokens)
        return (*lengths, *(self.batch * length for length in lengths))


@dataclass(frozen=True, slots=True)
class ChunkedPoint(Point):
    """A `Point` of a model that pads each prompt to whole chunks."""

    chunk_tokens: int = CHUNK_TOKENS

    @staticmethod
    def of(point: Point, chunk_tokens: int) -> ChunkedPoint:
        return ChunkedPoint(point.batch, point.prompt_tokens, point.total_tokens, chunk_tokens)

    @property
    def monomials(self) -> tuple[int, ...]:
        """Those of a `Point`, the chunks and their square: Mamba-2 computes with all pairs of them."""
        chunks = -(-self.prompt_tokens // self.chunk_tokens)
        of_chunks = (chunks, self.batch * chunks, chunks**2, self.batch * chunks**2)
        return (*Point.monomials.__get__(self), *of_chunks)


# One sample per monomial, linearly independent, and a witness to check the result. Tracing time does not depend on the lengths;
# they are just long enough to avoid the single-token path.
SAMPLES = tuple(
    Point(batch, prompt, total) for batch in (1, 2) for prompt, total in ((16, 24), (32, 48), (64, 72), (32, 80))
)
WITNESS = Point(3, 48, 112)

Coefficients = tuple[int, ...]


def fixed_size(size_bytes: int) -> Coefficients:
    """The polynomial of a size that depends on nothing."""
    return (size_bytes, *[0] * (CHUNKS - 1))


# A sum over rows loads as many numbers at a time as divide its strides, which may be multiples of the prompt's tokens.
ALIGNMENTS = (1, 2, 4)
Vectors = tuple[int, ...]


def alignment(point: Point) -> int:
    """The index of the largest of ALIGNMENTS that divides the prompt's tokens."""
    return ALIGNMENTS.index(gcd(point.prompt_tokens, ALIGNMENTS[-1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptTrace:
    """A run with polynomials for sizes. A non-negative entry of `order` makes the allocation of that index, -1 - index frees it.

    kept: (allocation, "cache" or "state") of what the cache keeps, as in a `Timeline`. sums, cast, owners: for training runs, and
    not stored in files. sums: (allocation, polynomial of outputs, of inputs, vectors) each, a vector for each of ALIGNMENTS.
    owners: (allocation, module) each, as in a `Timeline`. buffers: (allocation, rows) each, of which the polynomial is one row's,
    not stored in files either. chunk_tokens: as in a `ChunkedPoint`.
    loaded: the number of the first allocations that stand before the run, of one that does not load.
    """

    stages: tuple[Stage, ...]
    allocations: tuple[tuple[Coefficients, str, str], ...]  # size, module, operator
    order: tuple[int, ...]
    made_by: str
    sums: tuple[tuple[int, Coefficients, Coefficients, Vectors], ...] = ()
    cast: bool = False
    kept: tuple[tuple[int, str], ...] = field(default=(), compare=False)
    owners: tuple[tuple[int, str], ...] = ()
    buffers: tuple[tuple[int, LossBuffer], ...] = ()
    chunk_tokens: int = CHUNK_TOKENS
    loaded: int = 0

    def at(self, point: Point) -> Timeline:
        """The run for a workload, each size in bytes."""
        monomials = ChunkedPoint.of(point, self.chunk_tokens).monomials
        polynomials, modules, operators = zip(*self.allocations, strict=True)
        sizes = {polynomial: sum(map(int.__mul__, polynomial, monomials)) for polynomial in set(polynomials)}
        number = range(len(polynomials))
        requests = list(allocations(number, map(sizes.__getitem__, polynomials), modules, operators))
        for index, buffer in self.buffers:
            rows, one = buffer.rows(point.batch, point.prompt_tokens), requests[index]
            requests[index] = one._replace(size_bytes=rows * one.size_bytes)
        made: list[Event] = [*requests, *frees(reversed(number))]  # negative indices: entry -1 - i frees allocation i
        return Timeline(
            events=tuple(map(made.__getitem__, self.order)),
            stages=self.stages,
            kept=self.kept,
            sums=tuple(
                (
                    index,
                    ColumnSum(
                        outputs=sum(map(int.__mul__, outputs, monomials)),
                        inputs=sum(map(int.__mul__, inputs, monomials)),
                        vector=vectors[alignment(point)],
                    ),
                )
                for index, outputs, inputs, vectors in self.sums
            ),
            cast=self.cast,
        )


def fit(
    traces: Mapping[Point, Timeline],
    *,
    made_by: str,
    terms: Sequence[int] = range(8),
    buffer: LossBuffer | None = None,
) -> KeptTrace:
    """Fits the polynomials to all traces but the last, and checks them on the last; UnsupportedError if they do not reproduce it.

    terms: indices of the monomials to use. If they are more than the traces to fit, each size has one or two of them, as products
    of dimensions have and such products with a constant added to one dimension. buffer: that the run has one like it.
    """
    *samples, checked = traces
    first = traces[samples[0]]
    runs = [_numbered(traces[point]) for point in samples]
    witness = _numbered(traces[checked])
    shape = [(entry, *who) for entry, _, *who in runs[0]]
    for run in (*runs[1:], witness):
        if [(entry, *who) for entry, _, *who in run] != shape:
            raise UnsupportedError("trace_events_differ", length=len(run), other=len(shape))
    monomials = [[point.monomials[term] for term in terms] for point in samples]
    inverse = _inverse(monomials) if len(terms) == len(samples) else None
    solved: dict[tuple[int, ...], Coefficients] = {}
    allocations: list[tuple[Coefficients, str, str]] = []
    order: list[int] = []
    buffers: list[tuple[int, LossBuffer]] = []
    expected = checked.monomials

    def polynomial(numbers: tuple[int, ...], witnessed: int, module: str, operator: str) -> Coefficients:
        if numbers not in solved:
            solution = _sparse(monomials, numbers) if inverse is None else _solve(inverse, numbers)
            by_term = dict(zip(terms, solution, strict=True))
            solved[numbers] = tuple(by_term.get(term, 0) for term in range(len(expected)))
        if sum(map(int.__mul__, solved[numbers], expected)) != witnessed:
            raise UnsupportedError("trace_not_polynomial", module=module, operator=operator)
        return solved[numbers]

    for index, (entry, _, module, operator) in enumerate(runs[0]):
        order.append(entry)
        if entry < 0:
            continue
        sizes = tuple(run[index][1] for run in runs)
        row_bytes = None if buffer is None else _row_bytes(buffer, traces, (*sizes, witness[index][1]))
        if buffer is not None and row_bytes is not None and operator == EMPTY:
            buffers.append((len(allocations), buffer))
            allocations.append(((row_bytes,), module, operator))
            continue
        allocations.append((polynomial(sizes, witness[index][1], module, operator), module, operator))
    summed = [_sums(traces[point]) for point in traces]
    owners = {_owners(timeline) for timeline in traces.values()}
    if len(owners) > 1 or any(list(sums_of_trace) != list(summed[0]) for sums_of_trace in summed):
        raise UnsupportedError("trace_events_differ", length=len(summed[-1]), other=len(summed[0]))
    sums = []
    for index, column_sum in summed[0].items():
        _, module, operator = allocations[index]
        outputs, inputs = (
            polynomial(tuple(numbers[:-1]), numbers[-1], module, operator)
            for numbers in (
                [sums_of_trace[index].outputs for sums_of_trace in summed],
                [sums_of_trace[index].inputs for sums_of_trace in summed],
            )
        )
        vectors = {alignment(point): of[index].vector for point, of in zip(traces, summed, strict=True)}
        if any(vectors[alignment(point)] != of[index].vector for point, of in zip(traces, summed, strict=True)):
            raise UnsupportedError("trace_not_polynomial", module=module, operator=operator)
        sums.append((index, outputs, inputs, tuple(vectors.get(i, column_sum.vector) for i in range(len(ALIGNMENTS)))))
    return KeptTrace(
        stages=first.stages,
        allocations=tuple(allocations),
        order=tuple(order),
        made_by=made_by,
        sums=tuple(sums),
        cast=first.cast,
        owners=owners.pop(),
        buffers=tuple(buffers),
    )


def _row_bytes(buffer: LossBuffer, points: Iterable[Point], sizes: Sequence[int]) -> int | None:
    """Bytes of a row in numbers of 2 or 4 bytes; None for another size."""
    rows = [buffer.rows(point.batch, point.prompt_tokens) for point in points]
    widths = (width * buffer.columns for width in (2, 4))
    return next((width for width in widths if [width * count for count in rows] == list(sizes)), None)


def _owners(timeline: Timeline) -> tuple[tuple[int, str], ...]:
    """The modules that an optimizer allocates for, by the number of the allocation."""
    ids = (event.id for event in timeline.events if isinstance(event, Allocate))
    numbers = {identity: number for number, identity in enumerate(ids)}
    return tuple((numbers[identity], module) for identity, module in timeline.owners)


def _sums(timeline: Timeline) -> dict[int, ColumnSum]:
    """The sums over rows, by the number of their output's allocation."""
    ids = (event.id for event in timeline.events if isinstance(event, Allocate))
    numbers = {identity: number for number, identity in enumerate(ids)}
    return {numbers[identity]: column_sum for identity, column_sum in timeline.sums}


def _numbered(timeline: Timeline) -> list[tuple[int, int, str, str]]:
    """(entry of `order`, size, module, operator) of each event; allocations are numbered in order."""
    numbers: dict[int, int] = {}
    rows = []
    for event in timeline.events:
        match event:
            case Allocate():
                numbers[event.id] = len(numbers)
                rows.append((numbers[event.id], event.size_bytes, event.module, event.operator))
            case Free():
                rows.append((-1 - numbers[event.id], 0, "", ""))
    return rows


def _inverse(matrix: Sequence[Sequence[int]]) -> list[list[Fraction]]:
    """The inverse by Gauss-Jordan elimination, in exact fractions."""
    from fractions import Fraction

    size = len(matrix)
    rows = [
        [Fraction(value) for value in row] + [Fraction(int(column == index)) for column in range(size)]
        for index, row in enumerate(matrix)
    ]
    for column in range(size):
        pivot = next((index for index in range(column, size) if rows[index][column]), None)
        if pivot is None:
            raise UnsupportedError("trace_not_polynomial", module="–", operator="–")
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for index in range(size):
            if index != column and (factor := rows[index][column]):
                rows[index] = [value - factor * above for value, above in zip(rows[index], rows[column], strict=True)]
    return [row[size:] for row in rows]


def _sparse(monomials: Sequence[Sequence[int]], sizes: Sequence[int]) -> Coefficients:
    """The coefficients of which one is not zero, else of which two are not."""
    terms = range(len(monomials[0]))
    first, *others = zip(monomials, sizes, strict=True)
    for term in terms:
        coefficient, rest = divmod(first[1], first[0][term])
        if not rest and all(coefficient * row[term] == size for row, size in others):
            return tuple(coefficient if index == term else 0 for index in terms)
    second = others[0]
    for one, two in combinations(terms, 2):
        determinant = first[0][one] * second[0][two] - first[0][two] * second[0][one]
        if not determinant:
            continue
        a, no_rest = divmod(first[1] * second[0][two] - first[0][two] * second[1], determinant)
        b, rest = divmod(first[0][one] * second[1] - first[1] * second[0][one], determinant)
        if not (rest or no_rest) and all(a * row[one] + b * row[two] == size for row, size in others):
            return tuple({one: a, two: b}.get(index, 0) for index in terms)
    raise UnsupportedError("trace_not_polynomial", module="–", operator="–")


def _solve(inverse: Sequence[Sequence[Fraction]], sizes: Sequence[int]) -> Coefficients:
    exact = [sum(part * size for part, size in zip(row, sizes, strict=True)) for row in inverse]
    if any(value.denominator != 1 for value in exact):
        raise UnsupportedError("trace_not_polynomial", module="–", operator="–")
    return tuple(int(value) for value in exact)


# --- as a file


def dump(kept: KeptTrace) -> bytes:
    """The trace as gzipped JSON; equal traces give equal bytes."""
    tables: list[dict[Any, int]] = [{}, {}, {}]
    rows = [
        [table.setdefault(value, len(table)) for table, value in zip(tables, allocation, strict=True)]
        for allocation in kept.allocations
    ]
    content = {
        "version": 1,
        "made_by": kept.made_by,
        "stages": [[stage.name, stage.first_event] for stage in kept.stages],
        "sizes": list(tables[0]),
        "modules": list(tables[1]),
        "operators": list(tables[2]),
        "allocations": rows,
        "order": kept.order,
    }
    return zipped(content)


def zipped(content: Mapping[str, Any]) -> bytes:
    """As gzipped JSON."""
    import gzip

    return gzip.compress(json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode(), mtime=0)


def unzipped(content: bytes) -> Any:
    """The value that `zipped` wrote; ValueError for anything else. By zlib, whose import takes a fifth of that of gzip's time."""
    unzipping = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)  # with gzip's header and checksum
    try:
        text = unzipping.decompress(content, LARGEST_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not unzipping.eof:
        raise ValueError(f"cut off, or of more than {LARGEST_BYTES} bytes")
    return loads(text)


def load(content: bytes, *, file: str) -> KeptTrace:
    """Reads what `dump` wrote; MalformedError for anything else."""
    try:
        kept = unzipped(content)
        sizes = [tuple(map(int, row)) for row in kept["sizes"]]
        modules, operators = kept["modules"], kept["operators"]
        allocations = tuple(
            (sizes[size], modules[module], operators[operator]) for size, module, operator in kept["allocations"]
        )
        order = tuple(map(int, kept["order"]))
        stages = tuple(Stage(name=name, first_event=first) for name, first in kept["stages"])
        if kept["version"] != 1 or not all(-len(allocations) <= entry < len(allocations) for entry in order):
            raise ValueError(file)
        return KeptTrace(stages=stages, allocations=allocations, order=order, made_by=kept["made_by"])
    except (ValueError, KeyError, TypeError, IndexError):
        raise MalformedError("trace_file", file=file) from None

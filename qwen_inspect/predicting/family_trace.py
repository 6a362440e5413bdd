"""A family's trace: segments whose sizes are formulas of a design's dimensions, from which the run of any configuration is composed.

A variant is a set of kinds of layers, what is around them, the kernel and a range of workloads. A design that has another structure,
a relation between dimensions that no sample had, or an option of the class that none had, is not covered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import prod
from typing import NamedTuple

from .kept_trace import CHUNK_TOKENS, Coefficients, Point

# Functions of a workload in which sizes are linear, as coefficients of `ChunkedPoint.monomials`: of one sequence, then of all.
_OF_LENGTHS = {
    "1": (1, 0, 0, 0, 0),
    "T": (0, 1, 0, 0, 0),
    "S": (0, 0, 0, 1, 0),
    "T²": (0, 0, 1, 0, 0),
    "S-1": (-1, 0, 0, 1, 0),
    "S+1": (1, 0, 0, 1, 0),
    "T+1": (1, 1, 0, 0, 0),
    "C": (0, 0, 0, 0, 1),
}
BASIS: tuple[Coefficients, ...] = tuple(
    (0, 0, 0, 0, *lengths[:4], 0, lengths[4]) if batch else (*lengths[:4], 0, 0, 0, 0, lengths[4], 0)
    for batch, lengths in product((False, True), _OF_LENGTHS.values())
)


class Term(NamedTuple):
    """A fraction times variables times a function of the workload."""

    numerator: int
    denominator: int
    variables: tuple[int, ...]
    basis: int


Formula = tuple[Term, ...]  # a sum


class NotCovered(Exception):
    """A design that a family's trace does not cover."""


@dataclass(frozen=True, slots=True)
class Variables:
    """Which dimensions are equal in every sample, and so are one variable. of: of each dimension its variable. constants: of each
    variable its value, if that was the same in every sample.
    """

    of: tuple[int, ...]
    constants: tuple[int | None, ...]

    @staticmethod
    def of_samples(samples: Sequence[Sequence[int]]) -> Variables:
        numbers: dict[tuple[int, ...], int] = {}
        of = tuple(numbers.setdefault(column, len(numbers)) for column in zip(*samples, strict=True))
        return Variables(of, tuple(column[0] if len(set(column)) == 1 else None for column in numbers))

    def values(self, dimensions: Sequence[int]) -> tuple[int, ...]:
        """The variables' values; NotCovered for dimensions that differ where no sample's did, or are 0 or 1 where none was."""
        if len(dimensions) != len(self.of):
            raise NotCovered
        values = dict(zip(self.of, dimensions, strict=True))
        if any(values[variable] != size for variable, size in zip(self.of, dimensions, strict=True)):
            raise NotCovered
        for variable, constant in enumerate(self.constants):
            if values[variable] < 2 if constant is None else values[variable] != constant:
                raise NotCovered
        return tuple(values[variable] for variable in range(len(self.constants)))


def coefficients(formula: Formula, values: Sequence[int]) -> Coefficients:
    """The polynomial of the workload for these values; NotCovered if a fraction is not whole."""
    total = [0] * len(BASIS[0])
    for numerator, denominator, variables, basis in formula:
        factor, rest = divmod(numerator * prod(values[variable] for variable in variables), denominator)
        if rest:
            raise NotCovered
        for index, coefficient in enumerate(BASIS[basis]):
            total[index] += factor * coefficient
    return tuple(total)


def monomials(point: Point) -> tuple[int, ...]:
    chunks = -(-point.prompt_tokens // CHUNK_TOKENS)
    return (*Point.monomials.__get__(point), chunks, point.batch * chunks)

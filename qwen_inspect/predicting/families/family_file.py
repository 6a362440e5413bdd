"""A family's trace as a file: gzipped JSON, each distinct module, operator, formula, request and segment once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

from ...errors import MalformedError
from ...typed import Any, Generic, TypeVar
from ..traces.kept_trace import unzipped, zipped
from ..traces.segments import Address, Place, Request, Segment
from .family_trace import FamilyTrace, Formula, Regime, Relation, Term, Variables, Variant

Value = TypeVar("Value")
SHIPPED = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(__file__))), "catalog", "traces")


def dump(family: FamilyTrace) -> bytes:
    """As gzipped JSON; equal traces give equal bytes. Since version 2 parts of other segments are relative to the own one."""
    from dataclasses import astuple

    tables: list[dict[Any, int]] = [{} for _ in range(6)]
    modules, operators, formulas, requests, segments, variables = tables

    def number(table: dict[Any, int], value: Any) -> int:
        return table.setdefault(value, len(table))

    def request_row(request: Request) -> int:
        row = (number(formulas, request.size), number(modules, request.module), number(operators, request.operator))
        if request.summed is None:
            return number(requests, (*row, request.use))
        outputs, inputs, vectors = request.summed
        return number(requests, (*row, request.use, number(formulas, outputs), number(formulas, inputs), vectors))

    known: dict[int, tuple[object, Any]] = {}  # by identity, with what it is of: segments share their requests

    def once(value: Value, row: Callable[[Value], Any]) -> Any:
        if id(value) not in known:
            known[id(value)] = value, row(value)
        return known[id(value)][1]

    def request_rows(requests: Sequence[Request]) -> tuple[int, ...]:
        return tuple([once(request, request_row) for request in requests])

    def segment_row(part: int, segment: Segment) -> int:
        others = tuple((other.part - part, other.layer, other.number) for other in segment.others)
        return number(segments, (once(segment.requests, request_rows), segment.order, others))

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
                            place.ends,
                            segment_row(place.part, segment),
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
        "version": 2,
        "loop": family.loop,
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
    return zipped(content)


def load(content: bytes, *, file: str) -> FamilyTrace:
    """Reads what `dump` wrote; MalformedError for anything else."""
    try:
        kept = unzipped(content)
        if kept["version"] not in (1, 2):
            raise ValueError(file)
        modules, operators = kept["modules"], kept["operators"]
        formulas = _Made(
            lambda formula: tuple([Term(top, bottom, tuple(chosen), basis) for top, bottom, chosen, basis in formula]),
            kept["formulas"],
        )
        requests = _Made(
            lambda row: Request(
                formulas[row[0]], modules[row[1]], operators[row[2]], row[3], _summed(formulas, *row[4:])
            ),
            kept["requests"],
        )
        segments = _Made(
            lambda row: Segment(
                tuple([requests[number] for number in row[0]]),
                tuple(row[1]),
                tuple([Address(*other) for other in row[2]]),
            ),
            kept["segments"],
        )
        variables = [
            Variables(
                tuple(of),
                tuple(constants),
                tuple([Relation(tuple(top), tuple(bottom), *factor) for top, bottom, *factor in relations]),
                *map(tuple, divisors),
            )
            for of, constants, relations, *divisors in kept["variables"]
        ]
        relative = kept["version"] > 1
        variants = tuple(
            _variant(entry, segments, variables, relative=relative, file=file) for entry in kept["variants"]
        )
        loop = kept.get("loop", "")
        return FamilyTrace(made_by=kept["made_by"], defaults=kept["defaults"], variants=variants, loop=loop)
    except (ValueError, KeyError, TypeError, IndexError):
        raise MalformedError("trace_file", file=file) from None


class _Made(Generic[Value]):
    """Values of rows, each made when it is first asked for: a run needs few of a file's."""

    def __init__(self, make: Callable[[Any], Value], rows: Sequence[Any]) -> None:
        self._make, self._rows = make, rows
        self._known: dict[int, Value] = {}

    def __getitem__(self, number: int) -> Value:
        value = self._known.get(number)
        if value is None:
            value = self._known[number] = self._make(self._rows[number])
        return value


class _Regimes(Mapping[str, Regime]):
    """Those of a variant by name, each made when it is asked for; MalformedError then for rows that are none."""

    def __init__(self, rows: Mapping[str, Any], make: Callable[[Any], Regime], file: str) -> None:
        self._rows, self._make, self._file = rows, make, file
        self._known: dict[str, Regime] = {}

    def __getitem__(self, name: str) -> Regime:
        if name not in self._known:
            row = self._rows[name]
            try:
                self._known[name] = self._make(row)
            except (ValueError, KeyError, TypeError, IndexError):
                raise MalformedError("trace_file", file=self._file) from None
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _summed(formulas: _Made[Formula], *row: Any) -> tuple[Formula, Formula, tuple[int, ...]] | None:
    if not row:
        return None
    outputs, inputs, vectors = row
    return formulas[outputs], formulas[inputs], tuple(vectors)


def _from(part: int, segment: Segment) -> Segment:
    """The segment with the parts of others counted from the first, not from `part`."""
    others = tuple([other._replace(part=part + other.part) for other in segment.others])
    return Segment(segment.requests, segment.order, others) if part else segment


def _variant(
    entry: Mapping[str, Any], segments: _Made[Segment], variables: Sequence[Variables], *, relative: bool, file: str
) -> Variant:
    kinds = tuple(entry["kinds"])
    names = (None, *kinds)

    def regime(row: Any) -> Regime:
        stages, places = row
        by_place = {
            Place(part, names[kind + 1], ends): _from(part if relative else 0, segments[segment])
            for part, kind, ends, segment in places
        }
        return Regime(tuple((stage, parts) for stage, parts in stages), by_place)

    return Variant(
        kernel=entry["kernel"],
        options=entry["options"],
        outside=entry["outside"],
        kinds=kinds,
        singles=entry["singles"],
        least_tokens=entry["least_tokens"],
        variables={kind or "": variables[row] for kind, row in zip(names, entry["variables"], strict=True)},
        regimes=_Regimes(entry["regimes"], regime, file),
    )


@lru_cache(maxsize=4)
def read(name: str) -> FamilyTrace | None:
    """The family's trace in this file of SHIPPED; None if there is no such file."""
    content = shipped(name)
    return None if content is None else load(content, file=name)


def shipped(name: str) -> bytes | None:
    """The content of this file of SHIPPED; None if there is no such file."""
    path = os.path.join(SHIPPED, name)
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        return file.read()

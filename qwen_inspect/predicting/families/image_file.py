"""A family's trace with images as a file: gzipped JSON, each distinct module, operator, size and token once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import chain

from ...errors import MalformedError
from ...results.model import Report
from ...typed import Any
from ..traces.kept_trace import unzipped, zipped
from .family_file import shipped
from .family_trace import Relation, Variables
from .image_trace import ImageTrace, ImageVariant
from .repeats import ONE, Group, Loop, Part, Place, Program, Size, Summed, Target, Token


def image_file(model_type: str) -> str:
    return f"{model_type}-images.json.gz"


def dump(family: ImageTrace) -> bytes:
    """As gzipped JSON; equal traces give equal bytes."""
    from dataclasses import astuple

    tables: list[dict[Any, int]] = [{} for _ in range(4)]
    names, sizes, tokens, loops = tables

    def number(table: dict[Any, int], value: Any) -> int:
        return table.setdefault(value, len(table))

    def target_row(target: Target, at: int) -> tuple[Any, ...]:
        row = target.token - at, tuple(target.place)
        return row if target.outer == ONE else (*row, tuple(target.outer))

    known: dict[int, tuple[Token, int]] = {}  # of tokens that request, by identity: programs share them

    def token_row(token: Token, at: int) -> int:
        """at: the token's number in its program, from which that of what it frees is counted."""
        if not token.module:
            return new_row(token, at)
        if id(token) not in known:
            known[id(token)] = token, new_row(token, at)
        return known[id(token)][1]

    def new_row(token: Token, at: int) -> int:
        turns = (number(sizes, turn) if token.module else target_row(turn, at) for turn in token.turns)
        texts = (token.split, token.module, token.operator, token.use)
        sums = tuple((number(sizes, each.outputs), number(sizes, each.inputs), each.vector) for each in token.sums)
        row = (tuple(turns), *(number(names, text) for text in texts))
        return number(tokens, (*row, sums) if sums else row)

    def loop_rows(program: Program) -> Iterator[int]:
        at = 0
        for loop in program.loops:
            rows = tuple([token_row(token, at + place) for place, token in enumerate(loop.tokens)])
            at += len(rows)
            yield number(loops, (loop.axis, loop.more, rows))

    variants = [
        {
            "kernel": variant.kernel,
            "options": variant.options,
            "structure": variant.structure,
            "tower": variant.tower,
            "decoder": variant.decoder,
            "least": variant.least,
            "variables": astuple(variant.variables),
            "programs": {
                name: [program.stages, list(loop_rows(program)), program.fewest, *filter(None, (program.groups,))]
                for name, program in variant.programs.items()
            },
        }
        for variant in family.variants
    ]
    content = {
        "version": 1,
        "made_by": family.made_by,
        "defaults": family.defaults,
        "vision_defaults": family.vision_defaults,
        "names": list(names),
        "sizes": list(sizes),
        "tokens": list(tokens),
        "loops": list(loops),
        "variants": variants,
    }
    return zipped(content)


def load(content: bytes, *, file: str) -> ImageTrace:
    """Reads what `dump` wrote; MalformedError for anything else."""
    try:
        kept = unzipped(content)
        if kept["version"] != 1:
            raise ValueError(file)
        names = kept["names"]
        sizes = [tuple([_part(*part) for part in size]) for size in kept["sizes"]]
        tokens = [_token(sizes, names, *row) for row in kept["tokens"]]
        loops = [(axis, more, [tokens[row] for row in rows]) for axis, more, rows in kept["loops"]]
        return ImageTrace(
            made_by=kept["made_by"],
            defaults=kept["defaults"],
            vision_defaults=kept["vision_defaults"],
            variants=tuple(_variant(entry, loops) for entry in kept["variants"]),
        )
    except (ValueError, KeyError, TypeError, IndexError):
        raise MalformedError("trace_file", file=file) from None


def _part(numerator: int, denominator: int, variables: list[int], name: str, item: Any) -> Part:
    return Part(numerator, denominator, tuple(variables), name, None if item is None else Place(*item))


def _token(sizes: list[Size], names: list[str], turns: list[Any], *row: Any) -> Token:
    split, module, operator, use = (names[text] for text in row[:4])
    if module:
        summed = [Summed(sizes[outputs], sizes[inputs], vector) for sums in row[4:] for outputs, inputs, vector in sums]
        return Token(tuple([sizes[turn] for turn in turns]), split, module, operator, use, tuple(summed))
    return Token(tuple([Target(token, *map(Place._make, places)) for token, *places in turns]), split)


def _placed(loops: list[tuple[str, int, list[Token]]], rows: list[int]) -> Iterator[Loop]:
    """The loops of a program, in which each token has its number."""
    at = 0
    for axis, more, tokens in (loops[row] for row in rows):
        yield Loop(axis, more, tuple([_at(token, at + place) for place, token in enumerate(tokens)]))
        at += len(tokens)


def _at(token: Token, at: int) -> Token:
    if token.module:
        return token
    return Token(tuple([Target(turn.token + at, *turn[1:]) for turn in token.turns]), token.split)


def _variant(entry: Mapping[str, Any], loops: list[tuple[str, int, list[Token]]]) -> ImageVariant:
    of, constants, relations, divisors = entry["variables"]
    return ImageVariant(
        kernel=entry["kernel"],
        options=entry["options"],
        structure=entry["structure"],
        tower=tuple(map(_hashable, entry["tower"])),
        decoder=tuple(map(_hashable, entry["decoder"])),
        least=entry["least"],
        variables=Variables(
            tuple(of),
            tuple(constants),
            tuple([Relation(tuple(top), tuple(bottom), *factor) for top, bottom, *factor in relations]),
            tuple(divisors),
        ),
        programs=_Programs(entry["programs"], loops),
    )


class _Programs(Mapping[str, Program]):
    """By regime; each is made when it is asked for."""

    def __init__(self, entries: Mapping[str, Any], loops: list[tuple[str, int, list[Token]]]) -> None:
        self._entries, self._loops = entries, loops
        self._made: dict[str, Program] = {}

    def __getitem__(self, name: str) -> Program:
        if name not in self._made:
            stages, rows, fewest, *groups = self._entries[name]
            self._made[name] = Program(
                tuple((stage, first) for stage, first in stages),
                tuple(_placed(self._loops, rows)),
                fewest,
                tuple(Group(*group) for group in chain.from_iterable(groups)),
            )
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _hashable(kind: Any) -> Any:
    return tuple(kind) if isinstance(kind, list) else kind


def family_of(report: Report) -> ImageTrace | None:
    """The trace of the model's family; None if there is none."""
    return read(image_file(str((report.config or {}).get("model_type"))))


@lru_cache(maxsize=2)
def read(name: str) -> ImageTrace | None:
    """The family's trace in this file; None if there is no such file."""
    content = shipped(name)
    return None if content is None else load(content, file=name)

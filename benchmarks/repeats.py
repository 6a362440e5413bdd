"""What repeats in a run when one more image or window is given: found from runs with more and more of them.

A run is tokens: a request's module, operator and use, or a free and the label of what it frees. One more image inserts tokens in
a few places; there, a block of tokens repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from qwen_inspect.predicting.traces.kept_trace import KeptTrace

Token = tuple[Any, ...]
OWN = "own"  # the axis of the images of one sequence


class NoPattern(Exception):
    """Runs that are not one block more."""


def tokens_of(trace: KeptTrace) -> list[Token]:
    uses = dict(trace.kept)
    starts = {stage.first_event: stage.name for stage in trace.stages}

    def label(number: int) -> tuple[str, str, str]:
        _, module, operator = trace.allocations[number]
        return module, operator, uses.get(number, "")

    return [
        (entry >= 0, *label(entry if entry >= 0 else -1 - entry), starts.get(index, ""))
        for index, entry in enumerate(trace.order)
    ]


@dataclass(frozen=True, slots=True)
class Insertion:
    """at: in the shorter run. block: what is inserted there."""

    at: int
    block: tuple[Token, ...]


def insertions(shorter: Sequence[Token], longer: Sequence[Token]) -> list[Insertion]:
    """The fewest places in which inserted tokens make `longer` of `shorter`, the first of equal ones."""
    more = len(longer) - len(shorter)
    far = 1 << 30
    # Backwards: gaps[i][d] is the fewest runs that are inserted to make longer[i + d:] of shorter[i:]; the second if one goes on.
    size = len(shorter)
    closed = [[far] * (more + 1) for _ in range(size + 1)]
    opened = [[far] * (more + 1) for _ in range(size + 1)]
    for i in range(size, -1, -1):
        for d in range(more, -1, -1):
            here = i + d
            same = i < size and shorter[i] == longer[here]
            if i == size and d == more:
                closed[i][d] = opened[i][d] = 0
                continue
            along = closed[i + 1][d] if same else far
            inserted = opened[i][d + 1] if d < more else far
            opened[i][d] = min(along, inserted)
            closed[i][d] = min(along, inserted + 1)
    if closed[0][0] >= far:
        raise NoPattern("not one run within the other")
    found: list[Insertion] = []
    i = d = 0
    inside = False
    block: list[Token] = []
    while i < size or d < more:
        value = (opened if inside else closed)[i][d]
        inserted = opened[i][d + 1] + (not inside) if d < more else far
        if inserted == value:
            block.append(longer[i + d])
            d += 1
            inside = True
            continue
        if block:
            found.append(Insertion(i, tuple(block)))
            block = []
        inside = False
        i += 1
    if block:
        found.append(Insertion(i, tuple(block)))
    return found


@dataclass(frozen=True, slots=True)
class Loop:
    """begin, stop: tokens of the base run that are one block again and again. count: how often there. axis: what counts it."""

    begin: int
    stop: int
    block: tuple[Token, ...]
    axis: str

    @property
    def count(self) -> int:
        return (self.stop - self.begin) // len(self.block)


def loops(
    axis: str,
    base: Sequence[Any],
    longer: Sequence[Any],
    more: int = 1,
    *,
    sequences: int = 1,
    token_of: Any = lambda token: token,
) -> Iterator[Loop]:
    """Where a block repeats, with all of its repetitions in `base`, and so rotated that it begins with a request if it can.

    more: how many more of the axis `longer` has. sequences: of which each has one more image: a block that is inserted once for
    each is of all images, another of its OWN. token_of: the first token of an element, if they are not tokens.
    """
    own = sequences > 1 and axis == "images"
    loop_of = partial(_loop, axis, base, more=more, own=own, token_of=token_of)
    for insertion in insertions(base, longer):
        yield from _loops(loop_of, insertion, more)


def _loops(loop_of: Callable[[Insertion], Loop], insertion: Insertion, more: int) -> Iterator[Loop]:
    """That of what is inserted; or of its parts, where one loop ends and the next begins."""
    whole = loop_of(insertion)
    if whole.count or more == len(insertion.block):
        yield whole
        return
    for stop in range(more, len(insertion.block)):
        first, rest = (Insertion(insertion.at, part) for part in (insertion.block[:stop], insertion.block[stop:]))
        if loop_of(first).count and (loops := [*_loops(loop_of, rest, more)])[-1].count:
            yield loop_of(first)
            yield from loops
            return
    yield whole


def _loop(axis: str, base: Sequence[Any], insertion: Insertion, *, more: int, own: bool, token_of: Any) -> Loop:
    """own: whether a block that is not inserted for each that is more is of images of one sequence."""
    block, size = insertion.block, len(insertion.block)
    if size % more == 0 and block[: size // more] * more == block:
        size //= more
    elif own:
        axis = OWN
    block = block[:size]
    if axis == "windows" and more > 1 and size == len(insertion.block):  # of which each sequence has one more
        size = next(part for part in range(1, size + 1) if block[:part] * (size // part) == block)
        block = block[:size]
    stream = [*base[: insertion.at], *block, *base[insertion.at :]]
    first, last = insertion.at, insertion.at + size  # in stream, of what has the period
    while first and stream[first - 1] == stream[first - 1 + size]:
        first -= 1
    while last < len(stream) and stream[last] == stream[last - size]:
        last += 1
    whole = (last - first) // size
    shifts = range(last - first - whole * size + 1)
    best = max(
        shifts,
        key=lambda shift: (_quality([*map(token_of, stream[first + shift : first + shift + size])]), -shift),
    )
    begin = first + best
    return Loop(begin, begin + (whole - 1) * size, tuple(stream[begin : begin + size]), axis)


def _quality(block: Sequence[Token]) -> tuple[bool, bool]:
    return block[0][0], not block[-1][0]

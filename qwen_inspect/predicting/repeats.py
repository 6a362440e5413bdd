"""A run whose tokens repeat for each image and for each window of a tower, written out for any number of them.

A token is a request or a free. Those of a loop are made once for each of its turns; their sizes depend on an image or a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from ..results.timeline import Stage
from ..typed import Any, NamedTuple
from ..values import dataclass
from .family_trace import NotCovered
from .kept_trace import KeptTrace


class Place(NamedTuple):
    """One of several, counted from the first or from the last: `step` times the turn of a loop further, and `offset`."""

    from_end: bool
    step: int
    offset: int

    def of(self, count: int, turn: int) -> int:
        index = (count - 1 if self.from_end else 0) + self.step * turn + self.offset
        if not 0 <= index < count:
            raise NotCovered
        return index


class Part(NamedTuple):
    """A number times variables times a number of the workload. item: of which image or window; None for one of the whole run."""

    numerator: int
    denominator: int
    variables: tuple[int, ...]
    number: str
    item: Place | None


Size = tuple[Part, ...]  # a sum, in bytes


class Target(NamedTuple):
    """A request that is freed: the number of its token, and which of those that its loop makes."""

    token: int
    place: Place


@dataclass(frozen=True, slots=True)
class Token:
    """turns: what the first, the other and the last turn of its loop do: sizes of a request, or targets of a free. There are as
    many as differ: one for all, or `split`: "first" and the others, the others and "last", or "both".

    use: as in a `Timeline`, of a request. module, operator: "" of a free.
    """

    turns: tuple[Any, ...]
    split: str = ""
    module: str = ""
    operator: str = ""
    use: str = ""

    def at(self, turn: int, count: int) -> Any:
        if self.split in ("first", "both") and turn == 0:
            return self.turns[0]
        if self.split in ("last", "both") and turn == count - 1:
            return self.turns[-1]
        return self.turns[1 if self.split in ("first", "both") else 0]


class Loop(NamedTuple):
    """axis: "images" or "windows", of which there is a turn for each and `more`; "" for tokens that are made once."""

    axis: str
    more: int
    tokens: tuple[Token, ...]

    def count(self, counts: Mapping[str, int]) -> int:
        return counts[self.axis] + self.more if self.axis else 1


@dataclass(frozen=True, slots=True)
class Program:
    """stages: each one's name and the number of the loop that it begins with. fewest: images and windows that it holds for."""

    stages: tuple[tuple[str, int], ...]
    loops: tuple[Loop, ...]
    fewest: Mapping[str, int]

    def run(
        self,
        values: Sequence[int],
        numbers: Mapping[str, int],
        items: Mapping[str, Sequence[Mapping[str, int]]],
    ) -> KeptTrace:
        """The run with sizes in bytes. values: of the variables. numbers: of the workload. items: numbers of each image and of
        each window. NotCovered for fewer of them than it holds for.
        """
        counts = {axis: len(each) for axis, each in items.items()}
        if any(counts[axis] < fewest for axis, fewest in self.fewest.items()):
            raise NotCovered
        allocations: list[tuple[tuple[int, ...], str, str]] = []
        order: list[int] = []
        kept: list[tuple[int, str]] = []
        made: list[dict[int, int]] = []  # of each token, by turn, the number of the request
        turns: list[int] = []  # of each token
        known: dict[tuple[Any, ...], int] = {}
        begins = {first: name for name, first in self.stages}
        stages: list[Stage] = []
        for number, loop in enumerate(self.loops):
            if number in begins:
                stages.append(Stage(name=begins[number], first_event=len(order)))
            count = loop.count(counts)
            first = len(made)
            made += [{} for _ in loop.tokens]
            turns += [count] * len(loop.tokens)
            of_axis = items[loop.axis or "images"]
            for turn in range(count):
                for index, token in enumerate(loop.tokens, first):
                    does = token.at(turn, count)
                    if not token.module:
                        request = made[does.token].pop(does.place.of(turns[does.token], turn), None)
                        if request is None:
                            raise NotCovered
                        order.append(-1 - request)
                        continue
                    key = does, turn if any(part.item for part in does) else None, loop.axis
                    if key not in known:
                        known[key] = _size(does, turn, values, numbers, of_axis)
                    made[index][turn] = len(allocations)
                    order.append(len(allocations))
                    if token.use:
                        kept.append((len(allocations), token.use))
                    allocations.append(((known[key],), token.module, token.operator))
        return KeptTrace(
            stages=tuple(stages),
            allocations=tuple(allocations),
            order=tuple(order),
            made_by="",
            kept=tuple(sorted(kept)),
        )


def _size(
    size: Size, turn: int, values: Sequence[int], numbers: Mapping[str, int], items: Sequence[Mapping[str, int]]
) -> int:
    """In bytes; NotCovered for a part of a byte."""
    total = 0
    for part in size:
        of = numbers if part.item is None else items[part.item.of(len(items), turn)]
        factors = prod([values[variable] for variable in part.variables])
        whole, rest = divmod(part.numerator * of[part.number] * factors, part.denominator)
        if rest:
            raise NotCovered
        total += whole
    return total

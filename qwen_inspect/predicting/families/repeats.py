"""A run whose tokens repeat for each image or video, for each frame, for each window of a tower and for each chunk of a prompt,
written out for any number of them.

A token is a request or a free. Those of a loop are made once for each of its turns; their sizes depend on an image or a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from ...results.timeline import Stage
from ...typed import Any, NamedTuple
from ...values import dataclass
from ..traces.kept_trace import ALIGNMENTS, Coefficients, KeptTrace, Vectors
from .family_trace import NotCovered


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


ONE = Place(False, 0, 0)


class Summed(NamedTuple):
    """A sum over rows: outputs and inputs of it, and how many numbers are loaded at a time, as in a `ColumnSum`."""

    outputs: Size
    inputs: Size
    vector: int


class Target(NamedTuple):
    """A request that is freed: the number of its token, which of those that its loop makes, and in which turn of its group."""

    token: int
    place: Place
    outer: Place = ONE


@dataclass(frozen=True, slots=True)
class Token:
    """turns: what the first, the other and the last turn of its loop do: sizes of a request, or targets of a free. There are as
    many as differ: one for all, or `split`: "first" and the others, the others and "last", or "both". Behind such a word and "/",
    these are so for the first, the other and the last turn of its group.

    use: as in a `Timeline`, of a request. module, operator: "" of a free. sums: of requests that are results of sums over rows,
    one of each turn.
    """

    turns: tuple[Any, ...]
    split: str = ""
    module: str = ""
    operator: str = ""
    use: str = ""
    sums: tuple[Summed, ...] = ()

    def at(self, turn: int, count: int, outer: int = 0, outers: int = 0) -> Any:
        """outer, outers: the turn of its group, and how many it has."""
        return self.turns[part_of(self.split, turn, count, outer, outers) if self.split else 0]

    def summed_at(self, turn: int, count: int, outer: int, outers: int) -> Summed | None:
        return self.sums[part_of(self.split, turn, count, outer, outers)] if self.sums else None


PARTS: Mapping[str, int] = {"": 1, "first": 2, "last": 2, "both": 3}  # into which turns are split


def part_of(split: str, turn: int, count: int, outer: int, outers: int) -> int:
    """Which of a token's turns a turn of its loop and group is."""
    of_group, _, own = split.rpartition("/")
    return _part(of_group, outer, outers) * PARTS[own] + _part(own, turn, count)


def _part(split: str, turn: int, count: int) -> int:
    if split in ("first", "both") and turn == 0:
        return 0
    if split in ("last", "both") and turn == count - 1:
        return PARTS[split] - 1
    return 1 if split in ("first", "both") else 0


class Loop(NamedTuple):
    """axis: "images", "frames", "pictures", "windows" or "chunks", or "own" for the images of one sequence, of which there is a
    turn for each and `more`; "" for tokens that are made once.
    """

    axis: str
    more: int
    tokens: tuple[Token, ...]

    def count(self, counts: Mapping[str, int]) -> int:
        return counts[self.axis] + self.more if self.axis else 1


class Group(NamedTuple):
    """Loops from number `first` to `stop` that are made for each sequence, one sequence after the other, and `more`."""

    first: int
    stop: int
    more: int


@dataclass(frozen=True, slots=True)
class Program:
    """stages: each one's name and the number of the loop that it begins with. fewest: images and windows that it holds for."""

    stages: tuple[tuple[str, int], ...]
    loops: tuple[Loop, ...]
    fewest: Mapping[str, int]
    groups: tuple[Group, ...] = ()

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
        sums: list[tuple[int, Coefficients, Coefficients, Vectors]] = []
        grouped = {number: group for group in self.groups for number in range(group.first, group.stop)}
        turns: list[tuple[int, int]] = []  # of each token's group and loop
        starts: list[int] = []  # of each loop, its first token
        for number, loop in enumerate(self.loops):
            starts.append(len(turns))
            outers = counts["sequences"] + grouped[number].more if number in grouped else 1
            turns += [(outers, loop.count(counts))] * len(loop.tokens)
        # Of each token, by turns of its group and loop, the number of the request.
        made: list[dict[tuple[int, int], int]] = [{} for _ in turns]
        known: dict[tuple[Any, ...], int] = {}

        def size_of(size: Size, turn: int, axis: str) -> int:
            key = size, turn if any(part.item for part in size) else None, axis
            if key not in known:
                known[key] = _size(size, turn, values, numbers, items[axis or "images"])
            return known[key]

        begins = {first: name for name, first in self.stages}
        stages: list[Stage] = []
        for number, outer, outers in loops_in_order(len(self.loops), self.groups, counts):
            if number in begins:
                stages.append(Stage(name=begins[number], first_event=len(order)))
            loop = self.loops[number]
            count = loop.count(counts)
            for turn in range(count):
                driver = outer if outers else turn
                for index, token in enumerate(loop.tokens, starts[number]):
                    does = token.at(turn, count, outer, outers)
                    if not token.module:
                        groups, inner = turns[does.token]
                        place = does.outer.of(groups, driver), does.place.of(inner, turn)
                        request = made[does.token].pop(place, None)
                        if request is None:
                            raise NotCovered
                        order.append(-1 - request)
                        continue
                    size = size_of(does, turn, loop.axis)
                    if (summed := token.summed_at(turn, count, outer, outers)) is not None:
                        outputs, inputs = (size_of(part, turn, loop.axis) for part in summed[:2])
                        sums.append((len(allocations), (outputs,), (inputs,), (summed.vector,) * len(ALIGNMENTS)))
                    made[index][outer, turn] = len(allocations)
                    order.append(len(allocations))
                    if token.use:
                        kept.append((len(allocations), token.use))
                    allocations.append(((size,), token.module, token.operator))
        return KeptTrace(
            stages=tuple(stages),
            allocations=tuple(allocations),
            order=tuple(order),
            made_by="",
            kept=tuple(sorted(kept)),
            sums=tuple(sums),
        )


def loops_in_order(loops: int, groups: Sequence[Group], counts: Mapping[str, int]) -> Iterator[tuple[int, int, int]]:
    """The numbers of the loops as they are made, each with the turn of its group and how many it has, 0 outside of groups."""
    at = 0
    for group in groups:
        yield from ((number, 0, 0) for number in range(at, group.first))
        outers = counts["sequences"] + group.more
        for outer in range(outers):
            yield from ((number, outer, outers) for number in range(group.first, group.stop))
        at = group.stop
    yield from ((number, 0, 0) for number in range(at, loops))


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

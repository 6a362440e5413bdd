"""The events of a training run with any number of turns of its loops over chunks, as `reserved.QuickAllocator` replays them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from ...typed import NamedTuple
from ...values import replace
from ..traces.training_turns import Loop, Turned
from .reserved import FEWEST_TIMES, TURN_EVENTS, Repeat, Stream, stream_of


class _Turns(NamedTuple):
    """Requests that take memory, with their distinct sizes, and repeats outside of loops."""

    turned: Turned
    size_of: Sequence[int]
    repeats: Sequence[Repeat]


class TurnedStreams:
    """order, size_of: as of a `Stream`, with as many turns of each loop as a trace has."""

    def __init__(self, order: Sequence[int], size_of: Sequence[int], loops: Sequence[Loop]) -> None:
        self._order, self._size_of, self._loops = order, size_of, loops
        self._turns: dict[tuple[bool, ...], _Turns] = {}  # by the sizes that take memory

    def of(self, missing: int, sizes: tuple[bool, ...]) -> Stream:
        """With so many turns more, and only the requests of the distinct sizes marked True in `sizes`; UnsupportedError as from
        `Turned`."""
        if sizes not in self._turns:
            self._turns[sizes] = self._of_sizes(sizes)
        turned, size_of, repeats = self._turns[sizes]
        order = turned.whole(missing)
        return Stream(order, turned.like(missing, size_of), tuple(_repeats(turned, missing, repeats)))

    def _of_sizes(self, sizes: tuple[bool, ...]) -> _Turns:
        stream = stream_of(self._order, self._size_of).of_sizes(sizes)
        taken = [sizes[self._size_of[entry if entry >= 0 else -1 - entry]] for entry in self._order]
        place = [*accumulate(taken, initial=0)]  # of each event among those that take memory
        loops = [
            Loop(place[loop.first], place[loop.first + loop.events] - place[loop.first], loop.turns)
            for loop in self._loops
        ]
        turned = Turned(stream.order, [loop for loop in loops if loop.events])
        outside = [repeat for repeat in stream.repeats if _is_outside(turned, repeat)]
        return _Turns(turned, stream.size_of, outside)


def _is_outside(turned: Turned, repeat: Repeat) -> bool:
    """Whether a repeat has nothing to do with loops."""
    end = repeat.first_event + repeat.times * repeat.events
    if any(loop.first < end and repeat.first_event < loop.end for loop in turned.loops):
        return False
    return turned.place_of.keys().isdisjoint(repeat.inherited)


def _repeats(turned: Turned, missing: int, outside: Sequence[Repeat]) -> list[Repeat]:
    moved = [
        replace(
            repeat,
            first_event=turned.moved_event(missing, repeat.first_event),
            first_request=turned.moved(missing, repeat.first_request),
            inherited=tuple([turned.moved(missing, request) for request in repeat.inherited]),
        )
        for repeat in outside
    ]
    return sorted([*moved, *_loops_repeats(turned, missing)], key=lambda repeat: repeat.first_event)


def _loops_repeats(turned: Turned, missing: int) -> Iterator[Repeat]:
    """Of loops whose turns free nothing but what they made, or turns shortly before."""
    for number, (loop, begin) in enumerate(zip(turned.loops, turned.begins(missing), strict=True)):
        rules, requests = turned.rules[number].values(), turned.per_turn[number]
        first = max([rule.turn for rule in rules], default=0)  # turn from which on they all do the same
        turns = loop.turns + missing - first
        together = max(1, min(TURN_EVENTS // loop.events, turns // (2 * FEWEST_TIMES)))  # short turns, as one
        if any(rule.mirrored for rule in rules) or first > together or turns < FEWEST_TIMES * together:
            continue
        inherited = [
            begin + turn * requests + turned.number_of[number][rule.place]
            for rule in rules
            for turn in range(first - rule.turn, first)
        ]
        yield Repeat(
            first_event=turned.moved_event(missing, loop.first) + first * loop.events,
            events=together * loop.events,
            times=turns // together,
            first_request=begin + first * requests,
            requests=together * requests,
            inherited=tuple(inherited),
        )

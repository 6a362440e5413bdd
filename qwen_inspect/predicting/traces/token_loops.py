"""Mamba's loop over a prompt's tokens, folded: of its turns a run has the first and the last, and a request for all between.

Each turn makes a state and frees the one before, and leaves an output behind, so that a turn for each token must be replayed: an
output is in a block of its own. The request between has the bytes of these outputs and the operator `repeated`, which tells how
many events before it make a turn. `unfolded` is the run that transformers makes.
Source: transformers 5.23, mamba_selective_scan in models/mamba/modeling_mamba.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...errors import UnsupportedError
from ...results.timeline import Allocate, Event, Free, Stage, Timeline
from ...standard import re
from ...typed import NamedTuple
from ...values import dataclass, replace
from .kept_trace import KeptTrace

REPEATED = " events repeated"  # the end of the operator of a request that stands for turns
_REPEATED = rf"(.*), (\d+){REPEATED}"
FEWEST_TURNS = 4  # that are folded
FOLDED_TOKENS = FEWEST_TURNS + 1  # the fewest of a folded prompt, whose first turn frees zeros
FEWEST_EVENTS, MOST_EVENTS = 4, 12  # of a turn


def repeated(operator: str, events: int) -> str:
    return f"{operator}, {events}{REPEATED}"


def is_folded(trace: KeptTrace) -> bool:
    return any(operator.endswith(REPEATED) for _, _, operator in trace.allocations)


class Turn(NamedTuple):
    """Requests of a turn by id: its state, that of the turn before, its output. events: of it."""

    events: Sequence[Event]
    state: int
    before: int
    output: Allocate

    @staticmethod
    def ending_at(events: Sequence[Event], index: int) -> Turn | None:
        """The turn before a request of this index that stands for more of them; None for any other request."""
        request = events[index]
        assert isinstance(request, Allocate)
        if (match := re.fullmatch(_REPEATED, request.operator)) is None:
            return None
        turn = events[index - int(match[2]) : index]
        made = {event.id: event for event in turn if isinstance(event, Allocate)}
        freed = {event.id for event in turn if isinstance(event, Free)}
        (before,) = freed - made.keys()
        outputs = [event for event in made.values() if event.id not in freed and event.operator == match[1]]
        (state,) = made.keys() - freed - {outputs[-1].id}
        return Turn(turn, state, before, outputs[-1])


def turns_of(request: Allocate, turn: Turn) -> int:
    """How many turns a request stands for."""
    return request.size_bytes // turn.output.size_bytes


def unfolded(timeline: Timeline) -> Timeline:
    """The run with all turns, its requests numbered in order."""
    events: list[Event] = []
    number: dict[int, int] = {}  # of the current storage of a request
    outputs: dict[int, list[int]] = {}  # of a request that stands for turns
    begins = {stage.first_event: stage for stage in timeline.stages}
    stages: list[Stage] = []
    count = 0

    def add(event: Allocate) -> int:
        nonlocal count
        events.append(event._replace(id=count))
        count += 1
        return count - 1

    for index, event in enumerate(timeline.events):
        if index in begins:
            stages.append(replace(begins[index], first_event=len(events)))
        if isinstance(event, Free):
            events += map(
                Free, reversed(outputs.get(event.id) or [number[event.id]])
            )  # a list lets go of its last first
        elif (turn := Turn.ending_at(timeline.events, index)) is None:
            number[event.id] = add(event)
        else:
            outputs[event.id] = []
            for _ in range(turns_of(event, turn)):
                now: dict[int, int] = {turn.before: number[turn.state]}
                for part in turn.events:
                    if isinstance(part, Allocate):
                        now[part.id] = add(part)
                    else:
                        events.append(Free(now[part.id]))
                number[turn.state] = now[turn.state]
                outputs[event.id].append(now[turn.output.id])
    kept = tuple(sorted((number[identity], use) for identity, use in timeline.kept))
    return replace(timeline, events=tuple(events), stages=tuple(stages), kept=kept)


@dataclass(frozen=True, slots=True)
class _Loop:
    """first: index of its first event. turns: each of so many events."""

    first: int
    events: int
    turns: int


def folded(timeline: Timeline) -> Timeline:
    """The run with its loops folded, its requests numbered in order."""
    sizes = {event.id: event for event in timeline.events if isinstance(event, Allocate)}
    loops = {loop.first: loop for loop in _loops(timeline.events)}
    events: list[Event] = []
    number: dict[int, int] = {}
    begins = {stage.first_event: stage for stage in timeline.stages}
    stages: list[Stage] = []
    freed: set[int] = set()
    index = 0
    while index <= len(timeline.events):
        if index in begins:
            stages.append(replace(begins[index], first_event=len(events)))
        if index == len(timeline.events):
            break
        loop = loops.get(index)
        for event in timeline.events[index : index + (loop.events if loop else 1)]:
            if isinstance(event, Allocate):
                number[event.id] = len(sizes) + len(number)
                events.append(event._replace(id=number[event.id]))
            elif number[event.id] not in freed:
                freed.add(number[event.id])
                events.append(Free(number[event.id]))
        index += loop.events if loop else 1
        if loop is not None:
            index += _merge(timeline.events, loop, events, number)
    renumbered = {event.id: new for new, event in enumerate(e for e in events if isinstance(e, Allocate))}
    return replace(
        timeline,
        events=tuple([event._replace(id=renumbered[event.id]) for event in events]),
        stages=tuple(stages),
        kept=tuple(sorted((renumbered[number[identity]], use) for identity, use in timeline.kept)),
    )


def _merge(source: Sequence[Event], loop: _Loop, events: list[Event], number: dict[int, int]) -> int:
    """Adds the request that stands for the turns but the first and the last; returns the number of their events."""
    end = loop.first + (loop.turns - 1) * loop.events
    last = source[end - loop.events : end]
    later = {event.id for event in source[end : end + loop.events] if isinstance(event, Free)}
    turn = [event for event in last if isinstance(event, Allocate)]
    own = {event.id for event in last if isinstance(event, Free)}
    outputs = [place for place, event in enumerate(turn) if event.id not in own | later]
    states = [place for place, event in enumerate(turn) if event.id in later]
    if len(outputs) != 1 or len(states) != 1:
        raise UnsupportedError("trace_no_period")
    requests = [event for event in source[loop.first : end] if isinstance(event, Allocate)]
    output = turn[outputs[0]]
    many = len(number) + 1 + 2 * len(source)
    of_turns = requests[len(turn) :]
    for place, event in enumerate(of_turns):
        if place % len(turn) == outputs[0]:
            number[event.id] = many
    number[of_turns[-len(turn) + states[0]].id] = number[requests[states[0]].id]
    operator = repeated(output.operator, loop.events)
    events.append(Allocate(many, output.size_bytes * (loop.turns - 2), output.module, operator))
    return (loop.turns - 2) * loop.events


def _loops(events: Sequence[Event]) -> Iterator[_Loop]:
    """Turns that are alike: events of the same sizes and operators, that free requests made as long before."""
    alike: list[tuple[object, ...]] = []
    made: dict[int, int] = {}
    for event in events:
        if isinstance(event, Allocate):
            made[event.id] = len(made)
            alike.append(event[1:])
        else:
            alike.append((len(made) - made[event.id],))
    at = 0
    while at < len(alike):
        size = next((size for size in range(FEWEST_EVENTS, MOST_EVENTS) if _are_turns(alike, at, size)), None)
        if size is None or len(alike[at]) == 1:
            at += 1
            continue
        turns = FEWEST_TURNS
        while alike[at : at + size] == alike[at + turns * size : at + (turns + 1) * size]:
            turns += 1
        yield _Loop(at, size, turns)
        at += turns * size


def _are_turns(alike: Sequence[object], at: int, size: int) -> bool:
    end = at + (FEWEST_TURNS - 1) * size
    return end + size <= len(alike) and alike[at] == alike[end] and alike[at:end] == alike[at + size : end + size]

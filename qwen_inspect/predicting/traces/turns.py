"""Linear attention's loop over the chunks of a prompt, of which a trace has the first turns: where it is, and all its turns.

Each turn takes and gives back what the one before did, but not always where, so that what is reserved may need them all.
Source: transformers 5.23, torch_chunk_gated_delta_rule and chunk_kimi_delta_attention; as recorded in gen-35-4B-4L
(benchmarks/recorded)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...results.exploration import Loop
from ...results.memory import Run
from ...results.timeline import Event, Timeline, allocations, frees, modules_of
from ...tracing import CHUNK_TURNS
from ...values import replace
from ..micro_batches import with_all_micro_batches
from .kept_trace import CHUNK_TOKENS

LINEAR = "linear_attn"  # the module of linear attention in a layer
ATTENTION, DECAYS = "self_attn", "aten.cumsum.default"  # Kimi's is named like any other; it alone sums decays up
FEWEST_ALIKE = 4  # turns that make a loop
FEWEST_EVENTS, MOST_EVENTS = 6, 64  # of a turn
MOST_ADDED_EVENTS = 20_000  # which replay in some 0.2 seconds; of more turns as many as that are added
TURN_IDS = 1 << 58


def missing_turns(prompt_tokens: int, loops: Sequence[Loop]) -> int:
    """How many turns a trace of a prompt lacks, as far as they are added."""
    events = sum(loop.events for loop in loops)
    missing = max(0, -(-prompt_tokens // CHUNK_TOKENS) - CHUNK_TURNS)
    return min(missing, MOST_ADDED_EVENTS // events) if events else 0


def with_all_turns(timeline: Timeline, run: Run) -> Timeline:
    """The run with a turn for each chunk of the prompt; a training run, which is traced with them, with all its micro-batches."""
    if run.mode == "train":
        return with_all_micro_batches(timeline, run)
    loops = loops_of(timeline)
    turns = missing_turns(run.prompt_tokens, loops)
    if not turns:
        return timeline
    made = [event for event in timeline.events if len(event) > 1]
    number = {event[0]: index for index, event in enumerate(made)}
    order = [number[event[0]] if len(event) > 1 else -1 - number[event[0]] for event in timeline.events]
    order, sources = with_turns(order, len(made), loops, turns)
    if sources:
        _, sizes, modules, operators = zip(*map(made.__getitem__, sources), strict=True)
        made += allocations(range(TURN_IDS, TURN_IDS + len(sources)), sizes, modules, operators)
    by_entry: list[Event] = [
        *made,
        *frees(event[0] for event in reversed(made)),
    ]  # negative indices: entry -1 - i frees i
    events = list(map(by_entry.__getitem__, order))
    added = len(events) - len(timeline.events)
    stages = tuple(
        stage if index < 2 else replace(stage, first_event=stage.first_event + added)
        for index, stage in enumerate(timeline.stages)
    )
    return replace(timeline, events=tuple(events), stages=stages)


def with_turns(order: Sequence[int], requests: int, loops: Sequence[Loop], turns: int) -> tuple[list[int], list[int]]:
    """A run with so many turns more of each loop, as its second turn, after that; and of each new request the one it is like.

    order: an entry that is not negative is the number of the request made then, of so many `requests`; -1 - number frees it.
    """
    whole: list[int] = []
    sources: list[int] = []
    at = 0
    for loop in loops:
        middle, end = loop.first_event + loop.events, loop.first_event + 2 * loop.events
        first, second = order[loop.first_event : middle], order[middle:end]
        place_in_first = {entry: index for index, entry in enumerate(first) if entry >= 0}
        place_in_second = {entry: index for index, entry in enumerate(second) if entry >= 0}
        if any(entry < 0 and -1 - entry not in {**place_in_first, **place_in_second} for entry in second):
            continue  # a turn that frees what neither it nor the one before made
        before = {index: entry for entry, index in place_in_second.items()}
        whole += order[at:end]
        for _ in range(turns):
            turn: dict[int, int] = {}
            for index, entry in enumerate(second):
                if entry >= 0:
                    turn[index] = requests + len(sources)
                    sources.append(entry)
                    whole.append(turn[index])
                elif -1 - entry in place_in_second:
                    whole.append(-1 - turn[place_in_second[-1 - entry]])
                else:
                    whole.append(-1 - before[place_in_first[-1 - entry]])
            before = turn
        freed = {entry: before[index] for entry, index in place_in_second.items()}
        rest = order[end : end + loop.events]  # which frees what is left of the turn before it
        whole += [-1 - freed.get(-1 - entry, -1 - entry) if entry < 0 else entry for entry in rest]
        at = end + loop.events
    whole += order[at:]
    return whole, sources


def loops_of(timeline: Timeline) -> tuple[Loop, ...]:
    """The loops of each module of linear attention in the first forward: the shortest stretch of events that is repeated."""
    if len(timeline.stages) < 2:
        return ()
    begin = timeline.stages[1].first_event
    end = timeline.stages[2].first_event if len(timeline.stages) > 2 else len(timeline.events)
    events = timeline.events[:end]
    decaying = modules_of(event for event in events if len(event) > 1 and event[3] == DECAYS)
    linear = {module for module in modules_of(events) if module.endswith(LINEAR)}
    linear |= {module for module in decaying if module.endswith(ATTENTION)}
    if not linear:
        return ()
    kinds: dict[tuple[object, ...], int] = {}  # of requests that differ in their ids alone
    kind_of = {event[0]: kinds.setdefault(event[1:], len(kinds)) for event in events if len(event) > 1}
    alike = "".join([chr(2 * kind_of[event[0]] + (len(event) > 1)) for event in events[begin:]])
    linear_kinds = {kind for (_, module, _), kind in kinds.items() if module in linear}
    is_linear = [kind_of[event[0]] in linear_kinds for event in events[begin:]]
    return tuple(replace(loop, first_event=begin + loop.first_event) for loop in loops_in(alike, is_linear))


def loops_in(alike: str, is_linear: Sequence[bool]) -> Iterator[Loop]:
    """The loops that begin with an event of linear attention. alike: a character for each event, equal for events that do the
    same."""
    at = 0
    while at < len(alike):
        events = events_of_a_turn(alike, at) if is_linear[at] else None
        if events is None:
            at += 1
            continue
        yield Loop(first_event=at, events=events)
        while alike[at : at + events] == alike[at + events : at + 2 * events]:
            at += events
        at += events


def events_of_a_turn(alike: str, at: int, most: int = MOST_EVENTS) -> int | None:
    """Of the shortest turns that begin here, of less than `most` events; None where none do."""
    again = alike.find(alike[at], at + FEWEST_EVENTS, at + most)
    while again >= 0:
        events = again - at
        end = at + (FEWEST_ALIKE - 1) * events
        if end + events <= len(alike) and alike[at:end] == alike[again : end + events]:
            return events
        again = alike.find(alike[at], again + 1, at + most)
    return None

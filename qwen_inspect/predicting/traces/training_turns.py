"""Linear attention's loop over the chunks of a training run, of which a trace has the first turns: the run with all of them.

A forward keeps tensors of every turn, and the backward goes over the turns from the last to the first. So what a turn frees is
addressed from its place: so many turns before it in its own loop, or a turn of a forward's loop, counted from the other end.
The first and the last chunks do otherwise and belong to no loop; the turns between them are added, or taken away.
Source: transformers 5.23, torch_chunk_gated_delta_rule
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import accumulate, pairwise

from ...errors import UnsupportedError
from ...results.model import Report
from ...spec import LinearAttention
from ...tracing import CHUNK_TURNS
from ...typed import Any, NamedTuple, TypeVar
from ...values import replace
from .kept_trace import CHUNK_TOKENS, KeptTrace
from .segments import BACKWARD, FORWARD
from .turns import LINEAR, events_of_a_turn

Row = TypeVar("Row")
MOST_EVENTS = 256  # of a turn; a backward has more of them than a forward
FEWEST_CHUNKS = 3  # of a prompt whose run is that of CHUNK_TURNS turns without some: one or two chunks do other things


class Loop(NamedTuple):
    """Turns of so many events each, which do alike; the first begins at the event of index `first`."""

    first: int
    events: int
    turns: int

    @property
    def end(self) -> int:
        return self.first + self.events * self.turns


class Freed(NamedTuple):
    """What an event of a turn frees: the request that the event at `place` of a turn of `loop` makes.

    mirrored: that turn's number and this one's have the sum `turn`; else this one's is so much higher.
    """

    loop: int
    place: int
    turn: int
    mirrored: bool


def is_chunked(report: Report) -> bool:
    """Whether a layer has linear attention, whose loop runs over the chunks of a prompt."""
    return report.design is not None and any(
        isinstance(layer.attention, LinearAttention) for layer in report.spec.layers
    )


def turns_of(prompt_tokens: int) -> int:
    """How many turns a trace of such a prompt has: CHUNK_TURNS at most."""
    return min(-(-prompt_tokens // CHUNK_TOKENS), CHUNK_TURNS)


def turns_of_any(prompt_tokens: int) -> int:
    """How many turns the trace has that stands for such a prompt and for all others that do the same."""
    chunks = -(-prompt_tokens // CHUNK_TOKENS)
    return chunks if chunks < FEWEST_CHUNKS else CHUNK_TURNS


def with_chunks(trace: KeptTrace, prompt_tokens: int, turns: int = CHUNK_TURNS) -> KeptTrace:
    """The run with a turn for each chunk of such a prompt.

    turns: that the trace has. UnsupportedError if its loops are less regular than this, or have fewer turns than are taken away.
    """
    missing = -(-prompt_tokens // CHUNK_TOKENS) - turns
    if missing == 0:
        return trace
    made = [entry for entry in trace.order if entry >= 0]
    turned = turned_of(trace)
    order = turned.whole(missing)
    likes = turned.like(missing, made)

    def numbered(rows: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
        """What a trace says of its requests, and of those made like them."""
        by_entry: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
        for entry, *row in rows:
            by_entry[entry].append((*row,))
        said = [number for number, entry in enumerate(likes) if entry in by_entry] if by_entry else []
        return tuple([(number, *row) for number in said for row in by_entry[likes[number]]])

    return replace(
        trace,
        allocations=tuple(map(trace.allocations.__getitem__, likes)),
        order=tuple(order),
        stages=tuple(
            replace(stage, first_event=turned.moved_event(missing, stage.first_event)) for stage in trace.stages
        ),
        sums=numbered(trace.sums),
        kept=numbered(trace.kept),
        owners=numbered(trace.owners),
        buffers=numbered(trace.buffers),
    )


def regular_loops(trace: KeptTrace) -> list[Loop]:
    """The loops of linear attention; UnsupportedError for others than there are in training."""
    modules = {module for _, module, _ in trace.allocations if module.endswith(LINEAR)}
    loops = list(loops_of(trace, modules))
    _check_loops(trace, loops, modules)
    return loops


def turned_of(trace: KeptTrace) -> Turned:
    """The trace's order with other turns."""
    loops = regular_loops(trace)
    number_of = {entry: number for number, entry in enumerate([entry for entry in trace.order if entry >= 0])}
    order = [number_of[entry] if entry >= 0 else -1 - number_of[-1 - entry] for entry in trace.order]
    return Turned(order, loops)


def _check_loops(trace: KeptTrace, loops: Sequence[Loop], modules: Set[str]) -> None:
    """UnsupportedError unless each module has a loop in each forward, and as many as any other in each backward."""
    bounds = [*(stage.first_event for stage in trace.stages), len(trace.order)]
    for stage, (begin, end) in zip(trace.stages, pairwise(bounds), strict=True):
        if stage.name not in (FORWARD, BACKWARD):
            continue
        inside = (loop for loop in loops if begin <= loop.first < end)
        found = Counter(trace.allocations[_request(trace.order[loop.first])][1] for loop in inside)
        counts = {*found.values()}
        if found.keys() != modules or len(counts) != 1 or (stage.name == FORWARD and counts != {1}):
            raise UnsupportedError("trace_no_period")


def _request(entry: int) -> int:
    return entry if entry >= 0 else -1 - entry


def loops_of(trace: KeptTrace, modules: Set[str]) -> Iterator[Loop]:
    """Each stretch of events that begins with one of such a module and is repeated."""
    kinds: dict[object, int] = {}  # of requests that differ in nothing that is known of them
    sums = {entry: summed for entry, *summed in trace.sums}
    kind_of = [
        kinds.setdefault((*request, *map(tuple, sums[entry])) if entry in sums else request, len(kinds))
        for entry, request in enumerate(trace.allocations)
    ]
    looped = {kind_of[entry] for entry, (_, module, _) in enumerate(trace.allocations) if module in modules}
    begins = re.compile("|".join([re.escape(chr(2 * kind + is_made)) for kind in looped for is_made in (0, 1)]))
    alike = "".join([chr(2 * kind_of[entry] + 1 if entry >= 0 else 2 * kind_of[-1 - entry]) for entry in trace.order])
    at = 0
    while looped and (begin := begins.search(alike, at)) is not None:
        at = begin.start()
        events = events_of_a_turn(alike, at, MOST_EVENTS)
        if events is None:
            at += 1
            continue
        end = at + events
        while alike[end : end + events] == alike[at : at + events]:
            end += events
        yield Loop(at, events, (end - at) // events)
        at = end


class Turned:
    """Orders with more turns, or fewer, put together loop by loop. They stand in the middle of a loop, or are missing there.

    order: of a trace, with requests numbered as they are made. A turn that is not there, before the first or behind the last,
    stands for what the trace's first or last turns free of it. UnsupportedError for loops that are less regular than this.
    """

    def __init__(self, order: Sequence[int], loops: Sequence[Loop]) -> None:
        self.order, self.loops = order, loops
        made = [*accumulate([entry >= 0 for entry in order], initial=0)]
        self.requests = made[-1]
        self.first = [made[loop.first] for loop in loops]  # request of each loop
        self.per_turn = [made[loop.first + loop.events] - made[loop.first] for loop in loops]
        self._before = [*accumulate(self.per_turn, initial=0)]  # requests of a turn of all loops before each
        self.place_of = {  # of each request of a loop: the loop, the turn and the place in it
            entry: (number, *divmod(index, loop.events))
            for number, loop in enumerate(loops)
            for index, entry in enumerate(order[loop.first : loop.end])
            if entry >= 0
        }
        self.number_of = [  # of each request in its turn, by place
            {place: made[loop.first + place] - made[loop.first] for place in range(loop.events)} for loop in loops
        ]
        self.rules = [self._freed(number, loop) for number, loop in enumerate(loops)]
        # By loop, turn and place in it, what stands for a turn that is not there.
        self.beyond: dict[tuple[int, int, int], int] = {}
        for number, loop in enumerate(loops):
            self._look_beyond(number, loop)
        self.freed = {-1 - entry for entry in order if entry < 0}

    def whole(self, missing: int) -> list[int]:
        """The order with so many more turns of each loop. UnsupportedError for fewer than it can do without."""
        return _Whole(self, missing).order

    def like(self, missing: int, rows: Sequence[Row]) -> list[Row]:
        """Of each request of the whole run what there is of the trace's that it is like. rows: of those."""
        whole: list[Row] = []
        at = 0
        for loop, first, requests in zip(self.loops, self.first, self.per_turn, strict=True):
            early, turns = loop.turns // 2, loop.turns + missing
            whole += rows[at : first + min(early, turns) * requests]
            at = first + max(early, min(early - missing, loop.turns)) * requests
            if missing > 0:
                whole += [*rows[at : at + requests]] * missing
        whole += rows[at:]
        return whole

    def begins(self, missing: int) -> list[int]:
        """The first request of each loop in the whole run."""
        return [first + missing * requests for first, requests in zip(self.first, self._before, strict=False)]

    def moved(self, missing: int, request: int) -> int:
        """The number in the whole run of a request that belongs to no loop."""
        return request + missing * self._before[bisect_right(self.first, request)]

    def moved_event(self, missing: int, event: int) -> int:
        """The index in the whole run of an event between loops."""
        return event + missing * sum(loop.events for loop in self.loops if loop.end <= event)

    def _freed(self, number: int, loop: Loop) -> dict[int, Freed]:
        """By place in the turn: what is freed there, a request of a loop. UnsupportedError if turns differ in that."""
        rules: dict[int, Freed] = {}
        for turn, place, entry in self._frees(loop):
            if (target := self.place_of.get(entry)) is not None:
                other, at, there = target
                rule = Freed(other, there, turn + (at if other != number else -at), other != number)
                if rules.setdefault(place, rule) != rule:
                    raise UnsupportedError("trace_no_period")
        if any(place not in rules for _, place, _ in self._frees(loop)):
            raise UnsupportedError("trace_no_period")
        return rules

    def _frees(self, loop: Loop) -> Iterator[tuple[int, int, int]]:
        """Turn, place and request of each free of the trace's loop."""
        for index, entry in enumerate(self.order[loop.first : loop.end]):
            if entry < 0:
                yield (*divmod(index, loop.events), -1 - entry)

    def _look_beyond(self, number: int, loop: Loop) -> None:
        """Learns what the loop's turns free that is of no loop, where they would free something of a turn that is not there."""
        for turn, place, entry in self._frees(loop):
            if entry in self.place_of:
                continue
            rule = self.rules[number][place]
            target = rule.turn - turn if rule.mirrored else turn - rule.turn
            key = rule.loop, target, rule.place
            if 0 <= target < self.loops[rule.loop].turns or self.beyond.setdefault(key, entry) != entry:
                raise UnsupportedError("trace_no_period")


class _Whole:
    """An order of so many more turns, in which each request is made once, and freed once and then, if the trace frees those like
    it; else UnsupportedError. What places of turns do is written at once for all turns that only free what turns made."""

    def __init__(self, turned: Turned, missing: int) -> None:
        loops = turned.loops
        if any(loop.turns + missing < 0 for loop in loops):
            raise UnsupportedError("trace_no_period")
        self._turned, self._missing = turned, missing
        self._first = turned.begins(missing)
        self._freed = bytearray(turned.requests + missing * sum(turned.per_turn))
        self.order: list[int] = []
        at = made = 0
        for number, loop in enumerate(loops):
            self._add_outside(turned.order[at : loop.first], made)
            self._add_turns(number)
            at, made = loop.end, self._first[number] + turned.per_turn[number] * (loop.turns + missing)
        self._add_outside(turned.order[at:], made)
        self._check_left()

    def _add_outside(self, entries: Sequence[int], made: int) -> None:
        """Events outside of the loops, which free something of the first turns or of the last ones, or nothing of them.

        made: so many requests before.
        """
        place_of, loops = self._turned.place_of, self._turned.loops
        for entry in entries:
            if entry >= 0:
                self.order.append(made)
                made += 1
                continue
            if (place := place_of.get(-1 - entry)) is None:
                request = self._turned.moved(self._missing, -1 - entry)
            else:
                loop, turn, there = place
                late = turn >= loops[loop].turns // 2
                request = self._request_at(loop, turn + self._missing if late else turn, there)
            self._free(request, made)
            self.order.append(-1 - request)

    def _add_turns(self, number: int) -> None:
        turned, loop, begin = self._turned, self._turned.loops[number], self._first[number]
        requests, turns = turned.per_turn[number], loop.turns + self._missing
        rules = turned.rules[number]
        order = [0] * (loop.events * turns)
        # The turns of which all that they free was made by turns.
        ends = [self._turns_that_free(rule) for rule in rules.values()]
        low = min(max([0, *(first for first, _ in ends)]), turns)
        high = max(min([turns, *(end for _, end in ends)]), low)
        made = 0
        for place, entry in enumerate(turned.order[loop.first : loop.first + loop.events]):
            if entry >= 0:
                order[place :: loop.events] = range(begin + made, begin + made + turns * requests, requests)
                made += 1
                continue
            rule = rules[place]
            step = turned.per_turn[rule.loop] if rule.mirrored else -requests
            for turn in (*range(low), *range(high, turns)):
                request = self._request_at(rule.loop, self._target(rule, turn), rule.place)
                self._free(request, begin + turn * requests + made)
                order[turn * loop.events + place] = -1 - request
            if low < high:
                first = self._request_at(rule.loop, self._target(rule, low), rule.place)
                freed = range(first, first - (high - low) * step, -step)
                self._free_all(freed, (begin + low * requests + made, begin + (high - 1) * requests + made))
                order[low * loop.events + place : high * loop.events : loop.events] = range(
                    -1 - first, -1 - first + (high - low) * step, step
                )
        self.order += order

    def _target(self, rule: Freed, turn: int) -> int:
        return rule.turn + self._missing - turn if rule.mirrored else turn - rule.turn

    def _turns_that_free(self, rule: Freed) -> tuple[int, int]:
        """The first turn that frees something of a turn that is there, and the first one after it that does not."""
        turns = self._turned.loops[rule.loop].turns + self._missing
        if rule.mirrored:
            return rule.turn + self._missing - turns + 1, rule.turn + self._missing + 1
        return rule.turn, turns + rule.turn

    def _request_at(self, loop: int, turn: int, place: int) -> int:
        """The request of a turn, or what stands for it."""
        turned = self._turned
        turns = turned.loops[loop].turns + self._missing
        if 0 <= turn < turns:
            return self._first[loop] + turn * turned.per_turn[loop] + turned.number_of[loop][place]
        found = turned.beyond.get((loop, turn if turn < turns else turn - self._missing, place))
        if found is None:
            raise UnsupportedError("trace_no_period")
        return turned.moved(self._missing, found)

    def _free(self, request: int, made: int) -> None:
        if request >= made or self._freed[request]:
            raise UnsupportedError("trace_no_period")
        self._freed[request] = 1

    def _free_all(self, requests: range, made: tuple[int, int]) -> None:
        """made: so many before the first is freed, and before the last."""
        if requests[0] >= made[0] or requests[-1] >= made[1]:
            raise UnsupportedError("trace_no_period")
        ordered = requests if requests.step > 0 else requests[::-1]
        places = slice(ordered[0], ordered[-1] + 1, ordered.step)
        if 1 in self._freed[places]:
            raise UnsupportedError("trace_no_period")
        self._freed[places] = b"\1" * len(ordered)

    def _check_left(self) -> None:
        turned, freed = self._turned, self._freed
        likes = turned.like(self._missing, range(turned.requests))
        left = set()
        at = freed.find(0)
        while at >= 0:
            left.add(likes[at])
            at = freed.find(0, at + 1)
        if left != {*likes} - turned.freed:
            raise UnsupportedError("trace_no_period")

"""Linear attention's loop over the chunks of a training run, of which a trace has the first turns: the run with all of them.

A forward keeps tensors of every turn, and the backward goes over the turns from the last to the first. So what a turn frees is
addressed from its place: so many turns before it in its own loop, or a turn of a forward's loop, counted from the other end.
The first and the last chunks do otherwise and belong to no loop; the turns between them are added, or taken away.
Source: transformers 5.23, torch_chunk_gated_delta_rule
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import pairwise
from operator import itemgetter

from ...errors import UnsupportedError
from ...results.model import Report
from ...spec import LinearAttention
from ...tracing import CHUNK_TURNS
from ...typed import Any, NamedTuple
from ...values import replace
from .kept_trace import CHUNK_TOKENS, KeptTrace
from .segments import BACKWARD
from .turns import LINEAR, events_of_a_turn

FORWARD = "forward"
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
    return Turned(trace).whole(missing)


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
    begins = {chr(2 * kind + is_made) for kind in looped for is_made in (0, 1)}
    alike = "".join([chr(2 * kind_of[entry] + 1 if entry >= 0 else 2 * kind_of[-1 - entry]) for entry in trace.order])
    at = 0
    while at < len(alike):
        events = events_of_a_turn(alike, at, MOST_EVENTS) if alike[at] in begins else None
        if events is None:
            at += 1
            continue
        end = at + events
        while alike[end : end + events] == alike[at : at + events]:
            end += events
        yield Loop(at, events, (end - at) // events)
        at = end


class Turned:
    """Runs of so many more turns, or fewer, put together loop by loop. They stand in the middle of a loop, or are missing there.

    A turn that is not there, before the first or behind the last, stands for what the trace's first or last turns free of it.
    UnsupportedError for a trace whose loops are less regular than this.
    """

    def __init__(self, trace: KeptTrace) -> None:
        modules = {module for _, module, _ in trace.allocations if module.endswith(LINEAR)}
        loops = list(loops_of(trace, modules))
        _check_loops(trace, loops, modules)
        self._trace, self._loops, self._missing = trace, loops, 0
        self._place_of = {  # of each request of a loop: the loop, the turn and the place in it
            entry: (number, *divmod(index, loop.events))
            for number, loop in enumerate(loops)
            for index, entry in enumerate(trace.order[loop.first : loop.end])
            if entry >= 0
        }
        self._rules = [self._freed(number, loop) for number, loop in enumerate(loops)]
        # By loop, turn and place in it, what stands for a turn that is not there.
        self._beyond: dict[tuple[int, int, int], int] = {}
        for number, loop in enumerate(loops):
            self._look_beyond(number, loop)
        self._begin(0)

    def _begin(self, missing: int) -> None:
        self._missing = missing
        self._made: dict[tuple[int, int, int], int] = {}  # the request of each loop, turn and place
        self._allocations = list(self._trace.allocations)
        self._copies: dict[int, list[int]] = defaultdict(list)

    def whole(self, missing: int) -> KeptTrace:
        """The run with so many more turns of each loop. UnsupportedError for fewer than it can do without."""
        if any(loop.turns + missing < 0 for loop in self._loops):
            raise UnsupportedError("trace_no_period")
        self._begin(missing)
        trace, order, at = self._trace, list[int](), 0
        for number, loop in enumerate(self._loops):
            order += map(self._outside, trace.order[at : loop.first])
            early = loop.turns // 2  # the first turn that is counted from the end
            for turn in range(loop.turns + self._missing):
                like = turn if turn < early else max(early, turn - self._missing)
                begin = loop.first + like * loop.events
                is_new = early < turn <= early + self._missing
                order += self._turn(number, turn, trace.order[begin : begin + loop.events], is_new=is_new)
            at = loop.end
        order += map(self._outside, trace.order[at:])
        made = [entry for entry in order if entry >= 0]
        self._check(order, made)
        number_of = {request: index for index, request in enumerate(made)}

        def numbered(rows: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
            """What a trace says of its requests, and of those made like them."""
            whole = ((request, *row) for entry, *row in rows for request in (entry, *self._copies.get(entry, ())))
            there = ((number_of[request], *row) for request, *row in whole if request in number_of)
            return tuple(sorted(there, key=itemgetter(0)))

        return replace(
            trace,
            allocations=tuple(map(self._allocations.__getitem__, made)),
            order=tuple([number_of[entry] if entry >= 0 else -1 - number_of[-1 - entry] for entry in order]),
            stages=tuple(replace(stage, first_event=self._moved(stage.first_event)) for stage in trace.stages),
            sums=numbered(trace.sums),
            kept=numbered(trace.kept),
            owners=numbered(trace.owners),
            buffers=numbered(trace.buffers),
        )

    def _moved(self, event: int) -> int:
        """The index of an event between loops in the whole run."""
        return event + sum(self._missing * loop.events for loop in self._loops if loop.end <= event)

    def _turn(self, loop: int, turn: int, entries: Sequence[int], *, is_new: bool) -> list[int]:
        """entries: of the trace's turn that this one is like."""
        rules, made, missing = self._rules[loop], self._made, self._missing
        allocations, order = self._allocations, list[int]()
        for place, entry in enumerate(entries):
            if entry >= 0:
                request = entry
                if is_new:
                    request = len(allocations)
                    allocations.append(allocations[entry])
                    self._copies[entry].append(request)
                made[loop, turn, place] = request
                order.append(request)
                continue
            number, there, freed, mirrored = rules[place]
            target = freed + missing - turn if mirrored else turn - freed
            order.append(-1 - self._request_at(number, target, there))
        return order

    def _request_at(self, loop: int, turn: int, place: int) -> int:
        """The request of a turn, or what stands for it."""
        turns = self._loops[loop].turns + self._missing
        known = self._made if 0 <= turn < turns else self._beyond
        found = known.get((loop, turn if turn < turns else turn - self._missing, place))
        if found is None:
            raise UnsupportedError("trace_no_period")
        return found

    def _outside(self, entry: int) -> int:
        """An event outside of the loops, which frees something of the first turns or of the last ones, or nothing of them."""
        if entry >= 0 or (place := self._place_of.get(-1 - entry)) is None:
            return entry
        loop, turn, number = place
        late = turn >= self._loops[loop].turns // 2
        return -1 - self._request_at(loop, turn + self._missing if late else turn, number)

    def _freed(self, number: int, loop: Loop) -> dict[int, Freed]:
        """By place in the turn: what is freed there, a request of a loop. UnsupportedError if turns differ in that."""
        rules: dict[int, Freed] = {}
        for turn, place, entry in self._frees(loop):
            if (target := self._place_of.get(entry)) is not None:
                other, at, there = target
                rule = Freed(other, there, turn + (at if other != number else -at), other != number)
                if rules.setdefault(place, rule) != rule:
                    raise UnsupportedError("trace_no_period")
        if any(place not in rules for _, place, _ in self._frees(loop)):
            raise UnsupportedError("trace_no_period")
        return rules

    def _frees(self, loop: Loop) -> Iterator[tuple[int, int, int]]:
        """Turn, place and request of each free of the trace's loop."""
        for index, entry in enumerate(self._trace.order[loop.first : loop.end]):
            if entry < 0:
                yield (*divmod(index, loop.events), -1 - entry)

    def _look_beyond(self, number: int, loop: Loop) -> None:
        """Learns what the loop's turns free that is of no loop, where they would free something of a turn that is not there."""
        for turn, place, entry in self._frees(loop):
            if entry in self._place_of:
                continue
            rule = self._rules[number][place]
            target = rule.turn - turn if rule.mirrored else turn - rule.turn
            key = rule.loop, target, rule.place
            if 0 <= target < self._loops[rule.loop].turns or self._beyond.setdefault(key, entry) != entry:
                raise UnsupportedError("trace_no_period")

    def _check(self, order: Sequence[int], made: Sequence[int]) -> None:
        """UnsupportedError unless each request is made once, and freed once and then, if the trace frees those like it."""
        made_at = {entry: index for index, entry in enumerate(order) if entry >= 0}
        freed_at = {-1 - entry: index for index, entry in enumerate(order) if entry < 0}
        late = len(order)
        if len(made_at) + len(freed_at) < late or any(
            made_at.get(entry, late) > index for entry, index in freed_at.items()
        ):
            raise UnsupportedError("trace_no_period")
        like = {copy: entry for entry, copies in self._copies.items() for copy in copies}
        freed = {-1 - entry for entry in self._trace.order if entry < 0}
        left = {like.get(entry, entry) for entry in made} - freed
        if {like.get(entry, entry) for entry in made_at.keys() - freed_at.keys()} != left:
            raise UnsupportedError("trace_no_period")

"""Matches a real run's allocations with its trace's requests: what the trace lacks, and what is alive at the real peak.

A request of the trace matches an allocation of its size and, if the record has operators, of its operator. An unmatched
allocation is scratch if its operator frees it. A request that the run never made does not stop the matching: the longest common
stretches around it are matched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

from ..predicting.allocation.on_device import WORKSPACE
from ..results.timeline import Allocate, Change, Event, Free, Record, Stage, Timeline
from ..typed import TypeVar
from ..values import dataclass

# Operators that only allocate for their caller.
ALLOCATING = frozenset({"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::resize_", "aten::zeros"})
# The profiler's names of operators with another name below autograd.
ALSO_CALLED: Mapping[str, str] = {"aten::new_zeros": "aten::zeros"}
CAST = "aten::_to_copy"
EMBEDDING = "aten.embedding.default"  # a forward's first operator
UNKNOWN = "–"
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Living:
    """What is alive in the real run at a moment: requests of the trace, and other storages by operator."""

    traced: tuple[Allocate, ...]
    others: Mapping[str, tuple[int, int]]  # operator -> storages, bytes

    @property
    def size_bytes(self) -> int:
        return sum(request.size_bytes for request in self.traced) + sum(size for _, size in self.others.values())

    def size_of(self, operator: str) -> int:
        """Living bytes of an operator, in the trace or not."""
        traced = sum(request.size_bytes for request in self.traced if request.operator == operator)
        return traced + self.others.get(operator, (0, 0))[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """peaks, ends: living bytes by stage, at the peak and at the end. peak_stage, at_peak: the overall peak.

    missing: the trace's requests that the run never made, in order; at the first of them the two diverge.
    """

    peaks: Mapping[str, int]
    ends: Mapping[str, int]
    peak_stage: str
    at_peak: Living
    at_end: Living
    missing: tuple[Allocate, ...]


def match(record: Record, timeline: Timeline) -> Match:
    """Matches a record with a trace. Its first stage, "load", is skipped, as the record does not have it.

    The trace has only the last decode step, which is matched with the record's last; earlier ones only count for the peaks.
    """
    run = _Run()
    predicted = _parts(timeline.events, timeline.stages)[1:]
    steps = _parts(record.changes, record.stages)
    last_step = max((index for index, (name, _) in enumerate(steps) if name == "decode"), default=None)
    for index, (name, changes) in enumerate(steps):
        events: Sequence[Event] = ()
        if predicted and (name != "decode" or index == last_step):
            _, events = predicted.pop(0)
            if name == "decode":
                events = run.catch_up(events)
        run.follow(name, changes, events)
    return run.match()


def _parts(items: Sequence[_Item], stages: Sequence[Stage]) -> list[tuple[str, Sequence[_Item]]]:
    bounds = [*(stage.first_event for stage in stages), len(items)]
    return [(stage.name, items[stage.first_event : end]) for stage, end in zip(stages, bounds[1:], strict=True)]


class _Run:
    """The state of the matching: the real run's living allocations by address, and the trace's by id."""

    def __init__(self) -> None:
        self.real: dict[int, tuple[Change, Allocate | None]] = {}
        self.real_bytes = 0
        self.traced: dict[int, Allocate] = {}
        self.peaks: dict[str, int] = {}
        self.ends: dict[str, int] = {}
        self.peak_bytes = -1
        self.peak_stage = ""
        self.at_peak: dict[int, tuple[Change, Allocate | None]] = {}
        self.missing: list[Allocate] = []

    def follow(self, stage: str, changes: Sequence[Change], events: Sequence[Event]) -> None:
        requests = [event for event in events if isinstance(event, Allocate)]
        pairs = _pairs(changes, requests)
        self.peaks[stage] = max(self.peaks.get(stage, 0), self.real_bytes)
        rising = False
        for index, change in enumerate(changes):
            if change.size_bytes < 0:
                if rising:
                    self._note_peak(stage)
                rising = False
                if (freed := self.real.pop(change.address, None)) is not None:
                    self.real_bytes -= freed[0].size_bytes
                continue
            self.real[change.address] = change, pairs.get(index)
            self.real_bytes += change.size_bytes
            rising = True
        if rising:
            self._note_peak(stage)
        self.ends[stage] = self.real_bytes
        self._trace(events)
        matched_ids = {request.id for request in pairs.values()}
        self.missing += [request for request in requests if request.id not in matched_ids]

    def catch_up(self, events: Sequence[Event]) -> Sequence[Event]:
        """Advances the trace to the first operator of a step's forward and matches what is alive; returns the other events."""
        begins = next(
            (at for at, event in enumerate(events) if isinstance(event, Allocate) and event.operator == EMBEDDING), 0
        )
        self._trace(events[:begins])
        matched_ids = {request.id for _, request in self.real.values() if request is not None}
        unmatched: dict[int, list[Allocate]] = {}
        for request in self.traced.values():
            if request.id not in matched_ids:
                unmatched.setdefault(request.size_bytes, []).append(request)
        for address, (change, matched) in self.real.items():
            if matched is None and (candidates := unmatched.get(change.size_bytes)):
                self.real[address] = change, candidates.pop(0)
        return events[begins:]

    def match(self) -> Match:
        return Match(
            peaks=self.peaks,
            ends=self.ends,
            peak_stage=self.peak_stage,
            at_peak=_living(self.at_peak),
            at_end=_living(self.real),
            missing=tuple(self.missing),
        )

    def _note_peak(self, stage: str) -> None:
        self.peaks[stage] = max(self.peaks[stage], self.real_bytes)
        if self.real_bytes > self.peak_bytes:
            self.peak_bytes, self.peak_stage, self.at_peak = self.real_bytes, stage, dict(self.real)

    def _trace(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Free):
                self.traced.pop(event.id, None)
            else:
                self.traced[event.id] = event


def _pairs(changes: Sequence[Change], requests: Sequence[Allocate]) -> dict[int, Allocate]:
    """The trace's requests by the index of the change that each matches.

    First greedily in order, which matches all requests if that is possible. If not, by the longest stretches of equal sizes.
    """
    allocating = [index for index, change in enumerate(changes) if change.size_bytes > 0]
    pairs: dict[int, Allocate] = {}
    waiting = iter(requests)
    request = next(waiting, None)
    for index in allocating:
        if request is None:
            return pairs
        if _is_made_by(changes[index], request):
            pairs[index] = request
            request = next(waiting, None)
    if request is None:
        return pairs
    sizes = [request.size_bytes for request in requests], [changes[index].size_bytes for index in allocating]
    stretches = SequenceMatcher(None, *sizes, autojunk=False).get_matching_blocks()
    matches = (
        (allocating[there + step], requests[here + step]) for here, there, count in stretches for step in range(count)
    )
    return {index: request for index, request in matches if _is_made_by(changes[index], request)}


def _living(real: Mapping[int, tuple[Change, Allocate | None]]) -> Living:
    storages: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for change, request in real.values():
        if request is None:
            storages[_owner(change)] += 1
            sizes[_owner(change)] += change.size_bytes
    return Living(
        traced=tuple(request for _, request in real.values() if request is not None),
        others={operator: (storages[operator], size) for operator, size in sizes.most_common()},
    )


def _owner(change: Change) -> str:
    """The operator that an unmatched storage is attributed to."""
    named = (name for name in reversed(change.operators) if name not in ALLOCATING)
    return next(named, change.operators[-1] if change.operators else UNKNOWN)


def _is_made_by(change: Change, request: Allocate) -> bool:
    """Whether the request's own operator made this change, and not a cast within it."""
    if change.size_bytes != request.size_bytes:
        return False
    if not change.operators:
        return True
    if WORKSPACE in (request.operator, *change.operators):
        return change.operators == (request.operator,)
    if request.operator == "aten.lift_fresh.default":  # torch.tensor(number)
        return change.operators == ("aten::empty",)
    name = "aten::" + request.operator.split(".")[1]
    called = [operator.replace("_for_cpu", "") for operator in change.operators]
    name = name if name in called else ALSO_CALLED.get(name, name)
    return name in called and CAST not in called[called.index(name) + 1 :]

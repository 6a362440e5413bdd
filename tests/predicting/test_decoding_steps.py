"""The causes that `CAUSES` names for runs that peak in decoding: with whole steps replayed, peaks are the card's to the byte.

A prediction replays the last step whole, and before it the cache alone, which grows between steps.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from benchmarks.accuracy import recorded_peaks
from benchmarks.predicted import model_of, run_of
from benchmarks.recordings import FOLDER, read
from qwen_inspect.predicting.allocation.allocator import Allocator
from qwen_inspect.predicting.allocation.on_device import leap, on_device
from qwen_inspect.predicting.allocation.replay import replay
from qwen_inspect.predicting.predict import predict
from qwen_inspect.predicting.sources import symbolic_trace
from qwen_inspect.predicting.traces.kept_trace import KeptTrace, Point
from qwen_inspect.results.memory import Run
from qwen_inspect.results.timeline import Allocate, Event, Free, Timeline

FIRST_ID = 1 << 40
UNTIL_THE_END = "aten.masked_fill.Scalar"  # the prompt's positions, which `generate` frees when it returns
OF_ONE_STEP = "aten.clone.default"  # its token and position, replaced by the next step's


def in_whole_steps(kept: KeptTrace, run: Run) -> Timeline:
    """The run with each decoding step as the trace has its last."""
    first = kept.at(Point(run.batch, run.prompt_tokens, run.cached_tokens))
    begin = next(stage.first_event for stage in first.stages if stage.name == "decode")
    events: list[Event] = list(first.events[:begin])
    caches = [old.id for old, _ in leap(first)]
    before: dict[str, int] = {}  # what the step before left, by the name that this step knows it by
    for cached in range(run.prompt_tokens + 1, run.cached_tokens + 1):
        timeline = kept.at(Point(run.batch, run.prompt_tokens, cached))
        made = {event.id: event for event in timeline.events if isinstance(event, Allocate)}
        pairs = leap(timeline)
        step = timeline.events[begin + 2 * len(pairs) :]
        own = {event.id for event in step if isinstance(event, Allocate)}
        freed = {event.id for event in step if isinstance(event, Free)}
        ids = {new.id: cache for (_, new), cache in zip(pairs, caches, strict=True)}
        # The token ids and the mask, which the trace lengthens at once to what the step before has.
        lengthened = [new.id for new, old in pairwise(step[:4]) if isinstance(new, Allocate) and isinstance(old, Free)]
        replaced = dict(zip(lengthened, _successors(step, lengthened, made), strict=True))
        is_last = cached == run.cached_tokens
        if before:
            step = step[4:]
            ids |= {identity: before[f"next {number}"] for number, identity in enumerate(lengthened)}
        returns = next(
            index
            for index, event in enumerate(step)
            if isinstance(event, Free) and made[event.id].operator == UNTIL_THE_END
        )
        steps_left: dict[str, int] = {}
        for event in step if is_last else step[:returns]:
            if isinstance(event, Allocate):
                ids[event.id] = FIRST_ID + len(events)
                events.append(event._replace(id=ids[event.id]))
                if event.module == "generate" and event.operator == OF_ONE_STEP:
                    name = f"{OF_ONE_STEP} {len(steps_left)}"
                    events += [Free(before[name])] if name in before else []
                    steps_left[name] = ids[event.id]
            elif event.id in ids:
                events.append(Free(ids[event.id]))
            else:
                events.append(Free(before.get(made[event.id].operator, event.id)))
        outliving = [
            identity
            for identity in own
            if identity not in {event.id for event in step[:returns] if isinstance(event, Free)}
        ]
        before = steps_left | {made[identity].operator: ids[identity] for identity in outliving if identity in ids}
        before |= {f"next {number}": ids[later] for number, later in enumerate(replaced.values()) if later in ids}
        caches = [
            ids[event.id]
            for event in timeline.events
            if event.id in own - freed and isinstance(event, Allocate) and event.module.endswith("attn")
        ]
    return replace(first, events=tuple(events))


def _successors(step: tuple[Event, ...], lengthened: list[int], made: dict[int, Allocate]) -> list[int]:
    """What takes the place of each: the last request of its operator before it is freed."""
    latest, found = 0, dict.fromkeys(lengthened, 0)
    for event in step:
        if (
            isinstance(event, Allocate)
            and event.module == "generate"
            and event.operator == made[lengthened[0]].operator
        ):
            latest = event.id
        elif isinstance(event, Free) and event.id in found:
            found[event.id] = latest
    return list(found.values())


@pytest.mark.parametrize(
    ("name", "sequences", "predicted_less"),
    [
        ("h100-second/moe8-30B-6L", 8, 1_684_480),
        pytest.param("h100/gen-0.6B-512", 1, 21_504, marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_replayed_in_whole_steps_peaks_where_the_card_did(name: str, sequences: int, predicted_less: int) -> None:
    recording = read(FOLDER / f"{name}.xz")
    report = model_of(recording)
    run = run_of(recording, report)
    kept = symbolic_trace(report, run)
    assert kept is not None
    allocated, reserved = recorded_peaks(recording)
    found = replay(on_device(in_whole_steps(kept, run), run), Allocator())
    held_by_caller = sequences * 8 * 512 + 2 * 512  # the prompts' mask, and two blocks more
    assert (found.peak.allocated_bytes, found.peak.reserved_bytes) == (allocated - held_by_caller, reserved)
    # As it is predicted, with the last step alone.
    assert predict(report, run).predicted.peak_allocated_bytes == allocated - predicted_less

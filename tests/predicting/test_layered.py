"""A run in pieces takes what all its events take: at its peak, at its end, and reserved."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.keep_traces import bases_of, first_layers, layers_needed, outline, report_of
from benchmarks.sampling import sampled, sampled_point
from qwen_inspect.errors import QwenInspectError
from qwen_inspect.predicting.allocation.allocator import DEFAULTS, Allocator, Settings
from qwen_inspect.predicting.allocation.on_device import PARAMETER, growing, leap
from qwen_inspect.predicting.allocation.replay import replay
from qwen_inspect.predicting.footprint import layered_footprint, traced_footprint
from qwen_inspect.predicting.layered import layered_replay
from qwen_inspect.predicting.layered.layered_pools import Pools
from qwen_inspect.predicting.layered.layered_replay import layered_peak
from qwen_inspect.predicting.layered.layered_run import OTHER, Doing, LayeredRun, Made, Piece, Target
from qwen_inspect.predicting.sources import family_trace, layered_run, point_of
from qwen_inspect.results.memory import Mode, Run
from qwen_inspect.results.timeline import Allocate, Event, Free, Stage, Timeline, living

from ..support.allocators import MIB
from .test_family_traces import FORWARD, KEPT

DIVIDED = Settings(roundup_divisions=(4,) * 16)
SIZES = st.sampled_from([256, 512, 3000, 12_288, 200_000, 300_000, MIB, MIB + 1, 3 * MIB, 9 * MIB, 11 * MIB, 30 * MIB])


def all_events(run: LayeredRun) -> Timeline:
    events: list[Event] = []
    begins = []

    def identity(target: Target) -> int:
        return target.piece * layered_replay.PIECE_IDS + target.number

    for number, piece in enumerate(run.pieces):
        begins.append(len(events))
        for entry in piece.doing.order:
            if entry >= 0:
                made = piece.doing.requests[entry]
                whole = Allocate(identity(Target(number, entry)), made.size_bytes, piece.module(made), made.operator)
                events.append(whole)
            else:
                target = piece.targets[OTHER - entry] if entry <= OTHER else Target(number, -1 - entry)
                events.append(Free(identity(target)))
    stages = tuple(Stage(name=name, first_event=begins[first]) for name, first in run.stages)
    return Timeline(events=tuple(events), stages=stages)


@st.composite
def layered_runs(draw: st.DrawFn) -> LayeredRun:
    """Two kinds of layers, each of which frees what the layer before left and leaves something; each keeps a cache, which grows
    before the layers are run again, for one token."""
    random = Random(draw(st.integers(0, 1 << 30)))
    few = draw(st.lists(SIZES, min_size=2, max_size=6))
    layers = draw(st.integers(2, 24))
    caches = draw(st.lists(st.sampled_from([20_000, 260_000, MIB, 2 * MIB]), max_size=2, unique=True))
    loaded = [Made(random.choice(few), f"weight.{number}", PARAMETER) for number in range(draw(st.integers(1, 9)))]
    pieces = [Piece(Doing(loaded, [*range(len(loaded))], (), 0), None, ())]
    kinds = draw(st.lists(st.integers(0, 1), min_size=layers, max_size=layers))

    def doing(kept: list[int], *, hands_on: bool) -> Doing:
        """Requests as they come, with what is kept and the one that is handed on; the first target is freed on the way."""
        requests: list[Made] = []
        order: list[int] = []
        alive: list[int] = []
        steps = draw(st.integers(4, 40))
        handed_at, *cached = random.sample(range(steps), len(kept) + 1)
        cached_at, freed_at = dict(zip(cached, kept, strict=True)), random.randrange(steps)
        for step in range(steps):
            if step in cached_at or step == handed_at:
                size = cached_at.get(step, few[0])
                module = f"layers.#.{'attn' if step in cached_at else 'mlp'}"
                order.append(len(requests))
                requests.append(Made(size, module, "cat", "cache" if step in cached_at else ""))
            elif alive and random.random() < 0.5:
                order.append(-1 - alive.pop(random.randrange(len(alive))))
            else:
                alive.append(len(requests))
                order.append(len(requests))
                requests.append(Made(random.choice(few), "layers.#.mlp", "mm"))
            if step == freed_at and hands_on:
                order.append(OTHER)
        order += [-1 - number for number in reversed(alive)]
        return Doing(requests, order, (), int(hands_on))

    def left(piece: int, use: str) -> list[Target]:
        done = pieces[piece].doing
        freed = {-1 - entry for entry in done.order if entry < 0}
        return [
            Target(piece, number)
            for number, made in enumerate(done.requests)
            if number not in freed and made.use == use
        ]

    stages = [("load", 0)]
    held: list[list[Target]] = []
    for stage in ("prefill", "decode"):
        stages.append((stage, len(pieces)))
        if stage == "decode":
            grows = Doing(
                [Made(size + 4000, "layers.#.attn", "cat", "cache") for size in caches],
                [entry for number in range(len(caches)) for entry in (number, OTHER - number)],
                (),
                len(caches),
            )
            for layer in range(layers):
                sizes = {pieces[old.piece].doing.requests[old.number].size_bytes: old for old in held[layer]}
                pieces.append(Piece(grows, layer, [sizes[size] for size in caches]))
            few[:] = [max(size // 64, 1) for size in few]
        embeds = Doing([Made(few[0], "embed", "mm")], [0], (), 0)
        pieces.append(Piece(embeds, None, ()))
        by_kind = [doing(caches if stage == "prefill" else [], hands_on=True) for _ in range(2)]
        for layer, kind in enumerate(kinds):
            targets = left(len(pieces) - 1, "")[-1:]
            pieces.append(Piece(by_kind[kind], layer, targets))
            if stage == "prefill":
                held.append(left(len(pieces) - 1, "cache"))
    return LayeredRun(stages, pieces)


@settings(max_examples=150, deadline=None)
@given(layered_runs(), st.sampled_from([2, 3, 40, 70, 200]), st.sampled_from([DEFAULTS, DIVIDED]))
def test_a_random_run_in_pieces_takes_what_its_events_take(run: LayeredRun, new_tokens: int, how: Settings) -> None:
    peak = layered_peak(run, how, new_tokens)
    whole = growing(all_events(run), new_tokens)
    replayed = replay(whole, Allocator(how))
    assert replayed.peak_event is not None
    assert peak.reserved_bytes == replayed.peak.reserved_bytes
    assert (peak.rounding_bytes, peak.end_rounding_bytes) == (
        replayed.at_peak.rounding_bytes,
        replayed.end.rounding_bytes,
    )
    first = [stage.first_event for stage in whole.stages]
    assert peak.stage == whole.stages[sum(begin <= replayed.peak_event for begin in first) - 1].name
    if peak.stage != "load":
        loaded = len(run.pieces[0].doing.requests)
        assert [event[1:] for event in peak.at_peak[1:]] == [event.request[1:] for event in replayed.alive[loaded:]]
        assert sum(event.size_bytes for event in peak.at_peak) == replayed.at_peak.requested_bytes
        assert sum(peak.storages.values()) == loaded
    assert sum(event.size_bytes for event in peak.at_end) == sum(event.size_bytes for event in living(whole.events))


@pytest.mark.parametrize("mode", ["generate", "forward"])
def test_a_familys_run_in_pieces_takes_what_its_events_take(mode: Mode) -> None:
    """For configurations and workloads that no trace was made from; most families have runs in pieces."""
    compared = set()
    families = KEPT if mode == "generate" else [str(param.values[0]) for param in FORWARD]
    for family in families:
        random = Random(f"{family} in pieces")
        base = random.choice([*bases_of(family, mode)][:4])
        try:
            whole = outline(report_of(base))
            report = report_of(first_layers(sampled(base, random), max(6, layers_needed(whole) if whole else 0)))
        except QwenInspectError:
            continue
        if (design := outline(report)) is None:
            continue
        for gpu in random.sample(("NVIDIA A100", "NVIDIA H100"), 1):
            point = sampled_point(design.thresholds, random)
            run = Run(
                mode=mode,
                batch=point.batch,
                prompt_tokens=point.prompt_tokens,
                new_tokens=point.total_tokens - point.prompt_tokens + 1,
                attention=report.spec.kernel,
                gpu=gpu,
                loader=random.choice(["warmup", "per-tensor"]),
            )
            composed, layered = family_trace(report, run), layered_run(report, run)
            if composed is None or layered is None:
                continue
            footprint = layered_footprint(layered, run)
            timeline = composed.trace.at(point_of(run))
            assert footprint == traced_footprint(timeline, run, provenance=composed.trace.made_by), (family, run)
            compared.add(family)
    assert mode == "forward" or len(compared) > len(families) // 2


@pytest.mark.parametrize("family", ["bloom", "deepseek_v32", "gpt_neox", "nemotron_h", "qwen3"])
def test_all_of_the_cache_grows_step_by_step(family: str) -> None:
    """Each storage that a trace marks, whatever the module's name. Source: transformers 5.23, cache_utils, DynamicLayer.update
    and DynamicIndexedLayer.update_indexer, which both concatenate."""
    report = report_of(next(iter(bases_of(family, "generate"))))
    run = Run(prompt_tokens=300, new_tokens=10, attention=report.spec.kernel, gpu="NVIDIA A100", loader="warmup")
    composed, layered = family_trace(report, run), layered_run(report, run)
    assert composed is not None
    assert layered is not None
    timeline = composed.trace.at(point_of(run))
    begin = next(stage.first_event for stage in timeline.stages if stage.name == "decode")
    before = {event.id for event in timeline.events[:begin]}
    freed = {event.id for event in timeline.events[begin:] if isinstance(event, Free)}
    cached = {identity for identity, use in timeline.kept if use == "cache"} & before & freed
    assert {old.id for old, _ in leap(timeline)} == cached != set()
    growth = layered_replay._growth(layered)[1]
    assert growth is not None
    assert len(growth.olds) == len(cached)


def test_most_layers_are_not_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    played = []

    play = Pools._play

    def counted(self: Pools, order: Sequence[int]) -> None:
        played.append(len(order))
        play(self, order)

    run = a_run_of(layers=60)
    monkeypatch.setattr(Pools, "_play", counted)
    layered_peak(run, DEFAULTS, 2)
    assert sum(played) * 4 < len(all_events(run).events)


def a_run_of(*, layers: int) -> LayeredRun:
    """Each layer takes and frees 20 blocks, and hands one on."""
    load = Piece(Doing([Made(30 * MIB, "weight", PARAMETER)], [0], (), 0), None, ())
    first = Piece(Doing([Made(4096, "embed", "mm")], [0], (), 0), None, ())
    some = [Made(4096 * (1 + number), "layers.#.mlp", "mm") for number in range(20)]
    order = [entry for number in range(0, 20, 2) for entry in (number, number + 1, -1 - number, -2 - number)]
    layer = Doing([*some, Made(4096, "layers.#", "add", "state")], [*order, 20, OTHER], (), 1)
    pieces = [load, first, Piece(layer, 0, [Target(1, 0)])]
    pieces += [Piece(layer, number, [Target(number + 1, 20)]) for number in range(1, layers)]
    return LayeredRun([("load", 0), ("prefill", 1)], pieces)

"""What an H100's allocator did in 51 runs, request by request: its model does the same, and predictions are what it told."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby, takewhile
from operator import itemgetter
from pathlib import Path

import pytest

from benchmarks.accuracy import CAUSES, PREDICTED_FILE, recorded_peaks, recorded_run
from benchmarks.predicted import model_of, row, unpredicted
from benchmarks.recordings import EMPTY, Recording, digest, each, pack, read
from qwen_inspect.measuring.matching import match
from qwen_inspect.predicting import sources
from qwen_inspect.predicting.allocation.allocator import Driver
from qwen_inspect.predicting.allocation.on_device import leap, on_device, sort_scratch_bytes
from qwen_inspect.predicting.allocation.replay import WARM_UP, replay
from qwen_inspect.predicting.predict import predict
from qwen_inspect.predicting.sources import timeline_of
from qwen_inspect.predicting.training_plan import plan_of
from qwen_inspect.results.memory import H100_CONTEXT_BYTES, Run
from qwen_inspect.results.model import Report
from qwen_inspect.results.timeline import Allocate, Change, Record, Stage, Timeline

from ..support.recorded import RecordedDriver, UpwardsDriver, replayed

RECORDINGS = {recording.name: recording for recording in each("h100")}
# Recorded after the driver's rule was found: they could not shape it.
LATER = {recording.name: recording for recording in each("h100-second")}
ALL = {**RECORDINGS, **LATER}
# The model has one stream and no private pools. This run compiles, and decodes out of CUDA graphs' pool: its last known stage.
BEFORE_GRAPHS = {"static-0.6B": "before call 2"}
# Where the model's driver puts segments elsewhere than the real one did, so that another of several free blocks of one size is
# taken: by so many bytes a stage's peak of reserved memory differs at most. Three used addresses again that they had given back;
# in the fourth, 330 MiB lay in a range that the driver had for itself before. With ever higher addresses all four are equal.
ELSEWHERE = {"file-0.6B": 25_165_824, "int8-1.7B": 25_165_824, "nf4-1.7B": 8_388_608, "gen-moe15-4L": 16_777_216}


def test_there_are_51_recordings_of_one_card_and_12_later_ones() -> None:
    assert (len(RECORDINGS), len(LATER)) == (51, 12)
    assert {(one.card, one.versions["torch"], one.versions["transformers"]) for one in ALL.values()} == {
        ("NVIDIA H100 80GB HBM3", "2.11.0+cu130", "5.23.0")
    }
    # As the recorder printed them: gen-0.6B-4096 with 13,850 requests, decode-0.6B with 498,666.
    assert len(RECORDINGS["gen-0.6B-4096"].requests) == 13_850
    assert len(RECORDINGS["decode-0.6B"].requests) == 498_666


def test_what_is_packed_is_read_again(tmp_path: Path) -> None:
    """Three requests, of which the first is freed, then the third; a segment is given back in between."""
    figures = {f"{kind}_bytes.all.{which}": 7 for kind in ("allocated", "reserved") for which in ("current", "peak")}
    raw = {
        "name": "a", "workload": "forward", "options": {"layers": 2}, "device": "a card", "torch": "2.11", "transformers": "5.23",
        "cuda": "13.0", "workspaces": 5, "stages": [["first", 3, figures, 9], ["second", 9, figures, None]],
        "events": [
            ["segment_alloc", 2_097_152, 4096, 0], ["alloc", 300, 4096, 0], ["alloc", 200, 4608, 0],
            ["alloc", 300, 5120, 0], ["free_requested", 300, 4096, 0], ["free_completed", 300, 4096, 0],
            ["segment_free", 20_971_520, 8192, 0], ["free_requested", 300, 5120, 0], ["free_completed", 300, 5120, 0],
        ],
    }  # fmt: skip
    path = tmp_path / "a.xz"
    path.write_bytes(pack(raw, model="m", driver="580"))
    recording = read(path)
    assert recording.order == (0, 1, 2, -1, EMPTY, -3)
    assert recording.requests == (300, 200, 300)
    assert recording.segments == ((4096, 2_097_152),)
    assert [(stage.name, stage.last, stage.process) for stage in recording.stages] == [
        ("first", 2, 9),
        ("second", 6, None),
    ]
    assert [stage.addresses for stage in recording.stages] == [digest([4096, 4608]), digest([5120])]


@pytest.mark.parametrize("name", ALL)
def test_every_block_lies_where_pytorch_put_it(name: str) -> None:
    """With the driver's addresses of segments: the model decides all else, when a segment is asked for and given back too."""
    recording = ALL[name]
    for stage, (ended, addresses, allocator) in zip(
        recording.stages, replayed(recording, RecordedDriver(recording.segments)), strict=False
    ):
        assert (ended, digest(addresses)) == (stage.name, stage.addresses)
        assert (allocator.allocated_bytes, allocator.reserved_bytes) == (stage.allocated, stage.reserved)
        assert (allocator.peak.allocated_bytes, allocator.peak.reserved_bytes) == (
            stage.allocated_peak,
            stage.reserved_peak,
        )
        if ended == BEFORE_GRAPHS.get(name):
            break


@pytest.mark.parametrize("name", ALL)
def test_reserved_memory_is_equal_where_the_driver_is_the_models(name: str) -> None:
    recording = ALL[name]
    differences = []
    for stage, (ended, _, allocator) in zip(recording.stages, replayed(recording, Driver()), strict=False):
        assert allocator.peak.allocated_bytes == stage.allocated_peak
        differences.append(abs(allocator.peak.reserved_bytes - stage.reserved_peak))
        if ended == BEFORE_GRAPHS.get(name):
            break
    assert max(differences) == ELSEWHERE.get(name, 0)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_runs_that_used_addresses_again_reserve_what_ever_higher_addresses_give(name: str) -> None:
    recording = RECORDINGS[name]
    upwards = replayed(recording, UpwardsDriver())
    for stage, (_, _, allocator) in zip(recording.stages, upwards, strict=True):
        assert allocator.peak.reserved_bytes == stage.reserved_peak, stage.name


# --- predictions

# Runs that a prediction tells of, and by how many bytes its peak of reserved memory is more than the recorded one. Where they
# generate, the recording's caller holds the prompt's mask too: `held_by_caller`.
PREDICTED = {
    "gen-moe15-4L": 16_777_216,  # as of its own requests: ELSEWHERE
    # Written by the process that reads it, whose 2 MiB are counted as room for it, and other segments were given back: ELSEWHERE.
    "file-0.6B": -35_651_584,
    "moe-30B-6L": 0,
    "gen-72B-2L": 0,
    "gen-0.6B-512": 0,
    "gen-0.6B-4096": 0,
    "decode-0.6B": 0,
    "gen-0.6B-32768": 0,
    "batch8-0.6B": 0,
    "gen-0.5B-4096": 0,
    "gen-8B-4L": 0,
    "gen-llama-4L": 0,
    "gen-mistral-4L": 0,
    "gen-dsv2-4L": 0,
    "gen-dsv3-3L": 0,
    "padded-8B-4L": 0,
    "next-4L": 0,
    "lora-qv-8B-8L": 0,
    "lora-8B-8L-ckpt": 0,
    "train-8B-4L-forloop": 0,
    "train-moe-2L-ckpt": 0,
    "train-moe-4L": 0,
}
# Of the later runs. 2 MiB are a segment of small blocks, of which what a trace leaves out (`untraced`) needs some.
LATER_PREDICTED = {
    "gen-7B": 0,
    "gen-14B": 0,
    "beside-0.6B-4096": 0,
    "moe8-30B-6L": 0,
    "decode1000-0.6B": -4_194_304,
}
# Predicted too, from traces that take seconds.
SLOWLY = [
    name
    for name, recording in ALL.items()
    if unpredicted(recording) is None and name not in {**PREDICTED, **LATER_PREDICTED}
]
AUTOCAST = ("autocast-0.6B", "autocast-0.6B-ckpt", "autocast-0.6B-1024")
SLOWLY_IN_ORDER = ("padded-0.6B-b4", "padded2048-0.6B-b4", *AUTOCAST)
# One of each kind, of which CI makes the traces; of the others `make exhaustive` does.
OF_EACH_KIND = (
    "train-0.6B-ckpt", "eager-train-0.6B", "lora-1.7B", "adamw8bit-0.6B", "autocast-0.6B-1024", "padded-0.6B-b4", "qlora-1.7B",
    "fp32-0.6B", "gen-gemma3-1b", "gen-35-4B-4L", "gen-gptoss-4L", "gen-glm-4L",
)  # fmt: skip


def marks_of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.slow if name in OF_EACH_KIND else pytest.mark.exhaustive


# Of runs that peak in decoding. Where a step lengthens the cache in the middle of a layer, that layer's activations are alive,
# which a trace lets grow between two steps: five of 2,048 bytes, one of 4,096 and two of 256 (and 6,144 of the caller);
# moe8-30B-6L peaks in a step before the last, where other gaps are left.
IN_DECODING = {"gen-0.6B-512": 21_504, "moe8-30B-6L": 1_684_480}


def held_by_caller(recording: Recording) -> int:
    """What the recording's caller holds that no prediction counts: the prompt's mask, 8 bytes a token, and what `generate` makes
    of special tokens (pad, and bos where the configuration names it), a block of 512 bytes for each.

    In `h100` one block more, which came to life before the first weight, while the recorder had transformers imported.
    """
    batch, tokens = recording.options["batch"], recording.options["context"]
    names = [stage.name for stage in recording.stages]
    begins, ends = (recording.stages[names.index(name)].last for name in ("inputs", "before call 1"))
    entries = recording.order[begins:ends]
    made = takewhile(lambda entry: recording.requests[entry] == 8, (entry for entry in entries if entry is not EMPTY))
    special = [entry for entry in made if -1 - entry not in entries]
    older = recording.requests[0] == 4
    mask = -(-8 * int(batch) * int(tokens) // 512) * 512
    return mask + 512 * (len(special) + int(older))


@pytest.mark.parametrize("name", PREDICTED)
def test_a_prediction_is_what_the_card_recorded(name: str) -> None:
    """The peaks of the run's stages: without those of random initialisation, which transformers' loader does not have."""
    recording = RECORDINGS[name]
    footprint = predict(model_of(recording), recorded_run(recording)).predicted
    assert footprint.peak is not None
    assert footprint.peak_reserved is not None
    assert footprint.peak.allocated is not None
    allocated, reserved = recorded_peaks(recording)
    if recording.workload == "generate":
        assert allocated - footprint.peak.allocated == IN_DECODING.get(name, held_by_caller(recording))
    assert abs(footprint.peak.allocated - allocated) <= max(2048, allocated // 10_000)
    assert footprint.peak_reserved - reserved == PREDICTED[name]


@pytest.mark.parametrize("name", LATER_PREDICTED)
def test_predictions_hold_for_the_later_runs(name: str) -> None:
    recording = LATER[name]
    footprint = predict(model_of(recording), recorded_run(recording)).predicted
    assert footprint.peak_reserved is not None
    assert footprint.peak_allocated_bytes is not None
    allocated, reserved = recorded_peaks(recording)
    assert allocated - footprint.peak_allocated_bytes == IN_DECODING.get(name, held_by_caller(recording))
    assert footprint.peak_reserved - reserved == LATER_PREDICTED[name]


# From traces of their families, as a plain install has them: made on CPU from other configurations.
PLAIN = (
    "gen-llama-4L",
    "gen-mistral-4L",
    "gen-gemma2-2b",
    "gen-gemma3-1b",
    "gen-gemma3-27b-6L",
    "gen-dsv2-4L",
    "gen-glm-4L",
    "gen-gptoss-4L",
    "moe-30B-6L",
    "next-4L",
    "gen-35-0.8B-whole",
)


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_install_predicts_what_the_card_recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # its import fails
    recording = ALL[name]
    footprint = predict(model_of(recording), recorded_run(recording)).predicted
    allocated, reserved = recorded_peaks(recording)
    assert footprint.peak_allocated_bytes == allocated - held_by_caller(recording)
    assert footprint.peak_reserved == reserved


def test_the_callers_part_is_what_it_was_found_to_be() -> None:
    """4,096 tokens: 32,768 bytes of mask, pad's block, and the block that the recorder's import left."""
    assert held_by_caller(RECORDINGS["gen-0.6B-4096"]) == 33_792
    assert held_by_caller(RECORDINGS["batch8-0.6B"]) == 8 * 8 * 1_024 + 2 * 512
    assert held_by_caller(LATER["beside-0.6B-4096"]) == 32_768 + 2 * 512  # bos and pad


def test_every_recording_has_a_row_and_every_difference_a_cause() -> None:
    content = json.loads(PREDICTED_FILE.read_text(encoding="utf-8"))["runs"]
    assert list(content) == list(ALL)
    for name, shown in content.items():
        recording = ALL[name]
        allocated, reserved = recorded_peaks(recording)
        assert (shown["allocated"][1], shown["reserved"][1]) == (allocated, reserved), name
        told = shown["allocated"][0], shown["reserved"][0]
        if told == (None, None):
            assert unpredicted(recording) is not None, name
            continue
        caller = held_by_caller(recording) if recording.workload == "generate" else 0
        assert told[1] == reserved or name in CAUSES, name
        if recording.workload == "generate":
            assert told[0] == allocated - caller or name in CAUSES, name
        assert abs(told[0] - allocated) <= max(2048, allocated // 10_000) + caller or name in CAUSES, name


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in SLOWLY])
def test_the_committed_predictions_are_those_of_today(name: str) -> None:
    """Of the runs whose traces take seconds. What is committed is held to the card by the test of rows and causes."""
    assert json.loads(PREDICTED_FILE.read_text(encoding="utf-8"))["runs"][name] == row(ALL[name])


def large(events: Iterable[tuple[bool, int]]) -> list[tuple[bool, int]]:
    """Whether it is a request, and its bytes, of those from 1 MiB on."""
    return [(requested, size_bytes) for requested, size_bytes in events if size_bytes >= 1 << 20]


def freed_together(events: Iterable[tuple[bool, int]]) -> list[tuple[bool, list[int]]]:
    """The same, what is freed between two requests by size: torch lets autocast's casts go in the order of their addresses."""
    runs = groupby(large(events), key=itemgetter(0))
    sizes = ((requested, [size_bytes for _, size_bytes in run]) for requested, run in runs)
    return [(requested, found if requested else sorted(found)) for requested, found in sizes]


def trained_timeline(recording: Recording) -> tuple[Timeline, Run]:
    """The trace of a training run as the card sees it."""
    plan = plan_of(model_of(recording), recorded_run(recording))
    timeline, _ = sources.training_timeline(model_of(recording), plan)
    return on_device(timeline, plan.run), plan.run


def recorded_entries(recording: Recording, *names: str) -> list[tuple[bool, int]]:
    """Every request of the named stages, in order, and what is freed, with their bytes."""
    bounds = [0, *(stage.last for stage in recording.stages)]
    return [
        (entry >= 0, recording.requests[max(entry, -1 - entry)])
        for stage, begins in zip(recording.stages, bounds, strict=False)
        if stage.name in names
        for entry in recording.order[begins : stage.last]
        if entry is not EMPTY
    ]


def predicted_stages(timeline: Timeline) -> list[tuple[str, list[tuple[bool, int]]]]:
    """The same of each stage of a trace."""
    made = {event.id: event.size_bytes for event in timeline.events if isinstance(event, Allocate)}
    bounds = [*(stage.first_event for stage in timeline.stages[1:]), len(timeline.events)]
    return [
        (
            stage.name,
            [(isinstance(event, Allocate), made[event.id]) for event in timeline.events[stage.first_event : end]],
        )
        for stage, end in zip(timeline.stages[1:], bounds[1:], strict=True)
    ]


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in PREDICTED if name != "next-4L" and RECORDINGS[name].workload != "train"),
        *(pytest.param(name, marks=marks_of(name)) for name in SLOWLY_IN_ORDER),
    ],
)
def test_a_forward_asks_for_what_was_recorded_in_order(name: str) -> None:
    """The first one: every request of 1 MiB and more, and when each is freed.

    But for Qwen3-Next, of whose loop over chunks a trace has a few turns alone.
    """
    recording = ALL[name]
    if recording.workload == "autocast":
        timeline, _ = trained_timeline(recording)
        _, predicted = predicted_stages(timeline)[0]
        assert freed_together(predicted) == freed_together(recorded_entries(recording, "forward 0", "forward 0.0"))
        return
    run = recorded_run(recording)
    timeline = on_device(timeline_of(model_of(recording), run)[0], run)
    _, predicted = predicted_stages(timeline)[0]
    assert large(predicted) == large(recorded_entries(recording, "before call 2"))


# Of the recordings above. More of the second step, whose optimizer's states are there already, is as the first but for those.
TRAINED = [name for name in PREDICTED if RECORDINGS[name].workload == "train"]
# QLoRA has a test of its own. In train-35-0.8B the gradient of each of 18 convolutions takes 6,291,456 bytes for itself while it
# is worked out, which no trace has; its peaks are equal all the same.
OF_THEIR_OWN = ("qlora-1.7B", "qlora-1.7B-nockpt", "train-35-0.8B")
RARELY_TRAINED = [name for name in SLOWLY if ALL[name].workload == "train" and name not in OF_THEIR_OWN]


@pytest.mark.parametrize("name", [*TRAINED, *(pytest.param(name, marks=marks_of(name)) for name in RARELY_TRAINED)])
def test_training_asks_for_what_was_recorded_in_order(name: str) -> None:
    """Two steps, forward, backward and optimizer: every request of 1 MiB and more, and when each is freed.

    Smaller ones are there, in order, between others that the card alone has.
    """
    recording = RECORDINGS[name]
    timeline, run = trained_timeline(recording)
    micro = [str(number) for number in range(min(run.accumulate, 2))]
    recorded = [
        recorded_entries(recording, *names)
        for step in ("0", "1")
        for names in (
            *((f"{stage} {step}.{number}", *((f"{stage} {step}",) if number == "0" else ()))
              for number in micro for stage in ("forward", "backward")),
            (f"optimizer {step}", f"zeroed {step}"),
        )
    ]  # fmt: skip
    for (stage, predicted), card in zip(predicted_stages(timeline), recorded, strict=True):
        assert large(predicted) == large(card), stage
        requests = iter(size_bytes for requested, size_bytes in card if requested)
        assert all(size_bytes in requests for requested, size_bytes in predicted if requested), stage


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=marks_of(name)) for name in ("qlora-1.7B", "qlora-1.7B-nockpt")]
)
def test_qlora_takes_what_was_recorded_in_every_stage(name: str) -> None:
    """From the weights' cast to float32 on: allocated to three blocks of 512 bytes, reserved to the byte.

    The process had written the model before and held 512 bytes of a segment of 2 MiB, whose rest transformers' loader takes off
    its block. Without that, 522,752 and 2,097,152 bytes more are predicted.
    """
    recording = RECORDINGS[name]
    timeline, _ = trained_timeline(recording)
    block = timeline.events[0]
    assert isinstance(block, Allocate)
    assert block.operator == WARM_UP
    warmed = block._replace(size_bytes=block.size_bytes - (2_097_152 - 512))
    assert warmed.size_bytes == 1_325_124_096  # the first request of the stage "loaded"
    run = replay(replace(timeline, events=(warmed, *timeline.events[1:])))
    names = ("adapted", "forward 0.0", "backward 0.0", "optimizer 0", "forward 1.0", "backward 1.0", "optimizer 1")
    recorded = {stage.name: stage for stage in recording.stages}
    for predicted, stage in zip(run.stages, map(recorded.__getitem__, names), strict=True):
        assert predicted.peak.reserved_bytes == stage.reserved_peak, stage.name
        assert 0 <= stage.allocated_peak - predicted.peak.allocated_bytes <= 2_560, stage.name
    requests = [predicted for _, predicted in predicted_stages(timeline)]
    for number, stage_name in enumerate(names[1:]):
        card = recorded_entries(recording, stage_name, stage_name.replace("optimizer", "zeroed"))
        assert large(requests[number]) == large(card), stage_name


@pytest.mark.parametrize("name", TRAINED)
def test_nothing_of_a_recorded_training_parts_from_its_trace(name: str) -> None:
    """As `memory --device cuda` holds them against each other: every request of the trace came, and the end holds no other."""
    recording = RECORDINGS[name]
    timeline, _ = trained_timeline(recording)
    changes: list[Change] = []
    stages: list[Stage] = []
    begins = 0
    for stage in recording.stages:
        kind, _, number = stage.name.partition(" ")
        if kind in ("forward", "backward", "optimizer", "zeroed") and number[0] in "01":
            if kind != "zeroed":
                stages.append(Stage(name=kind, first_event=len(changes)))
            entries = [entry for entry in recording.order[begins : stage.last] if entry is not EMPTY]
            changes += (
                Change(recording.requests[entry], entry)
                if entry >= 0
                else Change(-recording.requests[-1 - entry], -1 - entry)
                for entry in entries
            )
        begins = stage.last
    found = match(Record(changes=tuple(changes), stages=tuple(stages)), timeline)
    assert found.missing == ()
    assert found.at_end.others == {}


@pytest.mark.parametrize(
    ("name", "numbers", "scratch_bytes"),
    [("moe-30B-6L", 32_768, 549_375), ("gen-moe15-4L", 8_192, 150_015), ("gen-dsv2-4L", 12_288, 216_575)],
)
def test_experts_tokens_are_sorted_with_cubs_scratch(name: str, numbers: int, scratch_bytes: int) -> None:
    """Right after the indices in order, which are sorted along with the experts' numbers: of 4,096, 2,048 and 2,048 tokens."""
    requests = RECORDINGS[name].requests
    assert requests[requests.index(scratch_bytes) - 3 : requests.index(scratch_bytes)] == (8 * numbers,) * 3
    assert sort_scratch_bytes(8 * numbers) == scratch_bytes


# What a run asks for that a trace lacks, by size and how often; all of it is freed before the next module runs, or small.
# Of every attention by cuDNN: Philox' seed and offset, 8 bytes each, and its workspace: 256 bytes in prefill; in decoding for
# each part of a split KV its output and two sums in float32, and 128 bytes, as measured: NVIDIA documents none of it. Of
# `generate`: special tokens, whether the mask masks nothing (a byte a token, twice), whether all have ended. CUB's scan sums the
# mask of a single sequence. argmax over a large vocabulary is made in several blocks, of which 304 bytes each and a counter are
# kept. Experts: CUB's scan of how many tokens each takes, 60 bytes of arguments for each, and CUTLASS's workspace: 512 bytes for
# each of 132 multiprocessors. Sources: torch 2.11, aten/src/ATen/native/cudnn/MHA.cpp, cuda/ScanKernels.cpp, Reduce.cuh,
# GroupMM.cu; transformers 5.23, generation/utils.py, integrations/moe.py.
PARTS = {  # of a split KV, in the last step
    "gen-0.6B-4096": 32, "gen-0.6B-32768": 32, "gen-0.5B-4096": 32, "gen-8B-4L": 32, "gen-72B-2L": 32, "gen-llama-4L": 32,
    "gen-mistral-4L": 32, "moe-30B-6L": 32, "gen-moe15-4L": 16, "batch8-0.6B": 32, "gen-0.6B-512": 4, "decode-0.6B": 0,
    "file-0.6B": 32,
}  # fmt: skip
SCANNED = {1_024: 1_279, 32_768: 1_791}  # CUB's scratch for so many tokens and more
BLOCKWISE_VOCABULARY = 150_000  # 128,256 are not yet split
SPECIAL = {"gen-llama-4L": 2, "gen-mistral-4L": 2}  # bos and pad; else pad alone


def untraced(name: str, report: Report, stage: str) -> Counter[int]:
    assert report.config is not None
    options, config = RECORDINGS[name].options, report.config
    batch, tokens, layers = options["batch"], options["context"], config["num_hidden_layers"]
    heads, experts = config["num_attention_heads"], config.get("num_experts")
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    found: Counter[int] = Counter()
    if config["vocab_size"] > BLOCKWISE_VOCABULARY:
        found += Counter({304 * batch: 1, 4 * batch: 1})
    if stage == "decode":
        part = heads * (4 * head_dim + 8)
        workspace = {PARTS[name] * part + 128: layers} if PARTS[name] else {}
        return found + Counter({8: 2 * layers + 1, 1: 1}) + Counter(workspace)
    found += Counter({8: 2 * layers, 256: layers})
    found += Counter({8: 3 + SPECIAL.get(name, 1), 1: 3}) if batch == 1 else Counter({8: 3, 1: 4, 8 * batch: 2})
    found[batch * tokens] += 2
    if batch == 1:
        found[SCANNED[32_768] if tokens == 32_768 else SCANNED[1_024]] += 1
    if experts is not None:
        found += Counter({1_023: layers, 60 * experts: 2 * layers, 132 * 512: 2 * layers})
    return found


@pytest.mark.parametrize("name", PARTS)
def test_every_request_of_each_stage_is_traced_or_named(name: str) -> None:
    """The smallest too. What is traced was asked for in this order; and nothing was asked for that is not in `untraced`.

    Of decoding the last step, from where the model is called: before it a trace has the cache's leap to its length, and tokens
    and positions with it, where a run has steps.
    """
    recording = RECORDINGS[name]
    report, run = model_of(recording), recorded_run(recording)
    timeline = timeline_of(report, run)[0]
    grown = leap(timeline)
    timeline = on_device(timeline, run)
    bounds = [*(stage.first_event for stage in timeline.stages), len(timeline.events)]
    last = {stage.name: stage.last for stage in recording.stages}
    recorded_stages = (last["emptied"], last["before call 2"]), (recording.stages[-2].last, recording.stages[-1].last)
    for index, (begins, ends) in enumerate(recorded_stages, 1):
        events = [event for event in timeline.events[bounds[index] : bounds[index + 1]] if isinstance(event, Allocate)]
        if index == 2:
            assert events[: len(grown)] == [new for _, new in grown]
            events = events[next(i for i, event in enumerate(events) if event.module.endswith("embed_tokens")) :]
        traced = [event.size_bytes for event in events]
        asked = [
            recording.requests[entry] for entry in recording.order[begins:ends] if entry is not EMPTY and entry >= 0
        ]
        rest = iter(asked)
        assert all(size in rest for size in traced)  # in this order
        assert Counter(asked) - Counter(traced) == untraced(name, report, timeline.stages[index].name)


@pytest.mark.parametrize("name", ALL)
def test_the_cards_context_is_within_its_range(name: str) -> None:
    """What the card holds for the process, beside what is reserved, when the run is over."""
    recording = ALL[name]
    last = recording.stages[-1]
    assert last.process is not None
    low, high = H100_CONTEXT_BYTES["train" if recording.workload in ("train", "autocast") else "generate"]
    assert low <= last.process - last.reserved <= high


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        # The mask that the caller of `generate` holds, 2,048 x 8 bytes, and two small tensors of `generate`.
        ("nf4-1.7B", [8, 16_384, 4]),
        # The same, and what earlier layers found as outliers: five tensors of up to 16 bytes; the layer of the peak had none, of
        # which one column of inputs (4,096) and of the weight (12,288) are predicted.
        ("int8-1.7B", [8, 16_384, 4, 8, 8, 8, 16, -4096, -12_288]),
    ],
)
def test_all_that_a_run_of_quantised_weights_holds_at_its_peak_is_predicted(name: str, missing: list[int]) -> None:
    recording = RECORDINGS[name]
    footprint = predict(model_of(recording), recorded_run(recording)).predicted
    assert footprint.peak is not None
    assert footprint.peak.allocated is not None
    first = [stage.name for stage in recording.stages].index("emptied") + 1
    recorded = max(stage.allocated_peak for stage in recording.stages[first:])
    assert recorded == {"nf4-1.7B": 1_794_019_840, "int8-1.7B": 2_467_312_128}[name]
    blocks = [-(-abs(size) // 512) * (512 if size > 0 else -512) for size in missing]
    assert recorded - footprint.peak.allocated == sum(blocks)

"""What an H100's allocator did in 51 runs, request by request: its model does the same, and predictions are what it told."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pytest

from benchmarks.accuracy import CATALOG, recorded_model, recorded_peaks, recorded_run
from benchmarks.recordings import EMPTY, Recording, digest, each, pack, read
from qwen_inspect.predicting import predict as prediction
from qwen_inspect.predicting.allocator import Allocator, Block, Driver
from qwen_inspect.predicting.footprint import on_device
from qwen_inspect.predicting.predict import predict, timeline_of
from qwen_inspect.predicting.training_plan import plan_of
from qwen_inspect.results.memory import H100_CONTEXT_BYTES
from qwen_inspect.results.model import Report
from qwen_inspect.results.timeline import Allocate

TESTS = Path(__file__).parent
CONFIGS = TESTS.parent / "benchmarks" / "gpu" / "configs"
RECORDINGS = {recording.name: recording for recording in each("h100")}
# Recorded after the driver's rule was found: they could not shape it.
LATER = {recording.name: recording for recording in each("h100-second")}
ALL = {**RECORDINGS, **LATER}
# The model has one stream and no private pools. This run compiles, and decodes out of CUDA graphs' pool: its last known stage.
BEFORE_GRAPHS = {"static-0.6B": "before call 2"}
# Where the model's driver puts segments elsewhere than the real one did, so that another of several free blocks of one size is
# taken: by so many bytes a stage's peak of reserved memory differs at most. Three used addresses again that they had given back;
# in the fourth, 330 MiB lay in a range that the driver had for itself before.
ELSEWHERE = {"file-0.6B": 25_165_824, "int8-1.7B": 25_165_824, "nf4-1.7B": 8_388_608, "gen-moe15-4L": 16_777_216}


class RecordedDriver(Driver):
    """Gives the addresses that the real one gave."""

    def __init__(self, segments: Iterable[tuple[int, int]]) -> None:
        super().__init__()
        self._segments = iter(segments)

    def place(self, size_bytes: int) -> int:
        address, recorded_bytes = next(self._segments)
        assert size_bytes == recorded_bytes
        return address

    def give_back(self, address: int, size_bytes: int) -> None:
        pass


def replayed(recording: Recording, driver: Driver) -> Iterator[tuple[str, list[int], Allocator]]:
    """The name of each stage, its blocks' addresses, and the allocator as it is then."""
    allocator = Allocator(driver=driver)
    blocks: dict[int, Block] = {}
    addresses: list[int] = []
    begins = 0
    for stage in recording.stages:
        for entry in recording.order[begins : stage.last]:
            if entry is EMPTY:
                allocator.empty_cache()
            elif entry < 0:
                allocator.free(blocks.pop(-1 - entry))
            else:
                blocks[entry] = block = allocator.allocate(recording.requests[entry])
                addresses.append(block.address)
        yield stage.name, addresses, allocator
        allocator.reset_peak()
        addresses.clear()
        begins = stage.last


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


# --- predictions

# Runs that a prediction tells of, and by how many bytes its peak of reserved memory is more than the recorded one. Where they
# generate, the recording's caller holds the prompt's mask too, 8 bytes a token, which no prediction knows of.
PREDICTED = {
    "gen-moe15-4L": 16_777_216,  # as of its own requests: ELSEWHERE
    "moe-30B-6L": -2_097_152,  # a segment of small blocks less
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
SLOWLY_PREDICTED = {
    "gen-gemma3-1b": 0,  # with sliding windows
    "padded-0.6B-b4": 0,
    "eager-0.6B": 0,
    "fp16-0.6B": 0,
    "sgd-0.6B": 0,
    "train-0.6B": 0,
    "train-0.6B-ckpt": 0,
    "accumulate-0.6B": 0,
    "eager-train-0.6B": 0,
    "train-0.5B-b4": 0,
    "lora-1.7B": 0,
    "adamw8bit-0.6B": 2_097_152,
    "autocast-0.6B": 0,
    "autocast-0.6B-ckpt": 0,
}


# Of the later runs. A prediction makes 16 of 999 growths of a cache, which leaves other gaps; 2 MiB are one small segment.
LATER_PREDICTED = {
    "gen-7B": 0,
    "gen-14B": 0,
    "beside-0.6B-4096": 0,
    "moe8-30B-6L": -2_097_152,
    "decode1000-0.6B": 18_874_368,
}
# As the recorder asked BitsAndBytesConfig for them.
QUANTISED = {
    "nf4": {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "bfloat16",
    },
    "int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
}
LATER_SLOWLY_PREDICTED = {
    "gen-gemma2-2b": 0,
    "gen-gptoss-4L": 0,
    "gen-35-0.8B-whole": 0,
    "padded2048-0.6B-b4": 0,
    "autocast-0.6B-1024": 0,
}
AUTOCAST = ("autocast-0.6B", "autocast-0.6B-ckpt", "autocast-0.6B-1024")
SLOWLY_IN_ORDER = ("padded-0.6B-b4", "padded2048-0.6B-b4", *AUTOCAST)


def model_of(recording: Recording) -> Report:
    published = json.loads((TESTS / "published_models.json").read_text(encoding="utf-8"))
    catalog = json.loads(CATALOG.read_text(encoding="utf-8"))
    own = CONFIGS / f"{recording.model.rpartition('/')[2]}.json"
    if own.is_file():
        dense = {key: value for key, value in json.loads(own.read_text()).items() if key != "quantization_config"}
        return recorded_model(recording, dense)
    config = (catalog.get(recording.model) or published[recording.model])["config"]
    quantised = (
        {"quantization_config": QUANTISED[kind]} if (kind := recording.options.get("quant")) in QUANTISED else {}
    )
    return recorded_model(recording, {**config, **quantised})


@pytest.mark.parametrize(
    "name", [*PREDICTED, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOWLY_PREDICTED)]
)
def test_a_prediction_is_what_the_card_recorded(name: str) -> None:
    """The peaks of the run's stages: without those of random initialisation, which transformers' loader does not have."""
    recording = RECORDINGS[name]
    footprint = predict(model_of(recording), recorded_run(recording)).predicted
    assert footprint.peak is not None
    assert footprint.peak_reserved is not None
    assert footprint.peak.allocated is not None
    allocated, reserved = recorded_peaks(recording)
    assert abs(footprint.peak.allocated - allocated) <= max(2048, allocated // 10_000)
    assert footprint.peak_reserved - reserved == {**PREDICTED, **SLOWLY_PREDICTED}[name]


@pytest.mark.parametrize(
    "name", [*LATER_PREDICTED, *(pytest.param(name, marks=pytest.mark.slow) for name in LATER_SLOWLY_PREDICTED)]
)
def test_predictions_hold_for_the_later_runs(name: str) -> None:
    """Allocated but for the mask that the recording's caller holds (8 bytes a token and 1 KiB), and decoding's own gaps."""
    recording = LATER[name]
    footprint = predict(model_of(recording), recorded_run(recording)).predicted
    assert footprint.peak_reserved is not None
    assert footprint.peak_allocated_bytes is not None
    allocated, reserved = recorded_peaks(recording)
    known = {
        "moe8-30B-6L": allocated // 5_000,
        "decode1000-0.6B": allocated // 300,
        # Of 28 layers, what cuDNN's attention keeps for its backward: a seed and an offset of 8 bytes each.
        "autocast-0.6B-1024": 28 * 2 * 512,
    }
    caller = 8 * recording.options["batch"] * recording.options["context"] + 1_024
    assert abs(footprint.peak_allocated_bytes - allocated) <= known.get(name, caller)
    assert footprint.peak_reserved - reserved == {**LATER_PREDICTED, **LATER_SLOWLY_PREDICTED}[name]


def large(events: Iterable[tuple[bool, int]]) -> list[tuple[bool, int]]:
    """Whether it is a request, and its bytes, of those from 1 MiB on."""
    return [(requested, size_bytes) for requested, size_bytes in events if size_bytes >= 1 << 20]


def freed_together(events: Iterable[tuple[bool, int]]) -> list[tuple[bool, list[int]]]:
    """The same, what is freed between two requests by size: torch lets autocast's casts go in the order of their addresses."""
    runs = groupby(large(events), key=itemgetter(0))
    sizes = ((requested, [size_bytes for _, size_bytes in run]) for requested, run in runs)
    return [(requested, found if requested else sorted(found)) for requested, found in sizes]


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in PREDICTED if name != "next-4L"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOWLY_IN_ORDER),
    ],
)
def test_a_forward_asks_for_what_was_recorded_in_order(name: str) -> None:
    """The first one, of inference and of training: every request of 1 MiB and more, and when each is freed.

    But for Qwen3-Next, of whose loop over chunks a trace has a few turns alone.
    """
    recording = ALL[name]
    report, run = model_of(recording), recorded_run(recording)
    if run.mode == "train":
        plan = plan_of(report, run)
        timeline = on_device(prediction._training_timeline(report, plan), plan.run)
    else:
        timeline = on_device(timeline_of(report, run)[0], run)
    made = {event.id: event.size_bytes for event in timeline.events if isinstance(event, Allocate)}
    bounds = [stage.first_event for stage in timeline.stages]
    predicted = [(isinstance(event, Allocate), made[event.id]) for event in timeline.events[bounds[1] : bounds[2]]]
    number, stage = next(
        (number, stage)
        for number, stage in enumerate(recording.stages)
        if stage.name in ("before call 2", "forward 0", "forward 0.0")
    )
    entries = [entry for entry in recording.order[recording.stages[number - 1].last : stage.last] if entry is not EMPTY]
    recorded = [(entry >= 0, recording.requests[max(entry, -1 - entry)]) for entry in entries]
    if name in AUTOCAST:
        assert freed_together(predicted) == freed_together(recorded)
    else:
        assert large(predicted) == large(recorded)


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

"""`--cache static`: what transformers' StaticCache takes, as far as decoding is not compiled; held to an H100 and to CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.accuracy import CATALOG, recorded_model, recorded_run
from benchmarks.recordings import EMPTY, FOLDER, read
from qwen_inspect.fitting.search import cards, fit
from qwen_inspect.predicting.allocation.on_device import on_device
from qwen_inspect.predicting.predict import predict
from qwen_inspect.predicting.sources import timeline_of
from qwen_inspect.results.cache import CacheLayer
from qwen_inspect.results.memory import Run
from qwen_inspect.results.timeline import Allocate
from qwen_inspect.structure.inspect import inspect

from ..support.families import FAMILIES
from ..support.measured import measured
from ..support.models import run
from ..support.real_runs import real_model

RECORDING = read(FOLDER / "h100" / "static-0.6B.xz")
LARGE = 1 << 20


def test_the_prefill_is_what_the_card_recorded_and_decoding_takes_more() -> None:
    """Reserved memory equal; allocated but for the mask that the recording's caller holds: 2,048 tokens of 8 bytes, and 1 KiB."""
    stages = {stage.name: stage for stage in RECORDING.stages}
    prefill, decoded = stages["before call 2"], stages["generated"]
    report = recorded_model(RECORDING, json.loads(CATALOG.read_text(encoding="utf-8"))[RECORDING.model]["config"])
    asked = recorded_run(RECORDING)
    assert asked.cache == "static"
    found = predict(report, asked).predicted
    assert (found.peak, found.peak_reserved, found.required_bytes) == (None, None, None)
    assert found.peak_range is not None
    assert found.peak_range.allocated_bytes == (1_517_926_912 - 16_384 - 1_024, None)
    assert found.peak_range.reserved_bytes == (1_669_332_992, None)
    assert (prefill.allocated_peak, prefill.reserved_peak) == (1_517_926_912, 1_669_332_992)
    assert (decoded.allocated_peak, decoded.reserved_peak) == (1_532_328_960, 1_730_150_400)
    # K and V of 28 layers, 8 heads of 128 numbers of 2 bytes, for 2,048 tokens and 15 of the 16 new ones.
    assert found.steady.cache == 2 * 28 * 8 * 128 * 2 * 2_063

    timeline = on_device(timeline_of(report, asked)[0], asked)
    sizes = {event.id: event.size_bytes for event in timeline.events if isinstance(event, Allocate)}
    events = timeline.events[timeline.stages[1].first_event :]
    predicted = [(isinstance(event, Allocate), sizes[event.id]) for event in events if sizes[event.id] >= LARGE]
    order = RECORDING.order[stages["before call 1"].last : prefill.last]
    recorded = [(one >= 0, RECORDING.requests[max(one, -1 - one)]) for one in order if one is not EMPTY]
    assert predicted == [one for one in recorded if one[1] >= LARGE]


def test_without_decoding_nothing_is_compiled_and_the_peak_is_known() -> None:
    report = inspect("catalog:Qwen/Qwen3-0.6B")
    asked = replace(recorded_run(RECORDING), new_tokens=1, prompt_tokens=64)
    found = predict(report, asked).predicted
    assert found.peak_range is None
    assert found.peak_reserved is not None
    assert found.steady.cache == 2 * 28 * 8 * 128 * 2 * 64


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3 with a sliding window"])
def test_on_cpu_nothing_is_compiled_and_every_byte_is_predicted(family: str, tmp_path: Path) -> None:
    real_model(FAMILIES[family]).save_pretrained(tmp_path)
    content = measured(tmp_path, prompt_tokens=40, new_tokens=7, batch=3, cache="static")
    assert content["predicted"]["method"] == "trace"
    assert content["measured"]["parted"] is content["measured"]["partial"] is None
    scratch = {"peak_allocated"}  # of CPU's attention with a whole prompt, which no trace has
    assert {one["term"] for one in content["differences"] if one["difference"]} <= scratch
    assert {one["residual"] for one in content["differences"]} <= {0, None}


def test_a_window_is_whole_in_a_static_cache() -> None:
    """min(sliding_window, max_cache_len); a dynamic one has one less. Source: transformers 5.23, StaticSlidingWindowLayer"""
    layer = CacheLayer(index=0, kind="sliding", bytes_per_token=4, states_bytes=(), window_tokens=32)
    assert (layer.static_bytes(100), layer.size_bytes(100)) == (4 * 32, 4 * 31)
    assert layer.static_bytes(20) == 4 * 20


@pytest.mark.parametrize(
    "options",
    [
        ("--mode", "train"),
        ("--mode", "forward"),
        ("--cache-dtype", "int8"),
        ("--tp", "2"),
        ("--device-map", "auto"),
    ],
)
def test_what_a_static_cache_does_not_go_with_is_refused(options: tuple[str, ...]) -> None:
    result = run("memory", "catalog:Qwen/Qwen3-0.6B", "--cache", "static", *options)
    assert (result.code, result.out) == (2, "")
    assert "--cache static" in result.err


def test_fit_says_that_only_a_lower_bound_is_known(tiny_qwen3: Path) -> None:
    asked = Run(cache="static", prompt_tokens=64, new_tokens=8)
    found = fit(inspect(str(tiny_qwen3)), asked, cards("4090", None))
    assert (found.fits, found.likely, found.cards[0].requirement.most_bytes) == (None, None, None)
    assert found.refusal is not None  # exit code 7
    assert found.refusal.message.key == "fit_lower_bound"

"""Images on an H100: the tower's stage and the prompt's are traced as the card ran them, request by request."""

from __future__ import annotations

import pytest

from benchmarks.accuracy import recorded_peaks
from benchmarks.predicted import model_of, run_of
from benchmarks.recordings import each
from qwen_inspect.predicting.allocation.on_device import on_device
from qwen_inspect.predicting.predict import predict
from qwen_inspect.predicting.sources import timeline_of

from .test_recordings import held_by_caller, large, predicted_stages, recorded_entries

ALL = {recording.name: recording for folder in ("h100", "h100-second") for recording in each(folder)}
# The first has windows, deepstack and experts are in the second; two images of unlike size are in the last but one.
EXHAUSTIVE = ("image-2.5VL-7B-8L", "image-VL-4B", "images-VL-4B", "image512-VL-4B")
NAMES = ("image-VL-30B-2L", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in EXHAUSTIVE))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_with_images_takes_what_the_card_recorded(name: str) -> None:
    """The peaks to the byte, and every request of 1 MiB and more of the tower and of the prompt, in order."""
    recording = ALL[name]
    report = model_of(recording)
    run = run_of(recording, report)
    footprint = predict(report, run).predicted
    allocated, reserved = recorded_peaks(recording)
    assert footprint.peak is not None
    assert footprint.peak.stage == "prefill"
    assert (footprint.peak.allocated, footprint.peak_reserved) == (allocated - held_by_caller(recording), reserved)
    stages = dict(predicted_stages(on_device(timeline_of(report, run)[0], run)))
    for stage, recorded in (("vision", ("inputs", "before call 1")), ("prefill", ("before call 2",))):
        assert large(stages[stage]) == large(recorded_entries(recording, *recorded)), stage

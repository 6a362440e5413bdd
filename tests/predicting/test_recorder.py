"""Recordings that a user adds: how far off predictions are on that card, and the replay of its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.accuracy import CATALOG, off_by
from benchmarks.gpu.measure import summary
from benchmarks.recordings import FOLDER, digest, read

from ..support.recorded import RecordedDriver, replayed

OTHER_CARDS = [path for path in sorted(FOLDER.glob("*/*.xz")) if path.parent.name not in ("h100", "h100-second")]


def test_a_recording_says_how_far_off_its_prediction_is() -> None:
    """The mask that the caller holds, 4,096 tokens of 8 bytes, and 1 KiB of `generate`; reserved memory is equal."""
    recording = read(FOLDER / "h100" / "gen-0.6B-4096.xz")
    config = json.loads(CATALOG.read_text(encoding="utf-8"))[recording.model]["config"]
    assert off_by(recording, config) == (-4096 * 8 - 1024, 0)
    told = {"versions": {"device": "a card"}, "jobs": [{"report": {"off_by_bytes": [-33_792, 0]}}]}
    assert summary(told) == ("Predictions on a card: 1 recorded, allocated 33,792 B off at most, reserved 0 B")


@pytest.mark.parametrize("path", OTHER_CARDS, ids=str)
def test_another_cards_blocks_lie_where_pytorch_put_them(path: Path) -> None:
    recording = read(path)
    replay = replayed(recording, RecordedDriver(recording.segments))
    for stage, (ended, addresses, _) in zip(recording.stages, replay, strict=True):
        assert (ended, digest(addresses)) == (stage.name, stage.addresses)

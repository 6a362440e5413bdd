"""A calibration is kept by card, driver and libraries, used by later predictions on the same ones, and always said."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks.recordings import FOLDER, read
from qwen_inspect.loaders import calibration
from qwen_inspect.predicting.allocation.workspaces import workspace_of
from qwen_inspect.results.measurement import Calibration
from qwen_inspect.results.memory import Run

from ..support.models import run

HERE = {"torch": version("torch").partition("+")[0], "transformers": version("transformers")}
# Figures of no card: what is tested is that they come back, and where.
ONE = Calibration(
    gpu="A Card 24GB", driver="1.2", date="2026-01-02", context_bytes=300_000_001, workspace_bytes=9_000_000, **HERE
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QWEN_INSPECT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibration.json"


def test_an_entry_is_found_by_card_and_libraries() -> None:
    assert calibration.find(ONE.gpu, HERE.items()) is None
    calibration.keep(ONE)
    assert calibration.find("a card 24gb", HERE.items()) == ONE
    assert calibration.find("another card", HERE.items()) is None
    assert calibration.find(ONE.gpu, {**HERE, "torch": "1.0"}.items()) is None
    assert calibration.find(ONE.gpu, {**HERE, "driver": "1.3"}.items()) is None
    assert calibration.find(ONE.gpu, {**HERE, "driver": "1.2"}.items()) == ONE


def test_a_later_measurement_takes_the_place_of_an_earlier_one(own_cache: Path) -> None:
    calibration.keep(ONE)
    later = replace(ONE, date="2026-03-04", context_bytes=5)
    calibration.keep(later)
    calibration.keep(replace(ONE, gpu="B"))
    assert calibration.find(ONE.gpu, HERE.items()) == later
    assert len(json.loads(own_cache.read_text())["entries"]) == 2


def test_a_damaged_calibration_is_no_calibration(own_cache: Path) -> None:
    calibration.keep(ONE)
    text = own_cache.read_bytes()
    damages = (text.replace(b"300000001", b"300000003"), text[:-3], b"", b"[" * 100_000, b"\0" * len(text))
    for damaged in damages:
        own_cache.write_bytes(damaged)
        assert calibration.find(ONE.gpu, HERE.items()) is None
    older = json.loads(text)
    del older["checksum"]
    own_cache.write_text(json.dumps(older))
    assert calibration.find(ONE.gpu, HERE.items()) == ONE


def test_predictions_on_the_card_use_and_show_it() -> None:
    assert run("memory", "--gpu", ONE.gpu).code == 2  # in no table, and not measured yet
    plain = json.loads(run("memory", "--format", "json").out)
    calibration.keep(ONE)
    shown = json.loads(run("memory", "--gpu", ONE.gpu, "--format", "json", "--lang", "en").out)
    assert shown["calibration"]["date"] == "2026-01-02"
    predicted = shown["predicted"]
    assert predicted["context_bytes"] == 300_000_001
    assert predicted["total_bytes"] == predicted["peak_reserved_bytes"] + 300_000_001
    assert predicted["moments"]["peak"]["workspace_bytes"] == 9_000_000
    assert any("2026-01-02" in sentence and "1.2" in sentence for sentence in predicted["assumptions"])
    assert (plain["calibration"], plain["predicted"]["context_bytes"], plain["predicted"]["total_bytes"]) == (
        None,
        None,
        None,
    )
    other = json.loads(run("memory", "--gpu", "H100", "--format", "json").out)
    assert other["calibration"] is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 2, "entries": []}',
        b'{"version": 1, "entries": [{}]}',
        b'{"version": 1, "entries": [{"gpu": "A Card 24GB", "driver": "1", "torch": "2", "transformers": "3",'
        b' "date": "x", "context_bytes": -1, "workspace_bytes": 0}]}',
        b'{"version": 1, "entries": 7}',
    ],
)
def test_a_damaged_file_is_as_good_as_none(own_cache: Path, content: bytes) -> None:
    own_cache.parent.mkdir(parents=True, exist_ok=True)
    own_cache.write_bytes(content)
    assert calibration.find(ONE.gpu, HERE.items()) is None
    calibration.keep(ONE)
    assert calibration.find(ONE.gpu, HERE.items()) == ONE


@pytest.mark.parametrize(
    ("name", "handles"), [("gen-0.6B-4096", 1), ("gen-0.5B-4096", 1), ("train-0.6B", 2), ("train-0.5B-b4", 2)]
)
def test_a_workspace_is_that_of_one_handle_whatever_run_measured_it(name: str, handles: int) -> None:
    """What an H100's workspaces gave back after generating and after training, without biases and with them."""
    measured = read(FOLDER / "h100" / f"{name}.xz").workspaces
    assert measured in (33_554_432 * handles, 33_554_432 * handles + 1_048_576)
    card = replace(ONE, gpu="NVIDIA H100 80GB HBM3", workspace_bytes=measured)
    assert workspace_of(Run(gpu=card.gpu, calibration=card)) == 33_554_432

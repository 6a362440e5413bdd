"""A calibration is kept by card, driver and libraries, used by later predictions on the same ones, and always said."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from qwen_inspect.loaders import calibration
from qwen_inspect.report.measurement import Calibration

from .conftest import run

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

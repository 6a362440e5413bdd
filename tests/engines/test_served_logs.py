"""A log of vLLM is kept by card, version and class: later predictions use it and say so, unless an option has it ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.cli import main
from qwen_inspect.loaders import served_logs

from ..support.schema import assert_keeps_to_the_schema
from .test_vllm_command import COMMAND, GEMMA

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QWEN_INSPECT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / served_logs.NAME


def answer(capsys: Capture, *options: str, card: str = "H100") -> dict[str, Any]:
    on = ["fit", "--vllm", COMMAND, "--gpu", card, "--engine-version", "0.19.0", "--lang", "en"]
    main([*on, "--format", "json", *options])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert_keeps_to_the_schema(found)
    return found


def outside(found: dict[str, Any]) -> tuple[int, int]:
    return next((t["least_bytes"], t["most_bytes"]) for t in found["terms"] if t["term"] == "non_torch")


def test_a_later_prediction_has_what_a_log_printed_until_it_is_ignored_or_forgotten(
    tmp_path: Path, capsys: Capture
) -> None:
    """As if 1.24 GiB lay outside of PyTorch, and the peak were 0.38 GiB above what is worked out, on a card of 79.11 GiB."""
    log = GEMMA.replace("forward increase memory: 0.24", "forward increase memory: 1.24").replace("79.19", "79.11")
    (tmp_path / "a.log").write_text(log.replace("peak memory increase: 3.62", "peak memory increase: 4.02"))
    before = answer(capsys)
    answer(capsys, "--log", str(tmp_path / "a.log"))
    after = answer(capsys)
    gib = 2**30
    low, high = outside(after)
    assert (round(low / gib, 3), round(high / gib, 3)) == (1.235, 1.245)
    assert abs(after["available_bytes"] / gib - 0.95 * 79.11) < 0.001
    peaks = [next(t["least_bytes"] for t in found["terms"] if t["term"] == "activation") for found in (before, after)]
    assert abs((peaks[1] - peaks[0]) / gib - 0.38) < 0.03
    assert [sentence for sentence in after["assumptions"] if "a.log" in sentence]
    for ignored in (answer(capsys, "--calibration", "ignore"), answer(capsys, card="H200")):
        assert outside(ignored) == outside(before) or not [s for s in ignored["assumptions"] if "a.log" in s]
    assert outside(answer(capsys, "--calibration", "forget")) == outside(before)
    assert outside(answer(capsys)) == outside(before)
    assert served_logs.kept() == ()


def test_a_damaged_file_is_no_log(tmp_path: Path, capsys: Capture, own_cache: Path) -> None:
    (tmp_path / "a.log").write_text(GEMMA)
    answer(capsys, "--log", str(tmp_path / "a.log"))
    assert len(served_logs.kept()) == 1
    text = own_cache.read_bytes()
    for damaged in (text[:-3], b"", b"[" * 100_000, text.replace(b'"ranks": 1', b'"ranks": 2'), b'{"version": 1}'):
        own_cache.write_bytes(damaged)
        assert served_logs.kept() == ()

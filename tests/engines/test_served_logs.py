"""A log of vLLM is kept by card, version and class: later predictions use it and say so, unless an option has it ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.cli import main
from qwen_inspect.engines.vllm.log import read_log
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


# Lines of vLLM 0.31.0 on an A100 80GB (Llama-3.1-8B-Instruct, defaults), of 0.26.0 on a B300, and of 0.24.0 on an RTX 4090, as
# they stand in public repositories. From 0.27 on peak and graphs are printed together, and what stays with the weights.
A100 = """\
(EngineCore pid=326) INFO 10-06 17:00:11 [model_runner.py:407] Model loading took 15.0 GiB memory and 5.420225 seconds
(EngineCore pid=326) INFO 10-06 17:00:33 [gpu_worker.py:692] Available KV cache memory: 56.21 GiB
(EngineCore pid=326) INFO 10-06 [kv_cache_utils.py:2464] GPU KV cache size: 460,496 tokens, Maximum concurrency for 131,072 \
tokens per request: 3.51x
(EngineCore pid=326) INFO 10-06 [gpu_worker.py:955] Free memory on device (78.84/79.25 GiB) on startup. Desired GPU memory \
utilization is (0.92, 72.91 GiB). Actual usage is 15.26 GiB for consumed memory (weights + non-torch), 1.44 GiB for peak \
activation, and 0.23 GiB for CUDAGraph memory.
"""
B300 = """\
(EngineCore pid=22228) INFO Initializing a V1 LLM engine (v0.26.0) with config: model='google/gemma-4-31B-it'
(EngineCore pid=22228) INFO 08-06 20:15:17 [gpu_worker.py:857] Free memory on device (267.08/267.69 GiB) on startup. Desired GPU \
memory utilization is (0.92, 246.27 GiB). Actual usage is 58.99 GiB for weight, 3.9 GiB for peak activation, 0.25 GiB for \
non-torch memory, and 0.7 GiB for CUDAGraph memory.
"""
RTX_4090 = (
    "Model loading took 14.29 GiB memory\nEstimated CUDA graph memory: 0.53 GiB\nAvailable KV cache memory: 4.45 GiB\n"
)


def test_what_later_versions_print_together_is_read_and_kept(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.log").write_text(A100)
    line = "vllm serve catalog:meta-llama/Llama-3.1-8B-Instruct"
    asked = ["fit", "--gpu", "A100 80GB", "--engine-version", "0.31.0", "--format", "json", "--vllm"]

    def served(*options: str, share: str = "0.92") -> dict[str, Any]:
        main([*asked, f"{line} --gpu-memory-utilization {share}", *options])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    found = served("--log", str(tmp_path / "a.log"))
    assert_keeps_to_the_schema(found)
    assert {term["term"]: term["agrees"] for term in found["log"]} == dict.fromkeys(
        ("beside_weights", "weights", "budget", "tokens"), True
    )
    assert found["log"][0]["printed"] == round(1.70 * 2**30)  # 15.26 + 1.44 - 15.0
    for share in (0.92, 0.5):
        after = served(share=str(share))["vllm"]
        low, high = (after[end]["kv_budget_bytes"] / 2**30 for end in ("low", "high"))
        assert low - 0.01 <= share * 79.25 - 16.70 <= high + 0.01  # 15.26 + 1.44
        assert high - low < 0.08


def test_a_budget_alone_tells_what_lies_beside_the_peak(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.log").write_text(RTX_4090)
    asked = ["fit", "--gpu", "RTX 4090", "--engine-version", "0.24.0", "--format", "json", "--vllm"]
    line = "vllm serve catalog:Qwen/Qwen2.5-7B-Instruct --max-model-len 2048 --gpu-memory-utilization"
    budgets = []
    for share, options in (("0.85", ["--log", str(tmp_path / "a.log")]), ("0.85", []), ("0.95", [])):
        main([*asked, f"{line} {share}", *options])
        ends = json.loads(capsys.readouterr().out)["vllm"]
        budgets.append([ends[end]["kv_budget_bytes"] / 2**30 for end in ("low", "high")])
    before, after, more = budgets
    assert before[0] < after[0] - 0.3
    assert after[0] - 0.05 <= 4.45 <= after[1]  # it loaded 0.04 GiB more than the weights
    assert abs(more[0] - after[0] - 0.1 * 23.52) < 0.01


def test_figures_of_a_line_that_is_printed_by_default_are_read() -> None:
    later = read_log(B300)
    assert (later.version, later.total_bytes) == ("0.26.0", int(267.69 * 2**30))
    assert {name: later.printed[name] for name in ("activation", "non_torch", "requested")} == {
        "activation": "3.9",
        "non_torch": "0.25",
        "requested": "246.27",
    }
    assert "consumed" not in later.printed
    first = (
        "the current vLLM instance can use total_gpu_memory (23.58GiB) x gpu_memory_utilization (0.99) = 23.35GiB\nmodel weights "
        "take 21.21GiB; non_torch_memory takes 0.20GiB; PyTorch activation peak memory takes 0.37GiB; the rest of the memory "
        "reserved for KV Cache is 1.57GiB."
    )
    printed = {"total": "23.58", "weights": "21.21", "non_torch": "0.20", "activation": "0.37", "budget": "1.57"}
    assert read_log(first).printed == printed

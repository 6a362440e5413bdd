"""Measures on a CUDA device what `memory` predicts, for models of random weights built from catalog configurations.

    make gpu            or            python benchmarks/gpu/measure.py [-o FOLDER] [--device cuda:0] [MODEL ...]

Each model and workload runs in a process of its own, `memory --device ... --random-weights`, so that each begins with a fresh
context and allocator. The raw output of every run goes to FOLDER/results.json with the versions, and a table of predicted
against measured to FOLDER/results.md. What does not fit the device is refused by the command and listed with its reason. A run
ends early without harm: what is done is written.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from qwen_inspect.output import write_whole
from qwen_inspect.renderers import markdown
from qwen_inspect.renderers.blocks import Block, Heading, Items, Paragraph, Table
from qwen_inspect.units import count, signed

ROOT = Path(__file__).parent.parent.parent
MODELS = (
    "catalog:Qwen/Qwen3-0.6B",
    "catalog:Qwen/Qwen2.5-0.5B",
    "catalog:Qwen/Qwen3-1.7B",
    "catalog:Qwen/Qwen3-8B",
    "catalog:Qwen/Qwen2.5-7B",
    "catalog:Qwen/Qwen3-30B-A3B",
)
# Options of `memory`: prefill and decode at several lengths, the logits of a whole forward, the terms of training, the loaders.
WORKLOADS: tuple[tuple[str, ...], ...] = (
    ("--context", "512", "--new-tokens", "32"),
    ("--context", "4096", "--new-tokens", "64"),
    ("--context", "2048", "--new-tokens", "64", "--batch", "4"),
    ("--context", "16384", "--new-tokens", "16"),
    ("--context", "1024", "--attention", "eager"),
    ("--mode", "forward", "--context", "2048"),
    ("--mode", "train", "--context", "1024"),
    ("--mode", "train", "--context", "1024", "--checkpointing", "--optimizer", "adamw_fused"),
)
SECONDS = 600  # for one run


def measured(model: str, workload: Sequence[str], device: str) -> dict[str, Any]:
    """One run: what the command printed, or why it did not."""
    command = [sys.executable, "-m", "qwen_inspect", "memory", model, *workload]
    command += ["--device", device, "--random-weights", "--format", "json", "--lang", "en", "--quiet"]
    shown = {"model": model, "workload": list(workload)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return {**shown, "exit": None, "reason": f"longer than {SECONDS} s"}
    report = json.loads(done.stdout) if done.stdout else None
    return {**shown, "exit": done.returncode, "reason": done.stderr.strip() or None, "report": report}


def page(results: dict[str, Any]) -> str:
    blocks: list[Block] = [
        Heading("Predicted and measured on a device", 1),
        Paragraph(
            "Random weights from the configurations of the catalog; each run in a process of its own. Bytes, as the device's "
            "allocator told them. Written by benchmarks/gpu/measure.py; the raw output is results.json beside this page."
        ),
        Items([f"{name}: {value}" for name, value in results["versions"].items()]),
        Table(
            ["Model", "Workload", "Figure", "Predicted", "Measured", "Difference", "%", "Unexplained"],
            [row for run in results["runs"] for row in _rows(run)],
            "lllrrrrr",
        ),
    ]
    return markdown.render(blocks)


def _rows(run: dict[str, Any]) -> Iterator[list[str]]:
    model, workload = run["model"].partition(":")[2] or run["model"], " ".join(run["workload"])
    report = run.get("report")
    if not report or report["measured"] is None:
        yield [model, workload, "–", "–", "–", "–", "–", run["reason"] or "–"]
        return
    for one in report["differences"]:
        if one["term"] not in ("weights", "steady_allocated", "peak_allocated", "peak_reserved"):
            continue
        predicted, difference = one["predicted"], one["difference"]
        yield [
            model,
            workload,
            one["term"],
            count(predicted),
            count(one["measured"]),
            "–" if difference is None else signed(difference),
            "–" if difference is None or not predicted else f"{100 * difference / predicted:+.3f}",
            "–" if one["residual"] is None else signed(one["residual"]),
        ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent, metavar="FOLDER")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    options = parser.parse_args()
    from qwen_inspect.analyzers.loading import check_device
    from qwen_inspect.errors import QwenInspectError

    try:
        check_device(options.device)
    except QwenInspectError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    results: dict[str, Any] = {"versions": {"python": platform.python_version()}, "runs": []}
    for model in options.models:
        for workload in WORKLOADS:
            results["runs"].append(run := measured(model, workload, options.device))
            if (report := run.get("report")) and report["measured"]:
                results["versions"] |= {"device": report["measured"]["device"], **report["measured"]["versions"]}
            print(model, *workload, "->", run["exit"], run["reason"] or "", flush=True)
            text = json.dumps(results, indent=1) + "\n"
            write_whole(str(options.output / "results.json"), text, overwrite=True)
            write_whole(str(options.output / "results.md"), page(results), overwrite=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

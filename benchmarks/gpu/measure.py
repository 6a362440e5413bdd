"""Measures on a CUDA device what `memory` predicts, for models of random weights: nothing is downloaded.

    make gpu [RECORD=1]      or      python benchmarks/gpu/measure.py [-o FOLDER] [--record] [--seconds N] [--only TEXT] [--try]

Each job is a process of its own, so that each begins with a fresh context and allocator, in the order of what it is worth:

  memory   `memory MODEL ... --device cuda --random-weights`: the prediction and the measurement, term by term
  limit    limit.py: the run with exactly the memory that it is said to require, and with 2 MiB less
  record   record.py, with --record: every request of a run

Jobs run beside each other as far as the card has room, for an allocator's figures and the driver's are each process's own. After
--seconds no job is started or left running. What is done is written at once: FOLDER/results.json (each job's raw output, or why
there is none), results.md (predicted against measured), recordings (benchmarks/recorded/README.md says how to add them).

--try: every job on the CPU with small models, to find what is broken before a GPU is at hand.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.gpu.small import small_configuration
from qwen_inspect.output import write_whole
from qwen_inspect.renderers import markdown
from qwen_inspect.renderers.blocks import Block, Heading, Items, Paragraph, Table
from qwen_inspect.units import count, signed

ROOT = Path(__file__).parent.parent.parent
CONFIGS = Path(__file__).parent / "configs"
AT_ONCE = 5  # processes
SECONDS = 170  # for one job, where nothing else is said
MIB = 1 << 20
SUMMARY = ("weights", "steady_allocated", "peak_allocated", "peak_reserved")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """kind: memory, limit or record. gigabytes: of the card, at most. options: of the command, or record.py's NAME=VALUE."""

    kind: str
    model: str
    options: tuple[str, ...]
    gigabytes: int
    seconds: int = SECONDS
    allocator: str = ""

    @property
    def name(self) -> str:
        return " ".join([self.kind, self.model_name, *self.options, *([self.allocator] if self.allocator else [])])

    @property
    def model_name(self) -> str:
        return self.model.removesuffix("/config.json").rpartition("/")[2].removesuffix(".json")


def _memory(model: str, options: str, gigabytes: int, seconds: int = SECONDS) -> Job:
    return Job(kind="memory", model=model, options=tuple(options.split()), gigabytes=gigabytes, seconds=seconds)


def _record(model: str, options: str, gigabytes: int, seconds: int = SECONDS) -> Job:
    return Job(kind="record", model=model, options=tuple(options.split()), gigabytes=gigabytes, seconds=seconds)


def _limits(model: str, options: str, gigabytes: int) -> Iterator[Job]:
    for allocator in ("", EXPANDABLE):
        for less in (0, 2 * MIB):
            chosen = (*options.split(), "--less", str(less))
            yield Job(kind="limit", model=model, options=chosen, gigabytes=gigabytes, allocator=allocator)


SMALL, MIDDLE, LARGE = "catalog:Qwen/Qwen3-0.6B", "catalog:Qwen/Qwen3-8B", "catalog:Qwen/Qwen3-30B-A3B"
TRAINING = "--mode train --context 1024"
WHOLE = 77  # of an 80 GB card: a job of so many GiB runs alone
EXPANDABLE = "expandable_segments:True"
MEASURED = (
    _memory(SMALL, "--context 4096 --new-tokens 8", 4),
    _memory(LARGE, "--context 4096 --new-tokens 8", 61, 240),  # early, for it waits until all of the card is free
    _memory(SMALL, "--context 512 --new-tokens 32", 3),
    _memory(SMALL, "--context 2048 --new-tokens 8 --batch 4", 5),
    _memory(SMALL, "--context 1024 --new-tokens 8 --attention eager", 4),
    _memory(SMALL, TRAINING, 11),
    _memory(MIDDLE, "--context 16384 --new-tokens 8", 24),
    _memory(SMALL, "--context 32768 --new-tokens 8", 8),
    _memory("catalog:Qwen/Qwen3-1.7B", f"{TRAINING} --lora 16", 9),
    _memory(SMALL, f"{TRAINING} --checkpointing", 9),
    _memory(SMALL, "--mode forward --context 2048", 5),
    replace(_memory(SMALL, "--context 4096 --new-tokens 8", 4), allocator=EXPANDABLE),
    replace(_memory(SMALL, TRAINING, 11), allocator=EXPANDABLE),
    replace(_memory(MIDDLE, "--context 16384 --new-tokens 8", 24), allocator=EXPANDABLE),
)
LIMITS = (
    *_limits(SMALL, "--context 4096 --new-tokens 8", 4),
    *_limits(SMALL, TRAINING, 11),
    *_limits(MIDDLE, "--context 16384 --new-tokens 8", 24),
)
RECORDED = (
    _record(SMALL, "generate context=64 new=1000", 3, 240),
    _record("catalog:Qwen/Qwen3.5-0.8B", "generate context=4096", 6),
    _record("catalog:Qwen/Qwen2.5-7B", "generate context=4096", 19),
    _record("catalog:Qwen/Qwen2.5-14B", "generate context=4096", 34),
    _record(str(CONFIGS / "gemma-2-2b-it.json"), "generate context=2048 attention=eager", 10),
    _record(str(CONFIGS / "gpt-oss-20b.json"), "generate context=2048 attention=eager layers=4", 14),
    _record("catalog:Qwen/Qwen3-VL-4B-Instruct", "image context=2048 images=512", 12),
    _record("catalog:Qwen/Qwen3-VL-4B-Instruct", "image context=2048 images=1024+512", 13),
    _record(LARGE, "generate context=512 batch=8 layers=6", 12),  # decoding takes the chosen experts' weights apart
    _record(SMALL, "padded context=2048 batch=4", 7),
    _record(SMALL, "autocast context=1024", 16),
    _record(SMALL, "generate context=4096 beside=2147483648", WHOLE),  # alone, for NVML tells of all processes together
)


# --- running them


def command_of(job: Job, device: str, folder: Path, number: int) -> list[str]:
    if job.kind == "memory":
        chosen = ("--device", device, "--random-weights", "--format", "json", "--lang", "en", "--quiet")
        return [sys.executable, "-m", "qwen_inspect", "memory", job.model, *job.options, *chosen]
    if job.kind == "limit":
        return [sys.executable, "benchmarks/gpu/limit.py", job.model, *job.options, "--device", device]
    return [sys.executable, "benchmarks/gpu/record.py", job.model, str(_recording(job, folder, number)), *job.options]


def _recording(job: Job, folder: Path, number: int) -> Path:
    words = "-".join([job.model_name, *job.options]).replace("=", "")
    return folder / f"{number:02}-{words}.xz"


def done(job: Job, number: int, device: str, folder: Path, ends: float) -> dict[str, Any]:
    """One job: what it printed, or why it did not."""
    began = time.monotonic()
    shown = {"job": job.name, "kind": job.kind, "model": job.model, "options": list(job.options)}
    limit = min(job.seconds, ends - began)
    # A cache of its own: what one run is found to take must not be what another is predicted to.
    own = {"QWEN_INSPECT_CACHE": str(folder / f"cache-{number}"), "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **own}
    if job.allocator:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = job.allocator
    try:
        process = subprocess.run(
            command_of(job, device, folder, number),
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            timeout=limit,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return {**shown, "exit": None, "seconds": limit, "reason": f"longer than {limit:.0f} s", "report": None}
    try:
        report = json.loads(process.stdout) if process.stdout else None
    except ValueError:
        report = {"not_json": process.stdout[-2000:]}
    reason = process.stderr.strip()[-4000:] or None
    return {
        **shown,
        "exit": process.returncode,
        "seconds": round(time.monotonic() - began, 1),
        "reason": reason,
        "report": report,
    }


def each_done(
    jobs: Sequence[Job], device: str, folder: Path, ends: float, room: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The jobs' numbers and results as they come. A job waits until the card has room for it; one behind it need not."""
    waiting = list(enumerate(jobs))
    running: dict[Future[dict[str, Any]], tuple[int, Job]] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while waiting or running:
            for number, job in list(waiting):
                taken = sum(other.gigabytes for _, other in running.values())
                if time.monotonic() > ends - 5:
                    waiting.remove((number, job))
                    result = {"job": job.name, "kind": job.kind, "model": job.model, "options": list(job.options)}
                    yield number, {**result, "exit": None, "seconds": 0, "reason": "no time was left", "report": None}
                elif len(running) < AT_ONCE and (taken + job.gigabytes <= room or not running):
                    waiting.remove((number, job))
                    running[pool.submit(done, job, number, device, folder, ends)] = number, job
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                number, _ = running.pop(future)
                yield number, future.result()


# --- what is written


def page(results: dict[str, Any]) -> str:
    runs = sorted(results["jobs"], key=lambda run: int(run["number"]))
    measured = [row for run in runs if run["kind"] == "memory" for row in _rows(run)]
    limits = [_limit_row(run) for run in runs if run["kind"] == "limit"]
    blocks: list[Block] = [
        Heading("Predicted and measured on a device", 1),
        Paragraph(
            "Random weights from configurations; each run in a process of its own. Bytes, as the device's allocator told them. "
            "Written by benchmarks/gpu/measure.py; the raw output is results.json beside this page."
        ),
        Items([f"{name}: {value}" for name, value in results["versions"].items()]),
        Table(
            ["Model", "Workload", "Figure", "Predicted", "Measured", "Difference", "%", "Unexplained"],
            measured,
            "lllrrrrr",
        ),
    ]
    if limits:
        blocks += [
            Heading("With exactly what is required, and with less"),
            Paragraph(
                "Under a limit torch counts a whole request before it looks for mapped pages to put it in "
                "(CUDACachingAllocator.cpp, alloc_block), so that with expandable segments a run may end below its limit."
            ),
            Table(["Run", "Required", "Limit", "Ended", "Reserved", "Cache given back", "OOM"], limits, "lrrlrrr"),
        ]
    return markdown.render(blocks)


def _rows(run: dict[str, Any]) -> Iterator[list[str]]:
    model = run["model"].partition(":")[2] or run["model"]
    workload = run["job"].split(" ", 2)[2]  # with the allocator's settings
    report = run.get("report")
    if not report or report.get("measured") is None:
        yield [model, workload, "–", "–", "–", "–", "–", run["reason"] or "–"]
        return
    for one in report["differences"]:
        if one["term"] not in SUMMARY:
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


def _limit_row(run: dict[str, Any]) -> list[str]:
    told = run.get("report") or {}
    bytes_of = (told.get(name) for name in ("required_bytes", "limit_bytes", "peak_reserved_bytes"))
    required, limit, reserved = (count(value) for value in bytes_of)
    times = (str(told.get(name, "–")) for name in ("num_alloc_retries", "num_ooms"))
    ended = str(told.get("ended") or run["reason"] or "–").splitlines()[-1]
    return [run["job"].removeprefix("limit "), required, limit, ended, reserved, *times]


def line_of(run: dict[str, Any]) -> str:
    """One line on the terminal: how a job ended."""
    told = run["report"] or {}
    if run["kind"] == "memory" and told.get("differences"):
        found = {one["term"]: one["difference"] for one in told["differences"]}
        parted = "" if told["measured"]["parted"] is None else ", parted"
        what = f"allocated {found['peak_allocated']}, reserved {found['peak_reserved']}{parted}"
    else:
        names = ("ended", "num_ooms", "failed", "events", "off_by_bytes")
        what = " ".join(f"{name}={told[name]}" for name in names if name in told)
    reason = "" if run["exit"] == 0 else (run["reason"] or "").splitlines()[-1:]
    return f"{run['seconds']:6.1f} s  exit {run['exit']}  {run['job']}: {what} {reason or ''}"


def summary(results: dict[str, Any]) -> str:
    """How far predictions are off on this card, in a line."""
    off: dict[str, list[float]] = {"peak_allocated": [], "peak_reserved": []}
    recorded: list[
        tuple[int, int]
    ] = []  # whose caller holds the prompt's mask, 8 bytes a token, which no prediction has
    for run in results["jobs"]:
        told = run.get("report") or {}
        for one in told.get("differences", ()):
            if one["term"] in off and one["predicted"] and one["difference"] is not None:
                off[one["term"]].append(abs(one["difference"]) / one["predicted"])
        if told.get("off_by_bytes"):
            recorded.append(tuple(map(abs, told["off_by_bytes"])))
    parts = [
        f"{name.removeprefix('peak_')} equal in {values.count(0)} of {len(values)}, {max(values):.3%} off at most"
        for name, values in off.items()
        if values
    ]
    if recorded:
        allocated, reserved = (max(sizes) for sizes in zip(*recorded, strict=True))
        parts.append(f"{len(recorded)} recorded, allocated {allocated:,} B off at most, reserved {reserved:,} B")
    return f"Predictions on {results['versions'].get('device', 'this machine')}: {'; '.join(parts) or 'nothing was measured'}"


def put_aside(recording: Path, output: Path) -> None:
    """A recording, where there is one, into the output's folder of them."""
    if recording.is_file():
        (output / "recordings").mkdir(exist_ok=True)
        shutil.move(recording, output / "recordings" / recording.name)


def keep(results: dict[str, Any], output: Path) -> None:
    write_whole(str(output / "results.json"), json.dumps(results, indent=1) + "\n", overwrite=True)
    write_whole(str(output / "results.md"), page(results), overwrite=True)


# --- the command


def small(jobs: Sequence[Job], folder: Path) -> Iterator[Job]:
    """The same jobs for a CPU: small models of the same classes, short prompts, few steps."""
    from benchmarks.gpu.record import configuration

    changes = {
        "--context": "32", "--new-tokens": "3", "context": "64", "new": "5", "images": "32", "beside": "1", "layers": "2",
    }  # fmt: skip
    for number, job in enumerate(jobs):
        model = folder / str(number) / job.model_name / "config.json"
        model.parent.mkdir(parents=True)
        model.write_text(json.dumps(small_configuration(configuration(job.model, 0))))
        options = list(job.options)
        for index, option in enumerate(options):
            name, equals, value = option.partition("=")
            if equals and name in changes:
                options[index] = f"{name}={'+'.join([changes[name]] * len(value.split('+')))}"
            elif option in changes:
                options[index + 1] = changes[option]
        yield replace(job, model=str(model), options=tuple(options), gigabytes=1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent, metavar="FOLDER")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument(
        "--record", action="store_true", help="also record every request of some runs, into FOLDER/recordings"
    )
    parser.add_argument("--seconds", type=int, default=3600, help="for all jobs together")
    parser.add_argument("--only", default="", help="jobs with this text in their names")
    parser.add_argument(
        "--room", type=int, default=WHOLE, metavar="GIB", help="of the card's memory, for all that run at once"
    )
    parser.add_argument("--try", dest="trying", action="store_true", help="small models on the CPU")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + options.seconds
    from qwen_inspect.errors import QwenInspectError
    from qwen_inspect.measuring.loading import check_device

    device = "cpu" if options.trying else options.device
    try:
        check_device(device)
    except QwenInspectError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    jobs: Sequence[Job] = [*MEASURED, *LIMITS, *(RECORDED if options.record else ())]
    jobs = [job for job in jobs if options.only in job.name]
    results: dict[str, Any] = {"versions": {"python": platform.python_version()}, "jobs": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.trying:
            jobs = list(small(jobs, folder))
        for number, run in each_done(jobs, device, folder, ends, options.room):
            results["jobs"].append({"number": number, **run})
            told = (run.get("report") or {}).get("measured") if run["kind"] == "memory" else None
            if told:
                results["versions"] |= {"device": told["device"], **told["versions"]}
            put_aside(_recording(jobs[number], folder, number), options.output)
            print(line_of(run), flush=True)
            keep(results, options.output)
    print(summary(results), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

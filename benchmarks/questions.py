"""Ten questions that users ask, put to qwen-inspect, hf-mem, accelerate and kvfit side by side; writes benchmarks/questions.md.

Run `python benchmarks/questions.py` in the environment of `make test`. Of every answer: the command and its keystrokes, the
seconds (all commands in turn, caches empty), the lines of stdout down to the answer, and the answer beside the known one.
hf-mem and kvfit are installed from the package index, each into an environment of its own under a temporary folder; accelerate
and qwen-inspect are those of this environment. The hub is a server on loopback; weights are holes of their real sizes.
"""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.hub.server import HubRepo, HubServer
from tests.support.models import write_sharded

ROOT = Path(__file__).parent.parent
RUNS = 5
TOLERANCE = 0.005  # of the known answer: three printed digits are right
COMMANDS = {
    "qwen-inspect": "qwen-inspect ",
    "hf-mem": "hf-mem --model-id ",
    "accelerate": "accelerate estimate-memory ",
    "kvfit": "kvfit ",
}
RELEASES = {"hf-mem": "0.5.6", "kvfit": "0.3.0"}
# hf-mem and kvfit have the hub's address in their code: this sends them to the server. accelerate heeds HF_ENDPOINT.
SITE = """import os, urllib.request
def swap(value): return value.replace("https://huggingface.co", os.environ["HF_ENDPOINT"]) if isinstance(value, str) else value
def redirected(build):
    return lambda self, *words, **named: build(self, *map(swap, words), **{key: swap(named[key]) for key in named})
try:
    from httpx2 import AsyncClient
    AsyncClient.build_request = redirected(AsyncClient.build_request)
except ImportError:
    urllib.request.Request.__init__ = redirected(urllib.request.Request.__init__)
"""
# The words after each tool's command and a pattern, whose groups over all lines are the answer; or why none can answer.
Ask = tuple[str, str] | str
Known = tuple[float, ...] | tuple[str, ...]  # numbers in the unit that the tools print

MODELS = ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B", "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen3-Next-80B-A3B-Instruct")
SMALL, MIDDLE, OLDER, HYBRID = MODELS
META = "transformers 5.23, on the meta device"
MEASURED = "measured on an H100, benchmarks/gpu/results.json"
TOTAL, CACHE = r"│ ([\d.]+) GiB \(", r"KV CACHE \(\d+ TOKENS, ([\d.]+) GiB\)"  # hf-mem
HALF, TRAINING = r"float16│[^│]+│ *([\d.]+) GB", r"float16│.*│ *([\d.]+) GB +│$"  # accelerate
FILES, STATE = r"^Weights: +([\d.]+) GiB", r"^KV/sequence: +([\d.]+) GiB"  # kvfit
PEAK, PAIR = r"of which ([\d.]+) GiB are allocated", r"At this batch and context .*?\(([\d.]+) GiB\).*?\(([\d.]+) GiB\)"
AT_40K = " --hardware custom:24 --context 40k"
QUESTIONS: Sequence[tuple[str, Known, str, Sequence[Ask]]] = (
    ("How many parameters has Qwen3-0.6B?", (596_049_920,), META, (
        ("params Qwen3-0.6B", r"([\d,]+) parameters"),
        (SMALL, r"GiB \(([\d.]+M) PARAMS\)"), "prints bytes only", "prints bytes only",
    )),
    ("How much memory do its weights take in bfloat16 (GiB)?", (1.1102,), "the file, 1.40, has the tied head twice", (
        ("structure Qwen3-0.6B", r"weights ([\d.]+) GiB"), (SMALL, TOTAL), (SMALL, HALF), (SMALL + AT_40K, FILES),
    )),
    ("How many KV heads has its attention?", (8,), "its config.json, `num_key_value_heads`", (
        ("attention Qwen3-0.6B", r"GQA, 16 query heads on (\d+) KV heads"),
        "says nothing of attention", "says nothing of attention", (SMALL + AT_40K, r"^Architecture: +(\S+)"),
    )),
    ("How large is its KV cache at 40,960 tokens (GiB)?", (4.375,), META, (
        ("attention Qwen3-0.6B", r"([\d.]+) GiB at 40,960 tokens"),
        (f"{SMALL} --experimental", CACHE), "leaves the cache out", (SMALL + AT_40K, STATE),
    )),
    ("How large is the cache of Qwen3-Next-80B-A3B at 262,144 tokens (GiB)?", (6.0725,), META, (
        ("attention Qwen3-Next-80B-A3B-Instruct", r"([\d.]+) GiB at 262,144 tokens"),
        (f"{HYBRID} --experimental", CACHE), "leaves the cache out",
        (f"{HYBRID} --hardware custom:192 --context 256k", STATE),
    )),
    ("What does Qwen2.5-7B-Instruct allocate at its peak, 2,048 tokens after 6,144 (GiB)?", (15.38,),
     "published by QwenLM, A100 80GB, benchmarks/published/transformers_memory.csv; weights and cache alone are 14.62", (
        ("memory Qwen2.5-7B-Instruct --gpu a100-80gb --context 6k --new-tokens 2048", PEAK),
        (f"{OLDER} --experimental --max-model-len 8192", TOTAL),
        "covers loading only", "leaves activations out, prints no total",
    )),
    ("Does Qwen3-8B fit a card of 24 GB with a prompt of 16,384 tokens?", ("yes",), f"20.61 GiB with the context, {MEASURED}", (
        ("fit Qwen3-8B --gpu 4090 --context 16k", r"^(Yes|No),"),
        "prints a total, knows no cards", "prints a total, knows no cards",
        (f"{MIDDLE} --hardware custom:24 --context 16k", r"^ +\d.* (fits|\S+-oom)$"),
    )),
    ("What does AdamW training of Qwen3-0.6B allocate, 1,024 tokens (GiB)?", (7.0616,), f"{MEASURED}; 4.44 without activations", (
        ("memory Qwen3-0.6B --mode train --context 1k --gpu h100", PEAK),
        "covers inference only", (SMALL, TRAINING), "covers inference only",
    )),
    ("How many GiB of tensors lie in the current folder (Qwen3-0.6B, downloaded)?", (1.4,), "1,503,264,768 bytes written", (
        ("weights .", r"elements, ([\d.]+) GiB"), (".", TOTAL), (".", HALF), (". --hardware custom:24", FILES),
    )),
    ("How large are the caches of Qwen3-0.6B and Qwen3-8B at 40,960 tokens (GiB)?", (4.375, 5.625), META, (
        ("compare Qwen3-0.6B Qwen3-8B --context 40k", PAIR),
        (f"{SMALL} --experimental && {MIDDLE} --experimental", CACHE),
        "leaves the cache out", (f"{SMALL}{AT_40K} && {MIDDLE}{AT_40K}", STATE),
    )),
)  # fmt: skip


@dataclass
class Outcome:
    """What one tool made of one question, over all runs."""

    tool: str
    command: str = ""
    pattern: str = ""
    says: str = ""  # the lines with the answer, or why there is none
    verdict: str = "no answer"
    lines: int = 0  # of stdout, down to the answer
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def read(self, known: Known, done: subprocess.CompletedProcess[str]) -> None:
        """Finds the answer in what the command printed, and says how it stands to the known one."""
        values: list[str] = []
        shown: list[str] = []
        for at, line in enumerate(re.sub(r"\x1b\[[\d;]*m", "", done.stdout).splitlines(), 1):
            if len(values) < len(known) and (match := re.search(self.pattern, line)):
                values += match.groups()
                shown.append(" ".join(re.sub("[│█░|]", " ", line).split()))
                self.lines = at
        self.says = f"`{'; '.join(shown)}`"
        if not values:
            errors = [line for line in done.stderr.splitlines() if re.match(r"\S*(Error|error|kvfit):", line)]
            self.says, self.verdict = f"`{(errors or ['nothing'])[-1]}`", f"fails, exit {done.returncode}"
        elif isinstance(known[0], str):
            self.verdict = "right" if values[0].lower() in (known[0], "fits") else "wrong"
        elif not values[0][0].isdigit():
            self.lines = 0
        elif len(values) == len(known):
            numbers = [float(value.strip("M").replace(",", "")) * (1e6 if "M" in value else 1) for value in values]
            off = max((got / float(right) - 1 for got, right in zip(numbers, known, strict=True)), key=abs)
            self.verdict = "right" if abs(off) <= TOLERANCE else f"wrong, {off:+.1%}"


def install(folder: Path) -> dict[str, str]:
    """The folder of each tool's command; a tool that could not be installed is left out."""
    bins = dict.fromkeys(("qwen-inspect", "accelerate"), str(Path(sys.executable).parent))
    for name, release in RELEASES.items():
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        pip = f"{folder / name}/bin/pip --disable-pip-version-check install --quiet {name}=={release}"
        if subprocess.run(pip.split(), check=False).returncode == 0:
            bins[name] = str(folder / name / "bin")
    return bins


def timed(command: str, cwd: Path, environment: Mapping[str, str]) -> tuple[float, subprocess.CompletedProcess[str]]:
    began = time.perf_counter()
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment, cwd=cwd, check=False)
    return time.perf_counter() - began, done


def main() -> None:
    rows = []
    for *_, asks in QUESTIONS:
        rows.append(row := [Outcome(tool) for tool in COMMANDS])
        for outcome, ask in zip(row, asks, strict=True):
            words, outcome.pattern, outcome.says = ("", "", ask) if isinstance(ask, str) else (*ask, "")
            outcome.command = " && ".join(COMMANDS[outcome.tool] + part for part in words.split(" && ") if part)
    bare = []
    with tempfile.TemporaryDirectory() as name:
        folder, home = Path(name), Path(name, "home")
        bins = install(folder)
        (folder / "site").mkdir()
        (folder / "site/sitecustomize.py").write_text(SITE)
        for model in MODELS:
            (folder / model).mkdir(parents=True)
            write_sharded(folder / model, model)
        repos = [HubRepo(model, {path.name: path for path in (folder / model).iterdir()}) for model in MODELS]
        with HubServer(repos) as hub:
            own = ("HF_", "MODELSCOPE_", "QWEN_INSPECT_", "PYTHON", "XDG_")
            shared = {key: text for key, text in os.environ.items() if not key.startswith(own)} | hub.environment(home)
            shared |= {"QWEN_INSPECT_CACHE": str(home / "kept"), "LC_ALL": "C.UTF-8"}
            for turn in range(RUNS + 1):  # The first is not counted: it brings the files into memory.
                bare.append(timed(f"{sys.executable} -c pass", folder, shared)[0])
                for (_, known, *_), row in zip(QUESTIONS, rows, strict=True):
                    for outcome in (outcome for outcome in row if outcome.command):
                        if outcome.tool not in bins:
                            outcome.says = "could not be installed"
                            continue
                        shutil.rmtree(home, ignore_errors=True)
                        modules = str(folder / "site" if outcome.tool in RELEASES else ROOT)
                        path = {"PATH": f"{bins[outcome.tool]}{os.pathsep}{shared['PATH']}", "PYTHONPATH": modules}
                        seconds, done = timed(outcome.command, folder / SMALL, shared | path)
                        outcome.seconds += [seconds] if turn else []
                        outcome.read(known, done)
    text = written(rows, statistics.median(bare[1:]))
    (ROOT / "benchmarks/questions.md").write_text(text, encoding="utf-8")
    print(text)


def table(*lines: str) -> str:
    return "\n".join(f"| {line} |" for line in (lines[0], " | ".join("-" * (lines[0].count("|") + 1)), *lines[1:]))


def written(rows: Sequence[Sequence[Outcome]], bare: float) -> str:
    """The page: what was run, a summary by tool, a table by question."""
    releases = RELEASES | {name: version(name) for name in ("qwen-inspect", "accelerate", "transformers", "torch")}
    summary = ["Tool | Right | Wrong | No answer | Keys | Seconds | × | Lines"]
    for at, tool in enumerate(COMMANDS):
        right = [row[at] for row in rows if row[at].verdict == "right"]
        wrong = sum(row[at].verdict.startswith("wrong") for row in rows)
        counts = f"{tool} | {len(right)} | {wrong} | {len(rows) - len(right) - wrong}"
        figures = [(len(o.command), o.median, o.median / bare, o.lines) for o in right]
        keys, seconds, ratio, lines = map(statistics.median, zip(*figures, strict=True)) if right else [math.nan] * 4
        summary.append(f"{counts} | {keys:g} | {seconds:.2f} | {ratio:.1f} | {lines:g}")
    parts = [
        "# Ten questions, four tools",
        f"Written by `python benchmarks/questions.py` on {date.today()}, in one run: Python {platform.python_version()}, "
        f"{', '.join(f'{name} {release}' for name, release in releases.items())}; {os.cpu_count()} CPU cores "
        f"({platform.machine()}) shared with other work, no GPU.",
        f"Each command was run as it stands here, {RUNS} times in turn with all others, every cache empty, from a hub on "
        f"loopback without latency. Seconds are medians; × is their ratio to `python -c pass` ({bare * 1000:.0f} ms). Keys are "
        "the characters of the command, lines those of stdout in a pipe down to the answer. Right is within 0.5 % of the known "
        "answer. hf-mem and kvfit have the hub's address in their code; a `sitecustomize` sends their requests to the server. "
        "accelerate says GB for GiB; its float16 row is read. qwen-inspect and accelerate run beside torch.",
        table(*summary),
        "The last four columns are medians over a tool's right answers, other questions for each; the choice is ours.",
    ]
    for index, ((question, known, origin, _), row) in enumerate(zip(QUESTIONS, rows, strict=True), 1):
        answer = " and ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in known)
        rows_shown = ["Tool | Command | Keys | Seconds | × | Lines | Answer | What it says"]
        for o in row:
            ran = "– | – | – | –"
            if o.seconds:
                ran = f"`{o.command}` | {len(o.command)} | {o.median:.2f} | {o.median / bare:.1f}"
            rows_shown.append(f"{o.tool} | {ran} | {o.lines or '–'} | {o.verdict} | {o.says}")
        parts += [f"## {index}. {question}", f"Known: {answer} ({origin}).", table(*rows_shown)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()

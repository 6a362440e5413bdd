"""Every family from a plain install: seconds, memory, answers; and the caches that tools disagree on. Writes families.md here.

Run `python benchmarks/families.py` in the environment of `make test`. The package is installed alone, without torch, into a new
environment; each command runs in turn with `python -c pass` of that environment, and ratios are of medians. hf-mem and kvfit are
installed from the package index and asked about the same configurations, from a hub on loopback.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.questions import RELEASES, SITE, install, table, timed
from benchmarks.speed import peak_mib
from qwen_inspect.architectures.families import FAMILIES
from qwen_inspect.loaders import catalog
from tests.hub.server import HubRepo, HubServer

ROOT = Path(__file__).resolve().parent.parent
RUNS = 7
TOLERANCE = 0.0005  # GiB: the fourth digit
FIT_RUNS = 3
COMMANDS = ("params", "attention", "memory")
FIT_CARD = "H100"
# Model, tokens, GiB of a bfloat16 cache in transformers 5.23: what its classes keep, counted by layer.
CACHES: Sequence[tuple[str, int, float]] = (
    ("Qwen/Qwen3-0.6B", 40_960, 4.375),
    ("Qwen/Qwen3-Next-80B-A3B-Instruct", 262_144, 6.0725),
    ("Qwen/Qwen3.5-27B", 262_144, 16.1437),
    ("meta-llama/Llama-3.1-8B-Instruct", 131_072, 16.0),
    ("mistralai/Mistral-7B-Instruct-v0.3", 32_768, 4.0),
    ("deepseek-ai/DeepSeek-V3", 163_840, 10.7227),
    ("deepseek-ai/DeepSeek-V3.2", 163_840, 13.1055),
    ("google/gemma-3-27b-it", 131_072, 10.4058),
    ("google/gemma-4-31B-it", 131_072, 10.7800),
    ("openai/gpt-oss-20b", 131_072, 3.0029),
    ("zai-org/GLM-4.7-Flash", 131_072, 6.6094),
    ("Qwen/Qwen3.8-Flash-Next", 262_144, 6.8643),
    ("moonshotai/Kimi-K2.5", 131_072, 8.5781),
)  # fmt: skip


def plain_install(folder: Path) -> Path:
    """The interpreter of a new environment that holds the package and nothing else."""
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "recorded"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "plain"], check=True)
    python = folder / "plain/bin/python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, str(source)], check=True)
    return python


def smallest_release(family: str) -> str | None:
    """The release of this model_type with the fewest layers in the catalog."""
    known = catalog.entries()
    configurations = {name: catalog.configuration(name, known) for name in known}
    releases = [name for name, config in configurations.items() if config["model_type"] == family]
    return min(releases, key=lambda name: (layers_of(configurations[name]), name), default=None)


def layers_of(config: Mapping[str, Any]) -> int:
    text = config.get("text_config", config)
    return int(text.get("num_hidden_layers", 0))


def answered(python: Path, words: Sequence[str]) -> dict[str, Any] | None:
    """The command's JSON; None if it is refused."""
    command = [str(python), "-m", "qwen_inspect", *words, "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def peak_of(predicted: Mapping[str, Any]) -> str:
    """Allocated at the peak: one figure, a quantised model's range, or unknown without torch."""
    peak, ends = predicted["peak_allocated_bytes"], predicted["peak_range"]
    if peak is not None:
        return f"{peak / 2**30:.2f} GiB"
    if ends is None:
        return "unknown"
    return f"{ends['low_bytes'] / 2**30:.1f} to {ends['high_bytes'] / 2**30:.1f} GiB"


def families(python: Path) -> str:
    rows = ["Family | Model | params × | attention × | memory × | fit s | MiB | Parameters | Peak"]
    for family in FAMILIES:
        model = smallest_release(family)
        if model is None:
            continue
        commands = [f"{python} -c pass", *(f"{python} -m qwen_inspect {word} catalog:{model}" for word in COMMANDS)]
        taken: dict[str, list[float]] = {command: [] for command in commands}
        for turn in range(RUNS + 1):
            for command in commands:
                seconds, _ = timed(command, python.parent, os.environ)
                taken[command] += [seconds] if turn else []
        bare, *ratios = (statistics.median(taken[command]) for command in commands)
        mib = max(peak_mib(command.split()) for command in commands[1:])
        fit = f"{python} -m qwen_inspect fit catalog:{model} --gpu {FIT_CARD}"
        fit_seconds = statistics.median(timed(fit, python.parent, os.environ)[0] for _ in range(FIT_RUNS))
        counts, memory = (answered(python, [word, f"catalog:{model}"]) for word in ("params", "memory"))
        parameters = f"{counts['parameters']['theory']:,}" if counts else "refused"
        said = "refused" if memory is None else peak_of(memory["predicted"])
        shown = " | ".join(f"{ratio / bare:.1f}" for ratio in ratios)
        rows.append(f"{family} | {model} | {shown} | {fit_seconds:.2f} | {mib:.0f} | {parameters} | {said}")
        print(rows[-1], flush=True)
    return table(*rows)


def caches(python: Path, folder: Path) -> str:
    """What each tool says of each cache; asked as its users ask."""
    known, bins = catalog.entries(), install(folder)
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(SITE)
    repos = []
    for model, _, _ in CACHES:
        (folder / model).mkdir(parents=True)
        (folder / model / "config.json").write_text(json.dumps(catalog.configuration(model, known)))
        header = json.dumps(
            {"model.embed_tokens.weight": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}
        ).encode()
        (folder / model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
        repos.append(HubRepo(model, {path.name: path for path in (folder / model).iterdir()}))
    rows = ["Model | Tokens | GiB | qwen-inspect | kvfit | hf-mem"]
    tally = {name: [0, 0, 0] for name in ("qwen-inspect", "kvfit", "hf-mem")}
    with HubServer(repos) as hub:
        shared = {**os.environ, **hub.environment(folder / "home"), "PYTHONPATH": str(folder / "site"), "NO_COLOR": "1"}
        for model, tokens, gib in CACHES:
            asked = {
                "qwen-inspect": (
                    f"{python} -m qwen_inspect attention catalog:{model} --context {tokens}",
                    r"([\d.]+) (GiB|MiB) at [\d,]+ tokens",
                ),
                "kvfit": (
                    f"{bins.get('kvfit', '')}/kvfit {model} --hardware custom:80 --context {tokens} --kv-dtype bf16",
                    r"KV/sequence: +([\d.]+) (GiB|MiB)",
                ),
                "hf-mem": (
                    f"{bins.get('hf-mem', '')}/hf-mem --model-id {model} --experimental --max-model-len {tokens}",
                    r"KV CACHE \(\d+ TOKENS, ([\d.]+) (GiB|MiB)\)",
                ),
            }
            cells = []
            for name, (command, pattern) in asked.items():
                _, done = timed(command, folder, shared if name in RELEASES else os.environ)
                match = re.search(pattern, re.sub(r"\x1b\[[\d;]*m", "", done.stdout))
                said = None if match is None else float(match[1]) / (1024 if match[2] == "MiB" else 1)
                right = said is not None and abs(said - gib) <= max(0.006, TOLERANCE * gib)
                tally[name][0 if right else 2 if said is None else 1] += 1
                cells.append("–" if said is None else f"{said:.2f}" if right else f"**{said:.2f}**")
            rows.append(f"{model} | {tokens:,} | {gib:.4f} | {' | '.join(cells)}")
            print(rows[-1], flush=True)
    counts = " | ".join(" / ".join(map(str, tally[name])) for name in tally)
    return table(*rows, f"Right / wrong / no answer | | | {counts}")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        python = plain_install(Path(name))
        os.chdir(name)  # `-m` takes a package of the working directory first, and no source there may be compiled
        speeds = families(python)
        answers = caches(python, Path(name))
    text = "\n\n".join(
        (
            "# Every family from a plain install",
            f"Written by `python benchmarks/families.py` on {date.today()}: Python {platform.python_version()}, "
            f"{', '.join(f'{tool} {release}' for tool, release in RELEASES.items())}; {os.cpu_count()} CPU cores "
            f"({platform.machine()}) shared with other work. The package alone, without torch. × is the ratio of wall times to "
            f"`python -c pass` (medians of {RUNS}, in turn); fit s is the seconds of `fit --gpu {FIT_CARD}` (median of "
            f"{FIT_RUNS}); MiB is the largest resident set of the other three commands.",
            speeds,
            "## Caches",
            "GiB of one sequence's cache in bfloat16. Wrong figures are bold; – is no answer.",
            answers,
        )
    )
    os.chdir(ROOT)
    (ROOT / "benchmarks/families.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

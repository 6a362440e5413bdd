"""How long the commands take, as ratios to `python -c pass` of the same interpreter, measured in one run (medians).

Aims: --help 3 x, structure 3.5 x, memory by a family's trace 8 x (families.md has what is reached: about 6 and 15 x of a bare
environment), fit 1 s, 118 shards of a 235B model 1.5 s and 150 MB, its whole report 3 s, a GGUF header of 5 MB 0.5 s. Prints;
judges nothing.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.support.gguf_files import QWEN3, write_model
from tests.support.models import write_sharded

RUNS = 15


def seconds(command: Sequence[str], runs: int = RUNS) -> float:
    """The median wall time of the whole process, after one run that is not counted."""
    taken = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        assert done.returncode in (0, 1)  # 1 where something does not fit
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def peak_mib(command: Sequence[str]) -> float:
    """The largest resident set of one run, by the kernel's accounting of a child of its own."""
    script = (
        "import resource, subprocess, sys; "
        "subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, check=True, text=True)
    return int(done.stdout) / 1024


def main() -> None:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    tool = [sys.executable, "-m", "qwen_inspect"]
    nothing = seconds([sys.executable, "-c", "pass"])
    print(f"python -c pass: {nothing * 1000:.1f} ms (median of {RUNS})\n")
    print(f"{'command':<50}{'ms':>9}{'x pass':>8}{'MiB':>7}")
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder, "small"), Path(folder, "large")
        small.mkdir()
        large.mkdir()
        write_sharded(small, "Qwen/Qwen3-0.6B")
        shards = write_sharded(large, "Qwen/Qwen3-235B-A22B")
        blocks = write_model(Path(folder, "model.gguf"), "qwen3", QWEN3, tokens=118_000)
        header = f"{blocks.stat().st_size / 1e6:.1f} MB"  # all but 0.1 MB of it
        for label, command in (
            ("--help", [*tool, "--help"]),
            ("structure, catalog", [*tool, "structure"]),
            ("structure, local directory (0.6B)", [*tool, "structure", str(small)]),
            ("weights, local directory (0.6B)", [*tool, "weights", str(small)]),
            ("memory, shipped trace (8B)", [*tool, "memory", "catalog:Qwen/Qwen3-8B"]),
            ("memory, shipped trace (235B)", [*tool, "memory", "catalog:Qwen/Qwen3-235B-A22B"]),
            (f"weights, GGUF header of {header}", [*tool, "weights", str(blocks)]),
            ("fit, shipped trace (8B), fits", [*tool, "fit", "catalog:Qwen/Qwen3-8B", "--gpu", "4090"]),
            ("fit, shipped trace (235B), fits", [*tool, "fit", "catalog:Qwen/Qwen3-235B-A22B", "--memory", "500GiB"]),
            (
                "fit, shipped trace (235B), what to change",
                [*tool, "fit", "catalog:Qwen/Qwen3-235B-A22B", "--memory", "80GiB"],
            ),
            ("models", [*tool, "models"]),
            (f"structure, {shards} shards (235B)", [*tool, "structure", str(large)]),
            (f"params, {shards} shards (235B)", [*tool, "params", str(large)]),
            (f"weights, {shards} shards (235B)", [*tool, "weights", str(large)]),
            (
                f"report, {shards} shards (235B)",
                [*tool, "report", str(large), "--overwrite", "-o", f"{folder}/reports"],
            ),
        ):
            taken = seconds(command, 5 if str(large) in command else RUNS)
            print(f"{label:<50}{taken * 1000:>9.1f}{taken / nothing:>8.2f}{peak_mib(command):>7.0f}")


if __name__ == "__main__":
    main()

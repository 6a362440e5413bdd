"""Reading 118 shards' headers from a loopback hub with 50 ms before each answer, beside huggingface_hub's own call, in one run.

Each is a process of its own, over the same server and the same model (Qwen3-235B-A22B at its real size, its data a hole).
`params` reads every header, `structure` what the hub counts. Prints medians, requests, bytes and peak memory; judges nothing.
Last, a small model without latency, as a ratio to `python -c pass`.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.speed import peak_mib
from tests.hub.server import HubRepo, HubServer
from tests.support.models import write_sharded

RUNS = 5
LATENCY_SECONDS = 0.05
MODEL, SMALL = "Qwen/Qwen3-235B-A22B", "Qwen/Qwen3-0.6B"
PEER = f"from huggingface_hub import get_safetensors_metadata; get_safetensors_metadata({MODEL!r})"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home, files = Path(folder, "home"), Path(folder, "files")
        files.mkdir()
        shards = write_sharded(files, MODEL)
        with HubServer([HubRepo(MODEL, {path.name: path for path in files.iterdir()})]) as hub:
            inherited = {
                name: value for name, value in os.environ.items() if not name.startswith(("HF_", "MODELSCOPE_"))
            }
            os.environ.clear()
            os.environ.update({**inherited, **hub.environment(home), "QWEN_INSPECT_CACHE": str(home / "kept")})
            tool, design = ([sys.executable, "-m", "qwen_inspect", command] for command in ("params", "structure"))
            print(f"{shards} shards, {LATENCY_SECONDS * 1000:.0f} ms an answer; medians of {RUNS}\n")
            print(f"{'':<52}{'s':>7}{'requests':>10}{'MB':>7}{'at once':>9}{'MiB':>7}")
            for redirected in (False, True):
                hub.redirect_lfs = redirected
                hub.latency = 0.0
                subprocess.run([*tool, f"hf:{MODEL}"], check=True, capture_output=True)  # the server's own first time
                hub.latency = LATENCY_SECONDS
                where = ", redirected to a second origin" if redirected else ""
                peer = measured(hub, f"get_safetensors_metadata{where}", [sys.executable, "-c", PEER], home, keep=True)
                for source in ("hf", "ms"):
                    label = f"params {source}:{where}"
                    cold = measured(hub, label, [*tool, f"{source}:{MODEL}"], home, keep=False)
                    print(f"{'':<52}{peer / cold:>7.2f} x as fast")
            for source in ("hf", "ms"):
                measured(hub, f"structure {source}:", [*design, f"{source}:{MODEL}"], home, keep=False)
                subprocess.run([*tool, f"{source}:{MODEL}"], check=True, capture_output=True)
                measured(hub, f"params {source}: again", [*tool, f"{source}:{MODEL}"], home, keep=True)
                again = [*tool, f"{source}:{MODEL}", "--refresh"]
                measured(hub, f"params {source}: again, asking for the listing", again, home, keep=True)
        print()
        small(home, Path(folder, "small"))


def small(home: Path, files: Path) -> None:
    """Qwen3-0.6B from an empty cache and no latency, each command in turn with `python -c pass`."""
    files.mkdir()
    write_sharded(files, SMALL)
    with HubServer([HubRepo(SMALL, {path.name: path for path in files.iterdir()})]) as hub:
        hub.redirect_lfs = False
        os.environ.update({**hub.environment(home), "QWEN_INSPECT_CACHE": str(home / "kept")})
        nothing = [sys.executable, "-c", "pass"]
        commands = {
            name: [sys.executable, "-m", "qwen_inspect", "structure", f"{name}:{SMALL}"] for name in ("hf", "ms")
        }
        taken: dict[str, list[float]] = {"pass": [], **{name: [] for name in commands}}
        for _ in range(3 * RUNS):
            for name, command in {"pass": nothing, **commands}.items():
                shutil.rmtree(home / "kept", ignore_errors=True)
                began = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                taken[name].append(time.perf_counter() - began)
        bare = statistics.median(taken.pop("pass"))
        for name, seconds in taken.items():
            print(f"structure {name}:{SMALL}, cold: {statistics.median(seconds) / bare:.2f} x python -c pass")


def measured(hub: HubServer, label: str, command: list[str], home: Path, *, keep: bool) -> float:
    """The median seconds of a command, from an empty cache unless `keep`; prints its row."""
    taken = []
    for _ in range(RUNS):
        if not keep:
            shutil.rmtree(home / "kept", ignore_errors=True)
        hub.forget()
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - began)
    requests, sent, at_once = len(hub.requests), hub.bytes_sent, hub.max_in_flight
    if not keep:
        shutil.rmtree(home / "kept", ignore_errors=True)
    seconds = statistics.median(taken)
    print(f"{label:<52}{seconds:>7.2f}{requests:>10}{sent / 1e6:>7.1f}{at_once:>9}{peak_mib(command):>7.0f}")
    return seconds


if __name__ == "__main__":
    main()

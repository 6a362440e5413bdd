"""How long traces take: of each shape in the catalog by itself, beyond importing torch and transformers, and from kept ones.

Bounds that the project keeps: a direct trace of Qwen3-8B's `generate` 6 s, of any catalog model 10 s, an evaluation from a kept
trace 50 ms, and 1 GB of memory for a trace of a 235B model. Prints; judges nothing.
"""

from __future__ import annotations

import gc
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from qwen_inspect.loaders import catalog
from qwen_inspect.predicting.footprint import traced_footprint
from qwen_inspect.predicting.sources import symbolic_trace, trace_name, trace_request
from qwen_inspect.predicting.traces.kept_trace import Point
from qwen_inspect.results.memory import Run
from qwen_inspect.structure.inspect import inspect

MAIN = "Qwen/Qwen3-8B"
LARGEST = ("Qwen/Qwen3-235B-A22B", "Qwen/Qwen3-Coder-480B-A35B-Instruct")
RUNS = 5
MIB = 1 << 20
RUN = Run(
    mode="generate", batch=1, prompt_tokens=2048, new_tokens=128, attention="sdpa", loader="warmup", gpu="sm_80"
)  # fmt: skip


def median_seconds(measured: Callable[[], object], runs: int = RUNS) -> float:
    taken = []
    for _ in range(runs):
        gc.collect()
        began = time.perf_counter()
        measured()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def direct(model: str) -> tuple[float, int, float]:
    """Seconds of a trace beyond the imports, its events, and how much the process grew by it, in MiB."""
    from qwen_inspect.tracing.trace import trace

    small = inspect("Qwen/Qwen3-0.6B", source="catalog")
    trace(small.spec, small.config or {}, trace_request(RUN))  # imports
    report = inspect(model, source="catalog")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    events = len(trace(report.spec, report.config or {}, trace_request(RUN)).events)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return median_seconds(lambda: trace(report.spec, report.config or {}, trace_request(RUN)), 3), events, grown / 1024


def kept(model: str) -> tuple[float, int]:
    """Seconds of an evaluation from the family's trace, and its events."""
    report = inspect(model, source="catalog")
    found = symbolic_trace(report, RUN)
    assert found is not None, model
    point = Point(RUN.batch, RUN.prompt_tokens, RUN.cached_tokens)
    gc.disable()  # as the command line does
    evaluate = median_seconds(lambda: traced_footprint(found.at(point), RUN, provenance=found.made_by))
    return evaluate, len(found.order)


def main() -> None:
    spawn = multiprocessing.get_context("spawn")
    shapes = {}
    for name in catalog.entries():
        report = inspect(name, source="catalog")
        shapes[trace_name(report, "sdpa", ""), len(report.spec.layers)] = name
    chosen = dict.fromkeys((MAIN, *LARGEST, *(sorted(shapes.values()) if "--all" in sys.argv else ())))
    print(f"{'direct trace, beyond imports':<46}{'s':>8}{'events':>9}{'MiB more':>10}")
    for model in chosen:
        with spawn.Pool(1) as process:
            seconds, events, grown = process.apply(direct, (model,))
        print(f"{model:<46}{seconds:>8.2f}{events:>9,}{grown:>10.0f}", flush=True)
    print(f"\n{'evaluation from the shipped trace':<46}{'ms':>8}{'events':>9}")
    for model in chosen:
        with spawn.Pool(1) as process:
            seconds, events = process.apply(kept, (model,))
        print(f"{model:<46}{seconds * 1000:>8.1f}{events:>9,}", flush=True)


if __name__ == "__main__":
    main()

"""Traces the catalog's main models and keeps the traces in the package, for installs without torch. Needs the torch extra.

Each model is traced for every workload that its polynomials need, and for one more that checks them.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from qwen_inspect.analyzers.kept_trace import SAMPLES, WITNESS, dump, fit
from qwen_inspect.analyzers.trace import AttentionKernel, TraceRequest, trace
from qwen_inspect.architectures import architecture_of
from qwen_inspect.loaders import catalog
from qwen_inspect.prediction import SHIPPED, trace_name, versions

MODELS = (
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-1.7B",
    "Qwen/Qwen3-4B",
    "Qwen/Qwen3-8B",
    "Qwen/Qwen3-14B",
    "Qwen/Qwen3-32B",
    "Qwen/Qwen3-30B-A3B",
    "Qwen/Qwen3-235B-A22B",
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen2.5-1.5B",
    "Qwen/Qwen2.5-3B",
    "Qwen/Qwen2.5-7B",
    "Qwen/Qwen2.5-14B",
    "Qwen/Qwen2.5-32B",
    "Qwen/Qwen2.5-72B",
)
KERNELS: tuple[AttentionKernel, ...] = ("sdpa",)


def main() -> None:
    SHIPPED.mkdir(exist_ok=True)
    known = catalog.entries()
    for model in sys.argv[1:] or MODELS:
        config = catalog.configuration(model, known)
        spec = architecture_of(config).read_spec(config)
        for kernel in KERNELS:
            began = time.perf_counter()
            traces = {
                point: trace(
                    spec,
                    config,
                    TraceRequest(
                        mode="generate",
                        batch=point.batch,
                        prompt_tokens=point.prompt_tokens,
                        new_tokens=point.total_tokens - point.prompt_tokens + 1,
                        attention=kernel,
                    ),
                )
                for point in (*SAMPLES, WITNESS)
            }
            content = dump(fit(traces, made_by=versions()))
            (SHIPPED / trace_name(spec, kernel)).write_bytes(content)
            print(f"{model} {kernel}: {len(content):,} B, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()

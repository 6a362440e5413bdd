"""Makes a run in a process that may reserve exactly what `memory` and `fit` say that it requires, or that many bytes less.

    python benchmarks/gpu/limit.py MODEL --less BYTES [--mode train] [--context N] [--new-tokens N] [--device cuda]

The limit is torch.cuda.set_per_process_memory_fraction, set when the weights are there and the loader's cache is given back.
Prints one line of JSON: the limit, how the run ended, what it reserved, and how often the allocator gave its cache back. The
allocator's settings are those of PYTORCH_CUDA_ALLOC_CONF.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))


def fraction_of(limit_bytes: int, total_bytes: int) -> float:
    """The fraction of which torch makes exactly this limit: it cuts off what `fraction * total` has behind the point.

    Source: torch 2.11, c10/cuda/CUDACachingAllocator.cpp, setMemoryFraction
    """
    fraction = (limit_bytes + 0.5) / total_bytes
    assert int(fraction * total_bytes) == limit_bytes
    return fraction


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--less", type=int, default=0)
    parser.add_argument("--mode", default="generate")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--device", default="cuda:0")
    options = parser.parse_args()
    import torch

    from qwen_inspect import inspect
    from qwen_inspect.measuring.loading import check_device, random_model
    from qwen_inspect.measuring.run import loaded, make_ready, measure
    from qwen_inspect.predicting.predict import predict
    from qwen_inspect.results.memory import Run

    device = check_device(options.device)
    on_cuda = device != "cpu"
    report = inspect(options.model)
    run = Run(
        mode=options.mode,
        prompt_tokens=options.context,
        new_tokens=options.new_tokens,
        loader="per-tensor",
        gpu=torch.cuda.get_device_name(device) if on_cuda else "h100",
        allocator=os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""),
    )
    memory = predict(report, run)
    predicted, run = memory.predicted, memory.run  # whose kernel is then known
    assert predicted.peak_reserved is not None
    limit = predicted.peak_reserved - options.less
    model = random_model(
        report.spec, report.config or {}, dtype=report.spec.dtype.torch_name, attention=run.attention, device=device
    ).model
    make_ready(model, run)
    gc.collect()
    told: dict[str, Any] = {"required_bytes": predicted.peak_reserved, "limit_bytes": limit}
    if on_cuda:
        torch.cuda.empty_cache()
        told["loaded_reserved_bytes"] = torch.cuda.memory_reserved(device)
        total = torch.cuda.mem_get_info(device)[1]
        told["total_bytes"] = [total, torch.cuda.get_device_properties(device).total_memory]
        torch.cuda.set_per_process_memory_fraction(fraction_of(limit, total), device)
    found = measure(model, run, None, before=(loaded(model, None),))
    partial = found.measurement.partial
    told["ended"] = "ran" if partial is None else partial.key
    if on_cuda:
        stats = torch.cuda.memory_stats(device)
        told |= {name: stats[name] for name in ("num_ooms", "num_alloc_retries")}
        told |= {
            f"peak_{name}_bytes": getattr(found.measurement.footprint, f"peak_{name}_bytes")
            for name in ("reserved", "allocated")
        }
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Measures on a CUDA device what `memory` predicts, for models of random weights built from catalog configurations.

    python benchmarks/gpu/measure.py [-o results.json] [MODEL ...]

For each model and workload: weights drawn on the device one by one (as `--load per-tensor` lays them), one warm-up token to
create context and workspace before the figures are taken, then `generate` with greedy decoding to an exact number of tokens;
allocated, reserved and their peaks by torch.cuda, and the driver's view. Writes raw figures beside the predicted ones, with
versions. Has not been run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from qwen_inspect.pipeline import inspect
from qwen_inspect.prediction import predict
from qwen_inspect.report import Run

MODELS = (
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen3-1.7B",
    "Qwen/Qwen3-8B",
    "Qwen/Qwen2.5-7B",
    "Qwen/Qwen3-30B-A3B",
)
WORKLOADS = ((1, 512, 32), (1, 4096, 64), (4, 2048, 64), (1, 16384, 16))  # batch, prompt tokens, new tokens


def measure(model: str, workloads: tuple[tuple[int, int, int], ...]) -> list[dict[str, Any]]:
    """One model on the device: its rows, measured and predicted."""
    import torch
    import transformers

    report = inspect(model, source="catalog")
    config = transformers.AutoConfig.for_model(**(report.config or {}))
    dtype = getattr(torch, report.spec.dtype.torch_name)
    with torch.device("meta"):
        built = getattr(transformers, report.spec.class_name)._from_config(config, dtype=dtype)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    built.to_empty(device="cuda")
    built.tie_weights()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(std=0.02)
    built.model.rotary_emb.__init__(config, device="cuda")  # its frequencies are no parameters, and were on meta
    built.eval()
    loaded = torch.cuda.memory_allocated() - before
    rows = []
    for batch, prompt, new in workloads:
        torch.cuda.empty_cache()
        ids = torch.zeros((batch, prompt), dtype=torch.long, device="cuda")
        options = {"do_sample": False, "use_cache": True, "pad_token_id": 0, "eos_token_id": None}
        built.generate(ids[:, :8], max_new_tokens=1, **options)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        started = torch.cuda.memory_allocated()
        built.generate(ids, min_new_tokens=new, max_new_tokens=new, **options)
        torch.cuda.synchronize()
        stats = torch.cuda.memory_stats()
        free, total = torch.cuda.mem_get_info()
        run = Run(
            mode="generate",
            batch=batch,
            prompt_tokens=prompt,
            new_tokens=new,
            attention="sdpa",
            loader="per-tensor",
            gpu=torch.cuda.get_device_name(),
        )
        predicted = predict(report, run).predicted
        assert predicted.peak is not None
        rows.append(
            {
                "model": model,
                "batch": batch,
                "prompt_tokens": prompt,
                "new_tokens": new,
                "measured": {
                    "loaded_bytes": loaded,
                    "allocated_before_bytes": started,
                    "allocated_peak_bytes": stats["allocated_bytes.all.peak"],
                    "requested_peak_bytes": stats["requested_bytes.all.peak"],
                    "reserved_peak_bytes": stats["reserved_bytes.all.peak"],
                    "device_free_bytes": free,
                    "device_total_bytes": total,
                },
                "predicted": {
                    "weights_bytes": predicted.peak.weights,
                    "allocated_peak_bytes": predicted.peak.allocated,
                    "reserved_peak_bytes": predicted.peak_reserved,
                    "peak_stage": predicted.peak.stage,
                },
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    del built
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", default="results.json")
    parser.add_argument("models", nargs="*", default=MODELS)
    options = parser.parse_args()
    try:
        import torch
        import transformers
    except ImportError as error:
        print(f"error: {error.name} is not installed", file=sys.stderr)
        return 8
    if not torch.cuda.is_available():
        print("error: no CUDA device; this script measures on one", file=sys.stderr)
        return 8
    versions = {
        "gpu": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    rows: list[dict[str, Any]] = []
    for model in options.models:
        try:
            rows += measure(model, WORKLOADS)
        except torch.cuda.OutOfMemoryError as error:
            rows.append({"model": model, "out_of_memory": str(error).splitlines()[0]})
        torch.cuda.empty_cache()
        Path(options.output).write_text(json.dumps({"versions": versions, "rows": rows}, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

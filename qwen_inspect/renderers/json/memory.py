"""`memory` -> JSON: the run, what it takes as predicted and as measured, and what each rank or device holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ...language import Language
from ...results.memory import MemoryReport, Run
from ...results.training import Training
from .common import model_content
from .footprint import footprint_content, workload_content
from .measured import difference_content, measured_content
from .ranks import degrees_content, device_map_content, rank_content


def content(memory: MemoryReport, say: Language) -> dict[str, Any]:
    return {"model": model_content(memory.report, say), **memory_content(memory, say)}


def memory_content(memory: MemoryReport, say: Language) -> dict[str, Any]:
    run = memory.run
    return {
        "workload": {
            **workload_content(run),
            "dtype": str(memory.report.spec.dtype) if memory.report.design else None,
            "cache_dtype": memory.report.cache.dtype if memory.report.settled else None,
            **degrees_content(memory.ranks),
        },
        "training": None if memory.training is None else _training(memory.training, run),
        "predicted": footprint_content(memory.predicted, run, say),
        "measured": None if memory.measured is None else measured_content(memory.measured, run, say),
        "ranks": None if memory.ranks is None else [rank_content(one) for one in memory.ranks.ranks],
        "rank_assumptions": [] if memory.ranks is None else [say(message) for message in memory.ranks.assumptions],
        "device_map": None if memory.device_map is None else device_map_content(memory.device_map, say),
        "calibration": None if run.calibration is None else asdict(run.calibration),
        "differences": [difference_content(one, say) for one in memory.differences],
    }


def _training(found: Training, run: Run) -> dict[str, Any]:
    return {
        "lora_rank": run.lora_rank,
        "lora_targets": None if run.lora_rank is None else list(run.lora_targets),
        "optimizer": run.optimizer,
        "checkpointing": bool(run.checkpointing),
        "accumulate": run.accumulate,
        "trainable_parameters": found.trainable,
        "base_parameters": found.base_parameters,
        "all_parameters": found.all_parameters,
        "share": found.share,
        "trained_bytes": found.trained_bytes,
        "frozen_bytes": found.frozen_bytes,
        "modules": [{"name": one.name, "modules": one.modules, "parameters": one.parameters} for one in found.modules],
    }

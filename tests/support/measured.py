"""Small models, really run and measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwen_inspect.language import Language
from qwen_inspect.loaders.resolve import Access
from qwen_inspect.measuring.measure import Request
from qwen_inspect.measuring.measure import measured as measure_run
from qwen_inspect.renderers.json import render
from qwen_inspect.results.memory import Run
from qwen_inspect.structure.inspect import inspect


def measured(model: Path, *, random_weights: bool = False, dtype: str | None = None, **chosen: Any) -> dict[str, Any]:
    """What `memory --device cpu --format json` prints, without the seconds that a new process takes to import torch."""
    defaults = {"mode": "generate", "batch": 1, "prompt_tokens": 16, "new_tokens": 3, "attention": "sdpa"}
    workload = Run(**{**defaults, "loader": "warmup", "gpu": "", **chosen})
    request = Request(device="cpu", random_weights=random_weights)
    report = measure_run(inspect(str(model), dtype=dtype), workload, request, Access())
    content: dict[str, Any] = json.loads(render("memory", report, Language("en")))
    return content

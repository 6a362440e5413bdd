"""Small models, traced and really run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_inspect.architectures import architecture_of
from qwen_inspect.results.timeline import Event, Timeline
from qwen_inspect.tracing.trace import TraceRequest, trace

from .families import configuration_of

PROMPT = 48


def traced(config: Mapping[str, Any], **workload: Any) -> Timeline:
    design = {key: value for key, value in config.items() if key != "quantization_config"}
    return trace(architecture_of(design).spec, config, TraceRequest(**workload))


def after_load(timeline: Timeline) -> tuple[Event, ...]:
    return timeline.events[timeline.stages[1].first_event :]


def real_model(config: Mapping[str, Any], attention: str | None = "sdpa") -> Any:
    import torch
    import transformers

    dtype = architecture_of(config).spec.dtype
    model_class = getattr(transformers, config["architectures"][0])
    model = model_class._from_config(
        configuration_of(config), dtype=getattr(torch, dtype.torch_name), attn_implementation=attention
    )
    for module in model.modules():  # Gemma 4's tables of RoPE, in the trace's order
        if isinstance(types := getattr(module, "unique_layer_types", None), set):
            module.unique_layer_types = sorted(types)
    return model

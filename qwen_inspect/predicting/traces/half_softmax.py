"""A softmax in float32 of float16 numbers, which CUDA's kernel reads without a copy: traces, made in bfloat16, copy them first.

Source: torch 2.13, aten/src/ATen/native/SoftMax.cpp, softmax and log_softmax
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .segments import Place, Segment

COPY = "aten._to_copy.default"
SOFTMAXES = ("aten._softmax.default", "aten._log_softmax.default")
GRADIENTS = ("aten._softmax_backward_data.default", "aten._log_softmax_backward_data.default")
# Routers by model_type: those that ask the softmax for float32, and those that convert its input themselves.
# Source: transformers 5.23, modeling_*.py of each
READING = frozenset({
    *("gemma4", "gemma4_text", "jamba", "olmoe", "qwen2_moe", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_moe", "qwen3_next"),
    "qwen3_vl_moe",
})  # fmt: skip
COPYING = frozenset({
    *("deepseek_v2", "ernie4_5_moe", "granitemoe", "granitemoehybrid", "granitemoeshared", "hunyuan_v1_moe", "minimax_m2"),
    "mixtral",
})  # fmt: skip
ATTENTION = "attn", "attention"  # ends of modules' names, all of which ask for float32


def in_float16(segments: Mapping[Place, Segment], model_type: str) -> Mapping[Place, Segment] | None:
    """The segments of a run in bfloat16 as they are in float16; None if that is not known."""
    changed = {}
    for place, segment in segments.items():
        copies = [number for number in _copies(segment) if not _is_copied(segment.requests[number].module, model_type)]
        modules = {segment.requests[number].module for number in copies}
        if copies and (place.kind is None or not all(_is_read(module, model_type) for module in modules)):
            return None
        if copies:
            changed[place] = _without(segment, frozenset(copies))
    if changed and any(request.operator in GRADIENTS for segment in segments.values() for request in segment.requests):
        return None
    return {**segments, **changed}


def _is_read(module: str, model_type: str) -> bool:
    return module.endswith(ATTENTION) or model_type in READING


def _is_copied(module: str, model_type: str) -> bool:
    return not module.endswith(ATTENTION) and model_type in COPYING


def _copies(segment: Segment) -> Iterator[int]:
    """Requests that are made for a softmax and freed after it."""
    made = 0
    for entry, following in zip(segment.order, zip(segment.order[1:], segment.order[2:], strict=False), strict=False):
        if entry:
            continue
        if following == (0, -1 - made):
            copy, softmax = segment.requests[made : made + 2]
            if copy.operator == COPY and softmax.operator in SOFTMAXES and copy.module == softmax.module:
                yield made
        made += 1


def _without(segment: Segment, gone: frozenset[int]) -> Segment:
    """In a layer other segments count only requests that outlive it, none of which is gone."""
    numbers = {number: left for left, number in enumerate(n for n in range(len(segment.requests)) if n not in gone)}
    order = []
    made = 0
    for entry in segment.order:
        if entry == 0:
            made += 1
            if made - 1 not in gone:
                order.append(0)
        elif entry > 0:
            order.append(entry)
        elif -1 - entry not in gone:
            order.append(-1 - numbers[-1 - entry])
    requests = tuple(request for number, request in enumerate(segment.requests) if number not in gone)
    return Segment(requests, tuple(order), segment.others)

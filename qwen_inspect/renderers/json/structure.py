"""`structure` -> JSON: what `params` and `attention` have, the configuration, the module tree, and a generated text."""

from __future__ import annotations

from typing import Any

from ...language import Language
from ...results.generation import Generation
from ...results.model import Report
from ...spec import Module
from .attention import attention_content
from .common import model_content
from .params import parameters_content

# What `attention` would say, where the cache is not settled.
UNSETTLED = ("kind", "query_heads", "kv_heads", "head_dim", "pattern", "linear", "cache")


def content(report: Report, say: Language) -> dict[str, Any]:
    return {"model": model_content(report, say), **structure_content(report, say)}


def structure_content(report: Report, say: Language) -> dict[str, Any]:
    unsettled = {**dict.fromkeys(UNSETTLED), "tied_embeddings": report.spec.tied_embeddings}
    return {
        **parameters_content(report, say),
        **(attention_content(report) if report.settled else unsettled),
        "config": dict(report.written or {}),
        "tree": _tree(
            report.tree,
            active_known=report.parameters.active is not None,
            bytes_known=report.known.unread is None,
        ),
        "generation": None if report.generation is None else _generation(report.generation),
    }


def _tree(module: Module, *, active_known: bool, bytes_known: bool) -> dict[str, Any]:
    return {
        "name": module.label,
        "class": module.class_name,
        "parameters": module.parameters,
        "active_parameters": module.active_parameters if active_known else None,
        "bytes": module.size_bytes if bytes_known else None,
        "repeats": module.repeats,
        "tied_to": module.tied_to,
        "children": [_tree(child, active_known=active_known, bytes_known=bytes_known) for child in module.children],
    }


def _generation(found: Generation) -> dict[str, Any]:
    return {
        "prompt": found.prompt,
        "chat_template": found.chat_template,
        "text": found.text,
        "prompt_tokens": found.prompt_tokens,
        "new_tokens": found.new_tokens,
        "ended_by": found.ended_by,
        "device": found.device,
        "dtype": found.dtype,
        "prefill_seconds": found.prefill_seconds,
        "prefill_tokens_per_second": found.prefill_tokens_per_second,
        "decode_seconds": found.decode_seconds,
        "decode_tokens_per_second": found.decode_tokens_per_second,
        "peak_allocated_bytes": found.peak_allocated_bytes,
        "peak_reserved_bytes": found.peak_reserved_bytes,
        "peak_resident_bytes": found.peak_resident_bytes,
        "provenance": found.versions,
    }

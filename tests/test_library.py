"""`from qwen_inspect import ...`: each function answers what its command prints."""

from __future__ import annotations

import inspect as signatures
import json
import typing
from pathlib import Path
from typing import Any

import pytest

import qwen_inspect
from qwen_inspect import Run, compare, fit, inspect, measure, memory

from .support.models import run

MODEL = "catalog:Qwen/Qwen3-0.6B"


def printed(*words: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(run(*words, "--format", "json").out)
    return content


def test_inspect_is_structure() -> None:
    report = inspect(MODEL)
    assert report.parameters.unique == 596_049_920  # the safetensors' total on the hub
    assert report.to_json() == printed("structure", MODEL)
    assert repr(report) == "<Qwen/Qwen3-0.6B: Qwen3ForCausalLM, 596,049,920 parameters, 114,688 bytes of cache a token>"


def test_memory_is_memory() -> None:
    answer = memory(MODEL, Run(prompt_tokens=4096, batch=2))
    assert answer.to_json() == printed("memory", MODEL, "--context", "4096", "--batch", "2")
    low, high = answer.predicted.required_bytes or (0, 0)
    assert low < high
    assert repr(answer).startswith("<Qwen/Qwen3-0.6B, generate: ")
    assert memory(inspect(MODEL), Run(prompt_tokens=4096, batch=2)).predicted == answer.predicted


def test_fit_is_fit() -> None:
    answer = fit(MODEL, ["H100 SXM", "RTX 4090"])
    assert answer.to_json() == printed("fit", MODEL, "--gpu", "H100 SXM,RTX 4090")
    assert answer.fits is True
    assert repr(answer).endswith(": fits>")


def test_compare_is_compare() -> None:
    answer = compare(MODEL, "catalog:Qwen/Qwen3-1.7B")
    assert answer.to_json() == printed("compare", MODEL, "catalog:Qwen/Qwen3-1.7B")
    assert repr(answer) == "<Qwen/Qwen3-0.6B beside Qwen/Qwen3-1.7B>"
    with pytest.raises(qwen_inspect.UsageError):
        compare(MODEL)


def test_measure_is_memory_with_a_device(tiny_qwen3: Path) -> None:
    answer = measure(str(tiny_qwen3), Run(prompt_tokens=8, new_tokens=2), random_weights=True)
    assert answer.measured is not None
    assert answer.to_json()["measured"]["device"] is not None


def test_every_type_in_a_signature_is_exported() -> None:
    for name in ("inspect", "memory", "fit", "compare", "measure"):
        function = getattr(qwen_inspect, name)
        for parameter in typing.get_type_hints(function).values():
            for part in _classes(parameter):
                assert part.__module__ == "builtins" or part.__name__ in qwen_inspect.__all__, (name, part)
        assert signatures.getdoc(function)


def _classes(hint: Any) -> list[type]:
    arguments = [part for part in typing.get_args(hint) if part is not Ellipsis]
    if arguments:
        return [found for argument in arguments for found in _classes(argument)]
    return [hint] if isinstance(hint, type) and hint is not type(None) else []

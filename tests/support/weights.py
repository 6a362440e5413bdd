"""Weights written and changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qwen_inspect.architectures import architecture_of
from qwen_inspect.spec import ModelSpec

DOWN = "model.layers.0.mlp.down_proj.weight"


def spec_of(config: Mapping[str, Any]) -> ModelSpec:
    return architecture_of(config).spec


def change(directory: Path, changed: Callable[[dict[str, Any]], object]) -> None:
    """Rewrites the single file of weights after `changed` has had its tensors."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    changed(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})

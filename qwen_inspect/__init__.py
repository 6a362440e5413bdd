"""qwen-inspect: every parameter and every byte of a language model, with each figure's origin.

>>> from qwen_inspect import inspect
>>> inspect("Qwen/Qwen3-0.6B").parameters.unique
596049920
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Where each exported name lives: imported on first use, so that `--help` needs none of them.
_HOMES = {
    "inspect": "library",
    "Inspection": "library",
    "models": "structure.inspect",
    "Report": "results.model",
    "Run": "results.memory",
    "Checkpoint": "checkpoint",
    "DType": "checkpoint",
    "ModelRef": "checkpoint",
    "Tensor": "checkpoint",
    "ModelSpec": "spec",
    "Module": "spec",
    "QwenInspectError": "errors",
    "UsageError": "errors",
    "NotFoundError": "errors",
    "AccessError": "errors",
    "NetworkError": "errors",
    "MalformedError": "errors",
    "UnsupportedError": "errors",
    "UnavailableError": "errors",
}
__all__ = [
    "AccessError",
    "Checkpoint",
    "DType",
    "Inspection",
    "MalformedError",
    "ModelRef",
    "ModelSpec",
    "Module",
    "NetworkError",
    "NotFoundError",
    "QwenInspectError",
    "Report",
    "Run",
    "Tensor",
    "UnavailableError",
    "UnsupportedError",
    "UsageError",
    "__version__",
    "inspect",
    "models",
]

if TYPE_CHECKING:
    from .checkpoint import Checkpoint, DType, ModelRef, Tensor
    from .errors import (
        AccessError,
        MalformedError,
        NetworkError,
        NotFoundError,
        QwenInspectError,
        UnavailableError,
        UnsupportedError,
        UsageError,
    )
    from .library import Inspection, inspect
    from .results.memory import Run
    from .results.model import Report
    from .spec import ModelSpec, Module
    from .structure.inspect import models


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)

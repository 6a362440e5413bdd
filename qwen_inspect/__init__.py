"""qwen-inspect: every parameter and byte of a language model, each figure with its origin.

>>> from qwen_inspect import inspect
>>> inspect("Qwen/Qwen3-0.6B").parameters.unique
596049920
"""

from __future__ import annotations

from .standard import import_module
from .typed import TYPE_CHECKING

__version__ = "0.1.0"

# The module of each exported name; imported on first use, so that `--help` imports none of them.
_HOMES = {
    "library": ("Compared", "Fit", "Inspection", "Memory", "compare", "fit", "inspect", "measure", "memory"),
    "structure.inspect": ("models",),
    "loaders.resolve": ("Access",),
    "results.model": ("Design", "Report"),
    "results.memory": ("Footprint", "MemoryReport", "Run"),
    "results.fit": ("FitReport",),
    "results.compare": ("Comparison",),
    "results.listing": ("CatalogEntry",),
    "checkpoint": ("Checkpoint", "DType", "ModelRef", "Tensor"),
    "spec": ("ModelSpec", "Module"),
    "errors": (
        "AccessError",
        "MalformedError",
        "NetworkError",
        "NotFoundError",
        "QwenInspectError",
        "UnavailableError",
        "UnsupportedError",
        "UsageError",
    ),
}
__all__ = [
    "Access",
    "AccessError",
    "CatalogEntry",
    "Checkpoint",
    "Compared",
    "Comparison",
    "DType",
    "Design",
    "Fit",
    "FitReport",
    "Footprint",
    "Inspection",
    "MalformedError",
    "Memory",
    "MemoryReport",
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
    "compare",
    "fit",
    "inspect",
    "measure",
    "memory",
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
    from .library import Compared, Fit, Inspection, Memory, compare, fit, inspect, measure, memory
    from .loaders.resolve import Access
    from .results.compare import Comparison
    from .results.fit import FitReport
    from .results.listing import CatalogEntry
    from .results.memory import Footprint, MemoryReport, Run
    from .results.model import Design, Report
    from .spec import ModelSpec, Module
    from .structure.inspect import models


def __getattr__(name: str) -> object:
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)

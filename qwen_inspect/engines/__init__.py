"""What answers for a card: transformers, and the engines that serve. An engine is a package here, or elsewhere, and a line below.

`interface.py` has what an engine is asked. Nothing is imported before an engine is asked, for `--help` needs the names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from ..results.cache import EngineCache
    from ..results.model import Report
    from .interface import Engine

# By the name in `--engine`: the module whose ENGINE it is.
ENGINES = {"transformers": ".transformers", "vllm": ".vllm", "llama.cpp": ".llama_cpp"}


def engine_of(name: str) -> Engine[Any, Any]:
    """The engine of that name; UsageError where there is none."""
    if name not in ENGINES:
        raise UsageError("engine_unknown", found=name, known=", ".join(ENGINES))
    engine: Engine[Any, Any] = import_module(ENGINES[name], __name__).ENGINE
    return engine


def caches_of(report: Report) -> tuple[EngineCache, ...]:
    """The cache of the report's workload as each engine holds it.

    Nothing where no context is known, or where a layer is known by what transformers caches of it alone.
    """
    attention = report.known.attention
    if report.context_tokens is None or attention is None:
        return ()
    if report.spec.built and len(attention.softmax) < len(attention.layers):
        return ()
    return tuple(row for name in ENGINES for row in engine_of(name).caches(report))

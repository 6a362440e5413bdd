"""The engines that run a model on a card: transformers, and those that serve. A new one is a package and a line below.

`interface.py` declares what an engine implements. Engines are imported on use, because `--help` needs only their names.
"""

from __future__ import annotations

from ..errors import UsageError
from ..standard import import_module
from ..typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..results.cache import EngineCache
    from ..results.model import Report
    from .interface import Engine

# Name in `--engine` -> the module that defines its ENGINE.
ENGINES = {
    "transformers": ".transformers",
    "vllm": ".vllm",
    "sglang": ".sglang",
    "llama.cpp": ".llama_cpp",
    "lmdeploy": ".lmdeploy",
    "tensorrt-llm": ".tensorrt_llm",
}
COMPARED_CACHES = ("transformers", "vllm", "llama.cpp")  # those whose cache of a workload does not depend on a card


def engine_of(name: str) -> Engine[Any, Any]:
    """The engine of that name; UsageError if there is none."""
    if name not in ENGINES:
        raise UsageError("engine_unknown", found=name, known=", ".join(ENGINES))
    engine: Engine[Any, Any] = import_module(ENGINES[name], __name__).ENGINE
    return engine


def caches_of(report: Report) -> tuple[EngineCache, ...]:
    """The cache of the report's workload in each engine.

    Empty if the context is unknown, without a cache or with a second one, or if a layer is known only by what is cached.
    """
    attention = report.known.attention
    if report.context_tokens is None or attention is None or report.cache.keeps_nothing:
        return ()
    if report.spec.from_file:
        return tuple(engine_of("llama.cpp").caches(report))
    if report.spec.built and (len(attention.softmax) < len(attention.layers) or report.cache.source_bytes_per_token):
        return ()
    return tuple(row for name in COMPARED_CACHES for row in engine_of(name).caches(report))

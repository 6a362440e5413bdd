"""transformers' generate, forward pass and training, as `predicting` traces or computes them."""

from __future__ import annotations

from collections.abc import Iterator

from ...structure.kv_cache import CacheFormat, cache_report, read_formats
from ...typed import TYPE_CHECKING
from ..interface import Choice, Engine, cache_rows

if TYPE_CHECKING:
    from ...results.cache import EngineCache
    from ...results.fit import Gpu
    from ...results.memory import Run
    from ...results.model import Report
    from .demand import TransformersDemand


class Transformers(Engine["Run", "TransformersDemand"]):
    name = "transformers"
    version = "5.23"
    smaller = "suggest_context", "suggest_batch"

    def demand(self, report: Report, request: Run, gpu: Gpu) -> TransformersDemand:
        from .demand import TransformersDemand

        return TransformersDemand(report, request, gpu)

    def changes(self, demand: TransformersDemand, report: Report, request: Run, gpu: Gpu) -> Iterator[Choice[Run]]:
        from .changes import changes

        return changes(demand, report, request, gpu)

    def caches(self, report: Report) -> Iterator[EngineCache]:
        layers, dtype, workload = report.attention.layers, report.spec.dtype, report.workload

        def size_bytes(auto: CacheFormat) -> int:
            cache = cache_report(layers, auto, auto, dtype)
            return cache.size_bytes(tokens=report.context_tokens or 0, batch=workload.batch)

        return cache_rows("transformers", read_formats("auto", dtype)[:1], size_bytes)


ENGINE = Transformers()

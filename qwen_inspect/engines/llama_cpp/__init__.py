"""llama.cpp at build b11549, and the builds in `builds`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...language import Message
from ...structure.kv_cache import FORMATS, CacheFormat
from ...typed import TYPE_CHECKING
from ...values import replace
from ..interface import Alternative, Choice, Engine, cache_rows, card_message
from .layer_cells import CACHE_NAMES, llama_cpp_layer_bytes, padded

if TYPE_CHECKING:
    from ...results.cache import EngineCache
    from ...results.fit import CardAnswer, Gpu
    from ...results.model import Report
    from ...results.serving import Serving
    from .offload import LlamaCppDemand


class LlamaCpp(Engine["Serving", "LlamaCppDemand"]):
    name = "llama.cpp"
    version = "b11549"

    def demand(self, report: Report, request: Serving, gpu: Gpu) -> LlamaCppDemand:
        from .offload import LlamaCppDemand

        return LlamaCppDemand(report, request)

    def changes(self, demand: LlamaCppDemand, report: Report, request: Serving, gpu: Gpu) -> Iterator[Choice[Serving]]:
        """The cache in 8 bits, fewer layers on the card, a larger card."""
        from ...loaders.gpus import larger

        in_8_bits = replace(request, cache_format="q8_0")
        most = demand.most_offloaded(request.batch, request.context_tokens or 0, gpu.room_bytes)
        fewer = Message("suggest_layers", value=most, layers=demand.layers)
        changes = [Alternative("layers", fewer, report, replace(request, offloaded=most), gpu)]
        if demand.formats != ("q8_0", "q8_0"):
            changes.insert(0, Alternative("cache", Message("suggest_cache", format="q8_0"), report, in_8_bits, gpu))
        yield Choice("all", changes)
        required = demand.requirement(request.batch, request.context_tokens or 0)
        yield Choice(
            "first", (Alternative("gpu", card_message(card), None, request, card, required) for card in larger(gpu))
        )

    def assumptions(
        self, report: Report, request: Serving, answers: Sequence[tuple[LlamaCppDemand, CardAnswer]]
    ) -> Iterator[Message]:
        from .options import LlamaCppOptions

        for _, answer in answers:
            yield from answer.notices
        yield Message("assume_llama_cpp_version", version=self.version)
        if report.known.quantised is None:
            yield Message("assume_llama_cpp_form", dtype=str(report.spec.dtype))
        if any(demand.windowed for demand, _ in answers):
            yield Message("assume_llama_cpp_window", tokens=LlamaCppOptions().micro_batch)
        known = all(answer.requirement.whole for _, answer in answers)
        yield Message("assume_llama_cpp_margin" if known else "assume_llama_cpp_no_graph")

    def caches(self, report: Report) -> Iterator[EngineCache]:
        layers, tokens, batch = report.attention.layers, report.context_tokens or 0, report.workload.batch

        def size_bytes(cells: CacheFormat) -> int:
            if "general.architecture" in (report.config or {}):
                return _whole_cache(report, cells, tokens=tokens, sequences=batch)
            return sum(llama_cpp_layer_bytes(layer, cells, cells, tokens=tokens, sequences=batch) for layer in layers)

        return cache_rows("llama_cpp", [FORMATS[name] for name in ("float16", "q8_0", "q4_0")], size_bytes)


def _whole_cache(report: Report, cells: CacheFormat, *, tokens: int, sequences: int) -> int:
    """Cells and states of a GGUF file, by its own keys."""
    from .buffers import GgufModel, Plan
    from .builds import DEFAULT
    from .options import LlamaCppOptions

    model = GgufModel(report.config or {}, tuple(report.tensors or ()))
    kind = CACHE_NAMES.get(cells.name, cells.name)
    options = LlamaCppOptions(
        key_type=kind, value_type=kind, context_tokens=sequences * padded(tokens), sequences=sequences
    )
    plan = Plan(model, options, (), DEFAULT)
    return sum(buffer.low_bytes for buffer in (*plan.cache(), *plan.states()))


ENGINE = LlamaCpp()

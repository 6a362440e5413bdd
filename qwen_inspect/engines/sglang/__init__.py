"""SGLang 0.5.23, on each of one or more tensor-parallel ranks: weights, a share of the card that stays free, a pool of tokens.

Source: SGLang 0.5.23, srt/mem_cache/kv_cache_configurator.py (_profile_available_bytes), srt/model_executor/pool_configurator.py,
srt/arg_groups/memory_hook.py (handle_gpu_memory_settings).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ...errors import UnsupportedError
from ...language import Message
from ...predicting.allocator import Allocator
from ...results.attention import LayerAttention
from ...results.fit import Requirement
from ...results.serving import Reserve, Reserved
from ...structure.kv_cache import checkpoint_format, read_formats
from ...units import MIB, size
from ...values import replace
from ..interface import RANKS, Alternative, Choice, Demand, Engine
from ..vllm.blocks import BLOCK_FORMATS, kv_heads_per_rank, latent_width, text_part
from ..vllm.weights import rank_weights

if TYPE_CHECKING:
    from ...results.fit import CardAnswer, Gpu
    from ...results.model import Report
    from ...results.serving import Serving

# The CUDA context, libraries and, with several ranks, NCCL before weights are loaded, in MiB: no source gives them.
CONTEXT_MIB, RANKS_CONTEXT_MIB = (450, 1024), (800, 3072)
SMALLEST_CAPTURES = (*range(4, 33, 4), *range(48, 257, 16), *range(288, 513, 32), *range(576, 1025, 64))


class SglangDemand(Demand):
    """What SGLang takes of each rank's card. A context is a sequence's whole length."""

    def __init__(self, report: Report, serving: Serving, gpu: Gpu) -> None:
        if report.known.quantised is not None and report.known.quantised.method == "gguf":
            raise UnsupportedError("vllm_gguf")
        if (unread := report.known.unread) is not None:
            raise unread
        name = checkpoint_format(report.config or {}, serving.cache_format)
        self.format = read_formats(name, report.spec.dtype)[0]
        if self.format.name not in BLOCK_FORMATS:
            raise UnsupportedError("vllm_cache_format", found=self.format.name, known=", ".join(BLOCK_FORMATS[1:]))
        self.most_context_tokens = report.spec.context_tokens
        self.cell_bytes = self._cell_bytes(report, serving.ranks)
        self.share = serving.utilization or default_share(gpu, serving.ranks, latent=self._latent)
        self._total_bytes = gpu.available_bytes
        self._context_mib = CONTEXT_MIB if serving.ranks == 1 else RANKS_CONTEXT_MIB
        weights = rank_weights(report, serving.ranks)
        allocator = Allocator()
        for size_bytes in (*weights.whole, *weights.packed):
            allocator.allocate(size_bytes)
        self.weights_bytes = allocator.reserved_bytes  # free memory is read from the driver, which counts segments

    def _cell_bytes(self, report: Report, ranks: int) -> int:
        """Of a token on a rank: K and V of every layer, or MLA's latents. Source: DefaultPoolConfigurator._compute_cell_size."""
        layers, text = report.attention.layers, text_part(report.config or {})
        self._latent = (width := latent_width(text)) is not None
        if width is not None:
            return len(layers) * self.format.size_bytes(width)
        sizes = [
            2 * self.format.size_bytes(kv_heads_per_rank(layer.kv_heads, ranks) * layer.head_dim)
            for layer in layers
            if isinstance(layer, LayerAttention) and layer.window_tokens is None
        ]
        if len(sizes) < len(layers):
            raise UnsupportedError("cache_engine_other", engine="SGLang")
        return sum(sizes)

    def _ends(self) -> tuple[int, int]:
        """(low, high) bytes beside weights and cache: the context, and the share of what is free that stays so."""
        low, high = (mib * MIB for mib in self._context_mib)
        return self._beside(low), self._beside(high)

    def _beside(self, context_bytes: int) -> int:
        return context_bytes + int((self._total_bytes - context_bytes) * (1 - self.share))

    def requirement(self, batch: int, context_tokens: int) -> Requirement:
        low, high = self._ends()
        terms = (("weights", self.weights_bytes), ("cache", batch * context_tokens * self.cell_bytes))
        return Requirement(terms=terms, context_low_bytes=low, context_high_bytes=high)

    def pool_tokens(self) -> tuple[int, int]:
        """(low, high) max_total_num_tokens, in pages of one token."""
        low, high = self._ends()
        rest = self._total_bytes - self.weights_bytes
        return max(0, rest - high) // self.cell_bytes, max(0, rest - low) // self.cell_bytes

    def reserve(self, gpu: Gpu, batch: int, context_tokens: int) -> Reserve:
        low, high = self._ends()
        return Reserve(
            terms=(
                Reserved(name="weights", least_bytes=self.weights_bytes, most_bytes=self.weights_bytes),
                Reserved(name="headroom", least_bytes=low, most_bytes=high),
            ),
            cache_tokens=self.pool_tokens()[0],
        )


def default_share(gpu: Gpu, ranks: int, *, latent: bool) -> float:
    """--mem-fraction-static where it is not given: what a chunk of the prompt and CUDA graphs may take is left free.

    Source: handle_gpu_memory_settings and reserve_for_graph_mb, from the total of nvidia-smi in MiB.
    """
    total = (gpu.reported_bytes or gpu.memory_bytes) / MIB
    chunk, few, many = next(sizes for below, *sizes in SIZES if total < below * 1024)
    decode = few if ranks < 4 else many
    captures = (*SMALLEST_CAPTURES, *range(1280, 4097, 256), *range(4608, chunk + 1, 512))
    graphs = 1536 if latent else 8 * sum(size <= chunk for size in captures)
    reserved = 512 + 1.5 * max(chunk, 2048) + ranks / 8 * 1024 + 2 * decode + graphs
    if total > 60 * 1024:
        reserved = max(reserved, 10 * 1024)
    return round((total - reserved) / total, 3)


# Below this many GiB: tokens of a chunk, the largest batch of CUDA graphs with less than 4 ranks, with more.
SIZES = ((20, 2048, 8, 8), (35, 4096, 48, 160), (60, 4096, 32, 160), (160, 8192, 256, 512), (1 << 20, 16_384, 512, 512))


class Sglang(Engine["Serving", SglangDemand]):
    name = "sglang"
    version = "0.5.23"

    def demand(self, report: Report, request: Serving, gpu: Gpu) -> SglangDemand:
        return SglangDemand(report, request, gpu)

    def changes(self, demand: SglangDemand, report: Report, request: Serving, gpu: Gpu) -> Iterator[Choice[Serving]]:
        """The cache in 8 bits, more ranks, a larger card."""
        if demand.format.name != "fp8":
            in_fp8 = replace(request, cache_format="fp8")
            yield Choice("all", [Alternative("cache", Message("suggest_cache", format="fp8"), report, in_fp8, gpu)])
        ranks = (
            Alternative("tensor_parallel", Message("suggest_ranks", ranks=n), report, replace(request, ranks=n), gpu)
            for n in RANKS
            if n > request.ranks
        )
        yield Choice("until", ranks)
        yield self.larger_cards(report, request, gpu)

    def assumptions(
        self, report: Report, request: Serving, answers: Sequence[tuple[SglangDemand, CardAnswer]]
    ) -> Iterator[Message]:
        for demand, answer in answers:
            low, high = demand.pool_tokens()
            yield Message("assume_sglang_pool", name=answer.gpu.name, low=low, high=high, share=f"{demand.share:g}")
        ends = CONTEXT_MIB if request.ranks == 1 else RANKS_CONTEXT_MIB
        yield Message("assume_sglang", version=self.version, low=size(ends[0] * MIB), high=size(ends[1] * MIB))
        if request.ranks > 1:
            yield Message("assume_vllm_ranks", ranks=request.ranks)


ENGINE = Sglang()

"""Engines that give their cache a share of the memory that is free once weights are loaded: LMDeploy and TensorRT-LLM.

What they take besides is known as a range only, and no log was compared.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

from ..errors import UnsupportedError
from ..language import Message
from ..predicting.allocation.allocator import Allocator
from ..results.attention import LayerAttention
from ..results.fit import Requirement
from ..results.serving import Reserve, Reserved
from ..typed import TYPE_CHECKING
from ..units import MIB
from .interface import Demand, Engine
from .vllm.blocks import INDEXED_TYPES, kv_heads_per_rank, latent_width, served_format, text_part
from .vllm.weights import rank_weights

if TYPE_CHECKING:
    from ..results.fit import CardAnswer, Gpu
    from ..results.model import Report
    from ..results.serving import Serving

# The CUDA context, libraries and, with several ranks, NCCL, in MiB: no source gives them.
CONTEXT_MIB, RANKS_CONTEXT_MIB = (450, 1024), (800, 3072)


class ShareDemand(Demand):
    """A context is a sequence's whole length. beside: (least, most) bytes that are taken before the share is."""

    def __init__(
        self, report: Report, serving: Serving, gpu: Gpu, *, share: float, block_tokens: int, beside: tuple[int, int]
    ) -> None:
        self.format = served_format(report, serving.cache_format)
        self.most_context_tokens = report.spec.context_tokens
        self.share, self.block_tokens = share, block_tokens
        self.block_bytes = block_tokens * self._token_bytes(report, serving)
        weights, allocator = rank_weights(report, serving.ranks), Allocator()
        for size_bytes in (*weights.whole, *weights.packed):
            allocator.allocate(size_bytes)
        self.weights_bytes, self._total_bytes = allocator.reserved_bytes, gpu.available_bytes
        context = CONTEXT_MIB if serving.ranks == 1 else RANKS_CONTEXT_MIB
        self._beside = context[0] * MIB + beside[0], context[1] * MIB + beside[1]

    def _token_bytes(self, report: Report, serving: Serving) -> int:
        """Of a token on a rank: K and V of every layer, or MLA's latents."""
        layers, text = report.attention.layers, text_part(report.config or {})
        if (width := latent_width(text)) is not None and text.get("model_type") not in INDEXED_TYPES:
            return len(layers) * self.format.size_bytes(width)
        sizes = [
            2 * self.format.size_bytes(kv_heads_per_rank(layer.kv_heads, serving.ranks) * layer.head_dim)
            for layer in layers
            if isinstance(layer, LayerAttention) and layer.window_tokens is None
        ]
        if len(sizes) < len(layers):
            raise UnsupportedError("cache_engine_other", engine=serving.engine)
        return sum(sizes)

    def _ends(self) -> tuple[int, int]:
        """(low, high) bytes beside weights and cache, with the share of what is free that stays so."""
        low, high = (
            taken + int(max(0, self._total_bytes - self.weights_bytes - taken) * (1 - self.share))
            for taken in self._beside
        )
        return low, high

    def requirement(self, batch: int, context_tokens: int) -> Requirement:
        low, high = self._ends()
        blocks = batch * -(-context_tokens // self.block_tokens)
        terms = (("weights", self.weights_bytes), ("cache", blocks * self.block_bytes))
        return Requirement(terms=terms, context_low_bytes=low, context_high_bytes=high)

    def pool_tokens(self) -> tuple[int, int]:
        """(low, high) tokens in the cache, in whole blocks."""
        low, high = self._ends()
        rest = self._total_bytes - self.weights_bytes
        return self._tokens(rest - high), self._tokens(rest - low)

    def _tokens(self, cache_bytes: int) -> int:
        return max(0, cache_bytes) // self.block_bytes * self.block_tokens

    def reserve(self, gpu: Gpu, batch: int, context_tokens: int) -> Reserve:
        low, high = self._ends()
        return Reserve(
            terms=(
                Reserved(name="weights", least_bytes=self.weights_bytes, most_bytes=self.weights_bytes),
                Reserved(name="left_free", least_bytes=low, most_bytes=high),
            ),
            cache_tokens=self.pool_tokens()[0],
        )


class ShareEngine(Engine["Serving", ShareDemand]):
    """option: the name of the share."""

    option: str

    @abstractmethod
    def demand(self, report: Report, request: Serving, gpu: Gpu) -> ShareDemand: ...

    def assumptions(
        self, report: Report, request: Serving, answers: Sequence[tuple[ShareDemand, CardAnswer]]
    ) -> Iterator[Message]:
        for demand, answer in answers:
            low, high = demand.pool_tokens()
            share = f"{self.option} {demand.share:g}"
            yield Message("assume_share_pool", name=answer.gpu.name, low=low, high=high, share=share)
        yield Message("assume_share", engine=self.name, version=self.version)
        if request.ranks > 1:
            yield Message("assume_vllm_ranks", ranks=request.ranks)

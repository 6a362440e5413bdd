"""What SGLang takes of a card: weights, a share of the card that stays free, and pools of tokens and states in the rest.

Source: SGLang 0.5.23, srt/mem_cache/kv_cache_configurator.py (_profile_available_bytes), srt/model_executor/pool_configurator.py,
srt/arg_groups/memory_hook.py (handle_gpu_memory_settings).
"""

from __future__ import annotations

from collections.abc import Mapping

from ...predicting.allocation.allocator import Allocator
from ...results.fit import Gpu, Requirement
from ...results.model import Report
from ...results.serving import WHOLE_PROMPTS, Reserve, Reserved, Serving, SglangOptions
from ...typed import Any
from ...units import MIB
from ..interface import Demand
from ..vllm.blocks import latent_width, served_format, text_part
from ..vllm.weights import rank_weights
from .calibrating import matching
from .pools import pools_of
from .release import VERSION

# The CUDA context, libraries and, with several ranks, NCCL before weights are loaded, in MiB: no source gives them.
CONTEXT_MIB, RANKS_CONTEXT_MIB = (450, 1024), (800, 3072)
SMALLEST_CAPTURES = (*range(4, 33, 4), *range(48, 257, 16), *range(288, 513, 32), *range(576, 1025, 64))
IMAGES_MIB = 100  # SGLANG_VLM_CACHE_SIZE_MB, which is made after the pools
DEFAULTS = SglangOptions()
UNKNOWN_SHARE = 0.03  # of the card, by which a version whose source was not read may leave more or less


def is_known(version: str | None) -> bool:
    return version is None or version == VERSION


class SglangDemand(Demand):
    """What SGLang takes of each rank's card. A context is a sequence's whole length."""

    def __init__(self, report: Report, serving: Serving, gpu: Gpu) -> None:
        self.format = served_format(report, serving.cache_format)
        config, options = report.config or {}, serving.sglang or DEFAULTS
        self.most_context_tokens = report.spec.context_tokens
        self.pools = pools_of(report, self.format, serving.ranks, options)
        self.images = serving.images and isinstance(config.get("vision_config"), dict)
        latent = latent_width(text_part(config)) is not None
        default = default_share(gpu, serving.ranks, latent=latent, options=options)
        if self.images:
            default *= images_factor(config["vision_config"])
        self.share = serving.utilization or default
        self.total_bytes = gpu.available_bytes
        self.log = matching(report, serving, gpu.name)
        least, most = CONTEXT_MIB if serving.ranks == 1 else RANKS_CONTEXT_MIB
        self.context_ends = least * MIB, most * MIB
        self._unknown_bytes = 0 if is_known(serving.version) else int(UNKNOWN_SHARE * self.total_bytes)
        weights = rank_weights(report, serving.ranks)
        allocator = Allocator()
        for size_bytes in (*weights.whole, *weights.packed):
            allocator.allocate(size_bytes)
        self.weights_bytes = allocator.reserved_bytes  # free memory is read from the driver, which counts segments
        self.allocated_bytes = allocator.allocated_bytes
        if (log := self.log) is not None:
            self.context_ends = (
                max(0, log.non_torch_bytes - log.rounding_bytes),
                log.non_torch_bytes + log.rounding_bytes,
            )
            self.weights_bytes = max(0, self.weights_bytes + log.activation_beyond_bytes)

    @property
    def cell_bytes(self) -> int:
        """Of a token on a rank, in layers that keep all."""
        return self.pools.cell_bytes

    def _ends(self) -> tuple[int, int]:
        """(low, high) bytes beside weights and pools: the context, and the share of what is free that stays so."""
        low, high = self.context_ends
        return self._beside(low) - self._unknown_bytes, self._beside(high) + self._unknown_bytes

    def _beside(self, context_bytes: int) -> int:
        images = IMAGES_MIB * MIB if self.images else 0
        return context_bytes + images + int((self.total_bytes - context_bytes) * (1 - self.share))

    def requirement(self, batch: int, context_tokens: int) -> Requirement:
        low, high = self._ends()
        terms = (("weights", self.weights_bytes), ("cache", self.pools.rest_bytes(batch, context_tokens)))
        return Requirement(terms=terms, context_low_bytes=max(0, low), context_high_bytes=high)

    def pool_tokens(self) -> tuple[int, int]:
        """(low, high) max_total_num_tokens."""
        low, high = self._rests()
        return self.pools.tokens(low), self.pools.tokens(high)

    def state_slots(self) -> tuple[int, int]:
        """(low, high) max_mamba_cache_size."""
        low, high = self._rests()
        return self.pools.slots(low), self.pools.slots(high)

    def _rests(self) -> tuple[int, int]:
        low, high = self._ends()
        rest = self.total_bytes - self.weights_bytes
        return max(0, rest - high), max(0, rest - low)

    def reserve(self, gpu: Gpu, batch: int, context_tokens: int) -> Reserve:
        low, high = self._ends()
        return Reserve(
            terms=(
                Reserved(name="weights", least_bytes=self.weights_bytes, most_bytes=self.weights_bytes),
                Reserved(name="headroom", least_bytes=max(0, low), most_bytes=high),
            ),
            cache_tokens=self.pool_tokens()[0],
        )


def default_share(gpu: Gpu, ranks: int, *, latent: bool, options: SglangOptions = DEFAULTS) -> float:
    """--mem-fraction-static where it is not given: what a chunk of the prompt and CUDA graphs may take is left free.

    Source: handle_gpu_memory_settings and reserve_for_graph_mb, from the total of nvidia-smi in MiB.
    """
    total = (gpu.reported_bytes or gpu.memory_bytes) / MIB
    default_chunk, few, many = next(sizes for below, *sizes in SIZES if total < below * 1024)
    chunk = options.chunk_tokens or default_chunk
    decode = options.graph_sequences or min(few if ranks < 4 else many, options.running or many)
    captures = (*SMALLEST_CAPTURES, *range(1280, 4097, 256), *range(4608, chunk + 1, 512))
    graphs = 2 * decode + (1536 if latent else 8 * sum(size <= chunk for size in captures))
    activated = options.prefill_tokens if chunk == WHOLE_PROMPTS else chunk
    reserved = 512 + 1.5 * max(activated, 2048) + ranks / 8 * 1024 + (graphs if options.graphs else 0)
    if total > 60 * 1024:
        reserved = max(reserved, 10 * 1024)
    return round((total - reserved) / total, 3)


# Below this many GiB: tokens of a chunk, the largest batch of CUDA graphs with less than 4 ranks, with more.
SIZES = ((20, 2048, 8, 8), (35, 4096, 48, 160), (60, 4096, 32, 160), (160, 8192, 256, 512), (1 << 20, 16_384, 512, 512))


def images_factor(vision: Mapping[str, Any]) -> float:
    """What a model with an encoder leaves of the default share. Source: adjust_mem_fraction_for_vlm, against ViT-L/14."""
    layers, hidden = vision.get("num_hidden_layers", 24), vision.get("hidden_size", 1024)
    if type(layers) is not int or type(hidden) is not int:
        layers, hidden = 24, 1024
    complexity = layers * hidden**2 / (24 * 1024**2)
    return 0.95 * max(0.8, min(1.05, 1.0 - 0.1 * (complexity - 1.0)))

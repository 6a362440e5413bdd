"""llama.cpp's hyperparameters of a model: what its cache and its recurrent states hold, layer by layer.

Source: llama.cpp 0c1e57098, src/llama-hparams.cpp, src/llama-kv-cache*.cpp, src/llama-memory-*.cpp, src/llama-model.cpp
(create_memory). `gguf_keys` reads them off a file.
"""

from __future__ import annotations

from ..typed import Literal
from ..values import dataclass, field
from .gguf_rules import (
    ATTENTION_INTERVAL,
    EVERY_LAYER_ATTENDS,
    RECURRENT,
    RECURRENT_WITHOUT_KV_HEADS,
    WITHOUT_CACHE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """The experts of a file: count 0 if it has none. used, feed_forward: of each layer; 0: as the file's tensors say."""

    count: int = 0
    used: tuple[int, ...] = ()
    feed_forward: tuple[int, ...] = ()
    shared: int = 0
    shared_feed_forward: int = 0
    leading_dense: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrence:
    """Sizes of recurrent states by llama.cpp's keys; 0 where the file has none."""

    conv_kernel: int = 0
    inner_size: int = 0
    state_size: int = 0
    group_count: int = 0
    time_step_rank: int = 0
    wkv_head_size: int = 0
    token_shift_count: int = 2
    shortconv_cache: int = 0
    kda_head_dim: int = 0
    lightning_head_dim: int = 0  # MiniMax-Text-01
    history: int = 0  # Qwen4-Exp: inputs of the convolution over n-gram embeddings, in `history_layers` alone
    history_layers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexer:
    """The indexer of sparse attention, which keeps keys of its own. full: the layers that have one; others share it."""

    heads: int = 0
    key_length: int = 0
    top_k: int = 0
    pool: int = 0
    full: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHyperparameters:
    """A model as llama.cpp reads it off a GGUF file. Tuples have an entry for each of `all_layers`, those for MTP last.

    layers: without those for multi-token prediction (nextn). windowed: the layers that see `window` tokens, whose heads have
    the sizes `_swa`. recurrent: the layers that keep a state. with_cache: the number of first layers that have K and V; later
    ones share theirs. embedding_out: numbers of a state that
    --embedding gives. compress_ratios: of each layer of DeepSeek-V4, tokens of a compressed cell. cache_is_known: whether
    create_memory's rules for this architecture are known here.
    """

    architecture: str
    layers: int
    nextn_layers: int
    decoder_layers: int | None
    context_tokens: int | None
    embedding: int
    vocabulary: int | None
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    feed_forward: tuple[int, ...]
    experts: Experts
    key_length: int
    value_length: int
    key_length_swa: int
    value_length_swa: int
    key_length_mla: int
    value_length_mla: int
    q_lora_rank: int
    kv_lora_rank: int
    rope_dimensions: int
    rope_dimensions_swa: int
    window: int
    window_kind: Literal["standard", "chunked"] | None
    windowed: tuple[bool, ...]
    recurrent: tuple[bool, ...]
    recurrence: Recurrence
    with_cache: int
    embedding_per_layer: int
    indexer: Indexer = field(default_factory=Indexer)
    router_layer: int | None = None
    cache_is_known: bool = True
    causal: bool = True
    embedding_out: int = 0
    compress_ratios: tuple[int, ...] = ()

    @property
    def all_layers(self) -> int:
        return len(self.heads)

    @property
    def latent(self) -> bool:
        """Whether cells hold the compressed latent alone (MLA). Source: llama_hparams::is_mla."""
        return self.key_length_mla > 0 and self.value_length_mla > 0

    def keys(self, layer: int) -> int:
        """Numbers of K in a cell of this layer. Source: llama_hparams::n_embd_k_gqa."""
        return self.kv_heads[layer] * (self.key_length_swa if self.windowed[layer] else self.key_length)

    def values(self, layer: int) -> int:
        """Numbers of V in a cell of this layer, 0 with a latent. Source: llama_hparams::n_embd_v_gqa; llama_kv_cache."""
        if self.latent:
            return 0
        return self.kv_heads[layer] * (self.value_length_swa if self.windowed[layer] else self.value_length)

    @property
    def most_values(self) -> int:
        """The widest V, to which every layer's is padded without flash attention. Source: n_embd_v_gqa_max."""
        return max(self.values(layer) for layer in range(self.all_layers))

    def attends(self, layer: int) -> bool:
        """Whether the layer has cells for K and V of its own in a context without MTP. Source: create_memory."""
        name = self.architecture
        if name in WITHOUT_CACHE or name in RECURRENT or layer >= self.with_cache:
            return False
        if name in EVERY_LAYER_ATTENDS:
            return True
        if name in RECURRENT_WITHOUT_KV_HEADS - {"glm5-next"}:
            dense = name.startswith("nemotron_h") and self.feed_forward[layer] > 0
            return not self.recurrent[layer] and not dense
        if name not in ATTENTION_INTERVAL and (self.layers == 0 or self.router_layer is not None):
            return True
        return layer < self.layers and not self.recurrent[layer]

    def state(self, layer: int) -> tuple[int, int]:
        """Numbers of a sequence's rolling inputs and of its recurrent state. Source: llama_hparams::n_embd_r, n_embd_s."""
        if layer >= self.layers or not self.recurrent[layer]:
            return 0, 0
        sizes = self.recurrence
        if sizes.wkv_head_size:
            return sizes.token_shift_count * self.embedding, self.embedding * sizes.wkv_head_size
        if sizes.shortconv_cache:
            return self.embedding * (sizes.shortconv_cache - 1), 0
        steps = max(sizes.conv_kernel - 1, 0)
        if sizes.kda_head_dim:
            inner = self.heads[0] * sizes.kda_head_dim
            return 3 * (steps if sizes.conv_kernel else 3) * inner, sizes.kda_head_dim * inner
        rolling = steps * (sizes.inner_size + 2 * sizes.group_count * sizes.state_size)
        if sizes.lightning_head_dim:
            return rolling, sizes.lightning_head_dim**2 * self.heads[0]
        return rolling, sizes.state_size * sizes.inner_size

    def history(self, layer: int) -> int:
        """Numbers of a sequence's n-gram history. Source: llama_hparams::ple_conv_state; llama_memory_recurrent, cache_ple_r."""
        return self.recurrence.history if layer in self.recurrence.history_layers else 0

    def index_cells(self, layer: int) -> tuple[int, int]:
        """Numbers of K and V in a cell of the layer's indexer, as wide as the cells of full attention.

        Source: llama_kv_cache_dsa, llama_kv_cache_msa, llama_memory_hybrid_idx.
        """
        index = self.indexer
        if not index.key_length or layer >= len(index.full) or not index.full[layer]:
            return 0, 0
        if self.architecture == "minimax-m3":
            return index.key_length, self.value_length
        rows = {"glm5-next": 3, "qwen4exp": 2}.get(self.architecture, 1) if index.pool else 1
        return index.key_length * rows, 0

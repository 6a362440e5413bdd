"""Mamba layers in vLLM's cache: a page for a sequence's states, beside blocks of attention that are as large.

Source: vLLM 0.19.0, model_executor/layers/mamba/mamba_utils.py (MambaStateShapeCalculator, MambaStateDtypeCalculator) and
mamba_mixer2.py; models/config.py (HybridAttentionMambaModelConfig, MambaModelConfig, NemotronHForCausalLMConfig);
get_mamba_state_shape_from_config of models/jamba.py, mamba.py, mamba2.py, nemotron_h.py, granitemoehybrid.py, bamba.py and
falcon_h1.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from ...checkpoint import DType
from ...errors import UnsupportedError
from ...results.attention import LayerAttention
from ...results.cache import CacheLayer
from ...results.model import Report
from ...spec import Module, each_module
from ...structure.kv_cache import CacheFormat
from ...typed import Any
from ...values import dataclass, replace
from .blocks import BLOCK_FORMATS, BLOCK_TOKENS, BlockPool, PageKind, hybrid_pool, shared_pool, softmax_kind
from .releases import Release

FIRST = ("falcon_mamba", "jamba", "mamba")
SECOND = ("bamba", "falcon_h1", "granitemoehybrid", "mamba2", "nemotron_h")
# Tokens that a kernel takes at once, where the configuration does not say: defaults of its classes; 2,048 without the key.
# Source: ModelConfig.get_mamba_chunk_size; transformers 5.23, configurations of these types.
CHUNK_TOKENS = {**dict.fromkeys(FIRST, 2048), **dict.fromkeys(SECOND, 256), "nemotron_h": 128}


@dataclass(frozen=True, slots=True, kw_only=True)
class MambaSizes:
    """Sizes of every mixer of a model. heads, groups: 0 for Mamba-1. state: numbers of each channel.

    projected: columns of in_proj, with the gate.
    """

    inner: int
    heads: int
    groups: int
    state: int
    kernel: int
    projected: int

    def added_rows(self, ranks: int) -> int:
        """Rows of convolution and projection beyond the checkpoint's: a single group is repeated on each rank.

        Raises UnsupportedError for heads and groups that vLLM does not share over the ranks.
        Source: extra_groups_for_head_shards; MambaMixer2.__init__.
        """
        if not self.heads:
            return 0
        if self.heads % ranks or (self.groups % ranks and self.groups > 1):
            raise UnsupportedError("vllm_mamba_heads", heads=self.heads, groups=self.groups, ranks=ranks)
        return 2 * (ranks - 1) * self.state if self.groups % ranks else 0

    @property
    def channels(self) -> int:
        """Of the convolution: with Mamba-2 inputs, B and C; with Mamba-1 inputs."""
        return self.inner + 2 * self.groups * self.state

    @property
    def profiled_columns(self) -> int:
        """Numbers of a token in the profile run, without the kernel: the projection, the convolution's copy, the output.

        Source: conv_ssm_forward of MambaMixer2, forward_impl of MambaMixer, without metadata.
        """
        return self.projected + self.channels + (self.inner if self.heads else 0)

    def state_bytes(self, ranks: int, dtypes: tuple[DType, DType]) -> int:
        """A rank's share of a sequence's states in a layer: (kernel - 1, channels), and `state` numbers of each channel."""
        if self.inner % ranks:
            raise UnsupportedError("vllm_not_divisible", name="in_proj", size=self.inner, ranks=ranks)
        convolution = (self.kernel - 1) * (self.channels + self.added_rows(ranks)) // ranks
        return convolution * dtypes[0].bits // 8 + self.inner // ranks * self.state * dtypes[1].bits // 8


def mixers(root: Module) -> Iterator[tuple[str, Module]]:
    """Each Mamba mixer below `root`, with its full name."""
    for path, module in each_module(root):
        if path.rpartition(".")[2] in ("mamba", "mixer") and any(tensor.name == "A_log" for tensor in module.tensors):
            yield path, module


def mamba_sizes(report: Report) -> MambaSizes | None:
    """The mixers' sizes, read off the module tree and the states; None if the model has none that vLLM is known to keep."""
    model_type = (report.config or {}).get("model_type")
    if model_type not in (*FIRST, *SECOND) or report.known.cache is None:
        return None
    module = next((module for _, module in mixers(report.tree)), None)
    states = next((layer.states_bytes for layer in report.known.cache.layers if layer.states_bytes), None)
    if module is None or states is None:
        return None
    shapes = {child.name: child.tensors[0].shape for child in module.children if child.tensors}
    (projected, _), (_, inner), (channels, _, kernel) = shapes["in_proj"], shapes["out_proj"], shapes["conv1d"]
    decay = next(tensor.shape for tensor in module.tensors if tensor.name == "A_log")
    state = states[1] // (inner * DType.F32.bits // 8)
    return MambaSizes(
        inner=inner,
        heads=decay[0] if model_type in SECOND else 0,
        groups=(channels - inner) // (2 * state),
        state=state,
        kernel=kernel,
        projected=projected,
    )


def mamba_dtypes(config: Mapping[str, Any], dtype: DType, version: tuple[int, int]) -> tuple[DType, DType]:
    """Dtypes of the convolution's and the recurrent state: the model's; Nemotron-H names the latter, else it has a default.

    Source: NemotronHForCausalLMConfig, whose default is float16 to 0.19, float32 from 0.20 on.
    """
    if config.get("model_type") != "nemotron_h":
        return dtype, dtype
    name = config.get("mamba_ssm_cache_dtype", "float32" if version >= (0, 20) else "float16")
    known = {"float32": DType.F32, "float16": DType.F16, "bfloat16": DType.BF16, "auto": dtype}
    if name not in known:
        raise UnsupportedError("config_key_unsupported", key="mamba_ssm_cache_dtype", found=str(name)[:60])
    return dtype, known[name]


def mamba_pool(
    report: Report,
    layers: Sequence[CacheLayer],
    sizes: MambaSizes,
    cache_format: CacheFormat,
    *,
    ranks: int,
    release: Release,
    prefix_caching: bool,
) -> BlockPool:
    """The blocks of `layers`. prefix_caching: states are kept at the end of each block, whose tokens are whole chunks; in
    releases that do so by default, a second block of states ("align" mode).
    """
    config = report.config or {}
    if cache_format.name not in BLOCK_FORMATS:
        raise UnsupportedError("vllm_cache_format", found=cache_format.name, known=", ".join(BLOCK_FORMATS))
    indexes = {layer.index for layer in layers}
    kinds = [
        softmax_kind(layer, cache_format, ranks, BLOCK_TOKENS)
        for layer in softmax_layers(report)
        if layer.index in indexes
    ]
    state_bytes = sizes.state_bytes(ranks, mamba_dtypes(config, report.spec.dtype, release.version))
    states_bytes = [state_bytes for layer in layers if layer.states_bytes]
    if not kinds:  # attention-free: pages are not padded
        tokens = BLOCK_TOKENS if prefix_caching else 0
        return shared_pool([PageKind(state_bytes, tokens, 0, ())] * len(states_bytes))
    if not prefix_caching or release.caches_prefixes:
        return replace(hybrid_pool(kinds, states_bytes), state_blocks=2 if prefix_caching else 1)
    chunk = math.lcm(_chunk_tokens(config), BLOCK_TOKENS)
    token_bytes = kinds[0].page_bytes // BLOCK_TOKENS
    tokens = chunk * -(-state_bytes // (chunk * token_bytes))
    attention = replace(kinds[0], page_bytes=tokens * token_bytes, block_tokens=tokens)
    return shared_pool([*[attention] * len(kinds), *[replace(attention, shape=())] * len(states_bytes)])


def softmax_layers(report: Report) -> tuple[LayerAttention, ...]:
    """The layers' attention, with that beside Mamba in the same layer (Falcon-H1)."""
    cache, config = report.known.cache, report.config or {}
    if config.get("model_type") != "falcon_h1" or cache is None:
        return report.attention.softmax
    heads, kv_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if type(heads) is not int or type(kv_heads) is not int or kv_heads < 1:
        raise UnsupportedError("cache_engine_other", engine="vLLM")
    number_bytes = report.spec.dtype.bits // 8
    return tuple(
        LayerAttention(
            index=layer.index,
            query_heads=heads,
            kv_heads=kv_heads,
            head_dim=layer.bytes_per_token // (2 * kv_heads * number_bytes),
            window_tokens=None,
        )
        for layer in cache.layers
    )


def _chunk_tokens(config: Mapping[str, Any]) -> int:
    default = CHUNK_TOKENS[config["model_type"]]
    chunk = config.get("mamba_chunk_size", config.get("chunk_size", default))
    if type(chunk) is not int or not 0 < chunk <= 1 << 20:
        raise UnsupportedError("config_key_unsupported", key="mamba_chunk_size", found=str(chunk)[:60])
    return chunk

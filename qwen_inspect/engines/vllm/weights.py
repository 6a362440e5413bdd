"""Weights as vLLM 0.19.0 shards them over tensor-parallel ranks, and how PyTorch's allocator rounds them up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ...checkpoint import DType
from ...errors import UnsupportedError
from ...predicting.allocator import Allocator
from ...results.serving import Reserved
from ...spec import GatedAttention, ModelSpec, Module, each_module
from ...units import MIB
from .blocks import kv_heads_per_rank

VOCABULARY_MULTIPLE = 64  # vocab_parallel_embedding.DEFAULT_VOCAB_PADDING_SIZE

# By a module's own name. Column-parallel: a rank has some rows of each matrix; row-parallel: some columns, and the whole bias.
LINEAR = ("in_proj_qkvz", "in_proj_ba", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
COLUMN = ("q_proj", "gate_proj", "up_proj", *LINEAR)
STATES = ("conv1d", "linear_attn")  # a share of the channels, and of the heads' own parameters
ROW = ("o_proj", "down_proj", "out_proj")
KEY_VALUE = ("k_proj", "v_proj")
VOCABULARY = ("embed_tokens", "lm_head")
# Modules that vLLM fuses into one parameter.
FUSED: Mapping[str, str] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
    **dict.fromkeys(("in_proj_qkv", "in_proj_z"), "in_proj_qkvz"),
    **dict.fromkeys(("in_proj_b", "in_proj_a"), "in_proj_ba"),
}


def rank_weights(tree: Module, spec: ModelSpec, ranks: int) -> tuple[int, ...]:
    """Bytes of each parameter on one of `ranks` ranks, in module order, and of the rotary table, if there is one.

    Norms, routers and biases of output projections are whole on each rank; the vocabulary is padded to a multiple of 64; A_log is
    float32; the table holds cosines and sines of every position. Quantised weights are counted as stored, by module.
    Raises UnsupportedError for sizes that the ranks do not divide, and for classes whose sharding in vLLM is unknown.
    Source: model_executor/layers: linear.py, fused_moe/layer.py, vocab_parallel_embedding.py, rotary_embedding/base.py,
    mamba/gdn_linear_attn.py; models/qwen2.py to qwen3_5.py.
    """
    if ranks > 1 and (spec.built or spec.vision is not None):
        raise UnsupportedError("vllm_shards_unknown", class_name=spec.class_name)
    sizes: Counter[str] = Counter()
    for path, module in each_module(tree):
        parent, _, name = path.rpartition(".")
        for kind, shape, size_bytes in _parameters(module):
            rank_bytes = _rank_bytes(name, kind, shape, size_bytes, spec, ranks)
            sizes[f"{parent}.{FUSED.get(name, name)}.{kind}"] += rank_bytes
    return (*sizes.values(), *(() if spec.built else (_rotary_bytes(spec),)))


def _parameters(module: Module) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """(name, shape, bytes) of a module's own parameters; packed ones as a single entry with the shape of the first."""
    if module.packed_bytes is not None and module.tensors:
        yield "packed", module.tensors[0].shape, module.packed_bytes
        return
    for tensor in module.tensors:
        yield tensor.name, tensor.shape, tensor.size_bytes


def _rank_bytes(name: str, kind: str, shape: tuple[int, ...], size_bytes: int, spec: ModelSpec, ranks: int) -> int:
    """A rank's bytes of one parameter. name: its module; kind: the parameter."""
    if name in VOCABULARY:
        padded = -(-shape[0] // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        return _share(size_bytes // shape[0] * padded, padded, ranks, "vocab_size")
    if kind == "A_log":
        return _share(shape[0] * DType.F32.bits // 8, shape[0], ranks, kind)
    if ranks == 1:
        return size_bytes
    if name in COLUMN or name in STATES:
        return _share(size_bytes, shape[0], ranks, name)
    if name == "experts":  # (experts, 2 x width, hidden) and (experts, hidden, width)
        return _share(size_bytes, shape[2] if kind == "down_proj" else shape[1] // 2, ranks, name)
    if name in ROW and len(shape) > 1:
        return _share(size_bytes, shape[1], ranks, name)
    if name in KEY_VALUE:
        heads = spec.softmax.kv_heads
        return size_bytes // heads * kv_heads_per_rank(heads, ranks)  # exact: all heads have the same size
    return size_bytes


def _share(size_bytes: int, parts: int, ranks: int, name: str) -> int:
    if parts % ranks or size_bytes % ranks:
        raise UnsupportedError("vllm_not_divisible", name=name, size=parts, ranks=ranks)
    return size_bytes // ranks


def _rotary_bytes(spec: ModelSpec) -> int:
    """(positions, rotary channels) in the model's dtype, shared by all layers. Source: RotaryEmbedding.cos_sin_cache."""
    kind = spec.softmax
    channels = kind.rotary_dim if isinstance(kind, GatedAttention) else kind.head_dim
    return (spec.context_tokens or 0) * channels * spec.dtype.bits // 8


def rounding(tree: Module, weights: Sequence[int]) -> Reserved:
    """What "Model loading took" includes beyond the weights: PyTorch's caching allocator rounds each parameter up to a block.

    For packed parameters, which are several tensors, only an upper bound: blocks above 1 MiB are split, so at most 1 MiB is lost.
    """
    if any(module.packed_bytes is not None for _, module in each_module(tree)):
        return Reserved(
            name="rounding", least_bytes=0, most_bytes=MIB * sum(size_bytes > MIB for size_bytes in weights)
        )
    allocator = Allocator()
    for size_bytes in weights:
        allocator.allocate(size_bytes)
    rest_bytes = allocator.allocated_bytes - sum(weights)
    return Reserved(name="rounding", least_bytes=rest_bytes, most_bytes=rest_bytes)

"""Weights as vLLM 0.19.0 shards them over tensor-parallel ranks, and how PyTorch's allocator rounds them up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping

from ...checkpoint import DType
from ...errors import UnsupportedError
from ...predicting.allocation.allocator import Allocator
from ...results.attention import LayerAttention
from ...results.model import Report
from ...results.serving import Reserved
from ...spec import Module, each_module
from ...units import MIB
from ...values import dataclass
from .blocks import kv_heads_per_rank
from .compressed import attention_heads, has_compressed_keys
from .mamba import MambaSizes, mamba_sizes, mixers, softmax_layers
from .rotary import rotary_bytes
from .short_conv import NAMES, has_short_convolutions

VOCABULARY_MULTIPLE = 64  # vocab_parallel_embedding.DEFAULT_VOCAB_PADDING_SIZE

# By a module's own name. Column-parallel: a rank has some rows of each matrix; row-parallel: some columns, and the whole bias.
LINEAR = ("in_proj_qkvz", "in_proj_ba", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
COLUMN = (
    *("q_proj", "gate_proj", "up_proj", "gate_up_proj", "q_b_proj", "kv_b_proj", "input_linear", *LINEAR),
    *("qkv", "fc1", "linear_fc1", "linear_1", "merging_layer", "c_fc", "0"),
)
STATES = ("conv1d", "linear_attn")  # a share of the channels, and of the heads' own parameters
ROW = (
    "o_proj",
    "down_proj",
    "out_proj",
    "output_linear",
    "proj",
    "fc2",
    "linear_fc2",
    "linear_2",
    "c_proj",
    "dense",
    "2",
)
KEY_VALUE = ("k_proj", "v_proj")
VOCABULARY = ("embed_tokens", "embeddings", "lm_head", "ngram_embedding")
# Matrices that every rank has whole; a module without a matrix (a norm) always is.
WHOLE = (
    *(
        "gate",
        "router",
        "shared_expert_gate",
        "q_a_proj",
        "kv_a_proj_with_mqa",
        "input_proj",
        "patch_conv",
        "embedding_projection",
    ),
    *("position_embedding", "pos_embed", "patch_embedding", "linear", "multi_modal_projector", "vision_model"),
    *("moe_statics", "embed_positions"),
    *("wq_b", "wk", "weights_proj", "fc1_latent_proj", "fc2_latent_proj"),
)
# Kimi-K2.5's projector; of Qwen3.8-Flash-Next, what mixes the residual streams and stands behind tables of n-grams.
WHOLE_PARENTS = (
    *("mm_projector", "ple", "indexer"),
    *("attn_hyper_connection", "mlp_hyper_connection", "hyper_connection_mixer"),
)
HOST, HOST_SINCE = ("ngram_embedding",), (0, 30)  # in the host's memory by default, before on the card
# Not loaded, from a version on, where a run takes no such inputs. Source: models/interfaces.py, _mark_tower_model.
TOWERS = {
    "vision": ("visual", "vision_tower", "vision_model", "multi_modal_projector", "mm_projector", "embed_vision"),
    "audio": ("audio_tower", "embed_audio"),
}
TOWERS_SINCE = (0, 16)
# Modules that vLLM fuses into one parameter.
FUSED: Mapping[str, str] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
    **dict.fromkeys(("in_proj_qkv", "in_proj_z"), "in_proj_qkvz"),
    **dict.fromkeys(("in_proj_b", "in_proj_a"), "in_proj_ba"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RankWeights:
    """Bytes of each parameter, in module order. packed: quantised ones with scales beside them, which are several tensors."""

    whole: tuple[int, ...]
    packed: tuple[int, ...]

    @property
    def total_bytes(self) -> int:
        return sum(self.whole) + sum(self.packed)


def rank_weights(
    report: Report,
    ranks: int,
    *,
    expert_ranks: int | None = None,
    stage: range | None = None,
    marlin: bool = False,
    float_routers: bool = False,
    without_towers: tuple[str, ...] = (),
    version: tuple[int, int] = (0, 19),
) -> RankWeights:
    """Each parameter on one of `ranks` ranks, in module order, and of the rotary tables, if there are any.

    Norms, routers and biases of output projections are whole on each rank; the vocabulary is padded to a multiple of 64; A_log is
    float32. Quantised weights are counted as stored, by module. expert_ranks: that share the experts, data-parallel ones
    too. stage: the decoder layers of a pipeline's last rank (None: all).
    marlin: whether MXFP4 runs on Marlin's kernels, which pad more. float_routers: whether routers are float32. without_towers:
    kinds of TOWERS that are not loaded. version: of vLLM.
    Raises UnsupportedError for sizes that the ranks do not divide, and for classes whose sharding in vLLM is unknown.
    Source: model_executor/layers: linear.py, fused_moe/layer.py, vocab_parallel_embedding.py, rotary_embedding/base.py,
    mamba/*.py, quantization/mxfp4.py, attention/mla_attention.py (process_weights_after_loading); models/qwen2.py
    to qwen3_5.py, llama.py, deepseek_v2.py, gpt_oss.py.
    """
    compressed = has_compressed_keys(report)
    softmax = attention_heads(report) if compressed else softmax_layers(report)
    heads = {layer.index: layer for layer in softmax}
    mamba = mamba_sizes(report)
    mixer_paths = set() if mamba is None else {path for path, _ in mixers(report.tree)}
    mxfp4 = report.known.quantised is not None and report.known.quantised.method == "mxfp4"
    short_convolutions = has_short_convolutions(report)
    keys_twice = _without_values(report)
    left_out = {part for kind in without_towers for part in TOWERS[kind]} if version >= TOWERS_SINCE else set()
    sizes: Counter[str] = Counter()
    for path, module in each_module(report.tree):
        parent, _, name = path.rpartition(".")
        name = NAMES.get(name, name) if short_convolutions else name
        if stage is not None and not _of_last_stage(path, name, stage, report.spec.tied_embeddings):
            continue
        if (name in HOST and version >= HOST_SINCE) or (left_out and not left_out.isdisjoint(path.split("."))):
            continue
        for kind, shape, size_bytes in _parameters(module):
            if float_routers and name == "gate" and kind == "weight":
                size_bytes = math.prod(shape) * DType.F32.bits // 8
            if name == "experts" and mxfp4:
                values_bytes = sum(tensor.elements for tensor in module.tensors if len(tensor.shape) == 3) // 2
                size_bytes = _padded(size_bytes, values_bytes, min(shape[1:]), expert_ranks or ranks, marlin)
            attention = heads.get(decoder_layer(parent))
            shares = expert_ranks if name == "experts" and expert_ranks is not None else ranks
            if mamba is not None and mixer_paths & {path, parent}:
                rank_bytes = _mixer_bytes("" if path in mixer_paths else name, kind, shape, size_bytes, mamba, ranks)
            elif parent.rpartition(".")[2] in WHOLE_PARENTS:
                rank_bytes = size_bytes
            else:
                rank_bytes = _rank_bytes(name, kind, shape, size_bytes, attention, shares, report.spec.class_name)
            sizes[f"{parent}.{FUSED.get(name, name)}.{kind}"] += rank_bytes
            if name == "k_proj" and parent in keys_twice:
                sizes[f"{parent}.{FUSED[name]}.{kind}"] += rank_bytes
            if name == "kv_b_proj" and kind == "packed":  # MLA's kernels take it unpacked, beside the packed one
                sizes[f"{parent}.unpacked"] += shape[0] * shape[1] // ranks * report.spec.dtype.bits // 8
    small_scales = report.known.quantised is not None and 8 <= report.known.quantised.bits_per_weight < 8.1
    packed = [name for name in sizes if name.endswith(".packed") and not small_scales]
    return RankWeights(
        whole=(
            *(size_bytes for name, size_bytes in sizes.items() if name not in packed),
            *rotary_bytes(report, version),
        ),
        packed=tuple(sizes[name] for name in packed),
    )


def _without_values(report: Report) -> set[str]:
    """Gemma 4's attention whose values are its keys: vLLM loads them twice. Source: models/gemma4.py, use_k_eq_v."""
    if not report.spec.class_name.startswith("Gemma4"):
        return set()
    paths = {path for path, module in each_module(report.tree) if module.tensors and decoder_layer(path) >= 0}
    parents = {path.rpartition(".")[0] for path in paths if path.endswith(".k_proj")}
    return {parent for parent in parents if f"{parent}.v_proj" not in paths}


def _of_last_stage(path: str, name: str, stage: range, tied: bool) -> bool:
    """Whether the last rank of a pipeline has a module: its layers and the output. Source: models/utils.py, PPMissingLayer."""
    if (index := decoder_layer(path)) >= 0:
        return index in stage
    return "vision" not in path and "visual" not in path and (name != "embed_tokens" or tied)


def last_stage(layers: int, ranks: int) -> range:
    """The last rank's layers; ranks before it have what does not divide. Source: distributed/utils.get_pp_indices."""
    return range(layers - layers // ranks, layers)


def decoder_layer(path: str) -> int:
    """The decoder layer of a module; -1 for what is in none."""
    parts = path.split(".")
    if "vision" in path or "visual" in path or "layers" not in parts[:-1]:
        return -1
    word = parts[parts.index("layers") + 1]
    return int(word) if word.isdecimal() else -1


def _parameters(module: Module) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """(name, shape, bytes) of a module's own parameters; packed ones as a single entry with the shape of the first."""
    if module.packed_bytes is not None and module.tensors:
        yield "packed", module.tensors[0].shape, module.packed_bytes
        return
    for tensor in module.tensors:
        yield tensor.name, tensor.shape, tensor.size_bytes


def _rank_bytes(
    name: str,
    kind: str,
    shape: tuple[int, ...],
    size_bytes: int,
    attention: LayerAttention | None,
    ranks: int,
    class_name: str,
) -> int:
    """A rank's bytes of one parameter. name: its module; kind: the parameter; attention: of its layer."""
    if name in VOCABULARY:
        padded = -(-shape[0] // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        return _share(size_bytes // shape[0] * padded, padded, ranks, "vocab_size")
    if kind == "A_log":
        return _share(shape[0] * DType.F32.bits // 8, shape[0], ranks, kind)
    if ranks == 1:
        return size_bytes
    if name in COLUMN or name in STATES:
        return _share(size_bytes, shape[0], ranks, name)
    if name == "experts":  # (experts, 2 x width, hidden) and (experts, hidden, width), or transposed; biases of them
        if len(shape) < 3 and "down" in kind:
            return size_bytes
        return _share(size_bytes, size_bytes, ranks, name)
    if name in ROW and len(shape) == 2:
        return _share(size_bytes, shape[1], ranks, name)
    if name in KEY_VALUE or name == "qkv_proj":
        if attention is None:  # of a tower, whose heads are not repeated
            return _share(size_bytes, shape[0], ranks, name)
        return size_bytes // shape[0] * kv_rows(name, attention, ranks)  # exact: all rows have the same size
    if len(shape) == 2 and name not in WHOLE:
        raise UnsupportedError("vllm_shards_unknown", class_name=class_name)
    return size_bytes


def _mixer_bytes(name: str, kind: str, shape: tuple[int, ...], size_bytes: int, mamba: MambaSizes, ranks: int) -> int:
    """A rank's bytes of a Mamba mixer's parameter. name: "" for the mixer's own. A_log is float32; norms of B, C, dt are whole.

    Source: model_executor/layers/mamba/mamba_mixer.py and mamba_mixer2.py, __init__.
    """
    if kind == "A_log":
        return _share(math.prod(shape) * DType.F32.bits // 8, shape[0], ranks, kind)
    if name in ("in_proj", "conv1d"):
        rows = shape[0] + mamba.added_rows(ranks)
        return _share(size_bytes // shape[0] * rows, rows, ranks, name)
    if name in ("x_proj", "out_proj"):
        return _share(size_bytes, shape[1], ranks, name) if len(shape) == 2 else size_bytes
    whole = name in ("b_layernorm", "c_layernorm", "dt_layernorm")
    return size_bytes if whole else _share(size_bytes, shape[0], ranks, name or kind)


def kv_rows(name: str, attention: LayerAttention, ranks: int) -> int:
    """Rows on a rank of k_proj, v_proj, or of queries, keys and values together."""
    rows = attention.head_dim * kv_heads_per_rank(attention.kv_heads, ranks)
    return rows if name in KEY_VALUE else attention.query_heads // ranks * attention.head_dim + 2 * rows


def _share(size_bytes: int, parts: int, ranks: int, name: str) -> int:
    if parts % ranks or size_bytes % ranks:
        raise UnsupportedError("vllm_not_divisible", name=name, size=parts, ranks=ranks)
    return size_bytes // ranks


def _padded(size_bytes: int, values_bytes: int, size: int, ranks: int, marlin: bool) -> int:
    """Bytes of experts in MXFP4, over all ranks. size: the width of an expert, and the hidden size, which gpt-oss has equal.

    Hopper's layout pads the inner size of each product to a multiple of 256, Marlin both sizes, with their scales.
    Source: quantization/mxfp4.py, create_weights (0.10.1.1, 0.11.0); triton_kernels' HopperMXValueLayout.
    """
    width, hidden = -(-(size // ranks) // 256) * 256 * ranks, -(-size // 256) * 256
    if marlin:
        return size_bytes * width // size * hidden // size // ranks * ranks
    return (size_bytes - values_bytes + values_bytes * width // size) // ranks * ranks


def rounding(weights: RankWeights) -> Reserved:
    """What "Model loading took" includes beyond the weights: PyTorch's caching allocator rounds each parameter up to a block.

    For packed parameters only an upper bound: blocks above 1 MiB are split, so at most 1 MiB is lost.
    """
    allocator = Allocator()
    for size_bytes in weights.whole:
        allocator.allocate(size_bytes)
    least = allocator.allocated_bytes - sum(weights.whole)
    most = least + MIB * sum(size_bytes > MIB for size_bytes in weights.packed)
    return Reserved(name="rounding", least_bytes=least, most_bytes=most)

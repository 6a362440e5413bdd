"""What vLLM takes of a card on one tensor-parallel rank: the weights as it shards them, and what its logs show beside.

Source: vLLM 0.19.0, v1/core/kv_cache_utils.py, v1/kv_cache_interface.py, v1/worker/gpu_worker.py and
model_executor/models/config.py; other versions group layers and print tokens differently.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..bisection import largest
from ..checkpoint import DType
from ..errors import UnsupportedError
from ..predicting.allocator import Allocator
from ..results.serving import Capacity, Reserved
from ..spec import GatedAttention, ModelSpec, Module, each_module
from ..structure.engine_cache import BlockPool, kv_heads_per_rank, text_part
from ..units import GIB, MIB

VERSION = "0.19.0"
VOCABULARY_MULTIPLE = 64  # vocab_parallel_embedding.DEFAULT_VOCAB_PADDING_SIZE


# --- weights -------------------------------------------------------------------------------------------------------

# By a module's own name. Column: a rank has some rows of each matrix; row: some columns, and the whole bias.
COLUMN = (
    "q_proj",
    "gate_proj",
    "up_proj",
    "in_proj_qkvz",
    "in_proj_ba",
    "in_proj_qkv",
    "in_proj_z",
    "in_proj_b",
    "in_proj_a",
)
STATES = ("conv1d", "linear_attn")  # a share of the channels, and of the heads' own parameters
ROW = ("o_proj", "down_proj", "out_proj")
KEY_VALUE = ("k_proj", "v_proj")
VOCABULARY = ("embed_tokens", "lm_head")
# What vLLM makes one parameter of.
FUSED: Mapping[str, str] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
    **dict.fromkeys(("in_proj_qkv", "in_proj_z"), "in_proj_qkvz"),
    **dict.fromkeys(("in_proj_b", "in_proj_a"), "in_proj_ba"),
}


def rank_weights(tree: Module, spec: ModelSpec, ranks: int) -> tuple[int, ...]:
    """Bytes of each parameter that one of `ranks` ranks holds, in the order of the modules, and of what vLLM keeps with them.

    Norms, routers and biases of output projections are whole on each rank; a vocabulary is padded to a multiple of 64; A_log is
    float32; one table has the cosines and sines of every position. Quantised weights are counted as stored, a module at a time.
    Raises UnsupportedError for sizes that do not divide, and where it is not known how vLLM shards a class.
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
    """(name, shape, bytes) of a module's own parameters; of packed ones all in one, under the shape of the first."""
    if module.packed_bytes is not None and module.tensors:
        yield "packed", module.tensors[0].shape, module.packed_bytes
        return
    for tensor in module.tensors:
        yield tensor.name, tensor.shape, tensor.size_bytes


def _rank_bytes(name: str, kind: str, shape: tuple[int, ...], size_bytes: int, spec: ModelSpec, ranks: int) -> int:
    """Of one parameter of the module called `name`."""
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
        return size_bytes // heads * kv_heads_per_rank(heads, ranks)  # exact: heads are alike
    return size_bytes


def _share(size_bytes: int, parts: int, ranks: int, name: str) -> int:
    if parts % ranks or size_bytes % ranks:
        raise UnsupportedError("vllm_not_divisible", name=name, size=parts, ranks=ranks)
    return size_bytes // ranks


def _rotary_bytes(spec: ModelSpec) -> int:
    """(positions, channels that turn) in the model's dtype, shared by all layers. Source: RotaryEmbedding.cos_sin_cache."""
    kind = spec.softmax
    channels = kind.rotary_dim if isinstance(kind, GatedAttention) else kind.head_dim
    return (spec.context_tokens or 0) * channels * spec.dtype.bits // 8


def rounding(tree: Module, weights: Sequence[int]) -> Reserved:
    """What "Model loading took" says beyond the weights: PyTorch's caching allocator hands out whole blocks, one a parameter.

    Of packed parameters, which are several tensors, an upper end: no rest of a block above 1 MiB stays with it.
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


# --- what else a rank takes ----------------------------------------------------------------------------------------

HUNDREDTH = GIB // 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What vLLM printed of one run, in hundredths of a GiB."""

    model: str
    family: str
    ranks: int
    weights: int
    activation: int
    non_torch: int


# vLLM 0.19.0 on H100 80GB, with its defaults: 8,192 tokens a step, 1,024 sequences.
LOGS_SOURCES = (
    "https://github.com/llm-d-incubation/llm-d-planner/blob/56dc5b76ca535960998bdf9fd4a3077d98fdf60a"
    "/accuracy/results/v0.19.0/results_raw.csv",
    "https://github.com/llm-d-incubation/llm-d-planner/blob/d3121e059da88662db39a926a3ead964be97359b"
    "/accuracy/results/v0.19.0/logs/qwen-qwen1-5-moe-a2-7b--h100-80gb--tp1pp1dp1--8192.log",
)
LOGS = (
    Log(model="Qwen/Qwen2.5-7B-Instruct", family="qwen2", ranks=1, weights=1425, activation=221, non_torch=24),
    Log(model="Qwen/Qwen1.5-MoE-A2.7B", family="qwen2_moe", ranks=1, weights=2667, activation=247, non_torch=25),
    Log(model="Qwen/Qwen3-8B", family="qwen3", ranks=1, weights=1527, activation=221, non_torch=25),
    Log(model="Qwen/Qwen3-30B-A3B", family="qwen3_moe", ranks=1, weights=5688, activation=268, non_torch=27),
    Log(model="Qwen/Qwen2.5-7B-Instruct", family="qwen2", ranks=2, weights=712, activation=221, non_torch=206),
    Log(model="Qwen/Qwen2.5-7B-Instruct", family="qwen2", ranks=4, weights=355, activation=221, non_torch=213),
)


def beside_weights(ranks: int) -> tuple[Reserved, ...]:
    """What the logs show beside the weights, from the least to the most that they may have printed so.

    non_torch: with NCCL's buffers where there are several ranks; no log has more than 4.
    """
    alike = [log.non_torch for log in LOGS if (log.ranks > 1) == (ranks > 1)]
    return (_seen("activation", [log.activation for log in LOGS]), _seen("non_torch", alike))


def _seen(name: str, figures: Sequence[int]) -> Reserved:
    """A figure that is printed to 0.01 GiB may be half of that less or more."""
    return Reserved(
        name=name,
        least_bytes=(2 * min(figures) - 1) * HUNDREDTH // 2,
        most_bytes=(2 * max(figures) + 1) * HUNDREDTH // 2,
        sources=LOGS_SOURCES,
    )


def model_limit(config: Mapping[str, Any], context_tokens: int | None) -> int | None:
    """max_model_len where none is asked for: the positions of the configuration, stretched as its rotary scaling says.

    Source: config/model.py, _get_and_verify_max_len; transformers_utils/config.py, patch_rope_parameters.
    """
    text = text_part(config)
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    if context_tokens is None or not isinstance(rope, Mapping) or "gemma3" in str(text.get("model_type")):
        return context_tokens
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
    if kind in (None, "default", "mrope", "su", "longrope", "llama3") or not isinstance(factor, int | float):
        return context_tokens  # of longrope the table is shorter, and what is asked for may be as long
    original = rope.get("original_max_position_embeddings", text.get("original_max_position_embeddings"))
    positions = original if kind == "yarn" and isinstance(original, int) else context_tokens
    return int(positions * factor) if 1 <= factor <= 1 << 20 and positions > 0 else context_tokens


def requested_bytes(memory_bytes: int, utilization: float) -> int:
    """What vLLM may take of a card. Source: v1/worker/utils.request_memory."""
    return math.ceil(memory_bytes * utilization)


def batched_tokens(memory_bytes: int, card: str) -> int:
    """The most tokens of one step, by the server's default. Source: engine/arg_utils.get_batch_defaults."""
    return 8192 if memory_bytes >= 70 * GIB and "a100" not in card.casefold() else 2048


def capacity(pool: BlockPool, budget_bytes: int, *, sequence_tokens: int, step_tokens: int | None) -> Capacity:
    """What a budget holds of sequences of `sequence_tokens` tokens, `step_tokens` at most in one step (None: not known).

    Raises UnsupportedError for windows whose blocks depend on a step's tokens that are not known.
    Source: kv_cache_utils.get_max_concurrency_for_kv_cache_config.
    """
    blocks = pool.blocks(budget_bytes)
    unbounded = all(group.window_tokens for group in pool.groups)
    limit = blocks * max(group.block_tokens for group in pool.groups)

    def fits(tokens: int) -> bool:
        return pool.size_bytes(tokens=tokens, batched_tokens=step_tokens) <= blocks * pool.block_bytes

    return Capacity(
        budget_bytes=budget_bytes,
        blocks=blocks,
        tokens=pool.tokens(blocks, sequence_tokens),
        sequence_blocks=pool.size_bytes(tokens=sequence_tokens, batched_tokens=step_tokens) // pool.block_bytes,
        most_context_tokens=None if unbounded and fits(sequence_tokens) else largest(fits, limit),
    )

"""The modules of a decoder, as the families share them.

The tree, its order, its class names and what stands between the brackets are as `print(model)` gives them.
Source: transformers 5.23, models/{qwen2,qwen2_moe,qwen3,qwen3_moe}/modeling_*.py; torch 2.13, nn.Linear.extra_repr.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from ..checkpoint import DType, Tensor
from ..spec import Attention, DenseMlp, FullAttention, Layer, ModelSpec, Module, MoeMlp, SlidingAttention
from .reading import ACTIVATION_CLASSES


def linear(
    name: str,
    in_features: int,
    out_features: int,
    dtype: DType,
    *,
    bias: bool = False,
    component: str | None = None,
    tied_to: str | None = None,
) -> Module:
    """`nn.Linear`: weight (out_features, in_features), bias (out_features,)."""
    weight = Tensor("weight", (out_features, in_features), dtype)
    biases = (Tensor("bias", (out_features,), dtype),) if bias else ()
    return Module(
        name=name,
        class_name="Linear",
        arguments=f"in_features={in_features}, out_features={out_features}, bias={bias}",
        tensors=biases if tied_to else (weight, *biases),
        tied_to=tied_to,
        component=component,
    )


def rms_norm(name: str, width: int, spec: ModelSpec, component: str | None = None) -> Module:
    """RMSNorm: one weight for each of `width` channels. Source: Zhang and Sennrich 2019."""
    return Module(
        name=name,
        class_name=f"{spec.class_prefix}RMSNorm",
        arguments=f"({width},), eps={spec.norm_eps}",
        tensors=(Tensor("weight", (width,), spec.dtype),),
        component=component,
    )


def activation(spec: ModelSpec) -> Module:
    return Module(name="act_fn", class_name=ACTIVATION_CLASSES[spec.activation])


def attention(kind: Attention, spec: ModelSpec) -> Module:
    """q, k and v projections, the output projection, and QK-Norm over head_dim where the family has it."""
    match kind:
        case FullAttention() | SlidingAttention():
            query = kind.query_heads * kind.head_dim
            key_value = kind.kv_heads * kind.head_dim
            norms = (
                (rms_norm("q_norm", kind.head_dim, spec), rms_norm("k_norm", kind.head_dim, spec))
                if kind.qk_norm
                else ()
            )
            return Module(
                name="self_attn",
                class_name=f"{spec.class_prefix}Attention",
                component="attention",
                children=(
                    linear("q_proj", spec.hidden_size, query, spec.dtype, bias=kind.qkv_bias),
                    linear("k_proj", spec.hidden_size, key_value, spec.dtype, bias=kind.qkv_bias),
                    linear("v_proj", spec.hidden_size, key_value, spec.dtype, bias=kind.qkv_bias),
                    linear("o_proj", query, spec.hidden_size, spec.dtype, bias=kind.output_bias),
                    *norms,
                ),
            )


def gated_mlp(name: str, intermediate_size: int, spec: ModelSpec, component: str) -> Module:
    return Module(
        name=name,
        class_name=f"{spec.class_prefix}MLP",
        component=component,
        children=(
            linear("gate_proj", spec.hidden_size, intermediate_size, spec.dtype),
            linear("up_proj", spec.hidden_size, intermediate_size, spec.dtype),
            linear("down_proj", intermediate_size, spec.hidden_size, spec.dtype),
            activation(spec),
        ),
    )


def router(mlp: MoeMlp, spec: ModelSpec) -> Module:
    weight = Tensor("weight", (mlp.experts, spec.hidden_size), spec.dtype)
    return Module(name="gate", class_name=f"{spec.class_prefix}TopKRouter", tensors=(weight,), component="router")


def experts(mlp: MoeMlp, spec: ModelSpec) -> Module:
    """All experts fused: gate over up (experts, 2 x intermediate, hidden), down (experts, hidden, intermediate)."""
    return Module(
        name="experts",
        class_name=f"{spec.class_prefix}Experts",
        tensors=(
            Tensor("gate_up_proj", (mlp.experts, 2 * mlp.intermediate_size, spec.hidden_size), spec.dtype),
            Tensor("down_proj", (mlp.experts, spec.hidden_size, mlp.intermediate_size), spec.dtype),
        ),
        routed=(mlp.experts_per_token, mlp.experts),
        component="experts",
        children=(activation(spec),),
    )


SparseBlock = Callable[[MoeMlp, ModelSpec], tuple[Module, ...]]


def no_sparse_block(mlp: MoeMlp, spec: ModelSpec) -> tuple[Module, ...]:
    raise AssertionError(f"{spec.family} has no experts")


def decoder_layer(index: int, repeats: int, layer: Layer, spec: ModelSpec, sparse_block: SparseBlock) -> Module:
    match layer.mlp:
        case DenseMlp(intermediate_size=width):
            mlp = gated_mlp("mlp", width, spec, "mlp")
        case MoeMlp():
            mlp = Module(
                name="mlp",
                class_name=f"{spec.class_prefix}SparseMoeBlock",
                children=sparse_block(layer.mlp, spec),
                component="mlp",
            )
    return Module(
        name=str(index),
        class_name=f"{spec.class_prefix}DecoderLayer",
        repeats=repeats,
        children=(
            attention(layer.attention, spec),
            mlp,
            rms_norm("input_layernorm", spec.hidden_size, spec, "norm"),
            rms_norm("post_attention_layernorm", spec.hidden_size, spec, "norm"),
        ),
    )


def decoder_tree(spec: ModelSpec, sparse_block: SparseBlock = no_sparse_block) -> Module:
    """The causal LM, or the bare decoder where `spec.class_name` is that."""
    layers, index = [], 0
    for layer, run in groupby(spec.layers):
        repeats = len(list(run))
        layers.append(decoder_layer(index, repeats, layer, spec, sparse_block))
        index += repeats
    padding = "" if spec.pad_token_id is None else f", padding_idx={spec.pad_token_id}"
    embedding = Module(
        name="embed_tokens",
        class_name="Embedding",
        arguments=f"{spec.vocab_size}, {spec.hidden_size}{padding}",
        tensors=(Tensor("weight", (spec.vocab_size, spec.hidden_size), spec.dtype),),
        component="embedding",
    )
    head_dim = spec.layers[0].attention.head_dim
    # Kept in float32 whatever the dtype of the parameters, and not stored. Source: {prefix}RotaryEmbedding.__init__.
    frequencies = ((head_dim + 1) // 2,)
    rotary = Module(
        name="rotary_emb",
        class_name=f"{spec.class_prefix}RotaryEmbedding",
        buffers=(Tensor("inv_freq", frequencies, DType.F32), Tensor("original_inv_freq", frequencies, DType.F32)),
    )
    decoder = Module(
        name="model",
        class_name=f"{spec.class_prefix}Model",
        children=(
            embedding,
            Module(name="layers", class_name="ModuleList", children=tuple(layers)),
            rms_norm("norm", spec.hidden_size, spec, "norm"),
            rotary,
        ),
    )
    if spec.class_name == f"{spec.class_prefix}Model":
        return Module(name="", class_name=decoder.class_name, children=decoder.children)
    tied_to = "model.embed_tokens.weight" if spec.tied_embeddings else None
    head = linear("lm_head", spec.hidden_size, spec.vocab_size, spec.dtype, component="lm_head", tied_to=tied_to)
    return Module(name="", class_name=spec.class_name, children=(decoder, head))


# --- names on disk -------------------------------------------------------------------------------------------------


def stored_as_built(tensor: Tensor) -> tuple[Tensor, ...]:
    return (tensor,)


def experts_stored_singly(tensor: Tensor) -> tuple[Tensor, ...]:
    """Releases store each expert's three matrices on their own; transformers 5 fuses them when it loads.

    Source: transformers 5.23, conversion_mapping ("qwen2_moe": MergeModulelist, Concatenate).
    """
    block, _, projection = tensor.name.rpartition(".")
    if not block.endswith(".mlp.experts"):
        return (tensor,)
    if projection == "gate_up_proj":
        count, doubled, hidden = tensor.shape
        parts = [("gate_proj.weight", (doubled // 2, hidden)), ("up_proj.weight", (doubled // 2, hidden))]
    else:
        count, hidden, width = tensor.shape
        parts = [("down_proj.weight", (hidden, width))]
    prefixes = [f"{block}.{expert}." for expert in range(count)]
    return tuple([Tensor(prefix + part, shape, tensor.dtype) for prefix in prefixes for part, shape in parts])

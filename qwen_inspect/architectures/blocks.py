"""The modules of a decoder, shared by the families.

Tree, order, class names and the arguments in brackets are those of `print(model)`.
Source: transformers 5.23, models/qwen*/modeling_*.py; torch 2.13, extra_repr of nn.Linear, nn.Conv1d and others.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from ..checkpoint import DType, Tensor
from ..spec import (
    Attention,
    DenseMlp,
    FullAttention,
    GatedAttention,
    Layer,
    LinearAttention,
    ModelSpec,
    Module,
    MoeMlp,
    SlidingAttention,
    SoftmaxAttention,
    each_tensor,
)
from ..values import dataclass, replace
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
    match kind:
        case LinearAttention():
            return linear_attention(kind, spec)
        case FullAttention() | SlidingAttention():
            return softmax_attention(kind, spec, query_parts=1, qk_norm=kind.qk_norm)
        case GatedAttention():
            return softmax_attention(kind, spec, query_parts=2, qk_norm=True)  # queries, and a gate per channel


def softmax_attention(kind: SoftmaxAttention, spec: ModelSpec, *, query_parts: int, qk_norm: bool) -> Module:
    """q, k and v projections, the output projection, and QK-Norm over head_dim if the family has it."""
    query = kind.query_heads * kind.head_dim
    key_value = kind.kv_heads * kind.head_dim
    norms = (rms_norm("q_norm", kind.head_dim, spec), rms_norm("k_norm", kind.head_dim, spec)) if qk_norm else ()
    return Module(
        name="self_attn",
        class_name=f"{spec.class_prefix}Attention",
        component="attention",
        children=(
            linear("q_proj", spec.hidden_size, query_parts * query, spec.dtype, bias=kind.qkv_bias),
            linear("k_proj", spec.hidden_size, key_value, spec.dtype, bias=kind.qkv_bias),
            linear("v_proj", spec.hidden_size, key_value, spec.dtype, bias=kind.qkv_bias),
            linear("o_proj", query, spec.hidden_size, spec.dtype, bias=kind.output_bias),
            *norms,
        ),
    )


def linear_attention(kind: LinearAttention, spec: ModelSpec) -> Module:
    """Gated DeltaNet: projections, a convolution per channel of q, k and v, decay and step per value head, gated norm."""
    hidden, channels, values = spec.hidden_size, kind.conv_channels, kind.value_heads * kind.value_head_dim
    kernel = kind.conv_kernel
    padding = f", padding=({kernel - 1},)" if kernel > 1 else ""
    conv = Module(
        name="conv1d",
        class_name="Conv1d",
        arguments=f"{channels}, {channels}, kernel_size=({kernel},), stride=(1,){padding}, groups={channels}, bias=False",
        tensors=(Tensor("weight", (channels, 1, kernel), spec.dtype),),
    )
    norm = Module(
        name="norm",
        class_name=f"{spec.class_prefix}RMSNormGated",
        tensors=(Tensor("weight", (kind.value_head_dim,), spec.dtype),),
    )
    output = linear("out_proj", values, hidden, spec.dtype)
    children: tuple[Module, ...]
    if kind.fused_projections:
        children = (
            conv,
            linear("in_proj_qkvz", hidden, channels + values, spec.dtype),
            linear("in_proj_ba", hidden, 2 * kind.value_heads, spec.dtype),
            norm,
            output,
        )
    else:
        children = (
            conv,
            norm,
            output,
            linear("in_proj_qkv", hidden, channels, spec.dtype),
            linear("in_proj_z", hidden, values, spec.dtype),
            linear("in_proj_b", hidden, kind.value_heads, spec.dtype),
            linear("in_proj_a", hidden, kind.value_heads, spec.dtype),
        )
    return Module(
        name="linear_attn",
        class_name=f"{spec.class_prefix}GatedDeltaNet",
        tensors=tuple(Tensor(name, (kind.value_heads,), spec.dtype) for name in ("dt_bias", "A_log")),
        component="linear_attention",
        children=children,
    )


def gated_mlp(
    name: str, intermediate_size: int, spec: ModelSpec, component: str, class_name: str | None = None
) -> Module:
    return Module(
        name=name,
        class_name=class_name or f"{spec.class_prefix}MLP",
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


def sparse_block(mlp: MoeMlp, spec: ModelSpec) -> tuple[Module, ...]:
    return (experts(mlp, spec), router(mlp, spec))


def sparse_block_with_shared_expert(mlp: MoeMlp, spec: ModelSpec) -> tuple[Module, ...]:
    assert mlp.shared_intermediate_size is not None  # the families that have this block always set it
    return (
        router(mlp, spec),
        experts(mlp, spec),
        gated_mlp("shared_expert", mlp.shared_intermediate_size, spec, "shared_expert"),
        linear("shared_expert_gate", spec.hidden_size, 1, spec.dtype, component="shared_expert"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassNames:
    """Names of the classes that families form differently from their prefix."""

    decoder: str
    rotary: str
    mlp: str


def usual_names(spec: ModelSpec) -> ClassNames:
    prefix = spec.class_prefix
    return ClassNames(decoder=f"{prefix}Model", rotary=f"{prefix}RotaryEmbedding", mlp=f"{prefix}MLP")


def decoder_layer(layer: Layer, spec: ModelSpec, sparse_block: SparseBlock, mlp_class: str | None = None) -> Module:
    """A decoder layer, named 0."""
    match layer.mlp:
        case DenseMlp(intermediate_size=width):
            mlp = gated_mlp("mlp", width, spec, "mlp", mlp_class)
        case MoeMlp():
            mlp = Module(
                name="mlp",
                class_name=f"{spec.class_prefix}SparseMoeBlock",
                children=sparse_block(layer.mlp, spec),
                component="mlp",
            )
    return Module(
        name="0",
        class_name=f"{spec.class_prefix}DecoderLayer",
        children=(
            attention(layer.attention, spec),
            mlp,
            rms_norm("input_layernorm", spec.hidden_size, spec, "norm"),
            rms_norm("post_attention_layernorm", spec.hidden_size, spec, "norm"),
        ),
    )


def decoder(spec: ModelSpec, sparse_block: SparseBlock, names: ClassNames, *, name: str) -> Module:
    """Embedding, layers, final norm and rotary table."""
    # Layers that differ only in their window print alike, so they are folded.
    built = {layer: decoder_layer(layer, spec, sparse_block, names.mlp) for layer in dict.fromkeys(spec.layers)}
    layers, index = [], 0
    for module, run in groupby(built[layer] for layer in spec.layers):
        repeats = len(list(run))
        layers.append(replace(module, name=str(index), repeats=repeats))
        index += repeats
    padding = "" if spec.pad_token_id is None else f", padding_idx={spec.pad_token_id}"
    embedding = Module(
        name="embed_tokens",
        class_name="Embedding",
        arguments=f"{spec.vocab_size}, {spec.hidden_size}{padding}",
        tensors=(Tensor("weight", (spec.vocab_size, spec.hidden_size), spec.dtype),),
        component="embedding",
    )
    return Module(
        name=name,
        class_name=names.decoder,
        children=(
            embedding,
            Module(name="layers", class_name="ModuleList", children=tuple(layers)),
            rms_norm("norm", spec.hidden_size, spec, "norm"),
            rotary("rotary_emb", names.rotary, _rotary_dim(spec.softmax)),
        ),
    )


def _rotary_dim(kind: SoftmaxAttention) -> int:
    match kind:
        case FullAttention() | SlidingAttention():
            return kind.head_dim
        case GatedAttention():
            return kind.rotary_dim


def rotary(name: str, class_name: str, dim: int) -> Module:
    """RoPE's frequencies, one per pair of `dim` channels: float32 buffers for any parameter dtype, not stored.

    Source: {prefix}RotaryEmbedding.__init__.
    """
    frequencies = ((dim + 1) // 2,)
    buffers = (Tensor("inv_freq", frequencies, DType.F32), Tensor("original_inv_freq", frequencies, DType.F32))
    return Module(name=name, class_name=class_name, buffers=buffers)


def decoder_tree(
    spec: ModelSpec, sparse_block: SparseBlock = no_sparse_block, names: ClassNames | None = None
) -> Module:
    """The causal LM, or the bare decoder if `spec` has no head."""
    model = decoder(spec, sparse_block, names or usual_names(spec), name="model")
    if not spec.headed:
        return Module(name="", class_name=model.class_name, children=model.children)
    return with_head(spec, model, embedding="model.embed_tokens.weight")


def with_head(spec: ModelSpec, model: Module, *, embedding: str) -> Module:
    """`model` and its output layer, which owns no weight if it is tied to `embedding`."""
    tied_to = embedding if spec.tied_embeddings else None
    head = linear("lm_head", spec.hidden_size, spec.vocab_size, spec.dtype, component="lm_head", tied_to=tied_to)
    return Module(name="", class_name=spec.class_name, children=(model, head))


# --- names on disk -------------------------------------------------------------------------------------------------


def stored_as_built(tensor: Tensor) -> tuple[Tensor, ...]:
    return (tensor,)


def experts_stored_singly(tensor: Tensor) -> tuple[Tensor, ...]:
    """Each expert's three matrices as separate tensors, as releases store them; transformers 5 fuses them on load.

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


def no_prediction_layers(spec: ModelSpec) -> tuple[Tensor, ...]:
    return ()


def prediction_layer(spec: ModelSpec, sparse_block: SparseBlock) -> tuple[Tensor, ...]:
    """The multi-token prediction layer that hybrid releases store: a full-attention layer like the decoder's, whose input is
    the token's embedding concatenated with the last hidden state.

    Source: names in the loaders of vLLM and SGLang (models/qwen3_next_mtp.py, qwen3_5_mtp.py); the sizes add up to the
    published totals of the releases.
    """
    hidden = spec.hidden_size
    full = Layer(attention=spec.softmax, mlp=spec.layers[-1].mlp)
    tree = Module(
        name="",
        class_name="",
        children=(
            linear("fc", 2 * hidden, hidden, spec.dtype),
            Module(name="layers", class_name="", children=(decoder_layer(full, spec, sparse_block),)),
            *(rms_norm(name, hidden, spec) for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")),
        ),
    )
    return tuple(Tensor(f"mtp.{tensor.name}", tensor.shape, tensor.dtype) for tensor in each_tensor(tree))

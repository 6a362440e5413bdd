"""Vision-language models: the towers' configurations and modules.

Source: transformers 5.23, models/{qwen2_vl,qwen2_5_vl,qwen3_vl,qwen3_5}; defaults are those of their vision configurations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..checkpoint import DType, Tensor
from ..errors import MalformedError, UnsupportedError
from ..spec import Mlp, ModelSpec, Module, Vision
from ..typed import Any
from ..values import replace
from .blocks import (
    ClassNames,
    SparseBlock,
    decoder,
    decoder_tree,
    linear,
    no_sparse_block,
    rotary,
    usual_names,
    with_head,
)
from .reading import (
    ACTIVATION_CLASSES,
    LARGEST_SIZE,
    MOST_HEADS,
    MOST_LAYERS,
    dense_mlps,
    flag,
    hybrid_attentions,
    integer,
    optional_integer,
    part,
    read_activation,
    read_decoder,
    read_layer_types,
    read_window,
    softmax_attentions,
    text_part,
)

NORM_EPS = "1e-06"  # of the towers' LayerNorms, hard-coded in their classes


def read_vision(
    config: Mapping[str, Any], *, sizes: Mapping[str, int], activation: str = "gelu_pytorch_tanh"
) -> Vision:
    """The tower that `vision_config` describes. sizes, activation: transformers' defaults of missing keys.

    Families with other key names must translate their configuration first.
    """
    vision = vision_part(config)

    def size(key: str, *, at_most: int = LARGEST_SIZE) -> int:
        return integer(vision, key, at_most=at_most) if key in vision or key not in sizes else sizes[key]

    hidden, heads = size("hidden_size"), size("num_heads", at_most=MOST_HEADS)
    if hidden % heads:
        raise MalformedError("config_vision_heads_do_not_divide", hidden=hidden, heads=heads)
    return Vision(
        layers=size("depth", at_most=MOST_LAYERS),
        hidden_size=hidden,
        intermediate_size=size("intermediate_size"),
        heads=heads,
        in_channels=size("in_channels"),
        patch_size=size("patch_size"),
        temporal_patch_size=size("temporal_patch_size"),
        merge_size=size("spatial_merge_size", at_most=MOST_HEADS),
        output_size=size("out_hidden_size"),
        positions=size("num_position_embeddings") if "num_position_embeddings" in sizes else None,
        deepstack=0,
        activation=read_activation(vision, default=activation),
    )


def vision_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    family = str(config["model_type"])
    # Older releases give the tower the model_type of the whole model.
    return part(config, "vision_config", model_types=(f"{family}_vision", family))


# Qwen3_5VisionConfig and Qwen3VLVisionConfig.
QWEN3_SIZES: Mapping[str, int] = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 3584,
    "num_position_embeddings": 2304,
}


def read_hybrid(
    config: Mapping[str, Any], *, prefix: str, mlps: Callable[[Mapping[str, Any]], Callable[[int], list[Mlp]]]
) -> ModelSpec:
    """A hybrid decoder, behind a vision tower unless model_type ends in _text."""
    alone = str(config["model_type"]).endswith("_text")
    text = config if alone else text_part(config)
    spec = read_decoder(
        text,
        prefix=prefix,
        attentions=hybrid_attentions(text, fused_projections=False),
        mlps=mlps(text),
    )
    return spec if alone else replace(spec, vision=read_vision(config, sizes=QWEN3_SIZES))


def hybrid_tree(spec: ModelSpec, sparse_block: SparseBlock) -> Module:
    prefix = spec.class_prefix
    names = ClassNames(decoder=f"{prefix}TextModel", rotary=f"{prefix}TextRotaryEmbedding", mlp=f"{prefix}MLP")
    if spec.vision is None:
        return decoder_tree(spec, sparse_block, names)
    return seeing_tree(spec, qwen3_tower(spec.vision, spec), decoder(spec, sparse_block, names, name="language_model"))


def seeing_tree(spec: ModelSpec, tower: Module, language_model: Module) -> Module:
    """The whole model: tower and decoder side by side under `model`, and the head."""
    model = Module(name="model", class_name=f"{spec.class_prefix}Model", children=(tower, language_model))
    return with_head(spec, model, embedding="model.language_model.embed_tokens.weight")


def read_qwen2_text(config: Mapping[str, Any], *, prefix: str) -> ModelSpec:
    """The decoder of Qwen2-VL and Qwen2.5-VL, whose releases write the decoder's keys beside `vision_config`.

    Source: Qwen2VLConfig and Qwen2VLTextConfig, __post_init__ and class defaults; Qwen2VLAttention.
    """
    nested = config.get("text_config") is not None
    text = {"rms_norm_eps": 1e-5, **(text_part(config) if nested else config)}
    if nested and flag(
        part(config, "text_config", model_types=(f"{config['model_type']}_text",)), "tie_word_embeddings", default=False
    ):
        text["tie_word_embeddings"] = True
    heads, hidden = integer(text, "num_attention_heads", at_most=MOST_HEADS), integer(text, "hidden_size")
    if hidden % heads or text.get("head_dim") not in (None, hidden // heads):
        raise MalformedError("config_head_dim_fixed", hidden=hidden, heads=heads)
    full_layers = optional_integer(text, "max_window_layers")
    first_sliding = 80 if full_layers is None else full_layers
    return read_decoder(
        text,
        prefix=prefix,
        attentions=softmax_attentions(
            text,
            head_dim=hidden // heads,
            qkv_bias=True,
            output_bias=False,
            qk_norm=False,
            windows=lambda layers: read_layer_types(
                text, layers, window=read_window(text), default=lambda index: index >= first_sliding
            ),
        ),
        mlps=dense_mlps(text),
    )


def read_qwen3_text(
    config: Mapping[str, Any], text: Mapping[str, Any], *, prefix: str, head_dim: int, mlps: Callable[[int], list[Mlp]]
) -> ModelSpec:
    """The decoder of Qwen3-VL, dense or with experts, and its tower. No layer has a sliding window.

    Source: Qwen3VLTextModel, Qwen3VLTextConfig and Qwen3VLVisionConfig.
    """
    bias = flag(text, "attention_bias", default=False)
    if text.get("sliding_window") is not None:
        raise UnsupportedError("config_window_unused", found=text["sliding_window"])
    spec = read_decoder(
        text,
        prefix=prefix,
        attentions=softmax_attentions(
            text,
            head_dim=head_dim,
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=True,
            windows=lambda layers: read_layer_types(text, layers, window=None, default=lambda index: False),
        ),
        mlps=mlps,
    )
    indexes = vision_part(config).get("deepstack_visual_indexes", (8, 16, 24))
    if not isinstance(indexes, list | tuple) or not all(isinstance(index, int) for index in indexes):
        raise MalformedError("config_deepstack")
    return replace(spec, vision=replace(read_vision(config, sizes=QWEN3_SIZES), deepstack=len(indexes)))


def qwen2_tree(spec: ModelSpec, tower: Module) -> Module:
    prefix = spec.class_prefix
    names = ClassNames(decoder=f"{prefix}TextModel", rotary=f"{prefix}RotaryEmbedding", mlp="Qwen2MLP")
    return seeing_tree(spec, tower, decoder(spec, no_sparse_block, names, name="language_model"))


def qwen3_vl_tree(spec: ModelSpec, sparse_block: SparseBlock) -> Module:
    assert spec.vision is not None  # read_spec always sets it
    text = replace(spec, class_prefix=f"{spec.class_prefix}Text")
    language_model = decoder(text, sparse_block, usual_names(text), name="language_model")
    return seeing_tree(spec, qwen3_tower(spec.vision, spec), language_model)


# --- the towers


def qwen3_tower(vision: Vision, spec: ModelSpec) -> Module:
    """The ViT of Qwen3-VL and Qwen3.5: learned positions beside RoPE, LayerNorm, an MLP of two matrices."""
    prefix, hidden, dtype = f"{spec.class_prefix}Vision", vision.hidden_size, spec.dtype
    mlp = Module(
        name="mlp",
        class_name=f"{prefix}MLP",
        children=(
            linear("linear_fc1", hidden, vision.intermediate_size, dtype, bias=True),
            linear("linear_fc2", vision.intermediate_size, hidden, dtype, bias=True),
            Module(name="act_fn", class_name=ACTIVATION_CLASSES[vision.activation]),
        ),
    )
    positions = Module(
        name="pos_embed",
        class_name="Embedding",
        arguments=f"{vision.positions}, {hidden}",
        tensors=(Tensor("weight", (vision.positions or 0, hidden), dtype),),
    )
    norms = (layer_norm("norm1", hidden, dtype), layer_norm("norm2", hidden, dtype))
    block = tower_block(
        vision, norms, attention_class=f"{prefix}Attention", mlp=mlp, block_class=f"{prefix}Block", dtype=dtype
    )
    deepstack = Module(
        name="deepstack_merger_list",
        class_name="ModuleList",
        children=(_merger("0", vision, prefix, dtype, norm_first=False, repeats=vision.deepstack),)
        if vision.deepstack
        else (),
    )
    return Module(
        name="visual",
        class_name=f"{prefix}Model",
        component="vision",
        children=(
            patch_embed(vision, f"{prefix}PatchEmbed", dtype, bias=True),
            positions,
            tower_rotary(vision, f"{prefix}RotaryEmbedding"),
            Module(name="blocks", class_name="ModuleList", children=(block,)),
            _merger("merger", vision, prefix, dtype, norm_first=True),
            *((deepstack,) if spec.family.startswith("qwen3_vl") else ()),
        ),
    )


def _merger(name: str, vision: Vision, prefix: str, dtype: DType, *, norm_first: bool, repeats: int = 1) -> Module:
    """Joins neighbouring patches into one token. norm_first: normalises each patch before joining."""
    joined = vision.hidden_size * vision.merge_size**2
    return Module(
        name=name,
        class_name=f"{prefix}PatchMerger",
        repeats=repeats,
        children=(
            layer_norm("norm", vision.hidden_size if norm_first else joined, dtype),
            linear("linear_fc1", joined, joined, dtype, bias=True),
            Module(name="act_fn", class_name="GELU", arguments="approximate='none'"),
            linear("linear_fc2", joined, vision.output_size, dtype, bias=True),
        ),
    )


def qwen2_merger(vision: Vision, class_name: str, norm: Module, dtype: DType) -> Module:
    """Normalises neighbouring patches, joins them and projects them to one token with two matrices."""
    joined = vision.hidden_size * vision.merge_size**2
    layers = (
        linear("0", joined, joined, dtype, bias=True),
        Module(name="1", class_name="GELU", arguments="approximate='none'"),
        linear("2", joined, vision.output_size, dtype, bias=True),
    )
    mlp = Module(name="mlp", class_name="Sequential", children=layers)
    return Module(name="merger", class_name=class_name, children=(norm, mlp))


def patch_embed(vision: Vision, class_name: str, dtype: DType, *, bias: bool) -> Module:
    """A convolution with kernel and stride of one patch: (temporal, height, width)."""
    kernel = (vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    weight = Tensor("weight", (vision.hidden_size, vision.in_channels, *kernel), dtype)
    proj = Module(
        name="proj",
        class_name="Conv3d",
        arguments=f"{vision.in_channels}, {vision.hidden_size}, kernel_size={kernel}, stride={kernel}"
        + ("" if bias else ", bias=False"),
        tensors=(weight, Tensor("bias", (vision.hidden_size,), dtype)) if bias else (weight,),
    )
    return Module(name="patch_embed", class_name=class_name, children=(proj,))


def tower_rotary(vision: Vision, class_name: str) -> Module:
    """Half of a head's channels for rows, half for columns. Source: compute_axial_rope_parameters."""
    return rotary("rotary_pos_emb", class_name, vision.hidden_size // vision.heads // 2)


def tower_block(
    vision: Vision, norms: tuple[Module, Module], *, attention_class: str, mlp: Module, block_class: str, dtype: DType
) -> Module:
    """A block of the tower, repeated for all its layers."""
    hidden = vision.hidden_size
    attention = Module(
        name="attn",
        class_name=attention_class,
        children=(
            linear("qkv", hidden, 3 * hidden, dtype, bias=True),
            linear("proj", hidden, hidden, dtype, bias=True),
        ),
    )
    return Module(name="0", class_name=block_class, repeats=vision.layers, children=(*norms, attention, mlp))


def layer_norm(name: str, width: int, dtype: DType) -> Module:
    return Module(
        name=name,
        class_name="LayerNorm",
        arguments=f"({width},), eps={NORM_EPS}, elementwise_affine=True, bias=True",
        tensors=(Tensor("weight", (width,), dtype), Tensor("bias", (width,), dtype)),
    )


def rms_norm(name: str, class_name: str, width: int, dtype: DType) -> Module:
    return Module(
        name=name,
        class_name=class_name,
        arguments=f"({width},), eps={NORM_EPS}",
        tensors=(Tensor("weight", (width,), dtype),),
    )


# --- names on disk


def stored_side_by_side(tensor: Tensor) -> tuple[Tensor, ...]:
    """Qwen2-VL's releases store decoder and tower under `model.` and `visual.`, the names in older classes.

    Source: transformers 5.23, conversion_mapping ("Qwen2VLForConditionalGeneration").
    """
    for built, stored in (("model.language_model.", "model."), ("model.visual.", "visual.")):
        if tensor.name.startswith(built):
            return (replace(tensor, name=stored + tensor.name.removeprefix(built)),)
    return (tensor,)


def experts_stored_transposed(tensor: Tensor) -> tuple[Tensor, ...]:
    """Qwen3-VL's releases store fused experts as (experts, inputs, outputs).

    Source: transformers 5.23, conversion_mapping ("qwen3_vl_moe": Transpose).
    """
    if ".mlp.experts." not in tensor.name:
        return (tensor,)
    experts, outputs, inputs = tensor.shape
    return (replace(tensor, shape=(experts, inputs, outputs)),)

"""Kimi-K2.5 and later: a vision tower with a table of positions and one of frames, a projector, and DeepSeek-V3's decoder.

Source: transformers 5.23, models/kimi_k25; names on disk: conversion_mapping ("kimi_k25").
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType, Tensor
from ..errors import MalformedError, UnsupportedError
from ..spec import Module
from ..standard import compiled, re
from ..typed import Any
from ..values import replace
from .blocks import rotary
from .deepseek import VARIANTS, read_latent_decoder
from .design import Architecture
from .mixture import EXPERTS, SCORE_BIAS
from .outline import activation, causal_lm, layer_list, layer_norm, linear, whole_dtype
from .reading import integer, part, read_class_name, shown
from .sizes import check_sizes
from .sparse import stored_by_expert

RELEASED_CLASS = "KimiK25ForConditionalGeneration"  # the repository's own; transformers' has the same modules
EPS = 1e-5
VISION: Mapping[str, Any] = {
    "patch_size": 14,
    "pos_emb_height": 64,
    "pos_emb_width": 64,
    "pos_emb_time": 4,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "hidden_act": "gelu_pytorch_tanh",
    "merge_kernel_size": [2, 2],
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    check_sizes(config)
    if read_class_name(config) == RELEASED_CLASS:
        config = {**config, "architectures": ["Kimi_K25ForConditionalGeneration"]}
    dtype, vision = whole_dtype(config), _read_vision(config)
    nested = _part(config, "text_config", ("deepseek_v3", "kimi_k2"))
    text, decoder, kept = read_latent_decoder(nested, "deepseek_v3", dtype)
    # Tying is read at the top. Source: transformers 5.23, PreTrainedModel.tie_weights
    text["tie_word_embeddings"] = config.get("tie_word_embeddings", True)
    model = Module(
        name="model",
        class_name="Kimi_K25Model",
        children=(
            _tower(vision, dtype),
            replace(decoder, name="language_model"),
            _projector(config, vision, integer(text, "hidden_size"), dtype),
        ),
    )
    return causal_lm(
        config,
        text,
        model,
        kept,
        table="language_model.embed_tokens",
        persistent=(SCORE_BIAS,),
        stored_form=_stored_form,
        unloaded=VARIANTS["deepseek_v3"].unloaded,
    )


def _part(config: Mapping[str, Any], key: str, model_types: tuple[str, ...]) -> Mapping[str, Any]:
    """The nested configuration; a missing or null one is the class's default."""
    return {} if config.get(key) is None else part(config, key, model_types=model_types)


def _read_vision(config: Mapping[str, Any]) -> dict[str, Any]:
    # Some releases have "" for its type. transformers 5.23 knows the part's class without it: Kimi_K25Config
    vision = {**VISION, **_part(config, "vision_config", ("kimi_k25_vision", "kimi_k25", ""))}
    rope = vision.get("rope_scaling") or vision.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, Mapping) else rope
    if kind not in ("default", "axial"):
        raise UnsupportedError("rope_type_unsupported", found=shown(kind), known="default, axial")
    return vision


def _tower(vision: Mapping[str, Any], dtype: DType) -> Module:
    hidden, heads = integer(vision, "hidden_size"), integer(vision, "num_attention_heads")
    if hidden % heads:
        raise MalformedError("config_vision_heads_do_not_divide", hidden=hidden, heads=heads)
    inner, side = integer(vision, "intermediate_size"), integer(vision, "patch_size")
    height, width = integer(vision, "pos_emb_height"), integer(vision, "pos_emb_width")
    projection = Module(
        name="proj",
        class_name="Conv2d",
        arguments=f"3, {hidden}, kernel_size=({side}, {side}), stride=({side}, {side})",
        tensors=(Tensor("weight", (hidden, 3, side, side), dtype), Tensor("bias", (hidden,), dtype)),
    )
    frames = integer(vision, "pos_emb_time") + 1
    positions = Module(
        name="pos_emb",
        class_name="Kimi_K25VisionPositionEmbeddings",
        tensors=(Tensor("position_embeddings", (height, width, hidden), dtype),),
        buffers=(Tensor("time_position_embeddings", (frames, hidden), DType.F32),),
    )
    attention = Module(
        name="attn",
        class_name="Kimi_K25VisionAttention",
        children=tuple(
            linear(name, hidden, hidden, dtype, bias=True) for name in ("proj", "q_proj", "k_proj", "v_proj")
        ),
    )
    mlp = Module(
        name="mlp",
        class_name="Kimi_K25VisionMLP",
        children=(
            linear("fc1", hidden, inner, dtype, bias=True),
            activation("act", vision["hidden_act"]),
            linear("fc2", inner, hidden, dtype, bias=True),
        ),
    )
    norms = (layer_norm(name, hidden, dtype, eps=EPS) for name in ("norm1", "norm2"))
    layer = Module(name="0", class_name="Kimi_K25VisionEncoderLayer", children=(*norms, attention, mlp))
    return Module(
        name="vision_tower",
        class_name="Kimi_K25VisionModel",
        children=(
            Module(name="patch_embed", class_name="Kimi_K25VisionPatchEmbed", children=(projection, positions)),
            rotary("rotary_emb", "Kimi_K25VisionRotaryEmbedding", hidden // heads // 2),
            layer_list("layers", [layer] * integer(vision, "num_hidden_layers")),
            layer_norm("final_layernorm", hidden, dtype, eps=EPS),
        ),
    )


def _projector(config: Mapping[str, Any], vision: Mapping[str, Any], width: int, dtype: DType) -> Module:
    """Joins the patches of a square, and projects them to the decoder's width."""
    kernel = vision["merge_kernel_size"]
    if not isinstance(kernel, list) or len(kernel) != 2:
        raise UnsupportedError("config_key_unsupported", key="merge_kernel_size", found=shown(kernel))
    rows, columns = (integer({"merge_kernel_size": side}, "merge_kernel_size") for side in kernel)
    joined = integer(vision, "hidden_size") * rows * columns
    normed = integer({"projection_hidden_size": 1152, **config}, "projection_hidden_size")
    return Module(
        name="mm_projector",
        class_name="Kimi_K25MultimodalProjection",
        children=(
            layer_norm("pre_norm", normed, dtype, eps=config.get("projection_layer_norm_eps", EPS)),
            linear("in_proj", joined, joined, dtype, bias=True),
            Module(name="act", class_name="GELU", arguments="approximate='none'"),
            linear("out_proj", joined, width, dtype, bias=True),
        ),
    )


# --- names on disk: those of the released files. transformers reads them, but would save others.

_by_expert = stored_by_expert("mlp", EXPERTS)
NAMES = (
    (r"lm_head\.", "language_model.lm_head."),
    (r"model\.language_model\.", "language_model.model."),
    (r"model\.mm_projector\.in_proj\.", "mm_projector.proj.0."),
    (r"model\.mm_projector\.out_proj\.", "mm_projector.proj.2."),
    (r"model\.(mm_projector|vision_tower\.patch_embed\.proj)\.", r"\1."),
    (r"model\.vision_tower\.patch_embed\.pos_emb\.position_embeddings$", "vision_tower.patch_embed.pos_emb.weight"),
    (r"model\.vision_tower\.layers\.(\d+)\.norm1\.", r"vision_tower.encoder.blocks.\1.norm0."),
    (r"model\.vision_tower\.layers\.(\d+)\.norm2\.", r"vision_tower.encoder.blocks.\1.norm1."),
    (r"model\.vision_tower\.layers\.(\d+)\.mlp\.fc1\.", r"vision_tower.encoder.blocks.\1.mlp.fc0."),
    (r"model\.vision_tower\.layers\.(\d+)\.mlp\.fc2\.", r"vision_tower.encoder.blocks.\1.mlp.fc1."),
    (r"model\.vision_tower\.layers\.(\d+)\.attn\.proj\.", r"vision_tower.encoder.blocks.\1.wo."),
    (r"model\.vision_tower\.layers\.(\d+)\.attn\.q_proj\.", r"vision_tower.encoder.blocks.\1.wqkv."),
    (r"model\.vision_tower\.final_layernorm\.", "vision_tower.encoder.final_layernorm."),
)
DECODER, TOWER = "model.language_model.", "vision_tower."
WITHIN_QKV = compiled(r"vision_tower\.layers\.\d+\.attn\.[kv]_proj\.")


def _stored_form(tensor: Tensor) -> tuple[Tensor, ...]:
    """Files hold a layer's queries, keys and values as one tensor, which is given for the queries."""
    if TOWER in tensor.name and WITHIN_QKV.search(tensor.name):
        return ()
    shape = tensor.shape
    if ".attn.q_proj." in tensor.name:
        shape = (3 * shape[0], *shape[1:])
    return tuple(
        Tensor(
            _released_name(stored.name),
            shape if stored.name == tensor.name else stored.shape,
            stored.dtype,
            stored.file,
        )
        for stored in _by_expert(tensor)
    )


def _released_name(name: str) -> str:
    if name.startswith(DECODER):  # as most do, and only its pattern fits
        return f"language_model.model.{name.removeprefix(DECODER)}"
    for pattern, replacement in NAMES:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return name

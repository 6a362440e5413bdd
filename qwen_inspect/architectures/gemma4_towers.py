"""Gemma 4's towers: a ViT with RoPE in two dimensions, and a conformer for sound.

Source: transformers 5.23, models/gemma4; Universal Speech Model (arXiv 2303.01037).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType, Tensor
from ..errors import MalformedError, UnsupportedError
from ..spec import Module
from ..typed import Any
from .blocks import linear
from .outline import activation, frequencies, layer_list, norm, read_heads, with_defaults
from .reading import flag, integer, shown

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "text_config": {},
    "vision_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "head_dim": 64,
        "hidden_activation": "gelu_pytorch_tanh",
        "patch_size": 16,
        "position_embedding_size": 10_240,
        "use_clipped_linears": False,
        "standardize": False,
    },
    "audio_config": {
        "hidden_size": 1024,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "hidden_act": "silu",
        "subsampling_conv_channels": [128, 32],
        "conv_kernel_size": 5,
        "use_clipped_linears": True,
        "rms_norm_eps": 1e-6,
        "output_proj_dims": 1536,
    },
}


def read_part(config: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """The configuration nested under `key` with its class's defaults; None if it is null or missing."""
    nested = config.get(key)
    if nested is None:
        return None
    if not isinstance(nested, Mapping):
        raise MalformedError("config_not_object", key=key, found=shown(nested))
    if key == "text_config":
        return dict(nested)
    rope = nested.get("rope_parameters") or {}
    if not isinstance(rope, Mapping) or rope.get("rope_type", "axial") not in ("axial", "default"):
        raise UnsupportedError("config_key_unsupported", key=f"{key}.rope_parameters", found=shown(rope))
    return with_defaults({name: value for name, value in nested.items() if name != "rope_parameters"}, DEFAULTS[key])


def embedder(name: str, tower: Mapping[str, Any], width: int, dtype: DType) -> Module:
    """A tower's output as embeddings of the decoder. Source: Gemma4MultimodalEmbedder."""
    inputs = integer(tower, "output_proj_dims" if "output_proj_dims" in tower else "hidden_size")
    return Module(
        name=name,
        class_name="Gemma4MultimodalEmbedder",
        children=(
            linear("embedding_projection", inputs, width, dtype),
            Module(name="embedding_pre_projection_norm", class_name="Gemma4RMSNorm"),
        ),
    )


def _clippable(name: str, inputs: int, outputs: int, tower: Mapping[str, Any], dtype: DType) -> Module:
    """A linear layer, with bounds for its inputs and outputs that files hold if `use_clipped_linears`."""
    clipped = flag(tower, "use_clipped_linears", default=False)
    bounds = ("input_min", "input_max", "output_min", "output_max") if clipped else ()
    return Module(
        name=name,
        class_name="Gemma4ClippableLinear",
        buffers=tuple(Tensor(bound, (), dtype) for bound in bounds),
        children=(linear("linear", inputs, outputs, dtype),),
    )


def _norm(name: str, width: int, dtype: DType) -> Module:
    return norm(name, "Gemma4RMSNorm", width, dtype, arguments="")


# --- images


def seeing(name: str, vision: Mapping[str, Any], dtype: DType) -> Module:
    hidden, inner = integer(vision, "hidden_size"), integer(vision, "intermediate_size")
    (query_heads, kv_heads), head_dim = read_heads(vision), integer(vision, "head_dim")
    rows, columns = query_heads * head_dim, kv_heads * head_dim
    attention = Module(
        name="self_attn",
        class_name="Gemma4VisionAttention",
        children=(
            _clippable("q_proj", hidden, rows, vision, dtype),
            _clippable("k_proj", hidden, columns, vision, dtype),
            _clippable("v_proj", hidden, columns, vision, dtype),
            _clippable("o_proj", rows, hidden, vision, dtype),
            _norm("q_norm", head_dim, dtype),
            _norm("k_norm", head_dim, dtype),
            Module(name="v_norm", class_name="Gemma4RMSNorm"),
        ),
    )
    mlp = Module(
        name="mlp",
        class_name="Gemma4VisionMLP",
        children=(
            _clippable("gate_proj", hidden, inner, vision, dtype),
            _clippable("up_proj", hidden, inner, vision, dtype),
            _clippable("down_proj", inner, hidden, vision, dtype),
            activation("act_fn", vision["hidden_activation"]),
        ),
    )
    norms = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    layer = Module(
        name="0",
        class_name="Gemma4VisionEncoderLayer",
        children=(attention, mlp, *(_norm(part, hidden, dtype) for part in norms)),
    )
    positions = Tensor("position_embedding_table", (2, integer(vision, "position_embedding_size"), hidden), dtype)
    rotary = Module(name="rotary_emb", class_name="Gemma4VisionRotaryEmbedding", buffers=frequencies(head_dim // 2))
    statistics = ("std_bias", "std_scale") if flag(vision, "standardize", default=False) else ()
    return Module(
        name=name,
        class_name="Gemma4VisionModel",
        buffers=tuple(Tensor(statistic, (hidden,), dtype) for statistic in statistics),
        children=(
            Module(
                name="patch_embedder",
                class_name="Gemma4VisionPatchEmbedder",
                tensors=(positions,),
                children=(linear("input_proj", 3 * integer(vision, "patch_size") ** 2, hidden, dtype),),
            ),
            Module(
                name="encoder",
                class_name="Gemma4VisionEncoder",
                children=(rotary, layer_list("layers", [layer] * integer(vision, "num_hidden_layers"))),
            ),
            Module(name="pooler", class_name="Gemma4VisionPooler"),
        ),
    )


# --- sound


def hearing(name: str, audio: Mapping[str, Any], dtype: DType) -> Module:
    hidden, outputs = integer(audio, "hidden_size"), integer(audio, "output_proj_dims")
    timescales = Tensor("inv_timescales", (1, 1, hidden // 2), dtype)
    return Module(
        name=name,
        class_name="Gemma4AudioModel",
        children=(
            _subsampling(audio, dtype),
            Module(name="rel_pos_enc", class_name="Gemma4AudioRelPositionalEncoding", buffers=(timescales,)),
            layer_list("layers", [_conformer(audio, dtype)] * integer(audio, "num_hidden_layers")),
            linear("output_proj", hidden, outputs, dtype, bias=True),
        ),
    )


def _subsampling(audio: Mapping[str, Any], dtype: DType) -> Module:
    """Two convolutions of 3 x 3 with stride 2, and a projection of what is left of the channels."""
    channels = audio["subsampling_conv_channels"]
    if not isinstance(channels, list) or len(channels) < 2:
        raise UnsupportedError("config_key_unsupported", key="subsampling_conv_channels", found=shown(channels))
    first, second = (
        integer({"subsampling_conv_channels": count}, "subsampling_conv_channels") for count in channels[:2]
    )
    eps = audio["rms_norm_eps"]

    def convolved(name: str, inputs: int, outputs: int) -> Module:
        conv = Module(
            name="conv",
            class_name="Conv2d",
            arguments=f"{inputs}, {outputs}, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False",
            tensors=(Tensor("weight", (outputs, inputs, 3, 3), dtype),),
        )
        shape = f"({outputs},), eps={eps}, elementwise_affine=True, bias=False"
        return Module(
            name=name,
            class_name="Gemma4AudioSubSampleConvProjectionLayer",
            children=(conv, norm("norm", "LayerNorm", outputs, dtype, arguments=shape), activation("act", "relu")),
        )

    return Module(
        name="subsample_conv_projection",
        class_name="Gemma4AudioSubSampleConvProjection",
        children=(
            convolved("layer0", 1, first),
            convolved("layer1", first, second),
            linear("input_proj_linear", first // 4 * second, integer(audio, "hidden_size"), dtype),
        ),
    )


def _conformer(audio: Mapping[str, Any], dtype: DType) -> Module:
    """Half an MLP, attention in chunks with relative positions, a convolution, and half an MLP."""
    hidden, act, kernel = integer(audio, "hidden_size"), audio["hidden_act"], integer(audio, "conv_kernel_size")
    heads = integer(audio, "num_attention_heads")
    head_dim = hidden // heads
    rows = heads * head_dim

    def feed_forward(name: str) -> Module:
        return Module(
            name=name,
            class_name="Gemma4AudioFeedForward",
            children=(
                _clippable("ffw_layer_1", hidden, 4 * hidden, audio, dtype),
                _clippable("ffw_layer_2", 4 * hidden, hidden, audio, dtype),
                _norm("pre_layer_norm", hidden, dtype),
                _norm("post_layer_norm", hidden, dtype),
                activation("act_fn", act),
            ),
        )

    attention = Module(
        name="self_attn",
        class_name="Gemma4AudioAttention",
        tensors=(Tensor("per_dim_scale", (head_dim,), dtype),),
        buffers=(Tensor("softcap", (), dtype),),
        children=(
            *(_clippable(f"{part}_proj", hidden, rows, audio, dtype) for part in "qkv"),
            _clippable("post", hidden, hidden, audio, dtype),
            linear("relative_k_proj", hidden, rows, dtype),
        ),
    )
    convolution = Module(
        name="depthwise_conv1d",
        class_name="Gemma4AudioCausalConv1d",
        arguments=f"{hidden}, {hidden}, kernel_size=({kernel},), stride=(1,), groups={hidden}, bias=False",
        tensors=(Tensor("weight", (hidden, 1, kernel), dtype),),
    )
    light_convolution = Module(
        name="lconv1d",
        class_name="Gemma4AudioLightConv1d",
        children=(
            _clippable("linear_start", hidden, 2 * hidden, audio, dtype),
            _clippable("linear_end", hidden, hidden, audio, dtype),
            convolution,
            _norm("pre_layer_norm", hidden, dtype),
            _norm("conv_norm", hidden, dtype),
            activation("act_fn", act),
        ),
    )
    return Module(
        name="0",
        class_name="Gemma4AudioLayer",
        children=(
            feed_forward("feed_forward1"),
            feed_forward("feed_forward2"),
            attention,
            light_convolution,
            *(_norm(part, hidden, dtype) for part in ("norm_pre_attn", "norm_post_attn", "norm_out")),
        ),
    )

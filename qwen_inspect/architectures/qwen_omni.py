"""The thinkers of Qwen2.5-Omni and Qwen3-Omni: encoders of audio and of images before a decoder of text.

Source: transformers 5.23, models/{qwen2_5_omni,qwen3_omni_moe}; Qwen2.5-Omni (arXiv 2503.20215), Qwen3-Omni (arXiv 2509.17765).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType, Tensor
from ..errors import MalformedError
from ..spec import Module, Vision
from ..typed import Any
from ..values import replace
from .blocks import experts_stored_singly
from .decoders import Decoder, read_decoder, with_layer_types
from .design import Architecture
from .outline import (
    activation,
    causal_lm,
    embedding,
    experts,
    layer_list,
    layer_norm,
    linear,
    norm,
    read_spans,
    whole_dtype,
    with_aliases,
    with_defaults,
)
from .qwen_audio import ALIASES, conv1d, conv2d, encoder_layer
from .reading import flag, integer, shown, sparse_mlps
from .sizes import check_sizes
from .sparse import read_routed
from .vision import QWEN3_SIZES, patch_embed, qwen2_merger, read_vision, rms_norm, tower_block, tower_rotary
from .vision import layer_norm as tower_norm

AUDIO: Mapping[str, Any] = {
    "num_mel_bins": 128,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "d_model": 1280,
    "activation_function": "gelu",
    "max_source_positions": 1500,
    "output_dim": 3584,
    "downsample_hidden_size": 480,
}
VISION: Mapping[str, int] = {
    "depth": 32,
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 3584,
}
TEXT2: Mapping[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
    "sliding_window": 32768,
    "max_window_layers": 28,
    "layer_types": None,
}
TEXT3: Mapping[str, Any] = {
    "vocab_size": 3584,
    "hidden_size": 2048,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "sliding_window": None,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "num_experts": 128,
    "mlp_only_layers": None,
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    check_sizes(config)
    dtype = whole_dtype(config)
    if config["model_type"] == "qwen2_5_omni_thinker":
        prefix, other = "Qwen2_5Omni", ("^talker", "^token2wav")
        decoder, language, routed = _dense(config, dtype)
        towers = (_audio2(_audio(config), dtype), _visual2(config, dtype))
    else:
        prefix, other = "Qwen3OmniMoe", ("^talker", "^code2wav")
        decoder, language, routed = _sparse(config, dtype)
        towers = (_audio3(_audio(config), dtype), _visual3(config, dtype))
    model = Module(name="model", class_name=f"{prefix}ThinkerModel", children=(*towers, language))
    return causal_lm(
        config,
        decoder.text,
        model,
        decoder.kept(read_spans(decoder.text, decoder.layers)),
        table="language_model.embed_tokens",
        routed=routed,
        stored_form=stored_form,
        built_name=built_name,
        unloaded=other,
    )


def _nested(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A part's configuration, whatever model_type it states: its class is fixed. Source: SubConfigSpec.create_subconfig."""
    nested = config.get(key)
    if nested is None:
        return {}
    if not isinstance(nested, Mapping):
        raise MalformedError("config_not_object", key=key, found=shown(nested))
    return {name: value for name, value in nested.items() if name != "model_type"}


# --- decoders


def _dense(config: Mapping[str, Any], dtype: DType) -> tuple[Decoder, Module, None]:
    text = with_defaults(_nested(config, "text_config"), TEXT2)
    if not flag(text, "use_sliding_window", default=False):
        text["sliding_window"] = None
    first = integer(text, "max_window_layers", at_least=0)
    text = with_layer_types(text, lambda index: text["sliding_window"] is None or index < first)
    text["tie_word_embeddings"] = config.get("tie_word_embeddings", False)
    decoder = read_decoder(text, dtype, "Qwen2_5Omni")
    mlp = replace(decoder.mlp(), class_name="Qwen2MLP")
    layer = decoder.prenorm_layer(decoder.attention(bias=True, output_bias=False), mlp)
    model = replace(decoder.model(layer), name="language_model", class_name="Qwen2_5OmniThinkerTextModel")
    return decoder, model, None


def _sparse(config: Mapping[str, Any], dtype: DType) -> tuple[Decoder, Module, tuple[int, int]]:
    text = with_defaults(_nested(config, "text_config"), TEXT3)
    text["tie_word_embeddings"] = config.get("tie_word_embeddings", False)
    decoder = read_decoder(text, dtype, "Qwen3OmniMoeThinkerText")
    routed = read_routed(text, "num_experts", layers=decoder.layers)
    count, width = routed[1], integer(text, "moe_intermediate_size")
    bias, hidden = flag(text, "attention_bias", default=False), decoder.hidden
    attention = decoder.attention(
        decoder.norm("q_norm", decoder.head_dim), decoder.norm("k_norm", decoder.head_dim), bias=bias
    )
    router = Module(
        name="gate", class_name=f"{decoder.prefix}TopKRouter", tensors=(Tensor("weight", (count, hidden), dtype),)
    )
    stacks = experts("experts", f"{decoder.prefix}Experts", count, hidden, width, text["hidden_act"], dtype)
    sparse = Module(name="mlp", class_name=f"{decoder.prefix}SparseMoeBlock", children=(stacks, router))
    dense = decoder.mlp()
    kinds = sparse_mlps(text, experts_key="num_experts", shared_size=None)(decoder.layers)
    layers = [decoder.prenorm_layer(attention, sparse if hasattr(kind, "experts") else dense) for kind in kinds]
    last = norm("norm", "Qwen3OmniMoeTextRMSNorm", hidden, dtype, eps=decoder.eps)
    return decoder, replace(decoder.model(layers, last_norm=last), name="language_model"), routed


# --- encoders of audio


def _audio(config: Mapping[str, Any]) -> Mapping[str, Any]:
    audio = with_aliases(with_defaults(_nested(config, "audio_config"), AUDIO), ALIASES)
    width, heads = integer(audio, "d_model"), integer(audio, "encoder_attention_heads")
    if width % heads or width % 2:
        raise MalformedError("config_width_not_divisible", hidden=width, heads=heads if width % heads else 2)
    return audio


def _positions(audio: Mapping[str, Any]) -> Module:
    shape = (integer(audio, "max_source_positions"), integer(audio, "d_model"))
    buffer = Tensor("positional_embedding", shape, DType.F32)
    return Module(name="positional_embedding", class_name="SinusoidsPositionEmbedding", buffers=(buffer,))


def _audio2(audio: Mapping[str, Any], dtype: DType) -> Module:
    width, output = integer(audio, "d_model"), integer(audio, "output_dim")
    layer = encoder_layer("Qwen2_5OmniAudio", "Qwen2_5OmniAudioAttention", audio, dtype, key_bias=False)
    return Module(
        name="audio_tower",
        class_name="Qwen2_5OmniAudioEncoder",
        children=(
            conv1d("conv1", integer(audio, "num_mel_bins"), width, 1, dtype),
            conv1d("conv2", width, width, 2, dtype),
            _positions(audio),
            embedding("audio_bos_eos_token", 2, output, dtype),
            layer_list("layers", [layer] * integer(audio, "encoder_layers", at_least=0)),
            layer_norm("ln_post", width, dtype, eps="1e-05"),
            Module(name="avg_pooler", class_name="AvgPool1d", arguments="kernel_size=(2,), stride=(2,), padding=(0,)"),
            linear("proj", width, output, dtype, bias=True),
        ),
    )


def _audio3(audio: Mapping[str, Any], dtype: DType) -> Module:
    width, channels = integer(audio, "d_model"), integer(audio, "downsample_hidden_size")
    bins = (((integer(audio, "num_mel_bins") + 1) // 2 + 1) // 2 + 1) // 2
    layer = encoder_layer("Qwen3OmniMoeAudio", "Qwen3OmniMoeAudioAttention", audio, dtype, key_bias=True)
    return Module(
        name="audio_tower",
        class_name="Qwen3OmniMoeAudioEncoder",
        children=(
            _positions(audio),
            layer_list("layers", [layer] * integer(audio, "encoder_layers", at_least=0)),
            layer_norm("ln_post", width, dtype, eps="1e-05"),
            conv2d("conv2d1", 1, channels, dtype),
            conv2d("conv2d2", channels, channels, dtype),
            conv2d("conv2d3", channels, channels, dtype),
            linear("conv_out", channels * bins, width, dtype),
            linear("proj1", width, width, dtype, bias=True),
            activation("act", audio["activation_function"]),
            linear("proj2", width, integer(audio, "output_dim"), dtype, bias=True),
        ),
    )


# --- vision towers


def _vision(config: Mapping[str, Any], sizes: Mapping[str, int], act: str) -> Vision:
    nested = _nested(config, "vision_config")
    for alias, key in (("num_attention_heads", "num_heads"), ("num_hidden_layers", "depth")):
        if alias in nested:
            nested[key] = nested[alias]
    return read_vision({"model_type": config["model_type"], "vision_config": nested}, sizes=sizes, activation=act)


def _visual2(config: Mapping[str, Any], dtype: DType) -> Module:
    vision = _vision(config, VISION, "silu")
    width, inner = vision.hidden_size, vision.intermediate_size
    first, second, last = (rms_norm(name, "Qwen2_5OmniRMSNorm", width, dtype) for name in ("norm1", "norm2", "ln_q"))
    attention = Module(
        name="attn",
        class_name="Qwen2_5OmniVisionAttention",
        children=tuple(linear(name, width, width, dtype, bias=True) for name in ("q", "k", "v", "proj")),
    )
    mlp = Module(
        name="mlp",
        class_name="Qwen2_5OmniMLP",
        children=(
            linear("gate_proj", width, inner, dtype, bias=True),
            linear("up_proj", width, inner, dtype, bias=True),
            linear("down_proj", inner, width, dtype, bias=True),
            activation("act_fn", vision.activation),
        ),
    )
    block = Module(name="0", class_name="Qwen2_5OmniVisionBlock", children=(first, second, attention, mlp))
    return Module(
        name="visual",
        class_name="Qwen2_5OmniVisionEncoder",
        children=(
            patch_embed(vision, "Qwen2_5_VisionPatchEmbed", dtype, bias=False),
            tower_rotary(vision, "Qwen2_5OmniVisionRotaryEmbedding"),
            layer_list("blocks", [block] * vision.layers),
            qwen2_merger(vision, "Qwen2_5OmniPatchMerger", last, dtype),
        ),
    )


def _visual3(config: Mapping[str, Any], dtype: DType) -> Module:
    prefix, vision = "Qwen3OmniMoeVision", _vision(config, QWEN3_SIZES, "gelu_pytorch_tanh")
    width, inner = vision.hidden_size, vision.intermediate_size
    indexes = _nested(config, "vision_config").get("deepstack_visual_indexes", (8, 16, 24))
    if not isinstance(indexes, list | tuple) or not all(isinstance(index, int) for index in indexes):
        raise MalformedError("config_deepstack")
    joined = width * vision.merge_size**2

    def merger(name: str, normed: int) -> Module:
        parts = (
            linear("0", joined, joined, dtype, bias=True),
            Module(name="1", class_name="GELU", arguments="approximate='none'"),
            linear("2", joined, vision.output_size, dtype, bias=True),
        )
        mlp = Module(name="mlp", class_name="ModuleList", children=parts)
        return Module(name=name, class_name=f"{prefix}PatchMerger", children=(tower_norm("ln_q", normed, dtype), mlp))

    mlp = Module(
        name="mlp",
        class_name=f"{prefix}MLP",
        children=(
            linear("linear_fc1", width, inner, dtype, bias=True),
            linear("linear_fc2", inner, width, dtype, bias=True),
            activation("act_fn", vision.activation),
        ),
    )
    block = tower_block(
        vision,
        (tower_norm("norm1", width, dtype), tower_norm("norm2", width, dtype)),
        attention_class=f"{prefix}Attention",
        mlp=mlp,
        block_class=f"{prefix}Block",
        dtype=dtype,
    )
    return Module(
        name="visual",
        class_name=f"{prefix}Encoder",
        children=(
            layer_list("merger_list", [merger("0", joined)] * len(indexes)),
            patch_embed(vision, f"{prefix}PatchEmbed", dtype, bias=True),
            embedding("pos_embed", vision.positions or 0, width, dtype),
            tower_rotary(vision, f"{prefix}RotaryEmbedding"),
            Module(name="blocks", class_name="ModuleList", children=(block,)),
            merger("merger", width),
        ),
    )


# --- names on disk


def stored_form(tensor: Tensor) -> tuple[Tensor, ...]:
    """The decoder as `model`, the encoders beside it, and each expert alone.

    Source: transformers 5.23, conversion_mapping ("Qwen2_5OmniThinkerForConditionalGeneration", "qwen3_omni_moe_thinker").
    """
    name = tensor.name
    for built, stored in (
        ("model.language_model.", "model."),
        ("model.audio_tower.", "audio_tower."),
        ("model.visual.", "visual."),
    ):
        if name.startswith(built):
            name = stored + name.removeprefix(built)
            break
    return experts_stored_singly(replace(tensor, name=name))


def built_name(name: str) -> str:
    """The class's name of a stored tensor, which files of the whole model have below `thinker`. Source: as `stored_form`."""
    name = name.removeprefix("thinker.")
    if name.startswith(("audio_tower.", "visual.")):
        return f"model.{name}"
    inner = name.removeprefix("model.")
    if inner == name or inner.startswith(("language_model.", "visual.", "audio_tower.")):
        return name
    return f"model.language_model.{inner}"

"""Qwen2-Audio and Qwen3-ASR: an encoder of mel spectrograms, a projector, and the decoder of Qwen2 or Qwen3.

Source: transformers 5.23, models/{qwen2_audio,qwen3_asr}; Qwen2-Audio Technical Report (arXiv 2407.10759).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType, Tensor
from ..errors import MalformedError
from ..spec import Module
from ..typed import Any
from ..values import replace
from .decoders import Decoder, read_decoder, with_layer_types
from .design import Architecture
from .outline import (
    activation,
    causal_lm,
    embedding,
    layer_list,
    layer_norm,
    linear,
    read_spans,
    whole_dtype,
    with_aliases,
    with_defaults,
)
from .reading import flag, integer, part, read_class_name
from .sizes import check_sizes
from .towers import built_bare, built_side_by_side, stored_side_by_side

_DECODER: Mapping[str, Any] = {  # of Qwen2Config and Qwen3Config
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
_AUDIO: Mapping[str, Any] = {"num_mel_bins": 128, "activation_function": "gelu"}
QWEN2: Mapping[str, Mapping[str, Any]] = {
    "text": _DECODER,
    "whole_text": _DECODER,
    "audio": {
        **_AUDIO,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "d_model": 1280,
        "max_source_positions": 1500,
    },
}
QWEN3: Mapping[str, Mapping[str, Any]] = {
    "text": {**_DECODER, "head_dim": 128, "attention_bias": False},
    "whole_text": {  # if there is no text_config
        **_DECODER,
        "attention_bias": False,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 65536,
    },
    "audio": {
        **_AUDIO,
        "encoder_layers": 24,
        "encoder_attention_heads": 16,
        "encoder_ffn_dim": 4096,
        "d_model": 1024,
        "output_dim": 3584,
        "downsample_hidden_size": 480,
        "max_position_embeddings": 13,
    },
}
ALIASES: Mapping[str, str] = {
    "num_hidden_layers": "encoder_layers",
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "intermediate_size": "encoder_ffn_dim",
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    check_sizes(config)
    return _qwen2(config) if config["model_type"] == "qwen2_audio" else _qwen3(config)


def _qwen2(config: Mapping[str, Any]) -> Architecture:
    dtype = whole_dtype(config)
    decoder, audio = _parts(config, QWEN2, "Qwen2", dtype)
    width = integer(audio, "d_model")
    layers = layer_list(
        "layers", [encoder_layer("Qwen2Audio", "Qwen2AudioAttention", audio, dtype, key_bias=False)] * _depth(audio)
    )
    tower = Module(
        name="audio_tower",
        class_name="Qwen2AudioEncoder",
        children=(
            conv1d("conv1", integer(audio, "num_mel_bins"), width, 1, dtype),
            conv1d("conv2", width, width, 2, dtype),
            embedding("embed_positions", integer(audio, "max_source_positions"), width, dtype),
            layers,
            layer_norm("layer_norm", width, dtype, eps="1e-05"),
            Module(name="avg_pooler", class_name="AvgPool1d", arguments="kernel_size=(2,), stride=(2,), padding=(0,)"),
        ),
    )
    projector = Module(
        name="multi_modal_projector",
        class_name="Qwen2AudioMultiModalProjector",
        children=(linear("linear", width, decoder.hidden, dtype, bias=True),),
    )
    attention = decoder.attention(bias=True, output_bias=False)
    model = Module(
        name="model", class_name="Qwen2AudioModel", children=(tower, projector, _language(decoder, attention))
    )
    bare = read_class_name(config) == model.class_name
    return _whole(
        config,
        decoder,
        model,
        ties=False,
        stored_form=stored_side_by_side,
        built_name=built_bare if bare else built_side_by_side,
    )


def _qwen3(config: Mapping[str, Any]) -> Architecture:
    dtype = whole_dtype(config)
    decoder, audio = _parts(config, QWEN3, "Qwen3", dtype)
    width, channels = integer(audio, "d_model"), integer(audio, "downsample_hidden_size")
    # Three convolutions of stride 2 halve the mel bins. Source: Qwen3ASREncoder.__init__
    bins = (((integer(audio, "num_mel_bins") + 1) // 2 + 1) // 2 + 1) // 2
    if width % 2:
        raise MalformedError("config_out_of_range", key="d_model", found=width, least=2, most=width - 1)
    positions = Tensor("positional_embedding", (integer(audio, "max_position_embeddings"), width), DType.F32)
    layer = encoder_layer("Qwen3ASRAudio", "Qwen3ASRAudioAttention", audio, dtype, key_bias=True)
    tower = Module(
        name="audio_tower",
        class_name="Qwen3ASREncoder",
        children=(
            Module(name="positional_embedding", class_name="SinusoidsPositionEmbedding", buffers=(positions,)),
            layer_list("layers", [layer] * _depth(audio)),
            layer_norm("ln_post", width, dtype, eps="1e-05"),
            conv2d("conv2d1", 1, channels, dtype),
            conv2d("conv2d2", channels, channels, dtype),
            conv2d("conv2d3", channels, channels, dtype),
            linear("conv_out", channels * bins, width, dtype),
        ),
    )
    projector = Module(
        name="multi_modal_projector",
        class_name="Qwen3ASRMultiModalProjector",
        children=(
            linear("linear_1", width, width, dtype, bias=True),
            activation("act", audio["activation_function"]),
            linear("linear_2", width, integer(audio, "output_dim"), dtype, bias=True),
        ),
    )
    norms = (decoder.norm("q_norm", decoder.head_dim), decoder.norm("k_norm", decoder.head_dim))
    attention = decoder.attention(*norms, bias=flag(decoder.text, "attention_bias", default=False))
    model = Module(name="model", class_name="Qwen3ASRModel", children=(tower, _language(decoder, attention), projector))
    return _whole(config, decoder, model)


def _parts(
    config: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]], prefix: str, dtype: DType
) -> tuple[Decoder, Mapping[str, Any]]:
    """The decoder, and the encoder's configuration. Source: SubConfigSpec.create_subconfig, Qwen2Config.__post_init__."""
    missing = config.get("text_config") is None
    nested = {} if missing else part(config, "text_config", model_types=(prefix.lower(),))
    text = with_defaults(nested, defaults["whole_text" if missing else "text"])
    if not flag(text, "use_sliding_window", default=False):
        text["sliding_window"] = None
    first = integer(text, "max_window_layers", at_least=0)
    text = with_layer_types(text, lambda index: text["sliding_window"] is None or index < first)
    # Tying is read at the top. Source: transformers 5.23, PreTrainedModel.tie_weights
    text["tie_word_embeddings"] = config.get("tie_word_embeddings", True)
    encoder = f"{config['model_type']}_encoder"
    audio = {} if config.get("audio_config") is None else part(config, "audio_config", model_types=(encoder,))
    audio = with_aliases(with_defaults(audio, defaults["audio"]), ALIASES)
    width, heads = integer(audio, "d_model"), integer(audio, "encoder_attention_heads")
    if width % heads:
        raise MalformedError("config_width_not_divisible", hidden=width, heads=heads)
    return read_decoder(text, dtype, prefix), audio


def _whole(config: Mapping[str, Any], decoder: Decoder, model: Module, **options: Any) -> Architecture:
    kept = decoder.kept(read_spans(decoder.text, decoder.layers))
    return causal_lm(config, decoder.text, model, kept, table="language_model.embed_tokens", **options)


def _language(decoder: Decoder, attention: Module) -> Module:
    return replace(decoder.model(decoder.prenorm_layer(attention, decoder.mlp())), name="language_model")


def _depth(audio: Mapping[str, Any]) -> int:
    return integer(audio, "encoder_layers", at_least=0)


def encoder_layer(
    prefix: str, attention_class: str, audio: Mapping[str, Any], dtype: DType, *, key_bias: bool
) -> Module:
    """A layer of the encoder. key_bias: whether keys have a bias as queries and values do."""
    width, inner = integer(audio, "d_model"), integer(audio, "encoder_ffn_dim")
    attention = tuple(
        linear(f"{name}_proj", width, width, dtype, bias=key_bias or name != "k") for name in ("k", "v", "q", "out")
    )
    return Module(
        name="0",
        class_name=f"{prefix}EncoderLayer",
        children=(
            Module(name="self_attn", class_name=attention_class, children=attention),
            layer_norm("self_attn_layer_norm", width, dtype, eps="1e-05"),
            activation("activation_fn", audio["activation_function"]),
            linear("fc1", width, inner, dtype, bias=True),
            linear("fc2", inner, width, dtype, bias=True),
            layer_norm("final_layer_norm", width, dtype, eps="1e-05"),
        ),
    )


def conv1d(name: str, inputs: int, outputs: int, stride: int, dtype: DType) -> Module:
    return Module(
        name=name,
        class_name="Conv1d",
        arguments=f"{inputs}, {outputs}, kernel_size=(3,), stride=({stride},), padding=(1,)",
        tensors=(Tensor("weight", (outputs, inputs, 3), dtype), Tensor("bias", (outputs,), dtype)),
    )


def conv2d(name: str, inputs: int, outputs: int, dtype: DType) -> Module:
    return Module(
        name=name,
        class_name="Conv2d",
        arguments=f"{inputs}, {outputs}, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1)",
        tensors=(Tensor("weight", (outputs, inputs, 3, 3), dtype), Tensor("bias", (outputs,), dtype)),
    )

"""Small models that hear, and audio for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_inspect.architectures.families import CLASSES
from qwen_inspect.media.counting import media_of
from qwen_inspect.results.media import Media, Request, Typed, TypedAudio

from .outlines import varied

AUDIO_TOKENS = {
    "audio_token_id": 5,
    "audio_token_index": 5,
    "image_token_id": 6,
    "image_token_index": 6,
    "video_token_id": 8,
    "video_token_index": 8,
    "vision_start_token_id": 7,
    "audio_start_token_id": 10,
}
SECONDS = 4  # that Qwen2-Audio and Qwen2.5-Omni take here


def hearing(family: str, *, layers: int = 3) -> dict[str, Any]:
    """A small model of the family, whose audio tower and decoder fit together."""
    config = varied(family, 1)
    config |= {"architectures": [CLASSES[family][0]], **AUDIO_TOKENS, "dtype": "bfloat16"}
    text, audio = config["text_config"], config["audio_config"]
    text.pop("dtype", None)
    # Else `generate` takes the prompt's text, which is of zeros, for padding.
    text["pad_token_id"] = 9 if family == "gemma4" else None
    if family == "gemma4":
        text["vocab_size_per_layer_input"] = text["vocab_size"]
        config["vision_config"]["position_embedding_size"] = 512
        audio["num_hidden_layers"] = layers
        return config
    if "vision_config" in config:
        config["vision_config"] |= {"spatial_merge_size": 2, "out_hidden_size": text["hidden_size"]}
    tower = {
        "d_model": 32,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "encoder_layers": layers,
        "num_mel_bins": 128,
    }
    sizes = {"downsample_hidden_size": 4, "max_source_positions": 50 * SECONDS, "activation_function": "gelu"}
    config["audio_config"] = {**tower, **sizes, "output_dim": text["hidden_size"]}
    return config


def heard(config: Mapping[str, Any], *seconds: float, seen: tuple[Typed, ...] = ()) -> Media:
    """Clips of audio of so many seconds, and images and videos before them.

    Gemma 4's projection of frames takes as many numbers of each as it has channels.
    """
    gemma = config["model_type"] == "gemma4"
    file = {"feature_size": config["audio_config"]["subsampling_conv_channels"][0]} if gemma else {"feature_size": 128}
    clips = tuple(TypedAudio(text="", samples=round(1000 * length), rate=1000) for length in seconds)
    part = {"feature_extractor": {**file, **({} if gemma else {"chunk_length": SECONDS})}}
    return media_of(config, {"processor_config.json": part}, Request(typed=seen, audio=clips))

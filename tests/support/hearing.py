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


def speaking(family: str) -> dict[str, Any]:
    """A small whole model: the thinker, and a talker and a decoder of its codes, which speak."""
    thinker = hearing(family)
    del thinker["architectures"]
    hidden, heads = thinker["text_config"]["hidden_size"], {"num_attention_heads": 4, "num_key_value_heads": 2}
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, **heads, "head_dim": 8}
    if family == "qwen2_5_omni_thinker":
        codes = {name: 60 + index for index, name in enumerate(("start", "end", "pad", "mask"))}
        talker = {"vocab_size": 64, "embedding_size": hidden, **sizes, "rope_parameters": rope}
        talker |= {f"tts_codec_{name}_token_id": code for name, code in codes.items()}
        encoder: dict[str, Any] = {
            "enc_dim": 16,
            "enc_emb_dim": 12,
            "enc_channels": [16, 16, 16, 16, 48],
            "enc_res2net_scale": 2,
        }
        encoder |= {"enc_attention_channels": 8, "enc_se_channels": 8}
        dit: dict[str, Any] = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "head_dim": 16,
            "emb_dim": 16,
        }
        dit |= {"ff_mult": 2, "num_embeds": 65, "mel_dim": 8, "block_size": 4, **encoder}
        dit |= {"look_ahead_layers": [1], "look_backward_layers": [0]}
        vocoder: dict[str, Any] = {"mel_dim": 8, "upsample_initial_channel": 64, "upsample_rates": [2, 2]}
        vocoder |= {
            "upsample_kernel_sizes": [4, 4],
            "resblock_kernel_sizes": [3],
            "resblock_dilation_sizes": [[1, 3, 5]],
        }
        speech = {"talker_config": talker, "token2wav_config": {"dit_config": dit, "bigvgan_config": vocoder}}
        name = "Qwen2_5OmniForConditionalGeneration"
    else:
        # As many experts as the thinker has.
        experts = {"num_experts": thinker["text_config"]["num_experts"], "num_experts_per_tok": 2}
        text = {"vocab_size": 96, **sizes, **experts, "moe_intermediate_size": 16, "rope_parameters": rope}
        text["shared_expert_intermediate_size"] = 24
        groups = {"num_code_groups": 4}
        talker = {"text_config": text, "code_predictor_config": {"vocab_size": 64, **sizes, **groups}, **groups}
        talker |= {"thinker_hidden_size": hidden, "accept_hidden_layer": 1, "speaker_id": {"ethan": 90}}
        talker["spatial_merge_size"] = 2
        decoder = {**sizes, "codebook_size": 64, "num_quantizers": 4, "upsample_rates": [2, 2], "decoder_dim": 48}
        decoder |= {"upsampling_ratios": [2], "sliding_window": 8, "num_key_value_heads": 4}
        speech = {"talker_config": talker, "code2wav_config": decoder}
        name = "Qwen3OmniMoeForConditionalGeneration"
    whole = {"model_type": family.removesuffix("_thinker"), "architectures": [name], "dtype": "bfloat16"}
    return {**whole, "thinker_config": thinker, **speech, "enable_audio_output": True}

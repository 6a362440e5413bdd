"""Families known by their modules: small random configurations of each, and what transformers builds and keeps for them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from qwen_inspect.architectures import Architecture, architecture_of
from qwen_inspect.architectures.generic import read_generic
from qwen_inspect.errors import QwenInspectError
from qwen_inspect.spec import each_tensor
from qwen_inspect.tracing.cached import found_cache

from .small_models import small_config

Change = Callable[[random.Random, dict[str, Any]], None]


def heads(chance: random.Random, text: dict[str, Any]) -> None:
    """Other heads, sizes, vocabulary, depth and tying."""
    text["num_key_value_heads"] = chance.choice([1, 2, 3])
    text["num_attention_heads"] = text["num_key_value_heads"] * chance.choice([1, 2, 4])
    text["head_dim"] = chance.choice([8, 16, 24])
    text["hidden_size"] = text["num_attention_heads"] * chance.choice([8, 16])
    text["intermediate_size"] = chance.choice([40, 96, 136])
    text["vocab_size"] = chance.choice([128, 200])
    text["num_hidden_layers"] = chance.choice([1, 3, 4])
    text["tie_word_embeddings"] = chance.random() < 0.5
    text["rms_norm_eps"] = chance.choice([1e-5, 1e-6])
    text["max_position_embeddings"] = chance.choice([64, 512])


def spans(chance: random.Random, text: dict[str, Any]) -> None:
    """Perhaps layers of several types."""
    text["sliding_window"] = chance.choice([None, None, 4, 8])
    kinds = ["full_attention", *(["sliding_attention"] if text["sliding_window"] else [])]
    if chance.random() < 0.5:
        text["layer_types"] = [chance.choice(kinds) for _ in range(text["num_hidden_layers"])]


def flags(*keys: str) -> Change:
    """Each of these keys true or false."""

    def change(chance: random.Random, text: dict[str, Any]) -> None:
        for key in keys:
            text[key] = chance.random() < 0.5

    return change


def choices(**values: list[Any]) -> Change:
    """Each key one of its values."""

    def change(chance: random.Random, text: dict[str, Any]) -> None:
        for key, options in values.items():
            text[key] = chance.choice(options)

    return change


def without(*keys: str) -> Change:
    """Some of these keys are missing, so that the class's own default holds."""

    def change(chance: random.Random, text: dict[str, Any]) -> None:
        for key in keys:
            if chance.random() < 0.3:
                text.pop(key, None)

    return change


def repeated_types(*kinds: str) -> Change:
    """Perhaps a type for each layer, of these."""

    def change(chance: random.Random, text: dict[str, Any]) -> None:
        if chance.random() < 0.5:
            text["layer_types"] = [chance.choice(kinds) for _ in range(text["num_hidden_layers"])]

    return change


def rotations(*kinds: str, partial: bool = False, **others: Any) -> Change:
    """RoPE of one of these types, its parameters under either key. partial: perhaps for a part of each head; others: more
    parameters of the scaled types."""

    def change(chance: random.Random, text: dict[str, Any]) -> None:
        kind = chance.choice(kinds)
        rope = {"rope_theta": 10000.0, "rope_type": kind}
        if partial and chance.random() < 0.7:
            (text if chance.random() < 0.3 else rope)["partial_rotary_factor"] = chance.choice([0.25, 0.5, 0.75, 1.0])
        text["rope_parameters"] = rope if kind == "default" else {**rope, "factor": 2.0, **others}
        if chance.random() < 0.3:
            text["rope_scaling"] = text.pop("rope_parameters")

    return change


def scaled_rope(chance: random.Random, text: dict[str, Any]) -> None:
    """Perhaps scaled RoPE, under the older key."""
    if chance.random() < 0.3:
        text["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}


def few_experts(chance: random.Random, text: dict[str, Any]) -> None:
    """No more experts per token than experts; their number perhaps under its other name."""
    text["num_experts_per_tok"] = min(text["num_experts_per_tok"], text["num_local_experts"])
    if chance.random() < 0.3:
        text["num_experts"] = text.pop("num_local_experts")


def pixtral(chance: random.Random, config: dict[str, Any]) -> None:
    """Another tower."""
    heads = chance.choice([1, 2, 3])
    config["vision_config"] = {
        "model_type": "pixtral",
        "hidden_size": chance.choice([8, 20]) * heads,
        "intermediate_size": chance.choice([24, 40]),
        "num_attention_heads": heads,
        "num_hidden_layers": chance.choice([1, 2, 3]),
        "num_channels": chance.choice([1, 3]),
        "patch_size": chance.choice([7, 14]),
        "hidden_act": chance.choice(["gelu", "silu"]),
    }
    without("num_channels", "patch_size", "hidden_act", "num_hidden_layers")(chance, config["vision_config"])


def internvl(chance: random.Random, config: dict[str, Any]) -> None:
    """Another tower, and the decoder of any family that releases have."""
    heads = chance.choice([1, 2, 3])
    side = chance.choice([7, 14, [7, 14], [14, 14]])
    config["vision_config"] = {
        "model_type": "internvl_vision",
        "hidden_size": chance.choice([8, 20]) * heads,
        "intermediate_size": chance.choice([24, 40]),
        "num_attention_heads": heads,
        "num_hidden_layers": chance.choice([0, 1, 3]),
        "image_size": chance.choice([28, 48, [28, 56], [56, 42]]),
        "patch_size": side,
        "num_channels": chance.choice([1, 3]),
        "hidden_act": chance.choice(["gelu", "quick_gelu"]),
        "hidden_dropout_prob": chance.choice([0.0, 0.1]),
        "projection_dropout": chance.choice([0.0, 0.5]),
        "norm_type": chance.choice(["layer_norm", "rms_norm"]),
        "layer_norm_eps": chance.choice([1e-5, 1e-6]),
    }
    names = ("attention_bias", "use_absolute_position_embeddings", "use_mask_token", "use_mean_pooling", "use_qk_norm")
    flags(*names)(chance, config["vision_config"])
    without(*names, "model_type", "num_channels", "hidden_act", "layer_norm_eps", "norm_type", "projection_dropout")(
        chance, config["vision_config"]
    )
    kind = chance.choice(["qwen2", "qwen2", "qwen3", "qwen3_moe", "llama", "gpt_oss"])
    if kind != "qwen2":
        text = varied(kind, chance.randrange(10**6)) if kind in VARIED else of_qwen(chance, kind)
        text.pop("dtype")
        config["text_config"] = text


def of_qwen(chance: random.Random, kind: str) -> dict[str, Any]:
    text = small_config(kind)
    for change in (heads, qwen_windows, flags("attention_bias"), without("rms_norm_eps", "use_sliding_window")):
        change(chance, text)
    if kind == "qwen3_moe":
        choices(
            num_local_experts=[4, 6], num_experts_per_tok=[1, 3], mlp_only_layers=[[], [0]], moe_intermediate_size=[24]
        )(chance, text)
    return text


def query_scaling(chance: random.Random, config: dict[str, Any]) -> None:
    """Perhaps the decoder of Ministral 3, which scales late queries."""
    if chance.random() < 0.5:
        text = config["text_config"]
        text |= {"model_type": "ministral3", "head_dim": chance.choice([8, 16])}
        text.pop("rope_scaling", None)
        rotations("yarn", llama_4_scaling_beta=0.1)(chance, text)


def siglip(chance: random.Random, config: dict[str, Any]) -> None:
    """Another tower."""
    heads = chance.choice([1, 2, 3])
    config["vision_config"] = {
        "model_type": "siglip_vision_model",
        "hidden_size": 8 * heads,
        "intermediate_size": chance.choice([24, 40]),
        "num_attention_heads": heads,
        "num_hidden_layers": chance.choice([1, 2, 3]),
        "image_size": chance.choice([28, 42, 48]),
        "patch_size": chance.choice([6, 7, 14]),
        "num_channels": chance.choice([1, 3]),
        "hidden_act": chance.choice(["gelu_pytorch_tanh", "quick_gelu"]),
        "layer_norm_eps": chance.choice([1e-5, 1e-6]),
        "vision_use_head": chance.random() < 0.5,
    }
    without("model_type", "num_channels", "hidden_act", "layer_norm_eps", "vision_use_head")(
        chance, config["vision_config"]
    )


TYPES = ("full_attention", "sliding_attention")
GEMMA: tuple[Change, ...] = (
    heads,
    choices(hidden_activation=["gelu_pytorch_tanh", "silu"], sliding_window=[8, 12], pad_token_id=[0, 3, None]),
    flags("attention_bias"),
    without("attention_bias", "rms_norm_eps", "pad_token_id", "tie_word_embeddings", "hidden_activation"),
)


def newer_key(chance: random.Random, text: dict[str, Any]) -> None:
    """RoPE's parameters under their newer key."""
    if "rope_scaling" in text:
        text["rope_parameters"] = text.pop("rope_scaling")


def long_rotations(chance: random.Random, text: dict[str, Any]) -> None:
    """Perhaps Phi-3's long contexts: a factor for each pair of channels that turn."""
    if chance.random() < 0.5 and "head_dim" not in text:
        share = chance.choice([0.5, 0.75, 1.0])
        pairs = int(text["hidden_size"] // text["num_attention_heads"] * share) // 2
        kind = {chance.choice(["type", "rope_type"]): chance.choice(["longrope", "yarn"])}
        text["partial_rotary_factor"] = share
        text["rope_scaling"] = {**kind, "short_factor": [1.0] * pairs, "long_factor": [2.0] * pairs}
        text.pop("rope_parameters", None)


def dropped(*keys: str) -> Change:
    """These keys are missing."""

    def change(chance: random.Random, text: dict[str, Any]) -> None:
        for key in keys:
            text.pop(key, None)

    return change


USUAL_ROTATIONS = ("default", "linear", "yarn", "proportional")  # dynamic does not run on meta


def mamba2(heads: str, head_dim: str, groups: str, state: str, kernel: str) -> Change:
    """Other sizes of Mamba-2 under these keys; groups divide the heads."""

    def change(chance: random.Random, text: dict[str, Any]) -> None:
        text[groups] = chance.choice([1, 2])
        text[heads] = text[groups] * chance.choice([2, 4])
        text[head_dim] = chance.choice([8, 16])
        text[state] = chance.choice([8, 16])
        text[kernel] = chance.choice([2, 4])

    return change


def layers_of(key: str, *kinds: str, always: str = "full_attention") -> Change:
    """Some layers of these types, and one of `always`, without which transformers' forward fails."""

    def change(chance: random.Random, text: dict[str, Any]) -> None:
        types = [*chance.choices(kinds, k=chance.choice([2, 4, 6])), always]
        chance.shuffle(types)
        text[key], text["num_hidden_layers"] = types, len(types)

    return change


def classes(*names: str) -> Change:
    """The configuration names one of these classes."""

    def change(chance: random.Random, text: dict[str, Any]) -> None:
        text["architectures"] = [chance.choice(names)]

    return change


def nemotron_pattern(chance: random.Random, text: dict[str, Any]) -> None:
    """Layers as a release states them: by letters."""
    if chance.random() < 0.5:
        types = text.pop("layers_block_type")
        letters = {"linear_attention": "M", "mamba": "M", "moe": "E", "full_attention": "*", "mlp": "-"}
        text["hybrid_override_pattern"] = "".join(letters[kind] for kind in types)


def falcon_widths(chance: random.Random, text: dict[str, Any]) -> None:
    """The channels of Mamba-2 as releases of Falcon-H1 state them: by number, or by the expansion."""
    text["mamba_d_ssm"] = text["mamba_n_heads"] * text["mamba_d_head"]
    if chance.random() < 0.3 and text["hidden_size"] % text["mamba_n_heads"] == 0:
        text |= {"mamba_d_ssm": None, "mamba_expand": 2}
        text["mamba_d_head"] = 2 * text["hidden_size"] // text["mamba_n_heads"]
    if chance.random() < 0.3:
        text["mamba_d_head"] = "auto"


def granite_widths(chance: random.Random, text: dict[str, Any]) -> None:
    """The channels of Mamba-2 are twice the hidden size; layers perhaps under their older name."""
    text["mamba_expand"] = 2
    text["mamba_d_head"] = 2 * text["hidden_size"] // text["mamba_n_heads"]
    if 2 * text["hidden_size"] % text["mamba_n_heads"]:
        text["mamba_n_heads"] = text["mamba_n_groups"] * 2
        text["mamba_d_head"] = "auto"


def lfm2_layers(chance: random.Random, text: dict[str, Any]) -> None:
    """Convolutions and at least one layer of attention, by types or, for the dense class, by indexes."""
    types = [*chance.choices(["conv", "full_attention"], k=chance.choice([1, 3, 5])), "full_attention"]
    chance.shuffle(types)
    text |= {"layer_types": types, "num_hidden_layers": len(types)}
    if text["model_type"] == "lfm2":
        text["full_attn_idxs"] = [index for index, kind in enumerate(types) if kind != "conv"]
        for key in chance.choice([["layer_types"], ["full_attn_idxs"], ["layer_types", "full_attn_idxs"], []]):
            del text[key]
    if chance.random() < 0.3:
        text["tie_embedding"] = not text["tie_word_embeddings"]


def bamba_layers(chance: random.Random, text: dict[str, Any]) -> None:
    """At least one layer of attention; Mamba-2's heads share the expanded width."""
    layers = text["num_hidden_layers"] = chance.choice([2, 4, 5])
    text["attn_layer_indices"] = chance.sample(range(layers), k=chance.choice([1, 2]))
    text["mamba_expand"] = chance.choice([1, 2])
    text["mamba_d_head"] = "auto" if chance.random() < 0.3 else chance.choice([4, 8])
    head_dim = 8 if text["mamba_d_head"] == "auto" else text["mamba_d_head"]
    text["mamba_n_heads"] = text["mamba_expand"] * text["hidden_size"] // head_dim
    text["mamba_n_groups"] = chance.choice([1, 2]) if text["mamba_n_heads"] % 2 == 0 else 1
    text["mamba_d_state"], text["mamba_d_conv"] = chance.choice([8, 16]), chance.choice([2, 4])


def jamba_layers(chance: random.Random, text: dict[str, Any]) -> None:
    """At least one layer of attention; experts on some layers or on none."""
    text["num_hidden_layers"] = chance.choice([4, 6])
    text["attn_layer_period"] = chance.choice([1, 2, 4])
    text["attn_layer_offset"] = chance.randrange(text["attn_layer_period"])
    text["expert_layer_period"] = chance.choice([1, 2, 3])
    text["expert_layer_offset"] = chance.randrange(text["expert_layer_period"])
    text[chance.choice(["num_experts", "num_local_experts"])] = chance.choice([4, 6])
    if chance.random() < 0.2:
        text |= {"num_experts": 1, "num_experts_per_tok": 1}
        text.pop("num_local_experts", None)


def qwen_windows(chance: random.Random, text: dict[str, Any]) -> None:
    """Windows as Qwen2 and Qwen3 state them."""
    text |= {"sliding_window": chance.choice([4, 8]), "max_window_layers": chance.choice([0, 2])}
    text["use_sliding_window"] = chance.random() < 0.4
    if chance.random() < 0.3:
        text["layer_types"] = ["full_attention"] * text["num_hidden_layers"]


def three_axes(chance: random.Random, text: dict[str, Any]) -> None:
    """RoPE of time, height and width, which share half of a head."""
    half = text["head_dim"] // 2
    sections = [half - 2 * (half // 3), half // 3, half // 3]
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}


def omni_towers(chance: random.Random, config: dict[str, Any]) -> None:
    """Another encoder of audio and another vision tower."""
    audio_encoder(chance, config)
    qwen3_tower(chance, config)
    config["vision_config"]["deepstack_visual_indexes"] = chance.choice([[], [0], [0, 1, 2]])


def audio_encoder(chance: random.Random, config: dict[str, Any]) -> None:
    """Another encoder of audio, its sizes under either of their names."""
    heads = chance.choice([1, 2])
    encoder = {
        "num_mel_bins": chance.choice([16, 21]),
        "encoder_layers": chance.choice([1, 2]),
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": chance.choice([24, 40]),
        "d_model": 8 * heads,
        "activation_function": chance.choice(["gelu", "silu"]),
        "max_source_positions": chance.choice([16, 20]),
        "output_dim": chance.choice([32, 48]),
        "downsample_hidden_size": chance.choice([4, 6]),
    }
    if chance.random() < 0.5:
        encoder["hidden_size"], encoder["num_hidden_layers"] = encoder.pop("d_model"), encoder.pop("encoder_layers")
    config["audio_config"] = encoder
    without("num_mel_bins", "activation_function", "max_source_positions", "output_dim", "downsample_hidden_size")(
        chance, encoder
    )
    without("tie_word_embeddings")(chance, config)


def shared_heads(**keys: str) -> Change:
    """Heads that share the hidden size, under these keys (hidden, heads, layers)."""

    def change(chance: random.Random, text: dict[str, Any]) -> None:
        heads = chance.choice([2, 4])
        for key, value in (
            ("hidden", heads * chance.choice([8, 16])),
            ("heads", heads),
            ("layers", chance.choice([1, 3])),
        ):
            text[keys[key]] = value
        text["tie_word_embeddings"] = chance.random() < 0.5
        text["vocab_size"] = chance.choice([128, 200])

    return change


def older_names(chance: random.Random, text: dict[str, Any]) -> None:
    """GPT-2's sizes perhaps under the names that newer configurations have."""
    if chance.random() < 0.4:
        text["hidden_size"], text["num_hidden_layers"] = text.pop("n_embd"), text.pop("n_layer")


def falcon_heads(chance: random.Random, text: dict[str, Any]) -> None:
    """Keys and values of Falcon's two architectures."""
    text["new_decoder_architecture"] = chance.random() < 0.5
    text["num_kv_heads"] = 2 if text["new_decoder_architecture"] else chance.choice([None, text["num_attention_heads"]])
    text["num_ln_in_parallel_attn"] = chance.choice([None, 1, 2]) if text["new_decoder_architecture"] else None
    text["parallel_attn"] = text["new_decoder_architecture"] or chance.random() < 0.5


def mamba2_width(chance: random.Random, text: dict[str, Any]) -> None:
    """Mamba-2 alone: heads and hidden size agree."""
    text["expand"] = chance.choice([1, 2])
    text["hidden_size"] = text["num_heads"] * text["head_dim"] // text["expand"]


def mamba1_width(chance: random.Random, text: dict[str, Any]) -> None:
    """Mamba's channels and rank, stated or derived."""
    if chance.random() < 0.6:
        del text["intermediate_size"]
    if chance.random() < 0.5:
        text["time_step_rank"] = "auto"


# Mamba and Falcon-Mamba
MAMBA1: tuple[Change, ...] = (
    choices(
        hidden_size=[24, 64],
        state_size=[8, 16],
        num_hidden_layers=[1, 3],
        vocab_size=[128, 200],
        expand=[1, 2, 3],
        conv_kernel=[2, 4],
        layer_norm_epsilon=[1e-5, 1e-6],
    ),
    flags("tie_word_embeddings", "use_bias", "use_conv_bias"),
    mamba1_width,
    without("conv_kernel", "tie_word_embeddings", "state_size", "time_step_rank"),
)


GEMMA3: tuple[Change, ...] = (
    *GEMMA,
    repeated_types(*TYPES),
    choices(sliding_window_pattern=[1, 2, 6], use_bidirectional_attention=[False, False, True]),
    without("sliding_window_pattern"),
    scaled_rope,
)


def latent(chance: random.Random, text: dict[str, Any]) -> None:
    """Other sizes of latent attention and of routed experts."""
    heads(chance, text)
    text.pop("head_dim", None)
    text["num_key_value_heads"] = text["num_attention_heads"] = chance.choice([2, 3, 4])
    text["hidden_size"] = text["num_attention_heads"] * chance.choice([8, 16])
    for key, options in {
        "q_lora_rank": [12, 24],
        "kv_lora_rank": [8, 20],
        "qk_nope_head_dim": [8, 12],
        "qk_rope_head_dim": [4, 8],
        "v_head_dim": [8, 16],
        "index_head_dim": [8, 16],
        "index_n_heads": [1, 3],
    }.items():
        if key in text:
            text[key] = chance.choice(options)
    routed(chance, text)


def routed(chance: random.Random, text: dict[str, Any]) -> None:
    """Other experts, and shared ones, after some dense layers."""
    key = next(key for key in ("n_routed_experts", "num_experts", "num_local_experts") if key in text)
    text[key] = chance.choice([4, 6])
    text["num_experts_per_tok"] = chance.choice([1, 2])
    text["moe_intermediate_size"] = chance.choice([16, 24])
    text["n_shared_experts"] = chance.choice([1, 2])
    text["first_k_dense_replace"] = chance.choice([0, 1, text["num_hidden_layers"]])


def typed_mlps(chance: random.Random, text: dict[str, Any]) -> None:
    """Perhaps the kind of each layer's MLP."""
    text.pop("mlp_layer_types", None)
    if chance.random() < 0.5:
        text["mlp_layer_types"] = [chance.choice(["dense", "sparse"]) for _ in range(text["num_hidden_layers"])]


def indexers(chance: random.Random, text: dict[str, Any]) -> None:
    """Layers that use the index of an earlier one, as GLM-5's keys say it in three ways."""
    text.pop("indexer_types", None)
    kinds = ["full", *(chance.choice(["full", "shared"]) for _ in range(text["num_hidden_layers"] - 1))]
    way = chance.choice(["types", "pattern", "frequency", "default"])
    if way == "types":
        text["indexer_types"] = kinds
    elif way == "pattern":
        text["index_topk_pattern"] = "".join(kind[0].upper() for kind in kinds)
    elif way == "frequency":
        text |= {"index_topk_freq": chance.choice([1, 2, 3]), "index_skip_topk_offset": chance.choice([1, 2])}


def ropes(chance: random.Random, text: dict[str, Any]) -> None:
    """Perhaps RoPE scaled as YaRN does."""
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    text["rope_parameters"] = chance.choice([{"rope_type": "default", "rope_theta": 1e4}, yarn])


def gemma4(chance: random.Random, text: dict[str, Any]) -> None:
    """Global heads, shared caches, and experts, in layers of both types."""
    text["num_attention_heads"] = 4
    text["num_key_value_heads"], text["num_global_key_value_heads"] = chance.choice([1, 2]), chance.choice([None, 1, 2])
    text["global_head_dim"] = chance.choice([16, 32])
    layers = text["num_hidden_layers"] = chance.choice([1, 4, 7])
    text.pop("layer_types", None)
    if chance.random() < 0.5:
        text["layer_types"] = [chance.choice(TYPES) for _ in range(layers)]
        if layers > 4:
            text["layer_types"][:2] = TYPES
            if text[
                "hidden_size_per_layer_input"
            ]:  # without these inputs, transformers' forward of shared caches fails
                text["num_kv_shared_layers"] = chance.choice([0, 1, 4])
    text["enable_moe_block"] = chance.random() < 0.4
    if chance.random() < 0.6 or text["enable_moe_block"]:
        text |= {"num_experts": 4, "top_k_experts": chance.choice([1, 3]), "moe_intermediate_size": 24}
    if chance.random() < 0.3:
        text["rope_parameters"] = {
            kind: {"rope_type": chance.choice(["default", "proportional"]), "rope_theta": 1e4} for kind in TYPES
        }


def gemma4_towers(chance: random.Random, config: dict[str, Any]) -> None:
    """Perhaps towers."""
    config.pop("vision_config", None)
    config.pop("audio_config", None)
    if chance.random() < 0.7:
        config["vision_config"] = {
            "hidden_size": chance.choice([16, 24]),
            "intermediate_size": chance.choice([24, 40]),
            "num_hidden_layers": chance.choice([1, 2]),
            "num_attention_heads": 2,
            "num_key_value_heads": chance.choice([1, 2]),
            "head_dim": chance.choice([8, 12, 20]),
            "patch_size": chance.choice([4, 6]),
            "position_embedding_size": chance.choice([10, 20]),
            "use_clipped_linears": chance.random() < 0.5,
            "standardize": chance.random() < 0.5,
            "hidden_activation": chance.choice(["silu", "gelu_pytorch_tanh"]),
        }
    if chance.random() < 0.7:
        config["audio_config"] = {
            "hidden_size": chance.choice([16, 18]),
            "num_hidden_layers": chance.choice([1, 2]),
            "num_attention_heads": chance.choice([2, 4]),
            "hidden_act": chance.choice(["silu", "relu"]),
            "subsampling_conv_channels": [chance.choice([8, 10]), 6],
            "conv_kernel_size": chance.choice([3, 5]),
            "use_clipped_linears": chance.random() < 0.5,
            "rms_norm_eps": chance.choice([1e-5, 1e-6]),
            "output_proj_dims": chance.choice([12, 20]),
        }
    for key in ("vision_config", "audio_config"):
        without("use_clipped_linears", "hidden_activation", "rms_norm_eps", "standardize")(chance, config.get(key, {}))


GEMMA4: tuple[Change, ...] = (
    heads,
    choices(
        sliding_window=[8, 12],
        hidden_activation=["gelu_pytorch_tanh", "silu"],
        hidden_size_per_layer_input=[0, 8, 16],
        vocab_size_per_layer_input=[64, 128],
        pad_token_id=[0, 3, None],
        use_bidirectional_attention=[None, None, "vision", "all"],
    ),
    gemma4,
    flags("attention_bias", "attention_k_eq_v", "use_double_wide_mlp"),
    without("attention_bias", "pad_token_id", "tie_word_embeddings", "attention_k_eq_v", "use_bidirectional_attention"),
)


def indexed_hybrid(chance: random.Random, text: dict[str, Any]) -> None:
    """Sizes of Qwen3.8-Flash-Next that must agree: linear heads, layers of both types, tables on linear layers, the index."""
    types = [*chance.choices(["linear_attention", "indexed_attention"], k=chance.choice([1, 2, 4])), "linear_attention"]
    chance.shuffle(types)
    types.insert(chance.randrange(len(types)), chance.choice(["indexed_attention", "full_attention"]))
    linear = [index + 1 for index, kind in enumerate(types) if kind == "linear_attention"]
    text |= {
        "layer_types": types,
        "num_hidden_layers": len(types),
        "ple_layer_ids": chance.sample(linear, k=min(len(linear), chance.choice([0, 1, 2]))),
        "linear_num_key_heads": chance.choice([1, 2]),
        "linear_num_value_heads": chance.choice([2, 4]),
        "linear_key_head_dim": chance.choice([8, 16]),
        "linear_value_head_dim": chance.choice([8, 16]),
        "linear_conv_kernel_dim": chance.choice([2, 4]),
        "ngram_size": chance.choice([2, 3]),
        "heads_per_ngram": chance.choice([1, 2]),
        "ple_embed_dim": chance.choice([None, 32, 64]),
        "indexer_kv_heads": 1,
        "indexer_head_dim": chance.choice([24, 32]),
        "indexer_compress_ratio": chance.choice([2, 4]),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0]},
    }
    text.pop("number_of_conv_states", None)
    text["rope_parameters"]["partial_rotary_factor"] = 4 / text.get("head_dim", 256)
    if chance.random() < 0.3:
        text |= {"full_attention_interval": 2, "num_hidden_layers": 4, "ple_layer_ids": [3]}
        del text["layer_types"]


def qwen3_tower(chance: random.Random, config: dict[str, Any]) -> None:
    """Another vision tower of Qwen3.5's kind."""
    heads = chance.choice([1, 2])
    config["vision_config"] = {
        "depth": chance.choice([1, 2]),
        "hidden_size": 16 * heads,
        "num_heads": heads,
        "intermediate_size": chance.choice([24, 40]),
        "out_hidden_size": chance.choice([24, 64]),
        "num_position_embeddings": chance.choice([16, 25]),
        "patch_size": chance.choice([4, 16]),
    }


# Qwen3.8-Flash-Next, alone or behind its tower
QWEN4: tuple[Change, ...] = (
    heads,
    indexed_hybrid,
    choices(
        hidden_size=[32, 64],
        num_experts=[4, 6],
        num_experts_per_tok=[1, 3],
        moe_intermediate_size=[16, 24],
        shared_expert_intermediate_size=[16, 24],
        hc_count=[2, 4],
        hc_lowrank=[8, 12],
        ple_conv_kernel_size=[2, 4],
        ngram_vocab_size_base=[90, 100, 1000],
        make_ngram_vocab_size_divisible_by=[16, 128],
        split_ngram_parts=[1, 4, 7],
        eos_token_id=[2, [2, 3]],
        output_gate_type=[None, "sigmoid"],
        indexer_n_heads=[2, 4],
        indexer_budget=[8, 16],
    ),
    flags("attention_bias"),
    without("hc_count", "ple_conv_kernel_size", "output_gate_type", "ngram_size", "rms_norm_eps"),
)


def llama4(chance: random.Random, text: dict[str, Any]) -> None:
    """Experts, dense layers and layers without RoPE, listed or by intervals."""
    layers = text["num_hidden_layers"]
    text["num_local_experts"] = chance.choice([1, 2, 4])
    text["num_experts_per_tok"] = min(text["num_local_experts"], chance.choice([1, 2]))
    text["intermediate_size_mlp"] = chance.choice([40, 72])
    text["interleave_moe_layer_step"] = chance.choice([1, 2, 3])
    text["no_rope_layer_interval"] = chance.choice([1, 2, 4])
    text["attention_chunk_size"] = chance.choice([8, 12])
    for key in ("moe_layers", "no_rope_layers", "layer_types"):
        text.pop(key, None)
    if chance.random() < 0.4:
        text["moe_layers"] = sorted(index for index in range(layers) if chance.random() < 0.5)
    if chance.random() < 0.4:
        text["no_rope_layers"] = [chance.choice([0, 1]) for _ in range(layers)]
    if chance.random() < 0.3:
        text["layer_types"] = [chance.choice(["full_attention", "chunked_attention"]) for _ in range(layers)]


def llama4_tower(chance: random.Random, config: dict[str, Any]) -> None:
    """Another tower, and tying as the decoder's configuration has it."""
    heads = chance.choice([1, 2])
    config["vision_config"] = {
        "hidden_size": heads * chance.choice([8, 12]),
        "num_attention_heads": heads,
        "num_hidden_layers": chance.choice([1, 2]),
        "intermediate_size": chance.choice([24, 40]),
        "vision_output_dim": chance.choice([16, 24]),
        "image_size": chance.choice([28, 30]),
        "patch_size": chance.choice([7, 14]),
        "num_channels": chance.choice([1, 3]),
        "projector_input_dim": chance.choice([16, 24]),
        "projector_output_dim": chance.choice([16, 24]),
    }
    without("num_channels", "vision_output_dim")(chance, config["vision_config"])
    config["tie_word_embeddings"] = chance.random() < 0.5


LLAMA4: tuple[Change, ...] = (
    heads,
    llama4,
    flags("attention_bias", "use_qk_norm"),
    without("attention_bias", "use_qk_norm", "tie_word_embeddings", "rms_norm_eps"),
    scaled_rope,
)


def gemma3n(chance: random.Random, text: dict[str, Any]) -> None:
    """Layers that share, MLPs of several widths, and copies of the hidden states."""
    layers = text["num_hidden_layers"] = chance.choice([5, 7, 9])  # more: sparse ones, which do not run on meta
    text["layer_types"] = [*TYPES, *(chance.choice(TYPES) for _ in range(layers - 2))]
    text["num_kv_shared_layers"] = chance.choice([0, 1, 3])
    widths = [chance.choice([24, 40]) for _ in range(layers)]
    text["intermediate_size"] = chance.choice([40, widths])
    text["activation_sparsity_pattern"] = chance.choice([None, [0.0] * layers])
    if text["activation_sparsity_pattern"] is None:
        del text["activation_sparsity_pattern"]
    if chance.random() < 0.5:
        del text["layer_types"]
        text["num_kv_shared_layers"] = layers - 5


def sections(chance: random.Random, text: dict[str, Any]) -> None:
    """RoPE of text, rows and columns side by side, for a half of each head."""
    head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    half = int(head_dim * 0.5) // 2
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "mrope_section": [half - 2 * (half // 3), half // 3, half // 3],
    }


def delta(chance: random.Random, text: dict[str, Any]) -> None:
    """Other sizes of delta attention, and layers of both types, as releases and as transformers state them."""
    text["num_experts_per_token"] = text.pop("num_experts_per_tok")
    text["num_shared_experts"] = text.pop("n_shared_experts")
    text["num_expert_group"] = 1
    sizes = {"linear_head_dim": [8, 16], "linear_num_heads": [1, 2, 3], "linear_conv_kernel_dim": [2, 4]}
    for key, options in sizes.items():
        text[key] = chance.choice(options)
    layers = text["num_hidden_layers"] = chance.choice([2, 4])
    full = sorted(chance.sample(range(layers), chance.choice([1, 2])))
    if text["model_type"] == "kimi_linear" and chance.random() < 0.5:
        text["linear_attn_config"] = {
            "full_attn_layers": [index + 1 for index in full],
            "kda_layers": [index + 1 for index in range(layers) if index not in full],
            "head_dim": 8,
            "num_heads": 2,
            "short_conv_kernel_size": 3,
        }
    elif text["model_type"] == "bailing_hybrid" and chance.random() < 0.5:
        text |= {"layer_group_size": 2, "head_dim": chance.choice([8, 16]), "short_conv_kernel_size": 2}
        for key in sizes:
            del text[key]
    else:
        text["layer_types"] = ["full_attention" if index in full else "linear_attention" for index in range(layers)]


# Of each composite model_type what else may vary, in its whole configuration.
def kimi_tower(chance: random.Random, config: dict[str, Any]) -> None:
    """Other sizes of the tower and of the projector."""
    vision = config["vision_config"]
    vision["num_attention_heads"] = chance.choice([1, 2, 4])
    vision["hidden_size"] = vision["num_attention_heads"] * chance.choice([8, 16])
    choices(
        intermediate_size=[24, 40],
        num_hidden_layers=[1, 2],
        patch_size=[4, 14],
        pos_emb_height=[4, 8],
        pos_emb_time=[2, 4],
        merge_kernel_size=[[2, 2], [1, 2]],
        model_type=["kimi_k25_vision", ""],  # Kimi-K2.6 and K2.7 as NVIDIA quantised them have the second
    )(chance, vision)
    config["projection_hidden_size"] = vision["hidden_size"]


def glm_tower(chance: random.Random, config: dict[str, Any]) -> None:
    """Other sizes of the tower."""
    vision = config["vision_config"]
    vision["num_heads"] = chance.choice([1, 2, 4])
    vision["hidden_size"] = vision["num_heads"] * chance.choice([8, 16])
    flags("attention_bias")(chance, vision)
    choices(
        intermediate_size=[24, 40],
        out_hidden_size=[16, 32],
        depth=[1, 2],
        patch_size=[4, 14],
        image_size=[28, 56],
        spatial_merge_size=[1, 2],
        temporal_patch_size=[1, 2],
        rms_norm_eps=[1e-5, 1e-6],
    )(chance, vision)


def pooled_index(chance: random.Random, text: dict[str, Any]) -> None:
    """Delta attention and latent attention without RoPE, whose index reads pools; keys as releases or transformers have them."""
    text["qk_rope_head_dim"] = 0
    text.pop("head_dim", None)
    for key, options in {
        "linear_head_dim": [8, 16],
        "linear_num_heads": [1, 3],
        "linear_conv_kernel_dim": [2, 4],
    }.items():
        text[key] = chance.choice(options)
    if chance.random() < 0.5:
        text["linear_attn_config"] = {"head_dim": 24, "num_heads": 2, "short_conv_kernel_size": 3}
    layers = text["num_hidden_layers"] = chance.choice([4, 5])
    if chance.random() < 0.5:
        kinds = ["full_attention", "linear_attention", "indexed_attention"]
        text["layer_types"] = [
            "linear_attention",
            "indexed_attention",
            *(chance.choice(kinds) for _ in range(layers - 2)),
        ]
    types = text.get("layer_types") or ["linear_attention"] * 3 + ["indexed_attention"] + ["linear_attention"] * 4
    for key in ("indexer_types", "index_topk_pattern", "index_topk_freq", "index_skip_topk_offset"):
        text.pop(key, None)
    if chance.random() < 0.5:  # an index is handed on to the next layer alone
        before = ["linear_attention", *types]
        text["indexer_types"] = [
            "full" if before[index] == "linear_attention" else chance.choice(["full", "shared"])
            for index in range(layers)
        ]


def glm5_tower(chance: random.Random, config: dict[str, Any]) -> None:
    """Other sizes of the tower."""
    glm_tower(chance, config)
    choices(projection_intermediate_size=[24, 40])(chance, config["vision_config"])
    choices(architectures=[["Glm5NextForConditionalGeneration"], ["Glm5NextModel"]])(chance, config)


# transformers would save names that no release has: its renaming of them is no bijection.
RENAMED = {"kimi_k25", "kimi_linear"}


BERT: Mapping[str, list[Any]] = {
    "intermediate_size": [40, 96],
    "type_vocab_size": [1, 2],
    "hidden_act": ["gelu", "relu"],
    "classifier_dropout": [None, 0.2],
}


def encoder(prefix: str, own: Mapping[str, list[Any]] = BERT) -> tuple[Change, ...]:
    """Sizes and classes of BERT's and RoBERTa's families. own: what else varies."""
    kinds = [None, *([f"{prefix}{name}"] for name in ("Model", "ForMaskedLM", "ForSequenceClassification"))]
    return (
        choices(
            num_attention_heads=[1, 2, 4],
            hidden_size=[32, 64],
            num_hidden_layers=[1, 3, 4],
            vocab_size=[128, 200],
            max_position_embeddings=[64, 130],
            pad_token_id=[0, 1],
            **own,
            architectures=kinds,
            id2label=[{"0": "a"}, {"0": "a", "1": "b", "2": "c"}],
        ),
        flags("tie_word_embeddings"),
        without("hidden_act", "pad_token_id", "tie_word_embeddings", "id2label", "type_vocab_size", "architectures"),
    )


# Of each model_type what may vary in its (decoder's) configuration.
VARIED: Mapping[str, tuple[Change, ...]] = {
    "bert": encoder("Bert"),
    "roberta": encoder("Roberta"),
    "xlm-roberta": encoder("XLMRoberta"),
    "distilbert": (
        dropped("dim", "n_heads", "n_layers"),
        *encoder(
            "DistilBert", {"hidden_dim": [40, 96], "activation": ["gelu", "relu"], "seq_classif_dropout": [0.1, 0.2]}
        ),
        without("hidden_dim"),
    ),
    "llama": (
        heads,
        flags("attention_bias", "mlp_bias"),
        without("head_dim", "rms_norm_eps", "mlp_bias"),
        spans,
        rotations(*USUAL_ROTATIONS),
    ),
    "mistral": (
        heads,
        without("head_dim", "rms_norm_eps", "tie_word_embeddings"),
        spans,
        rotations(*USUAL_ROTATIONS),
    ),
    "ministral": (
        heads,
        without("rms_norm_eps", "tie_word_embeddings"),
        spans,
        choices(sliding_window=[4, 8]),
        rotations(*USUAL_ROTATIONS),
    ),
    "ministral3": (
        heads,
        without("rms_norm_eps", "hidden_act"),
        spans,
        rotations("yarn", llama_4_scaling_beta=0.1),
        without("rope_parameters"),
    ),
    "mixtral": (
        heads,
        choices(num_local_experts=[3, 4, 8], num_experts_per_tok=[1, 3]),
        without("head_dim", "num_experts_per_tok", "num_local_experts"),
        spans,
        rotations("default", "linear", "proportional"),
    ),
    "cohere": (
        heads,
        flags("attention_bias", "use_qk_norm"),
        without("head_dim", "tie_word_embeddings", "num_key_value_heads"),
        choices(layer_norm_eps=[1e-5, 1e-6]),
        spans,
        rotations(*USUAL_ROTATIONS),
    ),
    "cohere2": (
        heads,
        flags("attention_bias"),
        without("head_dim", "tie_word_embeddings", "layer_types"),
        spans,
        choices(sliding_window=[4, 8], sliding_window_pattern=[1, 2, 3, 4]),
        without("sliding_window_pattern"),
        rotations(*USUAL_ROTATIONS),
    ),
    "exaone4": (
        heads,
        without("head_dim", "hidden_act", "layer_types", "rms_norm_eps"),
        spans,
        choices(sliding_window=[4, 8], sliding_window_pattern=[1, 2, 3]),
        without("sliding_window_pattern"),
        rotations(*USUAL_ROTATIONS),
    ),
    "granite": (
        heads,
        flags("attention_bias", "mlp_bias"),
        without("head_dim", "num_key_value_heads", "rms_norm_eps"),
        spans,
        rotations(*USUAL_ROTATIONS),
    ),
    "granitemoe": (
        heads,
        flags("attention_bias"),
        choices(num_local_experts=[3, 4, 8], num_experts_per_tok=[1, 3]),
        without("head_dim", "num_experts_per_tok", "num_local_experts"),
        spans,
        rotations(*USUAL_ROTATIONS),
    ),
    "granitemoehybrid": (
        heads,
        flags("attention_bias", "mamba_conv_bias", "mamba_proj_bias"),
        mamba2("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv"),
        granite_widths,
        choices(
            num_local_experts=[0, 3, 8],
            num_experts_per_tok=[1, 3],
            shared_intermediate_size=[24, 40],
            position_embedding_type=["rope", "nope", None],
        ),
        layers_of("layer_types", "linear_attention", "mamba", "attention", "full_attention"),
        without("num_local_experts", "num_experts_per_tok", "mamba_conv_bias", "shared_intermediate_size"),
    ),
    "granitemoeshared": (
        heads,
        flags("attention_bias"),
        choices(num_local_experts=[3, 4, 8], num_experts_per_tok=[1, 3], shared_intermediate_size=[0, 24]),
        without("head_dim", "num_experts_per_tok", "shared_intermediate_size"),
        spans,
        rotations(*USUAL_ROTATIONS),
    ),
    "olmo2": (
        heads,
        flags("attention_bias"),
        without("head_dim", "num_key_value_heads", "tie_word_embeddings"),
        spans,
        rotations(*USUAL_ROTATIONS),
    ),
    "olmo3": (
        heads,
        flags("attention_bias"),
        without("head_dim", "layer_types", "tie_word_embeddings"),
        spans,
        choices(sliding_window=[4, 8]),
        rotations("default", "yarn"),
        without("rope_parameters"),
    ),
    "olmoe": (
        heads,
        flags("attention_bias"),
        choices(num_experts=[3, 4, 9], num_experts_per_tok=[1, 3]),
        without("num_experts", "rms_norm_eps"),
        dropped("head_dim"),
        spans,
        rotations(*USUAL_ROTATIONS),
    ),
    "phi": (
        heads,
        flags("qk_layernorm"),
        choices(layer_norm_eps=[1e-5, 1e-6], resid_pdrop=[0.0, 0.1], embd_pdrop=[0.0, 0.1]),
        dropped("head_dim"),
        spans,
        rotations("default", "linear", "yarn", partial=True),
    ),
    "phi3": (
        heads,
        without("head_dim", "num_key_value_heads", "sliding_window", "resid_pdrop"),
        choices(resid_pdrop=[0.0, 0.1]),
        spans,
        rotations("default", partial=True),
        long_rotations,
    ),
    "seed_oss": (
        heads,
        flags("attention_bias", "attention_out_bias", "mlp_bias"),
        without("attention_bias", "attention_out_bias", "rms_norm_eps"),
        choices(head_dim=[8, 16, None]),
        spans,
        rotations(*USUAL_ROTATIONS),
    ),
    "smollm3": (
        heads,
        flags("attention_bias", "mlp_bias", "use_sliding_window"),
        choices(no_rope_layer_interval=[2, 3, 4]),
        without("head_dim", "no_rope_layers", "layer_types", "tie_word_embeddings"),
        spans,
        rotations(*USUAL_ROTATIONS),
    ),
    "starcoder2": (
        heads,
        flags("use_bias"),
        without("head_dim", "use_bias", "tie_word_embeddings"),
        choices(norm_epsilon=[1e-5, 1e-6], hidden_act=["gelu_pytorch_tanh", "silu"]),
        spans,
        rotations(*USUAL_ROTATIONS),
    ),
    "gemma": (*GEMMA, choices(hidden_act=["gelu", "silu"]), scaled_rope),
    "gemma2": (*GEMMA, repeated_types(*TYPES), scaled_rope),
    "gemma3_text": GEMMA3,
    "gemma3": GEMMA3,
    "gemma4": GEMMA4,
    "gemma4_text": GEMMA4,
    "gpt_oss": (
        heads,
        choices(sliding_window=[8, 12], num_local_experts=[1, 4, 6], num_experts_per_tok=[1, 1, 4]),
        few_experts,
        flags("attention_bias"),
        repeated_types(*TYPES),
        without("attention_bias", "rms_norm_eps", "tie_word_embeddings", "rope_parameters"),
    ),
    "internvl": (heads, qwen_windows, without("head_dim", "rms_norm_eps", "use_sliding_window")),
    "qwen2_audio": (heads, qwen_windows, without("head_dim", "rms_norm_eps", "use_sliding_window")),
    "qwen2_5_omni_thinker": (heads, qwen_windows, three_axes, without("rms_norm_eps", "use_sliding_window")),
    "qwen3_omni_moe_thinker": (
        heads,
        three_axes,
        choices(
            num_experts=[4, 6],
            num_experts_per_tok=[1, 3],
            moe_intermediate_size=[16, 24],
            decoder_sparse_step=[1, 2],
            mlp_only_layers=[[], [0], None],
        ),
        flags("attention_bias"),
        without("rms_norm_eps", "decoder_sparse_step", "mlp_only_layers", "head_dim"),
    ),
    "qwen3_asr": (heads, qwen_windows, flags("attention_bias"), without("rms_norm_eps", "attention_bias")),
    "apertus": (
        heads,
        rotations("default", "linear"),
        flags("attention_bias"),
        choices(hidden_act=["xielu", "xielu", "silu"], pad_token_id=[0, 3, None]),
        without("head_dim", "rms_norm_eps", "pad_token_id", "hidden_act", "rope_parameters"),
        classes("ApertusForCausalLM", "ApertusForCausalLM", "ApertusModel"),
    ),
    "arcee": (
        heads,
        rotations("default", "linear"),
        flags("attention_bias", "mlp_bias"),
        without("head_dim", "rms_norm_eps", "mlp_bias", "hidden_act"),
        classes("ArceeForCausalLM", "ArceeForCausalLM", "ArceeModel"),
    ),
    "nemotron": (
        heads,
        rotations("default", partial=True),
        flags("attention_bias", "mlp_bias"),
        choices(norm_eps=[1e-5, 1e-6]),
        without("head_dim", "norm_eps", "mlp_bias", "hidden_act", "rope_parameters"),
        classes("NemotronForCausalLM", "NemotronForCausalLM", "NemotronModel"),
    ),
    "bloom": (
        shared_heads(hidden="hidden_size", heads="n_head", layers="n_layer"),
        choices(layer_norm_epsilon=[1e-5, 1e-6], attention_dropout=[0.0, 0.1]),
        without("layer_norm_epsilon", "tie_word_embeddings"),
        classes("BloomForCausalLM", "BloomForCausalLM", "BloomModel"),
    ),
    "falcon": (
        shared_heads(hidden="hidden_size", heads="num_attention_heads", layers="num_hidden_layers"),
        falcon_heads,
        flags("bias", "multi_query", "alibi"),
        choices(ffn_hidden_size=[None, 40], layer_norm_epsilon=[1e-5, 1e-6], activation=["gelu", "relu"]),
        without("num_kv_heads", "bias", "ffn_hidden_size", "tie_word_embeddings", "activation"),
        classes("FalconForCausalLM", "FalconForCausalLM", "FalconModel"),
    ),
    "gpt2": (
        shared_heads(hidden="n_embd", heads="n_head", layers="n_layer"),
        choices(
            n_inner=[None, 40], n_positions=[512, 600], activation_function=["gelu_new", "relu"], resid_pdrop=[0.1, 0]
        ),
        older_names,
        without("n_inner", "activation_function", "resid_pdrop", "tie_word_embeddings"),
        classes("GPT2LMHeadModel", "GPT2LMHeadModel", "GPT2Model"),
    ),
    "gpt_neox": (
        shared_heads(hidden="hidden_size", heads="num_attention_heads", layers="num_hidden_layers"),
        choices(rotary_pct=[0.25, 0.5, 1.0], layer_norm_eps=[1e-5, 1e-6], hidden_dropout=[0.0, 0.1]),
        flags("attention_bias"),
        without("rotary_pct", "rope_parameters", "attention_bias", "tie_word_embeddings", "hidden_dropout"),
        classes("GPTNeoXForCausalLM", "GPTNeoXForCausalLM", "GPTNeoXModel"),
    ),
    "mpt": (
        shared_heads(hidden="d_model", heads="n_heads", layers="n_layers"),
        choices(layer_norm_epsilon=[1e-5, 1e-6], attn_config=[{"attn_pdrop": 1}, {}, None]),
        without("layer_norm_epsilon", "attn_config", "tie_word_embeddings"),
        classes("MptForCausalLM", "MptForCausalLM", "MptModel"),
    ),
    "opt": (
        shared_heads(hidden="hidden_size", heads="num_attention_heads", layers="num_hidden_layers"),
        choices(word_embed_proj_dim=[None, 24], ffn_dim=[40, 96], activation_function=["relu", "gelu"]),
        flags("do_layer_norm_before", "enable_bias", "layer_norm_elementwise_affine"),
        without("enable_bias", "pad_token_id", "layer_norm_elementwise_affine", "tie_word_embeddings"),
        classes("OPTForCausalLM", "OPTForCausalLM", "OPTModel"),
    ),
    "bamba": (
        heads,
        bamba_layers,
        rotations("default", "linear", partial=True),
        flags("attention_bias", "mlp_bias", "mamba_conv_bias", "mamba_proj_bias"),
        without("head_dim", "rms_norm_eps", "mamba_conv_bias", "pad_token_id", "mamba_d_conv", "rope_parameters"),
        classes("BambaForCausalLM", "BambaForCausalLM", "BambaModel"),
    ),
    "jamba": (
        heads,
        jamba_layers,
        choices(mamba_d_state=[8, 16], mamba_d_conv=[2, 4], mamba_expand=[1, 2], mamba_dt_rank=["auto", 4, 6]),
        flags("mamba_conv_bias", "mamba_proj_bias"),
        without("head_dim", "rms_norm_eps", "mamba_conv_bias", "pad_token_id", "mamba_dt_rank", "mamba_d_conv"),
        classes("JambaForCausalLM", "JambaForCausalLM", "JambaModel"),
    ),
    "lfm2": (
        heads,
        lfm2_layers,
        choices(
            conv_L_cache=[2, 3, 4],
            block_multiple_of=[16, 256],
            block_ffn_dim_multiplier=[1, 1.0, 1.25],
            norm_eps=[1e-5, 1e-6],
            block_ff_dim=[96, 120],
        ),
        flags("conv_bias", "block_auto_adjust_ff_dim"),
        without(
            "head_dim", "conv_L_cache", "block_ff_dim", "block_auto_adjust_ff_dim", "tie_word_embeddings", "norm_eps"
        ),
        classes("Lfm2ForCausalLM", "Lfm2ForCausalLM", "Lfm2Model"),
    ),
    "lfm2_moe": (
        heads,
        lfm2_layers,
        choices(
            conv_L_cache=[2, 3],
            num_dense_layers=[0, 1, 2],
            num_experts=[4, 6],
            num_experts_per_tok=[1, 3],
            moe_intermediate_size=[24, 40],
        ),
        flags("conv_bias", "use_expert_bias"),
        without("head_dim", "conv_L_cache", "use_expert_bias", "tie_word_embeddings", "num_dense_layers"),
        classes("Lfm2MoeForCausalLM", "Lfm2MoeForCausalLM", "Lfm2MoeModel"),
    ),
    "falcon_h1": (
        heads,
        mamba2("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv"),
        falcon_widths,
        flags("attention_bias", "mlp_bias", "mamba_proj_bias", "mamba_rms_norm", "projectors_bias", "mamba_conv_bias"),
        without("head_dim", "rms_norm_eps", "mamba_rms_norm", "pad_token_id", "mamba_conv_bias", "mamba_d_conv"),
        classes("FalconH1ForCausalLM", "FalconH1ForCausalLM", "FalconH1Model"),
    ),
    "mamba": (*MAMBA1, classes("MambaForCausalLM", "MambaModel")),
    "falcon_mamba": (
        *MAMBA1,
        choices(mixer_rms_eps=[1e-6, 1e-5]),
        classes("FalconMambaForCausalLM", "FalconMambaModel"),
    ),
    "mamba2": (
        mamba2("num_heads", "head_dim", "n_groups", "state_size", "conv_kernel"),
        mamba2_width,
        flags("tie_word_embeddings", "use_bias", "use_conv_bias"),
        choices(num_hidden_layers=[1, 3], vocab_size=[128, 200], layer_norm_epsilon=[1e-5, 1e-6]),
        without("conv_kernel", "tie_word_embeddings", "use_conv_bias"),
        classes("Mamba2ForCausalLM", "Mamba2Model"),
    ),
    "nemotron_h": (
        heads,
        mamba2("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel"),
        layers_of("layers_block_type", "linear_attention", "mamba", "moe", "full_attention", "mlp"),
        nemotron_pattern,
        flags("mlp_bias", "use_bias", "use_conv_bias"),
        choices(
            n_routed_experts=[4, 6],
            num_experts_per_tok=[1, 3],
            moe_intermediate_size=[24, 32],
            moe_shared_expert_intermediate_size=[24, 40],
            moe_latent_size=[None, 16],
            mlp_hidden_act=["relu2", "silu"],
            layer_norm_epsilon=[1e-5, 1e-6],
        ),
        without("head_dim", "layers_block_type", "moe_latent_size", "mlp_hidden_act", "use_conv_bias", "conv_kernel"),
        classes("NemotronHForCausalLM", "NemotronHForCausalLM", "NemotronHModel"),
    ),
    "mistral3": (heads, without("head_dim", "rms_norm_eps"), spans, rotations(*USUAL_ROTATIONS)),
    "mistral4": (
        latent,
        flags("attention_bias"),
        choices(q_lora_rank=[None, 12]),
        rotations("yarn", llama_4_scaling_beta=0.1),
        newer_key,
        without("rope_parameters", "rms_norm_eps", "first_k_dense_replace"),
    ),
    "deepseek_v2": (
        latent,
        ropes,
        flags("attention_bias", "mlp_bias"),
        without("mlp_bias", "rms_norm_eps"),
        choices(q_lora_rank=[None, 12]),
    ),
    "deepseek_v3": (latent, ropes, flags("attention_bias"), without("rms_norm_eps"), choices(q_lora_rank=[None, 12])),
    "deepseek_v32": (latent, ropes, flags("attention_bias"), typed_mlps, without("rms_norm_eps", "layer_types")),
    "glm4_moe_lite": (latent, ropes, flags("attention_bias"), typed_mlps, choices(q_lora_rank=[None, 12])),
    "glm_moe_dsa": (
        latent,
        ropes,
        flags("attention_bias"),
        typed_mlps,
        indexers,
        without("rms_norm_eps", "first_k_dense_replace"),
    ),
    "glm5_next": (
        latent,
        pooled_index,
        flags("attention_bias"),
        typed_mlps,
        choices(hc_mult=[1, 2, 4], index_kpool=[4, 8, 16], hc_sinkhorn_iters=[1, 3]),
        without("rms_norm_eps", "index_kpool"),
    ),
    "qwen4_exp": QWEN4,
    "qwen4_exp_text": QWEN4,
    "llama4": LLAMA4,
    "llama4_text": LLAMA4,
    "gemma3n_text": (
        heads,
        gemma3n,
        choices(
            sliding_window=[8, 12],
            altup_num_inputs=[1, 2, 4],
            laurel_rank=[4, 8],
            hidden_size_per_layer_input=[8, 16],
            vocab_size_per_layer_input=[64, 128],
            pad_token_id=[0, 3, None],
        ),
        flags("attention_bias"),
        without("attention_bias", "pad_token_id", "tie_word_embeddings", "altup_num_inputs", "laurel_rank"),
        scaled_rope,
    ),
    "glm": (heads, flags("attention_bias"), rotations("default", "yarn", partial=True), spans, without("head_dim")),
    "glm4": (
        heads,
        flags("attention_bias"),
        rotations("default", "yarn", partial=True),
        spans,
        without("rms_norm_eps"),
    ),
    "glm4_moe": (
        heads,
        routed,
        flags("attention_bias", "use_qk_norm"),
        rotations("default", "yarn", partial=True),
        spans,
        without("head_dim", "first_k_dense_replace", "use_qk_norm", "attention_bias"),
    ),
    "glm4v": (heads, dropped("head_dim"), sections, without("rms_norm_eps")),
    "glm4v_moe": (heads, routed, flags("attention_bias"), without("head_dim", "first_k_dense_replace"), sections),
    "kimi_k25": (latent, flags("attention_bias"), choices(q_lora_rank=[None, 12])),
    "kimi_linear": (latent, delta, flags("attention_bias"), typed_mlps, choices(q_lora_rank=[None, 12])),
    "bailing_hybrid": (latent, delta, flags("attention_bias"), typed_mlps, without("first_k_dense_replace")),
    "minimax_m2": (
        heads,
        choices(num_local_experts=[3, 4, 8], num_experts_per_tok=[1, 3]),
        rotations("default", "yarn", partial=True),
        choices(rotary_dim=[8, None]),
        spans,
    ),
    "ernie4_5": (
        heads,
        flags("use_bias"),
        rotations("default", "yarn"),
        spans,
        choices(head_dim=[8, None]),
        without("tie_word_embeddings", "use_bias"),
    ),
    "ernie4_5_moe": (
        heads,
        flags("use_bias"),
        rotations("default", "yarn"),
        spans,
        choices(
            moe_num_experts=[3, 4],
            moe_k=[1, 2],
            moe_intermediate_size=[16, 24],
            moe_num_shared_experts=[0, 1, 2],
            moe_layer_start_index=[0, 1],
            moe_layer_end_index=[-1, 2, 9],
            moe_layer_interval=[1, 2],
        ),
        without("head_dim", "tie_word_embeddings", "moe_layer_end_index", "moe_layer_interval"),
    ),
    "hunyuan_v1_dense": (
        heads,
        flags("attention_bias"),
        rotations("default", "linear"),
        spans,
        without("num_key_value_heads", "tie_word_embeddings"),
    ),
    "hunyuan_v1_moe": (
        heads,
        flags("attention_bias"),
        choices(num_experts=[2, 4], moe_topk=[1, 2, [1, 1, 2, 1]]),
        rotations("default", "linear"),
        spans,
        without("num_key_value_heads", "moe_topk"),
    ),
}

# Of each composite model_type what else may vary, in its whole configuration.
COMPOSITE: Mapping[str, tuple[Change, ...]] = {
    "kimi_k25": (kimi_tower,),
    "glm4v_moe": (glm_tower,),
    "glm4v": (glm_tower,),
    "qwen2_5_omni_thinker": (omni_towers,),
    "qwen3_omni_moe_thinker": (omni_towers,),
    "qwen2_audio": (
        audio_encoder,
        choices(architectures=[["Qwen2AudioForConditionalGeneration"], ["Qwen2AudioModel"]]),
    ),
    "qwen3_asr": (audio_encoder, choices(architectures=[["Qwen3ASRForConditionalGeneration"], ["Qwen3ASRModel"]])),
    "glm5_next": (glm5_tower,),
    "qwen4_exp": (qwen3_tower,),
    "gemma4": (gemma4_towers, classes("Gemma4ForConditionalGeneration", "Gemma4Model")),
    "mistral3": (
        pixtral,
        query_scaling,
        choices(
            spatial_merge_size=[1, 2, 3],
            vision_feature_layer=[-1, [-2, -1]],
            projector_hidden_act=["gelu", "silu"],
            architectures=[["Mistral3ForConditionalGeneration"], ["Mistral3Model"]],
        ),
        flags("multimodal_projector_bias", "tie_word_embeddings"),
        without("architectures", "spatial_merge_size", "tie_word_embeddings", "vision_feature_layer"),
    ),
    "internvl": (
        internvl,
        choices(
            downsample_ratio=[0.5, 1.0, 0.25],
            projector_hidden_act=["gelu", "silu"],
            architectures=[["InternVLForConditionalGeneration"], ["InternVLModel"]],
        ),
        flags("tie_word_embeddings"),
        without("architectures", "downsample_ratio", "projector_hidden_act", "tie_word_embeddings"),
    ),
    "gemma3": (
        siglip,
        choices(mm_tokens_per_image=[1, 4, 5], architectures=[["Gemma3ForConditionalGeneration"], ["Gemma3Model"]]),
    ),
}


def varied(model_type: str, seed: int) -> dict[str, Any]:
    """A small configuration of this type, by chance."""
    chance = random.Random(f"{model_type} {seed}")
    config = small_config(model_type)
    text = config.get("text_config", config)
    for change in VARIED[model_type]:
        change(chance, text)
    config["dtype"] = chance.choice(["bfloat16", "float16", "float32"])
    if text is not config and "tie_word_embeddings" in config:
        config["tie_word_embeddings"] = text.get("tie_word_embeddings", config["tie_word_embeddings"])
    for change in COMPOSITE.get(model_type, ()):
        change(chance, config)
    return config


def assert_is_what_transformers_builds(config: Mapping[str, Any]) -> None:
    """Modules, tensors, buffers, tied and stored names, and each layer's cache, are those of the class on the meta device."""
    light, built = architecture_of(config), read_generic(config, ())
    assert light.built is None
    assert light.tree == built.tree
    assert light.spec == _as_light(built)
    assert light.tied == built.tied
    assert [buffer.shape for buffer in light.buffers] == [buffer.shape for buffer in built.buffers]
    assert set(light.unloaded) == set(built.unloaded)
    assert light.active_is_known or not built.active_is_known  # built: unknown where no layer uses the stated experts
    if config["model_type"] not in RENAMED:
        assert light.buffers == built.buffers
    for tensor in each_tensor(built.tree) if config["model_type"] not in RENAMED else ():
        # As a set: transformers gives all gates of the experts before all that are stacked below them.
        assert set(light.stored_form(tensor)) == set(built.stored_form(tensor)), tensor.name
    attention, cache = found_cache(built.built, built.spec.dtype)
    assert light.kept is not None
    assert tuple(layer for layer, _ in light.kept) == attention.by_config
    assert tuple(layer for _, layer in light.kept) == cache.layers


def _as_light(built: Architecture) -> Any:
    return replace(built.spec, from_transformers=False)


# --- any change of a configuration

ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    2,
    3,
    7,
    16,
    -1,
    0.5,
    1.0,
    "silu",
    "gelu",
    "full_attention",
    [],
    {},
    [1, 2],
)
# Keys without a meaning for the model as such, whose odd values transformers may refuse.
IGNORED = {"_name_or_path", "architectures", "id2label", "label2id", "model_type", "transformers_version", "dtype"}


def mutated(config: Mapping[str, Any], seed: int) -> tuple[dict[str, Any], list[str]]:
    """The configuration with one or two keys missing or of another value, and what was changed."""
    chance = random.Random(f"{config.get('model_type')} mutated {seed}")
    whole = copy.deepcopy(dict(config))
    done = []
    for _ in range(chance.choice([1, 1, 2])):
        parts = [part for part in (whole, *whole.values()) if isinstance(part, dict) and set(part) - IGNORED]
        part = chance.choice(parts)
        key = chance.choice(sorted(set(part) - IGNORED))
        value = part[key]
        if chance.random() < 0.25:
            del part[key]
        elif isinstance(value, int) and not isinstance(value, bool) and chance.random() < 0.5:
            part[key] = max(0, value + chance.choice([-1, 1, 2, 8, value]))
        elif isinstance(value, bool) and chance.random() < 0.7:
            part[key] = not value
        else:
            part[key] = chance.choice(ODD)
        done.append(f"{key}: {value!r} -> {part.get(key, 'missing')!r}")
    return whole, done


def beside_transformers(config: Mapping[str, Any]) -> str:
    """How the two answer: "equal", "refused" by the light design, "generic" if that leaves the class to transformers, or "not
    built"
    if only transformers refuses. AssertionError if both answer and differ.
    """
    try:
        if architecture_of(config).built is not None:
            return "generic"
    except QwenInspectError:
        return "refused"
    try:
        built = read_generic(config, ())
        found_cache(built.built, built.spec.dtype)
    except QwenInspectError:
        return "not built"
    assert_is_what_transformers_builds(config)
    return "equal"

"""The configurations that a family is learnt from: its releases', and some of other options, heads, layers and another dtype."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import permutations
from typing import Any

from benchmarks.sampling import ENCODERS, EXPERTS, PER_TOKEN, SIZES, STATE, STATE_SPACE
from benchmarks.state_space import RELEASED
from qwen_inspect.architectures.families import CLASSES
from qwen_inspect.loaders import catalog
from qwen_inspect.predicting.traces.class_rules import decoder_of

FLAGS = ("attention_bias", "mlp_bias", "use_bias", "qk_layernorm", "use_qk_norm", "attention_out_bias")
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SECTIONS = {**ROPE, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
SCALED = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 8192}
DELTA = ["linear_attention", *2 * ["linear_attention", "linear_attention", "full_attention"], "linear_attention"]
LATE_QUERIES = {**ROPE, **SCALED, "llama_4_scaling_beta": 0.1}
# Gemma 4's E2B and E4B: the last layers read the caches of others; layers have inputs of their own.
PER_LAYER_INPUTS = tuple(
    {
        "final_logit_softcapping": 30.0,
        "hidden_size_per_layer_input": 16,
        "layer_types": ["sliding_attention", *3 * ["sliding_attention", "full_attention"]],
        "num_hidden_layers": 7,
        "num_kv_shared_layers": 4,
        "num_key_value_heads": kv_heads,
        "use_double_wide_mlp": wide,
    }
    for kv_heads, wide in ((1, True), (2, False))
)
# What releases have that the class's defaults lack.
STRUCTURES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    **{kind: ({}, {"type_vocab_size": 1}, {"id2label": {"0": "relevance"}}) for kind in ENCODERS},
    "gemma3_text": (  # EmbeddingGemma is the last
        {},
        {"use_bidirectional_attention": True},
        {"use_bidirectional_attention": True, "dtype": "float32", "num_key_value_heads": 1},
    ),
    "falcon": (  # 7B, 40B, 11B, RW
        {},
        {"new_decoder_architecture": True, "num_kv_heads": 2},
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False},
    ),
    "gemma3n_text": (  # E2B, E4B
        {
            "activation_sparsity_pattern": [0.95] * 3 + [0.0] * 6,
            "hidden_size_per_layer_input": 16,
            "layer_types": ["sliding_attention", *4 * ["sliding_attention", "full_attention"]],
            "num_hidden_layers": 9,
            "num_kv_shared_layers": 4,
        },
    ),
    "gemma4": PER_LAYER_INPUTS,
    "gemma4_text": ({}, *PER_LAYER_INPUTS),
    "gpt_neox": tuple(
        {"use_parallel_residual": parallel, "rope_parameters": {**ROPE, "partial_rotary_factor": share}}
        for parallel in (True, False)
        for share in (0.25, 1.0)
    ),
    "glm4v": ({"rope_parameters": SECTIONS},),
    "glm4v_moe": ({"rope_parameters": SECTIONS, "head_dim": 16},),  # GLM-4.5V: heads wider than the hidden size
    "internvl": ({}, {"model_type": "qwen3", "head_dim": 16, "attention_bias": False}),
    "lfm2_moe": ({"layer_types": 2 * ["conv", "conv", "full_attention", "conv"]},),
    "kimi_linear": ({"layer_types": DELTA, "first_k_dense_replace": 1, "num_experts_per_token": 2},),
    "mistral3": ({}, {"model_type": "ministral3", "rope_parameters": LATE_QUERIES}),
    "mpt": ({"max_seq_len": 2048}, {"max_seq_len": 8192}),
    "phi3": (
        {},
        *(
            {
                "rope_scaling": {"type": "longrope", "short_factor": pairs * [1.0], "long_factor": pairs * [2.0]},
                "partial_rotary_factor": pairs / 8,
                "original_max_position_embeddings": 4096,
                "sliding_window": 32,
            }
            for pairs in (8, 6)
        ),
    ),
    "opt": ({}, {"do_layer_norm_before": False, "word_embed_proj_dim": 32}),  # 350M is the second
}
RENAMED = ("hidden_size", "num_hidden_layers", "num_attention_heads")
SLOW = {
    "linear_num_key_heads",
    "index_topk",
    "global_head_dim",
    "attention_chunk_size",
    "laurel_rank",
    *STATE,
}  # keys of slow runs
DIMENSIONS = {*SIZES, *EXPERTS, *PER_TOKEN, *STATE_SPACE, "hidden_size", "num_attention_heads", "num_key_value_heads"} | {
    "linear_num_heads", "linear_num_key_heads", "linear_num_value_heads", "linear_conv_kernel_dim", "index_head_dim",
    "index_n_heads", "conv_L_cache", "global_head_dim", "num_global_key_value_heads", "rotary_dim", "type_vocab_size",
}  # fmt: skip
DERIVED = {"num_kv_heads", "ffn_hidden_size", "word_embed_proj_dim"}  # from others, if they are not stated


def bases(model_type: str, *, varied: bool = True) -> Iterator[dict[str, Any]]:
    """The released configurations of a family, and some with other options, heads, layers and another dtype, if `varied`."""
    known = catalog.entries()
    released = [dict(catalog.configuration(model, known)) for model in known]
    own = [config for config in released if config.get("model_type") == model_type]
    configs = own or [alone(config) for config in released if decoder_of(config).get("model_type") == model_type]
    configs += map(dict, RELEASED.get(model_type, ()))
    for config in configs:
        for part in (config, decoder_of(config)):
            part.pop("quantization_config", None)  # type: ignore[attr-defined]
    if not (model_type.startswith("qwen") or model_type in RELEASED) or not configs:
        configs += [small(model_type, changes) for changes in STRUCTURES.get(model_type, [{}])]
    if not varied:
        yield from map(stated, configs)
        return
    for config in map(stated, configs):
        yield from _other_heads(config)
        yield from _other_layers(config)
        text = decoder_of(config)
        for flag in FLAGS:
            if isinstance(value := text.get(flag), bool) and not SLOW & {*text}:
                yield _with(config, {flag: not value})
    if not SLOW & {*decoder_of(configs[0])}:
        for config in configs if model_type in ENCODERS else configs[:1]:
            yield from _other_heads(stated(_with(config, {"dtype": "float32", "torch_dtype": "float32"})))


def alone(config: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder of a release of several parts, as a model of its own."""
    text = dict(decoder_of(config))
    dtype = text.get("dtype") or config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    return {**text, "architectures": [CLASSES[text["model_type"]][0]], "dtype": dtype}


def small(model_type: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A small configuration with the options of the class, but for `changes`."""
    import transformers

    from tests.support.small_models import SMALL, small_config

    config = renamed(small_config(model_type))
    config.setdefault("architectures", [CLASSES[model_type][0]])
    text = decoder_of(config)
    assert isinstance(text, dict)
    text["num_hidden_layers"] = 8
    for key, value in text.items():
        if isinstance(value, list) and len(value) == 4:
            text[key] = 2 * value
    if "kv_lora_rank" in text and (text.get("rope_parameters") or {}).pop("partial_rotary_factor", None):
        del text["head_dim"]  # both follow from the widths of its parts
    own = transformers.AutoConfig.for_model(model_type).get_text_config(decoder=True).to_dict()
    text.update({key: SMALL[key] for key in ("head_dim", "num_key_value_heads") if own.get(key, 0) is None})
    for key in DERIVED:
        text.pop(key, None)
    text.update(changes)
    return config


def renamed(config: dict[str, Any]) -> dict[str, Any]:
    """With the names that all classes know for what they have names of their own."""
    import transformers

    text = decoder_of(config)
    assert isinstance(text, dict)
    own = type(transformers.AutoConfig.for_model(config["model_type"]).get_text_config(decoder=True)).attribute_map
    text.update({key: text.pop(own[key]) for key in RENAMED if own.get(key) in text})
    return config


def stated(config: dict[str, Any]) -> dict[str, Any]:
    """With the sizes that a release leaves to its class."""
    import transformers

    completed = renamed(deepcopy(config))
    text = decoder_of(completed)
    own = transformers.AutoConfig.for_model(**config).get_text_config(decoder=True)
    own = {**own.to_dict(), **{key: getattr(own, key, None) for key in RENAMED}}
    wanted = DIMENSIONS - DERIVED | {"num_hidden_layers"}
    sizes = {key: own[key] for key in wanted if key not in text and isinstance(own.get(key), int)}
    derived = (None, own["hidden_size"] // (own.get("num_attention_heads") or 1))
    if not {"head_dim", "kv_lora_rank"} & {*text} and own.get("head_dim") not in derived:
        sizes["head_dim"] = own["head_dim"]
    text.update(sizes)  # type: ignore[attr-defined]
    return completed


def _with(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    changed = deepcopy(dict(config))
    text = decoder_of(changed)
    for part in (changed, text):
        part.update({key: value for key, value in changes.items() if key in part})  # type: ignore[attr-defined]
    return changed


def _other_heads(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    heads = decoder_of(config).get("num_attention_heads")
    yield config
    if heads and not {"kv_lora_rank", "linear_num_key_heads", *STATE} & {*decoder_of(config)}:
        for kv_heads in (heads, heads // 2, 1):
            yield _with(config, {"num_key_value_heads": kv_heads})


def _other_layers(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """With every other layer of another kind, beginning with each, where the class has a key for that."""
    import transformers

    text = decoder_of(config)
    if {*STATE} & {*text}:  # whose sequences RELEASED has
        return
    layers = text["num_hidden_layers"]
    configuration = transformers.AutoConfig.for_model(config["model_type"]).get_text_config(decoder=True)
    types = [*dict.fromkeys(getattr(configuration, "layer_types", None) or ())]
    if "mlp_only_layers" in configuration.to_dict() and not config["model_type"].startswith("qwen3_5"):
        for dense in ([1, 3], [0, 1, 3]):
            yield _changed(config, mlp_only_layers=dense)
    if text.get("first_k_dense_replace") and "mlp_layer_types" not in text:
        yield _changed(config, num_hidden_layers=8, first_k_dense_replace=8)
    if "sliding_window" in text and not types:  # all layers have a window, or none
        yield _changed(config, sliding_window=None if text["sliding_window"] else 32)
        types = ["sliding_attention", "full_attention"]
    elif "use_sliding_window" in text:
        types = ["sliding_attention", "full_attention"]
        yield _changed(config, use_sliding_window=True, sliding_window=32, layer_types=["sliding_attention"] * layers)
    if len(types) < 2:
        return
    for order in permutations(types):
        changed = _changed(config, layer_types=[order[index % len(order)] for index in range(layers)])
        if "sliding_window" in text:
            changed = _changed(changed, sliding_window=text["sliding_window"] or 32)
        if "use_sliding_window" in text:
            changed = _changed(changed, use_sliding_window=True)
        yield changed


def _changed(config: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    changed = deepcopy(dict(config))
    decoder_of(changed).update(changes)  # type: ignore[attr-defined]
    return changed

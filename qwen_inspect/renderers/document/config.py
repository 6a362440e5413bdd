"""`config`: the keys as written; with `--explain`, in groups, with each key's meaning for this model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from ...declarations import KEY, OTHER_KEYS
from ...language import Language
from ...results.attention import LayerAttention, LinearLayerAttention
from ...results.model import Report
from ...spec import DenseMlp, GatedAttention, LinearAttention, MoeMlp
from ...typed import Any
from ...units import count, short_count
from ..blocks import Block, Code, Heading, Items, Paragraph, Table
from . import View
from .commented import commented
from .common import active_values, component_table, distinct_layers, identity, layer_runs, notices
from .first_layer import printed
from .structure import decoder_config

GROUPS: Mapping[str, tuple[str, ...]] = {
    "structure": (
        "architectures",
        "model_type",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    ),
    "experts": (
        "num_experts",
        "num_local_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "decoder_sparse_step",
        "mlp_only_layers",
        "norm_topk_prob",
        "output_router_logits",
        "router_aux_loss_coef",
    ),
    "attention": (
        "attention_bias",
        "qkv_bias",
        "attention_dropout",
        "max_position_embeddings",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "use_sliding_window",
        "sliding_window",
        "max_window_layers",
        "layer_types",
        "partial_rotary_factor",
        "dual_chunk_attention_config",
        "attn_output_gate",
    ),
    "linear": (
        "full_attention_interval",
        "linear_num_key_heads",
        "linear_num_value_heads",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "linear_conv_kernel_dim",
        "mamba_ssm_dtype",
    ),
    "norm": ("rms_norm_eps", "hidden_act"),
    "vocabulary": (
        "vocab_size",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "image_token_id",
        "video_token_id",
        "vision_start_token_id",
        "vision_end_token_id",
        "vision_token_id",
    ),
    "prediction": ("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"),
    "running": ("torch_dtype", "dtype", KEY, *OTHER_KEYS, "initializer_range", "use_cache", "transformers_version"),
}
PARTS = ("text_config", "vision_config")


def blocks(report: Report, say: Language, view: View) -> Sequence[Block]:
    head: list[Block] = [
        Heading(say("heading_config", name=report.ref.id), 1),
        identity(report, say),
        *notices(report, say),
    ]
    config = report.written or {}
    if not view.explain:
        return [*head, key_table(config, say), *missing_keys(report, say)]
    if report.spec.built:
        return [
            *head,
            Paragraph(say("generic_explained")),
            *explained(report, config, say),
            Heading(say("heading_printed")),
            Code("\n".join(printed(report.tree)), "text"),
            component_table(report, say),
        ]
    return [*head, *explained(report, config, say), *worked_out(report, say), *techniques(report, say)]


def key_table(config: Mapping[str, Any], say: Language) -> Table:
    rows = [[label, written(value)] for label, _, value in sorted(entries(config), key=lambda entry: entry[0])]
    return Table([say("column_key"), say("column_value")], rows, "ll")


def entries(config: Mapping[str, Any]) -> list[tuple[str, str, object]]:
    """(label, key, value) of every key. Labels of nested keys start with their part: text_config.hidden_size."""
    labelled: list[tuple[str, str, object]] = []
    for key, value in config.items():
        if key in PARTS and isinstance(value, Mapping):
            labelled += [(f"{key}.{inner}", str(inner), value[inner]) for inner in value]
        else:
            labelled.append((key, key, value))
    return labelled


def written(value: object) -> str:
    """A value as JSON; a list of more than 4 equal entries as `[entry] × length`."""
    if isinstance(value, list) and len(value) > 4 and all(item == value[0] for item in value):
        return f"[{json.dumps(value[0], ensure_ascii=False)}] × {len(value)}"
    return json.dumps(value, ensure_ascii=False)


def explained(report: Report, config: Mapping[str, Any], say: Language) -> list[Block]:
    """config.json with comments, and a table per group of its keys, the last for keys that this program does not read."""
    columns = [say("column_key"), say("column_value"), say("column_meaning")]
    vision = [entry for entry in entries(config) if entry[0].startswith("vision_config.")]
    decoder = [entry for entry in entries(config) if not entry[0].startswith("vision_config.")]
    sentences, of_tower = meanings(report, decoder_config(config), say), vision_meanings(report, config, say)
    unread = say("meaning_unread_generic" if report.spec.built else "meaning_unread")

    def table(entries: Iterable[tuple[str, str, object]], sentences: Mapping[str, str]) -> Table:
        return Table(
            columns, [[label, written(value), sentences.get(key, unread)] for label, key, value in entries], "lll"
        )

    comments = {label: sentences.get(key, unread) for label, key, _ in decoder}
    comments |= {label: of_tower.get(key, unread) for label, key, _ in vision}
    comments |= {"text_config": say("meaning_text_config"), "vision_config": say("meaning_vision_config")}
    content: list[Block] = [
        Heading(say("heading_commented")),
        Code(commented(config, comments), "jsonc"),
        *missing_keys(report, say),
    ]
    grouped_keys: set[str] = set()
    for group, keys in GROUPS.items():
        present = [entry for key in keys for entry in decoder if entry[1] == key]
        if any(key in sentences for _, key, _ in present):  # a dense model may have keys of experts
            grouped_keys.update(keys)
            content += [Heading(say(f"group_{group}")), table(present, sentences)]
    if vision:
        content += [Heading(say("group_vision")), table(vision, of_tower)]
    if others := sorted((entry for entry in decoder if entry[1] not in grouped_keys), key=lambda entry: entry[0]):
        content += [Heading(say("group_other")), table(others, {})]
    return content


def missing_keys(report: Report, say: Language) -> list[Block]:
    """The keys that a release's config.json has and the catalog's copy lacks; empty for any other source."""
    keys = () if report.release is None else report.release.missing_keys
    return [Paragraph(say("catalog_missing_keys", keys=say("comma").join(keys)))] if keys else []


def vision_meanings(report: Report, config: Mapping[str, Any], say: Language) -> dict[str, str]:
    """Key of the vision tower -> its meaning for this model."""
    vision = report.spec.vision
    if vision is None:
        return {}
    nested = config.get("vision_config")
    # In Qwen2-VL's vision_config, hidden_size is the decoder's width; embed_dim is the tower's.
    width = "embed_dim" if report.spec.family == "qwen2_vl" else "hidden_size"
    merged = vision.merge_size**2
    meaning = {
        "model_type": say("meaning_vision_type"),
        "depth": say("meaning_vision_layers", layers=vision.layers),
        "hidden_size": say("meaning_vision_output", size=vision.output_size),
        "out_hidden_size": say("meaning_vision_output", size=vision.output_size),
        width: say("meaning_vision_hidden", size=vision.hidden_size),
        "mlp_ratio": say("meaning_vision_mlp", size=vision.intermediate_size),
        "intermediate_size": say("meaning_vision_mlp", size=vision.intermediate_size),
        "num_heads": say("meaning_vision_heads", heads=vision.heads, dim=vision.hidden_size // vision.heads),
        "in_channels": say("meaning_vision_channels", channels=vision.in_channels),
        "patch_size": say("meaning_vision_patch", size=vision.patch_size),
        "temporal_patch_size": say("meaning_vision_frames", frames=vision.temporal_patch_size),
        "spatial_merge_size": say("meaning_vision_merge", size=vision.merge_size, patches=merged),
        "hidden_act": say("meaning_vision_activation", name=activation_name(vision.activation, say)),
        "initializer_range": say("meaning_initializer"),
    }
    if vision.positions is not None:
        meaning["num_position_embeddings"] = say("meaning_vision_positions", positions=vision.positions)
    if isinstance(nested, Mapping) and "deepstack_visual_indexes" in nested:
        key = "meaning_vision_deepstack" if vision.deepstack else "meaning_vision_no_deepstack"
        meaning["deepstack_visual_indexes"] = say(key, mergers=vision.deepstack)
    for key in ("fullatt_block_indexes", "window_size"):
        meaning[key] = say("meaning_vision_window")
    return meaning


def meanings(report: Report, config: Mapping[str, Any], say: Language) -> dict[str, str]:
    """Key -> its meaning for this model, computed from its spec."""
    spec = report.spec
    if spec.built:
        return generic_meanings(report, config, say)
    layer = softmax_layers(report)[0]
    kind = layer.kind.lower()
    query, hidden = layer.query_heads * layer.head_dim, spec.hidden_size
    heads = {
        "query_heads": layer.query_heads,
        "kv_heads": layer.kv_heads,
        "head_dim": layer.head_dim,
        "query": query,
        "hidden": hidden,
    }
    heads["group"] = layer.query_heads // layer.kv_heads
    mlps = [spec_layer.mlp for spec_layer in spec.layers]
    dense = [mlp for mlp in mlps if isinstance(mlp, DenseMlp)]
    sparse = [mlp for mlp in mlps if isinstance(mlp, MoeMlp)]
    width = dense[0].intermediate_size if dense else None
    meaning = {
        "architectures": say("meaning_architectures", name=spec.class_name),
        "model_type": say("meaning_model_type", family=spec.family),
        "hidden_size": say("meaning_hidden_size", hidden=hidden),
        "intermediate_size": say("meaning_intermediate_none")
        if width is None
        else say("meaning_intermediate_size", width=width, ratio=_ratio(width, hidden), layers=len(dense)),
        "num_hidden_layers": say("meaning_layers", layers=len(spec.layers)),
        "num_attention_heads": say("meaning_query_heads", **heads),
        "num_key_value_heads": say(f"meaning_kv_{kind}", **heads),
        "head_dim": say("meaning_head_dim_equal" if query == hidden else "meaning_head_dim_other", **heads),
        "attention_bias": say("meaning_bias_on" if config.get("attention_bias") else "meaning_bias_off"),
        "qkv_bias": say("meaning_qkv_bias_on" if config.get("qkv_bias") else "meaning_qkv_bias_off"),
        "attention_dropout": say("meaning_dropout", value=written(config.get("attention_dropout"))),
        "max_position_embeddings": say("meaning_context", tokens=spec.context_tokens or 0),
        "rope_theta": say("meaning_rope_theta", value=written(config.get("rope_theta"))),
        "rope_scaling": say("meaning_rope_scaling" if config.get("rope_scaling") else "meaning_rope_unscaled"),
        "rope_parameters": say("meaning_rope_parameters"),
        "dual_chunk_attention_config": say("meaning_dual_chunk"),
        "rms_norm_eps": say("meaning_norm_eps"),
        "hidden_act": say("meaning_activation", name=activation_name(spec.activation, say)),
        "vocab_size": say("meaning_vocab", vocab=spec.vocab_size, hidden=hidden, parameters=spec.vocab_size * hidden),
        "tie_word_embeddings": say(
            "meaning_headless" if not spec.headed else "meaning_tied" if spec.tied_embeddings else "meaning_untied",
            parameters=spec.vocab_size * hidden,
        ),
        "bos_token_id": say("meaning_bos"),
        "eos_token_id": say("meaning_eos"),
        "pad_token_id": say("meaning_pad"),
        "initializer_range": say("meaning_initializer"),
        "use_cache": say("meaning_use_cache_on" if config.get("use_cache") else "meaning_use_cache_off"),
        "transformers_version": say("meaning_version"),
    }
    meaning |= hybrid_meanings(report, say)
    for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id"):
        meaning[key] = say("meaning_vision_token")
    for key in ("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"):
        meaning[key] = say("meaning_prediction")
    for key in ("torch_dtype", "dtype"):
        meaning[key] = say("meaning_dtype", dtype=str(spec.dtype), size_bytes=spec.dtype.bits // 8)
    meaning |= dict.fromkeys((KEY, *OTHER_KEYS), say("meaning_quantisation"))
    meaning = window_meanings(report, config, say) | meaning
    if sparse:
        first = sparse[0]
        experts = {
            "experts": first.experts,
            "taken": first.experts_per_token,
            "width": first.intermediate_size,
            "shared": first.shared_intermediate_size or 0,
            "layers": len(sparse),
            "dense": len(dense),
        }
        for key in ("num_experts", "num_local_experts"):
            meaning[key] = say("meaning_experts", **experts)
        meaning |= {
            "num_experts_per_tok": say("meaning_experts_taken", **experts),
            "moe_intermediate_size": say(
                "meaning_expert_width", ratio=_ratio(first.intermediate_size, hidden), **experts
            ),
            "shared_expert_intermediate_size": say("meaning_shared_width", **experts),
            "decoder_sparse_step": say("meaning_sparse_layers", **experts),
            "mlp_only_layers": say("meaning_sparse_layers", **experts),
            "norm_topk_prob": say("meaning_topk_on" if config.get("norm_topk_prob") else "meaning_topk_off"),
            "output_router_logits": say("meaning_training_only"),
            "router_aux_loss_coef": say("meaning_training_only"),
        }
    return meaning


# Keys with the same meaning in every transformers class. Source: transformers 5.23, PreTrainedConfig and its attribute_map.
GENERIC_KEYS: Mapping[str, tuple[str, ...]] = {
    "experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "taken": ("num_experts_per_tok",),
    "heads": ("num_attention_heads", "n_head"),
    "kv": ("num_key_value_heads",),
    "rank": ("kv_lora_rank",),
    "window": ("sliding_window",),
}


def generic_meanings(report: Report, config: Mapping[str, Any], say: Language) -> dict[str, str]:
    """Key -> meaning, for the keys that have the same meaning in every class."""
    spec, layers = report.spec, sum(run.repeats for run in layer_runs(report.tree))
    table = {"vocab": spec.vocab_size, "hidden": spec.hidden_size, "parameters": spec.vocab_size * spec.hidden_size}
    tied = "meaning_tied" if spec.tied_embeddings else "meaning_untied"
    meaning = {
        "architectures": say("meaning_architectures", name=spec.class_name),
        "model_type": say("meaning_model_type", family=spec.family),
        "hidden_size": say("meaning_hidden_size", hidden=spec.hidden_size),
        "num_hidden_layers": say("meaning_layers", layers=layers),
        "vocab_size": say("meaning_vocab", **table),
        "tie_word_embeddings": say(tied, parameters=table["parameters"]),
        "bos_token_id": say("meaning_bos"),
        "eos_token_id": say("meaning_eos"),
        "pad_token_id": say("meaning_pad"),
        "initializer_range": say("meaning_initializer"),
        "transformers_version": say("meaning_version"),
    }
    if spec.context_tokens is not None:
        meaning["max_position_embeddings"] = say("meaning_context", tokens=spec.context_tokens)
    for key in ("torch_dtype", "dtype"):
        meaning[key] = say("meaning_dtype", dtype=str(spec.dtype), size_bytes=spec.dtype.bits // 8)
    meaning |= dict.fromkeys((KEY, *OTHER_KEYS), say("meaning_quantisation"))
    for name, keys in GENERIC_KEYS.items():
        meaning |= {key: say(f"meaning_generic_{name}", value=written(config[key])) for key in keys if key in config}
    return meaning


def softmax_layers(report: Report) -> list[LayerAttention]:
    """The layers with softmax attention (which cache keys and values), from the configuration."""
    return [layer for layer in report.attention.by_config if isinstance(layer, LayerAttention)]


def hybrid_meanings(report: Report, say: Language) -> dict[str, str]:
    """Meanings of the keys for linear attention and for the output gate; empty for a model with neither."""
    attention = report.spec.softmax
    linear = [layer for layer in report.attention.by_config if isinstance(layer, LinearLayerAttention)]
    meaning = {}
    if isinstance(attention, GatedAttention):
        rotary = {"turned": attention.rotary_dim, "head_dim": attention.head_dim}
        meaning = {
            "partial_rotary_factor": say("meaning_partial_rotary", **rotary),
            "rope_parameters": say("meaning_rope_partial", **rotary),
            "attn_output_gate": say("meaning_output_gate"),
        }
    if linear:
        state = linear[0]
        values = {
            "layers": len(linear),
            "key_heads": state.key_heads,
            "value_heads": state.value_heads,
            "key_dim": state.key_head_dim,
            "value_dim": state.value_head_dim,
            "kernel": state.conv_kernel,
        }
        layers = say("meaning_hybrid_layers", linear=len(linear), softmax=len(softmax_layers(report)))
        meaning |= {
            "layer_types": layers,
            "full_attention_interval": layers,
            "linear_num_key_heads": say("meaning_linear_key_heads", **values),
            "linear_num_value_heads": say("meaning_linear_value_heads", **values),
            "linear_key_head_dim": say("meaning_linear_key_dim", **values),
            "linear_value_head_dim": say("meaning_linear_value_dim", **values),
            "linear_conv_kernel_dim": say("meaning_linear_kernel", **values),
            "mamba_ssm_dtype": say("meaning_state_dtype"),
        }
    return meaning


def activation_name(activation: str, say: Language) -> str:
    """SiLU by its two names; any other as the configuration writes it."""
    return say("activation_silu") if activation in ("silu", "swish") else activation


def window_meanings(report: Report, config: Mapping[str, Any], say: Language) -> dict[str, str]:
    """A sentence for each key that decides which layers have a window.

    Source: transformers 4.51 to 5.23, Qwen2Config and Qwen3Config: `sliding_window` counts only with `use_sliding_window`, and
    then for the layers from `max_window_layers` on, unless `layer_types` names each layer's
    """
    windows = [layer.window_tokens for layer in softmax_layers(report) if layer.window_tokens]
    layers, size, first = len(report.spec.layers), config.get("sliding_window"), config.get("max_window_layers")
    is_on = bool(config.get("use_sliding_window"))
    state = "on" if windows else "no_layer" if is_on else "off"
    use = {"on": "meaning_windows_on", "no_layer": "meaning_windows_no_layer", "off": "meaning_windows_off"}[state]
    meaning = {
        "use_sliding_window": say(use, layers=len(windows), all=layers),
        "max_window_layers": say(
            "meaning_window_from" if windows else "meaning_window_from_unused", first=written(first), all=layers
        ),
        "sliding_window": say("meaning_window_none")
        if size is None
        else say("meaning_window_size" if windows else "meaning_window_size_unused", size=written(size)),
    }
    types = config.get("layer_types")
    if isinstance(types, list):
        kinds = {written(kind): types.count(kind) for kind in types}
        counted = say("comma").join(f"{count} × {kind}" for kind, count in kinds.items())
        meaning["layer_types"] = say("meaning_layer_types", kinds=counted)
    return meaning


def _ratio(width: int, hidden: int) -> str:
    """width / hidden: an integer if exact, else with two decimals."""
    return str(width // hidden) if width % hidden == 0 else f"{width / hidden:.2f}"


def worked_out(report: Report, say: Language) -> list[Block]:
    """The printed modules, and the parameter count summed module by module to the exact total."""
    return [
        Heading(say("heading_printed")),
        Code("\n".join(printed(report.tree)), "text"),
        *worked_sums(report, say),
        component_table(report, say),
    ]


def worked_sums(report: Report, say: Language) -> list[Block]:
    """Each module's parameters as the sum of its parts, then the exact total."""
    spec, tree = report.spec, report.tree
    table = spec.vocab_size * spec.hidden_size
    sentences = [
        say(
            "worked_embedding",
            vocab=spec.vocab_size,
            hidden=spec.hidden_size,
            parameters=table,
        )
    ]
    if spec.vision is not None:
        tower = next(part for part in report.components if part.name == "vision")
        sentences.append(say("worked_one", name="visual", total=tower.parameters))
    runs = distinct_layers(tree)
    for label, run in runs:
        each = run.parameters // run.repeats  # exact: repeats are equal
        if len(runs) > 1:
            sentences.append(say("worked_layers", layers=label))
        for child in run.children:
            terms = [
                f"{grandchild.name} {count(grandchild.parameters)}"
                for grandchild in child.children
                if grandchild.parameters
            ]
            terms += [f"{tensor.name} {count(tensor.elements)}" for tensor in child.tensors if terms]
            if terms:
                sentences.append(say("worked_sum", name=child.name, terms=" + ".join(terms), total=child.parameters))
            else:
                sentences.append(say("worked_one", name=child.name, total=child.parameters))
        sentences.append(say("layers_product", count=run.repeats, each=each, total=run.parameters))
    sentences.append(say("worked_one", name="norm", total=spec.hidden_size))
    if spec.headed:
        sentences.append(say("worked_head_tied" if spec.tied_embeddings else "worked_head", parameters=table))
    sentences.append(say("worked_total", total=tree.parameters, short=short_count(tree.parameters)))
    return [Heading(say("heading_worked_out")), Items(sentences, numbered=True)]


def techniques(report: Report, say: Language) -> list[Block]:
    """The techniques that this model uses, in the technical reports' terms."""
    spec = report.spec
    attention = spec.softmax
    layer = softmax_layers(report)[0]
    values = {
        "query_heads": layer.query_heads,
        "kv_heads": layer.kv_heads,
        "group": layer.query_heads // layer.kv_heads,
    }
    sentences = [
        say(f"technique_{layer.kind.lower()}", **values),
        say("technique_swiglu" if spec.activation in ("silu", "swish") else "technique_glu", name=spec.activation),
        say("technique_rope"),
        say("technique_rmsnorm"),
        say("technique_pre_norm"),
    ]
    if linear := sum(isinstance(spec_layer.attention, LinearAttention) for spec_layer in spec.layers):
        sentences.append(say("technique_linear", linear=linear, softmax=len(spec.layers) - linear))
    if isinstance(attention, GatedAttention):
        sentences.append(say("technique_gated"))
        sentences.append(say("technique_partial_rope", turned=attention.rotary_dim, head_dim=attention.head_dim))
    if isinstance(attention, GatedAttention) or attention.qk_norm:
        sentences.append(say("technique_qk_norm", head_dim=layer.head_dim))
    biases = "technique_all_biases" if attention.output_bias else "technique_bias"
    sentences.append(say(biases if attention.qkv_bias else "technique_no_bias"))
    if any(isinstance(spec_layer.mlp, MoeMlp) for spec_layer in spec.layers):
        sentences.append(say("technique_moe", **active_values(report)))
    if spec.vision is not None:
        merged = spec.vision.merge_size**2
        sentences.append(
            say("technique_vision", layers=spec.vision.layers, patch=spec.vision.patch_size, merged=merged)
        )
    if spec.vision is not None and spec.vision.deepstack:
        sentences.append(say("technique_deepstack", mergers=spec.vision.deepstack))
    return [Heading(say("heading_techniques")), Items(sentences), Paragraph(say("techniques_source"))]

"""Hybrid and seeing models over their switches: theory against transformers on meta, reading, refusals, what is shown."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_inspect.architectures import architecture_of
from qwen_inspect.errors import QwenInspectError
from qwen_inspect.loaders import catalog
from qwen_inspect.renderers.document.first_layer import printed
from qwen_inspect.spec import LinearAttention, ModelSpec, each_buffer, each_tensor, tied_tensors
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.tracing.instantiate import instantiate

from ..support.families import FAMILIES
from ..support.models import run, write_config, write_sharded
from ..support.schema import assert_keeps_to_the_schema

NEW = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_next", "qwen3_5", "qwen3_5_moe", "qwen3_5_text")
HYBRID = ("qwen3_next", "qwen3_5", "qwen3_5_moe", "qwen3_5_text")
SEEING = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")


def changed(
    family: str, text: Mapping[str, Any], vision: Mapping[str, Any] | None = None, **top: Any
) -> dict[str, Any]:
    """The small configuration of a family with other values: of its decoder, of its tower, of the whole."""
    config = copy.deepcopy(dict(FAMILIES[family]))
    for place, values in (("text_config", text), ("vision_config", vision or {})):
        part = config.get(place, config if place == "text_config" else {})
        part.update(values)
    return {**config, **top}


def without(config: dict[str, Any], place: str, *keys: str) -> dict[str, Any]:
    part = config.get(place, config)
    for key in keys:
        part.pop(key, None)
    return config


def spec_of(config: Mapping[str, Any]) -> ModelSpec:
    return architecture_of(config).spec


def assert_theory_is_what_transformers_builds(config: Mapping[str, Any]) -> None:
    architecture = architecture_of(config)
    spec = architecture.spec
    tree = architecture.tree
    before = copy.deepcopy(dict(config))
    built = instantiate(spec, config)
    assert tuple(each_tensor(tree)) == built.tensors
    assert tuple(each_buffer(tree)) == built.buffers
    assert "\n".join(printed(tree)) == built.printed
    assert config == before  # transformers changes nested parts of what it is given


@st.composite
def configurations(draw: st.DrawFn, family: str) -> dict[str, Any]:
    kv_heads, group = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 4]))
    layers = draw(st.integers(1, 6))
    text: dict[str, Any] = {
        "hidden_act": draw(st.sampled_from(["silu", "gelu"])),
        "hidden_size": kv_heads * group * draw(st.sampled_from([8, 16])),
        "intermediate_size": draw(st.integers(1, 50)),
        "num_attention_heads": kv_heads * group,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
        "vocab_size": draw(st.integers(5, 60)),
        "pad_token_id": draw(st.none() | st.integers(0, 4)),
    }
    if family not in ("qwen2_vl", "qwen2_5_vl"):
        text |= {"head_dim": draw(st.sampled_from([8, 12])), "attention_bias": draw(st.booleans())}
    if family in HYBRID:
        key_heads = draw(st.integers(1, 3))
        kinds = st.sampled_from(["linear_attention", "full_attention"])
        types = draw(
            st.none() | st.lists(kinds, min_size=layers, max_size=layers).filter(lambda one: "full_attention" in one)
        )
        text |= {
            "linear_num_key_heads": key_heads,
            "linear_num_value_heads": key_heads * draw(st.integers(1, 3)),
            "linear_key_head_dim": draw(st.integers(1, 9)),
            "linear_value_head_dim": draw(st.integers(1, 9)),
            "linear_conv_kernel_dim": draw(st.integers(1, 5)),
            "layer_types": types,
        }
        if types is None:
            text["full_attention_interval"] = draw(st.integers(1, layers))
        else:
            text.pop("full_attention_interval", None)
    if family in ("qwen3_next", "qwen3_5_moe", "qwen3_vl_moe"):
        experts = draw(st.integers(1, 5))
        text |= {
            "num_experts": experts,
            "num_experts_per_tok": draw(st.integers(1, experts)),
            "moe_intermediate_size": draw(st.integers(1, 20)),
            "shared_expert_intermediate_size": draw(st.integers(1, 20)),
            "decoder_sparse_step": draw(st.integers(1, 3)),
            "mlp_only_layers": draw(st.lists(st.integers(0, layers - 1), max_size=2)),
        }
    vision: dict[str, Any] = {}
    if family in SEEING:
        heads = draw(st.integers(1, 3))
        width = heads * 4 * draw(st.integers(1, 3))
        vision = {
            "depth": draw(st.integers(1, 3)),
            "num_heads": heads,
            "patch_size": draw(st.integers(1, 5)),
            "spatial_merge_size": draw(st.integers(1, 3)),
            "temporal_patch_size": draw(st.integers(1, 2)),
            "in_channels": draw(st.integers(1, 4)),
        }
        if family == "qwen2_vl":
            vision |= {"embed_dim": width, "mlp_ratio": draw(st.integers(1, 4)), "hidden_size": text["hidden_size"]}
        else:
            vision |= {
                "hidden_size": width,
                "out_hidden_size": text["hidden_size"],
                "intermediate_size": draw(st.integers(1, 20)),
            }
        if family in ("qwen3_vl", "qwen3_vl_moe"):
            vision["deepstack_visual_indexes"] = draw(st.lists(st.integers(0, 2), max_size=3))
    return changed(family, text, vision, tie_word_embeddings=draw(st.booleans()))


@pytest.mark.parametrize("family", NEW)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_theory_equals_transformers_over_a_familys_switches(family: str, data: st.DataObject) -> None:
    assert_theory_is_what_transformers_builds(data.draw(configurations(family)))


@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5"])
def test_missing_keys_of_linear_attention_mean_what_they_mean_to_transformers(family: str) -> None:
    keys = [key for key in FAMILIES["qwen3_next"] if key.startswith("linear_")]
    config = without(changed(family, {}), "text_config", *keys, "layer_types", "head_dim")
    if family == "qwen3_5":
        config["text_config"]["rope_parameters"] = {"rope_theta": 1e4, "rope_type": "default"}
    assert_theory_is_what_transformers_builds(config)
    spec = spec_of(config)
    assert spec.softmax.head_dim == 256
    state = spec.layers[0].attention
    assert isinstance(state, LinearAttention)
    assert (state.key_heads, state.value_heads, state.key_head_dim, state.value_head_dim) == (16, 32, 128, 128)
    assert [isinstance(layer.attention, LinearAttention) for layer in spec.layers] == [True, True, True, False]


@pytest.mark.parametrize(
    ("rope", "beside", "frequencies"),
    # Of a head of 16: a quarter by default; what stands in the object before what stands beside it.
    [({}, {}, 2), ({"partial_rotary_factor": 0.5}, {}, 4), ({}, {"partial_rotary_factor": 1.0}, 8)],
)
def test_the_rotary_share_of_a_head_is_read_where_transformers_reads_it(
    rope: dict[str, Any], beside: dict[str, Any], frequencies: int
) -> None:
    parameters = {"rope_theta": 1e4, "rope_type": "default", **rope}
    config = changed("qwen3_5_text", {}, rope_parameters=parameters, **beside)
    assert_theory_is_what_transformers_builds(config)
    tree = architecture_of(config).tree
    assert [buffer.shape for buffer in each_buffer(tree)] == [(frequencies,), (frequencies,)]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5"])
@pytest.mark.parametrize("top", [True, False, None])
@pytest.mark.parametrize("nested", [True, False, None])
def test_tying_is_decided_where_transformers_decides_it(family: str, top: bool | None, nested: bool | None) -> None:
    config = without(changed(family, {}), "", "tie_word_embeddings")
    config.pop("tie_word_embeddings", None)
    if top is not None:
        config["tie_word_embeddings"] = top
    if "text_config" in config:
        config["text_config"].pop("tie_word_embeddings", None)
        if nested is not None:
            config["text_config"]["tie_word_embeddings"] = nested
    assert_theory_is_what_transformers_builds(config)
    tree = architecture_of(config).tree
    copied = nested is True and family == "qwen2_5_vl"
    assert bool(dict(tied_tensors(tree))) == (top is True or copied)


def test_a_dtype_on_top_is_before_a_nested_one() -> None:
    assert str(spec_of(changed("qwen3_5", {"dtype": "float16"})).dtype) == "float16"
    assert str(spec_of(changed("qwen3_5", {"dtype": "float16"}, torch_dtype="float32")).dtype) == "float32"
    assert str(spec_of(without(changed("qwen3_5", {}), "text_config", "dtype")).dtype) == "float32"  # torch's default


REFUSED: Mapping[str, tuple[dict[str, Any], int, str]] = {
    "an unknown kind of layer": (changed("qwen3_next", {"layer_types": ["mamba"] * 4}), 7, "layer_type_unsupported"),
    "a kind that this family has not": (
        changed("qwen3_5", {"layer_types": ["sliding_attention"] * 4}),
        7,
        "layer_type_unsupported",
    ),
    "too few kinds": (changed("qwen3_next", {"layer_types": ["full_attention"]}), 6, "config_layer_types"),
    "kinds that are no list": (changed("qwen3_5", {"layer_types": "linear"}), 6, "config_layer_types"),
    "linear layers alone": (changed("qwen3_next", {"layer_types": ["linear_attention"] * 4}), 7, "config_all_linear"),
    "an interval beyond the layers": (changed("qwen3_next", {"full_attention_interval": 9}), 7, "config_all_linear"),
    "an interval of nothing": (changed("qwen3_next", {"full_attention_interval": 0}), 6, "config_out_of_range"),
    "heads that do not divide": (changed("qwen3_next", {"linear_num_value_heads": 3}), 6, "config_linear_heads_do_not_divide"),
    "no heads": (changed("qwen3_next", {"linear_num_key_heads": 0}), 6, "config_out_of_range"),
    "query heads that do not divide": (changed("qwen3_5", {"num_key_value_heads": 3}), 6, "config_heads_do_not_divide"),
    "a rotary share of nothing": (changed("qwen3_next", {"partial_rotary_factor": 0}), 6, "config_rotary_dim"),
    "a rotary share beyond the head": (changed("qwen3_next", {"partial_rotary_factor": 1.5}), 6, "config_rotary_dim"),
    "a rotary share that is none": (changed("qwen3_next", {"partial_rotary_factor": "half"}), 6, "config_not_number"),
    "rope parameters that are none": (changed("qwen3_next", {"rope_parameters": [1]}), 6, "config_not_object"),
    "no decoder": (changed("qwen3_5", {}, text_config=None), 6, "config_not_object"),
    "a decoder that is none": (changed("qwen3_5", {}, text_config="qwen"), 6, "config_not_object"),
    "no tower": (without(changed("qwen3_vl", {}), "", "vision_config") | {"vision_config": None}, 6, "config_not_object"),
    "another family's decoder": (changed("qwen3_5", {"model_type": "llama"}), 7, "config_part_unsupported"),
    "another family's tower": (changed("qwen3_vl", {}, {"model_type": "siglip"}), 7, "config_part_unsupported"),
    "a tower whose heads do not divide": (changed("qwen3_vl", {}, {"num_heads": 5}), 6, "config_vision_heads_do_not_divide"),
    "a patch of two sizes": (changed("qwen3_vl", {}, {"patch_size": [16, 16]}), 6, "config_not_integer"),
    "a tower of no blocks": (changed("qwen3_vl", {}, {"depth": 0}), 6, "config_out_of_range"),
    "a tower of 10^9 blocks": (changed("qwen3_vl", {}, {"depth": 10**9}), 6, "config_out_of_range"),
    "an unknown activation of the tower": (changed("qwen3_vl", {}, {"hidden_act": "mish2"}), 7, "activation_unsupported"),
    "mergers that are no list": (changed("qwen3_vl", {}, {"deepstack_visual_indexes": 3}), 6, "config_deepstack"),
    "a window that no layer has": (changed("qwen3_vl", {"sliding_window": 7}), 7, "config_window_unused"),
    "a head_dim that is not the quotient": (changed("qwen2_5_vl", {"head_dim": 5}), 6, "config_head_dim_fixed"),
    "no whole head": (changed("qwen2_vl", {"num_attention_heads": 6, "num_key_value_heads": 6}), 6, "config_head_dim_fixed"),
    "another class": (changed("qwen3_5", {}, architectures=["Qwen3_5ForCausalLM"]), 7, "generic_class_of_other"),
    "no experts": (changed("qwen3_5_moe", {"num_experts": 0}), 6, "config_out_of_range"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_sentence(name: str) -> None:
    config, code, key = REFUSED[name]
    with pytest.raises(QwenInspectError) as refusal:
        spec_of(config)
    assert (refusal.value.message.key, refusal.value.exit_code) == (key, code)
    assert "{" not in str(refusal.value)


def test_a_hybrid_newer_than_what_is_known_is_refused_with_exit_7(tmp_path: Path) -> None:
    write_config(tmp_path, {**FAMILIES["qwen3_5"], "model_type": "qwen9_hybrid"})
    done = run("structure", tmp_path)
    assert (done.code, done.err.count("\n")) == (7, 1)
    assert "qwen9_hybrid" in done.err


# --- what is shown


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("family", NEW)
def test_every_command_shows_every_family_in_both_languages(
    family: str, language: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from qwen_inspect.cli import main

    write_config(tmp_path, FAMILIES[family])
    for command in (
        ["structure"],
        ["structure", "--first-layer"],
        ["structure", "--expand"],
        ["config"],
        ["config", "--explain"],
        ["params"],
        ["attention"],
    ):
        for form in ("table", "md"):
            assert main([*command, str(tmp_path), "--lang", language, "--format", form, "--quiet"]) == 0, command
            assert capsys.readouterr().out


@pytest.mark.parametrize("command", ["structure", "params", "attention", "config", "memory"])
@pytest.mark.parametrize("family", NEW)
def test_json_of_every_family_keeps_to_the_schema(
    family: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from qwen_inspect.cli import main

    write_config(tmp_path, FAMILIES[family])
    workload = ["--context", "40", "--new-tokens", "3"] if command == "memory" else []
    assert main([command, str(tmp_path), "--format", "json", "--quiet", *workload]) == 0
    assert_keeps_to_the_schema(json.loads(capsys.readouterr().out))


def test_the_pattern_of_a_hybrid_is_said() -> None:
    report = inspect("Qwen/Qwen3-Next-80B-A3B-Instruct", source="catalog")
    assert report.attention.kind == "hybrid"
    assert report.attention.pattern == (("linear", 3), ("full", 1))
    assert [layer.index for layer in report.attention.softmax] == list(range(3, 48, 4))
    shown = run("attention", "catalog:Qwen/Qwen3-Next-80B-A3B-Instruct", "--lang", "en").out
    assert "Pattern: 3 linear : 1 full, 12 times over" in shown
    assert "16 query and key heads of 128 serve 32 value heads of 128, 2 to one" in shown


def test_heads_of_linear_layers_are_read_from_the_shapes_too(tmp_path: Path) -> None:
    """A file with 6 value heads where the configuration says 4."""
    from ..support.families import saved_by_transformers

    saved_by_transformers(tmp_path, changed("qwen3_5_text", {"linear_num_value_heads": 6, "linear_num_key_heads": 2}))
    write_config(tmp_path, FAMILIES["qwen3_5_text"])
    attention = inspect(str(tmp_path)).attention
    assert {layer.value_heads for layer in attention.linear} == {6}
    assert {(layer.query_heads, layer.kv_heads, layer.head_dim) for layer in attention.softmax} == {(4, 2, 16)}
    assert [finding.key for finding in attention.findings] == ["finding_heads_disagree"] * 2  # layers 0 and 2


@pytest.mark.parametrize(
    ("model", "causes"),
    [
        # 17 beside the experts: fc, 3 norms, and of the layer 6 of attention, 2 norms, 5 of the block; 512 experts of 3 matrices.
        ("Qwen/Qwen3.5-397B-A17B", [("prediction_layer", 6_595_568_128, 17 + 3 * 512), ("retyped", 0, 90)]),
        (
            "Qwen/Qwen3-Next-80B-A3B-Instruct",
            [("prediction_layer", 1_650_471_424, 17 + 3 * 512), ("experts_singly", 0, 48 * 3 * 512)],
        ),
        ("Qwen/Qwen2-VL-7B-Instruct", [("renamed", 0, 729)]),  # all but lm_head
    ],
)
def test_a_release_of_real_size_is_read_from_its_shards(
    model: str, causes: list[tuple[str, int, int]], tmp_path: Path
) -> None:
    write_sharded(tmp_path, model)
    report = inspect(str(tmp_path))
    (check,) = report.checks
    assert check.agrees
    assert [(cause.name, cause.parameters, cause.tensors) for cause in check.causes] == causes
    assert report.parameters.unique == report.parameters.theory
    assert report.attention.findings == ()


def test_an_fp8_hybrid_takes_the_published_bytes(tmp_path: Path) -> None:
    """Qwen3.6-35B-A3B-FP8 without its prediction layer: 36,601,120,992 bytes, experts and their scales stored singly."""
    known = catalog.entries()
    config = dict(catalog.configuration("Qwen/Qwen3.6-35B-A3B", known))
    left = ("mlp.gate", "mlp.shared_expert_gate", "linear_attn.in_proj_a", "linear_attn.in_proj_b")
    config["quantization_config"] = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": [
            "lm_head",
            "model.visual",
            *(f"model.language_model.layers.{layer}.{name}" for layer in range(40) for name in left),
        ],
    }
    write_config(tmp_path, config)
    assert inspect(str(tmp_path)).tree.size_bytes == 36_601_120_992


@pytest.mark.parametrize("scheme", ["awq-int4", "gptq-int4", "fp8", "nvfp4"])
@pytest.mark.parametrize("model", ["Qwen/Qwen3-VL-8B-Instruct", "Qwen/Qwen3.5-27B"])
def test_a_scheme_by_its_name_leaves_the_vision_tower_as_it_is(model: str, scheme: str) -> None:
    dense, packed = (inspect(model, source="catalog", dtype=dtype) for dtype in (None, scheme))
    sizes = [next(part.size_bytes for part in one.components if part.name == "vision") for one in (dense, packed)]
    assert sizes[0] == sizes[1]
    assert packed.tree.size_bytes < dense.tree.size_bytes

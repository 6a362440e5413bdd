"""The catalog's models, counted by theory: against published counts, and against what transformers builds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest

from qwen_inspect.architectures import FAMILIES, architecture_of
from qwen_inspect.checkpoint import DType, ModelRef, Tensor
from qwen_inspect.language import Language
from qwen_inspect.loaders import catalog
from qwen_inspect.renderers.document.first_layer import printed
from qwen_inspect.results.listing import CatalogEntry
from qwen_inspect.spec import DenseMlp, each_buffer, each_tensor, tied_tensors
from qwen_inspect.structure.inspect import analyse, models

from ..support.models import run

# Unique parameters, and elements stored. Source: safetensors header totals and keras-hub presets, as the catalog cites them.
PUBLISHED: Mapping[str, tuple[int, int | None]] = {
    "Qwen/Qwen3-0.6B": (596_049_920, 751_632_384),
    "Qwen/Qwen3-1.7B": (1_720_574_976, 2_031_739_904),
    "Qwen/Qwen3-4B": (4_022_468_096, 4_022_468_096),
    "Qwen/Qwen3-8B": (8_190_735_360, 8_190_735_360),
    "Qwen/Qwen3-14B": (14_768_307_200, 14_768_307_200),
    "Qwen/Qwen3-32B": (32_762_123_264, 32_762_123_264),
    "Qwen/Qwen3-30B-A3B": (30_532_122_624, 30_532_122_624),
    "Qwen/Qwen3-235B-A22B": (235_093_634_560, 235_093_634_560),
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": (480_154_875_392, 480_154_875_392),
    "Qwen/Qwen2.5-0.5B": (494_032_768, 494_032_768),
    "Qwen/Qwen2.5-7B": (7_615_616_512, 7_615_616_512),
    "Qwen/Qwen2.5-72B": (72_706_203_648, 72_706_203_648),
    "Qwen/Qwen1.5-MoE-A2.7B": (14_315_784_192, 14_315_784_192),
    "Qwen/Qwen2-57B-A14B": (57_408_658_944, 57_408_658_944),
    "Qwen/Qwen1.5-0.5B": (463_987_712, 619_570_176),
    # Vision tower included; of hybrids, what is stored has a layer for multi-token prediction too.
    "Qwen/Qwen2-VL-72B-Instruct": (73_405_560_320, 73_405_560_320),
    "Qwen/Qwen2.5-VL-7B-Instruct": (8_292_166_656, 8_292_166_656),
    "Qwen/Qwen3-VL-8B-Instruct": (8_767_123_696, 8_767_123_696),
    "Qwen/Qwen3-VL-235B-A22B-Instruct": (235_670_022_896, 235_670_022_896),
    "Qwen/Qwen3-Next-80B-A3B-Instruct": (79_674_391_296, 81_324_862_720),
    "Qwen/Qwen3.5-0.8B": (852_985_920, 873_438_784),
    "Qwen/Qwen3.5-9B": (9_409_813_744, 9_653_104_368),
    "Qwen/Qwen3.5-27B": (27_356_728_560, 27_781_427_952),
    "Qwen/Qwen3.5-35B-A3B": (35_107_181_936, 35_951_822_704),
    "Qwen/Qwen3.5-397B-A17B": (396_802_360_816, 403_397_928_944),
}

# "3.3B activated of 30.5B", "22B of 235B", "35B of 480B", "2.7B of 14.3B": the model cards, to their rounding.
ACTIVE = {
    "Qwen/Qwen3-30B-A3B": (3.25e9, 3.4e9),
    "Qwen/Qwen3-235B-A22B": (21.5e9, 22.5e9),
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": (34.5e9, 35.5e9),
    "Qwen/Qwen1.5-MoE-A2.7B": (2.65e9, 2.75e9),
    "Qwen/Qwen3.5-397B-A17B": (16.5e9, 18e9),
}


WITHOUT_RELEASE = {
    # Decoders of others.
    *("gemma3n_text", "gemma4_text", "llama4_text", "qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text"),
    *("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"),
    # No configuration with a source.
    *[
        "apertus",
        "arcee",
        "bailing_hybrid",
        "bamba",
        "bert",
        "bloom",
        "cohere",
        "distilbert",
        "ernie4_5",
        "exaone4",
        "falcon",
        "falcon_h1",
        "gemma",
        "glm",
        "glm4",
        "glm4v",
        "glm4v_moe",
        "glm5_next",
        "gpt2",
        "gpt_neox",
        "granitemoe",
        "granitemoeshared",
        "hunyuan_v1_dense",
        "hunyuan_v1_moe",
        "kimi_linear",
        "lfm2_moe",
        "mamba2",
        "ministral",
        "ministral3",
        "mistral4",
        "mpt",
        "nemotron",
        "opt",
        "qwen3_asr",
        "roberta",
        "xlm-roberta",
    ],
}


@cache
def by_id() -> Mapping[str, CatalogEntry]:
    return {entry.id: entry for entry in models()}


def test_an_entry_that_is_read_alone_is_that_of_the_whole_file() -> None:
    catalog.entries.cache_clear()
    alone = catalog.entries()
    with open(catalog.CATALOG, encoding="utf-8") as file:
        whole = json.load(file)
    assert {name: alone[name] for name in whole} == whole
    assert list(alone) == list(whole)
    for name in ("config", "Qwen", 'Qwen/Qwen3-8B": {', "\n", ""):  # keys of entries, and what no name holds
        assert name not in alone
        with pytest.raises(KeyError):
            alone[name]


def test_the_catalog_holds_every_size_of_every_family() -> None:
    assert len(by_id()) == 203
    families = {entry.design.spec.family for entry in by_id().values()}
    assert set(FAMILIES) - families == WITHOUT_RELEASE


@pytest.mark.parametrize("model", PUBLISHED)
def test_counts_are_the_published_ones(model: str) -> None:
    unique, stored = PUBLISHED[model]
    counts = by_id()[model].design.parameters
    assert counts.theory == unique
    assert counts.unique == unique
    assert counts.stored_predicted == stored


@pytest.mark.parametrize("model", list(catalog.entries()))
def test_every_published_count_of_the_catalog_follows_from_its_configuration(model: str) -> None:
    entry = by_id()[model]
    assert entry.release is not None
    counts = entry.design.parameters
    assert entry.release.parameters in (None, counts.theory)
    assert entry.release.stored in (None, counts.stored_predicted)
    assert entry.release.config_source


@pytest.mark.parametrize("model", ACTIVE)
def test_active_parameters_round_to_the_model_card(model: str) -> None:
    least, most = ACTIVE[model]
    active = by_id()[model].design.parameters.active
    assert active is not None
    assert least <= active <= most


@pytest.mark.parametrize(
    ("model", "active", "bare"),
    [
        # 48 layers of attention 18,874,368, norms 4,352, router 262,144, 8 experts of 4,718,592; a last norm; two tables.
        ("Qwen/Qwen3-30B-A3B", 3_353_032_704, 3_353_032_704 - 2 * 151_936 * 2_048),
        ("Qwen/Qwen3-0.6B", 596_049_920, 596_049_920 - 151_936 * 1_024),  # one table, tied
    ],
)
def test_active_parameters_are_told_by_both_conventions(model: str, active: int, bare: int) -> None:
    counts = by_id()[model].design.parameters
    assert (counts.active, counts.active_non_embedding) == (active, bare)
    found = json.loads(run("params", f"catalog:{model}", "--format", "json").out)["parameters"]
    assert (found["active"], found["active_non_embedding"]) == (active, bare)


@pytest.mark.parametrize(
    ("model", "billions"),
    # "Number of Parameters (Non-Embedding)" of the model cards.
    [
        ("Qwen/Qwen3-0.6B", "0.44"),
        ("Qwen/Qwen3-8B", "6.95"),
        ("Qwen/Qwen3-14B", "13.2"),
        ("Qwen/Qwen3-30B-A3B", "29.9"),
        ("Qwen/Qwen2.5-7B", "6.53"),
        ("Qwen/Qwen2.5-0.5B", "0.36"),
    ],
)
def test_non_embedding_parameters_round_to_the_model_card(model: str, billions: str) -> None:
    decimals = len(billions.partition(".")[2])
    assert f"{by_id()[model].design.parameters.non_embedding / 1e9:.{decimals}f}" == billions


def test_dense_models_are_wholly_active() -> None:
    for entry in by_id().values():
        layers = entry.design.spec.layers
        if layers and all(isinstance(layer.mlp, DenseMlp) for layer in layers):
            assert entry.design.parameters.active == entry.design.parameters.theory, entry.id


NO_SHAPE = (
    *("rope_theta", "max_position_embeddings", "dual_chunk_attention_config"),
    *(*catalog.USUAL_KEYS, *catalog.USUAL_EXPERT_KEYS),
)


def shape_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the keys on which no module depends, and without empty lists."""
    return {
        key: shape_of(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in NO_SHAPE and value != []
    }


def distinct_configurations() -> dict[str, Mapping[str, Any]]:
    """One model of each distinct configuration: the others would build the very same modules."""
    known = catalog.entries()
    distinct: dict[str, str] = {}
    for model in known:
        distinct.setdefault(json.dumps(shape_of(catalog.configuration(model, known)), sort_keys=True), model)
    return {model: catalog.configuration(model, known) for model in distinct.values()}


@pytest.mark.slow
@pytest.mark.parametrize("model", distinct_configurations())
def test_theory_equals_what_transformers_builds(model: str) -> None:
    from qwen_inspect.tracing.instantiate import instantiate

    config = catalog.configuration(model, catalog.entries())
    architecture = architecture_of(config)
    spec = architecture.spec
    tree = architecture.tree
    built = instantiate(spec, config)
    assert tuple(each_tensor(tree)) == built.tensors
    assert tuple(each_buffer(tree)) == built.buffers
    assert "\n".join(printed(tree)) == built.printed
    assert tree.parameters == sum(tensor.elements for tensor in built.tensors)
    assert tree.size_bytes == sum(tensor.size_bytes for tensor in built.tensors)


def test_components_add_up_to_the_model() -> None:
    for entry in by_id().values():
        parts = entry.design.components
        assert sum(part.parameters for part in parts) == entry.design.parameters.theory, entry.id
        assert sum(part.size_bytes or 0 for part in parts) == entry.design.tree.size_bytes, entry.id
        assert sum(part.share_basis_points for part in parts) == 10_000, entry.id


def test_a_tied_head_owns_nothing() -> None:
    tied = by_id()["Qwen/Qwen3-0.6B"].design
    assert dict(tied_tensors(tied.tree)) == {"lm_head.weight": "model.embed_tokens.weight"}
    head = next(part for part in tied.components if part.name == "lm_head")
    assert (head.parameters, head.tied_to) == (0, "model.embed_tokens.weight")
    untied = by_id()["Qwen/Qwen3-8B"].design
    assert next(part for part in untied.components if part.name == "lm_head").parameters == 151_936 * 4_096


def test_a_release_whose_layout_is_not_known_predicts_no_files() -> None:
    known = catalog.entries()
    ref = ModelRef(source="catalog", id="Qwen/Qwen2.5-Coder-0.5B")
    report = analyse(catalog.checkpoint(ref, known), predict_files=True)
    assert report.tensors is None
    assert report.parameters.stored_predicted is None
    assert report.parameters.theory == 494_032_768


def test_embedding_models_store_the_bare_decoder() -> None:
    known = catalog.entries()
    ref = ModelRef(source="catalog", id="Qwen/Qwen3-Embedding-8B")
    report = analyse(catalog.checkpoint(ref, known), predict_files=True)
    assert report.tensors is not None
    assert len(report.tensors) == 398  # as listed by third parties that load it
    assert {tensor.name.split(".")[0] for tensor in report.tensors} == {"embed_tokens", "layers", "norm"}
    assert {cause.name for cause in report.checks[0].causes} == {"prefix_left_out", "headless"}
    assert report.checks[0].agrees


def files_of(model: str) -> tuple[Tensor, ...]:
    report = analyse(catalog.checkpoint(ModelRef(source="catalog", id=model), catalog.entries()), predict_files=True)
    assert report.tensors is not None
    assert [check.agrees for check in report.checks] == [True]
    return report.tensors


@pytest.mark.parametrize(
    ("model", "tensors", "float32"),
    [
        # Inventories of the headers by third parties, as the catalog cites them.
        ("Qwen/Qwen3.5-397B-A17B", 2_924, 90),
        ("Qwen/Qwen3-VL-32B-Instruct", 1_058, 0),
    ],
)
def test_predicted_files_hold_as_many_tensors_as_published(model: str, tensors: int, float32: int) -> None:
    files = files_of(model)
    assert len(files) == tensors
    assert sum(tensor.dtype is DType.F32 for tensor in files) == float32


def test_the_float32_elements_of_a_release_are_the_published_2592() -> None:
    files = files_of("Qwen/Qwen3.5-0.8B")  # BF16 873,436,192 + F32 2,592, by its header
    assert sum(tensor.elements for tensor in files if tensor.dtype is DType.F32) == 2_592
    assert sum(tensor.dtype is DType.F32 for tensor in files) == 36  # as listed in modelscope/ms-swift PR #9972
    assert sum(tensor.elements for tensor in files if tensor.dtype is DType.BF16) == 873_436_192


def test_a_prediction_layer_is_stored_and_no_part_of_the_model() -> None:
    files = files_of("Qwen/Qwen3.5-27B")
    ahead = [tensor for tensor in files if tensor.name.startswith("mtp.")]
    assert len(ahead) == 15  # fc, three norms, and a layer: two norms, four projections, QK-Norm, an MLP of three
    # Published: 849,398,784 bytes of Qwen3.8-27B, which has the same layers.
    assert sum(tensor.size_bytes for tensor in ahead) == 849_398_784
    report = analyse(
        catalog.checkpoint(ModelRef(source="catalog", id="Qwen/Qwen3.5-27B"), catalog.entries()), predict_files=True
    )
    assert [(cause.name, cause.parameters) for cause in report.checks[0].causes] == [
        ("prediction_layer", 424_699_392),
        ("retyped", 0),
    ]
    assert report.parameters.unique == 27_356_728_560


def test_older_vision_releases_store_decoder_and_tower_side_by_side() -> None:
    files = files_of("Qwen/Qwen2.5-VL-7B-Instruct")
    assert {".".join(tensor.name.split(".")[:2]) for tensor in files} == {
        "lm_head.weight",
        "model.embed_tokens",
        "model.layers",
        "model.norm",
        "visual.blocks",
        "visual.merger",
        "visual.patch_embed",
    }


def test_experts_of_qwen3_vl_are_stored_transposed() -> None:
    files = {tensor.name: tensor.shape for tensor in files_of("Qwen/Qwen3-VL-30B-A3B-Instruct")}
    block = "model.language_model.layers.0.mlp.experts"
    # As the layout of the release is described: [experts, hidden, 2 x intermediate] and [experts, intermediate, hidden].
    assert files[f"{block}.gate_up_proj"] == (128, 2_048, 1_536)
    assert files[f"{block}.down_proj"] == (128, 768, 2_048)


@pytest.mark.parametrize(
    ("model", "notice"),
    [
        (
            "Qwen/Qwen3-8B",
            "Qwen/Qwen3-8B comes from the built-in catalog, no file was read. Configuration from a copy of config.json: "
            "all values are confirmed; its parameters add up to the published count",
        ),
        (
            "Qwen/Qwen1.5-110B-Chat",
            "Qwen/Qwen1.5-110B-Chat comes from the built-in catalog, no file was read. Configuration from a release of the same "
            "shape: its shape is confirmed, some other values are not; no parameter count was published",
        ),
    ],
)
def test_the_notice_of_an_entry_says_what_kind_of_source_it_has(model: str, notice: str) -> None:
    checkpoint = catalog.load(ModelRef(source="catalog", id=model))
    assert [Language("en")(message) for message in checkpoint.notices] == [notice]

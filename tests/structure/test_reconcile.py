"""Every difference between theory and files has its cause, and what has none is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_inspect.architectures import architecture_of
from qwen_inspect.checkpoint import DType, Tensor
from qwen_inspect.loaders.resolve import Access
from qwen_inspect.results.counts import Check
from qwen_inspect.spec import ModelSpec, Module, each_tensor, tied_tensors
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.structure.miscounts import against_claim
from qwen_inspect.structure.reconcile import against_files, against_instantiated, copies
from qwen_inspect.structure.stored import packing_of

from ..support.families import (
    TINY_QWEN2,
    TINY_QWEN2_MOE,
    TINY_QWEN2_VL,
    TINY_QWEN3_5,
    TINY_QWEN3_MOE,
    TINY_QWEN3_NEXT,
    TINY_QWEN3_VL_MOE,
)
from ..support.models import TINY_QWEN3, write_config, write_sparse

HEAD = Tensor("lm_head.weight", (256, 64), DType.BF16)


def built(config: dict[str, object]) -> tuple[ModelSpec, Module]:
    architecture = architecture_of(config)
    spec = architecture.spec
    return spec, architecture.tree


def stored(config: dict[str, object]) -> list[Tensor]:
    _, tree = built(config)
    form = architecture_of(config).stored_form
    return [part for tensor in each_tensor(tree) for part in form(tensor)]


def check(config: dict[str, object], files: list[Tensor], missing: dict[str, tuple[str, ...]] | None = None) -> Check:
    _, tree = built(config)
    ahead = architecture_of(config).prediction_layers
    return against_files(
        tuple(each_tensor(tree)),
        files,
        witness="theory",
        files_witness="stored",
        tied=dict(tied_tensors(tree)),
        stored_form=architecture_of(config).stored_form,
        missing_files=missing,
        ignored=("mtp.",) if ahead else (),
    )


QWEN3: dict[str, object] = dict(TINY_QWEN3)
UNTIED: dict[str, object] = {**TINY_QWEN3, "tie_word_embeddings": False}


def test_equal_witnesses_need_no_cause() -> None:
    found = check(QWEN3, stored(QWEN3))
    assert (found.difference, found.residual, found.causes, found.unexplained) == (0, 0, (), ())


def test_a_tied_copy_is_named() -> None:
    found = check(QWEN3, [*stored(QWEN3), HEAD])
    assert [(cause.name, cause.parameters) for cause in found.causes] == [("tied_copy", 256 * 64)]
    assert found.agrees


def test_a_tied_copy_of_another_shape_is_no_copy() -> None:
    found = check(QWEN3, [*stored(QWEN3), replace(HEAD, shape=(255, 64))])
    assert [item.kind for item in found.unexplained] == ["unexpected"]
    assert found.residual == 255 * 64
    assert not found.agrees


def test_a_head_that_is_not_stored_is_named() -> None:
    found = check(UNTIED, [tensor for tensor in stored(UNTIED) if tensor.name != HEAD.name])
    assert [(cause.name, cause.parameters) for cause in found.causes] == [("headless", -256 * 64)]
    assert found.agrees


def test_names_without_the_prefix_are_recognised() -> None:
    files = [replace(tensor, name=tensor.name.removeprefix("model.")) for tensor in stored(QWEN3)]
    found = check(QWEN3, files)
    assert [cause.name for cause in found.causes] == ["prefix_left_out"]
    assert found.agrees


def test_names_with_a_prefix_too_many_are_recognised() -> None:
    bare: dict[str, object] = {**TINY_QWEN3, "architectures": ["Qwen3Model"]}
    found = check(bare, [replace(tensor, name=f"model.{tensor.name}") for tensor in stored(bare)])
    assert [cause.name for cause in found.causes] == ["prefix_added"]
    assert found.agrees


def test_rotary_tables_of_older_files_are_buffers() -> None:
    table = Tensor("model.layers.0.self_attn.rotary_emb.inv_freq", (8,), DType.F32)
    found = check(QWEN3, [*stored(QWEN3), table])
    assert [(cause.name, cause.parameters) for cause in found.causes] == [("stored_buffers", 8)]
    assert found.agrees


def test_a_missing_shard_accounts_for_what_it_should_hold() -> None:
    gone = ("model.layers.1.mlp.up_proj.weight", "model.norm.weight")
    files = [tensor for tensor in stored(QWEN3) if tensor.name not in gone]
    found = check(QWEN3, files, {"model-00002-of-00002.safetensors": gone})
    assert [(cause.name, cause.parameters, cause.tensors) for cause in found.causes] == [
        ("missing_shard", -(96 * 64 + 64), 2)
    ]
    assert found.agrees


def test_another_dtype_is_told_and_changes_no_count() -> None:
    found = check(QWEN3, [replace(tensor, dtype=DType.F32) for tensor in stored(QWEN3)])
    assert [(cause.name, cause.parameters) for cause in found.causes] == [("retyped", 0)]
    assert found.agrees


def test_a_tensor_that_is_missing_unexpected_or_reshaped_is_never_explained_away() -> None:
    files = stored(QWEN3)
    assert not check(QWEN3, files[1:]).agrees
    assert not check(QWEN3, [*files, Tensor("mtp.fc.weight", (64, 128), DType.BF16)]).agrees
    assert not check(QWEN3, [replace(files[0], shape=(128, 128)), *files[1:]]).agrees  # as many elements, another shape


def test_gains_and_losses_that_cancel_are_still_shown() -> None:
    files = [tensor for tensor in stored(QWEN3) if tensor.name != "model.norm.weight"]
    found = check(QWEN3, [*files, Tensor("surprise", (64,), DType.BF16)])
    assert (found.difference, found.residual) == (0, 0)
    assert not found.agrees


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_causes_and_unexplained_tensors_always_add_up_to_the_difference(data: st.DataObject) -> None:
    config = data.draw(st.sampled_from([QWEN3, UNTIED, dict(TINY_QWEN2), dict(TINY_QWEN3_MOE), dict(TINY_QWEN2_MOE)]))
    files = stored(config)
    kept = data.draw(st.lists(st.sampled_from(files), unique=True))
    extra = data.draw(st.lists(st.builds(Tensor, st.text(), st.just((3, 5)), st.just(DType.BF16)), max_size=3))
    found = check(config, [*kept, *extra])
    explained = sum(cause.parameters for cause in found.causes)
    assert found.difference == explained + sum(item.parameters for item in found.unexplained)
    assert found.residual == sum(item.parameters for item in found.unexplained)


def test_instantiated_tensors_are_compared_by_name_shape_and_dtype() -> None:
    theory = stored(QWEN3)
    assert against_instantiated(theory, theory).agrees
    changed = [
        replace(theory[0], dtype=DType.F16),
        replace(theory[1], shape=(1,)),
        *theory[3:],
        Tensor("x", (2,), DType.F16),
    ]
    found = against_instantiated(theory, changed)
    assert sorted(item.kind for item in found.unexplained) == ["missing", "reshaped", "retyped", "unexpected"]
    assert found.residual == sum(item.parameters for item in found.unexplained)


def test_a_prediction_layer_beside_the_model_is_named() -> None:
    config = dict(TINY_QWEN3_NEXT)
    architecture = architecture_of(config)
    ahead = [part for tensor in architecture.prediction_layers for part in architecture.stored_form(tensor)]
    found = check(config, [*stored(config), *ahead])
    assert [cause.name for cause in found.causes] == ["prediction_layer", "experts_singly"]
    assert found.agrees
    assert copies(found) == found.difference == sum(tensor.elements for tensor in ahead)
    # Whatever is under that name: transformers ignores all of ^mtp.*
    assert check(config, [*stored(config), Tensor("mtp.something.new", (3,), DType.BF16)]).agrees
    assert not check(config, [*stored(config), Tensor("mtpx.weight", (3,), DType.BF16)]).agrees


def test_a_vision_model_is_recognised_under_its_older_names_and_its_newer() -> None:
    config = dict(TINY_QWEN2_VL)
    found = check(config, stored(config))
    assert [(cause.name, cause.parameters) for cause in found.causes] == [("renamed", 0)]
    assert found.agrees
    newer = check(config, list(each_tensor(built(config)[1])))
    assert (newer.causes, newer.agrees) == ((), True)


def test_experts_are_accepted_transposed_as_released_and_as_built() -> None:
    config = dict(TINY_QWEN3_VL_MOE)
    assert check(config, stored(config)).agrees
    assert check(config, list(each_tensor(built(config)[1]))).agrees
    wrong = [
        replace(tensor, shape=tensor.shape[::-1]) if "down_proj" in tensor.name else tensor for tensor in stored(config)
    ]
    assert {item.kind for item in check(config, wrong).unexplained} == {"reshaped"}


MISCOUNTS = [
    (QWEN3, "tied_counted_twice", 256 * 64),
    (UNTIED, "head_left_out", -256 * 64),
    (QWEN3, "embedding_left_out", -256 * 64),
    (QWEN3, "qk_norm_wide", 2 * ((64 - 16) + (32 - 16))),
    (QWEN3, "qk_norm_left_out", -2 * 2 * 16),
    (QWEN3, "kv_heads_as_query_heads", 2 * 2 * (64 - 32) * 64),
    (QWEN3, "mlp_not_gated", -2 * 64 * 96),
    (dict(TINY_QWEN2), "biases_left_out", -2 * (64 + 2 * 32)),
    (QWEN3, "norms_left_out", -(2 * 2 + 1) * 64),
    (dict(TINY_QWEN3_MOE), "router_left_out", -3 * 8 * 64),
    (dict(TINY_QWEN3_MOE), "only_active", -3 * (8 - 2) * 3 * 64 * 32),
    (dict(TINY_QWEN2_MOE), "shared_expert_left_out", -2 * (3 * 64 * 48 + 64)),
    (dict(TINY_QWEN3_NEXT), "output_gate_left_out", -4 * 16 * 64),  # one full layer of four
    # A patch of 3 x 2 x 4 x 4, 16 positions, two blocks, the merger of 2 x 2 patches.
    (
        dict(TINY_QWEN3_5),
        "vision_left_out",
        -(
            (96 * 32 + 32)
            + 16 * 32
            + 2 * (4 * 32 + (32 * 96 + 96) + (32 * 32 + 32) + (32 * 48 + 48) + (48 * 32 + 32))
            + (2 * 32 + (128 * 128 + 128) + (128 * 64 + 64))
        ),
    ),
    ({**QWEN3, "head_dim": 32}, "head_dim_derived", -2 * (2 * (128 - 64) + 2 * (64 - 32)) * 64),
]


@pytest.mark.parametrize(("config", "name", "parameters"), MISCOUNTS)
def test_a_usual_mistake_is_recognised(config: dict[str, object], name: str, parameters: int) -> None:
    spec, tree = built(config)
    found = against_claim(spec, tree, tree.parameters + parameters)
    assert (name, parameters) in [(cause.name, cause.parameters) for cause in found.causes] or parameters in [
        cause.parameters
        for cause in found.causes  # two mistakes of the same size cannot be told apart
    ]
    assert found.residual == 0


def test_a_count_with_the_prediction_layer_is_recognised() -> None:
    config = dict(TINY_QWEN3_NEXT)
    spec, tree = built(config)
    ahead = architecture_of(config).prediction_layers
    found = against_claim(spec, tree, tree.parameters + sum(tensor.elements for tensor in ahead), ahead)
    assert [cause.name for cause in found.causes] == ["prediction_layer_counted"]


# Qwen3-8B: 252 matrices of 6,945,767,424 numbers and 1,244,967,936 parameters beside; scales and zeros for 128 input features.
WORDS, SCALES, ZEROS, INDICES = 868_220_928, 54_263_808, 6_782_976, 36 * (6 * 4096 + 12_288)
OTHERS, NUMBERS = 1_244_967_936, 6_945_767_424


@pytest.mark.parametrize(
    ("scheme", "claimed", "causes"),
    [
        # The elements of Qwen/Qwen3-8B-AWQ, whose file holds 6,098,479,104 bytes: 4 of each word and zero, 2 of the others.
        ("awq-int4", OTHERS + WORDS + SCALES + ZEROS, {"packed_words", "all_beside_counted"}),
        ("awq-int4", OTHERS + WORDS, {"packed_words"}),
        ("awq-int4", OTHERS + WORDS + SCALES, {"packed_words", "scales_counted"}),
        ("awq-int4", OTHERS + NUMBERS + SCALES, {"scales_counted"}),
        # GPTQ's with the group of each input feature, 6,103,787,520 bytes, and without.
        ("gptq-int4", OTHERS + WORDS + SCALES + ZEROS + INDICES, {"packed_words", "all_beside_counted"}),
        ("gptq-int4", OTHERS + WORDS + SCALES + ZEROS, {"packed_words", "scales_counted", "zeros_counted"}),
        # A number a byte, and a scale for each of 4096/128 x 4096/128 blocks and their like.
        ("fp8", OTHERS + NUMBERS + NUMBERS // 128**2, {"scales_counted"}),
        ("bnb-nf4", OTHERS + NUMBERS // 2, {"packed_words"}),
        ("bnb-int8", OTHERS + NUMBERS, set()),
        ("awq-int4", OTHERS + WORDS + SCALES + ZEROS + 1, set()),
    ],
)
def test_stored_elements_taken_for_parameters_are_recognised(scheme: str, claimed: int, causes: set[str]) -> None:
    report = inspect("Qwen/Qwen3-8B", source="catalog", dtype=scheme)
    assert report.config is not None
    architecture = architecture_of(report.config)
    tree = architecture.tree
    packing = packing_of(report.config, tree, architecture.stored_form, None, in_blocks=False)
    assert packing is not None
    found = against_claim(report.spec, tree, claimed, (), packing)
    assert {cause.name for cause in found.causes} == causes
    assert found.agrees is (bool(causes) or claimed == OTHERS + NUMBERS)


def test_two_mistakes_at_once_are_found() -> None:
    spec, tree = built(QWEN3)
    found = against_claim(spec, tree, tree.parameters + 256 * 64 - 2 * 2 * 16)
    assert {cause.name for cause in found.causes} == {"tied_counted_twice", "qk_norm_left_out"}


def test_a_count_that_no_mistake_gives_stays_unexplained() -> None:
    spec, tree = built(QWEN3)
    found = against_claim(spec, tree, tree.parameters + 7)
    assert found.causes == ()
    assert found.residual == 7
    assert not found.agrees


def test_a_partial_directory_is_accounted_when_asked(tmp_path: Path) -> None:
    files = stored(QWEN3)
    write_config(tmp_path, QWEN3)
    write_sparse(tmp_path / "model-00001-of-00002.safetensors", files[:5])
    weight_map = {tensor.name: f"model-0000{1 if tensor in files[:5] else 2}-of-00002.safetensors" for tensor in files}
    (tmp_path / "model.safetensors.index.json").write_text(__import__("json").dumps({"weight_map": weight_map}))
    report = inspect(str(tmp_path), access=Access(partial=True))
    assert [cause.name for cause in report.checks[0].causes] == ["missing_shard"]
    assert report.checks[0].agrees
    assert [notice.key for notice in report.notices] == ["partial"]


@pytest.mark.parametrize("dtype", [None, "fp8", "awq-int4"])
def test_one_expert_counted_many_times_says_what_all_experts_listed_say(dtype: str | None) -> None:
    model = "allenai/OLMoE-1B-7B-0924"
    listed = inspect(model, source="catalog", dtype=dtype, predict_files=True)
    counted = inspect(model, source="catalog", dtype=dtype, count_files=True)
    assert listed.tensors is not None
    assert len(listed.tensors) > 16 * 64 * 3  # layers, experts, matrices
    assert counted.tensors is None
    assert counted.checks == listed.checks
    assert counted.parameters == listed.parameters
    assert tuple(counted.known.loaded_bytes) == tuple(
        part.size_bytes for part in listed.known.weights or each_tensor(listed.tree)
    )

"""Quantised checkpoints: every stored tensor predicted, against files that the real libraries wrote and published totals."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_inspect.architectures import architecture_of
from qwen_inspect.architectures.blocks import linear, stored_as_built
from qwen_inspect.architectures.quantised import read_quantisation
from qwen_inspect.architectures.quantised_modules import skipped_by
from qwen_inspect.architectures.quantised_presets import PRESETS
from qwen_inspect.checkpoint import DType, Tensor
from qwen_inspect.errors import MalformedError, QwenInspectError, UnsupportedError
from qwen_inspect.loaders import catalog
from qwen_inspect.options.prediction import SCHEMES
from qwen_inspect.predicting.predict import predict
from qwen_inspect.results.memory import Run
from qwen_inspect.results.model import Report
from qwen_inspect.spec import Module, each_tensor
from qwen_inspect.structure.accounting import components
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.structure.packing import Packing, pack
from qwen_inspect.structure.stored_bytes import packed_tree, weights_of

from ..support.families import FAMILIES, saved_by_transformers
from ..support.models import TINY_QWEN3, run, write_config, write_sparse

# Large enough for groups of 128 and blocks of 128 x 128 to divide some sides and not others.
QWEN3: Mapping[str, Any] = {
    **TINY_QWEN3,
    "hidden_size": 256,
    "intermediate_size": 384,
    "head_dim": 64,
    "tie_word_embeddings": False,
}
# As Qwen/Qwen3-8B-AWQ, JunHowie/Qwen3-8B-GPTQ-Int4 and Qwen/Qwen3-0.6B-FP8 have them.
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "gptq", "pack_dtype": "int32"}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}


def catalogued(model: str) -> Mapping[str, Any]:
    return catalog.configuration(model, catalog.entries())


def quantised(tmp_path: Path, config: Mapping[str, Any], quantization: Mapping[str, Any]) -> Report:
    """The report of a configuration alone."""
    return inspect(str(write_config(tmp_path, {**config, "quantization_config": quantization})))


def predicted(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> list[Tensor]:
    """Every tensor that files of the quantised model hold, tied copies left out."""
    architecture = architecture_of(config)
    tree = architecture.tree
    found = read_quantisation({"quantization_config": quantization})
    assert found is not None
    packing = pack(tree, found, architecture.stored_form, None)
    return [part for tensor in each_tensor(tree) for part in packing.stored_form(tensor)]


# --- published totals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "quantization", "size_bytes"),
    [
        # Sums of the data of the releases' safetensors headers.
        ("Qwen/Qwen3-8B", AWQ, 6_098_479_104),
        ("Qwen/Qwen3-8B", GPTQ, 6_103_787_520),
        # The file also holds the head, tied: 151,936 x 1,024 x 2 = 311,164,928 bytes.
        ("Qwen/Qwen3-0.6B", FP8, 1_062_916_608 - 311_164_928),
    ],
    ids=["Qwen3-8B-AWQ", "Qwen3-8B-GPTQ-Int4", "Qwen3-0.6B-FP8"],
)
def test_bytes_of_releases_are_exact(
    tmp_path: Path, model: str, quantization: Mapping[str, Any], size_bytes: int
) -> None:
    report = quantised(tmp_path, catalogued(model), quantization)
    assert report.known.quantised is not None
    assert report.known.quantised.total_bytes == size_bytes
    assert report.tree.size_bytes == size_bytes
    assert sum(part.size_bytes or 0 for part in report.components) == size_bytes


def test_elements_of_a_release_of_experts_are_exact() -> None:
    # Qwen/Qwen3-30B-A3B-FP8, safetensors total by the hub: 30,533,947,392 (the dense release: 30,532,122,624).
    config = catalogued("Qwen/Qwen3-30B-A3B")
    skipped = ["lm_head", *(f"model.layers.{layer}.mlp.gate" for layer in range(48))]
    files = predicted(config, {**FP8, "modules_to_not_convert": skipped})
    assert sum(tensor.elements for tensor in files) == 30_533_947_392


def gpt_oss_120b() -> Module:
    """Source: transformers 5.23, models/gpt_oss; openai/gpt-oss-120b's configuration: 36 layers, 128 experts."""
    hidden, experts, dtype = 2880, 128, DType.BF16

    def plain(name: str, **tensors: tuple[int, ...]) -> Module:
        return Module(
            name=name, class_name=name, tensors=tuple(Tensor(one, shape, dtype) for one, shape in tensors.items())
        )

    attention = Module(
        name="self_attn",
        class_name="GptOssAttention",
        tensors=(Tensor("sinks", (64,), dtype),),
        children=(
            linear("q_proj", hidden, 64 * 64, dtype, bias=True),
            linear("k_proj", hidden, 8 * 64, dtype, bias=True),
            linear("v_proj", hidden, 8 * 64, dtype, bias=True),
            linear("o_proj", 64 * 64, hidden, dtype, bias=True),
        ),
    )
    fused = Module(
        name="experts",
        class_name="GptOssExperts",
        routed=(4, experts),
        tensors=(
            Tensor("gate_up_proj", (experts, hidden, 2 * hidden), dtype),
            Tensor("gate_up_proj_bias", (experts, 2 * hidden), dtype),
            Tensor("down_proj", (experts, hidden, hidden), dtype),
            Tensor("down_proj_bias", (experts, hidden), dtype),
        ),
    )
    mlp = Module(
        name="mlp",
        class_name="GptOssMLP",
        children=(plain("router", weight=(experts, hidden), bias=(experts,)), fused),
    )
    norms = (plain("input_layernorm", weight=(hidden,)), plain("post_attention_layernorm", weight=(hidden,)))
    layer = Module(name="0", class_name="GptOssDecoderLayer", repeats=36, children=(attention, mlp, *norms))
    decoder = Module(
        name="model",
        class_name="GptOssModel",
        children=(
            plain("embed_tokens", weight=(201_088, hidden)),
            Module(name="layers", class_name="ModuleList", children=(layer,)),
            plain("norm", weight=(hidden,)),
        ),
    )
    head = linear("lm_head", hidden, 201_088, dtype)
    return Module(name="", class_name="GptOssForCausalLM", children=(decoder, head))


def test_bytes_of_gpt_oss_120b_are_exact() -> None:
    found = read_quantisation(
        {
            "quantization_config": {
                "quant_method": "mxfp4",
                "modules_to_not_convert": [
                    "model.layers.*.self_attn",
                    "model.layers.*.mlp.router",
                    "model.embed_tokens",
                    "lm_head",
                ],
            }
        }
    )
    assert found is not None
    tree = gpt_oss_120b()
    packing = pack(tree, found, stored_as_built, None)
    packed = packed_tree(tree, packing)
    assert (
        weights_of(tree, packed, found, packing).total_bytes == 65_248_815_744
    )  # sum of the release's safetensors headers
    assert packed.size_bytes == 65_248_815_744
    assert packed.children[0].children[1].children[0].repeats == 36
    names = {part.tensor.name: part.tensor.shape for parts in packing.parts.values() for part in parts}
    assert names["model.layers.0.mlp.experts.gate_up_proj_blocks"] == (128, 5760, 90, 16)
    assert names["model.layers.0.mlp.experts.down_proj_scales"] == (128, 2880, 90)


# --- files that the real libraries wrote ----------------------------------------------------------------------------


def check_written(directory: Path) -> Report:
    """The files agree with what the configuration predicts, to the tensor, and hold as many parameters as the dense model."""
    report = inspect(str(directory))
    (check,) = report.checks
    assert check.unexplained == ()
    assert check.residual == 0
    assert report.parameters.unique == report.parameters.theory == check.left_parameters
    found = report.known.quantised
    assert found is not None
    assert report.tensors is not None
    written = {tensor.name: (tensor.shape, tensor.dtype) for tensor in report.tensors}
    assert found.total_bytes == sum(tensor.size_bytes for tensor in report.tensors)
    config = json.loads((directory / "config.json").read_text())
    alone = {tensor.name: (tensor.shape, tensor.dtype) for tensor in predicted(config, config["quantization_config"])}
    notes = {name for name in written if "quant_state" in name}  # JSON, with a float's digits
    assert {name: one for name, one in written.items() if name not in notes} == {
        name: one for name, one in alone.items() if name not in notes
    }
    assert notes == {name for name in alone if "quant_state" in name}
    return report


def saved(directory: Path, config: Mapping[str, Any]) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    built = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16)
    built.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"load_in_8bit": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": ["k_proj", "lm_head"]},
    ],
    ids=["int8", "nf4-double", "fp4", "nf4-skip"],
)
def test_what_bitsandbytes_writes_is_predicted(tmp_path: Path, options: dict[str, Any], tied: bool) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dense = saved(tmp_path / "dense", {**QWEN3, "tie_word_embeddings": tied})
    chosen = BitsAndBytesConfig(**options)
    AutoModelForCausalLM.from_pretrained(dense, quantization_config=chosen, dtype="bfloat16").save_pretrained(
        tmp_path / "packed"
    )
    check_written(tmp_path / "packed")


@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5", "qwen3_5_moe", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_what_bitsandbytes_writes_of_hybrids_and_seeing_models_is_predicted(tmp_path: Path, family: str) -> None:
    """Fused experts stay dense and are written singly; the tower is named as the class has it, whatever files call it."""
    pytest.importorskip("bitsandbytes")
    import transformers

    saved_by_transformers(tmp_path / "dense", FAMILIES[family])
    skipped = ["lm_head", "model.visual"]
    chosen = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=skipped
    )
    class_ = getattr(transformers, FAMILIES[family]["architectures"][0])
    class_.from_pretrained(tmp_path / "dense", quantization_config=chosen, dtype="bfloat16").save_pretrained(
        tmp_path / "packed"
    )
    check_written(tmp_path / "packed")


PRESETS_OF_COMPRESSED_TENSORS = [
    "W4A16",
    "W4A16_ASYM",
    "W8A16",
    "W8A8",
    "FP8",
    "FP8_DYNAMIC",
    "FP8_BLOCK",
    "NVFP4",
    "NVFP4A16",
    "MXFP4",
    "W4A8",
    "MXFP8",
]


def compressed(directory: Path, config: Mapping[str, Any], preset: str, ignore: list[str]) -> Path:
    """The model as compressed-tensors itself packs and saves it."""
    pytest.importorskip("compressed_tensors")
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationConfig,
        apply_quantization_config,
        preset_name_to_scheme,
    )
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16)
    groups = {"group_0": preset_name_to_scheme(preset, ["Linear"])}
    apply_quantization_config(
        model, QuantizationConfig(config_groups=groups, ignore=ignore, quantization_status="frozen")
    )
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(directory)
    compressor.update_config(str(directory))
    return directory


@pytest.mark.parametrize("preset", PRESETS_OF_COMPRESSED_TENSORS)
def test_what_compressed_tensors_writes_is_predicted(tmp_path: Path, preset: str) -> None:
    check_written(compressed(tmp_path, QWEN3, preset, ["lm_head", "re:.*k_proj$"]))


def test_linear_modules_that_stay_are_named(tmp_path: Path) -> None:
    report = check_written(compressed(tmp_path, QWEN3, "W4A16", ["lm_head", "model.layers.1.self_attn.q_proj"]))
    assert report.known.quantised is not None
    assert [(one.name, one.modules, one.parameters) for one in report.known.quantised.kept] == [
        ("model.layers.*.self_attn.q_proj", 1, 256 * 256),
        ("lm_head", 1, 256 * 256),
    ]
    # Layers that differ no longer fold.
    assert [layer.label for layer in report.tree.children[0].children[1].children] == ["0", "1"]


def fp8_model(config: Mapping[str, Any]) -> Any:
    """The model with transformers' own FP8 modules, as a GPU would load it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16)
    replace_with_fp8_linear(model, get_keys_to_not_convert(model), FineGrainedFP8Config())
    return model


def fp8_state(directory: Path, config: Mapping[str, Any]) -> Path:
    """What `fp8_model` would save, at its real shapes."""
    import torch
    from safetensors.torch import save_file

    state = {name: torch.zeros(one.shape, dtype=one.dtype) for name, one in fp8_model(config).state_dict().items()}
    write_config(directory, {**config, "quantization_config": {**FP8, "modules_to_not_convert": ["lm_head"]}})
    save_file(state, directory / "model.safetensors")
    return directory


def test_the_fp8_modules_of_transformers_are_predicted(tmp_path: Path) -> None:
    report = inspect(str(fp8_state(tmp_path, QWEN3)))
    (check,) = report.checks
    assert check.agrees
    causes = {cause.name: (cause.parameters, cause.tensors) for cause in check.causes}
    # Two layers: q, o 256 x 256, k, v 128 x 256, gate, up 384 x 256, down 256 x 384: blocks of 128 x 128.
    assert causes["quantised_scales"] == (2 * (4 + 4 + 2 + 2 + 6 + 6 + 6), 14)
    assert causes["quantised_packed"] == (0, 14)
    assert "retyped" not in causes
    found = report.known.quantised
    assert found is not None
    # transformers builds the scales in float32, where Qwen's releases store bfloat16.
    assert found.total_bytes == sum(tensor.size_bytes for tensor in report.tensors or ())


# --- layouts written by hand, from the libraries' sources ------------------------------------------------------------


def awq_file(directory: Path, quantization: Mapping[str, Any] = AWQ, **changed: tuple[int, ...]) -> Path:
    """QWEN3 as AutoAWQ's WQLinear_GEMM stores it: qweight (in, out / 8), qzeros (in / 128, out / 8), scales (in / 128, out).

    Source: AutoAWQ 0.2.9, modules/linear/gemm.py.
    """
    architecture = architecture_of(QWEN3)
    tensors = []
    for tensor in each_tensor(architecture.tree):
        module = tensor.name.removesuffix(".weight")
        if "_proj" not in tensor.name:
            tensors.append(tensor)
            continue
        out, columns = tensor.shape
        shapes: dict[str, tuple[int, ...]] = {
            "qweight": (columns, out // 8),
            "qzeros": (columns // 128, out // 8),
            **changed,
        }
        tensors += [Tensor(f"{module}.{name}", shape, DType.I32) for name, shape in shapes.items()]
        tensors.append(Tensor(f"{module}.scales", (columns // 128, out), DType.F16))
    write_config(directory, {**QWEN3, "quantization_config": quantization})
    write_sparse(directory / "model.safetensors", tensors)
    return directory


def test_each_part_of_an_awq_file_is_a_cause(tmp_path: Path) -> None:
    report = inspect(str(awq_file(tmp_path)))
    (check,) = report.checks
    # A layer's seven matrices: 2 x 256 x 256, 2 x 128 x 256, 3 x 384 x 256 = 491,520 parameters.
    assert {cause.name: (cause.parameters, cause.tensors) for cause in check.causes} == {
        "quantised_packed": (2 * (491_520 // 8 - 491_520), 14),
        "quantised_scales": (2 * 491_520 // 128, 14),
        "quantised_zeros": (2 * 491_520 // 128 // 8, 14),
    }
    assert check.agrees
    assert report.parameters.unique == report.parameters.theory


def gptq_file(directory: Path, *, biases: bool) -> Path:
    """QWEN3 as GPTQModel stores it: qweight (in / 8, out), qzeros (in / 128, out / 8), scales (in / 128, out), g_idx (in,).

    Source: GPTQModel 4.0, nn_modules/qlinear/__init__.py (PackableQuantLinear). AutoGPTQ before 0.7 wrote a bias for each module.
    """
    architecture = architecture_of(QWEN3)
    tensors = []
    for tensor in each_tensor(architecture.tree):
        module = tensor.name.removesuffix(".weight")
        if "_proj" not in tensor.name:
            tensors.append(tensor)
            continue
        out, columns = tensor.shape
        tensors += [
            Tensor(f"{module}.qweight", (columns // 8, out), DType.I32),
            Tensor(f"{module}.qzeros", (columns // 128, out // 8), DType.I32),
            Tensor(f"{module}.scales", (columns // 128, out), DType.F16),
            Tensor(f"{module}.g_idx", (columns,), DType.I32),
        ]
        if biases:
            tensors.append(Tensor(f"{module}.bias", (out,), DType.F16))
    write_config(directory, {**QWEN3, "quantization_config": GPTQ})
    write_sparse(directory / "model.safetensors", tensors)
    return directory


@pytest.mark.parametrize("biases", [False, True])
def test_group_indices_and_biases_of_a_gptq_file_are_causes(tmp_path: Path, biases: bool) -> None:
    (check,) = inspect(str(gptq_file(tmp_path, biases=biases))).checks
    causes = {cause.name: (cause.parameters, cause.tensors) for cause in check.causes}
    assert causes["quantised_group_index"] == (2 * (6 * 256 + 384), 14)
    assert causes.get("quantised_biases") == ((2 * (3 * 256 + 2 * 128 + 2 * 384), 14) if biases else None)
    assert check.agrees


def test_scales_of_a_quantised_cache_are_a_cause(tmp_path: Path) -> None:
    directory = awq_file(tmp_path)
    config = json.loads((directory / "config.json").read_text())
    extra = [Tensor(f"model.layers.{layer}.self_attn.{one}_scale", (1,), DType.F32) for layer in (0, 1) for one in "kv"]
    write_sparse(directory / "model.safetensors", [*predicted(QWEN3, config["quantization_config"]), *extra])
    (check,) = inspect(str(directory)).checks
    assert {cause.name: cause.parameters for cause in check.causes}["cache_scales"] == 4
    assert check.agrees


def test_a_missing_part_is_shown(tmp_path: Path) -> None:
    directory = awq_file(tmp_path)
    files = predicted(QWEN3, AWQ)
    gone = next(tensor for tensor in files if tensor.name.endswith("q_proj.scales"))
    write_sparse(directory / "model.safetensors", [tensor for tensor in files if tensor != gone])
    (check,) = inspect(str(directory)).checks
    assert [(one.kind, one.name) for one in check.unexplained] == [("missing", gone.name)]
    assert check.residual == -gone.elements


LEFT = ["visual", "in_proj_a", "in_proj_b", "in_proj_ba", "shared_expert_gate"]
SMALL_GROUPS: Mapping[str, Mapping[str, Any]] = {
    "awq": {**AWQ, "group_size": 16, "modules_to_not_convert": [*LEFT, "mlp.gate"]},
    "gptq": {**GPTQ, "group_size": 16, "modules_to_not_convert": [*LEFT, "mlp.gate"]},
    "fp8": {**FP8, "modules_to_not_convert": [*LEFT, "mlp.gate"]},
}


@pytest.mark.parametrize("scheme", SMALL_GROUPS)
@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5", "qwen3_5_moe"])
@pytest.mark.parametrize("layer_quantised", [False, True])
def test_a_prediction_layer_beside_quantised_weights_is_named(
    tmp_path: Path, family: str, scheme: str, layer_quantised: bool
) -> None:
    config, quantization = FAMILIES[family], SMALL_GROUPS[scheme]
    architecture = architecture_of(config)
    ahead = [part for tensor in architecture.prediction_layers for part in architecture.stored_form(tensor)]
    if layer_quantised:
        ahead = [replace(tensor, dtype=DType.F8_E4M3) for tensor in ahead]
        ahead += [Tensor(f"{tensor.name}_scale_inv", (1, 1), DType.BF16) for tensor in ahead if len(tensor.shape) == 2]
    files = predicted(config, quantization)
    write_config(tmp_path, {**config, "quantization_config": quantization})
    write_sparse(tmp_path / "model.safetensors", [*files, *ahead])
    report = inspect(str(tmp_path))
    (check,) = report.checks
    assert check.agrees
    named = next(cause for cause in check.causes if cause.name == "prediction_layer")
    assert (named.parameters, named.tensors) == (sum(tensor.elements for tensor in ahead), len(ahead))
    assert report.parameters.unique == report.parameters.theory
    assert report.tree.size_bytes == sum(tensor.size_bytes for tensor in files)


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_next", "qwen3_5_moe", "qwen3_vl_moe"])
@pytest.mark.parametrize(
    ("scheme", "experts_quantised"), [("awq", False), ("gptq", False), ("fp8", False), ("fp8", True)]
)
def test_experts_stored_as_transformers_fuses_them_are_read_beside_quantised_weights(
    tmp_path: Path, family: str, scheme: str, experts_quantised: bool
) -> None:
    config, quantization = FAMILIES[family], SMALL_GROUPS[scheme]
    architecture = architecture_of(config)
    tree = architecture.tree
    experts = [tensor for tensor in each_tensor(tree) if ".mlp.experts." in tensor.name]
    if experts_quantised:
        experts = [replace(tensor, dtype=DType.F8_E4M3) for tensor in experts]
        # Of these sizes one block of 128 x 128 covers a matrix.
        experts += [Tensor(f"{one.name}_scale_inv", (one.shape[0], 1, 1), DType.BF16) for one in experts]
    files = [tensor for tensor in predicted(config, quantization) if ".mlp.experts." not in tensor.name]
    write_config(tmp_path, {**config, "quantization_config": quantization})
    write_sparse(tmp_path / "model.safetensors", [*files, *experts])
    report = inspect(str(tmp_path))
    (check,) = report.checks
    assert check.agrees, check.unexplained
    assert "experts_singly" not in {cause.name for cause in check.causes}
    assert report.parameters.unique == report.parameters.theory
    assert report.tree.size_bytes == sum(tensor.size_bytes for tensor in (*files, *experts))
    write_sparse(tmp_path / "model.safetensors", [*files, *experts[:-1]])
    (check,) = inspect(str(tmp_path)).checks
    assert {one.kind for one in check.unexplained} == {"missing"}
    block = experts[-1].name.partition(".experts.")[0]
    assert {one.name.partition(".experts.")[0] for one in check.unexplained} == {block}


@pytest.mark.parametrize(
    "pattern",
    [
        *(r".*layers\..\.mlp", r".*layers\.\d+\.mlp", r".*layers\.[+-z]+\.self_attn", r".*layers\.\w\w\.mlp\b"),
        *(r".*layers\.[0-4]\.mlp", r".*layers\.1\d", r".*layers\.\d{2}\.mlp"),
    ],
)
def test_layers_are_told_apart_as_the_pattern_tells_them(pattern: str) -> None:
    names = [
        f"model.layers.{layer}.{part}" for layer in (0, 3, 7, 10, 13, 99, 107) for part in ("mlp", "self_attn.q_proj")
    ]
    skips = skipped_by(["lm_head", f"re:{pattern}"])
    found = [name for name in names if skips(name)]
    assert found == [name for name in names if re.match(rf"(?:{pattern})(?=\.|$|(?<=\.))", name)]
    assert 0 < len(found) < len(names)


@pytest.mark.parametrize("tower", ["visual", "model.visual"])
def test_modules_are_skipped_by_their_names_in_files_and_in_the_class(tmp_path: Path, tower: str) -> None:
    """Qwen2-VL's releases skip `visual`, as their files call the tower; what transformers 5 quantises itself, `model.visual`."""
    quantization = {**AWQ, "group_size": 16, "modules_to_not_convert": [tower]}
    found = quantised(tmp_path, FAMILIES["qwen2_vl"], quantization).known.quantised
    assert found is not None
    assert found.matrices == 2 * 7
    assert {one.name.partition(".")[0] for one in found.kept} == {"visual"}


# --- predicted from a dense configuration ---------------------------------------------------------------------------


def test_the_command_line_names_every_scheme() -> None:
    assert set(SCHEMES) == set(PRESETS)


@pytest.mark.parametrize(
    ("scheme", "size_bytes"),
    [
        ("awq-int4", 6_098_479_104),  # Qwen/Qwen3-8B-AWQ
        ("gptq-int4", 6_103_787_520),  # JunHowie/Qwen3-8B-GPTQ-Int4
    ],
)
def test_a_scheme_of_a_dense_model_takes_what_its_release_takes(scheme: str, size_bytes: int) -> None:
    done = run("memory", "catalog:Qwen/Qwen3-8B", "--dtype", scheme, "--group-size", "128", "--format", "json")
    assert done.code == 0, done.err
    predicted = json.loads(done.out)["predicted"]
    assert predicted["weights_bytes"] == size_bytes
    unknown = ("activation_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "total_bytes")
    assert [predicted[key] for key in unknown] == [None] * 4
    assert size_bytes < predicted["peak_range"]["low_bytes"] < predicted["peak_range"]["high_bytes"]
    assert predicted["peak_range"]["source"] in predicted["assumptions"]


@pytest.mark.parametrize("scheme", PRESETS)
@pytest.mark.parametrize(
    "model", ["Qwen/Qwen3-0.6B", "Qwen/Qwen1.5-MoE-A2.7B", "Qwen/Qwen2.5-7B", "Qwen/Qwen3-30B-A3B"]
)
def test_every_scheme_keeps_the_parameters_of_every_family(scheme: str, model: str) -> None:
    dense, packed = inspect(model, source="catalog"), inspect(model, source="catalog", dtype=scheme)
    assert packed.parameters.theory == dense.parameters.theory
    assert packed.known.quantised is not None
    assert packed.known.weights is not None
    found = packed.known.quantised
    assert found.parameters + found.other_parameters == dense.parameters.theory
    assert packed.tree.size_bytes == sum(tensor.size_bytes for tensor in packed.known.weights)
    assert (
        sum(part.size_bytes or 0 for part in components(packed.tree)) == packed.tree.size_bytes < dense.tree.size_bytes
    )


def test_what_bitsandbytes_loads_is_predicted(tmp_path: Path) -> None:
    """The bytes of the tensors of a model that bitsandbytes really quantised, on the CPU."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dense = saved(tmp_path, QWEN3)
    chosen = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(dense, quantization_config=chosen, dtype="bfloat16")
    held = 0
    for parameter in model.parameters():
        held += parameter.nbytes
        if (state := getattr(parameter, "quant_state", None)) is not None:
            held += state.absmax.nbytes + state.code.nbytes
    assert inspect(str(dense), dtype="bnb-nf4").tree.size_bytes == held


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--dtype", "fp8", "--group-size", "64"], 2, "fixed size"),
        (["--group-size", "64"], 2, "needs a --dtype"),
        (["--dtype", "awq-int4", "--group-size", "100"], 6, "do not fill whole groups"),
        (["--dtype", "awq-int4", "--mode", "train"], 7, "cannot be trained themselves"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], code: int, said: str) -> None:
    done = run("memory", "catalog:Qwen/Qwen3-0.6B", *arguments)
    assert (done.code, said in done.err) == (code, True), done.err


# --- bad input ------------------------------------------------------------------------------------------------------

COMPRESSED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 128}}},
}


@pytest.mark.parametrize(
    ("quantization", "error", "key"),
    [
        (["awq"], MalformedError, "quantised_not_object"),
        ({**AWQ, "bits": "four"}, MalformedError, "config_not_integer"),
        ({**AWQ, "group_size": 0}, MalformedError, "config_out_of_range"),
        ({**AWQ, "group_size": 100}, MalformedError, "quantised_does_not_divide"),
        ({**AWQ, "modules_to_not_convert": "lm_head"}, MalformedError, "quantised_names"),
        ({**AWQ, "modules_to_not_convert": ["a["]}, MalformedError, "pattern_malformed"),
        ({**GPTQ, "dynamic": ["-:q_proj"]}, MalformedError, "quantised_overrides"),
        ({**GPTQ, "dynamic": {"+:q_proj": 8}}, MalformedError, "quantised_overrides"),
        (
            {"quant_method": "auto-round", "bits": 4, "extra_config": {"lm_head": 8}},
            MalformedError,
            "quantised_overrides",
        ),
        ({"bits": 4, "group_size": 0}, MalformedError, "config_out_of_range"),
        ({**FP8, "weight_block_size": [128]}, MalformedError, "quantised_block"),
        ({**FP8, "weight_block_size": [0, 128]}, MalformedError, "quantised_block"),
        ({"quant_method": "bitsandbytes"}, MalformedError, "quantised_bnb_bits"),
        ({**COMPRESSED, "config_groups": {}}, MalformedError, "quantised_groups"),
    ],
)
def test_a_quantisation_that_has_no_meaning_is_refused(
    tmp_path: Path, quantization: Any, error: type[QwenInspectError], key: str
) -> None:
    with pytest.raises(error) as caught:
        quantised(tmp_path, QWEN3, quantization)
    assert caught.value.message.key == key


@pytest.mark.parametrize(
    ("quantization", "key"),
    [
        ({"quant_method": "aqlm"}, "quantised_unsupported"),
        ({}, "quantised_unsupported"),
        ({**AWQ, "version": "gemv"}, "quantised_option_unsupported"),
        ({**AWQ, "bits": 3}, "quantised_option_unsupported"),
        ({**AWQ, "modules_to_not_convert": ["(a)\\1"]}, "pattern_unsupported"),
        ({**AWQ, "modules_to_not_convert": ["x{99999999999}"]}, "pattern_slow"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "quantised_option_unsupported"),
        ({**GPTQ, "is_marlin_format": True}, "quantised_option_unsupported"),
        ({**COMPRESSED, "format": "marlin-24"}, "quantised_option_unsupported"),
        ({**COMPRESSED, "sparsity_config": {"format": "sparse-24"}}, "quantised_option_unsupported"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quantised_option_unsupported"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "quantised_option_unsupported"),
        ({"quant_method": "auto-round", "bits": 4, "data_type": "mx_fp"}, "quantised_option_unsupported"),
        ({**GPTQ, "dynamic": {f"-:layer{number}.*": {} for number in range(1_001)}}, "quantised_rules"),
    ],
)
def test_a_scheme_that_is_not_known_leaves_only_the_bytes_unknown(tmp_path: Path, quantization: Any, key: str) -> None:
    report = quantised(tmp_path, QWEN3, quantization)
    dense = inspect(str(write_config(tmp_path, QWEN3)))
    assert report.known.unread is not None
    assert report.known.unread.message.key == key
    assert report.parameters.theory == dense.parameters.theory
    assert report.parameters.unique is None
    assert {part.size_bytes for part in report.components} == {None}
    assert report.cache == dense.cache
    with pytest.raises(UnsupportedError) as caught:  # there is no file whose bytes could be told
        predict(report, Run())
    assert caught.value.message.key == key


def test_packed_shapes_that_do_not_match_the_bits_are_refused(tmp_path: Path) -> None:
    directory = awq_file(tmp_path, quantization={**AWQ, "bits": 8})
    done = run("params", directory)
    assert done.code == 6
    assert (
        "is stored as (256, 32) int32; quantised by awq as the configuration says, it would be (256, 64) int32"
        in done.err
    )
    assert run("weights", directory).code == 0  # what is stored is still listed


def test_packed_numbers_of_another_width_are_refused(tmp_path: Path) -> None:
    directory = awq_file(tmp_path)
    wide = [replace(one, dtype=DType.I64) if one.name.endswith("qweight") else one for one in predicted(QWEN3, AWQ)]
    write_sparse(directory / "model.safetensors", wide)
    with pytest.raises(MalformedError, match="int64"):
        inspect(str(directory))


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=12), st.none() | st.integers() | st.text() | st.lists(st.text())))
def test_any_configuration_is_read_or_refused(found: dict[str, Any]) -> None:
    for method in ("awq", "gptq", "fp8", "bitsandbytes", "compressed-tensors", "mxfp4", "modelopt"):
        with contextlib.suppress(MalformedError, UnsupportedError):
            read_quantisation({"quantization_config": {**found, "quant_method": method}})


SKIPS: list[tuple[str, str, bool]] = [
    ("model.layers.1", "model.layers.1.mlp.up_proj", True),
    ("model.layers.1", "model.layers.11.mlp.up_proj", False),
    ("model.layers.*.self_attn", "model.layers.11.self_attn.q_proj", True),
    ("mlp.gate", "model.layers.0.mlp.gate", True),
    ("mlp.gate", "model.layers.0.mlp.gate_proj", False),
    ("visual", "model.visual.blocks.0.attn.qkv", False),
    ("lm_head", "lm_head", True),
]


@pytest.mark.parametrize(("pattern", "module", "kept"), SKIPS)
def test_modules_are_skipped_as_transformers_skips_them(pattern: str, module: str, kept: bool) -> None:
    from transformers.quantizers.quantizers_utils import should_convert_module

    found = read_quantisation({"quantization_config": {**AWQ, "modules_to_not_convert": [pattern]}})
    assert found is not None
    assert found.skips(module) is kept
    convert: Callable[..., bool] = should_convert_module
    assert convert(module, [pattern]) is not kept


# --- experts that stand for each other ---------------------------------------------------------------------------------

NAMES_OF_EXPERTS = (  # with one expert or some of them
    r"re:.*\.experts\.1\..*",
    r"re:.*experts\.[0-1]\.down_proj",
    r"re:.*experts..down_proj",
    "model.layers.1.mlp.experts.0.gate_proj",
    r"re:model\.layers\.0\.mlp\.experts\.\d\.up_proj",
)
NAMES_OF_ALL = (
    "lm_head",
    "model.layers.1.mlp.experts",
    "re:.*shared_experts.*",
    r"re:.*mlp\.(gate|up)_proj.*",
    "re:.*gate_proj$",
)


@given(
    family=st.sampled_from(["qwen3_moe", "qwen3_next", "qwen3_5_moe"]),
    ignored=st.lists(st.sampled_from((*NAMES_OF_EXPERTS, *NAMES_OF_ALL)), max_size=3, unique=True),
    scheme=st.sampled_from(["compressed", "fp8", "gptq"]),
)
@settings(max_examples=20, deadline=None)
def test_one_expert_stands_for_all_only_where_no_name_tells_them_apart(
    family: str, ignored: list[str], scheme: str
) -> None:
    if scheme == "compressed":
        weights = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
        group = {"targets": ["Linear"], "weights": weights}
        declared = {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "config_groups": {"group_0": group},
        }
        quantization: Mapping[str, Any] = {**declared, "ignore": ignored}
    else:
        quantization = {**SMALL_GROUPS[scheme], "modules_to_not_convert": [*LEFT, "mlp.gate", *ignored]}
    config = {**FAMILIES[family], "quantization_config": quantization}
    architecture = architecture_of(config)
    quantisation = read_quantisation(config)
    assert quantisation is not None
    assert quantisation.experts_alike is not any(name in NAMES_OF_EXPERTS for name in ignored)
    singly = replace(quantisation, experts_alike=False)
    together, each = (pack(architecture.tree, read, architecture.stored_form, None) for read in (quantisation, singly))
    for tensor in each_tensor(architecture.tree):
        assert together.stored_form(tensor) == each.stored_form(tensor)
        assert list(together.loaded(tensor)) == list(each.loaded(tensor))
    trees = [packed_tree(architecture.tree, packing) for packing in (together, each)]
    assert trees[0] == trees[1]
    assert weights_of(architecture.tree, trees[0], quantisation, together) == weights_of(
        architecture.tree, trees[1], singly, each
    )


def test_a_layer_without_experts_loads_nothing() -> None:
    packing = Packing(parts={}, dense={}, kept={}, form=lambda tensor: ())
    assert packing.loaded_bytes(Tensor("mlp.experts.gate_up_proj", (0, 64, 32), DType.BF16)) == []


def test_fp8_experts_are_loaded_as_transformers_builds_them() -> None:
    config = {**FAMILIES["qwen3_moe"], "quantization_config": FP8}
    architecture = architecture_of(config)
    quantisation = read_quantisation(config)
    assert quantisation is not None
    packing = pack(architecture.tree, quantisation, architecture.stored_form, None)
    loaded = [part for tensor in each_tensor(architecture.tree) for part in packing.loaded(tensor)]
    # transformers builds the scales in float32, where Qwen's releases store bfloat16.
    assert sorted((tensor.elements, tensor.dtype is DType.F8_E4M3) for tensor in loaded) == sorted(
        (parameter.numel(), "float8" in str(parameter.dtype))
        for parameter in fp8_model(FAMILIES["qwen3_moe"]).parameters()
    )

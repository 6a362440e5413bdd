"""The dtype and the quantisation of a checkpoint, wherever a release says them; and files that contradict what it says."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.architectures import architecture_of
from qwen_inspect.architectures.families import CLASSES
from qwen_inspect.checkpoint import DType, Tensor
from qwen_inspect.cli import main
from qwen_inspect.loaders import catalog
from qwen_inspect.spec import each_tensor
from qwen_inspect.structure.inspect import inspect

from ..support.models import TINY_QWEN3, run, write_config, write_sparse
from ..support.outlines import varied
from ..support.real_runs import real_model
from ..support.schema import assert_keeps_to_the_schema

BF16, F16, F32, U8, U32, FP8 = DType.BF16, DType.F16, DType.F32, DType.U8, DType.U32, DType.F8_E4M3


def catalogued(model: str) -> dict[str, Any]:
    return dict(catalog.configuration(model, catalog.entries()))


def tensors_of(config: Mapping[str, Any]) -> list[Tensor]:
    """What files of the dense model hold."""
    architecture = architecture_of(config)
    tree = architecture.tree
    return [part for tensor in each_tensor(tree) for part in architecture.stored_form(tensor)]


def checkpoint(directory: Path, config: Mapping[str, Any], tensors: Iterable[Tensor], **beside: Any) -> Path:
    """config.json, a sparse model.safetensors and further JSON files (their names without the suffix)."""
    directory.mkdir(exist_ok=True)
    write_config(directory, config)
    write_sparse(directory / "model.safetensors", tensors)
    for name, content in beside.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def asked(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    """A command's exit code and its JSON, which is what the schema says; in this process, for torch is imported once."""
    words = [*map(str, arguments), "--format", "json", "--lang", "en", "--quiet"]
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(stdout):
        code = main(words)
    stdout.seek(0)
    content = json.loads(stdout.read())
    assert_keeps_to_the_schema(content)
    return code, content


# --- dtype ---------------------------------------------------------------------------------------------------------


def without_dtype(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}


def saved(directory: Path, stored: str, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """A small model that transformers wrote in the dtype `stored`, its config.json edited afterwards."""
    import torch
    import transformers

    configuration = transformers.AutoConfig.for_model(**TINY_QWEN3)
    model = transformers.AutoModelForCausalLM.from_config(configuration, dtype=getattr(torch, stored))
    model.save_pretrained(directory)
    path = directory / "config.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    return directory


@pytest.mark.parametrize(
    ("stored", "edit"),
    [
        ("bfloat16", without_dtype),
        ("float16", without_dtype),
        ("float32", without_dtype),
        ("bfloat16", lambda config: {**without_dtype(config), "torch_dtype": "float16"}),
        ("float32", lambda config: {**without_dtype(config), "dtype": "bfloat16"}),
        ("float16", lambda config: {**without_dtype(config), "dtype": None, "torch_dtype": "bfloat16"}),
    ],
)
def test_the_dtype_is_the_one_that_from_pretrained_gives(
    tmp_path: Path, stored: str, edit: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    import transformers

    directory = saved(tmp_path, stored, edit)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(directory)
    report = inspect(str(directory))
    assert str(report.spec.dtype) == str(loaded.dtype).removeprefix("torch.")
    assert report.tree.size_bytes == sum(one.numel() * one.element_size() for one in loaded.parameters())


def test_the_first_floating_point_tensor_by_name_decides(tmp_path: Path) -> None:
    # get_state_dict_dtype passes over integers and floats of 8 bits; safe_open lists names in their order.
    tensors = [replace(one, dtype=F16 if "mlp" in one.name else BF16) for one in tensors_of(TINY_QWEN3)]
    tensors += [Tensor("a.packed", (4,), U8), Tensor("b.float8", (4,), FP8)]
    report = inspect(str(checkpoint(tmp_path, without_dtype(TINY_QWEN3), tensors)))
    assert report.spec.dtype is BF16
    (notice,) = [one for one in report.notices if one.key == "dtype_of_files"]
    assert dict(notice.values)["name"] == "model.embed_tokens.weight"


def test_files_decide_over_a_nested_dtype_which_from_pretrained_does_not_read(tmp_path: Path) -> None:
    config = catalogued("Qwen/Qwen3.5-0.8B")
    config = {**without_dtype(config), "text_config": {**config["text_config"], "dtype": "bfloat16"}}
    stored = [replace(one, dtype=F16) for one in tensors_of(config)]
    assert inspect(str(checkpoint(tmp_path, config, stored))).spec.dtype is F16
    (tmp_path / "model.safetensors").unlink()
    alone = inspect(str(tmp_path / "config.json"))
    assert (alone.spec.dtype, [one.key for one in alone.notices]) == (BF16, ["config_alone"])


def test_without_files_an_unnamed_dtype_is_said_to_be_unknown_and_settled_by_the_option(tmp_path: Path) -> None:
    path = write_config(tmp_path, without_dtype(TINY_QWEN3))
    for command in ("structure", "config", "params", "attention", "memory"):
        code, found = asked(command, path)
        assert code == 0
        assert found["model"]["dtype"] == "float32"
        assert any("names no dtype" in notice and "--dtype" in notice for notice in found["model"]["notices"])
    code, found = asked("memory", path, "--dtype", "bfloat16")
    assert (code, found["model"]["dtype"]) == (0, "bfloat16")
    assert not any("names no dtype" in notice for notice in found["model"]["notices"])


def test_config_shows_the_configuration_as_it_is_written(tmp_path: Path) -> None:
    config = without_dtype(TINY_QWEN3)
    _, found = asked("config", checkpoint(tmp_path, config, tensors_of(TINY_QWEN3)))
    assert found["config"] == config


GPT_OSS = {
    # openai/gpt-oss-20b, config.json: no dtype.
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "vocab_size": 201088,
    "max_position_embeddings": 131072,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
    },
}


def gpt_oss_tensors() -> list[Tensor]:
    """gpt-oss-20b as released: experts in blocks of MXFP4, all else in bfloat16."""
    hidden, inner, experts, kv = 2880, 2880, 32, 512
    tensors = [
        Tensor("model.embed_tokens.weight", (201088, hidden), BF16),
        Tensor("model.norm.weight", (hidden,), BF16),
    ]
    tensors.append(Tensor("lm_head.weight", (201088, hidden), BF16))
    for layer in range(24):
        for name, rows in (("q", 4096), ("k", kv), ("v", kv)):
            tensors.append(Tensor(f"model.layers.{layer}.self_attn.{name}_proj.weight", (rows, hidden), BF16))
            tensors.append(Tensor(f"model.layers.{layer}.self_attn.{name}_proj.bias", (rows,), BF16))
        for name, shape in (
            ("self_attn.o_proj.weight", (hidden, 4096)),
            ("self_attn.o_proj.bias", (hidden,)),
            ("self_attn.sinks", (64,)),
            ("mlp.router.weight", (experts, hidden)),
            ("mlp.router.bias", (experts,)),
            ("mlp.experts.gate_up_proj_bias", (experts, 2 * inner)),
            ("mlp.experts.down_proj_bias", (experts, hidden)),
            ("input_layernorm.weight", (hidden,)),
            ("post_attention_layernorm.weight", (hidden,)),
        ):
            tensors.append(Tensor(f"model.layers.{layer}.{name}", shape, BF16))
        for name, rows, columns in (("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner)):
            stem = f"model.layers.{layer}.mlp.experts.{name}"
            tensors.append(Tensor(f"{stem}_blocks", (experts, rows, columns // 32, 16), U8))
            tensors.append(Tensor(f"{stem}_scales", (experts, rows, columns // 32), U8))
    return tensors


def test_gpt_oss_which_names_no_dtype_is_bfloat16(tmp_path: Path) -> None:
    # 13,761,264,768 B: the published total of gpt-oss-20b. 131,072 tokens: 12 full layers of 2 x 8 x 64 numbers a token and 12
    # that keep 127 tokens, 2 B each: 3,221,225,472 + 3,121,152.
    directory = checkpoint(tmp_path, GPT_OSS, gpt_oss_tensors())
    code, found = asked("memory", directory, "--context", "4096")
    assert (code, found["model"]["dtype"]) == (0, "bfloat16")
    assert found["predicted"]["weights_bytes"] == 13_761_264_768
    code, found = asked("attention", directory, "--context", "131072")
    assert (code, found["cache"]["bytes"]) == (0, 3_221_225_472 + 3_121_152)


# --- where a quantisation is declared ------------------------------------------------------------------------------


def mlx_tensors(
    config: Mapping[str, Any], *, bits: int = 4, group: int = 64, plain: Sequence[str] = ()
) -> list[Tensor]:
    """As mlx_lm.convert -q writes them: every matrix in words of 32 bits, with scales and biases beside it."""
    made = []
    for tensor in tensors_of(config):
        if len(tensor.shape) != 2 or tensor.name in plain:
            made.append(tensor)
            continue
        rows, columns = tensor.shape
        stem = tensor.name.removesuffix("weight")
        made.append(Tensor(tensor.name, (rows, columns * bits // 32), U32))
        made += [Tensor(f"{stem}{name}", (rows, columns // group), BF16) for name in ("scales", "biases")]
    return made


MLX = {"group_size": 64, "bits": 4, "mode": "affine"}


@pytest.mark.parametrize("keys", [("quantization",), ("quantization_config",), ("quantization", "quantization_config")])
def test_what_mlx_packed_is_counted_as_parameters(tmp_path: Path, keys: tuple[str, ...]) -> None:
    # Qwen/Qwen1.5-1.8B: 1,836,828,672 parameters; with the embedding left as it is 549,758,976 stored elements.
    config = {**catalogued("Qwen/Qwen1.5-1.8B"), **dict.fromkeys(keys, MLX)}
    stored = mlx_tensors(config, plain=["model.embed_tokens.weight"])
    code, found = asked("params", checkpoint(tmp_path, config, stored))
    counts = found["parameters"]
    assert (code, counts["unique"], counts["stored"]) == (0, 1_836_828_672, 549_758_976)
    (check,) = found["checks"]
    assert (check["residual"], check["agrees"]) == (0, True)
    # 622,329,856 B of the embedding, 200,704 of norms and 147,456 of biases in bfloat16; 1,525,415,936 numbers of 4.5 bits.
    assert found["quantisation"]["total_bytes"] == 622_329_856 + 200_704 + 294_912 + 1_525_415_936 * 9 // 16
    code, found = asked("memory", tmp_path)
    assert found["predicted"]["weights_bytes"] == sum(tensor.size_bytes for tensor in stored)


def test_mlx_bits_of_a_layer_of_its_own_are_read(tmp_path: Path) -> None:
    head = "model.embed_tokens"
    declared = {**MLX, head: {"group_size": 64, "bits": 8}, "model.layers.0.mlp.down_proj": False}
    config = {**TINY_QWEN3, "intermediate_size": 128, "quantization": declared}
    stored = mlx_tensors(config, plain=["model.layers.0.mlp.down_proj.weight", f"{head}.weight"])
    stored = [one for one in stored if not one.name.startswith(head)]
    stored += [Tensor(f"{head}.weight", (256, 16), U32)]
    stored += [Tensor(f"{head}.{name}", (256, 1), BF16) for name in ("scales", "biases")]
    for directory in (checkpoint(tmp_path / "files", config, stored), write_config(tmp_path, config)):
        found = inspect(str(directory)).known.quantised
        assert found is not None
        assert found.total_bytes == sum(tensor.size_bytes for tensor in stored)


@pytest.mark.parametrize("nothing", [None, False, {}, ""])
def test_an_empty_declaration_declares_nothing(tmp_path: Path, nothing: object) -> None:
    config = {**TINY_QWEN3, "quantization": nothing, "compression_config": nothing}
    report = inspect(str(checkpoint(tmp_path, config, tensors_of(TINY_QWEN3))))
    assert (report.known.quantised, report.known.unread, report.notices) == (None, None, ())


def fp8_tensors(config: Mapping[str, Any]) -> list[Tensor]:
    """As ModelOpt writes FP8 with a calibrated cache: scales of matrices, of their inputs, of keys and of values."""
    made = []
    for tensor in tensors_of(config):
        if len(tensor.shape) != 2 or tensor.name in ("model.embed_tokens.weight", "lm_head.weight"):
            made.append(tensor)
            continue
        stem = tensor.name.removesuffix("weight")
        made += [
            replace(tensor, dtype=FP8),
            Tensor(f"{stem}weight_scale", (), F32),
            Tensor(f"{stem}input_scale", (), F32),
        ]
        if "k_proj" in stem or "v_proj" in stem:
            made.append(Tensor(f"{stem}{'k' if 'k_proj' in stem else 'v'}_scale", (), F32))
    return made


MODELOPT = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
DECLARED: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "hf_quant_config.json": ({}, {"hf_quant_config": {"producer": {"name": "modelopt"}, "quantization": MODELOPT}}),
    "quantization_config": (
        {
            "quantization_config": {
                "quant_method": "modelopt",
                "quant_algo": "FP8",
                "ignore": ["lm_head"],
                "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
            }
        },
        {},
    ),
    "compression_config": ({"compression_config": {"quant_method": "modelopt", **MODELOPT}}, {}),
    "quantization": ({"quantization": MODELOPT}, {}),
}


@pytest.mark.parametrize("place", DECLARED)
def test_fp8_of_modelopt_and_of_its_cache_is_read_wherever_it_is_declared(tmp_path: Path, place: str) -> None:
    # Qwen/Qwen3-8B: 36 layers of 192,937,984 numbers of 8 bits in 7 matrices with two scales each, 1,244,659,712 of embedding
    # and head and 308,224 of norms in bfloat16.
    size_bytes = 36 * 192_937_984 + 36 * 7 * 8 + 2 * (1_244_659_712 + 308_224)
    changes, beside = DECLARED[place]
    config = {**catalogued("Qwen/Qwen3-8B"), **changes}
    directory = checkpoint(tmp_path, config, fp8_tensors(config), **beside)
    code, found = asked("params", directory)
    assert (code, found["parameters"]["unique"]) == (0, 8_190_735_360)
    assert found["quantisation"]["total_bytes"] == size_bytes == 9_435_705_312
    declared = [notice for notice in found["model"]["notices"] if "is declared in" in notice]
    assert [place in notice for notice in declared] == ([] if place == "quantization_config" else [True])
    assert any("KV cache of fp8: vLLM takes it" in notice for notice in found["model"]["notices"])
    # A budget of 10 GiB: 73,728 B a token in 8 bits, blocks of 16 tokens.
    code, found = asked("fit", directory, "--engine", "vllm", "--kv-budget", "10GiB")
    assert (code, found["kv_cache_tokens"]) == (0, 145_632)


@pytest.mark.parametrize(
    ("name", "content", "published"),
    [
        # Qwen3-8B-GPTQ-Int4 and Qwen3-8B-AWQ: published bytes of their tensors.
        ("quantize_config", {"bits": 4, "group_size": 128, "desc_act": False, "sym": True}, 6_103_787_520),
        ("quant_config", {"w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "GEMM"}, 6_098_479_104),
    ],
)
def test_files_that_older_packers_put_beside_config_json_are_read(
    tmp_path: Path, name: str, content: dict[str, Any], published: int
) -> None:
    write_config(tmp_path, catalogued("Qwen/Qwen3-8B"))
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
    for model in (tmp_path, tmp_path / "config.json"):
        found = inspect(str(model)).known.quantised
        assert found is not None
        assert found.total_bytes == published


@pytest.mark.parametrize(
    ("declared", "published"),
    [
        # As AWQ, without zeros of another size: 4 bits, a scale of 16 and a zero of 4 bits for each 128.
        (
            {
                "quant_method": "auto-round",
                "packing_format": "auto_round:auto_gptq",
                "bits": 4,
                "group_size": 128,
                "sym": True,
                "data_type": "int",
                "autoround_version": "0.5.1",
            },
            6_098_479_104,
        ),
        (
            {"quant_method": "intel/auto-round", "packing_format": "auto_round:awq", "bits": 4, "group_size": 128},
            6_098_479_104,
        ),
        (
            {
                "quant_method": "gptq",
                "bits": 4,
                "group_size": 128,
                "sym": True,
                "desc_act": False,
                "checkpoint_format": "gptq",
                "dynamic": {"-:.*\\.mlp\\.gate$": {}},
            },
            6_103_787_520,
        ),
        # Weights of a byte, in blocks of 128 x 128 with a scale of a byte each.
        (
            {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "weight_block_size": [128, 128],
                "activation_scheme": "dynamic",
                "scale_fmt": "ue8m0",
            },
            36 * 192_937_984 + 36 * 192_937_984 // 128**2 + 2 * (1_244_659_712 + 308_224),
        ),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}, 9_435_705_312),
    ],
)
def test_bytes_of_the_schemes_that_were_refused(tmp_path: Path, declared: dict[str, Any], published: int) -> None:
    report = inspect(str(write_config(tmp_path, {**catalogued("Qwen/Qwen3-8B"), "quantization_config": declared})))
    assert report.known.unread is None
    assert report.known.quantised is not None
    assert report.known.quantised.total_bytes == published


GPTQ_DYNAMIC = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 128,
    "sym": True,
    "desc_act": False,
    "checkpoint_format": "gptq",
    "lm_head": False,
    "pack_dtype": "int32",
    "dynamic": {
        "lm_head": {},
        "model.language_model.embed_tokens": {},
        "-:.*attn.*": {},
        "-:.*shared_expert.*": {},
        "-:.*mtp.*": {},
        "-:.*visual.*": {},
    },
}


@pytest.mark.parametrize(
    ("model", "quantised"),
    [
        # Qwen3.5-35B-A3B: 40 layers of 256 experts of 3 x 512 x 2048 alone. Qwen3.5-27B: 64 layers of 3 x 17408 x 5120.
        ("Qwen/Qwen3.5-35B-A3B", 40 * 256 * 3 * 512 * 2048),
        ("Qwen/Qwen3.5-27B", 64 * 3 * 17408 * 5120),
    ],
)
def test_dtype_gptq_int4_leaves_what_the_official_releases_of_qwen3_5_leave(
    tmp_path: Path, model: str, quantised: int
) -> None:
    config = catalogued(model)
    official = inspect(str(write_config(tmp_path, {**config, "quantization_config": GPTQ_DYNAMIC}))).known
    asked_for = inspect(str(write_config(tmp_path, config)), dtype="gptq-int4").known
    assert official.quantised is not None
    assert official.quantised.parameters == quantised
    assert asked_for.quantised is not None
    assert asked_for.quantised.total_bytes == official.quantised.total_bytes


def test_rules_of_gptq_change_bits_of_the_modules_that_they_match_first(tmp_path: Path) -> None:
    rules = {
        "+:.*down_proj$": {"bits": 8, "group_size": 32},
        "-:.*mlp.*": {},
        "model.layers.0.self_attn.q_proj": {"bits": 2},
    }
    config = {**catalogued("Qwen/Qwen3-0.6B"), "quantization_config": {**GPTQ_DYNAMIC, "dynamic": rules}}
    weights = inspect(str(write_config(tmp_path, config))).known.weights
    assert weights is not None
    shapes = {tensor.name: tensor.shape for tensor in weights}
    # (input features x bits / 32, output features)
    assert shapes["model.layers.0.mlp.down_proj.qweight"] == (3072 * 8 // 32, 1024)
    assert shapes["model.layers.0.mlp.down_proj.scales"] == (3072 // 32, 1024)
    assert shapes["model.layers.0.mlp.up_proj.weight"] == (3072, 1024)
    assert shapes["model.layers.0.self_attn.q_proj.qweight"] == (1024 * 2 // 32, 2048)
    assert shapes["model.layers.1.self_attn.q_proj.qweight"] == (1024 * 4 // 32, 2048)


def test_auto_round_quantises_the_blocks_that_it_names_and_the_modules_that_it_lists(tmp_path: Path) -> None:
    declared = {
        "quant_method": "auto-round",
        "bits": 4,
        "group_size": 128,
        "data_type": "int",
        "block_name_to_quantize": "model.layers",
        "extra_config": {"model.layers.0.self_attn.q_proj": {"bits": 16}, ".*layers\\.1\\.mlp.*": {"bits": 8}},
    }
    config = {**catalogued("Qwen/Qwen3-8B"), "quantization_config": declared}
    weights = inspect(str(write_config(tmp_path, config))).known.weights
    assert weights is not None
    shapes = {tensor.name: tensor.shape for tensor in weights}
    assert shapes["lm_head.weight"] == (151936, 4096)
    assert shapes["model.layers.0.self_attn.q_proj.weight"] == (4096, 4096)
    assert shapes["model.layers.1.mlp.up_proj.qweight"] == (4096 * 8 // 32, 12288)
    assert shapes["model.layers.2.mlp.up_proj.qweight"] == (4096 * 4 // 32, 12288)
    assert not any(name.endswith("g_idx") for name in shapes)


# --- files that contradict the configuration -----------------------------------------------------------------------


def test_packed_weights_under_a_configuration_that_says_nothing_are_told_by_every_command(tmp_path: Path) -> None:
    config = catalogued("Qwen/Qwen1.5-1.8B")
    directory = checkpoint(tmp_path, config, mlx_tensors(config))
    for command, code in (
        ("structure", 0), ("config", 0), ("weights", 0), ("attention", 0), ("params", 1), ("memory", 7), ("fit", 7),
    ):  # fmt: skip
        options = ["--gpu", "4090"] if command == "fit" else []
        ended, found = asked(command, directory, *options)
        said = [notice for notice in found["model"]["notices"] if "uint32" in notice and "contradict" in notice]
        assert (ended, len(said)) == (code, 1), command
        if command in ("structure", "params"):
            assert found["parameters"]["theory"] == 1_836_828_672
            assert found["parameters"]["unique"] is None
            assert {part["bytes"] for part in found["components"]} == {None}
        if command == "structure":
            assert found["tree"]["bytes"] is None
        if command == "memory":
            assert found["predicted"]["peak_allocated_bytes"] is None
            assert found["predicted"]["steady_allocated_bytes"] is None
        if command == "fit":
            assert (found["fits"], found["max_context_tokens"]) == (None, None)


def test_tokens_of_an_engine_stand_where_only_the_bytes_of_the_weights_are_unknown(tmp_path: Path) -> None:
    config = {**catalogued("Qwen/Qwen3-8B"), "quantization_config": {"quant_method": "hqq"}}
    path = write_config(tmp_path, config)
    code, found = asked("fit", path, "--engine", "vllm", "--kv-budget", "10GiB")
    assert (code, found["kv_cache_tokens"]) == (0, 72_816)  # 147,456 B a token, blocks of 16
    done = run("fit", path, "--engine", "vllm", "--gpu", "h100-80gb")
    assert (done.code, "Quantisation method 'hqq' is not known" in done.err) == (7, True)


Mutation = Callable[[random.Random, list[Tensor]], list[Tensor]]
FLOATS = (BF16, F16, F32, DType.F64)


def retyped(chance: random.Random, tensors: list[Tensor]) -> list[Tensor]:
    dtype, chosen = chance.choice([dtype for dtype in DType if dtype.bits >= 8]), chance.sample(tensors, 3)
    return [replace(one, dtype=dtype) if one in chosen else one for one in tensors]


def repacked(chance: random.Random, tensors: list[Tensor]) -> list[Tensor]:
    """Some matrices in words, with or without scales, under their own or a packer's name."""
    dtype, bits = chance.choice([(U32, 4), (DType.I32, 8), (U8, 4), (DType.I8, 8), (FP8, 8)])
    name = chance.choice(["weight", "qweight", "weight_packed"])
    scaled = chance.random() < 0.7
    chosen = chance.sample([one for one in tensors if len(one.shape) == 2], 4)
    made = []
    for one in tensors:
        if one not in chosen:
            made.append(one)
            continue
        rows, columns = one.shape
        stem = one.name.removesuffix("weight")
        made.append(Tensor(stem + name, (rows, columns * bits // dtype.bits), dtype))
        if scaled:
            made.append(
                Tensor(f"{stem}{chance.choice(['scales', 'weight_scale', 'weight_scale_inv'])}", (rows, 2), F16)
            )
    return made


def reshaped(chance: random.Random, tensors: list[Tensor]) -> list[Tensor]:
    chosen = chance.choice([one for one in tensors if len(one.shape) == 2])
    rows, columns = chosen.shape
    shape = chance.choice([(rows // 2, columns), (rows, columns + 16), (columns, rows), (rows * columns,)])
    return [replace(one, shape=shape) if one is chosen else one for one in tensors]


@pytest.mark.parametrize("mutate", [retyped, repacked, reshaped])
@pytest.mark.parametrize("seed", range(12))
def test_no_command_makes_a_firm_figure_of_files_that_contradict_the_configuration(
    tmp_path: Path, mutate: Mutation, seed: int
) -> None:
    chance = random.Random(f"{mutate.__name__} {seed}")
    dense = tensors_of(TINY_QWEN3)
    stored = mutate(chance, dense)
    directory = checkpoint(tmp_path, TINY_QWEN3, stored)
    # The class loads every float as bfloat16.
    harmless = [(one.name, one.shape) for one in stored] == [(one.name, one.shape) for one in dense] and all(
        one.dtype in FLOATS for one in stored
    )
    right = sum(tensor.elements for tensor in dense)
    for command, *options in (
        ["structure"], ["config"], ["weights"], ["attention"], ["params"], ["memory", "--context", "64"],
        ["fit", "--context", "64", "--gpu", "4090"], ["compare", str(directory)],
    ):  # fmt: skip
        code, content = asked(command, directory, *options)
        models = content["side_by_side"]["models"] if command == "compare" else [content["model"]]
        said = all(any("contradict the configuration" in notice for notice in one["notices"]) for one in models)
        assert said is not harmless, (command, models)
        if harmless:
            assert code == 0
        else:
            assert code == {"params": 1, "memory": 7, "fit": 7}.get(command, 0)
        if "parameters" in content:
            assert content["parameters"]["theory"] == right
            assert content["parameters"]["unique"] == (right if harmless else None)
        if command == "weights":
            assert content["totals"]["unique_parameters"] == (right if harmless else None)
        if command == "memory":
            predicted = content["predicted"]
            assert (predicted["peak_allocated_bytes"] is not None) is harmless
            assert (predicted["steady_allocated_bytes"] is not None) is harmless
            if harmless:
                assert predicted["weights_bytes"] == 2 * right
        if command == "fit":
            assert content["fits"] is (True if harmless else None)


@pytest.mark.parametrize("seed", range(8))
def test_packed_files_that_are_changed_are_refused_told_or_counted_as_stored(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    config = {**TINY_QWEN3, "intermediate_size": 128, "quantization": MLX}
    stored = mlx_tensors(config)
    changed = (retyped if seed % 2 else reshaped)(chance, stored)
    directory = checkpoint(tmp_path, config, changed)
    done = run("params", directory, "--format", "json", "--quiet")
    if done.code == 6:
        assert (done.out, "is stored as" in done.err) == ("", True)
        return
    content = json.loads(done.out)
    if content["parameters"]["unique"] is None:
        assert any("contradict the configuration" in notice for notice in content["model"]["notices"])
        return
    assert content["parameters"]["unique"] == sum(tensor.elements for tensor in tensors_of(config))
    assert content["quantisation"]["total_bytes"] == sum(tensor.size_bytes for tensor in changed)


def test_the_hubs_count_of_a_packed_file_is_explained(tmp_path: Path) -> None:
    # As the hub counts MLX releases: a word of 8 numbers as one parameter, and scales and biases beside it.
    config = {**catalogued("Qwen/Qwen1.5-1.8B"), "quantization": MLX}
    stored = mlx_tensors(config)
    elements = sum(tensor.elements for tensor in stored)
    assert elements == 287_213_568
    code, found = asked("params", checkpoint(tmp_path, config, stored), "--expect-params", str(elements))
    claimed = next(check for check in found["checks"] if check["name"] == "theory/claimed")
    assert (code, claimed["residual"]) == (1, 0)
    assert {cause["name"] for cause in claimed["causes"]} == {"packed_words", "all_beside_counted"}


@pytest.mark.parametrize("stored", [True, False])
def test_a_report_stands_without_what_the_quantisation_decides(tmp_path: Path, stored: bool) -> None:
    config = {**TINY_QWEN3, "quantization_config": {"quant_method": "hqq"}}
    directory = (
        checkpoint(tmp_path / "model", config, tensors_of(TINY_QWEN3)) if stored else write_config(tmp_path, config)
    )
    for form in ("md", "html", "json"):
        for language in ("en", "zh"):
            done = run("report", directory, "--format", form, "--lang", language)
            assert (done.code, "'hqq'" in done.err, "hqq" in done.out) == (7, True, True)
    explained = run("config", directory, "--explain", "--format", "md").out
    assert '| quantization_config | {"quant_method": "hqq"} | how the weights are stored' in explained


@pytest.mark.parametrize("model_type", ["internvl", "mistral3"])
def test_an_output_layer_in_the_files_is_counted_where_only_a_default_would_tie_it(
    model_type: str, tmp_path: Path
) -> None:
    """As transformers loads them: two that differ are not tied."""
    import transformers

    config = {**varied(model_type, 1), "architectures": [CLASSES[model_type][0]], "tie_word_embeddings": False}
    real_model(config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    for part in (saved, saved["text_config"]):
        part.pop("tie_word_embeddings", None)
    (tmp_path / "config.json").write_text(json.dumps(saved))
    loaded = getattr(transformers, CLASSES[model_type][0]).from_pretrained(tmp_path)
    report = inspect(str(tmp_path))
    assert report.parameters.unique == sum(parameter.numel() for parameter in loaded.parameters())
    assert "own_head_in_files" in [notice.key for notice in report.notices]
    assert not any(check.residual for check in report.checks)

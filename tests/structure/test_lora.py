"""LoRA adapters: what PEFT trains, saves, loads and merges, predicted from adapter_config.json and the base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.architectures.blocks import linear, stored_as_built
from qwen_inspect.architectures.lora import read_lora
from qwen_inspect.checkpoint import DType, Tensor
from qwen_inspect.errors import MalformedError, QwenInspectError, UnsupportedError
from qwen_inspect.results.model import Report
from qwen_inspect.spec import Module
from qwen_inspect.structure.adapters import trained_tensors
from qwen_inspect.structure.inspect import inspect

from ..support.families import TINY_QWEN2, TINY_QWEN2_MOE, TINY_QWEN3_MOE
from ..support.models import TINY_QWEN3, run, write_config, write_sparse

UNTIED: Mapping[str, Any] = {**TINY_QWEN3, "tie_word_embeddings": False}
ADAPTER: Mapping[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}


def trained(directory: Path, config: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[Any, Path]:
    """The base and an adapter as PEFT saves them, and PEFT's model of both as it is loaded again."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    base = directory / "base"
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16).save_pretrained(base)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype="auto"), LoraConfig(task_type="CAUSAL_LM", **options)
    )
    model.save_pretrained(directory / "adapter")
    loaded = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    return PeftModel.from_pretrained(loaded, directory / "adapter", is_trainable=True), directory / "adapter"


OPTIONS: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = [
    ("attention", TINY_QWEN3, {"r": 8, "target_modules": ["q_proj", "v_proj"]}),
    ("all linear", TINY_QWEN3, {"r": 4, "target_modules": "all-linear"}),
    ("pattern", TINY_QWEN3, {"r": 4, "target_modules": r".*\.layers\.1\..*(q|v)_proj"}),
    ("dora", TINY_QWEN3, {"r": 8, "target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    (
        "ranks",
        UNTIED,
        {
            "r": 8,
            "target_modules": ["q_proj", "down_proj"],
            "rank_pattern": {"down_proj": 16, r"layers\.0\.self_attn\.q_proj": 2},
            "alpha_pattern": {"down_proj": 64},
            "modules_to_save": ["lm_head", "norm"],
        },
    ),
    ("tied copy", TINY_QWEN3, {"r": 8, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    ("embedding", UNTIED, {"r": 8, "target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    ("biases of targets", TINY_QWEN2, {"r": 8, "target_modules": ["q_proj"], "bias": "lora_only"}),
    ("all biases", TINY_QWEN2, {"r": 8, "target_modules": ["q_proj"], "bias": "all"}),
    ("bias of B", TINY_QWEN2, {"r": 8, "target_modules": ["q_proj"], "lora_bias": True}),
    ("one layer", TINY_QWEN3, {"r": 8, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]}),
    ("rank-stabilised", TINY_QWEN3, {"r": 4, "target_modules": ["o_proj"], "use_rslora": True}),
    ("excluded", TINY_QWEN3, {"r": 8, "target_modules": ["q_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]}),
    ("experts beside", TINY_QWEN3_MOE, {"r": 8, "target_modules": ["q_proj", "k_proj", "o_proj"]}),
    ("shared expert", TINY_QWEN2_MOE, {"r": 8, "target_modules": ["up_proj", "shared_expert_gate"]}),
]


@pytest.mark.parametrize(("config", "options"), [one[1:] for one in OPTIONS], ids=[one[0] for one in OPTIONS])
@pytest.mark.filterwarnings("ignore")
def test_what_peft_trains_is_predicted(tmp_path: Path, config: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    from peft.tuners.lora import LoraLayer

    model, adapter = trained(tmp_path, config, options)
    report = inspect(str(adapter))
    found = report.known.adapter
    assert found is not None
    assert found.trainable == model.get_nb_trainable_parameters()[0]
    assert found.unmerged_bytes == sum(parameter.nbytes for parameter in model.parameters())
    scales = {scale for module in model.modules() if isinstance(module, LoraLayer) for scale in module.scaling.values()}
    assert set(found.scales) == scales
    check = report.checks[-1]
    assert (check.left, check.right) == ("adapter", "adapter_stored")
    assert check.agrees, check.unexplained
    assert found.merged_bytes == sum(parameter.nbytes for parameter in model.merge_and_unload().parameters())


def test_pefts_published_count_holds() -> None:
    """huggingface/peft, method_comparison/MetaMathQA, lora--llama-3.2-3B-rank32: 9,175,040 trainable parameters.

    Llama-3.2-3B: 28 layers, hidden 3072, 24 query and 8 KV heads of 128. The same file states 3,221,924,864 parameters
    in all; the base has 3,212,749,824.
    """
    attention = Module(
        name="self_attn",
        class_name="LlamaAttention",
        children=(
            linear("q_proj", 3072, 24 * 128, DType.BF16),
            linear("k_proj", 3072, 8 * 128, DType.BF16),
            linear("v_proj", 3072, 8 * 128, DType.BF16),
            linear("o_proj", 24 * 128, 3072, DType.BF16),
        ),
    )
    layer = Module(name="0", class_name="LlamaDecoderLayer", repeats=28, children=(attention,))
    layers = Module(name="layers", class_name="ModuleList", children=(layer,))
    tree = Module(
        name="", class_name="LlamaForCausalLM", children=(Module(name="model", class_name="", children=(layers,)),)
    )
    lora = read_lora({**ADAPTER, "r": 32})
    found = trained_tensors(tree, lora, stored_as_built, ())
    assert sum(one.tensor.elements for one in found) == 9_175_040 == 3_221_924_864 - 3_212_749_824


def adapter_of(tmp_path: Path, tensors: list[Tensor], config: Mapping[str, Any] = ADAPTER, base: object = None) -> Path:
    write_config(tmp_path / "base", TINY_QWEN3)
    named = {"base_model_name_or_path": str(tmp_path / "base") if base is None else base, **config}
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps(named))
    write_sparse(adapter / "adapter_model.safetensors", tensors)
    return adapter


def matrices() -> list[Tensor]:
    return [
        Tensor(f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_{matrix}.weight", shape, DType.F32)
        for layer in (0, 1)
        for name, rows in (("q_proj", 64), ("v_proj", 32))
        for matrix, shape in (("A", (8, 64)), ("B", (rows, 8)))
    ]


@pytest.mark.parametrize("command", ["params", "structure"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_format_shows_the_adapter(tmp_path: Path, command: str, language: str) -> None:
    adapter = adapter_of(tmp_path, matrices())
    for kind in ("table", "md", "json"):
        done = run(command, adapter, "--lang", language, "--format", kind)
        assert done.code == 0, done.err
        assert ("3584" if kind == "json" else "3,584") in done.out  # 2 x (8 x 64 + 64 x 8 + 8 x 64 + 32 x 8)


def test_a_matrix_that_is_missing_or_of_another_rank_is_shown(tmp_path: Path) -> None:
    changed = [*matrices()[:-2], Tensor(matrices()[-2].name, (4, 64), DType.F32)]
    adapter = adapter_of(tmp_path, changed)
    check = inspect(str(adapter)).checks[-1]
    assert sorted((one.kind, one.parameters) for one in check.unexplained) == [("missing", -256), ("reshaped", -256)]
    assert check.residual == -512
    assert run("params", adapter).code == 1


@pytest.mark.parametrize("base", ["/nowhere/at/all", "org/nowhere", ""])
def test_an_adapter_whose_base_is_missing_is_refused(tmp_path: Path, base: str) -> None:
    adapter = adapter_of(tmp_path, matrices(), base=base)
    done = run("params", adapter, "--offline")
    assert (done.code, "base model is" in done.err) == (3, True), done.err
    assert run("weights", adapter, "--offline").code == 0


def test_merging_into_packed_numbers_is_not_predicted(tmp_path: Path) -> None:
    adapter = adapter_of(tmp_path, matrices())
    quantised = {**TINY_QWEN3, "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    write_config(tmp_path / "base", quantised)
    found = inspect(str(adapter)).known.adapter
    assert found is not None
    assert found.merged_bytes is None
    assert found.trainable == 3_584


def notices(report: Report) -> set[str]:
    return {notice.key for notice in report.notices}


@pytest.mark.parametrize(
    "changed",
    [
        {"peft_type": "LOHA"},
        {"trainable_token_indices": [1]},
        {"layer_replication": [[0, 2]]},
        {"target_modules": "(a)\\1"},
        {"bias": "some"},
        {"target_modules": ["norm"]},
    ],
)
def test_what_is_not_known_of_an_adapter_is_said(tmp_path: Path, changed: Mapping[str, Any]) -> None:
    adapter = adapter_of(tmp_path, matrices(), {**ADAPTER, **changed})
    report = inspect(str(adapter))
    assert report.known.adapter is None
    assert "adapter_not_predicted" in notices(report)
    with pytest.raises(UnsupportedError):
        trained_tensors(report.tree, read_lora({**ADAPTER, **changed}), stored_as_built, ())


@pytest.mark.parametrize(
    "changed",
    [
        {"r": 0},
        {"r": "eight"},
        {"lora_alpha": "much"},
        {"target_modules": None},
        {"target_modules": {"q_proj": 1}},
        {"target_modules": ["nothing_of_the_kind"]},
        {"target_modules": "a["},
        {"rank_pattern": {"q_proj": -1}},
        {"rank_pattern": ["q_proj"]},
        {"modules_to_save": "lm_head"},
        {"layers_to_transform": ["one"]},
        {"use_dora": "yes"},
    ],
)
def test_an_adapter_without_meaning_is_refused(tmp_path: Path, changed: Mapping[str, Any]) -> None:
    adapter = adapter_of(tmp_path, matrices(), {**ADAPTER, **changed})
    with pytest.raises(MalformedError) as caught:
        inspect(str(adapter))
    assert isinstance(caught.value, QwenInspectError)
    assert run("weights", adapter).code == 0

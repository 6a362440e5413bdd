"""Training by shapes alone: what is trained, what an optimizer keeps of it, and what cannot be."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_inspect.checkpoint import DTYPE_OF_TORCH_NAME, DType, Tensor
from qwen_inspect.cli import main
from qwen_inspect.comparing.side_by_side import compare
from qwen_inspect.errors import UnsupportedError
from qwen_inspect.media.counting import media_of
from qwen_inspect.predicting import sources
from qwen_inspect.predicting.adapter_targets import lora_of_run, matrices_of
from qwen_inspect.predicting.families import family_training
from qwen_inspect.predicting.footprint import formula_footprint, traced_footprint
from qwen_inspect.predicting.predict import predict
from qwen_inspect.predicting.sources import timeline_of
from qwen_inspect.predicting.training import optimizer_sizes
from qwen_inspect.predicting.training_plan import plan_of
from qwen_inspect.results.lora import TrainedTensor
from qwen_inspect.results.media import Request, Typed
from qwen_inspect.results.memory import MemoryReport, Optimizer, Run
from qwen_inspect.results.training import LoopName, loop_of
from qwen_inspect.structure.inspect import inspect

from ..support.families import FAMILIES, configuration_of
from ..support.models import write_config
from ..support.schema import assert_keeps_to_the_schema
from ..support.small_models import small_config

LLAMA_3_2_3B: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192,
    "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "rope_theta": 500000.0, "max_position_embeddings": 131072,
}  # fmt: skip
LLAMA_7B: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000, "torch_dtype": "float16",
}  # fmt: skip


def trained(model: str, **changes: Any) -> MemoryReport:
    """What is trained and, without a trace, what lies at the end of a step."""
    return predict(inspect(model), Run(mode="train", **{"prompt_tokens": 16, "device": "cpu", **changes}))


def added(model: str, rank: int, *targets: str, **options: Any) -> tuple[TrainedTensor, ...]:
    """What PEFT adds, by shapes."""
    report = inspect(model)
    run = Run(mode="train", lora_rank=rank, lora_targets=targets, **options)
    lora = lora_of_run(report.tree, report.spec, run, str((report.config or {})["model_type"]))
    return matrices_of(report.tree, lora, report.spec.dtype)


def count(model: str, rank: int, *targets: str, **options: Any) -> tuple[int, int]:
    """Trainable and all parameters, by shapes."""
    trainable = sum(each.tensor.elements for each in added(model, rank, *targets, **options))
    return trainable, trainable + inspect(model).parameters.theory


# --- trainable parameters


def test_counts_are_those_that_peft_published(tmp_path: Path) -> None:
    """num_trainable_params and num_total_params of PEFT's own benchmark, whose adapter is of rank 32 on q_proj and v_proj.

    Source: huggingface/peft, method_comparison/MetaMathQA/results/lora--llama-3.2-3B-rank32.json
    """
    path = write_config(tmp_path, LLAMA_3_2_3B)
    assert count(str(path), 32, "q_proj", "v_proj") == (9_175_040, 3_221_924_864)


@pytest.mark.parametrize(
    ("model", "rank", "targets", "trainable", "everything"),
    [
        # Printed by LLaMA-Factory ("Found linear modules: o_proj,v_proj,down_proj,k_proj,q_proj,gate_proj,up_proj") and by PEFT's
        # print_trainable_parameters, in many public logs.
        ("catalog:Qwen/Qwen2.5-7B", 8, ["all-linear"], 20_185_088, 7_635_801_600),
        ("catalog:Qwen/Qwen2.5-0.5B", 8, ["all-linear"], 4_399_104, 498_431_872),
    ],
)
def test_counts_of_qwen_are_those_that_users_see(
    model: str, rank: int, targets: list[str], trainable: int, everything: int
) -> None:
    assert count(model, rank, *targets) == (trainable, everything)


def test_the_first_llama_is_as_everyone_knows_it(tmp_path: Path) -> None:
    """trainable params: 4,194,304 || all params: 6,742,609,920: rank 8 on q_proj and v_proj of llama-7b, as PEFT printed it."""
    path = write_config(tmp_path, LLAMA_7B)
    assert count(str(path), 8, "q_proj", "v_proj") == (4_194_304, 6_742_609_920)


def by_peft(config: Mapping[str, Any], rank: int, targets: Sequence[str], **options: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of what real adapters train of the real class, on the meta device, under PEFT's names in a file."""
    import peft
    import torch
    import transformers

    names = {"lora_parameters": "target_parameters", "saved_modules": "modules_to_save", "dora": "use_dora"}
    with torch.device("meta"):
        model = getattr(transformers, config["architectures"][0])._from_config(configuration_of(config))
        chosen = "all-linear" if list(targets) == ["all-linear"] else list(targets) or None
        others = {names[key]: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
        lora = peft.LoraConfig(r=rank, target_modules=chosen, task_type="CAUSAL_LM", **others)
        adapted = peft.get_peft_model(model, lora)
    trained = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    renamed = {
        re.sub(r"\.(modules_to_save\.)?default(?=\.|$)", "", name): tuple(each.shape) for name, each in trained.items()
    }
    return {re.sub(r"(magnitude_vector)\.weight", r"\1", name): shape for name, shape in renamed.items()}


def by_shapes(model: str, rank: int, targets: Sequence[str], **options: Any) -> dict[str, tuple[int, ...]]:
    return {each.tensor.name: each.tensor.shape for each in added(model, rank, *targets, **options)}


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EXPERTS = {"lora_parameters": ("experts.gate_up_proj", "experts.down_proj")}
ORACLES: Mapping[str, Sequence[tuple[Sequence[str], Mapping[str, Any]]]] = {
    "qwen2": (
        (["all-linear"], {"dora": True}),
        (["embed_tokens", "o_proj"], {"dora": True}),
        (["lm_head"], {"saved_modules": ("mlp", "norm")}),
    ),
    "qwen3": (
        (["all-linear"], {"saved_modules": ("lm_head", "embed_tokens")}),
        (["self_attn.q_proj", "layers.1.mlp.up_proj"], {}),
    ),
    "qwen3_moe": (
        (["all-linear"], {}),
        (["q_proj", "gate_proj", "up_proj", "down_proj"], {}),
        ([], EXPERTS),
        (ATTENTION, {"lora_parameters": ("mlp.gate.weight", "experts.down_proj")}),
    ),
    "qwen2_moe": ((["all-linear"], {}), (["q_proj", "shared_expert_gate"], {})),
    "qwen3_next": ((ATTENTION, EXPERTS), (["in_proj_qkvz", "out_proj"], {}), (["all-linear"], {})),
    "qwen3_5": ((["all-linear"], {}), (["qkv", "q_proj"], {})),
    "qwen3_5_moe": ((["all-linear"], EXPERTS),),
    "qwen2_5_vl": ((["all-linear"], {}),),
    "qwen3_vl": ((["all-linear"], {}),),
}


@pytest.mark.parametrize("family", ORACLES)
def test_adapters_have_the_tensors_of_real_ones(family: str, tmp_path: Path) -> None:
    path = write_config(tmp_path, FAMILIES[family])
    for targets, options in ORACLES[family]:
        assert by_shapes(str(path), 3, targets, **options) == by_peft(FAMILIES[family], 3, targets, **options), targets


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "phi", "gpt_neox", "opt", "glm4", "bloom", "olmo2"])
def test_counts_of_any_other_class_are_too(model_type: str, tmp_path: Path) -> None:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    config = {**small_config(model_type), "architectures": [CLASSES[model_type]]}
    assert hasattr(transformers, CLASSES[model_type])
    path = write_config(tmp_path, config)
    assert by_shapes(str(path), 3, ["all-linear"]) == by_peft(config, 3, ["all-linear"])


def test_experts_stored_the_other_way_round_have_real_adapters_too(tmp_path: Path) -> None:
    """gpt-oss: (experts, inputs, outputs), and biases of (experts, outputs)."""
    config = {**small_config("gpt_oss"), "architectures": ["GptOssForCausalLM"]}
    path = write_config(tmp_path, config)
    parameters = ("experts.gate_up_proj", "experts.down_proj", "experts.down_proj_bias")
    options = {"lora_parameters": parameters}
    assert by_shapes(str(path), 3, ["q_proj"], **options) == by_peft(config, 3, ["q_proj"], **options)


def test_all_linear_is_not_told_of_a_kind_of_linear_that_is_not_known(tmp_path: Path) -> None:
    path = write_config(tmp_path, {**small_config("gpt2"), "architectures": ["GPT2LMHeadModel"]})
    with pytest.raises(UnsupportedError) as raised:
        count(str(path), 3, "all-linear")
    assert raised.value.message.key == "lora_linear_kind"


def test_matrices_are_as_wide_as_float32_or_wider(tmp_path: Path) -> None:
    """PEFT 0.21 casts those of 16 bits to float32, and leaves float64."""
    for dtype, expected in (
        ("bfloat16", DType.F32),
        ("float16", DType.F32),
        ("float32", DType.F32),
        ("float64", DType.F64),
    ):
        path = write_config(tmp_path, {**FAMILIES["qwen3"], "torch_dtype": dtype})
        assert {each.tensor.dtype for each in added(str(path), 2, "q_proj")} == {expected}


# --- what optimizers keep


def test_states_in_8_bits_are_as_bitsandbytes_keeps_them() -> None:
    """The real optimizer, one step: codes and scales from 4,096 elements on, float32 below, and two tables for all."""
    import bitsandbytes
    import torch

    shapes = [(64, 64), (65, 64), (4095,), (4096,), (7, 9, 100), (1,)]
    parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = bitsandbytes.optim.AdamW8bit(parameters)
    optimizer.step()
    tensors = [one for state in optimizer.state.values() for one in state.values() if isinstance(one, torch.Tensor)]
    storages = {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors}
    expected = [Tensor(str(index), shape, DType.BF16) for index, shape in enumerate(shapes)]
    assert sorted(optimizer_sizes(expected, "adamw_8bit")) == sorted(storages.values())


@given(st.lists(st.integers(1, 1 << 20), min_size=1, max_size=9))
def test_states_in_8_bits_take_between_two_and_nine_bytes_a_parameter(counts: list[int]) -> None:
    tensors = [Tensor(str(index), (count,), DType.F32) for index, count in enumerate(counts)]
    tables = 2048 * any(count >= 4096 for count in counts)
    held, parameters = sum(optimizer_sizes(tensors, "adamw_8bit")) - tables, sum(counts)
    assert 2 * parameters < held <= 9 * parameters
    assert sum(optimizer_sizes(tensors, "adamw_foreach")) == 8 * parameters
    assert sum(optimizer_sizes(tensors, "sgd")) == 0


KINDS: Mapping[str, Mapping[str, Any]] = {
    "all": {},
    "some": {"trained": r"\.(q|down)_proj\."},
    "LoRA": {"lora_rank": 4},
    "QLoRA": {"lora_rank": 4, "dtype": "bnb-nf4"},
    "QLoRA, scales quantised too": {"lora_rank": 4, "dtype": "bnb-nf4-double"},
}


@pytest.mark.parametrize("device", ["cuda", pytest.param("cpu", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [
        *(("LoRA", name) for name in ("adamw_foreach", "adamw_fused", "adamw_for_loop", "adamw_8bit", "sgd", "none")),
        *((kind, "adamw_foreach") for kind in KINDS if kind != "LoRA"),
    ],
)
def test_a_formula_ends_a_step_as_the_trace_does(
    kind: str, optimizer: Optimizer, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each term but activations, of a model with biases beside its weights."""
    options = dict(KINDS[kind])
    path = str(write_config(tmp_path, FAMILIES["qwen2"]))
    monkeypatch.setattr(family_training, "training_trace", lambda *_: None)  # families' traces, which the package has
    report = inspect(path, dtype=options.pop("dtype", None))
    chosen = Run(mode="train", prompt_tokens=16, optimizer=optimizer, device=device, **options)
    found = predict(report, chosen)
    assert (found.predicted.method, found.refusal) == ("trace", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(sources, "installed", lambda: iter(()))  # so that no kept trace is of its version
    sources._traced_once.cache_clear()
    told = predict(report, chosen)
    assert told.predicted.method == "formula"
    assert told.training == found.training
    terms = ("weights", "adapters", "buffers", "gradients", "optimizer", "workspace")
    ends = [{term: getattr(one.predicted.steady, term) for term in terms} for one in (told, found)]
    assert ends[0] == ends[1]
    assert found.training is not None
    assert ends[1]["weights"] + ends[1]["adapters"] == found.training.trained_bytes + found.training.frozen_bytes


@pytest.mark.parametrize(
    ("optimizer", "loop"),
    [
        pytest.param("sgd_momentum", "plain", marks=pytest.mark.exhaustive),
        pytest.param("adafactor", None, marks=pytest.mark.exhaustive),
        pytest.param("lion_8bit", None, marks=pytest.mark.exhaustive),
        ("muon", None),
        ("paged_adamw_8bit", None),
        ("adamw_8bit", "trainer"),
    ],
)
def test_the_states_of_all_parameters_are_those_of_the_trace(
    optimizer: Optimizer, loop: LoopName | None, tmp_path: Path
) -> None:
    """With an embedding of 131,072 elements, which is paged where there is paging, and in 32 bits in Trainer's hands."""
    report = inspect(str(write_config(tmp_path, {**FAMILIES["qwen2"], "vocab_size": 2048})))
    chosen = Run(mode="train", prompt_tokens=16, optimizer=optimizer, loop=loop_of(loop))
    ends = predict(report, chosen).predicted, formula_footprint(report.tree, report.cache, chosen)
    assert [one.method for one in ends] == ["trace", "formula"]
    assert ends[0].steady.optimizer == ends[1].steady.optimizer


def test_terms_add_up_to_what_is_allocated(tmp_path: Path) -> None:
    footprint = trained(str(write_config(tmp_path, FAMILIES["qwen3"])), lora_rank=4, accumulate=2).predicted
    assert footprint.peak is not None
    for moment in (footprint.steady, footprint.peak):
        terms = ("weights", "adapters", "buffers", "gradients", "optimizer", "activations", "workspace", "rounding")
        assert sum(getattr(moment, term) for term in terms) == moment.allocated


def test_checkpointing_is_on_with_four_bits_unless_it_is_said(tmp_path: Path) -> None:
    path = str(write_config(tmp_path, FAMILIES["qwen3"]))
    four_bits = inspect(path, dtype="bnb-nf4")
    for report, said, expected in (
        (inspect(path), None, False), (inspect(path), True, True), (four_bits, None, True), (four_bits, False, False),
    ):  # fmt: skip
        found = predict(report, Run(mode="train", prompt_tokens=16, lora_rank=2, checkpointing=said))
        assert found.run.checkpointing is expected


def test_gradients_stay_over_micro_batches(tmp_path: Path) -> None:
    """The second micro-batch's peak has the gradients of the first beside it; a single one's forward has none."""
    path = str(write_config(tmp_path, FAMILIES["qwen3"]))
    alone, added = (trained(path, lora_rank=4, prompt_tokens=256, accumulate=count).predicted for count in (1, 3))
    assert alone.peak is not None
    assert added.peak is not None
    assert (alone.peak.allocated or 0) < (added.peak.allocated or 0)
    assert (alone.peak.gradients or 0) < (added.peak.gradients or 0)
    assert alone.steady == added.steady


def test_two_micro_batches_tell_of_any_number(tmp_path: Path) -> None:
    """Every one after the first finds gradients: allocated and reserved, at the peak and at the end, are the same for all."""
    report = inspect(str(write_config(tmp_path, FAMILIES["qwen2"])))
    chosen = Run(mode="train", prompt_tokens=64, attention="sdpa", lora_rank=4, accumulate=4, optimizer="adamw_fused")
    timeline, made_by = timeline_of(report, chosen)
    whole = traced_footprint(timeline, chosen, provenance=made_by)
    assert predict(report, chosen).predicted == whole
    assert whole.peak_reserved is not None


# --- as users see it


def test_every_format_tells_what_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*arguments: str) -> str:
        path = str(write_config(tmp_path, FAMILIES["qwen3"]))
        assert main(["memory", path, "--mode", "train", "--lora", "4", "--context", "16", "-q", *arguments]) == 0
        return capsys.readouterr().out

    content = json.loads(shown("--lora-targets", "q_proj,v_proj", "--accumulate", "2", "--format", "json"))
    assert_keeps_to_the_schema(content)
    training = content["training"]
    # Two layers, rank 4: q_proj 64 -> 64, v_proj 64 -> 32.
    assert training["trainable_parameters"] == 2 * (4 * (64 + 64) + 4 * (64 + 32)) == 1792
    assert training["lora_targets"] == ["q_proj", "v_proj"]
    assert training["modules"] == [
        {"name": "model.layers.*.self_attn.q_proj", "modules": 2, "parameters": 1024},
        {"name": "model.layers.*.self_attn.v_proj", "modules": 2, "parameters": 768},
    ]
    assert content["predicted"]["moments"]["peak"]["adapters_bytes"] == training["trained_bytes"] == 4 * 1792
    for language, said in (("en", "What is trained"), ("zh", "训练的参数")):
        for form in ("table", "md", "html"):
            text = shown("--lang", language, "--format", form)
            assert said in text
            assert "adamw_foreach" in text


def test_models_are_compared_by_what_is_trained(tmp_path: Path) -> None:
    paths = [str(write_config(tmp_path / family, FAMILIES[family])) for family in ("qwen2", "qwen3")]
    chosen = Run(mode="train", prompt_tokens=16, lora_rank=4, lora_targets=("q_proj",))
    compared = compare(paths, chosen).models
    assert compared is not None
    rows = {row.name: row.values for row in compared.facts if row.section == "memory"}
    assert rows["trainable"] == (1024, 1024)  # two layers, 4 x (64 + 64)
    assert rows["adapters"] == (4096, 4096)
    assert rows["optimizer"] == (8192, 8192)
    assert "cache" not in rows


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--mode", "train", "--lora", "0"], 2, "positive"),
        (["--mode", "train", "--lora", "2000000"], 2, "1048576"),
        (["--lora", "8"], 2, "--mode train"),
        (["--mode", "forward", "--lora", "8"], 2, "--mode train"),
        (["--accumulate", "2"], 2, "--mode train"),
        (["--mode", "train", "--accumulate", "0"], 2, "positive"),
        (["--mode", "train", "--lora-targets", "q_proj"], 2, "--lora RANK"),
        (["--mode", "train", "--dora"], 2, "--lora RANK"),
        (["--mode", "train", "--lora", "8", "--lora-parameters", "experts.w1"], 2, "'experts.w1'"),
        (["--mode", "train", "--lora", "8", "--modules-to-save", "lm_heat"], 2, "'lm_heat'"),
        (["--mode", "train", "--lora", "8", "--freeze", "norm"], 2, "--freeze"),
        (["--mode", "train", "--freeze", "model"], 2, "leaves no parameter"),
        (["--mode", "train", "--lora", "8", "--lora-targets", "q_prj"], 2, "q_proj, k_proj"),
        (["--mode", "train", "--lora", "8", "--lora-targets", "q_proj,"], 2, "''"),
        (["--mode", "train", "--lora", "8", "--lora-targets", "self_attn"], 7, "Qwen3Attention"),
        (["--mode", "train", "--lora", "8", "--trained", "q_proj"], 2, "--trained"),
        (["--mode", "train", "--lora", "8", "--dtype", "gptq-int4"], 7, "gptq"),
        (["--mode", "train", "--lora", "8", "--dtype", "bnb-int8"], 7, "bitsandbytes"),
        (["--mode", "train", "--dtype", "bnb-nf4"], 7, "--lora RANK"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        found = main(["memory", "catalog:Qwen/Qwen3-0.6B", *arguments, "-q", "--lang", "en"])
    except SystemExit as error:  # argparse's own refusals
        found = int(str(error.code))
    shown = capsys.readouterr()
    assert (found, shown.out) == (code, "")
    assert said in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize("computed", ["Tensor", "int8", {"a": 1}])
def test_a_hostile_dtype_to_compute_in_is_refused(computed: object, tmp_path: Path) -> None:
    four_bits = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_compute_dtype": computed}
    path = write_config(tmp_path, {**FAMILIES["qwen3"], "quantization_config": four_bits})
    with pytest.raises(UnsupportedError) as raised:
        trained(str(path), lora_rank=2)
    assert raised.value.message.key == "memory_computed"


MISSING = """
import sys
sys.modules[sys.argv[1]] = None
from qwen_inspect.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("package", "dtype"), [("peft", "bfloat16"), ("bitsandbytes", "bnb-nf4")])
def test_without_its_packages_the_count_is_told_and_what_to_install(package: str, dtype: str, tmp_path: Path) -> None:
    path = write_config(tmp_path, FAMILIES["qwen2"])
    done = subprocess.run(
        [sys.executable, "-c", MISSING, package, "memory", str(path), "--mode", "train", "--lora", "4", "--context", "16",
         "--keep-gradients", "--dtype", dtype, "--format", "json", "--lang", "en", "-q"],  # of which no trace is shipped
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 8, done.stderr
    assert f"{package} is not installed" in done.stderr
    assert "qwen-inspect[peft]" in done.stderr
    content = json.loads(done.stdout)
    assert content["training"]["trainable_parameters"] == 7424
    assert content["predicted"]["moments"]["peak"] is None


@pytest.mark.parametrize(
    ("command", "code", "because"),
    [(("memory",), 0, " (pip install"), (("fit", "--gpu", "H100"), 7, "; install it with: pip install")],
)
def test_without_torch_and_a_trace_a_sentence_says_so_and_what_to_install(
    command: tuple[str, ...], code: int, because: str, tmp_path: Path
) -> None:
    path = write_config(tmp_path, FAMILIES["qwen2"])
    done = subprocess.run(
        [sys.executable, "-c", MISSING, "torch", *command, str(path), "--mode", "train", "--lora", "4",
         "--keep-gradients", "--lang", "en"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    (sentence,) = (line for line in done.stdout.splitlines()[:4] if "not installed" in line)
    assert "no shipped trace covers" in sentence
    assert f'torch is not installed{because} "qwen-inspect[torch,peft]"' in sentence


def test_a_name_chosen_twice_is_one_target(tmp_path: Path) -> None:
    path = str(write_config(tmp_path, FAMILIES["qwen3"]))
    assert count(path, 4, "q_proj", "q_proj") == count(path, 4, "q_proj")


IMAGE_TOKENS = {"image_token_id": 5, "vision_start_token_id": 7, "vision_end_token_id": 8}


@pytest.mark.parametrize("seen", [True, False])
def test_a_forward_casts_the_biases_of_the_modules_that_run(seen: bool, tmp_path: Path) -> None:
    """bitsandbytes' Linear4bit casts its bias to the dtype that it computes in when it is called: a tower's with images alone."""
    import peft
    import torch
    import transformers

    write_config(tmp_path / "model", {**FAMILIES["qwen3_vl"], **IMAGE_TOKENS})
    config = transformers.AutoConfig.from_pretrained(tmp_path / "model")
    transformers.Qwen3VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    report = inspect(str(tmp_path), dtype="bnb-nf4")
    media = media_of(report.config or {}, {}, Request(typed=(Typed(text="", width=64, height=64),))) if seen else None
    run = Run(mode="train", prompt_tokens=16 + (media.context_tokens if media else 0), lora_rank=4, media=media)
    planned = {tensor.name: tensor.dtype for tensor in plan_of(report, run).weights}
    options = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bfloat16"
    )
    model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
        tmp_path, quantization_config=options, dtype=torch.bfloat16, device_map="cpu"
    )
    model = peft.prepare_model_for_kbit_training(model, True, {"use_reentrant": False})
    tokens = torch.tensor([[1, 7, *[5] * (4 if seen else 0), 8, 2]])
    vision = config.vision_config
    pixels = 3 * vision.patch_size**2 * vision.temporal_patch_size
    side = 2 * vision.spatial_merge_size
    images = {
        "pixel_values": torch.randn(side**2, pixels),
        "image_grid_thw": torch.tensor([[1, side, side]]),
        "mm_token_type_ids": (tokens == 5).int(),
    }
    model(input_ids=tokens, labels=tokens, **(images if seen else {}))
    left = [(name, str(one.dtype)) for name, one in model.named_parameters() if "weight" not in name]
    held = {name: DTYPE_OF_TORCH_NAME[dtype.removeprefix("torch.")] for name, dtype in left}
    assert {name: planned[name] for name in held} == held
    assert (DType.BF16 in held.values()) == seen

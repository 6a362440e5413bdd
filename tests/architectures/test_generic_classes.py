"""Classes beside the usual one of a family, layers that differ in their heads, and the kernels that transformers chooses."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.architectures import FAMILIES
from qwen_inspect.architectures.families import CLASSES
from qwen_inspect.architectures.generic.configurations import stated
from qwen_inspect.errors import UnsupportedError
from qwen_inspect.language import LANGUAGES
from qwen_inspect.predicting.predict import predict
from qwen_inspect.results.memory import Run
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.tracing.cached import found_cache

from ..support.caches import generic, predicted_bytes, real_bytes
from ..support.families import FAMILIES as SMALL_FAMILIES
from ..support.generic_models import PUBLISHED
from ..support.invoking import Capture, invoke, refusal
from ..support.models import TINY_QWEN3, write_config
from ..support.small_models import small_config

# --- layers that differ in their heads

TINY_GEMMA4: Mapping[str, Any] = {
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    "dtype": "bfloat16",
    "vocab_size": 256,
    "hidden_size": 64,
    "hidden_size_per_layer_input": 0,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
    "head_dim": 16,
    "global_head_dim": 64,
    "attention_k_eq_v": True,
    "intermediate_size": 96,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "max_position_embeddings": 512,
    "num_kv_shared_layers": 0,
}

# google/gemma-4-31b: 60 layers, every sixth of them full, behind a tower of 27.
GEMMA4_31B: Mapping[str, Any] = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "model_type": "gemma4",
    "dtype": "bfloat16",
    "audio_config": None,
    "text_config": {
        "model_type": "gemma4_text",
        "vocab_size": 262_144,
        "hidden_size": 5_376,
        "hidden_size_per_layer_input": 0,
        "num_hidden_layers": 60,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "num_global_key_value_heads": 4,
        "head_dim": 256,
        "global_head_dim": 512,
        "attention_k_eq_v": True,
        "intermediate_size": 21_504,
        "sliding_window": 1_024,
        "max_position_embeddings": 262_144,
    },
    "vision_config": {
        "model_type": "gemma4_vision",
        "hidden_size": 1_152,
        "intermediate_size": 4_304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 72,
    },
}


def test_heads_that_differ_by_layer_are_read_layer_by_layer(tmp_path: Path) -> None:
    """A token of K and V in bfloat16: 2 x 2 heads x 16 x 2 B in a layer with a window, 2 x 1 head x 64 x 2 B in a full one."""
    report = inspect(str(write_config(tmp_path, TINY_GEMMA4)))
    assert [(layer.kind, layer.bytes_per_token) for layer in report.cache.layers] == [
        ("sliding", 128),
        ("full", 256),
    ] * 2
    heads = [(layer.query_heads, layer.kv_heads, layer.head_dim) for layer in report.attention.softmax]
    assert heads == [(4, 2, 16), (4, 1, 64)] * 2


@pytest.mark.parametrize("shared", [0, 2])
def test_the_cache_of_such_layers_is_what_a_real_run_keeps(shared: int) -> None:
    from qwen_inspect.architectures.generic import build_generic

    tables = {
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 256,
    }  # without, transformers shares nothing
    config = {**TINY_GEMMA4, **(tables if shared else {}), "num_kv_shared_layers": shared}
    architecture = generic(config)
    _, cache = found_cache(architecture.built, architecture.spec.dtype)
    assert [layer.kind for layer in cache.layers][4 - shared :] == ["shared"] * shared
    real = build_generic(config, device=None)
    assert predicted_bytes(cache) == real_bytes(real)
    assert architecture.tree.parameters == sum(parameter.numel() for parameter in real.parameters())


def test_the_whole_model_with_such_layers_has_the_parameters_that_its_sizes_give(tmp_path: Path) -> None:
    """Table 262,144 x 5,376; a layer with a window 2 x 5,376 x (8,192 + 4,096), a full one 5,376 x (2 x 16,384 + 2,048), for its
    keys are its values; each an MLP of 3 x 5,376 x 21,504, four norms of 5,376 and two of a head. The tower 27 x (4 x 1,152^2 +
    3 x 1,152 x 4,304 + 4 x 1,152 + 2 x 72), patches 768 x 1,152, positions 2 x 10,240 x 1,152, its way out 1,152 x 5,376."""
    report = inspect(str(write_config(tmp_path, GEMMA4_31B)))
    assert report.parameters.theory == 31_273_086_512
    assert {layer.bytes_per_token for layer in report.cache.layers} == {2 * 16 * 256 * 2, 2 * 4 * 512 * 2}


def test_a_key_that_differs_by_layer_has_no_value_for_all() -> None:
    import transformers

    config = transformers.AutoConfig.for_model(**TINY_GEMMA4)
    assert (stated(config, "head_dim"), stated(config, "num_attention_heads"), stated(config, "none")) == (
        None,
        4,
        None,
    )
    assert [stated(layer, "head_dim") for layer in config.per_layer_config] == [16, 64, 16, 64]


def test_one_layer_of_a_family_with_sizes_of_its_own_is_not_counted_like_the_others(
    tmp_path: Path, capsys: Capture
) -> None:
    """transformers 5.23 refuses to build Qwen3 so."""
    path = write_config(tmp_path, {**TINY_QWEN3, "per_layer_config": {"0": {"intermediate_size": 48}}})
    assert "intermediate_size" in refusal(capsys, 7, "params", path)


# --- classes


def test_a_classifier_of_a_family_is_counted(tmp_path: Path, capsys: Capture) -> None:
    """Qwen3-8B without its head of 151,936 x 4,096, and a row of 4,096 for each label."""
    published = dict(inspect("catalog:Qwen/Qwen3-8B").config or {})
    for labels, parameters in ((1, 7_568_409_600), (2, 7_568_413_696)):
        own = {"architectures": ["Qwen3ForSequenceClassification"], "id2label": {str(i): str(i) for i in range(labels)}}
        path = write_config(tmp_path / str(labels), {**published, **own})
        report = inspect(str(path))
        assert report.parameters.theory == parameters
        assert report.cache.bytes_per_token == 36 * 2 * 8 * 128 * 2


CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "Model")


@pytest.mark.parametrize("family", sorted(set(FAMILIES) & set(SMALL_FAMILIES)))
def test_every_other_class_of_a_family_has_the_parameters_of_transformers(family: str, tmp_path: Path) -> None:
    import torch
    import transformers

    config = dict(SMALL_FAMILIES[family])
    prefix = CLASSES[family][0].partition("For")[0]
    own = type(transformers.AutoConfig.for_model(**config))
    names = [prefix + end for end in CLASSIFIERS if hasattr(transformers, prefix + end)]
    for name in names:
        if name in CLASSES[family] or getattr(transformers, name).config_class is not own:
            continue
        report = inspect(str(write_config(tmp_path / name, {**config, "architectures": [name]})))
        with torch.device("meta"):
            model = getattr(transformers, name)._from_config(transformers.AutoConfig.for_model(**config))
        assert report.spec.class_name == name
        assert report.parameters.theory == sum(parameter.numel() for parameter in model.parameters()), name


def test_a_classifier_runs_forward_and_does_not_generate(tmp_path: Path, capsys: Capture) -> None:
    path = write_config(tmp_path, {**TINY_QWEN3, "architectures": ["Qwen3ForSequenceClassification"]})
    done = invoke(capsys, "memory", path, "--mode", "forward", "--context", "40", "--format", "json")
    predicted = json.loads(done.out)["predicted"]
    assert (done.code, predicted["method"]) == (0, "trace")
    assert predicted["moments"]["steady"]["cache_bytes"] == 40 * 2 * 2 * 2 * 16 * 2
    done = invoke(capsys, "memory", path, "--context", "40", "--lang", "en")
    assert done.code == 7
    assert "--mode forward" in done.err.splitlines()[-1]


@pytest.mark.parametrize("end", ["SequenceClassification", "TokenClassification"])
@pytest.mark.parametrize("labels", [1, 3])
def test_a_classifier_trains(end: str, labels: int, tmp_path: Path) -> None:
    own = {"architectures": [f"Qwen3For{end}"], "id2label": {str(index): str(index) for index in range(labels)}}
    report = inspect(str(write_config(tmp_path, {**TINY_QWEN3, "pad_token_id": 0, **own})))
    memory = predict(report, Run(mode="train", batch=2, prompt_tokens=16))
    assert (memory.predicted.method, memory.refusal) == ("trace", None)
    assert memory.predicted.steady.optimizer == 2 * report.tree.size_bytes


def test_an_encoder_runs_forward_without_a_cache(tmp_path: Path, capsys: Capture) -> None:
    path = write_config(tmp_path, {**small_config("bert"), "architectures": ["BertForSequenceClassification"]})
    done = invoke(capsys, "memory", path, "--mode", "forward", "--context", "40", "--format", "json")
    predicted = json.loads(done.out)["predicted"]
    assert (done.code, predicted["method"], predicted["moments"]["peak"]["cache_bytes"]) == (0, "trace", 0)
    done = invoke(capsys, "memory", path, "--mode", "generate", "--lang", "en")
    assert done.code == 7
    assert "--mode forward" in done.err.splitlines()[-1]


def test_a_class_that_transformers_has_not_is_refused_with_those_that_are_known(
    tmp_path: Path, capsys: Capture
) -> None:
    path = write_config(tmp_path, {**TINY_QWEN3, "architectures": ["Qwen3ForProcessRewardModel"]})
    line = refusal(capsys, 7, "params", path)
    assert "Qwen3ForProcessRewardModel" in line
    assert "Qwen3ForCausalLM" in line


def test_without_torch_another_class_of_a_family_names_the_extra(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN_INSPECT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "torch", None)
    path = write_config(tmp_path, {**TINY_QWEN3, "architectures": ["Qwen3ForSequenceClassification"]})
    line = refusal(capsys, 8, "params", path)
    assert "Qwen3ForSequenceClassification" in line
    assert "qwen-inspect[torch]" in line


@pytest.mark.parametrize("options", [["--tp", "2"], ["--fsdp", "4", "--mode", "train"]])
def test_without_torch_a_described_model_that_transformers_shares_names_the_extra(
    options: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN_INSPECT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "qwen-inspect[torch]" in refusal(capsys, 8, "memory", "catalog:LiquidAI/LFM2-1.2B", *options)


# --- kernels


@pytest.mark.parametrize("model_type", ["gemma2", "gpt_oss"])
def test_where_transformers_has_no_sdpa_the_default_is_eager_and_said(
    model_type: str, tmp_path: Path, capsys: Capture
) -> None:
    path = write_config(tmp_path, small_config(model_type))
    answers = []
    for options in ([], ["--attention", "eager"]):
        done = invoke(capsys, "memory", path, "--context", "40", "--format", "json", "--lang", "en", *options)
        assert done.code == 0
        answers.append(json.loads(done.out))
    assert answers[0] == answers[1]
    assert (answers[0]["workload"]["attention"], answers[0]["predicted"]["method"]) == ("eager", "trace")
    assert any("sdpa" in line and "eager" in line for line in answers[0]["predicted"]["assumptions"])
    for language in LANGUAGES:
        done = invoke(capsys, "memory", path, "--context", "40", "--lang", language)
        assert done.code == 0
        assert "sdpa" in done.out
    for command in (["memory"], ["fit", "--gpu", "H100"]):
        line = refusal(capsys, 7, command[0], path, *command[1:], "--attention", "sdpa")
        assert "--attention eager" in line


def test_the_families_take_sdpa_without_a_look_at_torch(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    done = invoke(capsys, "memory", "catalog:Qwen/Qwen3-0.6B", "--format", "json")
    assert done.code == 0
    assert json.loads(done.out)["workload"]["attention"] == "sdpa"


def test_two_models_are_compared_each_with_its_own_kernel(tmp_path: Path, capsys: Capture) -> None:
    paths = [write_config(tmp_path / name, small_config(name)) for name in ("gemma2", "llama")]
    done = invoke(capsys, "compare", *paths, "--context", "40", "--format", "json")
    assert json.loads(done.out)["side_by_side"]["workload"]["attention"] == "eager, sdpa"


# --- storages of a cache


@pytest.mark.parametrize("new_tokens", [1, 5])
@pytest.mark.parametrize("model_type", ["gemma3_text", "gemma4", "bloom", "deepseek_v32", "mamba2"])
def test_the_caches_storages_are_those_of_a_real_run(model_type: str, new_tokens: int, tmp_path: Path) -> None:
    """A layer with a window keeps views: after a prompt of all its tokens, after a token of the window's."""
    import torch

    from qwen_inspect.architectures.generic import build_generic
    from qwen_inspect.tracing.cached import tensors_of

    from ..support.generic_models import RUN

    config = small_config(model_type, **RUN.get(model_type, {}))
    model = build_generic(config, device=None)
    if (text := model.config.get_text_config(decoder=True)).pad_token_id is None:
        text.pad_token_id = 0
    prompt = torch.randint(3, 100, (2, 20))
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    outputs = model.generate(prompt, attention_mask=torch.ones_like(prompt), return_dict_in_generate=True, **options)
    cache = getattr(outputs, "past_key_values", None) or outputs.cache_params
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for _, tensor in tensors_of(cache)}
    report = inspect(str(write_config(tmp_path, config)))
    memory = predict(report, Run(batch=2, prompt_tokens=20, new_tokens=new_tokens))
    assert (memory.predicted.method, memory.refusal) == ("trace", None)
    steady = memory.predicted.steady
    assert (steady.cache or 0) + (steady.state or 0) == sum(storages.values())


def test_gemma_3_asks_for_what_an_h100_was_asked_for(tmp_path: Path) -> None:
    """2,375,295,438 B: torch.cuda.memory_stats()["requested_bytes.all.peak"] while gemma-3-1b-it generated 8 tokens after 4,096
    on one NVIDIA H100 80GB HBM3 (torch 2.11, transformers 5.23); `generate` keeps its mask beside, 32 KiB, and some counters."""
    report = inspect(str(write_config(tmp_path, PUBLISHED["google/gemma-3-1b-it"].config)))
    run = Run(prompt_tokens=4096, new_tokens=8, gpu="NVIDIA H100 80GB HBM3", loader="per-tensor")
    predicted = predict(report, run).predicted
    peak = predicted.peak or predicted.steady
    assert 0 <= 2_375_295_438 - ((peak.allocated or 0) - (peak.rounding or 0)) < 64 * 1024


def test_a_kernel_that_is_asked_for_and_missing_is_refused_from_python(tmp_path: Path) -> None:
    report = inspect(str(write_config(tmp_path, small_config("gemma2"))))
    with pytest.raises(UnsupportedError, match="--attention eager"):
        predict(report, Run(attention="sdpa"))

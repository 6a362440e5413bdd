"""Models that no family here describes: what transformers builds and keeps, against real runs, files and published counts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from qwen_inspect.architectures import FAMILIES
from qwen_inspect.architectures.generic import build_generic
from qwen_inspect.architectures.sizes import check_sizes
from qwen_inspect.checkpoint import DType
from qwen_inspect.errors import MalformedError, QwenInspectError, UnsupportedError
from qwen_inspect.language import LANGUAGES, Language
from qwen_inspect.predicting.predict import predict
from qwen_inspect.renderers import json as as_json
from qwen_inspect.renderers import terminal
from qwen_inspect.renderers.document import View, document
from qwen_inspect.renderers.figure import architecture_figure
from qwen_inspect.results.memory import Run
from qwen_inspect.results.model import Report
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.tracing.cached import found_cache

from ..support.caches import generic, predicted_bytes, real_bytes
from ..support.families import FAMILIES as SMALL_FAMILIES
from ..support.generic_models import LONG, PUBLISHED, REFUSED, RUN
from ..support.invoking import Capture, invoke
from ..support.models import write_config
from ..support.outlines import VARIED
from ..support.prepared import SHELL, Finished, Prepared
from ..support.schema import assert_keeps_to_the_schema
from ..support.small_models import small_config


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_type",
    [
        pytest.param(name, marks=pytest.mark.exhaustive) if name in LONG or at % 2 else name
        for at, name in enumerate(RUN)
    ],
)
def test_the_cache_is_what_a_real_run_keeps(model_type: str) -> None:
    config = small_config(model_type, **RUN.get(model_type, {}))
    architecture = generic(config)
    _, cache = found_cache(architecture.built, architecture.spec.dtype)
    assert predicted_bytes(cache) == real_bytes(build_generic(config, device=None))


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(VARIED)))
def test_the_cache_of_every_family_is_what_a_real_run_keeps(family: str, tmp_path: Path) -> None:
    if family in SMALL_FAMILIES:
        config = {**SMALL_FAMILIES[family], "torch_dtype": "bfloat16"}
    else:  # the decoder of a composite
        decoder = SMALL_FAMILIES[family.removesuffix("_text")]["text_config"]
        config = {**decoder, "model_type": family}
    report = inspect(str(write_config(tmp_path, config)))
    assert predicted_bytes(report.cache) == real_bytes(build_generic(config, device=None))


def test_a_cache_whose_size_depends_on_data_is_refused() -> None:
    """Kept: as many tokens as ids other than 0, which no run on meta knows."""
    import torch
    from transformers import AutoConfig, LlamaModel

    class Choosing(LlamaModel):  # type: ignore[misc]  # transformers is untyped here
        def forward(self, input_ids: Any, **options: Any) -> Any:
            return super().forward(input_ids[:, : 1 + input_ids.nonzero().shape[0]], **options)

    with torch.device("meta"):
        model = Choosing._from_config(AutoConfig.for_model(**small_config("llama")))
    with pytest.raises(UnsupportedError) as refused:
        found_cache(model, DType.BF16)
    assert refused.value.message.key == "generic_cache_of_data"


def test_at_least_a_hundred_types_are_run_or_described() -> None:
    assert len({*RUN, *FAMILIES}) >= 100


@pytest.mark.slow
@pytest.mark.parametrize("model_type", REFUSED)
def test_what_is_refused_is_refused_with_its_reason(model_type: str) -> None:
    config = small_config(model_type, **RUN.get(model_type, {}))

    def kept() -> object:
        architecture = generic(config)
        return found_cache(architecture.built, architecture.spec.dtype)

    with pytest.raises(UnsupportedError) as refused:
        kept()
    assert refused.value.message.key == REFUSED[model_type]


def test_a_type_that_is_not_known_is_told_with_the_nearest_each_once() -> None:
    with pytest.raises(UnsupportedError) as refused:
        generic({"model_type": "mistrall"})  # transformers and this tool both know "mistral"
    near = str(refused.value.message.values["near"]).split(", ")
    assert near[0] == "mistral"
    assert len(set(near)) == len(near) == 3


def test_the_list_of_types_says_of_each_what_the_tests_show() -> None:
    page = (Path(__file__).parents[2] / "reports" / "model-types.md").read_text(encoding="utf-8")
    told, refused, unbuilt = (
        dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", part, re.MULTILINE)) for part in page.split("\n## ")[1:]
    )
    assert not set(told) & {*refused, *unbuilt}
    assert set(RUN) - set(FAMILIES) <= set(told)
    assert set(REFUSED) <= {*refused, *unbuilt}
    assert all({**refused, **unbuilt}.values())


@cache
def published_report(name: str) -> Report:
    """Of the release's own configuration: hundreds of gigabytes are built on meta in seconds, once."""
    with TemporaryDirectory() as directory:
        return inspect(str(write_config(Path(directory), PUBLISHED[name].config)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name: str) -> None:
    model = PUBLISHED[name]
    report = published_report(name)
    assert report.parameters.theory == model.parameters
    if model.cache_gib is not None:
        tokens = report.spec.context_tokens
        assert tokens is not None
        assert round(report.cache.size_bytes(tokens=tokens) / 2**30, 1) == model.cache_gib


def test_the_published_active_parameters_are_found() -> None:
    """DeepSeek-V3: 37B of 671B (README)."""
    model = PUBLISHED["deepseek-ai/DeepSeek-V3"]
    active = published_report("deepseek-ai/DeepSeek-V3").parameters.active
    assert active is not None
    assert round(active / 1e9) in (37, 38)
    tree = generic(model.config).tree
    unclear = generic({**small_config("deepseek_v3"), "num_experts_per_tok": 4, "n_routed_experts": 4})
    assert unclear.tree.active_parameters == unclear.tree.parameters  # every token takes all
    assert tree.active_parameters < tree.parameters


# Context, in tokens, and the GiB that peers get wrong; the constant state of a hybrid apart.
@pytest.mark.parametrize(
    ("model", "tokens", "gib", "fixed_bytes"),
    [
        ("catalog:Qwen/Qwen3-0.6B", 40_960, 4.375, 0),
        ("catalog:Qwen/Qwen3-Next-80B-A3B-Instruct", 262_144, 6.0, 77_856_768),
        ("google/gemma-3-27b-it(text)", 131_072, 10.40585, 0),
        ("deepseek-ai/DeepSeek-V3", 163_840, 10.72266, 0),
    ],
)
def test_the_examples_that_peers_get_wrong(model: str, tokens: int, gib: float, fixed_bytes: int) -> None:
    """4.375 GiB: 40,960 x 112 KiB (28 layers of 8 heads of 128). DeepSeek-V3: 61 x (512 + 64) x 2 B = 70,272 B a token.
    Gemma-3-27B: 10 layers of 131,072 tokens and 52 of 1,023, 8,192 B each."""
    cache = (inspect(model) if model.startswith("catalog:") else published_report(model)).cache
    assert cache.fixed_bytes == fixed_bytes
    assert round((cache.size_bytes(tokens=tokens) - fixed_bytes) / 2**30, 5) == gib


def saved(directory: Path, config: Mapping[str, Any]) -> Any:
    """A small model with random weights, saved as transformers saves it: in the release's layout."""
    model = build_generic(config, device=None)
    model.save_pretrained(directory)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_type",
    ["llama", "mixtral", "deepseek_v3", "gpt2", "gpt_oss", "gemma3", "olmoe", "nemotron_h", "minimax_m2", "bert"],
)
def test_stored_files_reconcile_with_what_is_built(model_type: str, tmp_path: Path) -> None:
    model = saved(tmp_path, small_config(model_type, **RUN.get(model_type, {})))
    report = inspect(str(tmp_path))
    (check,) = report.checks
    assert check.agrees, check
    assert report.parameters.theory == report.parameters.unique == sum(one.numel() for one in model.parameters())


def test_a_prediction_layer_that_the_class_ignores_is_a_named_cause(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    saved(tmp_path, {**small_config("deepseek_v3")})
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "model.layers.61.eh_proj.weight": torch.zeros(64, 128)}, tmp_path / "model.safetensors")
    (check,) = inspect(str(tmp_path)).checks
    assert check.agrees
    assert {cause.name: cause.parameters for cause in check.causes}["unloaded"] == 64 * 128
    save_file({**tensors, "model.layers.9.eh_proj.weight": torch.zeros(64, 128)}, tmp_path / "model.safetensors")
    (check,) = inspect(str(tmp_path)).checks
    assert [one.name for one in check.unexplained] == ["model.layers.9.eh_proj.weight"]


# --- what is refused


STABLE = {
    "architectures": ["StableLmForCausalLM"],
    "model_type": "stablelm",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "torch_dtype": "bfloat16",
}


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"model_type": "lama"}, 7, "llama"),
        ({"model_type": "llama9"}, 7, "pip install -U transformers"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "a.B"}}, 7, "--trust-remote-code"),
        ({"num_hidden_layers": 10**9}, 6, "num_hidden_layers"),
        ({"hidden_size": 2**60}, 6, "hidden_size"),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_attention_heads": 5}, 6, "5"),
        ({"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 4}, 6, "6"),
        ({"num_hidden_layers": "many"}, 7, "num_hidden_layers"),
        ({"layer_types": ["no_attention", "full_attention"]}, 7, "layer_types"),
        ({"layer_types": ["full_attention"] * 20_000}, 6, "20,000"),
        ({"hidden_act": "no_such"}, 7, "no_such"),
        ({"architectures": ["Qwen3ForCausalLM"]}, 7, "Qwen3ForCausalLM"),
        ({"architectures": ["pipeline"], "rope_scaling": {"rope_type": "no_such"}}, 7, "no_such"),
        ({"text_config": 5, "torch_dtype": "int4"}, 7, "int4"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, 7, "language model"),
    ],
)
def test_bad_configurations_are_refused_in_one_sentence(
    change: dict[str, Any], code: int, words: str, tmp_path: Path
) -> None:
    with pytest.raises(QwenInspectError) as refused:
        inspect(str(write_config(tmp_path, {**STABLE, **change})))
    assert refused.value.exit_code == code
    assert words in str(refused.value)
    assert "\n" not in Language("zh")(refused.value.message)


def test_nesting_without_end_is_refused() -> None:
    config: dict[str, Any] = {}
    for _ in range(40):
        config = {"inner": config}
    with pytest.raises(MalformedError, match="nested"):
        check_sizes(config)


def test_no_configuration_makes_transformers_fetch_code(tmp_path: Path) -> None:
    config = {**STABLE, "_attn_implementation": "someone/kernel", "attn_implementation": "someone/kernel"}
    assert (
        inspect(str(write_config(tmp_path, config))).parameters.theory
        == inspect(str(write_config(tmp_path / "plain", STABLE))).parameters.theory
    )


def test_without_torch_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setenv("QWEN_INSPECT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(QwenInspectError, match=r"qwen-inspect\[torch\]") as refused:
        inspect(str(write_config(tmp_path, STABLE)))
    assert refused.value.exit_code == 8


OWN = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own_llama"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_a_repository_runs_only_when_it_is_trusted_and_there(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN + "open(__file__ + '.ran', 'w').close()\n")
    named = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    path = write_config(tmp_path, {**STABLE, "model_type": "own_llama", "auto_map": named})
    environment = {"HF_HOME": str(tmp_path / "home")}
    with Prepared(**environment) as prepared:

        def run_there(*words: str | Path) -> Finished:
            done = prepared.run([*map(str, words)], {**os.environ, **SHELL, **environment}, None)
            assert done is not None
            return done

        assert run_there("params", tmp_path).code == 7
        assert not list((tmp_path / "home").rglob("*.ran"))
        trusted = run_there("params", tmp_path, "--trust-remote-code", "--format", "json")
        assert trusted.code == 0, trusted.err
        assert list((tmp_path / "home").rglob("*.ran"))
        llama = {**STABLE, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        plain = inspect(str(write_config(tmp_path / "plain", llama))).parameters.theory
        assert json.loads(trusted.out)["parameters"]["theory"] == plain
        sides = ("compare", tmp_path, tmp_path / "plain", "--trust-remote-code", "--format", "json", "--context", "8")
        compared = json.loads(run_there(*sides).out)
        facts = {fact["name"]: fact["values"] for fact in compared["side_by_side"]["facts"]}
        assert facts["unique"] == [plain, plain]
        elsewhere = {key: f"someone/else--{name}" for key, name in named.items()}
        write_config(tmp_path, {**json.loads(path.read_text()), "auto_map": elsewhere})
        assert run_there("params", tmp_path, "--trust-remote-code").code == 7


# --- what is shown


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "deepseek_v3", "mamba2", "gemma4"])
def test_every_command_shows_it_in_both_languages(model_type: str, tmp_path: Path) -> None:
    path = write_config(tmp_path, small_config(model_type, **RUN.get(model_type, {})))
    report = inspect(str(path))
    for language in ("en", "zh"):
        say = Language(language)
        for command in ("structure", "params", "attention", "config"):
            content = json.loads(as_json.render(command, report, say))
            assert_keeps_to_the_schema(content)
            assert terminal.render(document(command, report, say, View(explain=True)))
        assert architecture_figure(report, say).startswith("<svg")


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_memory_traces_the_class(model_type: str, tmp_path: Path) -> None:
    report: Report = inspect(str(write_config(tmp_path, small_config(model_type))))
    wanted = Run(
        mode="generate", batch=2, prompt_tokens=20, new_tokens=5, attention="sdpa", loader="warmup", gpu="sm_80"
    )
    memory = predict(report, wanted)
    assert memory.predicted.method == "trace"
    assert memory.predicted.steady.cache == report.cache.size_bytes(tokens=24, batch=2)
    assert memory.predicted.steady.weights == report.tree.size_bytes


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("form", ["md", "html", "json"])
def test_a_report_stands_without_the_cache_that_is_refused(
    form: str, language: str, tmp_path: Path, capsys: Capture
) -> None:
    """Exit 7 after the document, which says why; a committed one is checked like any other."""
    path = write_config(tmp_path / "minimax", small_config("minimax"))
    reports = tmp_path / "reports"
    done = invoke(capsys, "report", path, "--format", form, "--lang", language, "-o", reports)
    assert done.code == 7
    reason = "MiniMaxCache"
    assert reason in done.err
    text = (reports / f"minimax.{language}.{form}").read_text(encoding="utf-8")
    assert f"{generic(small_config('minimax')).tree.parameters:,}" in text or form == "json"
    if form == "json":
        found = json.loads(text)
        assert (found["cache"], found["kind"], found["cache_by_context"]) == (None, None, [])
        assert_keeps_to_the_schema(found)
    else:
        assert reason in text
    assert invoke(capsys, "report", "--check", "-o", reports).code == 0


def test_what_is_not_known_of_one_side_stays_unknown_beside_the_other(tmp_path: Path, capsys: Capture) -> None:
    paths = [write_config(tmp_path / name, small_config(name)) for name in ("minimax", "llama")]
    done = invoke(capsys, "compare", *paths, "--format", "json")
    assert done.code == 0
    rows = {(row["section"], row["name"]): row["values"] for row in json.loads(done.out)["side_by_side"]["facts"]}
    unknown, known = rows["cache", "token_bytes"]
    assert (unknown, known is None) == (None, False)


@pytest.mark.parametrize(("model_type", "dtype"), [("deepseek_v3", "bfloat16"), ("gpt_oss", "float16")])
def test_what_transformers_loads_in_float32_is_float32(model_type: str, dtype: str, tmp_path: Path) -> None:
    """A router's bias whatever the dtype; gpt-oss's norms in float16 alone."""
    import torch
    import transformers

    config = {**small_config(model_type), "dtype": dtype}
    model = build_generic(config, device="cpu")
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=getattr(torch, dtype))
    ours = build_generic(config)
    stored = loaded.state_dict().keys()
    assert {name: value.dtype for name, value in ours.state_dict().items()} == {
        name: value.dtype for name, value in loaded.state_dict().items()
    }
    assert {torch.float32, getattr(torch, dtype)} == {loaded.state_dict()[name].dtype for name in stored}

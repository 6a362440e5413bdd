"""Training runs composed of a shallow model's layers against traces of the whole model, event by event."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.errors import UnsupportedError
from qwen_inspect.predicting import sources
from qwen_inspect.predicting.families import family_training, shallow_training
from qwen_inspect.predicting.families.composition import compose, shallow_layers
from qwen_inspect.predicting.predict import predict
from qwen_inspect.predicting.sources import trace_request, with_kernel
from qwen_inspect.predicting.traces.kept_trace import KeptTrace, Point
from qwen_inspect.predicting.training_plan import plan_of
from qwen_inspect.results.memory import Run
from qwen_inspect.results.timeline import Stage, Timeline
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.tracing import trace as tracing

from ..support.families import FAMILIES
from ..support.models import write_config
from ..support.small_models import small_config


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN_INSPECT_CACHE", str(tmp_path / "cache"))
    shallow_training._of_any.cache_clear()
    sources._traced_once.cache_clear()
    monkeypatch.setattr(family_training, "training_trace", lambda *_: None)  # families' traces, which the package has


def of_depth(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The configuration with so many layers, of which the kinds repeat where it lists them."""
    part = "text_config" if "text_config" in config else None
    text = dict(config[part]) if part else dict(config)
    text["num_hidden_layers"] = layers
    if "layer_types" in text:
        text["layer_types"] = (list(text["layer_types"]) * layers)[:layers]
    return {**config, part: text} if part else text


def both(path: Path, dtype: str | None = None, **changes: Any) -> tuple[Timeline | None, Timeline]:
    """The run composed of the first layers, None if they do not stand for all, and the trace of all layers."""
    report = inspect(str(path), dtype=dtype)
    plan = plan_of(report, with_kernel(Run(mode="train", **{"prompt_tokens": 24, **changes}), report))
    request = trace_request(plan.run, plan.four_bits)
    question = shallow_training.question_of(report, plan, request, sources.installed_versions())
    deep = shallow_training.composed_trace(question)
    composed = None if deep is None else deep.at(Point(plan.run.batch, plan.run.prompt_tokens, plan.run.prompt_tokens))
    return composed, tracing.trace(report.spec, report.config or {}, request)


def assert_equal(path: Path, dtype: str | None = None, **changes: Any) -> None:
    composed, whole = both(path, dtype, **changes)
    assert composed is not None
    # Sums and casts do not take part in comparing timelines.
    assert (composed, composed.sums, composed.cast) == (whole, whole.sums, whole.cast)


LORA: Mapping[str, Any] = {"lora_rank": 4}
CHECKPOINTED: Mapping[str, Any] = {**LORA, "checkpointing": True, "accumulate": 2}


@pytest.mark.parametrize(
    ("family", "layers", "changes"),
    [
        ("qwen3", 6, {"checkpointing": True}),
        ("qwen2", 6, {**LORA, "lora_targets": ("q_proj",), "batch": 2}),
        pytest.param("qwen3_moe", 11, {"optimizer": "adamw_for_loop"}, marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_composed_of_first_layers_is_that_of_the_whole_model(
    family: str, layers: int, changes: Mapping[str, Any], tmp_path: Path
) -> None:
    config = of_depth(FAMILIES[family], layers)
    assert_equal(write_config(tmp_path, config), **changes)


def test_a_second_workload_gives_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another alignment too: 4 divides the first two workloads' tokens, 2 not the third's."""
    path = str(write_config(tmp_path, of_depth(FAMILIES["qwen2"], 6)))
    for tokens in (24, 100):
        assert predict(inspect(path), Run(mode="train", prompt_tokens=tokens)).predicted.method == "trace"
    monkeypatch.setattr(shallow_training, "_composed", None)
    assert_equal(Path(path), prompt_tokens=331)


@pytest.mark.exhaustive
# Whose last chunk is padded, and is not; the last prompts have more chunks than a trace, or fewer.
@pytest.mark.parametrize(
    "tokens", [(530, 700, 1187), (576, 640, 960), (530, 150, 331), (200, 150, 429), (576, 192, 256)]
)
def test_a_second_workload_gives_all_others_of_linear_attention(
    tokens: tuple[int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The turns of each length's chunks are added to the eight that were traced, or are taken from them."""
    path = str(write_config(tmp_path, of_depth(FAMILIES["qwen3_5"], 14)))
    *traced, other = tokens
    for prompt_tokens in traced:
        assert predict(inspect(path), Run(mode="train", prompt_tokens=prompt_tokens)).predicted.method == "trace"
    monkeypatch.setattr(shallow_training, "_composed", None)
    assert_equal(Path(path), prompt_tokens=other)


def test_a_question_asked_again_takes_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = inspect(str(write_config(tmp_path, of_depth(FAMILIES["qwen3"], 6))))
    run = Run(mode="train", prompt_tokens=24)
    first = predict(report, run)
    assert first.predicted.peak is not None
    sources._traced_once.cache_clear()
    monkeypatch.setattr(tracing, "trace", None)
    again = predict(report, run)
    assert again.predicted == first.predicted
    assert again.predicted.provenance.startswith("transformers ")


def test_layers_that_do_not_stand_for_all_are_traced(tmp_path: Path) -> None:
    """The last layer alone is trained: no first layers end as this model does."""
    path = write_config(tmp_path, of_depth(FAMILIES["qwen3"], 7))
    trained = r"layers\.6\."
    assert both(path, trained=trained)[0] is None
    assert predict(inspect(str(path)), Run(mode="train", prompt_tokens=24, trained=trained)).predicted.method == "trace"


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("dddddddd", 4),
        ("ddmmmmmm", 6),
        ("lllflllflllflllf", 12),  # the first and the last full attention differ from those between
        ("dddddddx", None),  # nothing before the end ends so
        ("ddd", None),
    ],
)
def test_first_layers_stand_for_all_if_they_have_all_surroundings(kinds: str, expected: int | None) -> None:
    assert shallow_layers(kinds) == expected


def run_of(*order: int) -> KeptTrace:
    """A forward of four layers, each of which makes a tensor and frees another as `order` says."""
    modules = [((1,), f"layers.{layer}", "made") for layer in range(4)]
    stages = Stage(name="load", first_event=0), Stage(name="forward", first_event=0)
    return KeptTrace(stages=stages, allocations=tuple(modules), order=order, made_by="")


def test_each_layer_frees_its_neighbours_tensor() -> None:
    deep = compose(run_of(0, 1, -1, 2, -2, 3, -3), "a" * 6, 4, "layers")
    assert deep.order == (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5)
    assert [module for _, module, _ in deep.allocations] == [f"layers.{layer}" for layer in range(6)]


def test_a_list_is_freed_in_its_order() -> None:
    deep = compose(run_of(0, 1, 2, 3, -4, -3, -2, -1), "a" * 6, 4, "layers")
    assert deep.order == (0, 1, 2, 3, 4, 5, -6, -5, -4, -3, -2, -1)


def test_layers_that_differ_where_they_should_not_are_refused() -> None:
    with pytest.raises(UnsupportedError):
        compose(run_of(0, 1, -1, 2, 3, -3), "a" * 6, 4, "layers")
    other = run_of(0, 1, 2, 3)
    sizes = [((1 + (layer == 2),), module, operator) for layer, (_, module, operator) in enumerate(other.allocations)]
    with pytest.raises(UnsupportedError):
        compose(replace(other, allocations=tuple(sizes)), "a" * 6, 4, "layers")


# --- every family


OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "all": {},
    "8 bits": {"optimizer": "adamw_8bit", "batch": 2, "accumulate": 2},
    "one by one": {"optimizer": "adamw_for_loop"},
    "fused": {"optimizer": "adamw_fused", "checkpointing": True},
    "sgd": {"optimizer": "sgd", "attention": "eager"},
    "gradients": {"optimizer": "none", "checkpointing": True, "batch": 3},
    "some": {"trained": r"self_attn|linear_attn"},
    "padded": {"padded": True, "batch": 2},
    "autocast": {"autocast": "bfloat16"},
}
ADAPTED: Mapping[str, Mapping[str, Any]] = {
    "LoRA": {**LORA, "lora_targets": ("q_proj", "o_proj")},
    "LoRA, checkpointed": {**CHECKPOINTED, "lora_targets": ("q_proj",)},
    "QLoRA": {**LORA, "lora_targets": ("q_proj",), "dtype": "bnb-nf4-double"},
}
HYBRIDS = ("qwen3_next", "qwen3_5", "qwen3_5_moe", "qwen3_5_text")
OTHERS = {
    "llama": 7,
    "mistral": 7,
    "gemma2": 11,
    "gemma3_text": 25,
    "gpt_oss": 11,
    "deepseek_v3": 9,
    "olmo2": 6,
    "glm4": 6,
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", [*OPTIONS, *ADAPTED])
@pytest.mark.parametrize("family", [family for family in FAMILIES if "without its head" not in family])
def test_runs_of_every_family_are_composed(family: str, options: str, tmp_path: Path) -> None:
    config = dict(FAMILIES[family])
    layers = 16 if family in HYBRIDS else 12
    if "layer_types" not in config.get("text_config", config) and family in HYBRIDS:
        layers = 20
    changes = dict({**OPTIONS, **ADAPTED}[options])
    if options == "QLoRA" and "moe" in family:
        pytest.skip("bitsandbytes has no layout for experts")
    assert_equal(write_config(tmp_path, of_depth(config, layers)), **changes)


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", ["all", "8 bits", "fused", "padded", "LoRA, checkpointed"])
@pytest.mark.parametrize("model_type", OTHERS)
def test_runs_of_other_classes_are_composed(model_type: str, options: str, tmp_path: Path) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    config = {**small_config(model_type), "architectures": [CLASSES[model_type]]}
    config = {key: value for key, value in config.items() if key != "layer_types"}
    changes = dict({**OPTIONS, **ADAPTED}[options])
    if "lora_targets" in changes:
        changes["lora_targets"] = ("o_proj",)
    assert_equal(write_config(tmp_path, of_depth(config, OTHERS[model_type])), **changes)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(30))
def test_runs_of_any_depth_and_workload_are_composed(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    family = chance.choice(["qwen2", "qwen3", "qwen3 with biases", "qwen2_vl", "qwen3_vl"])
    path = write_config(tmp_path, of_depth(FAMILIES[family], chance.randint(6, 9)))
    changes = dict(chance.choice([*OPTIONS.values(), *ADAPTED.values()]))
    for _ in range(3):  # of this workload alone, then with polynomials
        changes |= {"batch": chance.choice([1, 2, 3]), "prompt_tokens": chance.randint(9, 200)}
        assert_equal(path, **changes)

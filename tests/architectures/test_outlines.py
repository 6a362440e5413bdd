"""Families known by their modules are, in every detail, what transformers builds on the meta device and keeps."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest

from qwen_inspect.architectures import architecture_of
from qwen_inspect.architectures.generic import read_generic
from qwen_inspect.errors import QwenInspectError
from qwen_inspect.spec import each_tensor

from ..support.outlines import VARIED, assert_is_what_transformers_builds, beside_transformers, mutated, varied


@pytest.mark.parametrize("model_type", VARIED)
def test_a_family_is_what_transformers_builds(model_type: str) -> None:
    for seed in range(2):
        assert_is_what_transformers_builds(varied(model_type, seed))


@pytest.mark.parametrize("model_type", ["glm4v", "glm4v_moe"])
def test_a_tower_that_names_the_whole_model_is_read(model_type: str) -> None:
    config = varied(model_type, 0)
    config["vision_config"] = {**config["vision_config"], "model_type": model_type}
    assert_is_what_transformers_builds(config)


@pytest.mark.parametrize("model_type", ["internvl", "mistral3"])
def test_a_decoder_of_no_type_is_refused_as_transformers_refuses_it(model_type: str) -> None:
    config = varied(model_type, 0)
    config["text_config"] = {**config["text_config"], "model_type": None}
    assert beside_transformers(config) == "refused"
    with pytest.raises(QwenInspectError):
        read_generic(config, ())


@pytest.mark.parametrize(("model_type", "seed"), [("gemma4", 0), ("gemma4_text", 2)])
def test_heads_that_transformers_saves_layer_by_layer_are_read(model_type: str, seed: int) -> None:
    """In the second, whose heads of full attention are as wide as the others, it saves none."""
    import transformers

    config = varied(model_type, seed)
    saved = json.loads(transformers.AutoConfig.for_model(**copy.deepcopy(config)).to_json_string())
    text = saved.get("text_config", saved)
    assert bool(text["per_layer_config"]) == (seed == 0)
    assert "global_head_dim" not in text
    assert architecture_of(saved).tree == architecture_of(config).tree
    assert_is_what_transformers_builds(saved)


# Layouts of releases, by what stands in the class's names and in the files'.
LAYOUTS = {
    "gemma3": {
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    },
    "bert": {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta", "bert.": ""},
}


@pytest.mark.parametrize("model_type", LAYOUTS)
def test_names_in_files_are_mapped_as_transformers_maps_them(model_type: str) -> None:
    config = {**varied(model_type, 0), "tie_word_embeddings": False}
    config.pop("architectures", None)
    tensors = list(each_tensor(architecture_of(config).tree))
    names = [tensor.name for tensor in tensors]
    for built, stored in LAYOUTS[model_type].items():
        names = [name.replace(built, stored) for name in names]
    files = [replace(tensor, name=name) for tensor, name in zip(tensors, names, strict=True)]
    light, whole = architecture_of(config, stored=files), read_generic(config, (), files)
    assert [light.stored_form(tensor) for tensor in tensors] == [whole.stored_form(tensor) for tensor in tensors]
    assert sum(light.stored_form(tensor)[0].name in names for tensor in tensors) >= len(tensors) - 1


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(2, 40))
@pytest.mark.parametrize("model_type", VARIED)
def test_many_configurations_are_what_transformers_builds(model_type: str, seed: int) -> None:
    assert_is_what_transformers_builds(varied(model_type, seed))


@pytest.mark.exhaustive
@pytest.mark.parametrize("model_type", VARIED)
def test_no_change_of_a_configuration_gives_another_count_than_transformers(model_type: str) -> None:
    answers = [beside_transformers(mutated(varied(model_type, seed % 7), seed)[0]) for seed in range(300)]
    assert answers.count("equal") >= 60


# By the classes' defaults, which are the releases' sizes. Source: DeepSeek-V3 (arXiv 2412.19437) and V3.2 (arXiv 2512.02556):
# 512 + 64 numbers of two bytes a token and layer, and 128 more for the index.
@pytest.mark.parametrize(
    ("model_type", "tokens", "gib"),
    [
        ("deepseek_v3", 163_840, 10.723),  # 61 layers
        ("deepseek_v32", 163_840, 13.105),
        ("kimi_k25", 131_072, 8.578),
        ("glm4_moe_lite", 131_072, 6.609),  # GLM-4.7-Flash: 47 layers
    ],
)
def test_the_caches_of_latent_attention_are_those_of_their_papers(model_type: str, tokens: int, gib: float) -> None:
    kept = architecture_of({"model_type": model_type, "dtype": "bfloat16"}).kept
    assert kept is not None
    assert round(sum(layer.bytes_per_token for _, layer in kept) * tokens / 2**30, 3) == gib


def test_a_cache_of_states_and_pooled_indexes_is_the_published_one() -> None:
    """GLM-5.3-Flash, whose sizes are its class's defaults: 2.204 GiB at 131,072 tokens in bfloat16."""
    kept = architecture_of({"model_type": "glm5_next", "dtype": "bfloat16"}).kept
    assert kept is not None
    layers = [layer for _, layer in kept]
    assert [layer.bytes_per_token for layer in layers if layer.bytes_per_token] == [2 * (512 + 2 * 128 + 1)] * 11
    total = sum(layer.bytes_per_token * 131_072 + sum(layer.states_bytes) for layer in layers)
    assert round(total / 2**30, 3) == 2.204

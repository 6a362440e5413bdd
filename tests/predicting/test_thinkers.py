"""Whole models of which one part, the thinker, answers: what is known of them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_inspect.errors import UnsupportedError
from qwen_inspect.fitting.serving import serve
from qwen_inspect.loaders import gpus
from qwen_inspect.predicting.footprint import formula_footprint
from qwen_inspect.predicting.predict import predict
from qwen_inspect.predicting.speed import speed_of
from qwen_inspect.results.memory import Run
from qwen_inspect.results.serving import Serving
from qwen_inspect.structure.inspect import inspect

from ..support.families import configuration_of
from ..support.hearing import hearing, speaking
from ..support.models import write_config

RUN = Run(prompt_tokens=40, new_tokens=4)


@pytest.mark.parametrize("family", ["qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"])
def test_the_run_of_a_whole_model_is_its_thinkers_beside_the_weights_of_all(family: str, tmp_path: Path) -> None:
    """Of text the formula agrees at the end with the trace, which holds no biases' workspace for what is idle."""
    import torch
    import transformers

    whole = inspect(str(write_config(tmp_path / "whole", speaking(family))))
    thinker = inspect(str(write_config(tmp_path / "thinker", hearing(family))))
    with torch.device("meta"):
        built = getattr(transformers, whole.spec.class_name)._from_config(
            configuration_of(speaking(family)), dtype=torch.bfloat16
        )
    assert whole.tree.parameters == sum(parameter.numel() for parameter in built.parameters())
    assert whole.cache.layers == thinker.cache.layers
    assert whole.parameters.active is None
    speech = sum(part.parameters for part in whole.components if part.name == "speech")
    assert speech == whole.tree.parameters - thinker.tree.parameters > 0

    found, alone = (predict(report, RUN) for report in (whole, thinker))
    assert found.predicted.steady.weights == sum(each.numel() * each.element_size() for each in built.parameters())
    assert found.predicted.peak is not None
    assert alone.predicted.peak is not None
    assert found.predicted.peak.activations == alone.predicted.peak.activations
    assert "assume_thinker" in {message.key for message in found.predicted.assumptions}
    assert "assume_thinker" not in {message.key for message in alone.predicted.assumptions}
    for report, memory in ((whole, found), (thinker, alone)):
        formula = formula_footprint(report.tree, report.cache, memory.run)
        assert formula.steady.workspace == memory.predicted.steady.workspace
    assert [step.weight_bytes for step in speed_of(whole, RUN, "4090").steps] == [
        step.weight_bytes for step in speed_of(thinker, RUN, "4090").steps
    ]


def test_what_is_known_of_a_thinker_alone_is_refused_of_a_whole_model(tmp_path: Path) -> None:
    report = inspect(str(write_config(tmp_path, speaking("qwen3_omni_moe_thinker"))))
    for mode in ("train", "forward"):
        with pytest.raises(UnsupportedError, match="thinker_config"):
            predict(report, Run(mode=mode, prompt_tokens=40))
    with pytest.raises(UnsupportedError, match="thinker_config"):
        serve(report, Serving(engine="vllm", context_tokens=40), [gpus.find("4090")])
    quantised = inspect(str(tmp_path), dtype="bnb-nf4")
    memory = predict(quantised, RUN)
    assert memory.predicted.peak is None
    assert memory.refusal is not None
    assert "thinker_config" in str(memory.refusal)

"""Selections by a mask on tensors without data: counted where the number follows from lengths, refused otherwise."""

from __future__ import annotations

from qwen_inspect.results.timeline import Allocate

from ..support.generic_models import RUN
from ..support.real_runs import traced
from ..support.small_models import small_config


def test_a_prompts_complete_pools_are_what_glm_5_3_selects() -> None:
    """17 of four tokens each in a prompt of 70, once for keys, places and validity: an index of 8 bytes each. A real run makes
    the same requests: `test_a_run_of_another_family_is_measured_as_predicted`.
    """
    changes = {"num_hidden_layers": 1, "layer_types": ["indexed_attention"], "mlp_layer_types": ["dense"]}
    config = small_config("glm5_next", **{**RUN["glm5_next"], **changes, "indexer_types": ["full"]})
    config["architectures"] = ["Glm5NextForConditionalGeneration"]
    events = traced(config, mode="generate", batch=2, prompt_tokens=70, new_tokens=3).events
    selections = [event for event in events if isinstance(event, Allocate) and event.operator == "aten.nonzero.default"]
    assert [selection.size_bytes for selection in selections] == [8 * 17] * 3 + [8 * (72 // 4)] * 3

"""Every model_type of transformers: parameters, attention and memory are answered, or refused in one line."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from qwen_inspect.architectures import FAMILIES

from ..support.generic_models import RUN
from ..support.invoking import Capture, assert_is_one_error_line, invoke
from ..support.models import write_config
from ..support.small_models import small_config

CHUNKS, FEW = 16, 1  # CI has time for some
REFUSALS = (6, 7, 8)


def types() -> list[str]:
    from transformers import CONFIG_MAPPING

    return sorted(set(CONFIG_MAPPING) - set(FAMILIES))


def small_or_none(model_type: str) -> dict[str, Any] | None:
    """Of its language model; where it has none, of the class that `AutoModel` makes. None where its own defaults are refused."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto import modeling_auto

    try:
        config = small_config(model_type, **RUN.get(model_type, {}))
    except (StrictDataclassError, TypeError, ValueError):
        return None
    config.pop("architectures", None)
    lists = (
        modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    )
    name = modeling_auto.MODEL_MAPPING_NAMES.get(model_type)
    if name is not None and not any(model_type in names for names in lists):
        config["architectures"] = [name if isinstance(name, str) else name[0]]
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    "chunk", [*range(FEW), *(pytest.param(n, marks=pytest.mark.exhaustive) for n in range(FEW, CHUNKS))]
)
def test_every_type_is_answered_or_refused_in_one_line(chunk: int, tmp_path: Any, capsys: Capture) -> None:
    """Each by a small configuration of its own: 10 to 20 seconds a chunk."""
    for model_type in types()[chunk::CHUNKS]:
        config = small_or_none(model_type)
        if config is None:
            continue
        path = write_config(tmp_path / model_type, config)
        capsys.readouterr()  # what transformers says of its own defaults
        known = invoke(capsys, "params", path, "--format", "json", "--quiet", "--lang", "en")
        cached = invoke(capsys, "attention", path, "--quiet", "--lang", "en")
        mode = "generate" if cached.code == 0 else "forward"
        short = ("--mode", mode, "--context", "12", "--new-tokens", "2")
        memory = invoke(capsys, "memory", path, *short, "--quiet", "--lang", "en")
        for done in (known, cached, memory):
            if done.code == 0:
                assert (done.out != "", done.err) == (True, ""), model_type
            else:
                assert done.code in REFUSALS, (model_type, done.err)
                assert_is_one_error_line(done.err, "en")
                assert not re.search("Traceback|AssertionError", done.err), (model_type, done.err)
        if known.code == 0:
            assert json.loads(known.out)["parameters"]["theory"] > 0, model_type

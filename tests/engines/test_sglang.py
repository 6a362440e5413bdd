"""SGLang's pool: its cells, and the share of a card that it leaves free."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qwen_inspect.cli import main
from qwen_inspect.engines.sglang import SglangDemand, default_share
from qwen_inspect.errors import UnsupportedError
from qwen_inspect.loaders import gpus
from qwen_inspect.results.serving import Serving
from qwen_inspect.structure.inspect import inspect

from ..support.schema import assert_keeps_to_the_schema

ASKED = Serving(engine="sglang")


@pytest.mark.parametrize(
    ("model", "ranks", "form", "cell_bytes"),
    [
        ("Qwen/Qwen3-8B", 1, "auto", 36 * 8 * (128 + 128) * 2),
        ("Qwen/Qwen3-30B-A3B", 8, "fp8", 48 * 1 * (128 + 128)),  # 4 heads, of which each of 8 ranks has one
        ("deepseek-ai/DeepSeek-V3", 8, "auto", 61 * (512 + 64) * 2),
    ],
)
def test_a_cell_is_a_token_of_every_layer(model: str, ranks: int, form: str, cell_bytes: int) -> None:
    """DefaultPoolConfigurator._compute_cell_size of 0.5.23."""
    report = inspect(model, source="catalog")
    assert (
        SglangDemand(report, replace(ASKED, ranks=ranks, cache_format=form), gpus.find("H200")).cell_bytes == cell_bytes
    )


def test_the_share_is_what_its_heuristic_gives() -> None:
    """memory_hook.py of 0.5.23 on 81,559 MiB: 512 + 8192 x 1.5 + 1024 / 8 + 256 x 2 + 58 x 8 MiB stay free."""
    assert default_share(gpus.find("H100"), 1, latent=False) == round(1 - 13_904 / 81_559, 3) == 0.83
    assert default_share(gpus.find("RTX 4090"), 1, latent=False) == round(
        1 - 7_280 / 24_564, 3
    )  # 512 + 6144 + 128 + 96 + 400


def test_the_pool_is_the_share_of_what_was_free_less_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    on = ["fit", "catalog:Qwen/Qwen3-8B", "--engine", "sglang", "--gpu", "H100", "--mem-fraction-static", "0.9"]
    assert main([*on, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert_keeps_to_the_schema(found)
    free = found["available_bytes"] - 2**30  # a context of a GiB, at the cautious end
    assert abs(found["kv_cache_tokens"] - (0.9 * free - found["terms"][0]["least_bytes"]) / 147_456) < 2
    for language in ("en", "zh"):
        main([*on, "--lang", language])
        assert f"{found['kv_cache_tokens']:,}" in capsys.readouterr().out


def test_pools_of_windows_and_states_are_refused() -> None:
    for model in ("google/gemma-3-4b-it", "Qwen/Qwen3.5-4B"):
        with pytest.raises(UnsupportedError):
            SglangDemand(inspect(model, source="catalog"), ASKED, gpus.find("H100"))

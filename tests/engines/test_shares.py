"""LMDeploy's and TensorRT-LLM's caches: a share of what is free, in whole blocks, between two ends."""

from __future__ import annotations

import json

import pytest

from qwen_inspect.cli import main

from ..support.schema import assert_keeps_to_the_schema

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("engine", "option", "share", "block_tokens", "before_gib"),
    [
        # turbomind.cc: nothing but the context is taken before; at most (8192 + 2 x 512) x 151,936 x 2 bytes of logits
        ("lmdeploy", "--cache-max-entry-count", 0.5, 64, (450 / 1024, 1 + 9216 * 151_936 * 2 / 2**30)),
        # _cal_max_memory: 8,192 tokens of 3 x 4096 + 3 x 12,288 numbers; logits of 2,048 sequences, twice, and 2 GiB
        (
            "tensorrt-llm",
            "--free-gpu-memory-fraction",
            0.9,
            32,
            (450 / 1024 + 0.375, 1 + 0.75 + 2 * 2048 * 151_936 * 4 / 2**30 + 2),
        ),
    ],
)
def test_the_cache_is_a_share_of_what_is_free(
    engine: str, option: str, share: float, block_tokens: int, before_gib: tuple[float, float], capsys: Capture
) -> None:
    on = ["fit", "catalog:Qwen/Qwen3-8B", "--engine", engine, "--gpu", "H100", option, str(share), "--context", "8192"]
    assert main([*on, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert_keeps_to_the_schema(found)
    weights, beside = found["terms"]
    free = found["available_bytes"] - weights["least_bytes"] - before_gib[1] * 2**30
    tokens = found["kv_cache_tokens"]
    assert tokens % block_tokens == 0
    assert abs(tokens - share * free / (36 * 2 * 8 * 128 * 2)) < block_tokens + 1
    free_at_best = found["available_bytes"] - weights["least_bytes"] - before_gib[0] * 2**30
    assert abs(beside["least_bytes"] - before_gib[0] * 2**30 - (1 - share) * free_at_best) < 2**20
    for language in ("en", "zh"):
        assert main([*on, "--lang", language]) == 0
        assert f"{tokens:,}" in capsys.readouterr().out


def test_windows_states_and_options_of_others_are_refused(capsys: Capture) -> None:
    for engine in ("lmdeploy", "tensorrt-llm"):
        for model in ("google/gemma-3-4b-it", "Qwen/Qwen3.5-4B"):
            assert main(["fit", f"catalog:{model}", "--engine", engine, "--gpu", "H100"]) == 7
        assert main(["fit", "catalog:Qwen/Qwen3-8B", "--engine", engine, "--gpu", "H100", "--utilization", "0.8"]) == 2
    assert (
        main(["fit", "catalog:Qwen/Qwen3-8B", "--engine", "vllm", "--gpu", "H100", "--cache-max-entry-count", "0.8"])
        == 2
    )
    assert capsys.readouterr().err.count("\n") == 7

"""Models with an encoder and a decoder: parameters, and a cache of what is decoded and of the source, as real runs keep it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.architectures.generic import build_generic
from qwen_inspect.results.cache import Workload
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.tracing.cached import found_cache

from ..support.caches import generic, tensors_of
from ..support.invoking import Capture, invoke
from ..support.models import write_config
from ..support.schema import assert_keeps_to_the_schema
from ..support.small_models import small_config

BATCH, SOURCE, PROMPT, DECODED = 2, 8, 9, 4
DEPTHS = {"encoder_layers": 2, "decoder_layers": 3, "num_decoder_layers": 3, "d_kv": 16, "max_source_positions": 20}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
# The releases' config.json, without the keys that change no size. Parameters as transformers' documentation and the model
# cards have them: T5-small 60,506,624; Whisper-tiny 37,760,640.
T5_SMALL = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "n_positions": 512,
    "vocab_size": 32128,
    "torch_dtype": "bfloat16",
}
WHISPER_TINY = {
    "architectures": ["WhisperForConditionalGeneration"],
    "model_type": "whisper",
    "d_model": 384,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_ffn_dim": 1536,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "vocab_size": 51865,
    "torch_dtype": "bfloat16",
}


def small(model_type: str) -> dict[str, Any]:
    config = small_config(model_type)
    return {**config, **{key: value for key, value in {**DEPTHS, **HEADS}.items() if key in config}}


def real_bytes(config: Mapping[str, Any]) -> list[int]:
    """Bytes that each decoder layer's two caches hold after a source, a prompt and some tokens, really computed."""
    import torch

    torch.manual_seed(0)
    model = build_generic(config, device=None)
    kept: dict[str, Any] = {}
    source = {"input_ids": torch.randint(3, 100, (BATCH, SOURCE))}
    if model.main_input_name == "input_features":  # the convolutions halve what they hear
        frames = 2 * config["max_source_positions"]
        source = {"input_features": torch.randn(BATCH, config["num_mel_bins"], frames, dtype=model.dtype)}
    with torch.inference_mode():
        for tokens in (PROMPT, *[1] * DECODED):
            ids = torch.randint(3, 100, (BATCH, tokens))
            kept = {"past_key_values": model(**source, decoder_input_ids=ids, use_cache=True, **kept).past_key_values}
    caches = (getattr(kept["past_key_values"], f"{name}_attention_cache").layers for name in ("self", "cross"))
    return [
        sum(tensor.nbytes for layer in pair for tensor in tensors_of(vars(layer))) for pair in zip(*caches, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["t5", "bart", "whisper"])
def test_both_caches_are_what_a_real_run_keeps(model_type: str) -> None:
    config = small(model_type)
    architecture = generic(config)
    _, cache = found_cache(architecture.built, architecture.spec.dtype)
    layers = [
        layer if layer.source_tokens is not None else replace(layer, source_tokens=SOURCE) for layer in cache.layers
    ]
    assert [BATCH * layer.size_bytes(PROMPT + DECODED) for layer in layers] == real_bytes(config)


def test_the_cache_of_t5_small_is_that_of_its_heads(tmp_path: Path) -> None:
    """A token: K and V of 6 layers with 8 heads of 64 in bfloat16, 12,288 B; as much for a token of the source."""
    path = str(write_config(tmp_path, T5_SMALL))
    report = inspect(path, workload=Workload(context_tokens=20, source_tokens=100))
    assert report.parameters.theory == 60_506_624
    assert report.cache.bytes_per_token == report.cache.source_bytes_per_token == 12_288
    assert report.cache_bytes == 12_288 * 120


def test_whisper_always_hears_as_much(tmp_path: Path, capsys: Capture) -> None:
    """1,500 positions of 4 layers with K and V of 384 in bfloat16: 9,216,000 B."""
    path = write_config(tmp_path, WHISPER_TINY)
    report = inspect(str(path), workload=Workload(context_tokens=448))
    assert report.parameters.theory == 37_760_640
    assert report.cache_bytes == 9_216_000 + 448 * 6_144
    refused = invoke(capsys, "attention", path, "--source-tokens", "100")
    assert (refused.code, "1,500" in refused.err) == (2, True)


def test_without_the_length_of_a_source_totals_are_unknown(tmp_path: Path, capsys: Capture) -> None:
    path = write_config(tmp_path, T5_SMALL)
    shown = json.loads(invoke(capsys, "attention", path, "--context", "20", "--format", "json").out)
    assert_keeps_to_the_schema(shown)
    cache = shown["cache"]
    assert (cache["bytes"], cache["source_tokens"], cache["engines"]) == (None, None, [])
    assert (cache["bytes_per_token"], cache["source_bytes_per_token"]) == (12_288, 12_288)
    assert {layer["source_bytes_per_token"] for layer in cache["layers"]} == {2_048}
    for language in ("en", "zh"):
        answer = invoke(capsys, "attention", path, "--lang", language)
        assert answer.code == 0
        assert "--source-tokens" in answer.out.splitlines()[1]


def test_a_source_for_a_model_without_an_encoder_is_refused(tmp_path: Path, capsys: Capture) -> None:
    refused = invoke(capsys, "attention", "catalog:Qwen/Qwen3-0.6B", "--source-tokens", "9")
    assert (refused.code, "encoder" in refused.err) == (2, True)


def test_what_generating_takes_is_not_guessed(tmp_path: Path, capsys: Capture) -> None:
    path = write_config(tmp_path, small("t5"))
    for command in (["memory"], ["fit", "--gpu", "H100"], ["fit", "--engine", "vllm", "--kv-budget", "20GiB"]):
        done = invoke(capsys, command[0], path, *command[1:], "--context", "20", "--lang", "en")
        assert done.code == 7, command
        assert "encoder" in done.out + done.err

"""Speculative decoding in vLLM: a drafter's weights, its layers in every block, and the profile run's rejection sampler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.cli import main
from qwen_inspect.engines.vllm.command import parse_command
from qwen_inspect.engines.vllm.outside import graphs
from qwen_inspect.errors import UnsupportedError, UsageError
from qwen_inspect.units import GIB

from ..support.schema import assert_keeps_to_the_schema

Capture = pytest.CaptureFixture[str]
MTP = '{"method": "mtp", "num_speculative_tokens": %d}'


def answer(capsys: Capture, model: str, *options: str) -> dict[str, Any]:
    main(["fit", f"catalog:{model}", "--engine", "vllm", "--format", "json", *options])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert_keeps_to_the_schema(found)
    return found


def term(found: dict[str, Any], name: str) -> tuple[int, int]:
    return next((t["least_bytes"], t["most_bytes"]) for t in found["terms"] if t["term"] == name)


@pytest.mark.parametrize(
    ("model", "form", "budget", "length", "proposed", "block_tokens", "tokens", "concurrency"),
    [
        # 0.23.1rc1, nvidia/Qwen3.6-27B-NVFP4, of the layers of Qwen3.5-27B, 2 July 2026
        ("Qwen/Qwen3.5-27B", "fp8", "48.6GiB", 262_144, 2, 1600, 1_394_129, "5.32"),
        # 0.21, a packed Qwen3.6-35B-A3B, of the layers of Qwen3.5-35B-A3B, 30 May 2026
        ("Qwen/Qwen3.5-35B-A3B", "auto", "71.15GiB", 200_000, 3, 1072, 3_131_683, "15.66"),
    ],
)
def test_a_pool_with_prediction_layers_is_what_a_log_printed(
    model: str,
    form: str,
    budget: str,
    length: int,
    proposed: int,
    block_tokens: int,
    tokens: int,
    concurrency: str,
    capsys: Capture,
) -> None:
    """Logs that stand in public repositories, with prefixes cached: the budget as printed, blocks and tokens to the unit."""
    options = ("--kv-budget", budget, "--context", str(length), "--cache-dtype", form, "--engine-version", "0.23.1")
    found = answer(capsys, model, *options, "--enable-prefix-caching", "--speculative-config", MTP % proposed)["vllm"]
    assert (found["block_tokens"], found["low"]["kv_cache_tokens"]) == (block_tokens, tokens)
    assert f"{found['low']['max_concurrency']:.2f}" == concurrency


def test_prediction_layers_weigh_what_a_log_printed(capsys: Capture) -> None:
    """0.20.0, Qwen3.5-9B on an RTX 5090: 17.66 GiB alone and 18.12 with the layer; a pool of 41,184 tokens."""
    on = ["--gpu", "RTX 5090", "--utilization", "0.85", "--context", "4096", "--engine-version", "0.20.0"]
    on += ["--max-num-batched-tokens", "8192", "--max-num-seqs", "256"]
    alone, both = (answer(capsys, "Qwen/Qwen3.5-9B", *on, *more) for more in ([], ["--speculative-config", MTP % 1]))
    weights = [sum(term(alone, name)[end] for name in ("weights", "rounding")) for end in (0, 1)]
    assert {round(size / 2**30, 2) for size in weights} == {17.66}
    least, most = term(both, "drafter")
    assert least <= (18.12 - 17.66) * 2**30 <= most
    assert most - least < 2**24 + 1
    assert both["vllm"]["low"]["kv_cache_tokens"] <= 41_184 <= both["vllm"]["high"]["kv_cache_tokens"]


def test_an_eagle_head_has_its_weights_and_a_layer_of_every_block(tmp_path: Path, capsys: Capture) -> None:
    """yuhuili/EAGLE3-LLaMA3.1-Instruct-8B: 424,689,664 parameters in a file of 850 MB, and an index of its vocabulary."""
    head = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 1,
        "vocab_size": 128_256,
        "draft_vocab_size": 32_000,
        "torch_dtype": "float16",
    }
    (tmp_path / "config.json").write_text(json.dumps(head))
    speculation = json.dumps({"method": "eagle3", "model": str(tmp_path), "num_speculative_tokens": 3})
    line = f"vllm serve catalog:meta-llama/Llama-3.1-8B-Instruct --max-model-len 8192 -sc '{speculation}'"
    main(["fit", "--gpu", "H100", "--format", "json", "--vllm", line])
    found = json.loads(capsys.readouterr().out)
    least, most = term(found, "drafter")
    assert least == 2 * 424_689_664 + 8 * 32_000
    assert 2 * 128_256 * 4096 <= most - least < 2 * 128_256 * 4096 + 2**26  # if its embedding is its own
    assert found["vllm"]["block_bytes"] == 33 * 2 * 16 * 8 * 128 * 2


def test_a_draft_model_is_loaded_whole(capsys: Capture) -> None:
    """Qwen3-0.6B, 596,049,920 parameters and a rotary table of 40,960 positions; 28 layers beside 36 of the same heads."""
    draft = '{"model": "catalog:Qwen/Qwen3-0.6B", "num_speculative_tokens": 4}'
    found = answer(capsys, "Qwen/Qwen3-8B", "--gpu", "H100", "--speculative-config", draft)
    assert term(found, "drafter")[0] == 2 * 596_049_920 + 40_960 * 128 * 2
    assert found["vllm"]["block_bytes"] == (36 + 28) * 2 * 16 * 8 * 128 * 2
    on = ["--engine", "vllm", "--gpu", "H100", "--speculative-config", draft]
    for language in ("en", "zh"):
        assert main(["fit", "catalog:Qwen/Qwen3-8B", *on, "--lang", language]) == 0
        assert "1.12 GiB" in capsys.readouterr().out


def test_the_profile_run_samples_a_proposed_token_too(capsys: Capture) -> None:
    """rejection_sampler.py of 0.19.0, of 1024 sequences and 151,936 tokens: logits of two tokens and of the sampled one in
    bfloat16, that one's and the proposed one's (twice) in float32, probabilities and random numbers: 26 bytes, 14 before.
    """
    ngram = '{"method": "ngram", "num_speculative_tokens": 5}'
    found, without = (
        answer(capsys, "Qwen/Qwen3-8B", "--gpu", "H100", *options) for options in (("--speculative-config", ngram), ())
    )
    rows = 132 * 4 * 151_936  # of the Triton sampler
    assert term(found, "activation")[0] - term(without, "activation")[0] == 12 * 1024 * 151_936 - rows
    assert found["vllm"]["block_bytes"] == without["vllm"]["block_bytes"]


def test_prefixes_of_hybrids_are_cached_by_default_from_0_27_on(capsys: Capture) -> None:
    """engine/arg_utils.py of 0.27.0 and 0.28.0: three groups of states, each with a second block."""
    blocks = []
    for options in (["0.27.0"], ["0.28.0"], ["0.28.0", "--no-enable-prefix-caching"]):
        on = ("--kv-budget", "8GiB", "--context", "4096", "--engine-version", *options)
        blocks.append(answer(capsys, "Qwen/Qwen3.5-9B", *on)["vllm"]["low"]["sequence_blocks"])
    assert (blocks[1] - blocks[0], blocks[2]) == (3, blocks[0])


@pytest.mark.parametrize(
    ("model", "version", "config", "code"),
    [
        ("Qwen/Qwen3-8B", "0.19.0", MTP % 1, 7),  # has no such layers
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "0.19.0", '{"method": "ngram", "num_speculative_tokens": 2}', 7),
        # vLLM refuses another vocabulary: 152,064 and 151,936 tokens
        ("Qwen/Qwen2.5-7B", "0.19.0", '{"model": "catalog:Qwen/Qwen2.5-0.5B", "num_speculative_tokens": 2}', 7),
        # vLLM would take its layers for prediction alone
        ("Qwen/Qwen3.5-27B", "0.19.0", '{"model": "catalog:Qwen/Qwen3.5-0.8B", "num_speculative_tokens": 2}', 7),
        ("Qwen/Qwen3-8B", "0.19.0", '{"method": "eagle3", "model": "catalog:Qwen/Qwen3-0.6B", "num_speculative_tokens": 2}', 7),
    ],
)  # fmt: skip
def test_drafters_that_are_not_modelled_are_refused(
    model: str, version: str, config: str, code: int, capsys: Capture
) -> None:
    on = ["--engine", "vllm", "--gpu", "H100", "--engine-version", version, "--speculative-config", config]
    assert main(["fit", f"catalog:{model}", *on]) == code
    assert capsys.readouterr().err.count("\n") <= 3


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ("[]", UsageError),
        ("{", UsageError),
        ('{"method": "ngram"}', UsageError),
        ('{"method": "mtp", "num_speculative_tokens": 0}', UsageError),
        ('{"method": "eagle", "num_speculative_tokens": 2}', UsageError),
        ('{"method": "medusa", "model": "x", "num_speculative_tokens": 2}', UnsupportedError),
        ('{"method": "mtp", "model": "another", "num_speculative_tokens": 1}', UnsupportedError),
    ],
)
def test_a_config_without_meaning_is_refused(config: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_command(f"vllm serve x --speculative-config '{config}'")


def test_the_method_is_named_or_follows_from_the_drafter() -> None:
    """SpeculativeConfig.__post_init__ and the options that set its keys one by one."""
    for line, method, model in (
        ("--speculative_config.model a/EAGLE-b --speculative-config.num_speculative_tokens 2", "eagle", "a/EAGLE-b"),
        ("--spec-model a/b_eagle3 --spec-tokens 2", "eagle3", "a/b_eagle3"),
        ("--spec-method qwen3_5_mtp --spec-tokens 2", "mtp", None),
        ('-sc \'{"model": "ngram", "num_speculative_tokens": 2, "moe_backend": "x"}\'', "ngram", None),
    ):
        command = parse_command(f"vllm serve x {line}")
        speculation = command.serving.speculation
        assert speculation is not None
        assert (speculation.method, speculation.tokens, command.draft) == (method, 2, model)
    assert command.ignored == ("--speculative-config moe_backend",)


@pytest.mark.parametrize(
    ("model", "drafter", "version", "told"),
    [
        # config/speculative.py of 0.14; v1/spec_decode of 0.16 to 0.33: _raise_if_mrope, and _raise_if_multimodal up to 0.20.
        ("Qwen/Qwen3-32B", "Qwen/Qwen3-0.6B", "0.14.0", "0.16"),
        ("Qwen/Qwen3-32B", "Qwen/Qwen3-0.6B", "0.16.0", None),
        ("Qwen/Qwen3-VL-32B-Instruct", "Qwen/Qwen3-0.6B", "0.20.0", "--language-model-only"),
        ("Qwen/Qwen3-VL-32B-Instruct --language-model-only", "Qwen/Qwen3-0.6B", "0.20.0", None),
        ("Qwen/Qwen3-VL-32B-Instruct", "Qwen/Qwen3-0.6B", "0.21.0", None),
        ("Qwen/Qwen3-VL-32B-Instruct", "Qwen/Qwen3-VL-2B-Instruct", "0.33.0", "M-RoPE"),
    ],
)
def test_draft_models_that_vllm_refuses_are_refused(
    model: str, drafter: str, version: str, told: str | None, capsys: Capture
) -> None:
    speculation = json.dumps({"model": f"catalog:{drafter}", "num_speculative_tokens": 3})
    line = f"vllm serve catalog:{model} --max-model-len 8192 --speculative-config '{speculation}'"
    code = main(["fit", "--vllm", line, "--engine-version", version, "--gpu", "B200", "--format", "json"])
    found = capsys.readouterr()
    assert code == (0 if told is None else 7), found.err
    assert told is None or told in found.err


def test_a_drafters_graphs_are_a_models_of_its_layers() -> None:
    """A log of Qwen3.8-27B on two ranks estimates 1.45 GiB, and 1.59 with its layer of prediction."""

    def most(drafted: int | None) -> int:
        found = graphs(capability=(9, 0), layers=64, ranks=1, sequences=256, second=False, drafted=drafted)
        return found.most_bytes or 0

    assert 0.14 * GIB < most(1) - most(None) < 0.5 * GIB
    assert most(28) - most(1) == pytest.approx(27 * 0.0155 * GIB, rel=0.01)

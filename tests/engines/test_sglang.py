"""SGLang's pool: its cells, and the share of a card that it leaves free."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qwen_inspect.cli import main
from qwen_inspect.engines.sglang.command import parse_command
from qwen_inspect.engines.sglang.demand import SglangDemand, default_share
from qwen_inspect.engines.sglang.pools import Pools, pools_of
from qwen_inspect.errors import UnsupportedError, UsageError
from qwen_inspect.loaders import gpus
from qwen_inspect.results.serving import Serving, SglangOptions
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.structure.kv_cache import FORMATS
from qwen_inspect.units import GIB

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
    # Prompts that are not cut activate 16,384 tokens, and no chunk is captured: 512 + 24576 + 128 + 512.
    uncut = parse_command("sglang serve --model-path x --chunked-prefill-size -1").serving.sglang
    assert uncut is not None
    assert default_share(gpus.find("H100"), 1, latent=False, options=uncut) == round(1 - 25_728 / 81_559, 3)


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


def pools(model: str, form: str = "bfloat16", ranks: int = 1, **options: int) -> Pools:
    return pools_of(inspect(model, source="catalog"), FORMATS[form], ranks, SglangOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "ranks", "slots", "tokens", "states_gib", "keys_gib"),
    [
        # 0.5.21, a Nemotron 3 Nano, 4 ranks: slots and tokens from its default ratio
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 4, 2211, 19_644_177, 0.44 + 24.84, 14.05),
        # nvidia/Qwen3.8-27B-NVFP4, of the layers of Qwen3.5-27B: --max-mamba-cache-size 360
        ("Qwen/Qwen3.5-27B", 1, 360, 228_520, 0.99 + 50.77, 3.49),
    ],
)
def test_slots_of_states_and_tokens_are_what_a_log_printed(
    model: str, ranks: int, slots: int, tokens: int, states_gib: float, keys_gib: float
) -> None:
    """Logs that stand in public repositories, with an fp8 cache: both pools, and what they take as printed to 0.01 GiB."""
    named = {"state_slots": slots} if slots == 360 else {}
    pool = pools(model, "fp8", ranks, **named)
    states, cells = (slots + 1) * pool.state_bytes, tokens * pool.cell_bytes
    assert abs(states / GIB - states_gib) < 0.01
    assert abs(cells / 2 / GIB - keys_gib) < 0.005
    assert (pool.slots(states + cells), pool.tokens(states + cells)) == (slots, tokens)


def test_layers_with_windows_keep_a_share_of_the_tokens() -> None:
    """HybridSWAPoolConfigurator: 12 layers of gpt-oss-20b keep all, 12 keep 0.8 of the tokens; 8 heads of 64 each."""
    pool = pools("openai/gpt-oss-20b")
    layer = 8 * (64 + 64) * 2
    assert (pool.cell_bytes, pool.window_bytes, pool.window_tokens) == (12 * layer, 12 * layer, 128)
    assert pool.tokens(GIB) == int(GIB // (12 * layer * 1.8))
    # gemma2_gemma3.py: disable_hybrid_swa_memory, so that 34 layers of 4 heads of 256 keep all tokens.
    assert pools("google/gemma-3-4b-it").token_bytes == 34 * 4 * 512 * 2


@pytest.mark.parametrize("model", ["openai/gpt-oss-20b", "Qwen/Qwen3.5-4B", "Qwen/Qwen3-8B"])
@pytest.mark.parametrize(("batch", "context"), [(1, 100), (3, 5000), (64, 40_000)])
def test_what_a_request_needs_holds_it_and_little_less_does_not(model: str, batch: int, context: int) -> None:
    pool = pools(model)

    def holds(rest: int) -> bool:
        tokens = pool.tokens(rest)
        in_windows = not pool.window_bytes or tokens * 0.8 >= batch * min(context, pool.window_tokens)
        in_slots = not pool.state_bytes or pool.slots(rest) >= 5 * batch
        return tokens >= batch * context and in_windows and in_slots

    rest = pool.rest_bytes(batch, context)
    assert holds(rest)
    assert not holds(rest - 4 * pool.state_bytes - int(4 * pool.token_bytes))


def test_a_command_is_read_as_sglang_spells_it(capsys: pytest.CaptureFixture[str]) -> None:
    command = parse_command(
        "docker run --gpus all lmsysorg/sglang:v0.5.23-cu129 python3 -m sglang.launch_server --model a/b --tp 4 "
        "--mem_fraction_static=0.8 --context-length 32K --kv-cache-dtype fp8_e5m2 --dtype half --chunked-prefill-size 4096 "
        "--max-running-requests 64 --cuda-graph-max-bs 32 --disable-radix-cache --mamba-full-memory-ratio 2.5 --foo bar --port 1"
    )
    serving = command.serving
    assert (command.model, command.dtype, command.ignored, serving.version) == ("a/b", "float16", ("--foo",), "0.5.23")
    assert (serving.ranks, serving.utilization, serving.context_tokens, serving.cache_format) == (4, 0.8, 32_768, "fp8")
    assert serving.sglang == SglangOptions(
        chunk_tokens=4096, running=64, graph_sequences=32, radix=False, state_share=2.5
    )
    for line in (
        "",
        "python x",
        "sglang serve --tp 0",
        "sglang serve --model-path x --page-size -1",
        "sglang serve --model-path",
    ):
        with pytest.raises(UsageError):
            parse_command(line)
    for line in ("--pp 2", "--speculative-algorithm EAGLE", "--enable-dp-attention"):
        with pytest.raises(UnsupportedError):
            parse_command(f"sglang serve --model-path x {line}")
    asked = [
        "fit",
        "--gpu",
        "H100",
        "--sglang",
        "sglang serve --model-path catalog:Qwen/Qwen3.5-9B --context-length 8192",
    ]
    assert main([*asked, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert_keeps_to_the_schema(found)
    for language in ("en", "zh"):
        assert main([*asked, "--lang", language]) == 0
        assert f"{found['kv_cache_tokens']:,}" in capsys.readouterr().out
    assert main([*asked, "--tp", "2"]) == 2


def test_an_encoder_leaves_more_of_the_card_free_and_an_unread_version_widens_the_range() -> None:
    """adjust_mem_fraction_for_vlm: 24 layers of 1152 in place of 1024 are 0.95 x (1 - 0.1 x 0.265625) of the share."""
    report = inspect("Qwen/Qwen3.5-27B", source="catalog")
    card = gpus.find("H100")
    assert abs(SglangDemand(report, ASKED, card).share - 0.83 * 0.95 * (1 - 0.0265625)) < 1e-9
    known, other = (
        SglangDemand(report, replace(ASKED, utilization=0.9, version=version), card).pool_tokens()
        for version in ("0.5.23", "0.5.10")
    )
    assert other[0] < known[0] < known[1] < other[1]


def test_pools_that_are_not_known_are_refused() -> None:
    for model in ("google/gemma-4-31B-it", "deepseek-ai/DeepSeek-V3.2"):
        with pytest.raises(UnsupportedError):
            SglangDemand(inspect(model, source="catalog"), ASKED, gpus.find("H100"))

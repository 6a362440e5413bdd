"""SGLang's pool: its cells, and the share of a card that it leaves free."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from qwen_inspect.cli import main
from qwen_inspect.engines.sglang.command import parse_command
from qwen_inspect.engines.sglang.demand import SglangDemand, default_share
from qwen_inspect.engines.sglang.log import read_log
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
        "--max-running-requests 64 --cuda-graph-max-bs 32 --disable-radix-cache --mamba-full-memory-ratio 2.5 --foo bar --port 1 "
        "odd | tee x"
    )
    serving = command.serving
    assert (command.model, command.dtype, command.ignored, serving.version) == (
        "a/b",
        "float16",
        ("--foo", "odd"),
        "0.5.23",
    )
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


# Lines of a log of SGLang on an H100: Qwen3-30B-A3B-FP8 with the default share, in a public repository (August 2026).
LOG = """\
[2026-08-27 03:45:39] Init torch distributed ends. elapsed=0.05 s, mem usage=0.09 GB
[2026-08-27 03:45:41] Load weight begin. avail mem=78.48 GB
[2026-08-27 03:45:53] Load weight end. elapsed=12.02 s, type=Qwen3MoeForCausalLM, quant=fp8, fmt=e4m3, avail mem=49.33 GB, \
mem usage=29.15 GB.
[2026-08-27 03:45:54] KV Cache is allocated. dtype: torch.bfloat16, #tokens: 392920, K size: 17.99 GB, V size: 17.99 GB
[2026-08-27 03:45:54] Memory pool end. avail mem=12.70 GB
"""


def test_a_log_is_set_beside_its_prediction_and_narrows_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QWEN_INSPECT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "sglang.log").write_text(LOG)
    line = "sglang serve --model-path catalog:Qwen/Qwen3-30B-A3B --quantization fp8 --context-length 8192"
    asked = ["fit", "--sglang", line, "--gpu", "H100", "--format", "json", "--lang", "en"]

    def pool(*options: str, card: str = "H100") -> tuple[int, int]:
        main([*asked[:4], card, *asked[5:], *options])
        text = " ".join(json.loads(capsys.readouterr().out)["assumptions"])
        low, high = re.findall(r"max_total_num_tokens is ([0-9,]+) to ([0-9,]+)", text)[0]
        return int(low.replace(",", "")), int(high.replace(",", ""))

    before = pool()
    assert main([*asked, "--log", str(tmp_path / "sglang.log")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert_keeps_to_the_schema(found)
    assert [(term["term"], term["agrees"]) for term in found["log"]] == [
        (name, True) for name in ("free_before", "weights", "cache", "tokens")
    ]
    after = pool()
    assert before[0] < after[0] <= 392_920 <= after[1] < before[1]
    assert after[1] - after[0] < 0.001 * 392_920
    other = line.replace("sglang serve", "sglang serve --mem-fraction-static 0.7")
    main([*asked[:2], other, *asked[3:]])
    shared = json.loads(capsys.readouterr().out)["terms"]
    # Of 78.48 GiB that were free, 0.3 stay so; the weights take what the log says.
    assert abs(shared[1]["least_bytes"] / GIB - (79.19 - 78.48) - 0.3 * 78.48) < 0.04
    assert abs(shared[0]["least_bytes"] / GIB - 29.15) < 0.01
    assert pool("--calibration", "ignore") == before
    assert pool(card="H200") != after
    assert pool("--calibration", "forget") == before == pool()
    worse = LOG.replace("392920", "402920").replace("17.99", "18.45")
    (tmp_path / "sglang.log").write_text(worse)
    assert main([*asked, "--log", str(tmp_path / "sglang.log")]) == 1
    lines = {term["term"]: term["agrees"] for term in json.loads(capsys.readouterr().out)["log"]}
    assert [name for name, agrees in lines.items() if not agrees] == ["cache", "tokens"]
    assert main(["fit", "catalog:Qwen/Qwen3-8B", "--engine", "lmdeploy", "--gpu", "H100", "--log", "x"]) == 2


def test_older_and_hybrid_logs_are_read() -> None:
    """As 0.4 printed what was free, and as hybrids print their states (GraniteMoeHybrid, February 2026)."""
    older = (
        "Load weight begin. avail mem=22.76 GB\nLoad weight end. type=Qwen2ForCausalLM, dtype=x, avail mem=8.37 GB\n"
    )
    assert read_log(older + "max_total_num_tokens=105531, chunked_prefill_size=2048").printed == {
        "free_before": "22.76",
        "free_loaded": "8.37",
        "weights": "14.39",
        "tokens": "105531",
    }
    hybrid = (
        "[TP0] Mamba Cache is allocated. max_mamba_cache_size: 38, conv_state size: 0.03GB, ssm_state size: 2.74GB\n"
        "[TP0] KV Cache is allocated. #tokens: 399740, K size: 1.52 GB, V size: 1.53 GB\nMemory pool end. avail mem=3.42 GB"
    )
    assert read_log(hybrid).printed == {
        "slots": "38",
        "keys": "1.52",
        "values": "1.53",
        "tokens": "399740",
        "free_after": "3.42",
    }
    assert read_log("KV Cache is allocated. #tokens: 383872, KV size: 19.36 GB").printed["keys"] == "19.36"

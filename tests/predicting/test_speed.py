"""`memory --speed`: operations as torch counts them, bytes as the weights and the cache have them, cards as published."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect import inspect
from qwen_inspect.loaders import gpus
from qwen_inspect.predicting.speed import speed_of
from qwen_inspect.results.attention import LayerAttention
from qwen_inspect.results.media import Media
from qwen_inspect.results.memory import Run
from qwen_inspect.results.model import Report
from qwen_inspect.results.speed import Speed
from qwen_inspect.tracing.media import media_inputs

from ..support.families import FAMILIES
from ..support.models import run
from ..support.published import published
from ..support.small_models import small_config
from ..tracing.test_media_trace import TOKENS, medium

PROMPT, BATCH, SEEN = 24, 2, 160
# Multiplications and additions of a multiprocessor in a clock: 16-bit matrices without sparsity, sums in 32 bits.
# Source: the data sheets' own peaks over their multiprocessors and boost clocks; GeForce cards sum in 32 bits at half the rate
A_CLOCK = {(7, 0): 1_024, (7, 5): 1_024, (8, 0): 2_048, (8, 6): 1_024, (8, 9): 1_024, (9, 0): 4_096, (12, 0): 1_024}
HALVED = ("L40",)  # its data sheet has half of what those of the same chip's other cards have
CAPPED = ("H20",)  # for export


def write(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def counted_by_torch(config: dict[str, Any]) -> tuple[int, int]:
    """Operations of the prompt and of the next token in transformers' model, whose eager attention computes masked pairs too."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.for_model(**config)
    model = AutoModelForCausalLM.from_config(settings, attn_implementation="eager", experts_implementation="eager")
    tokens = torch.ones((BATCH, PROMPT), dtype=torch.long)
    with torch.no_grad():
        with FlopCounterMode(display=False) as prompt:
            cache = model(tokens, use_cache=True, logits_to_keep=1).past_key_values
        with FlopCounterMode(display=False) as token:
            model(tokens[:, :1], past_key_values=cache, logits_to_keep=1)
    return prompt.get_total_flops(), token.get_total_flops()


def bounds(path: Path | str, **fields: Any) -> Speed:
    return speed_of(inspect(str(path)), Run(prompt_tokens=PROMPT, batch=BATCH, **fields), "H100 SXM")


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe", "gemma2", "gpt2"])
def test_operations_are_those_that_torch_counts(tmp_path: Path, model_type: str) -> None:
    config = {**small_config(model_type), "sliding_window": 512, "dtype": "bfloat16"}
    folder = write(tmp_path / model_type, config)
    prompt, first, _ = bounds(folder).steps
    layers = [layer for layer in inspect(str(folder)).attention.layers if isinstance(layer, LayerAttention)]
    masked = sum(4 * layer.query_heads * layer.head_dim * PROMPT * (PROMPT - 1) // 2 for layer in layers) * BATCH
    assert (prompt.operations + masked, first.operations) == counted_by_torch(config)


def test_a_token_reads_every_weight_but_the_embedding_and_the_whole_cache() -> None:
    """Qwen3-8B: 8,190,735,360 parameters, of which 151,936 x 4,096 are the embedding; 147,456 B of cache a token."""
    speed = speed_of(inspect("Qwen/Qwen3-8B", source="catalog"), Run(prompt_tokens=2048), "H100 SXM")
    _, first, last = speed.steps
    assert first.weight_bytes == first.even_weight_bytes == 2 * (8_190_735_360 - 151_936 * 4_096)
    assert (first.cache_bytes, last.cache_bytes) == (147_456 * 2_049, 147_456 * 2_175)
    assert first.limit == "memory"
    assert first.seconds == (first.weight_bytes + first.cache_bytes) / 3.35e12
    assert speed.steps[0].limit == "arithmetic"
    assert speed.steps[0].seconds == speed.steps[0].operations / 989.5e12


def test_a_token_of_a_mixture_reads_its_experts_and_a_batch_more_of_them() -> None:
    """Qwen3-30B-A3B: 8 of 128 experts of 3 x 2,048 x 768 in 48 layers."""
    report = inspect("Qwen/Qwen3-30B-A3B", source="catalog")
    expert = 48 * 3 * 2_048 * 768 * 2
    dense = 2 * 30_532_122_624 - 128 * expert - 2 * 151_936 * 2_048
    alone = speed_of(report, Run(), "A100 80GB").steps[1]
    assert alone.weight_bytes == alone.even_weight_bytes == dense + 8 * expert
    many = speed_of(report, Run(batch=64), "A100 80GB").steps[1]
    assert many.weight_bytes == alone.weight_bytes
    assert many.even_weight_bytes == dense + round(128 * expert * (1 - (1 - 8 / 128) ** 64))


def test_a_window_bounds_the_pairs() -> None:
    """Gemma 3: five of six layers see 512 tokens, the sixth all."""
    report = inspect("google/gemma-3-1b-it", source="catalog")
    prompt, first, _ = speed_of(report, Run(prompt_tokens=4_096), "H100 SXM").steps
    matrices = first.operations - 4 * 4 * 256 * (22 * 512 + 4 * 4_097)
    full, windowed = 4_096 * 4_097 // 2, 512 * 513 // 2 + 3_584 * 512
    head = 2 * 262_144 * 1_152
    assert prompt.operations == 4_096 * (matrices - head) + head + 4 * 4 * 256 * (22 * windowed + 4 * full)


def test_every_published_figure_is_read() -> None:
    for card in gpus.table():
        published = {name for name, _ in card.figures}
        assert ("bandwidth" in published, "tensor_rate" in published) == (
            card.bandwidth is not None,
            card.tensor_rate is not None,
        )
        assert card.bandwidth is None or 200e9 < card.bandwidth <= 8e12
    assert gpus.find("RTX 4090").bandwidth == 1_008_000_000_000
    assert gpus.find("RTX 4090").tensor_rate == 165_200_000_000_000


def test_no_rate_is_one_with_sparsity() -> None:
    """Twice the rate, or the rate of sums in 16 bits, would take a clock that no card has."""
    checked = 0
    for card in gpus.table():
        if card.tensor_rate is None or card.multiprocessors is None or card.name in CAPPED:
            continue
        per_clock = A_CLOCK.get(card.compute_capability or (0, 0))
        if per_clock is None:
            continue
        half = (card.kind == "consumer" and card.name != "TITAN RTX") or card.name in HALVED
        clock = card.tensor_rate / card.multiprocessors / (per_clock // 2 if half else per_clock)
        assert 1.3e9 < clock < 2.7e9, (card.name, clock)
        checked += 1
    assert checked > 25


def test_no_published_run_is_faster_than_its_bound() -> None:
    """Prompt and 2,048 new tokens, one sequence, by SGLang and by transformers; the bound of a step grows evenly."""
    reports: dict[str, Report] = {}
    shares: dict[str, list[float]] = {"SGLang": [], "Transformers": []}
    for row in published("generation_speeds.csv"):
        report = reports.setdefault(row["model"], inspect(row["model"], source="catalog"))
        prompt, new = int(row["input_tokens"]), int(row["new_tokens"])
        start, first, last = speed_of(report, Run(prompt_tokens=prompt, new_tokens=new), row["gpu"]).steps
        least = start.seconds + (new - 1) * (first.seconds + last.seconds) / 2
        shares[row["engine"]].append(least * float(row["tokens_per_second"]) / (prompt + new))
    assert [len(found) for found in shares.values()] == [37, 28]
    # The shares that docs/memory.md names.
    assert [(round(min(found), 2), round(max(found), 2)) for found in shares.values()] == [(0.14, 0.62), (0.0, 0.42)]


def test_no_card_generates_faster_than_its_memory_is_read() -> None:
    """Published runs of llama.cpp on 23 cards: each reads its weights and cache at half to five sixths of the bandwidth."""
    report = inspect("Qwen/Qwen3-8B", source="catalog")
    shares = [speed_of(report, Run(), card.name).measured_share for card in gpus.table() if card.generation is not None]
    assert len(shares) == 23
    assert all(share is not None and 0.5 < share < 0.84 for share in shares)
    assert speed_of(report, Run(), "H100 SXM").measured_share is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--speed"], "--gpu NAME"),
        (["--speed", "--gpu", "h100", "--mode", "train"], "--mode train"),
        (["--speed", "--gpu", "h100", "--tp", "2"], "--tp"),
        (["--speed", "--gpu", "h100", "--audio", "3s"], "--audio"),
        (["--speed", "--gpu", "RTX 5060"], "No source gives the memory bandwidth of RTX 5060"),
    ],
)
def test_what_has_no_bound_is_refused_in_a_line(options: list[str], sentence: str) -> None:
    done = run("memory", "catalog:Qwen/Qwen3-0.6B", *options)
    assert done.code in (2, 7)
    assert sentence in done.err
    assert done.err.count("\n") == 1


def test_the_answer_and_the_json_say_it() -> None:
    done = run("memory", "catalog:Qwen/Qwen3-8B", "--speed", "--gpu", "h100", "--quiet")
    assert "At best on H100 SXM: the first token after 30.0 ms, then 217 tokens a second." in done.out
    content = json.loads(
        run("memory", "catalog:Qwen/Qwen3-8B", "--speed", "--gpu", "T4", "--format", "json", "--quiet").out
    )["speed"]
    assert content["time_to_first_token_seconds"] is None  # T4 has no bfloat16
    assert [step["step"] for step in content["steps"]] == ["prompt", "first", "last"]


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_a_towers_operations_are_those_that_torch_counts(tmp_path: Path, model_type: str) -> None:
    """Two images of different sizes and a video, in each of two sequences: what they add to a prompt of text."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = deepcopy({**FAMILIES[model_type], "dtype": "bfloat16", **TOKENS})
    marks = None if model_type.startswith("qwen3") else 0  # timestamps between a video's slices
    video = medium(2, 4, 8, frames=4, marks=marks)
    media = Media(items=(medium(1, 8, 12), medium(1, 4, 4), video), images=None, videos=None)
    model = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(**deepcopy(config)), attn_implementation="eager"
    )
    report = inspect(str(write(tmp_path / model_type, config)))
    text, seeing = (
        speed_of(report, Run(prompt_tokens=SEEN, batch=BATCH, media=seen), "H100 SXM").steps[0]
        for seen in (None, media)
    )
    given = media_inputs(model, media, batch=BATCH, prompt_tokens=SEEN)
    without = {"input_ids": torch.ones_like(given["input_ids"])}
    counted = []
    for inputs in (without, given):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(**inputs, logits_to_keep=1)
        counted.append(counter.get_total_flops())
    assert seeing.operations - text.operations == counted[1] - counted[0]
    tower = sum(parameter.numel() for parameter in model.model.visual.parameters())
    assert seeing.weight_bytes - text.weight_bytes == 2 * tower
    assert seeing.cache_bytes == text.cache_bytes


def test_other_towers_have_no_bound() -> None:
    done = run("memory", "catalog:google/gemma-3-4b-it", "--image", "64x64", "--gpu", "H100", "--speed")
    assert (done.code, "gemma3" in done.err) == (7, True)


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        ({"window_size": "abc"}, 6, "window_size"),
        ({"window_size": 1}, 6, "window_size"),
        ({"fullatt_block_indexes": None}, 6, "fullatt_block_indexes"),
        ({"spatial_merge_size": 3}, 7, "qwen2_5_vl"),
    ],
)
def test_a_tower_that_is_stated_wrongly_is_one_line(
    tmp_path: Path, change: dict[str, Any], code: int, told: str
) -> None:
    config = FAMILIES["qwen2_5_vl"]
    path = write(tmp_path, {**config, **TOKENS, "vision_config": {**config["vision_config"], **change}})
    done = run("memory", path, "--image", "300x200", "--gpu", "H100", "--speed")
    assert (done.code, done.out) == (code, "")
    assert told in done.err.splitlines()[-1]
    assert "Traceback" not in done.err

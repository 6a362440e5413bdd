"""The loop's options and other versions of transformers, as typed; published peaks of an RTX A6000 against them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.training import GB, Published, named, published
from qwen_inspect.predicting.footprint import traced_footprint
from qwen_inspect.predicting.sources import trace_request
from qwen_inspect.results.memory import Run
from qwen_inspect.results.training import Loop, loop_of
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.tracing.trace import trace

from ..support.families import FAMILIES
from ..support.invoking import Capture, invoke
from ..support.models import write_config
from ..support.schema import assert_keeps_to_the_schema

PUBLISHED = list(published())
CHEAP = ["--lora", "16", "--autocast", "bfloat16", "--checkpointing"]


def answered(capsys: Capture, *words: str | Path) -> dict[str, Any]:
    done = invoke(capsys, *words, "--format", "json", "--quiet", "--lang", "en")
    assert done.code == 0, done.err
    answer: dict[str, Any] = json.loads(done.out)
    return answer


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row,
            id=" ".join((row.model, row.mode, *row.options)),
            marks=() if row.options == CHEAP else pytest.mark.exhaustive,
        )
        for row in PUBLISHED
    ],
)
def test_a_published_training_peak_is_met(row: Published, tmp_path: Path, capsys: Capture) -> None:
    """Within 0.5 % of what an RTX A6000 allocated (benchmarks/published/training_a6000.csv), by the command line of its row."""
    predicted = answered(capsys, *row.words(named(row.model, tmp_path / row.model)))["predicted"]
    assert predicted["method"] == "trace"
    assert abs(predicted["peak_allocated_bytes"] / GB / row.published_gb - 1) < 0.005


def test_the_published_rows_are_those_that_were_printed() -> None:
    """vramcalc 0.1.2, README."""
    printed = [3.08, 3.95, 3.78, 17.51, 30.55, 32.15, 10.13, 9.51, 18.98]
    assert [row.published_gb for row in PUBLISHED] == printed


def test_all_micro_batches_of_a_step_are_on_the_device_at_once(tmp_path: Path) -> None:
    """transformers 5.23, Trainer.get_batch_samples. A trace of four micro-batches has what one of two is completed to."""
    write_config(tmp_path, {**FAMILIES["qwen3"], "num_hidden_layers": 1})
    report = inspect(str(tmp_path))
    run = Run(mode="train", prompt_tokens=300, batch=2, accumulate=4, loop=loop_of("trainer"), optimizer="sgd")
    whole, short = (
        trace(report.spec, report.config or {}, trace_request(replace(run, accumulate=count))) for count in (4, 2)
    )
    assert traced_footprint(short, run, provenance="") == traced_footprint(whole, run, provenance="")
    two = traced_footprint(short, replace(run, accumulate=2), provenance="")
    assert (
        traced_footprint(whole, run, provenance="").peak_allocated_bytes
        == (two.peak_allocated_bytes or 0) + 2 * 3 * 5120
    )


def test_a_preset_holds_what_its_loop_holds_and_each_fact_can_be_changed() -> None:
    assert loop_of(None) == Loop()
    assert loop_of("trainer") == Loop(name="trainer", clip=True)
    assert loop_of("plain").keep_logits == loop_of("accelerate", keep_logits=True).keep_logits == "step"
    assert loop_of("plain", keep_logits=False, keep_gradients=True, clip=True) == Loop(
        name="plain", keep_gradients=True, clip=True
    )
    assert loop_of(None, keep_logits=True) == Loop(keep_logits="backward")
    assert loop_of("trainer", clip=False) == Loop(name="trainer")


def test_what_is_kept_is_at_the_peak_and_said(tmp_path: Path, capsys: Capture) -> None:
    """Logits of 64 tokens in bfloat16, and the gradients that a step's end has."""
    config = {**FAMILIES["qwen3"], "vocab_size": 4096}
    path = write_config(tmp_path, config)
    run = ("memory", path, "--mode", "train", "--context", "64", "--optimizer", "sgd")
    bare, gradients, logits = (
        answered(capsys, *run, *options) for options in ([], ["--keep-gradients"], ["--keep-logits"])
    )
    assert_keeps_to_the_schema(gradients)
    ends = [answer["predicted"]["moments"]["steady"]["gradients_bytes"] for answer in (bare, gradients)]
    assert ends == [0, bare["training"]["trained_bytes"]]
    peaks = [answer["predicted"]["moments"]["peak"] for answer in (bare, logits)]
    assert peaks[1]["activations_bytes"] - peaks[0]["activations_bytes"] == 2 * 64 * 4096
    told = [answer["training"] for answer in (gradients, logits)]
    assert [(one["keep_gradients"], one["keep_logits"], one["loop"]) for one in told] == [
        (True, "no", None),
        (False, "backward", None),
    ]
    assert any("zeroed in place" in sentence for sentence in gradients["predicted"]["assumptions"])


def test_a_fused_loss_spares_the_logits_and_says_so(tmp_path: Path, capsys: Capture) -> None:
    """Logits of 64 tokens, at once and 16 at a time: 64 / ceil(4,096 / 64) rounded up to a power of two is 1, in bfloat16."""
    path = write_config(tmp_path, {**FAMILIES["qwen3"], "vocab_size": 4096})
    run = ("memory", path, "--mode", "train", "--context", "64", "--optimizer", "sgd")
    own, fused = (answered(capsys, *run, "--loss", loss) for loss in ("model", "liger"))
    assert_keeps_to_the_schema(fused)
    assert (own["training"]["loss"], fused["training"]["loss"]) == ("model", "liger")
    peaks = [answer["predicted"]["moments"]["peak"]["activations_bytes"] for answer in (own, fused)]
    assert peaks[0] - peaks[1] > 64 * 4096 * 4
    kept = answered(capsys, *run, "--loss", "liger", "--keep-gradients")
    assert kept["predicted"]["moments"]["steady"]["gradients_bytes"] == kept["training"]["trained_bytes"]
    assert any("the logits of 1 tokens at a time" in sentence for sentence in fused["predicted"]["assumptions"])


def test_unsloths_tiles_are_those_of_the_card(tmp_path: Path, capsys: Capture) -> None:
    """Below a frozen head from the first labelled token on a card of 24 GB, from the 4,096th on one of 80 GB."""
    path = write_config(tmp_path, {**FAMILIES["qwen3"], "vocab_size": 40_000, "tie_word_embeddings": False})
    run = ("memory", path, "--mode", "train", "--context", "64", "--loss", "unsloth", "--freeze", "lm_head|embed")
    small, large = (answered(capsys, *run, "--gpu", gpu) for gpu in ("RTX 4090", "A100 80GB"))
    tiles = [any("in tiles of 63" in line for line in one["predicted"]["assumptions"]) for one in (small, large)]
    assert tiles == [True, False]
    peaks = [one["predicted"]["moments"]["peak"]["activations_bytes"] for one in (small, large)]
    assert peaks[0] < peaks[1]  # 16,384 entries of 63 tokens, not 40,000


def test_trainers_optimizer_is_the_one_that_it_chooses(tmp_path: Path, capsys: Capture) -> None:
    path = write_config(tmp_path, FAMILIES["qwen3"])
    answer = answered(capsys, "memory", path, "--mode", "train", "--context", "16", "--loop", "trainer")
    assert (answer["training"]["optimizer"], answer["training"]["clip"]) == ("adamw_fused", True)
    assert any("Trainer (5.23, trainer.py)" in sentence for sentence in answer["predicted"]["assumptions"])


def test_sft_checkpoints_by_default_and_labels_completions(tmp_path: Path, capsys: Capture) -> None:
    path = write_config(tmp_path, FAMILIES["qwen3"])
    answer = answered(
        capsys, "memory", path, "--mode", "train", "--context", "16", "--loop", "sft", "--completion-only", "4"
    )
    training = answer["training"]
    assert (training["checkpointing"], training["optimizer"], training["loss"]) == (True, "adamw_fused", "trl")
    assert training["completion_tokens"] == 4
    assert any("SFTTrainer (1.16)" in sentence for sentence in answer["predicted"]["assumptions"])
    assert any("4 tokens of a micro-batch have labels" in sentence for sentence in answer["predicted"]["assumptions"])


def test_a_row_of_packed_sequences_has_a_mask_but_not_with_flash_attention(tmp_path: Path, capsys: Capture) -> None:
    """Two rows of 512 tokens in one: 2 B for each pair of tokens in each of two layers, without checkpointing."""
    path = write_config(tmp_path, {**FAMILIES["qwen3"], "max_position_embeddings": 1024})
    run = ("memory", path, "--mode", "train", "--context", "512", "--batch", "2", "--loop", "sft", "--no-checkpointing")
    alone, packed, flash = (
        answered(capsys, *run, *options)
        for options in ([], ["--packing", "4"], ["--packing", "4", "--attention", "flash_attention_2"])
    )
    assert_keeps_to_the_schema(packed)
    assert [answer["training"]["sequences_in_row"] for answer in (alone, packed, flash)] == [None, 8, 8]
    peaks = [answer["predicted"]["moments"]["peak"]["activations_bytes"] for answer in (alone, packed, flash)]
    assert peaks[1] - peaks[0] > 3 * 1024**2
    assert peaks[2] - peaks[0] < 1024**2
    assert any("8 sequences of equal lengths" in sentence for sentence in packed["predicted"]["assumptions"])
    assert any("varlen kernels" in sentence for sentence in flash["predicted"]["assumptions"])


def test_a_moving_average_is_as_large_as_the_model(tmp_path: Path, capsys: Capture) -> None:
    path = write_config(tmp_path, FAMILIES["qwen3"])
    bare, averaged = (
        answered(capsys, "memory", path, "--mode", "train", "--context", "16", *options)["predicted"]["moments"][
            "steady"
        ]
        for options in ([], ["--ema"])
    )
    more = averaged["optimizer_bytes"] - bare["optimizer_bytes"]
    assert more == bare["weights_bytes"] + bare["buffers_bytes"]


def test_the_mask_of_4_57_is_kept_by_every_layer_with_repeated_heads(tmp_path: Path, capsys: Capture) -> None:
    """Two layers, 4 query heads of 16 for 2 KV heads, 2,048 tokens: 2 B for each pair of tokens, K and V twice as wide. The mask
    itself is gone at the peak, which is in the loss's backward."""
    path = write_config(tmp_path, {**FAMILIES["qwen3"], "max_position_embeddings": 2048})
    run = ("memory", path, "--mode", "train", "--context", "2048", "--optimizer", "sgd")
    now, before = (answered(capsys, *run, *options) for options in ([], ["--transformers", "4.57.6"]))
    assert (now["workload"]["transformers"], before["workload"]["transformers"]) == (None, "4.57")
    peaks = [answer["predicted"]["moments"]["peak"]["activations_bytes"] for answer in (now, before)]
    assert peaks[1] - peaks[0] == 2 * (2 * 2048**2 + 2 * 2 * (4 - 2) * 16 * 2048)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen3_next", ["--loss", "trl"]),
        pytest.param("qwen3_next", ["--ema"], marks=pytest.mark.exhaustive),
        ("qwen3", ["--loop", "sft", "--dtype", "float32", "--autocast", "bfloat16"]),
        ("qwen3", ["--loop", "sft", "--padding-free", "--batch", "2"]),
        ("qwen3", ["--loss", "torch"]),
    ],
)
def test_fit_answers_and_does_not_search_where_each_length_has_other_requests(
    family: str, options: list[str], tmp_path: Path, capsys: Capture
) -> None:
    """Chunks of linear attention, a fused loss's chunks that are cast, each by itself, one row: what `memory` says is
    compared."""
    path = write_config(tmp_path, FAMILIES[family])
    run = ("--mode", "train", "--context", "16", "--gpu", "RTX 4090", *options)
    answer = answered(capsys, "fit", path, *run)
    (card,) = answer["cards"]
    assert card["fits"] is True
    peak = answered(capsys, "memory", path, *run)["predicted"]["peak_reserved_bytes"]
    assert card["required_bytes"] == peak + card["context_bytes"]["high"]
    assert (card["max_context_tokens"], card["max_batch"]) == (None, None)
    assert any("are not searched" in sentence for sentence in answer["assumptions"])


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--loop", "trainer"], 2, "--loop is for --mode train"),
        (["--keep-logits"], 2, "--keep-logits is for --mode train"),
        (["--mode", "train", "--loop", "lightning"], 2, "trainer"),
        (["--mode", "train", "--transformers", "new"], 2, "no version of transformers"),
        (["--mode", "train", "--transformers", "4.52.4"], 7, "4.53.1 - 4.57"),
        (["--mode", "train", "--transformers", "4.53.0"], 7, "4.53.1 - 4.57"),
        (["--transformers", "4.57"], 7, "not of generate"),
        (["--mode", "forward", "--transformers", "4.53"], 7, "not of forward"),
        (["--mode", "train", "--transformers", "4.57", "--loop", "trainer"], 7, "--loop trainer is that of 5.23"),
        (["--mode", "train", "--transformers", "4.57", "--attention", "eager"], 7, "--attention sdpa"),
        (["--mode", "train", "--ema", "--tp", "2"], 7, "--ema"),
        (["--mode", "train", "--transformers", "4.57", "--device", "cpu"], 2, "--device"),
        (["--loss", "liger"], 2, "--loss is for --mode train"),
        (["--mode", "train", "--loss", "trl", "--device", "cpu"], 2, "--device cannot be given"),
        (["--mode", "train", "--loss", "liger", "--gpu", "sm_75"], 7, "compute capability 8.0"),
        (["--mode", "train", "--loss", "torch", "--gpu", "T4"], 7, "compute capability 8.0"),
        (["--mode", "train", "--ema", "--lora", "8"], 2, "--ema"),
        (["--mode", "train", "--rollout", "vllm", "--gpu", "H100", "--loop", "sft"], 2, "--loop sft"),
        (["--mode", "train", "--ema", "--device", "cpu"], 2, "--ema"),
        (["--mode", "train", "--completion-only", "8"], 2, "--completion-only needs --loss trl"),
        (["--mode", "train", "--loop", "sft", "--context", "8", "--completion-only", "9"], 2, "must not be longer"),
        (["--mode", "train", "--loop", "sft", "--lora", "4", "--dtype", "bnb-nf4"], 7, "quantised base"),
        (["--mode", "train", "--packing", "2"], 2, "needs --loop sft"),
        (["--padding-free"], 2, "--padding-free is for --mode train"),
        (["--mode", "train", "--loop", "sft", "--context", "8", "--packing", "9"], 2, "do not fit --context 8"),
        (["--mode", "train", "--loop", "sft", "--padding-free", "--padded"], 2, "have no padding"),
        (
            ["--mode", "train", "--loop", "sft", "--context", "8", "--packing", "4", "--completion-only", "3"],
            2,
            "2 tokens",
        ),
        (["--mode", "train", "--loss", "torch", "--fsdp", "2", "--tp", "2"], 7, "--loss torch was not run"),
        (["--mode", "train", "--loss", "liger", "--loop", "trainer", "--tp", "2"], 7, "--loss liger fails with --tp"),
        (["--mode", "train", "--loop", "sft", "--loss", "unsloth"], 7, "--loss unsloth is known of"),
        (["--mode", "train", "--loss", "unsloth", "--autocast", "float16"], 7, "--loss unsloth is known of"),
    ],
)
def test_what_is_contradictory_or_unknown_is_one_line(
    options: list[str], code: int, said: str, tmp_path: Path, capsys: Capture
) -> None:
    done = invoke(capsys, "memory", write_config(tmp_path, FAMILIES["qwen3"]), *options, "--quiet", "--lang", "en")
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert done.err.count("\n") == 1

"""Losses without the logits of all tokens, against Liger's, TRL's and Unsloth's own code.

Their peaks: liger-kernel 0.8.5 (LigerFusedLinearCrossEntropyFunction below qwen3's lce_forward), TRL 1.16 (SFTTrainer's
compute_loss) and unsloth_zoo 2026.10.9 (unsloth_fused_ce_loss, called as by unsloth's CausalLM_fast_forward) in transformers'
Trainer on CPU, on their path for CUDA, with Triton's kernels replaced by nothing, as torch's profiler recorded them.
Every request was that of the trace, in order.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.architectures import architecture_of
from qwen_inspect.fitting.colocated import with_chunked_head
from qwen_inspect.predicting import scoring
from qwen_inspect.results.memory import Run
from qwen_inspect.results.ranks import Parallelism, Place
from qwen_inspect.results.timeline import Allocate, Event
from qwen_inspect.results.training import Loop, Loss, loop_of
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.tracing.adapting import Adapters
from qwen_inspect.tracing.fused_losses import liger_rows
from qwen_inspect.tracing.torch_loss import torch_rows
from qwen_inspect.tracing.trace import TraceRequest, trace
from qwen_inspect.tracing.unsloth_loss import unsloth_rows

from ..support.families import FAMILIES
from ..support.models import write_config
from ..support.real_runs import PROMPT, traced
from ..support.real_training import on_cpu
from ..support.shared_models import MODELS

BATCH, STEPS = 2, 2
NUMBERS_BYTES = 64  # single numbers of the loss, of which the profiler shows those of the host too
BELOW_FROZEN: dict[str, Any] = {"frozen": "lm_head|embed", "autocast": "bfloat16", "accumulate": 2}
MIXED: dict[str, Any] = {"autocast": "bfloat16", "accumulate": 2}
ADAPTED: dict[str, Any] = {**MIXED, "lora": Adapters(rank=3, targets=("all-linear",))}
UNTIED = {"dtype": "float32", "torch_dtype": "float32", "tie_word_embeddings": False}


def events_of(loss: Loss, vocabulary: int, config: dict[str, Any], **workload: Any) -> list[Event]:
    timeline = traced(
        {**FAMILIES["qwen3"], "vocab_size": vocabulary, **config},
        mode="train",
        batch=BATCH,
        steps=STEPS,
        device="cpu",
        optimizer="adamw_fused",
        **{"loop": loop_of("trainer", loss=loss), "prompt_tokens": PROMPT, **workload},
    )
    return on_cpu(timeline)


def peak_bytes(events: list[Event]) -> int:
    alive, now, peak = {}, 0, 0
    for event in events:
        if isinstance(event, Allocate):
            alive[event.id] = event.size_bytes
            now += event.size_bytes
        else:
            now -= alive.pop(event.id, 0)
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize(
    ("loss", "vocabulary", "config", "workload", "recorded"),
    [
        ("liger", 1000, {}, {}, 1_321_978),
        ("liger", 1000, UNTIED, {"autocast": "bfloat16", "accumulate": 2}, 3_701_860),
        pytest.param("liger", 1000, UNTIED, {}, 3_065_828, marks=pytest.mark.exhaustive),
        ("trl", 40_000, {"tie_word_embeddings": False}, {"frozen": "lm_head|embed"}, 7_013_148),
        ("trl", 40_000, UNTIED, {"autocast": "bfloat16", "accumulate": 2}, 84_608_166),
        pytest.param("trl", 40_000, UNTIED, {}, 65_017_510, marks=pytest.mark.exhaustive),
        ("unsloth", 1000, UNTIED, {"autocast": "bfloat16", "accumulate": 2}, 3_971_549),
        ("unsloth", 40_000, UNTIED, {**BELOW_FROZEN, "tiled_from": 0}, 12_953_149),
        ("unsloth", 151_936, {"tie_word_embeddings": False}, {"prompt_tokens": 600}, 416_584_735),  # in 3 chunks
        pytest.param("unsloth", 1000, {}, {}, 1_663_475, marks=pytest.mark.exhaustive),
        pytest.param(
            "unsloth",
            151_936,
            UNTIED,
            {**BELOW_FROZEN, "accumulate": 1, "prompt_tokens": 600},
            340_938_077,
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_the_peak_is_that_of_the_librarys_own_code(
    loss: Loss, vocabulary: int, config: dict[str, Any], workload: dict[str, Any], recorded: int
) -> None:
    assert 0 <= peak_bytes(events_of(loss, vocabulary, config, **workload)) - recorded <= NUMBERS_BYTES


def test_completions_alone_are_labelled_as_in_the_real_sft_trainer() -> None:
    """TRL 1.16's SFTTrainer itself, recorded as above: bf16=True, checkpointing, two micro-batches, labels on 12 of 48 tokens."""
    workload: dict[str, Any] = {"autocast": "bfloat16", "accumulate": 2, "checkpointing": True}
    loop = loop_of("sft", completion_tokens=12)
    peak = peak_bytes(events_of("trl", 40_000, UNTIED, loop=loop, **workload))
    assert 0 <= peak - 79_240_622 <= NUMBERS_BYTES


def test_packed_sequences_are_one_row_as_in_the_real_sft_trainer() -> None:
    """As above with packing (3 sequences in each of 2 rows of 48 tokens), in float32 without checkpointing."""
    peak = peak_bytes(events_of("trl", 40_000, UNTIED, loop=loop_of("sft", packing=3), accumulate=2))
    assert 0 <= peak - 85_350_615 <= NUMBERS_BYTES


@pytest.mark.parametrize(
    ("config", "workload", "completion", "recorded"),
    [
        ({"tie_word_embeddings": False}, {"accumulate": 3}, 12, 1_596_164),
        (
            {"tie_word_embeddings": False},
            {"accumulate": 2, "lora": Adapters(rank=3, targets=("all-linear",))},
            12,
            1_594_252,
        ),
        (UNTIED, {"accumulate": 2, "autocast": "bfloat16"}, 12, 5_929_484),
    ],
)
def test_scores_are_those_of_the_real_grpo_trainer(
    config: dict[str, Any], workload: dict[str, Any], completion: int, recorded: int
) -> None:
    """TRL 1.16's GRPOTrainer._get_per_token_logps_and_entropies itself, recorded as above beside weights that were there: batches
    of 2 sequences of 48 tokens. All requests were those of the trace, in order; at the peak a mask more (1 B a token) was alive.
    """
    chunked = Loop(loss="trl", completion_tokens=completion)
    events = events_of("trl", 40_000, config, scored=True, loop=chunked, **workload)
    mask_bytes = BATCH * (PROMPT - 1)
    assert 0 <= peak_bytes(without_load(events)) - (recorded - mask_bytes) <= NUMBERS_BYTES


def test_grpos_head_does_not_look_for_hits_as_that_of_sft_does() -> None:
    """TRL 1.16's own head on CPU, recorded as above in two steps: with SFTTrainer's outputs it compares the 24 labelled tokens
    (one byte each) three times a forward, with those of GRPOTrainer (grpo_trainer.py, lines 1068-1073) not at all.
    """
    run = with_chunked_head(Run(mode="train", prompt_tokens=PROMPT, new_tokens=12))
    compared = {"aten.ge.Tensor": STEPS, "aten.gt.Tensor": STEPS, "aten.bitwise_and.Tensor": STEPS}
    for loop, recorded in ((Loop(loss="trl", completion_tokens=12), compared), (run.loop, {})):
        made = [event for event in events_of("trl", 40_000, UNTIED, loop=loop) if isinstance(event, Allocate)]
        found = Counter(
            event.operator for event in made if event.size_bytes == BATCH * 12 and event.operator in compared
        )
        assert found == recorded


def without_load(events: list[Event]) -> list[Event]:
    first = next(number for number, event in enumerate(events) if getattr(event, "module", "") == "inputs")
    return events[first:]


def test_two_layers_score_like_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_config(tmp_path, {**FAMILIES["qwen3"], "num_hidden_layers": 5})
    report = inspect(str(tmp_path))
    run = Run(mode="train", prompt_tokens=48, batch=2, new_tokens=12, loop=Loop(loss="trl", completion_tokens=12))
    few = scoring.scoring_bytes(report, run, sequences=9, reference=True)
    monkeypatch.setattr(scoring, "LAYERS", 5)
    assert few == scoring.scoring_bytes(report, run, sequences=9, reference=True)
    monkeypatch.setattr(scoring, "BATCHES", 5)
    assert few == scoring.scoring_bytes(report, run, sequences=9, reference=True)


@pytest.mark.parametrize(
    ("loss", "model", "how", "workload", "recorded"),
    [
        ("trl", "qwen3", {"fsdp": 2}, ADAPTED, 7_321_936),
        ("trl", "qwen3", {"tensor": 2}, {}, 7_314_912),
        ("unsloth", "qwen3 tied", {"fsdp": 2}, ADAPTED, 1_255_406),
        pytest.param("liger", "qwen3", {"fsdp": 2}, MIXED, 2_239_524, marks=pytest.mark.exhaustive),
    ],
)
def test_a_rank_gathers_the_head_as_the_librarys_code_does(
    loss: Loss, model: str, how: dict[str, Any], workload: dict[str, Any], recorded: int
) -> None:
    """Rank 0 of 2 real processes (gloo) with the libraries' code as above in the real Trainer, followed request by request.
    Below a PeftModel or a plan TRL's head gathers its weight (full_tensor), Unsloth's unshards it; Liger's comes with the norm.
    """
    config = {**MODELS[model], "num_hidden_layers": 3}
    request = TraceRequest(
        mode="train",
        batch=BATCH,
        prompt_tokens=PROMPT,
        steps=STEPS,
        device="cpu",
        optimizer="adamw_fused",
        loop=loop_of("trainer", loss=loss),
        **workload,
    )
    timeline = trace(architecture_of(config).spec, config, request, Place(how=Parallelism(**how), rank=0))
    assert peak_bytes(on_cpu(timeline)) == recorded


def test_liger_halves_chunks_until_their_logits_are_as_large_as_the_states() -> None:
    """The example in liger-kernel 0.8.5, ops/fused_linear_cross_entropy.py: 16,384 tokens, 32,000 entries, 4,096 dimensions."""
    assert liger_rows(4096 * 4, 4096, 32000) == 2048
    assert liger_rows(2048, 1024, 151936) == 16  # 2,048 / 149 = 13.7, and the next power of two
    assert liger_rows(3, 4096, 1000) == 3


def test_torchs_chunks_are_those_of_its_own_options() -> None:
    """torch 2.13, LinearCrossEntropyOptions, without its own choices by device."""
    import torch

    options = torch.nn.LinearCrossEntropyOptions(chunking_method="aspect_ratio:2")
    for sizes in ((2048, 1024, 151_936), (4096 * 4, 4096, 32_000), (3, 4096, 1000), (1, 64, 512)):
        assert torch_rows(*sizes) == options._adjust(*sizes, torch.float32).batch_chunk_size


def test_unsloths_chunks_are_those_of_its_own_rule() -> None:
    """unsloth_zoo 2026.10.9's own fused_linear_rows, with 40 GiB free."""
    assert unsloth_rows(2047, 1024, 151_936) == 512
    assert unsloth_rows(40_000, 4096, 151_936) == 1024
    assert unsloth_rows(100_000, 4096, 32_000) == 4096
    assert unsloth_rows(200_000, 5120, 262_144) == 2048  # of which 2 GiB hold the logits
    assert unsloth_rows(94, 64, 40_000) == 94


def test_torch_computes_logits_of_16_bits_in_float32_on_cuda() -> None:
    """96 tokens, 1,000 entries, 64 dimensions: 4 tokens at a time. On CUDA the head is not copied; its gradient and
    the backward's zeros are as large."""
    sizes = [
        event.size_bytes
        for event in events_of("torch", 1000, {"tie_word_embeddings": False}, loop=loop_of("plain", loss="torch"))
        if isinstance(event, Allocate) and event.module == "Qwen3ForCausalLM"
    ]
    logits, of_head = 4 * 1000 * 4, 1000 * 64 * 2
    assert (sizes.count(logits), sizes.count(of_head)) == (STEPS, 2 * STEPS)
    assert max(sizes) == of_head

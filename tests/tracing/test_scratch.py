"""What CUDA's kernels take for themselves: the rule of PyTorch's reductions, with figures that an H100's allocator recorded."""

from __future__ import annotations

import pytest

from benchmarks.keep_traces import report_of
from qwen_inspect.architectures.families import CLASSES
from qwen_inspect.loaders import gpus
from qwen_inspect.predicting.allocation.on_device import on_device, sort_scratch_bytes
from qwen_inspect.predicting.sources import training_timeline
from qwen_inspect.predicting.training_plan import plan_of
from qwen_inspect.results.memory import Run
from qwen_inspect.results.timeline import Allocate, ColumnSum, Free
from qwen_inspect.tracing.scratch import EMBEDDING_SCRATCH, column_sum, sum_scratch

from ..support.small_models import small_config


@pytest.mark.parametrize(
    ("outputs", "inputs", "scratch"),
    [
        (1_024, 1_024, (8_388_608, 32)),  # benchmarks/recorded, sgd-0.6B: a layer's norm, 1,024 tokens
        (128, 16 * 1_024, (16_777_216, 4)),  # there: q_norm, of 16 heads
        (896, 4 * 512, (14_680_064, 28)),  # train-0.5B-b4: a bias of q_proj
        (4_096, 2_048, (67_108_864, 128)),  # train-8B-4L-forloop: a layer's norm
        (1_024, 512, None),  # train-35-0.8B: a layer's norm, 512 tokens
        # 32 heads of 8,192 tokens: 132 x 16 blocks of 128 threads fill the card, where 4,096 would share the work.
        (128, 32 * 8_192, (4 * 128 * 2_112 * 128, 4)),
    ],
)
def test_a_sum_over_rows_takes_what_an_h100_recorded(
    outputs: int, inputs: int, scratch: tuple[int, int] | None
) -> None:
    assert sum_scratch(ColumnSum(outputs=outputs, inputs=inputs, vector=4), 132, 2_048) == scratch


def test_a_sum_is_over_rows_where_what_is_kept_lies_densest() -> None:
    torch = pytest.importorskip("torch")
    heads = torch.empty(1, 1_024, 16, 128)
    assert column_sum(heads, [0, 1, 2]) == ColumnSum(outputs=128, inputs=16_384, vector=4)
    assert column_sum(heads, [-1]) is None
    assert column_sum(heads, []) is None


def test_cards_have_the_published_numbers_of_multiprocessors() -> None:
    """NVIDIA's white papers: H100 SXM 132 and PCIe 114, A100 108, T4 40; torch on an A10G: multi_processor_count=80."""
    names = ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-80GB", "Tesla T4", "NVIDIA A10G", "sm_80")
    assert [gpus.multiprocessors(name) for name in names] == [132, 114, 108, 40, 80, None]


def test_threads_of_a_multiprocessor_are_those_of_the_compute_capability() -> None:
    """CUDA C++ programming guide: 2,048 threads, but 1,024 of 7.5 and 1,536 of 8.6, 8.9 and 12.0; any card counts as sm_80."""
    cards = {"Tesla T4": 1024, "RTX 3090": 1536, "RTX 4090": 1536, "sm_120": 1536, "H100 SXM": 2048, "Any Card": 2048}
    assert {name: gpus.threads_per_multiprocessor(name) for name in cards} == cards


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("batch", "tokens"), [(2, 1_536), (2, 1_537), (4, 1_000)])
def test_the_gradient_of_an_embedding_sorts_its_tokens_from_3073_on(family: str, batch: int, tokens: int) -> None:
    """GPT-2 looks up its positions once for all sequences. Sizes as in torch 2.13, EmbeddingBackwardKernel.cu."""
    config = {**small_config(family), "architectures": [CLASSES[family][0]], "n_positions": 2_048}
    report = report_of(config)
    run = Run(mode="train", batch=batch, prompt_tokens=tokens, attention="sdpa", optimizer="sgd")
    timeline, _ = training_timeline(report, plan_of(report, run))
    rows, words = batch * tokens, config["vocab_size"]
    parts = rows // 10 + words  # fewer words than tokens
    sizes = [
        *(3 * [8 * rows] + [sort_scratch_bytes(8 * rows)]),  # in order, places, numbers from 0, the sort's own
        *(8 * rows, 8, 8 * words, 8 * words, 8, 8 * parts),
        4 * parts * 64,  # sums in float32, beside weights in bfloat16
    ]
    events = on_device(timeline, run).events
    scratch = [event for event in events if isinstance(event, Allocate) and event.operator == EMBEDDING_SCRATCH]
    assert [event.size_bytes for event in scratch] == (
        2 * sizes if rows > 3_072 else []
    )  # a first step and a later one
    freed = [event.id for event in events if isinstance(event, Free)]
    assert all(freed.count(event.id) == 1 for event in scratch)
    first = {event.id for event in scratch[: len(sizes)]}
    places = [place for place, event in enumerate(events) if event[0] in first]
    assert not places or places[-1] - places[0] == 2 * len(sizes)  # beside them only the gradient

"""Linear attention trained with all chunks of a prompt, from a trace of the first ones, against a trace of them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from qwen_inspect.architectures import architecture_of
from qwen_inspect.errors import UnsupportedError
from qwen_inspect.predicting.families.shallow_training import constant
from qwen_inspect.predicting.traces.kept_trace import CHUNK_TOKENS, Point
from qwen_inspect.predicting.traces.training_turns import FEWEST_CHUNKS, loops_of, with_chunks
from qwen_inspect.predicting.traces.turns import LINEAR
from qwen_inspect.results.timeline import Timeline
from qwen_inspect.tracing import CHUNK_TURNS
from qwen_inspect.tracing.adapting import Adapters
from qwen_inspect.tracing.trace import TraceRequest, trace

from ..support.families import FAMILIES

CHUNKS = CHUNK_TURNS + 3
TOKENS = CHUNKS * CHUNK_TOKENS - 11  # the last chunk is padded


def traced(family: str, **options: Any) -> Timeline:
    config = dict(FAMILIES[family])
    return trace(architecture_of(config).spec, config, TraceRequest(mode="train", **options))


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen3_next", {"batch": 2, "checkpointing": True}),
        pytest.param(
            "qwen3_5", {"steps": 2, "lora": Adapters(rank=3, targets=("all-linear",))}, marks=pytest.mark.exhaustive
        ),
        pytest.param("qwen3_5_moe", {"accumulate": 2, "optimizer": "sgd"}, marks=pytest.mark.exhaustive),
        pytest.param("qwen3_next", {"autocast": "bfloat16", "steps": 2}, marks=pytest.mark.exhaustive),
        pytest.param("qwen3_5", {"batch": 3, "frozen": "mlp", "attention": "eager"}, marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_with_turns_added_is_that_of_all_turns(family: str, options: Mapping[str, Any]) -> None:
    whole = traced(family, prompt_tokens=TOKENS, **options)
    few = constant(traced(family, prompt_tokens=TOKENS, few_chunks=True, **options))
    turned = with_chunks(few, TOKENS).at(Point(options.get("batch", 1), TOKENS, TOKENS))
    assert len(few.order) < len(whole.events)
    same = constant(whole)
    assert (turned.stages, turned.events) == (whole.stages, same.at(Point(1, TOKENS, TOKENS)).events)
    assert turned.sums == same.at(Point(1, TOKENS, TOKENS)).sums


@pytest.mark.parametrize(
    ("family", "chunks", "options"),
    [
        ("qwen3_5", FEWEST_CHUNKS, {}),
        pytest.param("qwen3_5", 4, {"steps": 2, "batch": 2}, marks=pytest.mark.exhaustive),
        pytest.param("qwen3_next", FEWEST_CHUNKS, {"checkpointing": True}, marks=pytest.mark.exhaustive),
        pytest.param(
            "qwen3_next", 5, {"lora": Adapters(rank=3, targets=("all-linear",))}, marks=pytest.mark.exhaustive
        ),
        pytest.param("qwen3_5_moe", CHUNK_TURNS - 1, {"accumulate": 2}, marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_with_turns_taken_away_is_that_of_few_turns(family: str, chunks: int, options: Mapping[str, Any]) -> None:
    """But for the sizes, which are those of the longer prompt."""
    tokens = chunks * CHUNK_TOKENS - 11
    whole = constant(traced(family, prompt_tokens=tokens, **options))
    few = with_chunks(constant(traced(family, prompt_tokens=TOKENS, few_chunks=True, **options)), tokens)
    assert (few.stages, few.order) == (whole.stages, whole.order)
    assert [made for _, *made in few.allocations] == [made for _, *made in whole.allocations]
    assert [entry for entry, *_ in few.sums] == [entry for entry, *_ in whole.sums]


def test_one_and_two_chunks_are_other_runs() -> None:
    few = constant(traced("qwen3_5", prompt_tokens=TOKENS, few_chunks=True))
    for chunks in range(1, FEWEST_CHUNKS):
        with pytest.raises(UnsupportedError):
            with_chunks(few, chunks * CHUNK_TOKENS)
    assert with_chunks(few, CHUNK_TURNS * CHUNK_TOKENS) is few


def test_turns_that_differ_are_refused() -> None:
    """A turn of a backward frees what the turn after it should, and that one what this one should."""
    few = constant(traced("qwen3_5", prompt_tokens=TOKENS, few_chunks=True))
    *_, loop = loops_of(few, {module for _, module, _ in few.allocations if module.endswith(LINEAR)})
    order = list(few.order)
    turn = range(loop.first + loop.events, loop.first + 2 * loop.events)
    swapped = next(at for at in turn if order[at] < 0 and -1 - order[at] not in [order[other] for other in turn])
    other = swapped + loop.events
    order[swapped], order[other] = order[other], order[swapped]
    with pytest.raises(UnsupportedError):
        with_chunks(replace(few, order=tuple(order)), TOKENS)


def test_a_loop_that_is_not_found_is_refused() -> None:
    few = constant(traced("qwen3_5", prompt_tokens=TOKENS, few_chunks=True))
    loop = next(loops_of(few, {module for _, module, _ in few.allocations if module.endswith(LINEAR)}))
    allocations = list(few.allocations)
    for turn in range(0, loop.turns, 2):  # every other one is of other sizes
        request = next(entry for entry in few.order[loop.first + turn * loop.events :] if entry >= 0)
        (size, *others), module, operator = allocations[request]
        allocations[request] = (size + 512, *others), module, operator
    with pytest.raises(UnsupportedError):
        with_chunks(replace(few, allocations=tuple(allocations)), TOKENS)

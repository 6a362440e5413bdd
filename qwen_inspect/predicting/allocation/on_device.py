"""A trace as a device runs it: weights as the loader lays them, workspaces, kernels' scratch, a cache that grows step by step."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable
from itertools import chain

from ...loaders import gpus
from ...results.exploration import GROWTHS, grown_bytes, grown_tokens
from ...results.memory import Run
from ...results.timeline import CUDA_SCRATCH, Allocate, Event, Free, Stage, Timeline, allocations, frees, operators_of
from ...tracing.scratch import ANY_MULTIPROCESSORS, as_cudnn, log_sum_exps, with_embeddings, with_sums
from ...values import replace
from .replay import load_and_cast, load_from_warm_up_block, load_one_by_one
from .workspaces import LT_WORKSPACE_BYTES, has_cudnn_attention, workspace_of

BIASED_PRODUCT = ("aten.addmm", "bitsandbytes.gemm_4bit.bias")  # tracing.kernels: BIASED_GEMM_4BIT
MATRIX_PRODUCT = (
    *BIASED_PRODUCT,
    *("aten.mm", "aten.bmm", "aten.baddbmm", "aten._grouped_mm"),
    "bitsandbytes.gemm_4bit.default",
)
CONCATENATED, OUTSIDE = "aten.cat.default", "generate"  # OUTSIDE: the module of what no module makes
SORT = "aten.sort"  # and an overload, behind a dot
SORT_SCRATCH = "aten.sort.scratch"
SORT_CONSTANT_BYTES = 8 * 256 * 8 + 256 + 255
# Operators of allocations that are not in the trace, and the first of their ids.
PARAMETER, BUFFER, WORKSPACE = "parameter", "buffer", "workspace"
OWN_IDS = 1 << 60
LOADED_IDS = OWN_IDS + (3 << 40)  # of weights loaded in another form first
SORTED_IDS = 1 << 59  # plus twice the id of the sort's output indices
GROWN_IDS = 1 << 61  # times the growth's number, added to the id of the final storage


def on_device(timeline: Timeline, run: Run) -> Timeline:
    """The trace's run as the device sees it: with the loader's requests, matrix products' workspaces and kernels' scratch.

    On CPU there is none of these; scratch that only CUDA's kernels need is removed.
    """
    if run.device == "cpu":
        return _without(timeline, _made_by(timeline, *CUDA_SCRATCH))
    multiprocessors = gpus.multiprocessors(run.gpu) or ANY_MULTIPROCESSORS
    timeline = with_sums(timeline, multiprocessors, gpus.threads_per_multiprocessor(run.gpu))
    if has_cudnn_attention(run.gpu) and run.mode == "train":
        timeline = as_cudnn(timeline) if run.attention == "sdpa" else timeline
    elif has_cudnn_attention(run.gpu):
        timeline = _without(timeline, _log_sum_exps(timeline))
    operators = operators_of(timeline.events)
    timeline = _sorting(timeline, operators)
    if run.mode == "train":
        tokens = run.batch * run.prompt_tokens
        timeline = with_embeddings(timeline, run.batch, tokens, sort_scratch_bytes(8 * tokens))
    begins = timeline.stages[1].first_event
    load, rest = timeline.events[:begins], timeline.events[begins:]
    if timeline.cast:
        loaded = [event for event in load if isinstance(event, Allocate)]
        load = load_and_cast(loaded, first_id=LOADED_IDS, warm_up=run.loader == "warmup")
    else:
        load = laid_out(load, run.loader)
    events: list[Event] = []
    at = 0
    workspaces = _workspaces(timeline, run, operators)
    for index, workspace in workspaces:
        # The product's output is allocated first, then the library is called.
        events += (*rest[at : index + 1 - begins], workspace)
        at = index + 1 - begins
    events += rest[at:]
    stages = [timeline.stages[0]]
    for stage in timeline.stages[1:]:
        before = sum(index < stage.first_event for index, _ in workspaces)
        stages.append(Stage(name=stage.name, first_event=stage.first_event + len(load) - begins + before))
    return Timeline(events=(*load, *events), stages=tuple(stages))


def growing(timeline: Timeline, new_tokens: int) -> Timeline:
    """The timeline with a cache that grows step by step. A trace has one leap instead, to the length before the last step.

    Each step allocates every key and value again, one token longer, and then frees the old one, so that later blocks are cut from
    freed ones. Up to GROWTHS steps are replayed; of a longer run, only GROWTHS: for 1,000 tokens on an H100 they give the same
    figures as all 998 steps (decode1000-0.6B in benchmarks/recorded).
    Source: transformers 5.23, cache_utils.DynamicLayer.update
    """
    pairs = leap(timeline)
    if not pairs:
        return timeline
    begin = next(stage.first_event for stage in timeline.stages if stage.name == "decode")
    end = begin + 2 * len(pairs)
    events: list[Event] = list(timeline.events[:begin])
    held = [old.id for old, _ in pairs]
    last, _, modules, operators = zip(*(new for _, new in pairs), strict=True)
    ends_of = [(old.size_bytes, new.size_bytes) for old, new in pairs]
    steps = new_tokens - 2
    for number in range(1, GROWTHS + 1):
        tokens = grown_tokens(steps, number)
        if tokens == grown_tokens(steps, number - 1):
            continue
        sizes = {ends: grown_bytes(*ends, steps, number) for ends in set(ends_of)}
        first = 0 if number == GROWTHS else number * GROWN_IDS
        grown = [first + identity for identity in last]
        made = allocations(grown, map(sizes.__getitem__, ends_of), modules, operators)
        events += chain.from_iterable(zip(made, frees(held), strict=True))
        held = grown
    if held == [*last]:
        events += timeline.events[end:]
    else:
        held_as = dict(zip(last, held, strict=True))
        events += [
            Free(held_as.get(event.id, event.id)) if isinstance(event, Free) else event
            for event in timeline.events[end:]
        ]
    return Timeline(events=tuple(events), stages=timeline.stages)


def leap(timeline: Timeline) -> list[tuple[Allocate, Allocate]]:
    """(before, after) of each cache storage in the leap at the start of a trace's decode stage; empty if there is no leap."""
    begin = next((stage.first_event for stage in timeline.stages if stage.name == "decode"), len(timeline.events))
    allocations = {event.id: event for event in timeline.events[:begin] if isinstance(event, Allocate)}
    before: list[Allocate] = []
    after: list[Allocate] = []
    for event in timeline.events[begin:]:
        storage = allocations.get(event.id) if isinstance(event, Free) else event
        if storage is None or not grows(storage.module, storage.operator):
            break
        (before if isinstance(event, Free) else after).append(storage)
    return list(zip(before, after, strict=True)) if len(before) == len(after) else []


def grows(module: str, operator: str) -> bool:
    """Whether this is a part of the cache, at the start of a trace's decode stage: of attention, by whatever name, or of an index
    of its keys. What `generate` itself lengthens comes after all of them."""
    return module.endswith("attn") or (operator == CONCATENATED and module != OUTSIDE)


def _workspaces(timeline: Timeline, run: Run, operators: Collection[str]) -> list[tuple[int, Allocate]]:
    """The workspaces that matrix products allocate for the life of the process, each with the index of the event before it.

    Every thread has its own handle, so the first backward, which runs in autograd's thread, allocates another one.
    Source: torch 2.13, aten/src/ATen/cuda/CublasHandlePool.cpp, getCurrentCUDABlasHandle; as recorded in benchmarks/recorded.
    """

    def first(products: Collection[str], begins: int) -> int | None:
        wanted = {operator for operator in operators if is_one_of(operator, products)}
        events = enumerate(timeline.events[begins:] if wanted else (), begins)
        return next((i for i, event in events if isinstance(event, Allocate) and event.operator in wanted), None)

    begins = timeline.stages[1].first_event
    backward = next((stage.first_event for stage in timeline.stages if stage.name == "backward"), None)
    products = [
        (first(MATRIX_PRODUCT, begins), workspace_of(run)),
        (first(BIASED_PRODUCT, begins), LT_WORKSPACE_BYTES),
    ]
    if backward is not None:
        products.append((first(MATRIX_PRODUCT, backward), workspace_of(run)))
    calls = [(index, size_bytes) for index, size_bytes in products if index is not None]
    return sorted(
        (index, Allocate(OWN_IDS + number, size, "", WORKSPACE)) for number, (index, size) in enumerate(calls, 1)
    )


def is_one_of(operator: str, names: Collection[str]) -> bool:
    """Whether the operator is one of these, or an overload of it."""
    return any(operator.startswith(name) and not _goes_on(operator[len(name) :][:1]) for name in names)


def _goes_on(character: str) -> bool:
    return character.isalnum() or character == "_"


def _without(timeline: Timeline, removed_ids: Collection[int]) -> Timeline:
    """The timeline without the storages of these ids."""
    kept = [index for index, event in enumerate(timeline.events) if event.id not in removed_ids]
    return replace(
        timeline,
        events=tuple(timeline.events[index] for index in kept),
        stages=tuple(
            Stage(name=stage.name, first_event=bisect_left(kept, stage.first_event)) for stage in timeline.stages
        ),
    )


def _made_by(timeline: Timeline, *operators: str) -> set[int]:
    return {event.id for event in timeline.events if isinstance(event, Allocate) and event.operator in operators}


def _log_sum_exps(timeline: Timeline) -> set[int]:
    """Ids of attention's log-sum-exps: a trace has them from flash attention, cuDNN makes none without gradients.

    Not counted: cuDNN's workspace (256 bytes, and in decoding the parts of a split KV), its seed and its offset (8 bytes each).
    As recorded in benchmarks/recorded.
    """
    return {event.id for _, event in log_sum_exps(timeline)}


def _sorting(timeline: Timeline, operators: Collection[str]) -> Timeline:
    """Adds the scratch of CUDA's integer sort, used to sort tokens by expert: the indices in order, and CUB's own scratch."""
    sorts = {name for name in operators if name == SORT or name.startswith(f"{SORT}.")}
    if not sorts:
        return timeline
    events = timeline.events
    sorted_by = [index for index, event in enumerate(events) if len(event) > 1 and event[3] in sorts]
    # Values, then indices of the same size.
    found = [index for index in sorted_by if index and events[index - 1][1:] == events[index][1:]]
    whole: list[Event] = []
    at = 0
    for index in found:
        event = events[index]
        assert isinstance(event, Allocate)
        first = SORTED_IDS + 2 * event.id
        sizes = event.size_bytes, sort_scratch_bytes(event.size_bytes)
        scratch = [event._replace(id=first + i, size_bytes=size, operator=SORT_SCRATCH) for i, size in enumerate(sizes)]
        whole += (*events[at : index + 1], *scratch, Free(first + 1), Free(first))
        at = index + 1
    whole += events[at:]
    stages = tuple(
        replace(stage, first_event=stage.first_event + 4 * bisect_left(found, stage.first_event))
        for stage in timeline.stages
    )
    return replace(timeline, events=tuple(whole), stages=stages)


def sort_scratch_bytes(keys_bytes: int) -> int:
    """CUB's scratch for sorting 8-byte keys with 8-byte values: a copy of both; a 4-byte counter for each of 256 digits per 4,096
    keys; an 8-byte counter for each digit of 8 passes; 256 bytes for the passes themselves; and the first one's alignment.

    Simplified: the 4,096 are not rounded up, so that sizes stay linear, and short inputs, which need no scratch, get it too.
    Source: CUB, dispatch_radix_sort.cuh, InvokeOnesweep; torch 2.11, aten/src/ATen/native/cuda/Sort.cpp; as recorded
    """
    return 2 * keys_bytes + -(-keys_bytes // 32) + SORT_CONSTANT_BYTES


def laid_out(events: Iterable[Event], loader: str) -> tuple[Event, ...]:
    """The loader's requests: weights first, then all else."""
    allocations = [event for event in events if isinstance(event, Allocate)]
    weights = [event for event in allocations if event.operator == PARAMETER]
    others = [event for event in allocations if event.operator != PARAMETER]
    laid = load_one_by_one(weights) if loader == "per-tensor" else load_from_warm_up_block(weights, block_id=OWN_IDS)
    return (*laid, *others)

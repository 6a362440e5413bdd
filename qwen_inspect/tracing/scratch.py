"""Scratch memory of CUDA's kernels: sums over rows, cuDNN's attention backward, and gradients of embeddings."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate, count, pairwise

from ..results.timeline import FLASH_SCRATCH, Allocate, ColumnSum, Event, Free, Stage, Timeline
from ..typed import Any
from ..values import replace

SUM_SCRATCH = "sum.scratch"  # operator of the scratch of a sum over rows
SUM_IDS, CUDNN_IDS = (1 << 60) + (1 << 40), (1 << 60) + (2 << 40)  # first ids of allocations that are not in the trace
SUMS = frozenset({"aten.sum.dim_IntList", "aten.mean.dim"})
# Limits of a block of threads: threads, threads side by side, and the most and fewest values that a thread adds before more
# blocks share an output. Source: torch 2.13, aten/src/ATen/native/cuda/Reduce.cuh
BLOCK_THREADS, WARP, MOST_VALUES, FEWEST_VALUES = 512, 32, 256, 16
ACCUMULATOR_BYTES = 4  # float32, whatever the inputs' dtype
FLASH_ATTENTION = "aten._scaled_dot_product_flash_attention.default"
CUDNN_SCRATCH, CUDNN_DROPOUT = "cudnn_attention.scratch", "cudnn_attention.dropout"
# cuDNN's workspace beyond the tensors of its graph, as measured: torch 2.11 on an H100, forwards and backwards of every training
# run of benchmarks/recorded.
CUDNN_BYTES = 256
EMBEDDING, EMBEDDING_GRADIENT = "aten.embedding.default", "aten.embedding_dense_backward.default"
WIDE_EMBEDDING_GRADIENT = "aten.embedding_dense_backward.float32"  # the same, of a weight in float32
EMBEDDING_SCRATCH = "embedding_backward.scratch"
EMBEDDING_IDS = (1 << 60) + (4 << 40)
# From so many tokens on they are sorted, and so many of equal ones are added by a thread. Source: see `with_embeddings`
FEWEST_SORTED, ROWS_OF_A_THREAD = 3073, 10
# Assumed for a card whose number is unknown: the A100's, as unknown cards count as sm_80.
ANY_MULTIPROCESSORS, ANY_THREADS = 108, 2048


def column_sum(tensor: Any, dims: Any) -> ColumnSum | None:
    """The shape of a sum of `tensor` over `dims`; None if it runs along the densest dimension, whose scratch is negligible: a few
    bytes per block, and only if several blocks share an output, from 131,072 values each on.

    Source: torch 2.13, aten/src/ATen/native/cuda/Reduce.cuh, setReduceConfig and get_output_vec_size
    """
    summed = {dim % tensor.dim() for dim in ([dims] if isinstance(dims, int) else dims or range(tensor.dim()))}
    lines = [
        (stride, size, dim in summed)
        for dim, (stride, size) in enumerate(zip(tensor.stride(), tensor.shape, strict=True))
        if size > 1
    ]
    kept = [(stride, size) for stride, size, is_summed in lines if not is_summed]
    added_up = [(stride, size) for stride, size, is_summed in lines if is_summed]
    if not kept or not added_up or min(added_up)[0] < min(kept)[0]:
        return None
    densest = min(kept)
    vector = 4 if densest[0] == 1 else 1
    others = [stride for stride, _ in (*kept, *added_up) if stride != densest[0]]
    while any(number % vector for number in (tensor.storage_offset(), densest[1], *others)):
        vector //= 2
    inputs = 1
    for _, size in added_up:
        inputs *= size
    return ColumnSum(outputs=tensor.numel() // inputs, inputs=inputs, vector=vector)


def sum_scratch(summed: ColumnSum, multiprocessors: int, threads: int) -> tuple[int, int] | None:
    """Bytes of (partial sums, semaphores) if several blocks of threads share an output; None if each output has one block.

    Not modelled: tensors of 2 GiB and more are summed in parts. Source: see `column_sum`; global_memory_size and semaphore_size
    """
    most = BLOCK_THREADS // summed.vector
    columns, rows = (_power_of_two(number, most) for number in (summed.outputs // summed.vector, summed.inputs))
    width = min(columns, WARP)
    height = min(rows, most // width)
    width = min(columns, most // height)
    if summed.inputs < min(FEWEST_VALUES * height, MOST_VALUES):
        return None
    values = -(-summed.inputs // height)
    across = -(-(summed.outputs // summed.vector) // width)
    room = multiprocessors * (threads // (width * height))
    if values < MOST_VALUES or across > room:
        return None
    blocks = max(min(-(-room // across), -(-values // FEWEST_VALUES)), -(-values // MOST_VALUES))
    if blocks == 1:
        return None
    return ACCUMULATOR_BYTES * summed.outputs * blocks * width * summed.vector, 4 * across


def _power_of_two(number: int, most: int) -> int:
    """The largest power of two that is at most `number`, limited to `most`."""
    return min(1 << (number.bit_length() - 1), most)


def with_sums(timeline: Timeline, multiprocessors: int, threads: int) -> Timeline:
    """Adds the scratch that sums over rows need, right after each sum's output, on a card with that many multiprocessors, each
    with room for so many threads."""
    if not timeline.sums:
        return timeline
    sizes = {identity: sum_scratch(summed, multiprocessors, threads) for identity, summed in timeline.sums}
    needed = {identity for identity, scratch in sizes.items() if scratch is not None}
    if not needed:
        return timeline
    outputs = {event[0]: event for event in timeline.events if len(event) > 1 and event[0] in needed}
    ids = count(SUM_IDS)
    after: dict[int, tuple[Event, ...]] = {}
    for identity, parts in sizes.items():
        if parts is not None:
            scratch = [Allocate(next(ids), size_bytes, outputs[identity].module, SUM_SCRATCH) for size_bytes in parts]
            after[identity] = (*scratch, *(Free(event.id) for event in reversed(scratch)))
    changed = [index for index, event in enumerate(timeline.events) if len(event) > 1 and event[0] in after]
    return _changed(timeline, {index: (timeline.events[index], *after[timeline.events[index][0]]) for index in changed})


def with_embeddings(timeline: Timeline, batch: int, tokens: int, sort_bytes: int) -> Timeline:
    """Adds the scratch of embeddings' gradients, whose kernel sorts many tokens and adds up the rows of equal ones in float32.

    tokens: of a micro-batch, of all its sequences. sort_bytes: CUB's scratch for sorting them. Not counted: CUB's for its scan
    and for unique keys, a few KiB; tables that are not looked up by a token's or a position's number, as in towers.

    Source: torch 2.13, aten/src/ATen/native/cuda, Embedding.cu, embedding_dense_backward_cuda, and EmbeddingBackwardKernel.cu,
    embedding_backward_cuda_kernel
    """
    gradients = (EMBEDDING_GRADIENT, WIDE_EMBEDDING_GRADIENT)
    if tokens < FEWEST_SORTED:
        return timeline
    found = [index for index, event in enumerate(timeline.events) if len(event) > 1 and event[3] in gradients]
    made = [event for event in timeline.events if len(event) > 1 and event[3] == EMBEDDING]
    if not (found and made):
        return timeline
    looked_up = {event.module: event.size_bytes for event in made}
    row = made[0].size_bytes // tokens  # the first embedding is of tokens
    ids = count(EMBEDDING_IDS)
    changed: dict[int, tuple[Event, ...]] = {}
    for index in found:
        gradient = timeline.events[index]
        assert isinstance(gradient, Allocate)
        whole = looked_up.get(gradient.module, 0)
        by_position = whole * batch == row * tokens  # looked up once for all sequences
        rows = tokens // batch if by_position else tokens
        of_text = not any(part.startswith(("vis", "audio")) for part in gradient.module.split("."))
        if rows < FEWEST_SORTED or whole % rows or not (of_text and (by_position or whole >= row * tokens)):
            continue
        numbers = whole // rows // (4 if gradient.operator == WIDE_EMBEDDING_GRADIENT else 2)
        segments = min(rows, gradient.size_bytes // (whole // rows))
        parts = rows // ROWS_OF_A_THREAD + segments
        before, after = (
            [gradient._replace(id=next(ids), size_bytes=size, operator=EMBEDDING_SCRATCH) for size in sizes]
            for sizes in (
                (8 * rows, 8 * rows, 8 * rows, sort_bytes),  # in order, their places, numbers from 0
                (8 * rows, 8, 8 * segments, 8 * segments, 8, 8 * parts, 4 * parts * numbers),
            )
        )
        *kept, arange, sort = before
        freed = (Free(event.id) for event in (*reversed(after), *reversed(kept)))
        changed[index] = (*before, Free(sort.id), Free(arange.id), gradient, *after, *freed)
    return _changed(timeline, changed)


def varies_by_card(timeline: Timeline) -> bool:
    """Whether the sums' scratch depends on the number of multiprocessors, as it does for tens of thousands of rows."""
    return any(
        sum_scratch(summed, ANY_MULTIPROCESSORS, ANY_THREADS) != sum_scratch(summed, 1 << 20, ANY_THREADS)
        for _, summed in timeline.sums
    )


def as_cudnn(timeline: Timeline) -> Timeline:
    """Converts a training run from flash attention to cuDNN's, whose backward requests all of its scratch at once.

    The scratch has the row sums and the query's gradient in float32, which cuDNN's graph names, and with GQA the gradients of K
    and V per query head, as measured (CUDNN_BYTES). Dropout's seed and offset live as long as the log-sum-exps.
    Sources: cudnn-frontend 1.x, node/scaled_dot_product_flash_attention.h, get_fe_workspace_size_node; torch 2.11,
    aten/src/ATen/native/cudnn/MHA.cpp
    """
    changed: dict[int, tuple[Event, ...]] = {}
    ids = count(CUDNN_IDS)
    freed = {event[0]: index for index, event in enumerate(timeline.events) if len(event) == 1}
    for index, log_sum_exp in log_sum_exps(timeline):
        dropout = [Allocate(next(ids), 8, log_sum_exp.module, CUDNN_DROPOUT) for _ in ("seed", "offset")]
        scratch = Allocate(next(ids), CUDNN_BYTES, log_sum_exp.module, CUDNN_SCRATCH)
        changed[index - 1] = (*dropout, timeline.events[index - 1])
        changed[index] = (log_sum_exp, scratch, Free(scratch.id))
        if (last := freed.get(log_sum_exp.id)) is not None:
            changed[last] = (timeline.events[last], *(Free(event.id) for event in dropout))
    for parts in attentions(timeline.events):
        first, request = parts[0]
        assert isinstance(request, Allocate)
        size_bytes = sum(event.size_bytes for _, event in parts if isinstance(event, Allocate))
        whole = request._replace(size_bytes=size_bytes + CUDNN_BYTES, operator=CUDNN_SCRATCH)
        changed |= {**dict.fromkeys((index for index, _ in parts), ()), first: (whole, Free(whole.id))}
    return _changed(timeline, changed)


def log_sum_exps(timeline: Timeline) -> Iterator[tuple[int, Allocate]]:
    """(event index, allocation) of each log-sum-exp, which attention allocates right after its output."""
    for index, (output, event) in enumerate(pairwise(timeline.events), 1):
        if len(event) > 1 and event[3] == FLASH_ATTENTION and len(output) > 1 and event[2:] == output[2:]:
            assert isinstance(event, Allocate)
            yield index, event


def attentions(events: tuple[Event, ...]) -> Iterator[list[tuple[int, Event]]]:
    """The scratch events of each attention's backward, with their indices."""
    alive: set[int] = set()
    parts: list[tuple[int, Event]] = []
    for index, event in enumerate(events):
        if len(event) > 1 and event[3] == FLASH_SCRATCH:
            alive.add(event[0])
        elif event[0] in alive:
            alive.discard(event[0])
        else:
            continue
        parts.append((index, event))
        if not alive:
            yield parts
            parts = []


def _changed(timeline: Timeline, changed: Mapping[int, tuple[Event, ...]]) -> Timeline:
    """The run with the events at some indices replaced."""
    events: list[Event] = []
    at = 0
    indices = sorted(changed)
    added = [0, *accumulate(len(changed[index]) - 1 for index in indices)]  # before each of the indices, and after all
    for index in indices:
        events += timeline.events[at:index]
        events += changed[index]
        at = index + 1
    events += timeline.events[at:]
    stages = tuple(
        Stage(name=stage.name, first_event=stage.first_event + added[bisect_left(indices, stage.first_event)])
        for stage in timeline.stages
    )
    return replace(timeline, events=tuple(events), stages=stages)

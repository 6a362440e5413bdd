"""A run's footprint: its timeline through the caching allocator, taken apart at the peak and at the end.

Nothing is fitted. The weights lie as the loader lays them, cuBLAS takes its workspace at the first matrix product, and every
other byte is the trace's.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from ..checkpoint import Tensor
from ..errors import UsageError
from ..language import Message
from ..loaders.gpus import compute_capability
from ..results.cache import CacheLayer, CacheReport
from ..results.exploration import GROWTHS, grown_bytes, grown_tokens
from ..results.memory import TERMS, Alive, Footprint, Method, Moment, Run, context_range
from ..results.timeline import ADAPTER, CUDA_SCRATCH, GATHERED, Allocate, Event, Free, Stage, Timeline, living
from ..spec import Module, each_buffer, each_tensor
from ..tracing.kernels import BIASED_GEMM_4BIT
from ..tracing.scratch import ANY_MULTIPROCESSORS, as_cudnn, log_sum_exps, multiprocessors_of, varies_by_card, with_sums
from ..units import size as shown_size
from .allocator import ROUNDING_BYTES, Allocator, HostAllocator, OutOfMemory
from .allocator_settings import read_settings
from .replay import WARM_UP, Replay, load_and_cast, load_from_warm_up_block, load_one_by_one, replay, warm_up_bytes
from .turns import with_all_turns

if TYPE_CHECKING:
    from ..results.course import Course
    from ..results.lora import TrainedTensor
    from ..results.measurement import Calibration

# For each cuBLAS handle and stream: 2 x 4096 KiB + 8 x 16 KiB; on Hopper (compute capability 9.0) 32 MiB.
# Source: torch 2.13, aten/src/ATen/cuda/CublasHandlePool.cpp, parseChosenWorkspaceSize.
WORKSPACE_BYTES = 2 * 4096 * 1024 + 8 * 16 * 1024
WORKSPACE_BYTES_HOPPER = 32 * 1024 * 1024
# Of names that the table has not, such as those of other memories: "NVIDIA H100 64GB HBM2".
UNLISTED_HOPPER = re.compile(r"h100|h200|h20\b|h800|gh200|hopper", re.IGNORECASE)
# cuBLASLt's, which multiplies where a bias is added: 1024 KiB on every card. Counted for a single row too, which goes without.
# Source: the same file, parseCUDABlasLtWorkspaceSize; torch 2.13, aten/src/ATen/native/cuda/Blas.cpp, addmm_out_cuda_impl
LT_WORKSPACE_BYTES = 1024 * 1024
MATRIX_PRODUCT = re.compile(r"(aten\.(mm|addmm|bmm|baddbmm|_grouped_mm)|bitsandbytes\.gemm_4bit\.(default|bias))\b")
BIASED_PRODUCT = re.compile(rf"aten\.addmm\b|{re.escape(BIASED_GEMM_4BIT)}")
SORT = re.compile(r"aten\.sort\b")
SORT_SCRATCH = "aten.sort.scratch"
SORT_CONSTANT_BYTES = 8 * 256 * 8 + 256 + 255
MOST_ALIVE = 12

# Operators of what is no tensor of the trace, and the first of the ids given to it.
PARAMETER, BUFFER, WORKSPACE = "parameter", "buffer", "workspace"
LINEAR = "linear_attn"  # the module of linear attention in a layer
OWN_IDS = 1 << 60
LOADED_IDS = OWN_IDS + (3 << 40)  # of what is loaded in another form
DEFAULT_RUN = Run()
SORTED_IDS = 1 << 59  # and twice the id of the indices that come out sorted
GROWN_IDS = 1 << 61  # times the number of a growth, added to the id of the last
# A use that is not called as its term is.
TERM_OF_USE = {
    PARAMETER: "weights",
    ADAPTER: "adapters",
    BUFFER: "buffers",
    GATHERED: "gathered",
    "activation": "activations",
}


def workspace_bytes(gpu: str) -> int:
    """What cuBLAS takes on a card of this name; sm_80's where the name says no more."""
    return WORKSPACE_BYTES_HOPPER if is_hopper(gpu) else WORKSPACE_BYTES


def is_hopper(gpu: str) -> bool:
    """Whether a card of this name has compute capability 9.0."""
    known = compute_capability(gpu)
    return UNLISTED_HOPPER.search(gpu) is not None if known is None else known == (9, 0)


def has_cudnn_attention(gpu: str) -> bool:
    """Whether sdpa on a card of this name is cuDNN's, which comes first on Hopper, with a mask too; as recorded in
    benchmarks/recorded.

    Source: torch 2.11, check_prefer_cudnn_attention in aten/src/ATen/native/transformers/cuda/sdp_utils.cpp
    """
    return is_hopper(gpu)


def workspace_of(run: Run) -> int:
    """One handle's, as measured on this card, else as its name tells.

    What was measured may be that of training, of two handles, or of a model with biases, cuBLASLt's included.
    """
    one = workspace_bytes(run.gpu)
    if run.calibration is None or run.calibration.workspace_bytes in (
        one + LT_WORKSPACE_BYTES,
        2 * one,
        2 * one + LT_WORKSPACE_BYTES,
    ):
        return one
    return run.calibration.workspace_bytes


def _context_of(run: Run) -> int | None:
    return None if run.calibration is None else run.calibration.context_bytes


def traced_footprint(timeline: Timeline, run: Run, *, provenance: str, course_points: int = 0) -> Footprint:
    """Replays a timeline whose first stage is "load", and takes apart what is held at the peak and at the end.

    course_points: also the way there, in about that many points.
    """
    if run.mode != "train":  # of which a trace has all turns
        timeline = with_all_turns(timeline, run.prompt_tokens)
    whole = on_device(growing(timeline, run.new_tokens), run) if run.device == "cuda" else on_device(timeline, run)
    found = replay(whole, _allocator(run), with_course=course_points > 0)
    if found.out_of_memory_event is not None:  # no capacity was given: the sizes are past what a device can address
        raise UsageError("memory_beyond_addresses")
    assert found.peak_event is not None  # a model has weights
    uses = uses_of(timeline)
    at_peak = [one.request for one in found.alive]
    stage = [stage.name for stage in whole.stages if stage.first_event <= found.peak_event][-1]
    return Footprint(
        method="trace",
        steady=_moment(whole.stages[-1].name, _requested(living(whole.events), uses), found.end.rounding_bytes),
        peak=_moment(stage, _requested(at_peak, uses), found.at_peak.rounding_bytes),
        peak_reserved=found.peak.reserved_bytes if run.device == "cuda" else None,
        context_bytes=_context_of(run),
        context_range_bytes=context_range(run),
        alive=_alive(at_peak, uses),
        assumptions=(*assumptions(run), *_of_parts(timeline, run)),
        provenance=provenance,
        course=_course(whole, found, uses, course_points) if course_points else None,
    )


def _allocator(run: Run) -> Allocator:
    return HostAllocator() if run.device == "cpu" else Allocator(read_settings(run.allocator))


def uses_of(timeline: Timeline) -> dict[int, str]:
    """What the storages of a trace are for that are no mere activations: "cache", "state", "gradients" or "optimizer", by id."""
    return {**_cache_uses(timeline), **_training_ids(timeline)}


def _course(whole: Timeline, found: Replay, uses: Mapping[int, str], points: int) -> Course:
    from .course import LOADER, course_of, thinned

    def term(event: Allocate) -> str:
        return LOADER if event.operator == WARM_UP else term_of(use_of(event, uses))

    return thinned(course_of(whole, found.course, term), most_points=points)


def formula_footprint(
    tree: Module,
    cache: CacheReport,
    run: Run,
    *,
    weights: Sequence[Tensor] | None = None,
    matrices: Sequence[TrainedTensor] = (),
    unknown: tuple[Message, ...] = (),
) -> Footprint:
    """What weights, buffers, a full cache, the optimizer's states and the workspace take at the end of a run.

    No peak, for no formula knows the activations. A step of training ends with the gradients dropped. Source: transformers 5.23,
    Trainer

    weights: what is loaded, where that is not the tree's own tensors. matrices: LoRA's, where they train. unknown:
    why more is not known, among the assumptions.
    """
    sizes = [tensor.size_bytes for tensor in (each_tensor(tree) if weights is None else weights)]
    return sizes_footprint(sizes, tree, cache, run, matrices=matrices, unknown=unknown)


def sizes_footprint(
    weights_bytes: Sequence[int],
    tree: Module,
    cache: CacheReport,
    run: Run,
    *,
    matrices: Sequence[TrainedTensor] = (),
    unknown: tuple[Message, ...] = (),
) -> Footprint:
    """`formula_footprint` of a model that loads weights of these sizes."""
    held = _held(weights_bytes, tree, cache, run, matrices)
    requested: Counter[str] = Counter()
    for use, size_bytes in held:
        requested[use] += size_bytes
    try:
        rounding = _rounding_bytes([size_bytes for _, size_bytes in held], sum(weights_bytes), run)
    except OutOfMemory:
        raise UsageError("memory_beyond_addresses") from None
    stage = {"generate": "decode", "forward": "forward", "train": "optimizer"}[run.mode]
    return _without_peak(
        method="formula",
        steady=replace(_moment(stage, requested, rounding), activations=None),
        assumptions=(*unknown, *assumptions(run)),
        provenance="transformers 5.23 DynamicCache, torch 2.13 CUDACachingAllocator",
        run=run,
    )


def _rounding_bytes(sizes: Sequence[int], weights_bytes: int, run: Run) -> int:
    """What the blocks of requests are larger than these, after a loader that may have taken a block for all weights before."""
    if run.device == "cpu":
        return 0
    from .reserved import allocated_bytes  # of a run with a trace nothing more is asked

    first, order = [], list(range(len(sizes)))
    if run.loader == "warmup":
        first, order = [warm_up_bytes(weights_bytes)], [0, -1, *range(1, len(sizes) + 1)]
    return allocated_bytes([*first, *sizes], order, read_settings(run.allocator)) - sum(sizes)


def formula_requests(
    tree: Module,
    cache: CacheReport,
    run: Run,
    *,
    weights: Sequence[Tensor] | None = None,
) -> tuple[tuple[Allocate, ...], dict[int, str]]:
    """What `formula_footprint` counts, as requests, and what they are for, by id, as `uses_of` tells it of a trace.

    The cache's are K's and V's of each layer that keeps any, and the states of each that keeps such, in the layers' order.
    """
    sizes = [tensor.size_bytes for tensor in (each_tensor(tree) if weights is None else weights)]
    events = tuple(
        Allocate(index, size, "attn", use) for index, (use, size) in enumerate(_held(sizes, tree, cache, run))
    )
    kept = ("cache", "state", "gradients", "optimizer")
    return events, {event.id: event.operator for event in events if event.operator in kept}


def _held(
    weights_bytes: Iterable[int],
    tree: Module,
    cache: CacheReport,
    run: Run,
    matrices: Sequence[TrainedTensor] = (),
) -> list[tuple[str, int]]:
    """The use and the bytes of each request, as they are made."""
    held = [(PARAMETER, size) for size in weights_bytes]
    held += [(ADAPTER, matrix.tensor.size_bytes) for matrix in matrices]
    held += [(BUFFER, buffer.size_bytes) for buffer in each_buffer(tree)]
    for layer in () if run.mode == "train" else cache.layers:
        size = cache_bytes(layer, run) - run.batch * layer.fixed_bytes
        if layer.bytes_per_token:
            held += [("cache", size // 2), ("cache", size - size // 2)]  # K and V
        held += [("state", run.batch * state) for state in layer.states_bytes]
    if run.mode == "train":
        from .training import optimizer_sizes, trained_of

        trained = trained_of(tree, run, matrices)
        held += [("optimizer", size) for size in optimizer_sizes(trained, run.optimizer)]
        held += [("gradients", tensor.size_bytes) for tensor in trained if run.optimizer == "none"]
    if run.device == "cuda":
        held.append((WORKSPACE, workspace_of(run)))
        held += [(WORKSPACE, LT_WORKSPACE_BYTES)] if _adds_biases(tree) else []
        held += [(WORKSPACE, workspace_of(run))] if run.mode == "train" else []
    return held


def _adds_biases(module: Module) -> bool:
    """Whether a linear module of it has a bias, but for a vision tower's, which a prompt of text does not run."""
    own = module.class_name in ("Linear", "Conv1D") and any(tensor.name == "bias" for tensor in module.tensors)
    return own or any(_adds_biases(child) for child in module.children if child.name != "visual")


def cache_bytes(layer: CacheLayer, run: Run) -> int:
    """Bytes of the storages that a layer's cache is in at the end of a run, its states included."""
    if run.cache == "static":
        return run.batch * layer.static_bytes(run.cached_tokens)
    fed_last = 1 if run.cached_tokens > run.prompt_tokens else run.prompt_tokens
    return run.batch * layer.storage_bytes(run.cached_tokens, fed_last=fed_last)


def stored_footprint(
    tensors: Iterable[Tensor],
    files: str,
    *,
    tree: Module | None = None,
    cache: CacheReport | None = None,
    run: Run | None = None,
) -> Footprint:
    """What the files tell of a model that cannot be loaded as designed: the bytes of its tensors as stored.

    tree, cache, run: of a model whose design is known and whose weights are not: its buffers and what its cache holds at the end.
    """
    steady = Moment(stage="load", weights=sum(tensor.size_bytes for tensor in tensors))
    if tree is not None and run is not None and cache is not None and run.mode != "train":
        used: Counter[str] = Counter()
        for use, size_bytes in _held((), tree, cache, run):
            used[use] += size_bytes
        steady = replace(steady, buffers=used[BUFFER], cache=used["cache"], state=used["state"])
    assumption = Message("assume_stored" if tree is None else "assume_unread")
    return _without_peak(method="stored", steady=steady, assumptions=(assumption,), provenance=files)


def _without_peak(
    *,
    method: Method,
    steady: Moment,
    assumptions: tuple[Message, ...],
    provenance: str,
    run: Run = DEFAULT_RUN,
) -> Footprint:
    return Footprint(
        method=method,
        steady=steady,
        peak=None,
        peak_reserved=None,
        context_bytes=_context_of(run),
        context_range_bytes=context_range(run),
        alive=(),
        assumptions=assumptions,
        provenance=provenance,
    )


def assumptions(run: Run) -> tuple[Message, ...]:
    """What a prediction for `run` takes for granted, in sentences."""
    if run.device == "cpu":
        return (
            Message("assume_host"),
            *_kernel(run),
            *_static(run),
            *_training(run),
        )
    return (
        Message(f"assume_loader_{run.loader.replace('-', '_')}"),
        Message(
            "assume_workspace_training" if run.mode == "train" else "assume_workspace",
            bytes=workspace_of(run),
            gpu=run.gpu,
        ),
        *_kernel(run),
        *_static(run),
        *_caller(run),
        *_training(run),
        *([Message("assume_cache_format", format=run.cache_format)] if run.cache_format != "auto" else []),
        *([Message("assume_allocator", settings=run.allocator)] if run.allocator else []),
        _uncalibrated(run) if run.calibration is None else _calibrated(run.calibration),
    )


def _static(run: Run) -> tuple[Message, ...]:
    return (Message("assume_static_cache", tokens=run.cached_tokens),) if run.cache == "static" else ()


def _kernel(run: Run) -> Iterator[Message]:
    if not run.padded:
        yield Message("assume_kernel", kernel=run.attention)
    elif not run.attention.startswith("flash"):  # with which no padded run is predicted
        yield Message("assume_kernel_padded", kernel=run.attention, tokens=run.prompt_tokens)


def mask_bytes(run: Run) -> int:
    """The block of a prompt's attention mask, an int64 for each token, which a caller of `generate` holds until it returns."""
    return -(-8 * run.batch * run.prompt_tokens // ROUNDING_BYTES) * ROUNDING_BYTES


def _caller(run: Run) -> Iterator[Message]:
    """What a caller's own `generate` holds beside what is counted. Its mask is not fed to the model where it masks nothing.

    Source: transformers 5.23, generation/utils.py, _prepare_special_tokens: an int64 for each that is set, of this call alone.
    """
    if run.mode == "generate" and not run.padded:  # else the mask is counted
        tokens = run.batch * run.prompt_tokens
        yield Message("assume_caller", tokens=tokens, bytes=mask_bytes(run), token_bytes=ROUNDING_BYTES)


def _uncalibrated(run: Run) -> Message:
    low, high = map(shown_size, context_range(run))
    return Message("assume_context", low=low, high=high)


def _calibrated(found: Calibration) -> Message:
    key = {"gpu": found.gpu, "driver": found.driver, "torch": found.torch, "transformers": found.transformers}
    return Message("assume_calibrated", date=found.date, context=shown_size(found.context_bytes), **key)


def _of_parts(timeline: Timeline, run: Run) -> tuple[Message, ...]:
    """What a trace takes for granted of parts that only some models have."""
    modules = {event.module for event in timeline.events if isinstance(event, Allocate)}
    four_bits = any(
        isinstance(event, Allocate) and event.operator.startswith("bitsandbytes.gemm") for event in timeline.events
    )
    linear = any(module.endswith(LINEAR) for module in modules)
    seeing = any(re.search(r"\bvisual\b", module) for module in modules)
    biased = any(isinstance(event, Allocate) and BIASED_PRODUCT.match(event.operator) for event in timeline.events)
    return (
        *([Message("assume_workspace_biases", bytes=LT_WORKSPACE_BYTES)] if biased and run.device == "cuda" else []),
        *(
            [Message("assume_multiprocessors", gpu=run.gpu, count=ANY_MULTIPROCESSORS)]
            if run.device == "cuda" and multiprocessors_of(run.gpu) is None and varies_by_card(timeline)
            else []
        ),
        *([Message("assume_linear_reference")] if linear else []),
        *([Message("assume_text_only")] if seeing else []),
        *([Message("assume_four_bits")] if four_bits and run.mode == "train" else []),
    )


def _training(run: Run) -> Iterator[Message]:
    """What is taken for granted of a run that trains."""
    if run.mode != "train":
        return
    lora = Message("trained_lora", rank=run.lora_rank, targets=", ".join(run.lora_targets))
    yield Message(
        "assume_training",
        optimizer=run.optimizer,
        checkpointing=Message("on" if run.checkpointing else "off"),
        trained=lora if run.lora_rank is not None else run.trained or Message("all_parameters"),
    )
    if run.lora_rank is not None:
        yield Message("assume_lora" if run.autocast is None else "assume_lora_autocast")
    if run.accumulate > 1:
        yield Message("assume_accumulation", count=run.accumulate, batch=run.batch)


def on_device(timeline: Timeline, run: Run) -> Timeline:
    """The trace's run as the device sees it: weights laid out by the loader, and the workspaces of matrix products.

    On CPU neither is there, nor what kernels take for themselves on CUDA alone.
    """
    if run.device == "cpu":
        return _without(timeline, _made_by(timeline, *CUDA_SCRATCH))
    timeline = with_sums(timeline, run.gpu)
    if has_cudnn_attention(run.gpu) and run.mode == "train":
        timeline = as_cudnn(timeline) if run.attention == "sdpa" else timeline
    elif has_cudnn_attention(run.gpu):
        timeline = _without(timeline, _log_sum_exps(timeline))
    timeline = _sorting(timeline)
    begins = timeline.stages[1].first_event
    load, rest = timeline.events[:begins], timeline.events[begins:]
    if timeline.cast:
        made = [event for event in load if isinstance(event, Allocate)]
        load = load_and_cast(made, first_id=LOADED_IDS, warm_up=run.loader == "warmup")
    else:
        load = laid_out(load, run.loader)
    events: list[Event] = []
    at = 0
    workspaces = _workspaces(timeline, run)
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
    """The timeline with a cache that grows while it decodes: of which a trace has one leap, to the length before the last step.

    Each step makes every key and value anew, one token longer, and then frees the one before, so that blocks are the remainders
    of freed ones. Up to GROWTHS steps are all made; of more, so many stand for all, for with them the figures of 1,000 tokens on
    an H100 come out as with each of their 998 steps (decode1000-0.6B in benchmarks/recorded).
    Source: transformers 5.23, cache_utils.DynamicLayer.update
    """
    pairs = leap(timeline)
    if not pairs:
        return timeline
    begin = next(stage.first_event for stage in timeline.stages if stage.name == "decode")
    end = begin + 2 * len(pairs)
    events: list[Event] = list(timeline.events[:begin])
    held = {new.id: old.id for old, new in pairs}
    steps = new_tokens - 2
    for number in range(1, GROWTHS + 1):
        tokens = grown_tokens(steps, number)
        if tokens == grown_tokens(steps, number - 1):
            continue
        for old, new in pairs:
            size_bytes = grown_bytes(old.size_bytes, new.size_bytes, steps, number)
            grown = new._replace(id=new.id if number == GROWTHS else number * GROWN_IDS + new.id, size_bytes=size_bytes)
            events += (grown, Free(held[new.id]))
            held[new.id] = grown.id
    events += [
        Free(held.get(event.id, event.id)) if isinstance(event, Free) else event for event in timeline.events[end:]
    ]
    return Timeline(events=tuple(events), stages=timeline.stages)


def leap(timeline: Timeline) -> list[tuple[Allocate, Allocate]]:
    """The cache's storages before and after its leap, with which decoding begins in a trace; none where it has no leap."""
    begin = next((stage.first_event for stage in timeline.stages if stage.name == "decode"), len(timeline.events))
    made = {event.id: event for event in timeline.events[:begin] if isinstance(event, Allocate)}
    before: list[Allocate] = []
    after: list[Allocate] = []
    for event in timeline.events[begin:]:
        storage = made.get(event.id) if isinstance(event, Free) else event
        if storage is None or not storage.module.endswith("attn"):
            break
        (before if isinstance(event, Free) else after).append(storage)
    return list(zip(before, after, strict=True)) if len(before) == len(after) else []


def _workspaces(timeline: Timeline, run: Run) -> list[tuple[int, Allocate]]:
    """What matrix products take for as long as the process lives, and the event that each comes after.

    Every thread has a handle of its own, so that the first backward, which autograd's thread runs, takes one more.
    Source: torch 2.13, aten/src/ATen/cuda/CublasHandlePool.cpp, getCurrentCUDABlasHandle; as recorded in benchmarks/recorded.
    """

    def first(pattern: re.Pattern[str], begins: int) -> int | None:
        events = enumerate(timeline.events[begins:], begins)
        return next((i for i, one in events if isinstance(one, Allocate) and pattern.match(one.operator)), None)

    begins = timeline.stages[1].first_event
    backward = next((stage.first_event for stage in timeline.stages if stage.name == "backward"), None)
    products = [
        (first(MATRIX_PRODUCT, begins), workspace_of(run)),
        (first(BIASED_PRODUCT, begins), LT_WORKSPACE_BYTES),
    ]
    if backward is not None:
        products.append((first(MATRIX_PRODUCT, backward), workspace_of(run)))
    found = [(index, size_bytes) for index, size_bytes in products if index is not None]
    return sorted(
        (index, Allocate(OWN_IDS + number, size, "", WORKSPACE)) for number, (index, size) in enumerate(found, 1)
    )


def _without(timeline: Timeline, gone: Collection[int]) -> Timeline:
    """The timeline less some storages, by id."""
    kept = [index for index, event in enumerate(timeline.events) if event.id not in gone]
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
    """What attention makes beside its output, which cuDNN's does not where nothing is to be derived.

    A trace has flash attention's. Its workspace is left out: 256 bytes, and in decoding the parts of a split KV; so are its seed
    and offset, 8 bytes each. As recorded in benchmarks/recorded.
    """
    return {event.id for _, event in log_sum_exps(timeline)}


def _sorting(timeline: Timeline) -> Timeline:
    """With what CUDA's sort of whole numbers takes, as experts' tokens are sorted: their indices in order, and CUB's scratch."""
    events: list[Event] = []
    added = [0]  # before each event
    before: Event | None = None
    for event in timeline.events:
        events.append(event)
        if (
            isinstance(event, Allocate)
            and isinstance(before, Allocate)
            and event[1:] == before[1:]
            and SORT.match(event.operator)
        ):
            first = SORTED_IDS + 2 * event.id
            sizes = event.size_bytes, sort_scratch_bytes(event.size_bytes)
            made = [
                event._replace(id=first + i, size_bytes=size, operator=SORT_SCRATCH) for i, size in enumerate(sizes)
            ]
            events += (*made, Free(first + 1), Free(first))
        added.append(len(events) - len(added))
        before = event
    stages = tuple(
        replace(stage, first_event=stage.first_event + added[stage.first_event]) for stage in timeline.stages
    )
    return replace(timeline, events=tuple(events), stages=stages)


def sort_scratch_bytes(keys_bytes: int) -> int:
    """CUB's scratch for sorting 8-byte numbers with 8-byte values: both again; a counter of 4 bytes for each of 256 digits and
    4,096 numbers; one of 8 bytes for each digit of 8 passes; the passes' own, in 256 bytes; and what aligns the first.

    The 4,096 are not rounded up, so that sizes grow evenly, and that short ones are sorted without is left out.
    Source: CUB, dispatch_radix_sort.cuh, InvokeOnesweep; torch 2.11, aten/src/ATen/native/cuda/Sort.cpp; as recorded
    """
    return 2 * keys_bytes + -(-keys_bytes // 32) + SORT_CONSTANT_BYTES


def laid_out(events: Iterable[Event], loader: str) -> tuple[Event, ...]:
    """The loading of weights, then of all else."""
    made = [event for event in events if isinstance(event, Allocate)]
    weights = [event for event in made if event.operator == PARAMETER]
    others = [event for event in made if event.operator != PARAMETER]
    laid = load_one_by_one(weights) if loader == "per-tensor" else load_from_warm_up_block(weights, block_id=OWN_IDS)
    return (*laid, *others)


def _cache_uses(timeline: Timeline) -> dict[int, str]:
    """The storages of the KV cache, and of linear attention's states: those that the trace says, else those made in an attention
    module, and alive where a stage of inference ends."""
    if timeline.kept:
        return dict(timeline.kept)
    if any(stage.name == "backward" for stage in timeline.stages):
        return {}
    events = timeline.events
    ends = [*(stage.first_event for stage in timeline.stages[2:]), len(events)]
    freed = {event.id: index for index, event in enumerate(events) if isinstance(event, Free)}
    made = (
        (event, index, freed.get(event.id, len(events)))
        for index, event in enumerate(events)
        if isinstance(event, Allocate)
        and event.module.endswith("attn")
        and event.operator not in (PARAMETER, BUFFER, GATHERED)
    )
    kept = {
        event.id: "state" if event.module.endswith(LINEAR) else "cache"
        for event, begins, ends_at in made
        if any(begins < end <= ends_at for end in ends)
    }
    return {**kept, **dict.fromkeys(_regrown(timeline), "cache")}


def _regrown(timeline: Timeline) -> set[int]:
    """The cache at its full length, which comes to life at the beginning of the decode stage."""
    begin = next((stage.first_event for stage in timeline.stages if stage.name == "decode"), None)
    if begin is None:
        return set()
    found = set()
    for event in timeline.events[begin:]:
        if isinstance(event, Allocate):
            if not event.module.endswith("attn"):
                break
            found.add(event.id)
    return found


def _training_ids(timeline: Timeline) -> dict[int, str]:
    """Gradients: what a backward made that is alive when it is over. Optimizer states: what the optimizer made that stays."""
    if not any(stage.name == "backward" for stage in timeline.stages):
        return {}
    uses = {one.id: "optimizer" for one in living(timeline.events) if one.module == "optimizer"}
    bounds = [*(stage.first_event for stage in timeline.stages), len(timeline.events)]
    for stage, end in zip(timeline.stages, bounds[1:], strict=True):
        if stage.name == "backward":
            made = {event.id for event in timeline.events[stage.first_event : end] if isinstance(event, Allocate)}
            uses |= {one.id: "gradients" for one in living(timeline.events[:end]) if one.id in made}
    return uses


def use_of(event: Allocate, uses: Mapping[int, str]) -> str:
    if event.id >= GROWN_IDS:
        return "cache"
    if event.operator in (PARAMETER, ADAPTER, BUFFER, GATHERED, WORKSPACE):
        return event.operator
    return uses.get(event.id, "activation")


def term_of(use: str) -> str:
    """The term of a footprint that a use belongs to."""
    return TERM_OF_USE.get(use, use)


def _requested(alive: Iterable[Allocate], uses: Mapping[int, str]) -> Counter[str]:
    """Bytes of each use."""
    requested: Counter[str] = Counter()
    for event in alive:
        requested[use_of(event, uses)] += event.size_bytes
    return requested


def _moment(stage: str, requested: Counter[str], rounding_bytes: int) -> Moment:
    by_term = {term_of(use): size_bytes for use, size_bytes in requested.items()}
    return Moment(stage=stage, **{**dict.fromkeys(TERMS, 0), **by_term, "rounding": rounding_bytes})


def _alive(alive: Iterable[Allocate], uses: Mapping[int, str]) -> tuple[Alive, ...]:
    """What was alive, alike ones together (layers' numbers left out), the largest first."""
    storages: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    for event in alive:
        use = use_of(event, uses)
        key = (_of_any_layer(event.module), event.operator) if use == "activation" else (use, "–")
        storages[key] += 1
        sizes[key] += event.size_bytes
    return tuple(
        Alive(component=key[0], operator=key[1], storages=storages[key], size_bytes=size)
        for key, size in sizes.most_common(MOST_ALIVE)
    )


@cache
def _of_any_layer(module: str) -> str:
    return re.sub(r"\.\d+\b", ".*", module) or "–"

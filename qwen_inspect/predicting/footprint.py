"""A run's footprint: its timeline replayed through the caching allocator and broken down by term at the peak and at the end.

No fitted constants: weights are allocated in the loader's order, cuBLAS allocates its workspace at the first matrix product, and
every other byte comes from the trace.
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

# Per cuBLAS handle and stream: 2 x 4096 KiB + 8 x 16 KiB; on Hopper (compute capability 9.0) 32 MiB.
# Source: torch 2.13, aten/src/ATen/cuda/CublasHandlePool.cpp, parseChosenWorkspaceSize.
WORKSPACE_BYTES = 2 * 4096 * 1024 + 8 * 16 * 1024
WORKSPACE_BYTES_HOPPER = 32 * 1024 * 1024
# Names missing from the table, such as variants with other memory: "NVIDIA H100 64GB HBM2".
UNLISTED_HOPPER = re.compile(r"h100|h200|h20\b|h800|gh200|hopper", re.IGNORECASE)
# cuBLASLt's, for products with a bias: 1024 KiB on every card. Counted for a single row too, though that needs none.
# Source: the same file, parseCUDABlasLtWorkspaceSize; torch 2.13, aten/src/ATen/native/cuda/Blas.cpp, addmm_out_cuda_impl
LT_WORKSPACE_BYTES = 1024 * 1024
MATRIX_PRODUCT = re.compile(r"(aten\.(mm|addmm|bmm|baddbmm|_grouped_mm)|bitsandbytes\.gemm_4bit\.(default|bias))\b")
BIASED_PRODUCT = re.compile(rf"aten\.addmm\b|{re.escape(BIASED_GEMM_4BIT)}")
SORT = re.compile(r"aten\.sort\b")
SORT_SCRATCH = "aten.sort.scratch"
SORT_CONSTANT_BYTES = 8 * 256 * 8 + 256 + 255
MOST_ALIVE = 12

# Operators of allocations that are not in the trace, and the first of their ids.
PARAMETER, BUFFER, WORKSPACE = "parameter", "buffer", "workspace"
LINEAR = "linear_attn"  # the module of linear attention in a layer
OWN_IDS = 1 << 60
LOADED_IDS = OWN_IDS + (3 << 40)  # of weights loaded in another form first
DEFAULT_RUN = Run()
SORTED_IDS = 1 << 59  # plus twice the id of the sort's output indices
GROWN_IDS = 1 << 61  # times the growth's number, added to the id of the final storage
# Uses whose term has another name.
TERM_OF_USE = {
    PARAMETER: "weights",
    ADAPTER: "adapters",
    BUFFER: "buffers",
    GATHERED: "gathered",
    "activation": "activations",
}


def workspace_bytes(gpu: str) -> int:
    """The size of cuBLAS's workspace on a card of this name; sm_80's for unknown names."""
    return WORKSPACE_BYTES_HOPPER if is_hopper(gpu) else WORKSPACE_BYTES


def is_hopper(gpu: str) -> bool:
    """Whether a card of this name has compute capability 9.0."""
    capability = compute_capability(gpu)
    return UNLISTED_HOPPER.search(gpu) is not None if capability is None else capability == (9, 0)


def has_cudnn_attention(gpu: str) -> bool:
    """Whether sdpa runs cuDNN's kernel on a card of this name: PyTorch prefers it on Hopper, with a mask too; as recorded in
    benchmarks/recorded.

    Source: torch 2.11, check_prefer_cudnn_attention in aten/src/ATen/native/transformers/cuda/sdp_utils.cpp
    """
    return is_hopper(gpu)


def workspace_of(run: Run) -> int:
    """One cuBLAS handle's workspace: as measured on this card, else by the card's name.

    A measurement may also cover two handles (training) and cuBLASLt's workspace (biases); then the name decides.
    """
    handle_bytes = workspace_bytes(run.gpu)
    if run.calibration is None or run.calibration.workspace_bytes in (
        handle_bytes + LT_WORKSPACE_BYTES,
        2 * handle_bytes,
        2 * handle_bytes + LT_WORKSPACE_BYTES,
    ):
        return handle_bytes
    return run.calibration.workspace_bytes


def _context_of(run: Run) -> int | None:
    return None if run.calibration is None else run.calibration.context_bytes


def traced_footprint(timeline: Timeline, run: Run, *, provenance: str, course_points: int = 0) -> Footprint:
    """Replays a timeline whose first stage is "load", and breaks down what is alive at the peak and at the end.

    course_points: if not 0, also the memory over time in about that many points.
    """
    timeline = with_all_turns(timeline, run)
    whole = on_device(growing(timeline, run.new_tokens), run) if run.device == "cuda" else on_device(timeline, run)
    replayed = replay(whole, _allocator(run), with_course=course_points > 0)
    if replayed.out_of_memory_event is not None:  # capacity is unlimited: the sizes exceed the address space
        raise UsageError("memory_beyond_addresses")
    assert replayed.peak_event is not None  # a model has weights
    uses = uses_of(timeline)
    at_peak = [entry.request for entry in replayed.alive]
    stage = [stage.name for stage in whole.stages if stage.first_event <= replayed.peak_event][-1]
    return Footprint(
        method="trace",
        steady=_moment(whole.stages[-1].name, _requested(living(whole.events), uses), replayed.end.rounding_bytes),
        peak=_moment(stage, _requested(at_peak, uses), replayed.at_peak.rounding_bytes),
        peak_reserved=replayed.peak.reserved_bytes if run.device == "cuda" else None,
        context_bytes=_context_of(run),
        context_range_bytes=context_range(run),
        alive=_alive(at_peak, uses),
        assumptions=(*assumptions(run), *_part_assumptions(timeline, run)),
        provenance=provenance,
        course=_course(whole, replayed, uses, course_points) if course_points else None,
    )


def _allocator(run: Run) -> Allocator:
    return HostAllocator() if run.device == "cpu" else Allocator(read_settings(run.allocator))


def uses_of(timeline: Timeline) -> dict[int, str]:
    """Uses by id of the storages that are more than activations: "cache", "state", "gradients" or "optimizer"."""
    return {**_cache_uses(timeline), **_training_ids(timeline)}


def _course(whole: Timeline, replayed: Replay, uses: Mapping[int, str], points: int) -> Course:
    from .course import LOADER, course_of, thinned

    def term(event: Allocate) -> str:
        return LOADER if event.operator == WARM_UP else term_of(use_of(event, uses))

    return thinned(course_of(whole, replayed.course, term), most_points=points)


def formula_footprint(
    tree: Module,
    cache: CacheReport,
    run: Run,
    *,
    weights: Sequence[Tensor] | None = None,
    matrices: Sequence[TrainedTensor] = (),
    unknown: tuple[Message, ...] = (),
) -> Footprint:
    """The bytes of weights, buffers, the full cache, optimizer states and the workspace at the end of a run.

    No peak, because no formula gives the activations. A training step ends with the gradients dropped. Source: transformers 5.23,
    Trainer

    weights: the loaded tensors, if not the tree's own. matrices: LoRA's, if they train. unknown: why no more is known; listed
    with the assumptions.
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
    """`formula_footprint` for weights of these sizes."""
    requests = _formula_sizes(weights_bytes, tree, cache, run, matrices)
    requested: Counter[str] = Counter()
    for use, size_bytes in requests:
        requested[use] += size_bytes
    try:
        rounding = _rounding_bytes([size_bytes for _, size_bytes in requests], sum(weights_bytes), run)
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
    """Allocated minus requested bytes for requests of these sizes, after the loader's warm-up block if there is one."""
    if run.device == "cpu":
        return 0
    from .reserved import allocated_bytes  # not needed for a traced run

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
    """The requests that `formula_footprint` counts, and their uses by id, as `uses_of` gives them for a trace.

    The cache's requests are in layer order: K and V of each layer that has them, then the layer's states.
    """
    sizes = [tensor.size_bytes for tensor in (each_tensor(tree) if weights is None else weights)]
    events = tuple(
        Allocate(index, size, "attn", use) for index, (use, size) in enumerate(_formula_sizes(sizes, tree, cache, run))
    )
    kept = ("cache", "state", "gradients", "optimizer")
    return events, {event.id: event.operator for event in events if event.operator in kept}


def _formula_sizes(
    weights_bytes: Iterable[int],
    tree: Module,
    cache: CacheReport,
    run: Run,
    matrices: Sequence[TrainedTensor] = (),
) -> list[tuple[str, int]]:
    """The use and the bytes of each request, in order."""
    requests = [(PARAMETER, size) for size in weights_bytes]
    requests += [(ADAPTER, matrix.tensor.size_bytes) for matrix in matrices]
    requests += [(BUFFER, buffer.size_bytes) for buffer in each_buffer(tree)]
    for layer in () if run.mode == "train" else cache.layers:
        size = cache_bytes(layer, run) - run.batch * layer.fixed_bytes
        if layer.bytes_per_token:
            requests += [("cache", size // 2), ("cache", size - size // 2)]  # K and V
        requests += [("state", run.batch * state) for state in layer.states_bytes]
    if run.mode == "train":
        from .training import optimizer_sizes, trained_of

        trained = trained_of(tree, run, matrices)
        requests += [("optimizer", size) for size in optimizer_sizes(trained, run.optimizer)]
        requests += [("gradients", tensor.size_bytes) for tensor in trained if run.optimizer == "none"]
    if run.device == "cuda":
        requests.append((WORKSPACE, workspace_of(run)))
        requests += [(WORKSPACE, LT_WORKSPACE_BYTES)] if _adds_biases(tree) else []
        requests += [(WORKSPACE, workspace_of(run))] if run.mode == "train" else []
    return requests


def _adds_biases(module: Module) -> bool:
    """Whether a linear module has a bias, outside the vision tower, which a text prompt does not run."""
    own = module.class_name in ("Linear", "Conv1D") and any(tensor.name == "bias" for tensor in module.tensors)
    return own or any(_adds_biases(child) for child in module.children if child.name != "visual")


def cache_bytes(layer: CacheLayer, run: Run) -> int:
    """Bytes of the storages of a layer's cache at the end of a run, its states included."""
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
    """The footprint of a model that cannot be loaded as designed: the bytes of its tensors as stored.

    tree, cache, run: if the design is known and only the weights are not; adds buffers and the cache at the end.
    """
    steady = Moment(stage="load", weights=sum(tensor.size_bytes for tensor in tensors))
    if tree is not None and run is not None and cache is not None and run.mode != "train":
        used: Counter[str] = Counter()
        for use, size_bytes in _formula_sizes((), tree, cache, run):
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
    """The assumptions of a prediction for `run`, as sentences."""
    if run.device == "cpu":
        return (
            Message("assume_host"),
            *_kernel_assumptions(run),
            *_static_assumptions(run),
            *_training_assumptions(run),
        )
    return (
        Message(f"assume_loader_{run.loader.replace('-', '_')}"),
        Message(
            "assume_workspace_training" if run.mode == "train" else "assume_workspace",
            bytes=workspace_of(run),
            gpu=run.gpu,
        ),
        *_kernel_assumptions(run),
        *_static_assumptions(run),
        *_caller_assumptions(run),
        *_training_assumptions(run),
        *([Message("assume_cache_format", format=run.cache_format)] if run.cache_format != "auto" else []),
        *([Message("assume_allocator", settings=run.allocator)] if run.allocator else []),
        _uncalibrated_assumption(run) if run.calibration is None else _calibrated_assumption(run.calibration),
    )


def _static_assumptions(run: Run) -> tuple[Message, ...]:
    return (Message("assume_static_cache", tokens=run.cached_tokens),) if run.cache == "static" else ()


def _kernel_assumptions(run: Run) -> Iterator[Message]:
    if not run.padded:
        yield Message("assume_kernel", kernel=run.attention)
    elif not run.attention.startswith("flash"):  # with which no padded run is predicted
        yield Message("assume_kernel_padded", kernel=run.attention, tokens=run.prompt_tokens)


def mask_bytes(run: Run) -> int:
    """Block size of a prompt's attention mask (one int64 per token), which a caller of `generate` keeps until it returns."""
    return -(-8 * run.batch * run.prompt_tokens // ROUNDING_BYTES) * ROUNDING_BYTES


def _caller_assumptions(run: Run) -> Iterator[Message]:
    """Memory of a caller's own `generate` that is not counted: its mask, which the model does not get if it masks nothing.

    Source: transformers 5.23, generation/utils.py, _prepare_special_tokens: one int64 per special token, for this call alone.
    """
    if run.mode == "generate" and not run.padded:  # else the mask is counted
        tokens = run.batch * run.prompt_tokens
        yield Message("assume_caller", tokens=tokens, bytes=mask_bytes(run), token_bytes=ROUNDING_BYTES)


def _uncalibrated_assumption(run: Run) -> Message:
    low, high = map(shown_size, context_range(run))
    return Message("assume_context", low=low, high=high)


def _calibrated_assumption(calibration: Calibration) -> Message:
    key = {
        "gpu": calibration.gpu,
        "driver": calibration.driver,
        "torch": calibration.torch,
        "transformers": calibration.transformers,
    }
    return Message("assume_calibrated", date=calibration.date, context=shown_size(calibration.context_bytes), **key)


def _part_assumptions(timeline: Timeline, run: Run) -> tuple[Message, ...]:
    """Assumptions about parts that only some models have."""
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


def _training_assumptions(run: Run) -> Iterator[Message]:
    """Assumptions of a training run."""
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
    """The trace's run as the device sees it: with the loader's requests, matrix products' workspaces and kernels' scratch.

    On CPU there is none of these; scratch that only CUDA's kernels need is removed.
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
        loaded = [event for event in load if isinstance(event, Allocate)]
        load = load_and_cast(loaded, first_id=LOADED_IDS, warm_up=run.loader == "warmup")
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
    current_ids = {new.id: old.id for old, new in pairs}
    steps = new_tokens - 2
    for number in range(1, GROWTHS + 1):
        tokens = grown_tokens(steps, number)
        if tokens == grown_tokens(steps, number - 1):
            continue
        for old, new in pairs:
            size_bytes = grown_bytes(old.size_bytes, new.size_bytes, steps, number)
            grown = new._replace(id=new.id if number == GROWTHS else number * GROWN_IDS + new.id, size_bytes=size_bytes)
            events += (grown, Free(current_ids[new.id]))
            current_ids[new.id] = grown.id
    events += [
        Free(current_ids.get(event.id, event.id)) if isinstance(event, Free) else event
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
        if storage is None or not storage.module.endswith("attn"):
            break
        (before if isinstance(event, Free) else after).append(storage)
    return list(zip(before, after, strict=True)) if len(before) == len(after) else []


def _workspaces(timeline: Timeline, run: Run) -> list[tuple[int, Allocate]]:
    """The workspaces that matrix products allocate for the life of the process, each with the index of the event before it.

    Every thread has its own handle, so the first backward, which runs in autograd's thread, allocates another one.
    Source: torch 2.13, aten/src/ATen/cuda/CublasHandlePool.cpp, getCurrentCUDABlasHandle; as recorded in benchmarks/recorded.
    """

    def first(pattern: re.Pattern[str], begins: int) -> int | None:
        events = enumerate(timeline.events[begins:], begins)
        return next((i for i, event in events if isinstance(event, Allocate) and pattern.match(event.operator)), None)

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


def _sorting(timeline: Timeline) -> Timeline:
    """Adds the scratch of CUDA's integer sort, used to sort tokens by expert: the indices in order, and CUB's own scratch."""
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
            scratch = [
                event._replace(id=first + i, size_bytes=size, operator=SORT_SCRATCH) for i, size in enumerate(sizes)
            ]
            events += (*scratch, Free(first + 1), Free(first))
        added.append(len(events) - len(added))
        before = event
    stages = tuple(
        replace(stage, first_event=stage.first_event + added[stage.first_event]) for stage in timeline.stages
    )
    return replace(timeline, events=tuple(events), stages=stages)


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


def _cache_uses(timeline: Timeline) -> dict[int, str]:
    """The storages of the KV cache and of linear attention's states: those that the trace marks, else those that an attention
    module allocated and that are alive at the end of an inference stage."""
    if timeline.kept:
        return dict(timeline.kept)
    if any(stage.name == "backward" for stage in timeline.stages):
        return {}
    events = timeline.events
    ends = [*(stage.first_event for stage in timeline.stages[2:]), len(events)]
    freed = {event.id: index for index, event in enumerate(events) if isinstance(event, Free)}
    storages = (
        (event, index, freed.get(event.id, len(events)))
        for index, event in enumerate(events)
        if isinstance(event, Allocate)
        and event.module.endswith("attn")
        and event.operator not in (PARAMETER, BUFFER, GATHERED)
    )
    kept = {
        event.id: "state" if event.module.endswith(LINEAR) else "cache"
        for event, begins, ends_at in storages
        if any(begins < end <= ends_at for end in ends)
    }
    return {**kept, **dict.fromkeys(_regrown(timeline), "cache")}


def _regrown(timeline: Timeline) -> set[int]:
    """Ids of the full-length cache, allocated at the start of the decode stage."""
    begin = next((stage.first_event for stage in timeline.stages if stage.name == "decode"), None)
    if begin is None:
        return set()
    grown = set()
    for event in timeline.events[begin:]:
        if isinstance(event, Allocate):
            if not event.module.endswith("attn"):
                break
            grown.add(event.id)
    return grown


def _training_ids(timeline: Timeline) -> dict[int, str]:
    """Gradients: made by a backward and alive at its end. Optimizer states: made by the optimizer and never freed."""
    if not any(stage.name == "backward" for stage in timeline.stages):
        return {}
    uses = {allocation.id: "optimizer" for allocation in living(timeline.events) if allocation.module == "optimizer"}
    bounds = [*(stage.first_event for stage in timeline.stages), len(timeline.events)]
    for stage, end in zip(timeline.stages, bounds[1:], strict=True):
        if stage.name == "backward":
            backward_ids = {
                event.id for event in timeline.events[stage.first_event : end] if isinstance(event, Allocate)
            }
            uses |= {
                allocation.id: "gradients"
                for allocation in living(timeline.events[:end])
                if allocation.id in backward_ids
            }
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
    """Requested bytes by use."""
    requested: Counter[str] = Counter()
    for event in alive:
        requested[use_of(event, uses)] += event.size_bytes
    return requested


def _moment(stage: str, requested: Counter[str], rounding_bytes: int) -> Moment:
    by_term = {term_of(use): size_bytes for use, size_bytes in requested.items()}
    return Moment(stage=stage, **{**dict.fromkeys(TERMS, 0), **by_term, "rounding": rounding_bytes})


def _alive(alive: Iterable[Allocate], uses: Mapping[int, str]) -> tuple[Alive, ...]:
    """What was alive, grouped by component without layer numbers, largest first."""
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

"""A run's footprint: its timeline replayed through the caching allocator and broken down by term at the peak and at the end.

No fitted constants: weights are allocated in the loader's order, cuBLAS allocates its workspace at the first matrix product, and
every other byte comes from the trace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache

from ..checkpoint import Tensor
from ..errors import UsageError
from ..language import Message
from ..results.cache import CacheLayer, CacheReport
from ..results.memory import TERMS, Alive, Footprint, Method, Moment, Run, context_range
from ..results.timeline import ADAPTER, Allocate, Timeline, living
from ..spec import Module, each_buffer, each_tensor
from ..typed import TYPE_CHECKING
from ..values import replace
from .allocation.allocator import Allocator, HostAllocator, OutOfMemory
from .allocation.allocator_settings import read_settings
from .allocation.on_device import BUFFER, PARAMETER, WORKSPACE, growing, on_device
from .allocation.replay import WARM_UP, Replay, least_reserved, replay_folded, reserved_up_to, warm_up_bytes
from .allocation.reserved import can_be_worked_out
from .allocation.uses import term_of, use_of, uses_of
from .allocation.workspaces import LT_WORKSPACE_BYTES, workspace_of
from .assumptions import assumptions, part_assumptions, timeline_assumptions
from .idle_towers import idle_components
from .traces.turns import with_all_turns

if TYPE_CHECKING:
    from ..results.course import Course
    from ..results.lora import TrainedTensor
    from .allocation.quick_replay import Peak
    from .allocation.region_steps import Steps
    from .layered.layered_run import LayeredRun

MOST_ALIVE = 12
DEFAULT_RUN = Run()
NONE_SHARED: Mapping[int, int] = {}


def _context_of(run: Run) -> int | None:
    return None if run.calibration is None else run.calibration.context_bytes


def traced_footprint(timeline: Timeline, run: Run, *, provenance: str, course_points: int = 0) -> Footprint:
    """Replays a timeline whose first stage is "load", and breaks down what is alive at the peak and at the end.

    course_points: if not 0, also the memory over time in about that many points.
    """
    from .allocation.quick_replay import quick_peak  # not needed for a layered run

    timeline = with_all_turns(timeline, run)
    whole = whole_on_device(timeline, run)
    settings, course = read_settings(run.allocator), None
    quick = run.device == "cuda" and not course_points and can_be_worked_out(settings)
    peak, uses = quick_peak(whole, settings) if quick else None, uses_of(timeline)
    if peak is None:
        whole, replayed = replay_folded(whole, lambda: _allocator(run), with_course=course_points > 0)
        peak = _peak(replayed)
        course = _course(whole, replayed, uses, course_points) if course_points else None
    stage = [stage.name for stage in whole.stages if stage.first_event <= peak.event][-1]
    footprint = _footprint_of(
        run,
        ends=(stage, whole.stages[-1].name),
        alive=(living(whole.events[: peak.event + 1]), living(whole.events)),
        rounding=(peak.rounding_bytes, peak.end_rounding_bytes),
        reserved_bytes=peak.reserved_bytes,
        uses=uses,
    )
    parts = timeline_assumptions(timeline, run)
    return replace(footprint, assumptions=(*assumptions(run), *parts), provenance=provenance, course=course)


def layered_footprint(layered: LayeredRun, run: Run) -> Footprint | None:
    """`traced_footprint` of a run in pieces on its device; None if only the whole run tells it."""
    settings = read_settings(run.allocator)
    if not can_be_worked_out(settings):
        return None
    from .layered.layered_replay import layered_peak
    from .layered.layered_run import NotLayered

    try:
        peak = layered_peak(layered, settings, run.new_tokens)
    except NotLayered:
        return None
    footprint = _footprint_of(
        run,
        ends=(peak.stage, layered.stages[-1][0]),
        alive=(peak.at_peak, peak.at_end),
        rounding=(peak.rounding_bytes, peak.end_rounding_bytes),
        reserved_bytes=peak.reserved_bytes,
        uses=peak.uses,
        storages=peak.storages,
    )
    parts = part_assumptions(layered.modules, layered.operators, run)
    return replace(footprint, assumptions=(*assumptions(run), *parts), provenance=layered.made_by)


def _footprint_of(
    run: Run,
    *,
    ends: tuple[str, str],
    alive: tuple[Sequence[Allocate], Sequence[Allocate]],
    rounding: tuple[int, int],
    reserved_bytes: int,
    uses: Mapping[int, str],
    storages: Mapping[int, int] = NONE_SHARED,
) -> Footprint:
    """Of a traced run, from what is at its peak and at its end. ends: the stages. alive: requests. rounding: bytes. storages: how
    many a request stands for, by its id."""
    return Footprint(
        method="trace",
        steady=_moment(ends[1], _requested(alive[1], uses), rounding[1]),
        peak=_moment(ends[0], _requested(alive[0], uses), rounding[0]),
        peak_reserved=reserved_bytes if run.device == "cuda" else None,
        context_bytes=_context_of(run),
        context_range_bytes=context_range(run),
        alive=_alive(alive[0], uses, storages),
        assumptions=(),
        provenance="",
    )


def _peak(replayed: Replay) -> Peak:
    if replayed.out_of_memory_event is not None:  # capacity is unlimited: the sizes exceed the address space
        raise UsageError("memory_beyond_addresses")
    assert replayed.peak_event is not None  # a model has weights
    from .allocation.quick_replay import Peak

    return Peak(
        event=replayed.peak_event,
        rounding_bytes=replayed.at_peak.rounding_bytes,
        end_rounding_bytes=replayed.end.rounding_bytes,
        reserved_bytes=replayed.peak.reserved_bytes,
    )


def whole_on_device(timeline: Timeline, run: Run) -> Timeline:
    timeline = on_device(timeline, run)
    return growing(timeline, run.new_tokens) if run.device == "cuda" and run.mode != "train" else timeline


def reserved_within(timeline: Timeline, run: Run, most_bytes: int, steps: Steps) -> int:
    """`peak_reserved` of the run's footprint on a GPU; if more than `most_bytes`, some figure above that, known sooner.

    steps: of loops, known from other runs of the same trace.
    """
    from .allocation.folded_replay import folded_reserved

    whole, allocator = whole_on_device(with_all_turns(timeline, run), run), _allocator(run)
    least = least_reserved(whole, allocator.settings)
    if least > most_bytes:
        return least
    is_usual = can_be_worked_out(allocator.settings)
    quick = folded_reserved(whole, allocator.settings, most_bytes, steps) if is_usual else None
    return reserved_up_to(whole, allocator, most_bytes) if quick is None else quick


def _allocator(run: Run) -> Allocator:
    return HostAllocator() if run.device == "cpu" else Allocator(read_settings(run.allocator))


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
    weights_bytes: Sequence[int] | None = None,
    matrices: Sequence[TrainedTensor] = (),
    unknown: tuple[Message, ...] = (),
) -> Footprint:
    """The bytes of weights, buffers, the full cache, optimizer states and the workspace at the end of a run.

    No peak, because no formula gives the activations. A training step ends with the gradients dropped. Source: transformers 5.23,
    Trainer

    weights_bytes: of each loaded tensor, if not the tree's own. matrices: LoRA's, if they train. unknown: why no more is
    known; listed with the assumptions.
    """
    sizes = bytes_of(each_tensor(tree)) if weights_bytes is None else weights_bytes
    if (
        cache.source_bytes_per_token and run.mode != "train"
    ):  # the encoder's outputs are kept too, and in no formula here
        return stored_footprint(sizes, "")
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
    others = _formula_sizes((), tree, cache, run, matrices)
    requested: Counter[str] = Counter({PARAMETER: sum(weights_bytes)})  # of a mixture of experts, hundreds of thousands
    for use, size_bytes in others:
        requested[use] += size_bytes
    sizes = [*weights_bytes, *(size_bytes for _, size_bytes in others)]
    try:
        rounding = _rounding_bytes(sizes, requested[PARAMETER], run)
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
    from .allocation.reserved import allocated_after_loading  # not needed for a traced run

    warm_up = warm_up_bytes(weights_bytes) if run.loader == "warmup" else 0
    return allocated_after_loading(sizes, read_settings(run.allocator), warm_up_bytes=warm_up) - sum(sizes)


def formula_requests(
    tree: Module,
    cache: CacheReport,
    run: Run,
    *,
    weights_bytes: Sequence[int] | None = None,
) -> tuple[tuple[Allocate, ...], dict[int, str]]:
    """The requests that `formula_footprint` counts, and their uses by id, as `uses_of` gives them for a trace.

    The cache's requests are in layer order: K and V of each layer that has them, then the layer's states.
    """
    sizes = bytes_of(each_tensor(tree)) if weights_bytes is None else weights_bytes
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
        from .training import embedded_in, optimizer_sizes, trained_of

        trained = trained_of(tree, run, matrices)
        sizes = optimizer_sizes(trained, run.optimizer, embedded=embedded_in(tree), loop=run.loop)
        requests += [("optimizer", size) for size in sizes]
        copied = (*weights_bytes, *(buffer.size_bytes for buffer in each_buffer(tree)))
        requests += [("optimizer", size) for size in copied if run.loop.ema]
        kept = run.optimizer == "none" or run.loop.keep_gradients
        requests += [("gradients", tensor.size_bytes) for tensor in trained if kept]
    if run.device == "cuda":
        requests.append((WORKSPACE, workspace_of(run)))
        requests += [(WORKSPACE, LT_WORKSPACE_BYTES)] if _adds_biases(tree, idle_components(run)) else []
        requests += [(WORKSPACE, workspace_of(run))] if run.mode == "train" else []
    return requests


def _adds_biases(module: Module, idle: Collection[str]) -> bool:
    """Whether a linear module has a bias, outside of the components that the run leaves idle."""
    own = module.class_name in ("Linear", "Conv1D") and any(tensor.name == "bias" for tensor in module.tensors)
    return own or any(_adds_biases(child, idle) for child in module.children if child.component not in idle)


def cache_bytes(layer: CacheLayer, run: Run) -> int:
    """Bytes of the storages of a layer's cache at the end of a run, its states included."""
    if run.cache == "static":
        return run.batch * layer.static_bytes(run.cached_tokens)
    fed_last = 1 if run.cached_tokens > run.prompt_tokens else run.prompt_tokens
    return run.batch * layer.storage_bytes(run.cached_tokens, fed_last=fed_last)


def bytes_of(tensors: Iterable[Tensor]) -> list[int]:
    return [tensor.size_bytes for tensor in tensors]


def stored_footprint(
    weights_bytes: Sequence[int],
    files: str,
    *,
    tree: Module | None = None,
    cache: CacheReport | None = None,
    run: Run | None = None,
) -> Footprint:
    """The footprint of a model that cannot be loaded as designed: the bytes of its tensors as stored.

    tree, cache, run: if the design is known and only the weights are not; adds buffers and the cache at the end.
    """
    steady = Moment(stage="load", weights=sum(weights_bytes))
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


def _requested(alive: Iterable[Allocate], uses: Mapping[int, str]) -> Counter[str]:
    """Requested bytes by use."""
    requested: Counter[str] = Counter()
    for event in alive:
        requested[use_of(event, uses)] += event.size_bytes
    return requested


def _moment(stage: str, requested: Counter[str], rounding_bytes: int) -> Moment:
    by_term = {term_of(use): size_bytes for use, size_bytes in requested.items()}
    return Moment(stage=stage, **{**dict.fromkeys(TERMS, 0), **by_term, "rounding": rounding_bytes})


def _alive(alive: Iterable[Allocate], uses: Mapping[int, str], of: Mapping[int, int]) -> tuple[Alive, ...]:
    """What was alive, grouped by component without layer numbers, largest first. of: so many storages each."""
    storages: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    for event in alive:
        use = use_of(event, uses)
        key = (_of_any_layer(event.module), event.operator) if use == "activation" else (use, "–")
        storages[key] += of.get(event.id, 1)
        sizes[key] += event.size_bytes
    return tuple(
        Alive(component=key[0], operator=key[1], storages=storages[key], size_bytes=size)
        for key, size in sizes.most_common(MOST_ALIVE)
    )


@cache
def _of_any_layer(module: str) -> str:
    first, *others = module.split(".")
    return ".".join([first, *("*" if part.isdecimal() else part for part in others)]) or "–"

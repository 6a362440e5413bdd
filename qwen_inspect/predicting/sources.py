"""Where a run's trace comes from: composed from its family's, kept of an earlier run, or made now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache

from .. import __version__
from ..digests import sha256_hex
from ..errors import UnavailableError, UnsupportedError
from ..loaders import header_cache
from ..progress import working
from ..results.cache import CacheReport
from ..results.memory import Mode, Run
from ..results.model import Report
from ..results.timeline import Allocate, Timeline
from ..spec import LinearAttention, ModelSpec, Module, MoeMlp, SlidingAttention, each_module
from ..standard import json
from ..tracing import versions
from ..typed import TYPE_CHECKING, Any, NamedTuple
from ..values import dataclass, field, replace
from .allocation.on_device import PARAMETER
from .allocation.workspaces import has_cudnn_attention
from .families.family_file import read
from .families.family_trace import (
    Composed,
    FamilyTrace,
    Loaded,
    buffers_bytes_of,
    halves_of,
    loaded_bytes_of,
    loaded_of,
)
from .footprint import traced_footprint
from .traces.class_rules import decoder_of
from .traces.kept_trace import SAMPLES, WITNESS, KeptTrace, Point, dump, fit, load
from .traces.outline import UNRELATED, Outline, options_of, outline_of
from .traces.segments import deepen, fixed
from .traces.token_loops import REPEATED

if TYPE_CHECKING:
    from ..results.ranks import Place
    from ..tracing.bases import Base
    from .layered.layered_run import LayeredRun
    from .training_plan import Plan

SHALLOW = 3  # layers of a trace that stands for any number of equal ones


def with_kernel(run: Run, report: Report) -> Run:
    """The run with "auto" replaced by the kernel that `from_pretrained` chooses for this model, if the model is known.

    UnsupportedError for sdpa if the class does not support it.
    """
    if report.design is None:
        return run
    spec = report.spec
    if run.attention == "sdpa" != spec.kernel:
        raise UnsupportedError("no_sdpa", class_name=spec.class_name, kernel=spec.kernel)
    return replace(run, attention=spec.kernel) if run.attention == "auto" else run


def training_timeline(report: Report, plan: Plan) -> tuple[Timeline, str]:
    """The run's trace and the versions that made it."""
    from .families.family_training import MICRO_BATCHES, learnt_training

    if (composed := learnt_training(report, plan)) is not None:
        return composed.at(point_of(plan.run)), composed.made_by
    first = replace(plan.run, accumulate=min(plan.run.accumulate, MICRO_BATCHES))
    return traced_now(report, first, plan.four_bits), installed_versions()


class TrainingOfAny(NamedTuple):
    """run: as planned. turns: how many the loops over chunks have, 0 if there are none. learnt: from a family's trace, by which a
    single run is predicted too."""

    run: Run
    trace: KeptTrace
    turns: int
    learnt: bool


def training_of_any(report: Report, run: Run) -> TrainingOfAny | None:
    """The training run with polynomials for sizes, for every length with the same events as the run's, and for one sequence or
    for any number of several; None if there is none."""
    from .families.family_training import MICRO_BATCHES, training_trace_of_any
    from .families.shallow_training import composed_with_turns, question_of
    from .traces.training_turns import is_chunked, turns_of_any
    from .training_plan import plan_of

    plan = plan_of(report, replace(run, accumulate=min(run.accumulate, MICRO_BATCHES)))
    if (composed := training_trace_of_any(report, plan)) is not None:
        turns = turns_of_any(run.prompt_tokens) if is_chunked(report) else 0
        return TrainingOfAny(plan.run, composed, turns, learnt=True)
    with working("working_trace", batch=run.batch, tokens=run.prompt_tokens):
        question = question_of(report, plan, trace_request(plan.run, plan.four_bits), installed_versions())
        if question.above is None:
            return None
        composed, turns = composed_with_turns(question, of_any=True)
    turns = turns if is_chunked(report) else 0
    return None if composed is None else TrainingOfAny(plan.run, composed, turns, learnt=False)


def timeline_of(report: Report, run: Run, place: Place | None = None, base: Base | None = None) -> tuple[Timeline, str]:
    """The run's trace and the versions that made it: shipped or kept, else traced now and kept if possible.

    place: one rank's, if several share the model. base: the layout of its weights, if it is another than theirs on one device.
    For quantised weights whose kernels cannot be traced: the lower bound.
    """
    run = with_kernel(run, report)
    if base is not None:
        return traced_now(report, run, base, place), versions()
    timeline, provenance, _ = timeline_and_base(report, run, place)
    return timeline, provenance


def timeline_and_base(report: Report, run: Run, place: Place | None = None) -> tuple[Timeline, str, Base | None]:
    """`timeline_of`, and bitsandbytes' layout of the weights if the trace contains its kernels."""
    if report.known.quantised is None:
        return *_dense_timeline(report, run, place), None
    from .quantised import base_of

    weights_bytes = report.known.loaded_bytes
    base = base_of(report)
    if base is not None:
        with suppress(UnavailableError):  # without bitsandbytes: like any other quantisation
            timeline = traced_now(report, run, base, place)
            # Nested scales have an offset on the device, which files store as text.
            offsets = sum(weight.name.endswith(".nested_absmax") for weight in report.known.weights or ())
            if _loaded_bytes(timeline) == sum(weights_bytes) + 4 * offsets:
                return timeline, versions(), base
    config = {key: value for key, value in (report.config or {}).items() if key != "quantization_config"}
    timeline, provenance = _dense_timeline(replace(report, config=config), run, place)
    from .packed import packed

    return packed(timeline, weights_bytes), provenance, None


def _loaded_bytes(timeline: Timeline) -> int:
    return sum(
        event.size_bytes for event in timeline.events if isinstance(event, Allocate) and event.operator == PARAMETER
    )


def _dense_timeline(report: Report, run: Run, place: Place | None) -> tuple[Timeline, str]:
    if place is None and (composed := family_trace(report, run)) is not None:
        return composed.trace.at(point_of(run)), composed.trace.made_by
    if place is None and (seeing := image_trace(report, run)) is not None:
        return seeing
    if _is_kept(report.spec, run, place) and (kept := kept_trace(report, run.attention, place, run.batch)) is not None:
        return kept.at(point_of(run)), kept.made_by
    return traced_now(report, run, place=place), versions()


def traced_now(report: Report, run: Run, base: Base | None = None, place: Place | None = None) -> Timeline:
    """`_traced`, cached: predictions for several cards share one trace."""
    dependencies = dict(report.config or {}), repr(report.spec), repr(trace_request(run, base)), repr(place)
    key = json.dumps(dependencies, sort_keys=True, default=str)
    return _traced_once(_Untraced(key=key, report=report, run=run, base=base, place=place))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Untraced:
    """A run to trace. key: everything that its events depend on, which the card is not part of."""

    key: str
    report: Report = field(compare=False)
    run: Run = field(compare=False)
    base: Base | None = field(compare=False)
    place: Place | None = field(compare=False)


@lru_cache(maxsize=16)
def _traced_once(untraced: _Untraced) -> Timeline:
    with working("working_trace", batch=untraced.run.batch, tokens=untraced.run.prompt_tokens):
        return _traced(untraced)


def _traced(untraced: _Untraced) -> Timeline:
    """The trace of the whole model; for a hybrid, whose layers are slow to trace, and for a prompt with images, of which a search
    needs many, composed from that of a few layers.
    """
    from ..tracing.trace import trace

    report, run, place = untraced.report, untraced.run, untraced.place
    spec, config, request = report.spec, report.config or {}, trace_request(run, untraced.base)
    if spec.built:
        from ..architectures.generic import buildable

        config = buildable(config)
    if run.mode == "train" and place is None:
        from .families.shallow_training import composed_trace, question_of
        from .training_plan import plan_of

        deep = composed_trace(question_of(report, plan_of(report, run), request, installed_versions()))
        if deep is not None:
            return deep.at(point_of(run))
    if run.media is not None and run.mode != "train" and place is None:
        from .families.few_layers import traced_in_few_layers

        with suppress(UnsupportedError):
            if (composed := traced_in_few_layers(report, config, request, point_of(run))) is not None:
                return composed
        return trace(spec, config, request)
    first = _first_of_all_kinds(spec.layers)
    chunked = any(isinstance(layer.attention, LinearAttention) for layer in spec.layers)
    sharded = place is not None and place.how.fsdp > 1  # a layer gathers the next one's weights
    alike = _all_alike(place) and not sharded
    if run.mode != "train" and run.media is None and alike and chunked and 2 * first < len(spec.layers):
        with suppress(UnsupportedError):
            few = fixed(trace(spec, config, replace(request, layers=first), place))
            return deepen(few, spec.layers[:first], spec.layers).at(point_of(run))
    timeline = trace(spec, config, request, place)
    if _is_kept(spec, run, place) and untraced.base is None:
        _keep(report, run, place, timeline)
    return timeline


def _is_kept(spec: ModelSpec, run: Run, place: Place | None) -> bool:
    """Whether traces of such a run are kept. Kept traces are CUDA's."""
    return is_point(run, place) and (run.device != "cpu" or _same_on_cpu(spec))


def _same_on_cpu(spec: ModelSpec, tree: Module | None = None, cache: CacheReport | None = None) -> bool:
    """Whether a CPU makes CUDA's events: not with experts, with windows, whose counter is moved to the device, or in float32, for
    which CPU has a fused kernel with GQA. tree, cache: of a model whose spec has no layers.
    """
    routed = any(isinstance(layer.mlp, MoeMlp) for layer in spec.layers)
    windows = any(isinstance(layer.attention, SlidingAttention) for layer in spec.layers)
    if tree is not None and cache is not None:
        routed = any(module.routed for _, module in each_module(tree))
        windows = any(layer.window_tokens for layer in cache.layers)
    return not (routed or windows) and spec.dtype.bits == 16


def is_point(run: Run, place: Place | None = None) -> bool:
    """Whether kept traces can cover such a run."""
    of_kept = run.mode == "generate" and run.cache == "dynamic" and not run.padded and run.autocast is None
    of_kept = of_kept and run.media is None
    return of_kept and run.new_tokens > 1 and _all_alike(place)


def _is_forward(run: Run) -> bool:
    """Whether the traces of families' forward passes can cover such a run."""
    return run.mode == "forward" and not run.padded and run.autocast is None


def _all_alike(place: Place | None) -> bool:
    """Whether a rank does the same in every layer; a pipeline stage does not."""
    return place is None or place.how.pipeline == 1


def point_of(run: Run) -> Point:
    return Point(run.batch, run.prompt_tokens, run.cached_tokens)


def _keep(report: Report, run: Run, place: Place | None, whole: Timeline) -> None:
    """Keeps the extended shallow trace in the cache, if its footprint for this run equals the whole model's."""
    try:
        shallow = shallow_trace(report.spec, report.config or {}, run.attention, place, run.batch)
        if shallow is None:
            return
        deep = _of_layers(shallow, len(report.spec.layers)).at(point_of(run))
    except UnsupportedError:
        return
    if traced_footprint(deep, run, provenance="") == traced_footprint(whole, run, provenance=""):
        name = trace_name(report, run.attention, versions(), place, run.batch)
        header_cache.write_trace(name, dump(shallow))


def family_trace(
    report: Report, run: Run, outline: Outline | None = None, loaded: Loaded | None = None
) -> Composed | None:
    """The run composed from the trace of the model's family, with sizes that hold for all workloads of the same regime.

    None if there is none for such a design or such a run. outline, loaded: of the report, if they are known.
    """
    outline = outline or outline_in(report)
    family = _family_of(report, run, outline)
    if outline is None or family is None:
        return None
    options = options_of(report.config or {}, family.defaults)
    loaded = loaded or loaded_of(report.tree)
    return family.at(outline, run.attention, options, point_of(run), loaded, halves=halves_of(report, run.device))


def layered_run(report: Report, run: Run) -> LayeredRun | None:
    """The run that `timeline_and_base` would compose, in pieces on its CUDA device; None if it would not compose it, or if it has
    no pieces."""
    quantised = report.known.quantised
    if run.device != "cuda":
        return None
    if quantised is not None:
        from .quantised import base_of

        if base_of(report) is not None:
            return None
        config = {key: value for key, value in (report.config or {}).items() if key != "quantization_config"}
        packed_bytes, report = report.known.loaded_bytes, replace(report, config=config)
    outline = outline_in(report)
    family = _family_of(report, run, outline)
    if outline is None or family is None:
        return None
    from .layered.layered_run import Made, NotLayered, on_device

    if quantised is None:
        loaded = [Made(*request) for request in loaded_bytes_of(report.tree)]
    else:
        buffers = [Made(*request) for request in buffers_bytes_of(report.tree)]
        loaded = [*(Made(size_bytes, "", PARAMETER) for size_bytes in packed_bytes), *buffers]
    options = options_of(report.config or {}, family.defaults)
    try:
        halves = halves_of(report, run.device)
        layered = family.layered_at(outline, run.attention, options, point_of(run), loaded, halves)
        return None if layered is None else on_device(layered, run)
    except NotLayered:
        return None


def _family_of(report: Report, run: Run, outline: Outline | None) -> FamilyTrace | None:
    """The trace of the model's family, if it covers such a run."""
    if outline is None or not (is_point(run) or _is_forward(run)):
        return None
    if run.device == "cpu" and not _same_on_cpu(report.spec, report.tree, report.cache):
        return None
    return read(family_file(str((report.config or {}).get("model_type")), run.mode))


def image_trace(report: Report, run: Run) -> tuple[Timeline, str] | None:
    """The run with images composed from its family's trace, and the versions that made that; None if that does not cover it."""
    if run.media is None or (outline := outline_in(report)) is None:
        return None
    from .families.image_file import family_of

    family = family_of(report)
    timeline = None if family is None else family.at(report, outline, run)
    return None if family is None or timeline is None else (timeline, family.made_by)


def outline_in(report: Report) -> Outline | None:
    """The outline of a model whose design is known in full; None for others."""
    if not report.settled:
        return None
    return outline_of(report.spec, report.tree, report.attention.by_config, report.cache, report.config or {})


def chunk_of(outline: Outline | None) -> int | None:
    """Tokens of the chunks to which the model pads a prompt; None if it does not, or if its design is not known."""
    padded = outline is not None and any(kind in ("chunk", "chunks") for kind, _ in outline.thresholds)
    return outline.chunk_tokens if outline is not None and padded else None


def symbolic_trace(
    report: Report, run: Run, composed_of: Callable[[Report, Run], Composed | None] = family_trace
) -> KeptTrace | None:
    """The run with sizes that hold for any workload, without torch; None if there is none. composed_of: `family_trace`."""
    composed = composed_of(report, run)
    if composed is None:
        return kept_trace(report, run.attention)
    return composed.trace if composed.everywhere else None


def shallow_trace(
    spec: ModelSpec, config: Mapping[str, Any], attention: str, place: Place | None = None, batch: int = 1
) -> KeptTrace | None:
    """The polynomials of the model with its first, one middle and its last layer; None if its layers are not all alike.

    place, batch: a tensor-parallel rank gathers a single sequence without the copy that several need, so the two differ.
    """
    if not _are_equal(spec.layers):
        return None
    from ..tracing.trace import trace

    points, terms = (*SAMPLES, WITNESS), range(8)
    if _by_batch(place) and batch == 1:  # one sequence, and half of the monomials
        points, terms = tuple(replace(point, batch=1) for point in (*SAMPLES[:4], WITNESS)), range(4)
    elif _by_batch(place):
        points = tuple(replace(point, batch=point.batch + 1) for point in points)
    traces = {
        point: trace(spec, config, replace(sample_request(point, attention), layers=SHALLOW), place) for point in points
    }
    return fit(traces, made_by=versions(), terms=terms)


def _by_batch(place: Place | None) -> bool:
    """Whether a rank's events for one sequence differ from those for several."""
    return place is not None and place.how.tensor > 1


def traced_along(
    report: Report, runs: Sequence[Run], terms: Sequence[int], point_of: Callable[[Run], Point]
) -> KeptTrace | None:
    """Fits polynomials to the traces of runs that differ in one length alone; the last run checks them.

    terms: indices of the monomials. None if the events differ, for example because a loop runs more often, or if one of the runs
    needs torch and that is not installed.
    """
    try:
        traced = {point_of(run): _timeline(report, run) for run in runs}
        *_, (last, provenance) = traced.values()
        if any(isinstance(event, Allocate) and event.operator.endswith(REPEATED) for event in last.events):
            return None  # of which each turn must be replayed
        return fit({point: timeline for point, (timeline, _) in traced.items()}, made_by=provenance, terms=terms)
    except (UnavailableError, UnsupportedError):
        return None


def _timeline(report: Report, run: Run) -> tuple[Timeline, str]:
    """The run's trace and the versions that made it."""
    if run.mode != "train":
        return timeline_of(report, run)
    from .training_plan import plan_of

    return training_timeline(report, plan_of(report, run))


def sample_request(point: Point, attention: str, mode: Mode = "generate") -> Any:
    """The `TraceRequest` for one point."""
    new_tokens = point.total_tokens - point.prompt_tokens + 1
    run = Run(
        mode=mode,
        batch=point.batch,
        prompt_tokens=point.prompt_tokens,
        new_tokens=new_tokens,
        attention=attention,
        loader="warmup",
        gpu="",
    )
    return trace_request(run)


def _are_equal(layers: Sequence[object]) -> bool:
    return len(layers) >= SHALLOW and len(set(layers)) == 1


def _first_of_all_kinds(layers: Sequence[object]) -> int:
    """How many of the first layers have one of each kind that is not the first layer."""
    kinds = set(layers[1:])
    return next((count for count in range(2, len(layers)) if set(layers[1:count]) == kinds), len(layers))


def _of_layers(shallow: KeptTrace, layers: int) -> KeptTrace:
    """The trace of a model of so many equal layers, from that of one with SHALLOW."""
    return deepen(shallow, [None] * SHALLOW, [None] * layers)


def trace_request(run: Run, base: Base | None = None) -> Any:
    """The `TraceRequest` for a run. base: the layout of its weights, if they are not dense."""
    from ..tracing.adapting import adapters_of
    from ..tracing.trace import TraceRequest
    from .fused_loss import tiled_from

    lora = adapters_of(run, base)
    return TraceRequest(
        mode=run.mode,
        batch=run.batch,
        prompt_tokens=run.prompt_tokens,
        new_tokens=1 if run.decodes_untraced else run.new_tokens,
        attention=run.attention,  # type: ignore[arg-type]  # one of the command line's choices
        optimizer=run.optimizer,
        checkpointing=bool(run.checkpointing),
        trained=run.trained,
        frozen=run.frozen,
        steps=2 if run.mode == "train" else 1,  # the optimizer's states exist from the second step on
        accumulate=run.accumulate,
        lora=lora,
        device=run.device,
        base=base if lora is None else None,
        static_tokens=run.cached_tokens if run.cache == "static" else None,
        padded=run.padded,
        cudnn=(run.padded or run.packed or run.media is not None) and has_cudnn_attention(run.gpu),
        autocast=run.autocast,
        loop=run.loop,
        packed=run.packed,
        media=run.media,
        tiled_from=tiled_from(run),
    )


def kept_trace(report: Report, attention: str, place: Place | None = None, batch: int = 1) -> KeptTrace | None:
    """The trace of this model with this kernel that an earlier run with the same libraries kept."""
    layers = report.spec.layers
    if not _are_equal(layers):
        return None
    name = trace_name(report, attention, installed_versions(), place, batch)
    content = header_cache.read_trace(name)
    return None if content is None else _of_depth(content, name, len(layers))


@lru_cache(maxsize=2)  # a search needs the same trace several times
def _of_depth(content: bytes, file: str, layers: int) -> KeptTrace:
    return _of_layers(load(content, file=file), layers)


def installed_versions() -> str:
    """`versions` without the slow imports; "" if the libraries are not installed."""
    package_versions = dict(installed())
    return (
        f"transformers {package_versions['transformers']}, torch {package_versions['torch']}"
        if len(package_versions) == 2
        else ""
    )


def installed() -> Iterator[tuple[str, str]]:
    """The versions of torch and transformers that are installed, without importing them."""
    from importlib.metadata import PackageNotFoundError, version

    for package in ("transformers", "torch"):
        with suppress(PackageNotFoundError):
            yield package, version(package).partition("+")[0]


def family_file(model_type: str, mode: str = "generate") -> str:
    """The file of the traces of a family."""
    return f"{model_type}.json.gz" if mode == "generate" else f"{model_type}-{mode}.json.gz"


def _options(config: Mapping[str, Any]) -> str:
    """What a configuration says beside its design that may change what a layer does."""
    text = decoder_of(config)
    layers = text.get("num_hidden_layers")
    named = {
        key: value
        for key, value in text.items()
        if (key not in UNRELATED or key == "return_dict")
        and key != "num_hidden_layers"
        and not (isinstance(value, list) and len(value) == layers)  # the layers' own
    }
    return json.dumps([named, options_of(config, {})], sort_keys=True, default=str)


def trace_name(report: Report, attention: str, made_by: str, place: Place | None = None, batch: int = 1) -> str:
    """The file name of a trace: a hash of everything that a layer's events depend on, so models that differ in depth share it."""
    spec = report.spec
    shape = replace(spec, context_tokens=None, pad_token_id=None, norm_eps=0.0, layers=spec.layers[:1])
    text = f"{shape!r} {_options(report.config or {})} {made_by} {__version__}"
    if place is not None:
        text += f" {place!r}" + (" one sequence" if batch == 1 and _by_batch(place) else "")
    digest = sha256_hex(text.encode())[:16]
    return f"{spec.family}-{digest}.{attention}.json.gz"

"""A run and its memory, predicted or measured -> JSON."""

from __future__ import annotations

from ...language import Language
from ...results.memory import Alive, Autocast, Cache, Footprint, Loader, Method, Mode, Moment, PeakRange, Run
from ...typed import Literal
from .values import Count, Positive, TypedDict


class RunJSON(TypedDict):
    mode: Mode
    batch: Positive
    prompt_tokens: Positive
    new_tokens: Positive | None
    """null if nothing is generated."""
    attention: str
    """The attention kernel."""
    cache: Cache | None
    """null if nothing is generated."""
    padded: bool
    """Whether sequences differ in length, which needs a mask."""
    autocast: Autocast | None
    """torch.autocast's dtype for each forward pass; null without autocast."""
    transformers: str | None
    """The version of transformers that is predicted; null for the installed one."""
    gpu: str
    load: Loader


class WorkloadJSON(RunJSON):
    """A run on one card."""

    tp: Literal[1]


class RareTermsJSON(TypedDict, total=False):
    gathered_bytes: Count
    """Full weights that FSDP has gathered temporarily. Absent if there are none; likewise `adapters_bytes`."""
    adapters_bytes: Count
    """LoRA's matrices."""


class MomentJSON(RareTermsJSON):
    """Allocated memory at one moment, by use; the terms add up to `allocated_bytes`."""

    stage: str
    weights_bytes: Count
    buffers_bytes: Count | None
    cache_bytes: Count | None
    state_bytes: Count | None
    gradients_bytes: Count | None
    optimizer_bytes: Count | None
    activations_bytes: Count | None
    workspace_bytes: Count | None
    rounding_bytes: Count | None
    """Bytes that the allocator adds to the requested sizes."""
    allocated_bytes: Count | None
    lower_bound_only: bool
    """Whether activations come on top of `allocated_bytes`."""


class MomentsJSON(TypedDict):
    """The end of the run, and its peak (null if unknown)."""

    steady: MomentJSON
    peak: MomentJSON | None


class AliveJSON(TypedDict):
    """Storages alive at the peak, grouped by the component and operator that allocated them."""

    component: str
    operator: str
    storages: Count
    bytes: Count


class RequiredJSON(TypedDict):
    """The memory that a card needs, at both ends of the uncertainty."""

    low: Count
    high: Count


class PeakRangeJSON(TypedDict):
    """Allocated bytes at the peak, at least and at most; `high_bytes` is null if there is no upper bound."""

    low_bytes: Count
    high_bytes: Count | None
    source: str


class FiguresJSON(TypedDict):
    weights_bytes: Count
    buffers_bytes: Count | None
    cache_bytes: Count | None
    state_bytes: Count | None
    activation_bytes: Count | None
    workspace_bytes: Count | None
    steady_allocated_bytes: Count | None
    peak_allocated_bytes: Count | None
    peak_reserved_bytes: Count | None
    """The allocator's segments."""
    context_bytes: Count | None
    """Outside the allocator; null if not measured."""
    total_bytes: Count | None
    """Segments and context."""
    required_bytes: RequiredJSON | None
    peak_range: PeakRangeJSON | None
    """Set if only bounds of the peak are known."""
    provenance: str
    moments: MomentsJSON
    alive_at_peak: list[AliveJSON]
    assumptions: list[str]


class PredictedJSON(FiguresJSON):
    """A run's memory, predicted."""

    method: Method


def workload_content(run: Run) -> WorkloadJSON:
    return {
        "mode": run.mode,
        "batch": run.batch,
        "prompt_tokens": run.prompt_tokens,
        "new_tokens": run.new_tokens if run.mode == "generate" else None,
        "attention": run.attention,
        "cache": run.cache if run.mode == "generate" else None,
        "padded": run.padded,
        "autocast": run.autocast,
        "transformers": run.transformers,
        "tp": 1,
        "gpu": run.gpu,
        "load": run.loader,
    }


def footprint_content(footprint: Footprint, run: Run, say: Language) -> PredictedJSON:
    return {"method": footprint.method, **figures_content(footprint, run, say)}


def figures_content(footprint: Footprint, run: Run, say: Language) -> FiguresJSON:
    shown = footprint.peak or footprint.steady
    required = footprint.required_bytes
    return {
        "weights_bytes": shown.weights,
        "buffers_bytes": shown.buffers,
        "cache_bytes": footprint.steady.cache if run.mode == "generate" else shown.cache,
        "state_bytes": shown.state,
        "activation_bytes": None if footprint.peak is None else footprint.peak.activations,
        "workspace_bytes": shown.workspace,
        "steady_allocated_bytes": footprint.steady_allocated_bytes,
        "peak_allocated_bytes": footprint.peak_allocated_bytes,
        "peak_reserved_bytes": footprint.peak_reserved,
        "context_bytes": footprint.context_bytes,
        "total_bytes": footprint.total_bytes,
        "required_bytes": None if required is None else {"low": required[0], "high": required[1]},
        "peak_range": None if footprint.peak_range is None else range_content(footprint.peak_range, say),
        "provenance": footprint.provenance,
        "moments": {
            "steady": moment_content(footprint.steady),
            "peak": None if footprint.peak is None else moment_content(footprint.peak),
        },
        "alive_at_peak": [alive_content(alive) for alive in footprint.alive],
        "assumptions": [say(message) for message in footprint.assumptions],
    }


def range_content(peak: PeakRange, say: Language) -> PeakRangeJSON:
    low, high = peak.allocated_bytes
    return {"low_bytes": low, "high_bytes": high, "source": say(peak.source)}


def moment_content(moment: Moment) -> MomentJSON:
    rare: RareTermsJSON = {}
    if moment.gathered:
        rare["gathered_bytes"] = moment.gathered
    if moment.adapters:
        rare["adapters_bytes"] = moment.adapters
    return {
        "stage": moment.stage,
        "weights_bytes": moment.weights,
        **rare,
        "buffers_bytes": moment.buffers,
        "cache_bytes": moment.cache,
        "state_bytes": moment.state,
        "gradients_bytes": moment.gradients,
        "optimizer_bytes": moment.optimizer,
        "activations_bytes": moment.activations,
        "workspace_bytes": moment.workspace,
        "rounding_bytes": moment.rounding,
        "allocated_bytes": moment.allocated,
        "lower_bound_only": moment.at_least,
    }


def alive_content(alive: Alive) -> AliveJSON:
    return {
        "component": alive.component,
        "operator": alive.operator,
        "storages": alive.storages,
        "bytes": alive.size_bytes,
    }

"""A run and the memory that it takes, predicted or measured -> JSON."""

from __future__ import annotations

from typing import Any

from ...language import Language
from ...results.memory import RARE_TERMS, Alive, Footprint, Moment, PeakRange, Run


def workload_content(run: Run) -> dict[str, Any]:
    return {
        "mode": run.mode,
        "batch": run.batch,
        "prompt_tokens": run.prompt_tokens,
        "new_tokens": run.new_tokens if run.mode == "generate" else None,
        "attention": run.attention,
        "cache": run.cache if run.mode == "generate" else None,
        "padded": run.padded,
        "autocast": run.autocast,
        "tp": 1,
        "gpu": run.gpu,
        "load": run.loader,
    }


def footprint_content(footprint: Footprint, run: Run, say: Language) -> dict[str, Any]:
    shown = footprint.peak or footprint.steady
    reserved, required = footprint.peak_reserved, footprint.required_bytes
    return {
        "method": footprint.method,
        "weights_bytes": shown.weights,
        "buffers_bytes": shown.buffers,
        "cache_bytes": footprint.steady.cache if run.mode == "generate" else shown.cache,
        "state_bytes": shown.state,
        "activation_bytes": None if footprint.peak is None else footprint.peak.activations,
        "workspace_bytes": shown.workspace,
        "steady_allocated_bytes": footprint.steady.allocated,
        "peak_allocated_bytes": None if footprint.peak is None else footprint.peak.allocated,
        "peak_reserved_bytes": reserved,
        "context_bytes": footprint.context_bytes,
        "total_bytes": None
        if reserved is None or footprint.context_bytes is None
        else reserved + footprint.context_bytes,
        "required_bytes": None if required is None else {"low": required[0], "high": required[1]},
        "peak_range": None if footprint.peak_range is None else range_content(footprint.peak_range, say),
        "provenance": footprint.provenance,
        "moments": {
            name: None if moment is None else moment_content(moment)
            for name, moment in (("steady", footprint.steady), ("peak", footprint.peak))
        },
        "alive_at_peak": [alive_content(one) for one in footprint.alive],
        "assumptions": [say(message) for message in footprint.assumptions],
    }


def range_content(found: PeakRange, say: Language) -> dict[str, Any]:
    """What is allocated at the peak, at least and at most; None where nothing bounds it."""
    low, high = found.allocated_bytes
    return {"low_bytes": low, "high_bytes": high, "source": say(found.source)}


def moment_content(moment: Moment) -> dict[str, Any]:
    told = {term: value for term, value in moment.bytes_by_term.items() if value or term not in RARE_TERMS}
    return {
        "stage": moment.stage,
        **{f"{term}_bytes": value for term, value in told.items()},
        "allocated_bytes": moment.allocated,
        "lower_bound_only": moment.at_least,
    }


def alive_content(one: Alive) -> dict[str, Any]:
    return {
        "component": one.component,
        "operator": one.operator,
        "storages": one.storages,
        "bytes": one.size_bytes,
    }

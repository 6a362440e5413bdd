"""A model and a run -> its footprint: from a trace that is shipped or was kept, else traced now, else by formula alone."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from .analyzers.kept_trace import KeptTrace, Point, load
from .analyzers.memory import formula_footprint, traced_footprint
from .errors import UnavailableError
from .language import Message
from .report import Footprint, MemoryReport, Report, Run
from .spec import ModelSpec

SHIPPED = Path(__file__).parent / "catalog" / "traces"


def predict(report: Report, run: Run) -> MemoryReport:
    """The footprint of `run` for the model of `report`.

    Raises UnsupportedError where transformers cannot be traced. Without torch and without a shipped trace only the formula is
    left, whose peak is unknown.
    """
    limit = report.spec.context_tokens
    tokens = run.prompt_tokens + (run.new_tokens if run.mode == "generate" else 0)
    if limit is not None and tokens > limit:
        beyond = Message("context_beyond", tokens=tokens, limit=limit)
        report = replace(report, notices=(*report.notices, beyond))
    return MemoryReport(report=report, run=run, predicted=_footprint(report, run))


def _footprint(report: Report, run: Run) -> Footprint:
    if (
        run.mode == "generate"
        and run.new_tokens > 1
        and (kept := shipped_trace(report.spec, run.attention)) is not None
    ):
        point = Point(run.batch, run.prompt_tokens, run.prompt_tokens + run.new_tokens - 1)
        return traced_footprint(kept.at(point), run, provenance=kept.made_by)
    from .analyzers.trace import trace

    try:
        timeline = trace(report.spec, report.config or {}, trace_request(run))
    except UnavailableError:
        if run.mode != "generate":
            raise
        return formula_footprint(report.tree, report.cache, run)
    return traced_footprint(timeline, run, provenance=versions())


def trace_request(run: Run) -> Any:
    """The run in the words of `trace`."""
    from .analyzers.trace import TraceRequest

    return TraceRequest(
        mode=run.mode,  # type: ignore[arg-type]  # one of the command line's choices
        batch=run.batch,
        prompt_tokens=run.prompt_tokens,
        new_tokens=run.new_tokens,
        attention=run.attention,  # type: ignore[arg-type]
    )


def versions() -> str:
    """The libraries that a trace taken now is made by."""
    import torch
    import transformers

    return f"transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}"


def shipped_trace(spec: ModelSpec, attention: str) -> KeptTrace | None:
    """The trace that the package has of models of this very shape with this kernel, if any."""
    path = SHIPPED / trace_name(spec, attention)
    return load(path.read_bytes(), file=path.name) if path.is_file() else None


def trace_name(spec: ModelSpec, attention: str) -> str:
    """A file's name that stands for all that decides a run's events: two models of one shape share it."""
    shape = replace(spec, context_tokens=None, pad_token_id=None, norm_eps=0.0)
    digest = hashlib.sha256(repr(shape).encode()).hexdigest()[:16]
    return f"{spec.family}-{digest}.{attention}.json.gz"

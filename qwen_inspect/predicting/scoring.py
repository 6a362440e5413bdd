"""What computing log-probabilities without gradients takes, as TRL's GRPOTrainer does it batch by batch, from a trace of it."""

from __future__ import annotations

from ..errors import UnavailableError, UnsupportedError
from ..results.memory import Run
from ..results.model import Report
from ..values import replace
from .quantised import base_of
from .sources import trace_request, with_kernel

LAYERS = 2  # Nothing of a layer is alive in the next one but its output, so equal layers peak alike.
BATCHES = 2  # Each later one finds the log-probabilities of one more.
LOG_PROBABILITY_BYTES = 4


def scoring_bytes(report: Report, run: Run, *, sequences: int, reference: bool) -> int | None:
    """The most bytes beside the model's own while log-probabilities of `sequences` are computed, `run.batch` at a time; None if
    that cannot be traced. run: of training with TRL's chunked head. reference: those of a model of its own come after the
    policy's, which then stay.
    """
    if run.loop.loss != "trl" or run.media is not None:
        return None
    run = with_kernel(run, report)
    try:
        base = None if report.known.quantised is None else base_of(report)
        batches = -(-sequences // run.batch)
        policy = _peak_bytes(report, run, base, batches, entropies=True)
        if not reference:
            return policy
        kept = sequences * run.new_tokens * LOG_PROBABILITY_BYTES
        return max(policy, kept + _peak_bytes(report, run, base, batches, entropies=False))
    except (UnavailableError, UnsupportedError):
        return None


def _peak_bytes(report: Report, run: Run, base: object, batches: int, *, entropies: bool) -> int:
    from ..tracing.trace import trace
    from .footprint import traced_footprint

    # Under autocast the 16-bit copies of all weights that may train stay until its end.
    equal = run.autocast is None and len(report.spec.layers) > LAYERS and len(set(report.spec.layers)) == 1
    request = replace(
        trace_request(run, base),  # type: ignore[arg-type]  # a layout that the trace then refuses, or knows
        scored=True,
        checkpointing=False,
        steps=1,
        accumulate=min(batches, BATCHES),
        optimizer="adamw_foreach" if entropies else "none",
        layers=LAYERS if equal else None,
    )
    peak = traced_footprint(trace(report.spec, report.config or {}, request), run, provenance="").peak
    assert peak is not None
    earlier = max(batches - BATCHES, 0) * run.batch * (run.prompt_tokens - 1) * LOG_PROBABILITY_BYTES
    ids = max(batches - BATCHES, 0) * 2 * run.batch * run.prompt_tokens * 8
    return (peak.activations or 0) + earlier + ids

"""The peak of each rank of a DeepSpeed run: a traced forward and backward, with what DeepSpeed takes around them on that rank, or
in stage 3 within them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from ..checkpoint import DType
from ..errors import UnsupportedError
from ..language import Message
from ..predicting.families.family_training import MICRO_BATCHES
from ..predicting.footprint import traced_footprint
from ..predicting.sources import trace_request, with_kernel
from ..progress import working
from ..results.memory import Moment, Run
from ..results.model import Report
from ..results.ranks import Parallelism, Place, RankBytes
from ..results.timeline import Timeline
from ..spec import each_tensor
from ..tracing import versions
from ..typed import TYPE_CHECKING
from ..values import replace

if TYPE_CHECKING:
    from ..tracing.partitioned import Partitioning

MOST_RANKS = 64  # each of which takes a second or two
COMPARED = ("weights", "adapters", "buffers", "optimizer")


def check_peaks(report: Report, run: Run, how: Parallelism) -> DType:
    """The dtype of all parameters; UnsupportedError with what is missing where the peak is not known."""
    if run.mode != "train" or run.optimizer == "none":
        raise UnsupportedError("ranks_deepspeed_peak_train")
    if how.offload_params:
        raise UnsupportedError("ranks_deepspeed_peak_params")
    loop = run.loop
    if loop.name not in (None, "plain") or loop.keep_gradients:
        raise UnsupportedError("ranks_deepspeed_peak_loop")
    if how.zero_stage < 3 and how.fsdp > MOST_RANKS:
        raise UnsupportedError("ranks_deepspeed_peak_ranks", most=MOST_RANKS)
    dtypes = {tensor.dtype for tensor in each_tensor(report.tree)}
    if dtypes not in ({DType.BF16}, {DType.F16}, {DType.F32}):
        raise UnsupportedError("ranks_deepspeed_peak_dtype")
    (dtype,) = dtypes
    assert isinstance(dtype, DType)
    return dtype


def deepspeed_peaks(groups: tuple[RankBytes, ...], report: Report, run: Run, how: Parallelism) -> Iterator[RankBytes]:
    """`groups` with peaks; ranks with different peaks apart. UnavailableError without torch; UnsupportedError if the peak is not
    known, or if the trace ends with other bytes than `groups` have.
    """
    dtype = check_peaks(report, run, how)
    run = replace(with_kernel(run, report), accumulate=min(run.accumulate, MICRO_BATCHES))
    with working("working_trace", batch=run.batch, tokens=run.prompt_tokens):
        timeline_of = _by_parts(report, run, how) if how.zero_stage == 3 else _around(report, run, how, dtype)
        for group in groups:
            ranks_of: dict[Moment | None, list[int]] = {}
            for rank in group.ranks:
                ranks_of.setdefault(_peak(group, timeline_of(rank), run), []).append(rank)
            for peak, ranks in ranks_of.items():
                yield replace(group, ranks=tuple(ranks), peak=peak)


def _around(report: Report, run: Run, how: Parallelism, dtype: DType) -> Callable[[int], Timeline]:
    """Stages 1 and 2: one trace, which DeepSpeed's requests surround on each rank."""
    from ..tracing.zero import on_rank

    whole = _traced(report, run, reduces_each=how.zero_stage == 2)
    return lambda rank: on_rank(whole, Place(how=how, rank=rank), dtype=dtype.torch_name, optimizer=run.optimizer)


def _by_parts(report: Report, run: Run, how: Parallelism) -> Callable[[int], Timeline]:
    """Stage 3: a trace of each rank. Ranks make different requests only where gradients go to the host, without padding."""
    from ..tracing.partitioned import Partitioning

    sizes = [math.prod(tensor.shape) for tensor in each_tensor(report.tree)] if how.offload_optimizer else []
    kept: dict[tuple[int, ...], Timeline] = {}

    def timeline(rank: int) -> Timeline:
        parts = ((elements, -(-elements // how.fsdp)) for elements in sizes)
        own = tuple(max(0, min(part, elements - rank * part)) for elements, part in parts)
        if own not in kept:
            partitioning = Partitioning(
                ranks=how.fsdp,
                rank=rank,
                optimizer=run.optimizer,
                accumulate=run.accumulate,
                offload_optimizer=how.offload_optimizer,
            )
            kept[own] = _traced(report, run, partitioning)
        return kept[own]

    return timeline


def _traced(
    report: Report, run: Run, partitioned: Partitioning | None = None, *, reduces_each: bool = False
) -> Timeline:
    from ..architectures.generic import buildable
    from ..tracing.trace import trace

    config = report.config or {}
    request = replace(trace_request(run), by_deepspeed=True, optimizer="none", reduces_each=reduces_each)
    request = replace(request, partitioned=partitioned)
    return trace(report.spec, buildable(config) if report.spec.built else config, request)


def _peak(group: RankBytes, timeline: Timeline, run: Run) -> Moment | None:
    footprint = traced_footprint(timeline, run, provenance=versions())
    for term in COMPARED:
        expected, traced = getattr(group, term), getattr(footprint.steady, term)
        if traced != expected:
            raise UnsupportedError(
                "ranks_trace_differs", term=Message(f"term_{term}"), traced=traced, expected=expected
            )
    return footprint.peak

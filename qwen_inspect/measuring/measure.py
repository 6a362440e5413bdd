"""Runs a model on a device and reports the measurement beside the prediction, with the cause of every difference."""

from __future__ import annotations

import datetime
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..architectures.thinkers import refuse_whole
from ..errors import UnavailableError, UnsupportedError
from ..language import Message
from ..loaders import calibration
from ..loaders.resolve import Access
from ..loaders.weights import weights_directory
from ..predicting.allocation.on_device import on_device
from ..predicting.predict import predict
from ..predicting.sources import timeline_of
from ..predicting.traces.turns import with_all_turns
from ..progress import stage, working
from ..results.measurement import Calibration
from ..results.memory import Loader, MemoryReport, Run
from ..results.model import Report
from ..results.timeline import Timeline
from ..tracing import versions
from ..typed import Any
from ..values import dataclass, replace
from .cuda import cuda_reading
from .device import check_capacity
from .differences import differences
from .host import free_host_bytes
from .loading import LoadedModel, check_device, load_model, random_model
from .run import Measured, loaded, make_ready, measure, not_loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """How to make a run. device: "cpu", "cuda", "cuda:N", or "auto": all GPUs, as accelerate places the layers.

    random_weights: build the model from its configuration, without a download. force: run even if it cannot fit.
    snapshot: path for CUDA's memory snapshot. course_points: if not 0, also the memory over time in about that many points.
    """

    device: str
    random_weights: bool = False
    force: bool = False
    snapshot: Path | None = None
    trust_remote_code: bool = False
    course_points: int = 0


def measured(report: Report, run: Run, request: Request, access: Access) -> MemoryReport:
    """Predicts and makes `run`. If memory or the user ends it early, the measurement is marked as partial.

    UnavailableError without the device, the packages, or enough memory; the loaders' errors if there are no weights;
    UnsupportedError if transformers cannot run the model.
    """
    with working("working_start"):
        return _made(report, run, request, access)


def _made(report: Report, run: Run, request: Request, access: Access) -> MemoryReport:
    device = check_device(request.device)
    if request.snapshot is not None and device == "cpu":
        raise UnavailableError("snapshot_needs_cuda")
    if report.known.unread is not None:
        raise report.known.unread
    if report.known.quantised is not None:
        raise UnsupportedError("measure_quantised", method=report.known.quantised.method)
    if run.cache == "static" and device != "cpu":
        raise UnsupportedError("measure_static", device=device)
    refuse_whole(report.config or {})
    # Random weights are allocated one by one on the device; transformers' loader of files allocates a warm-up block first.
    loader: Loader = "per-tensor" if request.random_weights else "warmup"
    run = replace(run, device="cpu" if device == "cpu" else "cuda", gpu=_card(device), loader=loader)
    if not request.force:  # before weights are fetched and anything is traced
        check_capacity(sum(report.known.loaded_bytes), _free_bytes(device), device, key="no_room_for_weights")
    directory = None if request.random_weights else weights_directory(report.ref, access)
    memory = predict(report, run, course_points=request.course_points)
    if not request.force:
        predicted = memory.predicted
        needed = predicted.peak_reserved or (predicted.peak or predicted.steady).allocated or predicted.steady.weights
        check_capacity(needed, _free_bytes(device), device)
    timeline = _timeline(memory)
    if timeline is not None and memory.predicted.provenance != versions():
        traced = Message("traced_elsewhere", traced=memory.predicted.provenance, running=versions())
        memory = replace(memory, report=replace(memory.report, notices=(*memory.report.notices, traced)))
    if device == "auto":
        memory = replace(
            memory, report=replace(memory.report, notices=(*memory.report.notices, Message("several_devices")))
        )
    with _left_as_it_was(device):
        result, notices = _measured(memory, timeline, directory, device, request)
    _calibrate(result)
    return replace(
        memory,
        report=replace(report, notices=(*memory.report.notices, *notices)),
        measured=result.measurement,
        differences=differences(memory.predicted, result),
    )


def _measured(
    memory: MemoryReport, timeline: Timeline | None, directory: Path | None, device: str, request: Request
) -> tuple[Measured, tuple[Message, ...]]:
    import torch

    run = memory.run
    before = () if device == "cpu" else (_context(device),)
    began = time.perf_counter()
    stage("working_load", model=memory.report.ref.id, device=device)
    try:
        model = _loaded(memory.report, run, directory, device, trust_remote_code=request.trust_remote_code)
    except (MemoryError, torch.OutOfMemoryError):
        return not_loaded(_indices(device), before), ()
    make_ready(model.model, run)
    before = (*before, loaded(model.model, time.perf_counter() - began))
    if device != "cpu":
        gc.collect()
        torch.cuda.empty_cache()  # cached blocks that only loading needed
    result = measure(
        model.model, run, timeline, before=before, course_points=request.course_points, snapshot=request.snapshot
    )
    return result, model.notices


def _loaded(report: Report, run: Run, directory: Path | None, device: str, *, trust_remote_code: bool) -> LoadedModel:
    dtype = report.spec.dtype.torch_name
    if directory is None:
        return random_model(report.spec, report.config or {}, dtype=dtype, attention=run.attention, device=device)
    return load_model(
        directory,
        report.spec,
        dtype=dtype,
        attention=run.attention,
        device=device,
        trust_remote_code=trust_remote_code,
    )


def _calibrate(result: Measured) -> None:
    """Stores this card's context and workspace sizes after a complete run. The largest workspace is a cuBLAS handle's."""
    measurement = result.measurement
    running, context = dict(measurement.versions), measurement.footprint.context_bytes
    if (
        measurement.device == "cpu"
        or measurement.partial is not None
        or context is None
        or not result.workspaces
        or "driver" not in running
    ):
        return
    calibration.keep(
        Calibration(
            gpu=measurement.device,
            driver=running["driver"],
            torch=running["torch"].partition("+")[0],
            transformers=running["transformers"],
            date=datetime.date.today().isoformat(),
            context_bytes=context,
            workspace_bytes=max(result.workspaces),
        )
    )


def _timeline(memory: MemoryReport) -> Timeline | None:
    """The run's trace as the device sees it; None if the prediction is not from a trace."""
    if memory.predicted.method != "trace":
        return None
    timeline, _ = timeline_of(memory.report, memory.run)
    return on_device(with_all_turns(timeline, memory.run), memory.run)


def _indices(device: str) -> tuple[int, ...]:
    """The indices of the CUDA devices that `device` names."""
    import torch

    if device == "cpu":
        return ()
    return tuple(range(torch.cuda.device_count())) if device == "auto" else (torch.device(device).index,)


def _card(device: str) -> str:
    """The name of the card to predict for; of several, the first."""
    if device == "cpu":
        return "cpu"
    import torch

    return str(torch.cuda.get_device_name(_indices(device)[0]))


def _context(device: str) -> Any:
    """The first reading, of an empty context. Allocates nothing, because even a freed segment would move later ones."""
    import torch

    torch.cuda.init()
    for index in _indices(device):
        torch.cuda.synchronize(index)
        torch.cuda.reset_peak_memory_stats(index)
    return cuda_reading("context", _indices(device))


def _free_bytes(device: str) -> int | None:
    if device == "cpu":
        return free_host_bytes()
    import torch

    return sum(int(torch.cuda.mem_get_info(index)[0]) for index in _indices(device))


@contextmanager
def _left_as_it_was(device: str) -> Iterator[None]:
    """On exit, frees what is unreferenced and empties the allocator's cache."""
    try:
        yield
    finally:
        gc.collect()
        if device != "cpu":
            import torch

            torch.cuda.empty_cache()

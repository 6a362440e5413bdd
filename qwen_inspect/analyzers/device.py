"""What a device says of its memory while a model runs: CUDA's allocator, the driver and other processes, or the host's profiler.

A recorder is told when a stage begins, and closes the one before with its readings. Nothing here knows what is being run.
"""

from __future__ import annotations

import gc
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ..errors import UnavailableError
from ..report import Reading
from ..timeline import Change, Record, Stage
from ..units import size

MARK = "qwen_inspect.stage:"
LONGEST_HISTORY = 1_000_000  # events that CUDA's allocator is asked to remember


class Recorder(Protocol):
    """One run on one device."""

    def stage(self, name: str) -> None: ...
    def run(self, work: Callable[[], object]) -> object: ...
    def readings(self) -> tuple[Reading, ...]: ...
    def record(self) -> Record | None: ...


# --- the host


class HostRecorder:
    """Torch's allocations on CPU, as its profiler records them; what was there before the run is told as `held_bytes`."""

    def __init__(self, held_bytes: int) -> None:
        self._held_bytes = held_bytes
        self._began: list[tuple[str, float]] = []
        self._ended = 0.0
        self._record: Record | None = None

    def stage(self, name: str) -> None:
        from torch.profiler import record_function

        self._began.append((name, time.perf_counter()))
        with record_function(MARK + name):
            pass

    def run(self, work: Callable[[], object]) -> object:
        from torch.profiler import ProfilerActivity, profile

        gc.collect()
        collecting = gc.isenabled()
        gc.disable()  # a cycle must not be freed at a moment of the collector's choice
        profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        try:
            with profiler:
                try:
                    return work()
                finally:
                    self._ended = time.perf_counter()
        finally:  # what was recorded until an error is told too
            if collecting:
                gc.enable()
            self._record = _host_record(profiler.profiler.kineto_results.experimental_event_tree())

    def record(self) -> Record | None:
        return self._record

    def readings(self) -> tuple[Reading, ...]:
        """Bytes by stage, steps of decoding together; seconds are those of a run under the profiler."""
        if self._record is None:
            return ()
        ends = [*(began for _, began in self._began[1:]), self._ended]
        seconds: dict[str, float] = {}
        for (name, began), end in zip(self._began, ends, strict=True):
            seconds[name] = seconds.get(name, 0.0) + end - began
        alive: dict[int, int] = {}
        held = self._held_bytes
        peaks: dict[str, int] = {}
        last: dict[str, int] = {}
        bounds = [*(stage.first_event for stage in self._record.stages), len(self._record.changes)]
        for stage, end in zip(self._record.stages, bounds[1:], strict=True):
            peaks.setdefault(stage.name, held)
            peaks[stage.name] = max(peaks[stage.name], held)
            for change in self._record.changes[stage.first_event : end]:
                if change.size_bytes > 0:
                    alive[change.address] = change.size_bytes
                    held += change.size_bytes
                else:
                    held -= alive.pop(change.address, 0)
                peaks[stage.name] = max(peaks[stage.name], held)
            last[stage.name] = held
        return tuple(
            Reading(
                stage=name,
                seconds=seconds.get(name),
                allocated=last[name],
                peak_allocated=peaks[name],
                host_peak=resident_peak_bytes(),
            )
            for name in peaks
        )


def _host_record(roots: Any) -> Record:
    """The profiler's tree of events -> changes in time, cut where the marks are. Memory of the CPU alone."""
    from torch._C._profiler import _EventType

    rows: list[tuple[int, Change | str]] = []
    waiting: list[tuple[Any, tuple[str, ...]]] = [(root, ()) for root in roots]
    while waiting:
        event, operators = waiting.pop()
        kind, found = event.typed
        if kind == _EventType.Allocation:
            if found.device.type == "cpu":
                rows.append((event.start_time_ns, Change(found.alloc_size, found.ptr, operators)))
        elif event.name.startswith(MARK):
            rows.append((event.start_time_ns, event.name.removeprefix(MARK)))
        waiting += [(child, (*operators, event.name)) for child in event.children]
    rows.sort(key=lambda row: row[0])
    changes: list[Change] = []
    stages: list[Stage] = []
    for _, row in rows:
        if isinstance(row, str):
            stages.append(Stage(name=row, first_event=len(changes)))
        else:
            changes.append(row)
    return Record(changes=tuple(changes), stages=tuple(stages))


def resident_peak_bytes() -> int:
    """The largest resident set of this process so far, the interpreter and its libraries included."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux: KiB; getrusage(2)


def free_host_bytes() -> int | None:
    """What this process can still take: the kernel's estimate, and what its control group leaves; None where neither is told."""
    found = []
    try:
        told = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        if told:
            found.append(int(told[1]) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(found, default=None)


# --- CUDA


class CudaRecorder:
    """CUDA's caching allocator on one device, by stage; peaks are reset where a stage begins."""

    def __init__(self, index: int, *, history: bool) -> None:
        self._index = index
        self._history = history
        self._readings: dict[str, Reading] = {}
        self._current: tuple[str, float] | None = None
        self._marks: list[tuple[str, int]] = []
        self._record: Record | None = None

    def stage(self, name: str) -> None:
        """Close the stage before, and begin one; steps of decoding are one stage of the readings, and each one of the record."""
        self._marks.append((name, time.time_ns() // 1000))
        if self._current is not None and self._current[0] == name:
            return
        self._close()
        import torch

        torch.cuda.reset_peak_memory_stats(self._index)
        self._current = name, time.perf_counter()

    def run(self, work: Callable[[], object]) -> object:
        import torch

        if self._history:
            torch.cuda.memory._record_memory_history("all", context=None, stacks="python", max_entries=LONGEST_HISTORY)
        try:
            return work()
        finally:  # what was recorded until an error is told too
            self._close()
            if self._history:
                self._record = _cuda_record(torch.cuda.memory._snapshot(self._index), self._index, self._marks)
                torch.cuda.memory._record_memory_history(None)

    def readings(self) -> tuple[Reading, ...]:
        return tuple(self._readings.values())

    def record(self) -> Record | None:
        return self._record

    def _close(self) -> None:
        if self._current is None:
            return
        import torch

        name, began = self._current
        torch.cuda.synchronize(self._index)
        self._readings[name] = cuda_reading(name, self._index, seconds=time.perf_counter() - began)
        self._current = None


def cuda_reading(stage: str, index: int, *, seconds: float | None = None) -> Reading:
    """The allocator's figures (torch.cuda.memory_stats), the driver's, and other processes' on the device."""
    import torch

    stats = torch.cuda.memory_stats(index)
    free, total = torch.cuda.mem_get_info(index)
    process, others = process_bytes(index)
    return Reading(
        stage=stage,
        seconds=seconds,
        allocated=stats["allocated_bytes.all.current"],
        peak_allocated=stats["allocated_bytes.all.peak"],
        requested=stats.get("requested_bytes.all.current"),
        peak_requested=stats.get("requested_bytes.all.peak"),
        reserved=stats["reserved_bytes.all.current"],
        peak_reserved=stats["reserved_bytes.all.peak"],
        device_used=total - free,
        device_total=total,
        process_used=process,
        others_used=others,
        host_peak=resident_peak_bytes(),
    )


def _cuda_record(snapshot: Mapping[str, Any], index: int, marks: Sequence[tuple[str, int]]) -> Record:
    """The allocator's own history -> changes: each request as asked for, and when its block was given back.

    marks: stages and when they began, in microseconds of the system's clock, as the history's own times are. Source: torch 2.13,
    c10/cuda/CUDACachingAllocator.cpp, record_trace: "alloc" tells the size as requested.
    """
    changes: list[Change] = []
    stages: list[Stage] = []
    waiting = list(reversed(marks))
    for event in snapshot["device_traces"][index]:
        while waiting and event.get("time_us", 0) >= waiting[-1][1]:
            stages.append(Stage(name=waiting.pop()[0], first_event=len(changes)))
        if event["action"] == "alloc":
            changes.append(Change(event["size"], event["addr"]))
        elif event["action"] == "free_completed":
            changes.append(Change(-event["size"], event["addr"]))
    stages += [Stage(name=name, first_event=len(changes)) for name, _ in reversed(waiting)]
    return Record(changes=tuple(changes), stages=tuple(stages))


# --- room


def check_capacity(needed_bytes: int, free_bytes: int | None, device: str) -> None:
    """UnavailableError, with the arithmetic, where a run cannot fit; nothing where what is free is not known."""
    if free_bytes is not None and needed_bytes > free_bytes:
        raise UnavailableError(
            "no_room",
            device=device,
            needed=size(needed_bytes),
            free=size(free_bytes),
            short=size(needed_bytes - free_bytes),
        )


# --- the driver


@contextmanager
def _nvml() -> Iterator[Any]:
    """NVML, started; None where the package or the driver is missing."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _handle(nvml: Any, index: int) -> Any:
    """The device that torch calls `index`: by its UUID, for CUDA_VISIBLE_DEVICES renumbers torch's and not NVML's."""
    import torch

    identity = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    if identity is None:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity}")


def process_bytes(index: int) -> tuple[int | None, int | None]:
    """What the driver lays to this process, and to all others, on a device; None where it does not tell."""
    with _nvml() as nvml:
        if nvml is None:
            return None, None
        try:
            processes = nvml.nvmlDeviceGetComputeRunningProcesses(_handle(nvml, index))
        except nvml.NVMLError:
            return None, None
    mine = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
    others = [process.usedGpuMemory for process in processes if process.pid != os.getpid()]
    if None in mine or None in others:  # NVML tells no figure under some driver models
        return None, None
    return (mine[0] if mine else None), sum(others)


def driver_version() -> str | None:
    with _nvml() as nvml:
        return None if nvml is None else str(nvml.nvmlSystemGetDriverVersion())

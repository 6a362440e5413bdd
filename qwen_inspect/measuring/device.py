"""Reads a device's memory while a model runs: from CUDA's allocator and driver, or from PyTorch's profiler on the host.

A recorder's `stage` begins a stage and closes the one before with its readings. Nothing here depends on the kind of run.
"""

from __future__ import annotations

import gc
import os
import re
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import field, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import UnavailableError
from ..predicting.on_device import WORKSPACE
from ..results.measurement import Reading
from ..results.timeline import Change, Record, Stage
from ..units import size
from ..values import dataclass
from . import other_cards

if TYPE_CHECKING:
    from ..results.fit import Gpu

LONGEST_HISTORY = 1_000_000  # max_entries of the allocator's history


class Recorder(Protocol):
    """One run on one device."""

    def stage(self, name: str) -> None: ...
    def run(self, work: Callable[[], object]) -> object: ...
    def readings(self) -> tuple[Reading, ...]: ...
    def record(self) -> Record | None: ...


# --- the host


class HostRecorder:
    """PyTorch's allocations on CPU, as its profiler records them, on top of the `held_bytes` of the loaded model.

    The profiler restarts with each stage and each decode step, so that a long run needs no more memory than its longest part. Of
    the steps between first and last only the remaining blocks are recorded, except for the step with the highest peak.
    """

    def __init__(self, held_bytes: int) -> None:
        self._total = held_bytes
        self._alive: dict[int, int] = {}
        self._profiler: Any = None
        self._parts: list[_Part] = []
        self._readings: dict[str, Reading] = {}
        self._began = 0.0

    def stage(self, name: str) -> None:
        self._close()
        from torch.profiler import ProfilerActivity, profile

        self._parts.append(_Part(name))
        self._profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profiler.__enter__()
        self._began = time.perf_counter()

    def run(self, work: Callable[[], object]) -> object:
        gc.collect()
        collecting = gc.isenabled()
        gc.disable()  # the garbage collector must not free a cycle at an arbitrary moment
        try:
            return work()
        finally:  # keep what was recorded before an error
            self._close()
            if collecting:
                gc.enable()

    def record(self) -> Record:
        changes = [change for part in self._parts for change in part.changes]
        firsts = accumulate((len(part.changes) for part in self._parts), initial=0)
        stages = [Stage(name=part.stage, first_event=first) for part, first in zip(self._parts, firsts, strict=False)]
        return Record(changes=tuple(changes), stages=tuple(stages))

    def readings(self) -> tuple[Reading, ...]:
        """Bytes by stage, with all decode steps as one; seconds include the profiler's overhead."""
        return tuple(self._readings.values())

    def _close(self) -> None:
        """Adds the finished part to the readings and condenses earlier decode steps."""
        if self._profiler is None:
            return
        seconds = time.perf_counter() - self._began
        profiler, self._profiler = self._profiler, None
        profiler.__exit__(None, None, None)
        part = self._parts[-1]
        part.changes = _host_changes(profiler.profiler.kineto_results.experimental_event_tree())
        part.peak = self._total
        for change in part.changes:
            if change.size_bytes > 0:
                self._alive[change.address] = change.size_bytes
                self._total += change.size_bytes
                part.peak = max(part.peak, self._total)
            else:
                self._total -= self._alive.pop(change.address, 0)
        before = self._readings.get(part.stage)
        self._readings[part.stage] = Reading(
            stage=part.stage,
            seconds=seconds + (before.seconds or 0.0 if before else 0.0),
            allocated=self._total,
            peak_allocated=max(part.peak, before.peak_allocated if before else 0),
            host_peak=resident_peak_bytes(),
        )
        earlier = [part for part in self._parts[:-1] if part.stage == "decode"]
        for part in sorted(earlier, key=lambda part: part.peak)[:-1]:
            part.condense()


@dataclass(slots=True)
class _Part:
    """A stage or a decode step of a run on the host."""

    stage: str
    changes: list[Change] = field(default_factory=list)
    peak: int = 0
    condensed: bool = False

    def condense(self) -> None:
        """Keeps only the net effect: frees of earlier parts' blocks, and allocations that outlive this part."""
        if self.condensed:
            return
        given_back = []
        outliving: dict[int, Change] = {}
        for change in self.changes:
            if change.size_bytes > 0:
                outliving[change.address] = change
            elif outliving.pop(change.address, None) is None:
                given_back.append(change)
        self.changes = [*given_back, *outliving.values()]
        self.condensed = True


def _host_changes(roots: Any) -> list[Change]:
    """The CPU allocations and frees in the profiler's event tree, in order of time."""
    from torch._C._profiler import _EventType

    rows: list[tuple[int, Change]] = []
    waiting: list[tuple[Any, tuple[str, ...]]] = [(root, ()) for root in roots]
    while waiting:
        event, operators = waiting.pop()
        kind, allocation = event.typed
        if kind == _EventType.Allocation and allocation.device.type == "cpu":
            rows.append((event.start_time_ns, Change(allocation.alloc_size, allocation.ptr, operators)))
        waiting += [(child, (*operators, event.name)) for child in event.children]
    rows.sort(key=lambda row: row[0])
    return [change for _, change in rows]


def resident_peak_bytes() -> int:
    """The largest resident set of this process so far, the interpreter and its libraries included."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux: KiB; getrusage(2)


def free_host_bytes() -> int | None:
    """Bytes that this process can still allocate: the lesser of the kernel's estimate and its cgroup's limit; None if unknown."""
    limits = []
    try:
        available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        if available:
            limits.append(int(available[1]) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            limits.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(limits, default=None)


# --- CUDA


class CudaRecorder:
    """CUDA's caching allocator, by stage; peaks are reset at the start of a stage. Several devices are summed.

    steps: number of decode steps. history: also record every request on the first device, of decoding only in the last step; the
    blocks alive before it show what the steps in between changed.
    """

    def __init__(self, indices: Sequence[int], *, steps: int, history: bool, snapshot: Path | None = None) -> None:
        self._indices = indices
        self._index = indices[0]
        self._steps = steps
        self._history = history
        self._snapshot = snapshot
        self._readings: dict[str, Reading] = {}
        self._current: tuple[str, float] | None = None
        self._step = 0
        self._recording = False
        self._changes: list[Change] = []
        self._stages: list[Stage] = []
        self._loaded: dict[int, int] = {}

    def stage(self, name: str) -> None:
        """Closes the stage before and begins a new one; all decode steps are a single stage in the readings."""
        if self._current is None or self._current[0] != name or name != "decode":
            self._close()
            import torch

            for index in self._indices:
                torch.cuda.reset_peak_memory_stats(index)
            self._current = name, time.perf_counter()
        self._step += name == "decode"
        if self._history and (name != "decode" or self._step in (1, self._steps)):
            self._mark(name)

    def run(self, work: Callable[[], object]) -> object:
        import torch

        self._loaded = _blocks(torch.cuda.memory._snapshot(), self._index) if self._history else {}
        try:
            return work()
        finally:  # keep what was recorded before an error
            self._close()
            self._flush()
            if self._snapshot is not None:
                _write_snapshot(self._snapshot)

    def readings(self) -> tuple[Reading, ...]:
        return tuple(self._readings.values())

    def record(self) -> Record | None:
        return Record(changes=tuple(self._changes), stages=tuple(self._stages)) if self._history else None

    def _close(self) -> None:
        if self._current is None:
            return
        import torch

        name, began = self._current
        for index in self._indices:
            torch.cuda.synchronize(index)
        reading = cuda_reading(name, self._indices, seconds=time.perf_counter() - began)
        before = self._readings.get(name)
        self._readings[name] = reading if before is None else _together(before, reading)
        self._current = None

    def _mark(self, name: str) -> None:
        """Begins a new part of the record. Between the first and the last decode step nothing is recorded."""
        import torch

        self._flush()
        if self._step == self._steps > 1:
            alive = _blocks(torch.cuda.memory._snapshot(), self._index)
            self._changes += _between(_alive_after(self._changes), alive, self._loaded)
        self._stages.append(Stage(name=name, first_event=len(self._changes)))
        if name != "decode" or self._step == self._steps:
            torch.cuda.memory._record_memory_history("all", context=None, max_entries=LONGEST_HISTORY)
            self._recording = True

    def _flush(self) -> None:
        if not self._recording:
            return
        import torch

        self._changes += _cuda_changes(torch.cuda.memory._snapshot(), self._index)
        torch.cuda.memory._record_memory_history(None)
        self._recording = False


def _together(before: Reading, after: Reading) -> Reading:
    """Combines readings of a stage that came twice, such as the forward of two training steps."""
    largest = {
        name: max(earlier, later)
        for name in ("peak_allocated", "peak_requested", "peak_reserved")
        if (earlier := getattr(before, name)) is not None and (later := getattr(after, name)) is not None
    }
    return replace(after, seconds=(before.seconds or 0.0) + (after.seconds or 0.0), **largest)


def _write_snapshot(path: Path) -> None:
    """Writes PyTorch's memory snapshot atomically. It is a pickle, for pytorch.org/memory_viz."""
    import torch

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        torch.cuda.memory._dump_snapshot(str(part))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def cuda_reading(stage: str, indices: Sequence[int], *, seconds: float | None = None) -> Reading:
    """Figures of the allocator (torch.cuda.memory_stats), the driver and other processes, summed over the devices."""
    return replace(_sum(one_cuda_reading(stage, index) for index in indices), seconds=seconds)


def one_cuda_reading(stage: str, index: int) -> Reading:
    import torch

    stats = torch.cuda.memory_stats(index)
    free, total = torch.cuda.mem_get_info(index)
    process, others = process_bytes(index)
    return Reading(
        stage=stage,
        seconds=None,
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


def _sum(readings: Iterable[Reading]) -> Reading:
    """Sums readings of several devices; a figure is None if any device lacks it. The host's peak is not summed."""
    first, *others = readings
    names = [field.name for field in fields(Reading) if field.name not in ("stage", "seconds", "host_peak")]
    sums: dict[str, Any] = {}
    for name in names:
        values = [getattr(reading, name) for reading in (first, *others)]
        sums[name] = None if None in values else sum(values)
    return replace(first, **sums)


def _cuda_changes(snapshot: Mapping[str, Any], index: int) -> list[Change]:
    """The allocator's own history: each request with its requested size, and each free.

    Source: torch 2.13, c10/cuda/CUDACachingAllocator.cpp, record_trace; torch/cuda/memory.py, _snapshot
    """
    changes = []
    for event in snapshot["device_traces"][index]:
        if event["action"] == "alloc":
            changes.append(Change(event["size"], event["addr"]))
        elif event["action"] == "free_completed":
            changes.append(Change(-event["size"], event["addr"]))
    return changes


def _blocks(snapshot: Mapping[str, Any], index: int) -> dict[int, int]:
    """Address and requested bytes of each block that is handed out."""
    requested_bytes = {}
    for segment in snapshot["segments"]:
        address = segment["address"]
        for block in segment["blocks"] if segment["device"] == index else ():
            if block["state"] == "active_allocated":
                requested_bytes[address] = block["requested_size"]
            address += block["size"]
    return requested_bytes


def _alive_after(changes: Sequence[Change]) -> dict[int, int]:
    alive: dict[int, int] = {}
    for change in changes:
        if change.size_bytes > 0:
            alive[change.address] = change.size_bytes
        else:
            alive.pop(change.address, None)
    return alive


def free_workspaces(indices: Sequence[int]) -> dict[int, int]:
    """Frees cuBLAS's workspaces, which outlive the calls, and returns their bytes by address.

    Each handle, and so each thread that multiplies, has one; cuBLASLt has its own. Source: torch 2.13,
    aten/src/ATen/cuda/CublasHandlePool.cpp
    """
    import torch

    before = _blocks_of(torch.cuda.memory._snapshot(), indices)
    torch._C._cuda_clearCublasWorkspaces()
    after = _blocks_of(torch.cuda.memory._snapshot(), indices)
    return {address: size for address, size in before.items() if address not in after}


def _blocks_of(snapshot: Mapping[str, Any], indices: Sequence[int]) -> dict[int, int]:
    """`_blocks` of several devices. Their addresses differ: CUDA has one address space for all devices."""
    return {address: size for index in indices for address, size in _blocks(snapshot, index).items()}


def with_workspaces(record: Record, addresses: Container[int]) -> Record:
    """The record with the requests labelled as workspaces whose blocks lie at these addresses at the end."""
    waiting = set(_alive_after(record.changes))
    changes = list(record.changes)
    for index in range(len(changes) - 1, -1, -1):
        change = changes[index]
        if change.size_bytes > 0 and change.address in waiting:
            waiting.discard(change.address)
            if change.address in addresses:
                changes[index] = change._replace(operators=(WORKSPACE,))
    return replace(record, changes=tuple(changes))


def _between(before: Mapping[int, int], after: Mapping[int, int], loaded: Mapping[int, int]) -> list[Change]:
    """The net changes of unrecorded steps, from the blocks alive before and after them."""
    freed = [Change(-size, address) for address, size in before.items() if after.get(address) != size]
    new = [
        Change(size, address)
        for address, size in after.items()
        if before.get(address) != size and loaded.get(address) != size
    ]
    return freed + new


# --- room


def check_capacity(needed_bytes: int, free_bytes: int | None, device: str) -> None:
    """UnavailableError, with the figures, if a run cannot fit; passes if the free memory is unknown."""
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
def _started_nvml() -> Iterator[Any]:
    """NVML, initialised. ImportError without its package, NVMLError if the driver is missing or refuses."""
    import pynvml

    pynvml.nvmlInit()
    try:
        yield pynvml
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


@contextmanager
def _nvml() -> Iterator[Any]:
    """NVML, initialised; None if the package or the driver is missing."""
    with ExitStack() as stack:
        try:
            import pynvml
        except ImportError:
            yield None
            return
        try:
            nvml = stack.enter_context(_started_nvml())
        except pynvml.NVMLError:
            nvml = None
        yield nvml


def _handle(nvml: Any, index: int) -> Any:
    """NVML's handle of torch's device `index`, by UUID, because CUDA_VISIBLE_DEVICES renumbers only torch's devices."""
    import torch

    identity = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    if identity is None:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity}")


def process_bytes(index: int) -> tuple[int | None, int | None]:
    """(this process's bytes, all others' bytes) on a device, as the driver reports them; None if it does not."""
    with _nvml() as nvml:
        if nvml is None:
            return None, None
        try:
            processes = nvml.nvmlDeviceGetComputeRunningProcesses(_handle(nvml, index))
        except nvml.NVMLError:
            return None, None
    mine = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
    others = [process.usedGpuMemory for process in processes if process.pid != os.getpid()]
    if None in mine or None in others:  # NVML has no figures under some driver models
        return None, None
    return (mine[0] if mine else None), sum(others)


def cards_here() -> tuple[Gpu, ...]:
    """This machine's cards according to NVML, else AMD's or Apple's; UnavailableError if there is none or no way to ask."""
    try:
        import pynvml
    except ImportError:
        return _cards_without_nvml()
    try:
        with _started_nvml() as nvml:
            cards = tuple(_card(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError_LibraryNotFound:
        return _cards_without_nvml()
    except pynvml.NVMLError as error:
        raise UnavailableError("nvml_failed", reason=str(error)) from None
    if not cards:
        raise UnavailableError("nvml_no_card")
    return cards


def _cards_without_nvml() -> tuple[Gpu, ...]:
    cards = other_cards.cards()
    if not cards:
        raise UnavailableError("nvml_missing")
    return cards


def _card(nvml: Any, index: int) -> Gpu:
    """One card. usable_bytes excludes the driver's reserved memory; None for drivers before 510, which do not report it.

    NVML reports no memory of a GPU that shares the host's, as DGX Spark's: the host's total is that GPU's, for CUDA too.
    Sources: nvml.h of CUDA 12, nvmlMemory_v2_t, whose `free` is the unused part of the rest; NVIDIA, DGX Spark user guide, known
    issues (Memory-Usage: Not Supported)
    """
    from ..results.fit import Gpu

    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    capability = tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle))
    name = str(nvml.nvmlDeviceGetName(handle))
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        usable_bytes = memory.total - memory.reserved
    except nvml.NVMLError_FunctionNotFound:
        memory, usable_bytes = nvml.nvmlDeviceGetMemoryInfo(handle), None
    except nvml.NVMLError_NotSupported:
        total, available = other_cards.host_memory()
        return Gpu(
            name=name,
            kind="here",
            unified=True,
            memory_bytes=total,
            free_bytes=available,
            compute_capability=capability,
            device_names=(name,),
        )
    return Gpu(
        name=name,
        kind="here",
        memory_bytes=memory.total,
        reported_bytes=memory.total,
        usable_bytes=usable_bytes,
        free_bytes=memory.free,
        compute_capability=capability,
        device_names=(name,),
    )


def driver_version() -> str | None:
    with _nvml() as nvml:
        return None if nvml is None else str(nvml.nvmlSystemGetDriverVersion())

"""A CUDA device's memory while a model runs, from PyTorch's caching allocator."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path

from ..predicting.allocation.on_device import WORKSPACE
from ..results.measurement import Reading
from ..results.timeline import Change, Record, Stage
from ..typed import TYPE_CHECKING, Any
from ..values import fields, replace

if TYPE_CHECKING:
    pass
from .host import resident_peak_bytes
from .nvml import process_bytes

LONGEST_HISTORY = 1_000_000  # max_entries of the allocator's history


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

"""The host's memory while a model runs, from PyTorch's profiler and the kernel."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

from ..results.measurement import Reading
from ..results.timeline import Change, Record, Stage
from ..typed import TYPE_CHECKING, Any
from ..values import dataclass, field

if TYPE_CHECKING:
    pass


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

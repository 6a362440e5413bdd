"""A run that was really made, held against its prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..language import Message
    from .memory import Alive, Footprint, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a card was measured to take besides the model: the context outside the allocator, and cuBLAS's workspace.

    date: of the measurement, ISO 8601. gpu, driver, torch, transformers: the key, for each of them changes the figures.
    """

    gpu: str
    driver: str
    torch: str
    transformers: str
    date: str
    context_bytes: int
    workspace_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a device told when a stage was over, in bytes; peaks are those of the stage. None where it does not tell.

    allocated, requested, reserved: the allocator's. device_used, device_total: the driver's, of all processes; process_used,
    others_used: of this process and of all others. host_peak: the largest resident set of the process so far.
    """

    stage: str
    seconds: float | None
    allocated: int
    peak_allocated: int
    host_peak: int
    requested: int | None = None
    peak_requested: int | None = None
    reserved: int | None = None
    peak_reserved: int | None = None
    device_used: int | None = None
    device_total: int | None = None
    process_used: int | None = None
    others_used: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A run that was really made. footprint: its terms, as far as they could be read.

    device: "cpu", or the card's name. versions: of libraries and driver. scratch: what was alive at the peak and is not in the
    trace, by operator. parted: where the run's allocations and the trace part. partial: why it ended early.
    load_peak_bytes: the most that was allocated while the weights came, which no other peak takes in; None on CPU.
    """

    device: str
    versions: tuple[tuple[str, str], ...]
    readings: tuple[Reading, ...]
    footprint: Footprint
    load_peak_bytes: int | None = None
    scratch: tuple[Alive, ...] = ()
    parted: Message | None = None
    partial: Message | None = None
    notices: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptMeasurement:
    """What `memory --device` found on some machine and wrote to the file `path`: of a model of this class, in this dtype.

    is_partial: the run ended early.
    """

    path: str
    class_name: str
    model_type: str
    dtype: str
    run: Run
    device: str
    versions: tuple[tuple[str, str], ...]
    differences: tuple[Difference, ...]
    is_partial: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCause:
    """Why a measured figure is larger (or, where negative, smaller) than the predicted one, by how many bytes."""

    message: Message
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A term as predicted and as measured, None where unknown, and the named causes of what lies between."""

    term: str
    predicted: int | None
    measured: int | None
    causes: tuple[MemoryCause, ...] = ()

    @property
    def difference(self) -> int | None:
        return None if self.predicted is None or self.measured is None else self.measured - self.predicted

    @property
    def residual(self) -> int | None:
        """What no cause explains."""
        return None if self.difference is None else self.difference - sum(cause.size_bytes for cause in self.causes)

"""A measured run, and its differences from the prediction."""

from __future__ import annotations

from ..typed import TYPE_CHECKING
from ..values import dataclass

if TYPE_CHECKING:
    from ..language import Message
    from .memory import Alive, Footprint, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a card takes besides the model, as measured: the CUDA context and cuBLAS's workspace.

    date: of the measurement, ISO 8601. gpu, driver, torch, transformers: the key, since each changes the figures.
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
    """A device's figures at the end of a stage, in bytes; peaks are those of the stage. None if the device does not report it.

    allocated, requested, reserved: the allocator's. device_used, device_total: the driver's, for all processes; process_used,
    others_used: for this process and for all others. host_peak: the process's largest resident set so far.
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
    """A measured run. footprint: its terms, as far as they could be read.

    device: "cpu", or the card's name. versions: of libraries and driver. scratch: what was alive at the peak but is not in the
    trace, by operator. parted: the first allocation that differs from the trace. partial: why the run ended early.
    load_peak_bytes: the most allocated while the weights were loaded, not part of any other peak; None on CPU.
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
    """A measurement that `memory --device` wrote to the file `path`, on some machine, for this class and dtype.

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
    """Why a measured figure is larger (or smaller, if negative) than the predicted one, and by how many bytes."""

    message: Message
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A term as predicted and as measured (None: unknown), and the named causes of the difference."""

    term: str
    predicted: int | None
    measured: int | None
    causes: tuple[MemoryCause, ...] = ()

    @property
    def difference(self) -> int | None:
        return None if self.predicted is None or self.measured is None else self.measured - self.predicted

    @property
    def residual(self) -> int | None:
        """The part of the difference that no cause explains."""
        return None if self.difference is None else self.difference - sum(cause.size_bytes for cause in self.causes)

"""What a command of llama.cpp allocates: its buffers by device, what fits, and a log beside the prediction."""

from __future__ import annotations

from ..typed import TYPE_CHECKING, Literal
from ..values import dataclass
from .fit import Gpu

if TYPE_CHECKING:
    from ..language import Message
    from .model import Report

BufferKind = Literal["weights", "cache", "state", "compute", "output", "projector", "draft", "adapter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """A buffer as llama.cpp prints it. device: "CUDA0", "CUDA_Host", "CPU", "CPU_Mapped", "CPU_REPACK".

    size_bytes: None if unknown.
    context: the model's own, a draft model's, or that of the model's layers for multi-token prediction.
    least_bytes, most_bytes: a range over the known builds, or what is known of an unknown size; None: no upper end.
    """

    kind: BufferKind
    device: str
    size_bytes: int | None
    context: Literal["model", "draft", "mtp", "projector"] = "model"
    least_bytes: int | None = None
    most_bytes: int | None = None

    @property
    def low_bytes(self) -> int:
        return self.size_bytes if self.size_bytes is not None else self.least_bytes or 0

    @property
    def high_bytes(self) -> int | None:
        return self.size_bytes if self.size_bytes is not None else self.most_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTotal:
    """A card, or the host (`gpu` is None), and the buffers there. high_bytes: None if one is unknown.

    available_bytes: None if the host's memory was not given. fits: None if uncertain.
    """

    device: str
    gpu: Gpu | None
    low_bytes: int
    high_bytes: int | None
    available_bytes: int | None
    fits: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """A printed buffer and the prediction. printed: in hundredths of a MiB; None if the log lacks it.

    predicted_bytes: None if nothing of that kind and device is predicted, or its size is unknown.
    """

    kind: BufferKind
    device: str
    printed: int | None
    predicted_bytes: int | None
    agrees: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """The largest -c and -ngl, and the smallest --n-cpu-moe, that fit with all else as in the command; None if not known."""

    context_tokens: int | None
    offloaded: int | None
    host_experts: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What --fit, on by default, makes of a command that leaves less than its margins free.

    split: layers by card, () for a single card. overrides: patterns and devices of -ot.
    """

    context_tokens: int
    offloaded: int
    split: tuple[int, ...]
    overrides: tuple[tuple[str, str], ...]
    devices: tuple[DeviceTotal, ...]

    @property
    def options(self) -> str:
        """As they are typed."""
        split = f" -ts {','.join(map(str, self.split))}" if self.split else ""
        moved = "".join(f" -ot '{pattern}={device}'" for pattern, device in self.overrides)
        return f"-c {self.context_tokens} -ngl {self.offloaded}{split}{moved}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenQuantisation:
    """What --quant largest chose. name: of llama-quantize, or what to type for a stored file. size_bytes: of weights or files."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppReport:
    """A command of llama.cpp for one model on cards that work together, and the host."""

    report: Report
    program: str
    build: str
    build_is_known: bool
    context_tokens: int
    cells: int
    sequences: int
    offloaded: int
    layers: int
    flash_attention: bool
    cache_types: tuple[str, str]
    buffers: tuple[Buffer, ...]
    devices: tuple[DeviceTotal, ...]
    reach: Reach
    ignored: tuple[str, ...]
    notices: tuple[Message, ...]
    log: tuple[LogLine, ...] | None
    fitted: Fitted | None = None
    quantisation: ChosenQuantisation | None = None

    @property
    def fits(self) -> bool | None:
        """False if a device is too small; None if one is uncertain."""
        verdicts = [device.fits for device in self.devices if device.available_bytes is not None]
        return False if False in verdicts else None if None in verdicts else True

    @property
    def differs(self) -> bool:
        return self.log is not None and any(line.agrees is False for line in self.log)

"""A run and its footprint on a device."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal

from ..units import MIB

if TYPE_CHECKING:
    from ..errors import QwenInspectError
    from ..language import Message
    from .course import Course
    from .exploration import Exploration
    from .measurement import Calibration, Difference, Measurement
    from .model import Report
    from .ranks import DeviceMapReport, RanksReport
    from .training import Training

Mode = Literal["generate", "forward", "train"]
Loader = Literal["warmup", "per-tensor"]
Optimizer = Literal["adamw_foreach", "adamw_fused", "adamw_for_loop", "adamw_8bit", "sgd", "none"]
Cache = Literal["dynamic", "static"]
Autocast = Literal["bfloat16", "float16"]
Method = Literal["trace", "formula", "stored", "measured"]

# What a process with PyTorch takes of a card outside its allocator: the CUDA context and what is loaded into it. Where the card
# was not measured, a range that contains all that is known: 135 MiB on a T4, the least published; about 300 MB since CUDA 11.7
# loads kernels when they are first needed (pytorch/pytorch issue 107667); 200 to 700 MB on several machines (28113); an H100's.
ANY_CONTEXT_BYTES = 135 * MIB, 890 * MIB
# An H100's by mode: what NVML counts of the process less what is reserved, in the runs of benchmarks/recorded (driver 580,
# CUDA 13.0, torch 2.11); the upper end of generation is that of 2,048 decoded tokens.
H100_CONTEXT_BYTES = {
    "generate": (678 * MIB, 890 * MIB),
    "forward": (678 * MIB, 692 * MIB),
    "train": (742 * MIB, 758 * MIB),
}


def context_range(run: Run) -> tuple[int, int]:
    """The low and the high end of what a process that makes `run` takes outside the allocator: equal where it was measured."""
    if run.calibration is not None:
        return run.calibration.context_bytes, run.calibration.context_bytes
    return H100_CONTEXT_BYTES[run.mode] if "h100" in run.gpu.lower() else ANY_CONTEXT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What the allocator holds at one moment of a run, in bytes that add up: requested by use, and what rounding adds.

    Every field from `weights` to `rounding` is a term of the sum; `TERMS` names them in this order. activations: None where no
    trace tells them; `allocated` is then a lower bound. All but the weights are None where the architecture is not known, and
    then so is what is allocated. total: what is allocated where it was read, not added up. adapters: LoRA's matrices, not in
    the weights. gathered: whole weights that FSDP has put together for a while, beside its share of them.
    """

    stage: str
    weights: int
    gathered: int = 0
    adapters: int = 0
    buffers: int | None = None
    cache: int | None = None
    state: int | None = None
    gradients: int | None = None
    optimizer: int | None = None
    activations: int | None = None
    workspace: int | None = None
    rounding: int | None = None
    total: int | None = None

    @property
    def bytes_by_term(self) -> dict[str, int | None]:
        """Every term of the sum, in the order of `TERMS`."""
        return {term: getattr(self, term) for term in TERMS}

    @property
    def allocated(self) -> int | None:
        if self.total is not None:
            return self.total
        known = [size_bytes for size_bytes in self.bytes_by_term.values() if size_bytes is not None]
        unknown = {term for term, size_bytes in self.bytes_by_term.items() if size_bytes is None}
        return sum(known) if unknown <= {"activations"} else None

    @property
    def at_least(self) -> bool:
        """Whether `allocated` is a lower bound, on top of which come activations that are not known."""
        return self.total is None and self.activations is None and self.allocated is not None


# The terms of a moment, in the order in which they are shown. Every list of them is made from this one.
TERMS = tuple(one.name for one in fields(Moment) if one.name not in ("stage", "total"))
LOADED_TERMS = ("weights", "adapters", "buffers")  # what loading puts there, before anything runs
RARE_TERMS = ("gathered", "adapters")  # 0 but where FSDP gathers, or LoRA trains
OF_SOME_RUNS = (*RARE_TERMS, "cache", "state", "gradients", "optimizer")  # told where there is something of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    """Storages alike that were alive at the peak: where they were made, by what, how many, and their bytes as requested."""

    component: str
    operator: str
    storages: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakRange:
    """Between what a peak lies whose kernels no trace tells. low: what is allocated then at least, low_reserved_bytes: reserved.

    scratch_bytes: what may come on top, None where nothing bounds it. source: how both ends are told.
    """

    low: Moment
    low_reserved_bytes: int
    scratch_bytes: int | None
    source: Message

    @property
    def allocated_bytes(self) -> tuple[int, int | None]:
        low = self.low.allocated or 0
        return low, None if self.scratch_bytes is None else low + self.scratch_bytes

    @property
    def reserved_bytes(self) -> tuple[int, int | None]:
        low = self.low_reserved_bytes
        return low, None if self.scratch_bytes is None else low + self.scratch_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """A run's memory on a GPU. steady: at its end, with the cache full. context_bytes: outside the allocator,
    None where unmeasured.

    context_range_bytes: where it was not measured, what it may be.
    method: "trace", "formula", or "stored" where the architecture is not known. A formula knows no activations: its peak is None,
    and nothing stands in for it. peak_range: where
    the peak is only known to lie between two figures. course: the way there, for a plot; None where nobody asked for it.
    """

    method: Method
    steady: Moment
    peak: Moment | None
    peak_reserved: int | None
    context_bytes: int | None
    alive: tuple[Alive, ...]
    assumptions: tuple[Message, ...]
    provenance: str
    context_range_bytes: tuple[int, int] = ANY_CONTEXT_BYTES
    peak_range: PeakRange | None = None
    course: Course | None = field(default=None, compare=False)

    @property
    def context_ends(self) -> tuple[int, int]:
        """The low and the high end of the context; equal where it was measured."""
        return self.context_range_bytes if self.context_bytes is None else (self.context_bytes, self.context_bytes)

    @property
    def steady_allocated_bytes(self) -> int | None:
        return self.steady.allocated

    @property
    def peak_allocated_bytes(self) -> int | None:
        return None if self.peak is None else self.peak.allocated

    @property
    def peak_reserved_bytes(self) -> int | None:
        return self.peak_reserved

    @property
    def required_bytes(self) -> tuple[int, int] | None:
        """What a card must have: segments and context, at either end of both ranges; None where nothing bounds the peak."""
        low, high = self.context_ends
        if self.peak_range is not None:
            least, most = self.peak_range.reserved_bytes
            return None if most is None else (least + low, most + high)
        if self.peak_reserved is None:
            return None
        return self.peak_reserved + low, self.peak_reserved + high

    @property
    def total_bytes(self) -> int | None:
        """Segments and context; None where the context was not measured."""
        return (
            None
            if self.peak_reserved is None or self.context_bytes is None
            else self.peak_reserved + self.context_bytes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is to be run on the device, for a footprint. allocator: PYTORCH_CUDA_ALLOC_CONF's text.

    optimizer, checkpointing, trained (a regular expression on parameters' names), accumulate (micro-batches in a step), lora_rank
    and lora_targets (ends of modules' names, or "all-linear" alone): of training alone. checkpointing: None is as PEFT has it, on
    with a quantised base. attention: a kernel, or "auto" for the one that `from_pretrained` chooses, which a prediction's run
    names. cache_format: as in `Workload`. cache: of `generate`, "dynamic", or "static", whose length is fixed from the start.
    device: "cuda", or "cpu", whose allocator rounds nothing and keeps nothing. padded: sequences differ in length, so that all
    but the longest are padded and there is a mask. autocast: torch.autocast's dtype, where there is one.
    """

    mode: Mode = "generate"
    batch: int = 1
    prompt_tokens: int = 2048
    new_tokens: int = 128
    attention: str = "auto"
    loader: Loader = "warmup"
    gpu: str = "sm_80"
    allocator: str = ""
    optimizer: Optimizer = "adamw_foreach"
    checkpointing: bool | None = None
    trained: str = ""
    accumulate: int = 1
    lora_rank: int | None = None
    lora_targets: tuple[str, ...] = ("all-linear",)
    cache_format: str = "auto"
    cache: Cache = "dynamic"
    autocast: Autocast | None = None
    device: str = "cuda"
    calibration: Calibration | None = None
    padded: bool = False

    @property
    def training_options(self) -> tuple[str, ...]:
        """What is asked for of what is of training alone, as the command line calls it."""
        asked = {
            "--lora": self.lora_rank is not None,
            "--accumulate": self.accumulate > 1,
            "--trained": self.trained,
            "--checkpointing": self.checkpointing,
            "--optimizer": self.optimizer != "adamw_foreach",
        }
        return tuple(option for option, value in asked.items() if value)

    @property
    def decodes_untraced(self) -> bool:
        """Whether its decoding is compiled, of which no trace tells. Source: transformers 5.23, _valid_auto_compile_criteria"""
        return self.cache == "static" and self.device == "cuda" and self.new_tokens > 1

    @property
    def context_tokens(self) -> int:
        """What `fit` calls the context: the prompt."""
        return self.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        """Tokens of each sequence in the cache when it is fullest; the last new token is not fed back."""
        return self.prompt_tokens + (self.new_tokens - 1 if self.mode == "generate" else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """A model's footprint for a run, and the same as measured. refusal: why it is not the whole answer, where it is not.

    exploration: the run for any other workload, for a page; None where nobody asked for it, or where it is not known.
    training: what is trained; None where the run does not train, or where the architecture is not known.
    ranks, device_map: the model over several devices, where that was asked for; `predicted` is for one all the same.
    """

    report: Report
    run: Run
    predicted: Footprint
    training: Training | None = None
    refusal: QwenInspectError | None = None
    measured: Measurement | None = None
    differences: tuple[Difference, ...] = ()
    exploration: Exploration | None = field(default=None, compare=False)
    ranks: RanksReport | None = None
    device_map: DeviceMapReport | None = None

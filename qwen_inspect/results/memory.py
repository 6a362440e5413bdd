"""A run and its footprint on a device."""

from __future__ import annotations

from ..typed import TYPE_CHECKING, Literal
from ..units import MIB
from ..values import dataclass, field, fields
from .training import Loop

if TYPE_CHECKING:
    from ..errors import QwenInspectError
    from ..language import Message
    from .colocated import Colocated
    from .course import Course
    from .exploration import Exploration
    from .measurement import Calibration, Difference, Measurement
    from .media import Media
    from .model import Report
    from .ranks import DeviceMapReport, RanksReport
    from .speed import Speed
    from .training import Training

Mode = Literal["generate", "forward", "train"]
Loader = Literal["warmup", "per-tensor"]
Optimizer = Literal[
    "adamw_foreach", "adamw_fused", "adamw_for_loop", "adamw_8bit", "paged_adamw", "paged_adamw_8bit",
    "sgd", "sgd_momentum", "adafactor", "lion", "lion_8bit", "muon", "none",
]  # fmt: skip
Cache = Literal["dynamic", "static"]
Autocast = Literal["bfloat16", "float16"]
Method = Literal["trace", "formula", "stored", "measured"]

DEFAULT_ALPHA = 8  # of LoRA's scale. Source: PEFT 0.21, LoraConfig.lora_alpha

PACKING = ("4.53", "4.54", "4.55", "4.56", "4.57")

# What a process with PyTorch takes of a card outside its allocator: the CUDA context and what is loaded into it. For a card that
# was not measured, a range of all known figures: 135 MiB on a T4, the least published; about 300 MB since CUDA 11.7, which
# loads kernels lazily (pytorch/pytorch issue 107667); 200 to 700 MB on several machines (28113); an H100's.
ANY_CONTEXT_BYTES = 135 * MIB, 890 * MIB
# An H100's by mode: NVML's figure for the process minus the reserved bytes, in the runs of benchmarks/recorded (driver 580,
# CUDA 13.0, torch 2.11); the upper end of generation is that of 2,048 decoded tokens.
H100_CONTEXT_BYTES = {
    "generate": (678 * MIB, 890 * MIB),
    "forward": (678 * MIB, 692 * MIB),
    "train": (742 * MIB, 758 * MIB),
}


def context_range(run: Run) -> tuple[int, int]:
    """The low and the high end of the bytes that a process running `run` takes outside the allocator; equal if measured."""
    if run.calibration is not None:
        return run.calibration.context_bytes, run.calibration.context_bytes
    return H100_CONTEXT_BYTES[run.mode] if "h100" in run.gpu.lower() else ANY_CONTEXT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Allocated bytes at one moment of a run: requested bytes by use, and what rounding adds.

    Every field from `weights` to `rounding` is a term of the sum; `TERMS` names them in this order. activations: None without a
    trace; `allocated` is then a lower bound. If the architecture is unknown, all terms but the weights are None, and so is
    `allocated`. total: the allocated bytes if measured instead of added up. adapters: LoRA's matrices, not part of the weights.
    gathered: whole weights that FSDP holds temporarily, in addition to its shard.
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
        unknown = {term for term, size_bytes in self.bytes_by_term.items() if size_bytes is None}
        if not unknown <= {"activations"}:
            return None
        return sum(size_bytes or 0 for size_bytes in self.bytes_by_term.values())

    @property
    def at_least(self) -> bool:
        """Whether `allocated` is a lower bound, because the activations are unknown."""
        return self.total is None and self.activations is None and self.allocated is not None


# The terms of a moment, in display order. Every list of terms derives from this one.
TERMS = tuple(term.name for term in fields(Moment) if term.name not in ("stage", "total"))
LOADED_TERMS = ("weights", "adapters", "buffers")  # present after loading, before anything runs
RARE_TERMS = ("gathered", "adapters")  # 0 unless FSDP gathers or LoRA trains
OF_SOME_RUNS = (*RARE_TERMS, "cache", "state", "gradients", "optimizer")  # shown only if not 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    """Storages of one component and operator that were alive at the peak: their number and requested bytes."""

    component: str
    operator: str
    storages: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakRange:
    """The range of a peak whose kernels no trace shows. low, low_reserved_bytes: lower bounds of allocated and reserved bytes.

    scratch_bytes: the most that may be added, None if unbounded. source: where both ends come from.
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
    """A run's memory on a GPU. steady: at its end, with the cache full. peak: None for a formula, which knows no activations.

    context_bytes: outside the allocator, None if not measured; context_range_bytes: its range then. method: "trace", "formula",
    "measured", or "stored" if the architecture is unknown. peak_range: if only a range of the peak is known. course: the
    allocator's memory over time, for a plot; None if not requested.
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
        """The low and the high end of the context; equal if measured."""
        return self.context_range_bytes if self.context_bytes is None else (self.context_bytes, self.context_bytes)

    @property
    def peak_at_least(self) -> Moment:
        """The peak; if it is a range, its low end; if it is unknown, the run's end."""
        return self.peak or (self.steady if self.peak_range is None else self.peak_range.low)

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
        """What a card must have: segments and context, at both ends of their ranges; None if the peak is unbounded."""
        low, high = self.context_ends
        if self.peak_range is not None:
            least, most = self.peak_range.reserved_bytes
            return None if most is None else (least + low, most + high)
        if self.peak_reserved is None:
            return None
        return self.peak_reserved + low, self.peak_reserved + high

    @property
    def required_ends(self) -> tuple[int, int | None] | None:
        """`required_bytes`, or only a lower bound: (low, None). Without a peak that is what the run's end allocates.

        None if not even that is known.
        """
        if self.required_bytes is not None:
            return self.required_bytes
        low = self.steady.allocated if self.peak_range is None else self.peak_range.low_reserved_bytes
        return None if low is None else (low + self.context_ends[0], None)

    @property
    def total_bytes(self) -> int | None:
        """Segments and context; None if the context was not measured."""
        return (
            None
            if self.peak_reserved is None or self.context_bytes is None
            else self.peak_reserved + self.context_bytes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The run whose footprint is predicted or measured. allocator: PYTORCH_CUDA_ALLOC_CONF's text.

    Only for training: optimizer, checkpointing, accumulate (micro-batches in a step), trained and frozen (regular expressions on
    parameters' names: those that train, and those of them that do not). Of LoRA: lora_rank, lora_targets (suffixes of modules'
    names, or only "all-linear"), lora_parameters (suffixes of parameters' names), saved_modules (suffixes of the names of modules
    that are trained as whole copies), lora_alpha, lora_dropout, dora, rslora. checkpointing: None is PEFT's default, on with a
    quantised base. attention: a kernel, or "auto" for `from_pretrained`'s choice, which a prediction's run then names.
    cache_format: as in `Workload`. cache: for `generate`; "static" has a fixed length from the start. device: "cuda", or "cpu",
    whose allocator neither rounds nor caches. padded: sequences differ in length, so all but the longest are padded and there
    is a mask. autocast: torch.autocast's dtype, if enabled. loop: what is around a training step.
    transformers: the version to predict, such as 4.57; None for the installed one. media: images and videos of every sequence.
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
    lora_parameters: tuple[str, ...] = ()
    saved_modules: tuple[str, ...] = ()
    lora_alpha: int = DEFAULT_ALPHA
    lora_dropout: float = 0.0
    dora: bool = False
    rslora: bool = False
    frozen: str = ""
    cache_format: str = "auto"
    cache: Cache = "dynamic"
    autocast: Autocast | None = None
    device: str = "cuda"
    calibration: Calibration | None = None
    padded: bool = False
    loop: Loop = Loop()
    transformers: str | None = None
    media: Media | None = None

    @property
    def training_options(self) -> tuple[str, ...]:
        """The command-line names of the training options that differ from their defaults."""
        is_set = {
            "--lora": self.lora_rank is not None,
            "--loop": self.loop.name,
            "--accumulate": self.accumulate > 1,
            "--trained": self.trained,
            "--freeze": self.frozen,
            "--checkpointing": self.checkpointing,
            "--optimizer": self.optimizer != "adamw_foreach",
            "--keep-gradients": self.loop.keep_gradients,
            "--keep-logits": self.loop.keep_logits != "no",
            "--clip": self.loop.clip,
            "--ema": self.loop.ema,
            "--loss": self.loop.loss != "model",
            "--completion-only": self.loop.completion_tokens,
            "--padding-free": self.loop.padding_free,
        }
        return tuple(option for option, value in is_set.items() if value)

    @property
    def adapters_text(self) -> Message:
        """The adapters that the run trains, in words."""
        from ..language import Message

        targets = ", ".join((*self.lora_targets, *self.lora_parameters))
        adapters = Message("trained_dora" if self.dora else "trained_lora", rank=self.lora_rank, targets=targets)
        if not self.saved_modules:
            return adapters
        return Message("trained_and_copies", adapters=adapters, modules=", ".join(self.saved_modules))

    @property
    def packed(self) -> bool:
        """Whether transformers makes a mask of packed sequences for a batch that has none, and so attends with a mask. Flash
        attention needs none.

        Source: transformers 4.53.1 to 4.57.6, masking_utils.py, _preprocess_mask_arguments; 5.0 looks first for any.
        """
        if self.loop.padding_free:
            return (self.loop.in_one_row(self.batch) or 1) > 1 and not self.attention.startswith("flash")
        return self.transformers in PACKING and self.mode == "train" and not (self.padded or self.loop.masked)

    @property
    def decodes_untraced(self) -> bool:
        """Whether decoding is compiled and so not traced. Source: transformers 5.23, _valid_auto_compile_criteria"""
        return self.cache == "static" and self.device == "cuda" and self.new_tokens > 1

    @property
    def context_tokens(self) -> int:
        """What `fit` calls the context: the prompt."""
        return self.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        """The most tokens of a sequence in the cache; the last new token is not fed back."""
        return self.prompt_tokens + (self.new_tokens - 1 if self.mode == "generate" else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """A model's predicted footprint for a run, and the measured one. refusal: why the prediction is incomplete, if it is.

    exploration: the run for any workload, for an HTML page; None if not requested or unknown. training: what is trained; None if
    the run does not train or the architecture is unknown. ranks, device_map: the model over several devices, if requested;
    `predicted` is always for one device. colocated: a step of GRPO whose training this is, if requested. speed: its bounds on the
    card, if requested. images: one of each size that an HTML page's slider goes through; None if not requested or unknown.
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
    colocated: Colocated | None = None
    speed: Speed | None = None
    images: Media | None = field(default=None, compare=False)

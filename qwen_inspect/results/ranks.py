"""A model over several devices: how it is sharded, and each rank's bytes. `None` means unknown."""

from __future__ import annotations

from ..language import Message
from ..typed import TYPE_CHECKING
from ..values import dataclass

if TYPE_CHECKING:
    from .memory import Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallelism:
    """The degree of each kind of parallelism; 1 means none.

    tensor: matrices are cut. pipeline: layers in stages. expert: whole experts distributed over the ranks of `tensor` and `fsdp`.
    fsdp: each rank has its own batch. zero_stage: what is sharded: 1 optimizer states, 2 gradients and the weights that the
    optimizer updates too, 3 the weights in use too. offload: FSDP2's CPUOffloadPolicy: shards, gradients and optimizer states are
    in the host's memory. deepspeed: DeepSpeed shares the model out in stages 2 and 3 too, whether or not anything is offloaded.
    offload_optimizer: DeepSpeed's: optimizer states are on the host, and the step runs there. offload_params: DeepSpeed's, in
    stage 3: each rank's part of the weights is there.
    """

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    fsdp: int = 1
    zero_stage: int = 3
    offload: bool = False
    deepspeed: bool = False
    offload_optimizer: bool = False
    offload_params: bool = False

    @property
    def by_deepspeed(self) -> bool:
        """Whether DeepSpeed shares the model out: FSDP2 has no stage 1, and offloads both or nothing."""
        stated = self.deepspeed or self.offload_optimizer or self.offload_params
        return stated or (self.fsdp > 1 and self.zero_stage == 1)

    @property
    def ranks(self) -> int:
        return self.pipeline * self.fsdp * self.tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One of the ranks that share the model, numbered as transformers' mesh (pipeline, fsdp, tensor)."""

    how: Parallelism
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plans:
    """transformers' parallel plans of a class: pairs of a module's or parameter's full name, with `*` for numbers, and a style.

    tensor, expert, fsdp: empty if the class has no such plan. pipeline: the module whose layers are split into stages, None if
    the class does not support it.
    """

    tensor: tuple[tuple[str, str], ...]
    expert: tuple[tuple[str, str], ...]
    fsdp: tuple[tuple[str, str], ...]
    pipeline: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBytes:
    """Bytes on each of `ranks`, which are equal: at the end of a generation, or after the optimizer's step.

    layers: the first of its stage, and the one after its last; None with a single stage. experts: whole experts of a layer on
    this rank; None without expert parallelism. weights: including `padding`; `replicated` of them are on other ranks too.
    adapters: LoRA's, not part of the weights. gathered: whole weights that FSDP holds temporarily, in addition to the rank's
    shard; None if unknown. host: in the host's memory, in no other term. cache, state: None if it is unknown how the class shares
    them. peak: the moment of most allocated bytes, activations included; peak_reserved: the most reserved bytes; both None
    without a trace.
    """

    ranks: tuple[int, ...]
    layers: tuple[int, int] | None
    experts: int | None
    weights: int
    replicated: int
    padding: int
    buffers: int
    cache: int | None
    state: int | None
    gradients: int
    optimizer: int
    gathered: int | None
    adapters: int = 0
    host: int = 0
    peak: Moment | None = None
    peak_reserved: int | None = None

    @property
    def total(self) -> int | None:
        """Bytes at the end: everything except gathered weights, activations, workspace and communication buffers."""
        parts: list[int | None] = [getattr(self, term) for term in RANK_TERMS if term not in NOT_IN_TOTAL]
        return None if None in parts else sum(size_bytes or 0 for size_bytes in parts)


# The terms of a rank, in display order.
RANK_TERMS = (
    "weights",
    "replicated",
    "padding",
    "adapters",
    "buffers",
    "cache",
    "state",
    "gradients",
    "optimizer",
    "gathered",
    "host",
)
NOT_IN_TOTAL = ("replicated", "padding", "gathered", "host")  # parts of the weights, temporary ones, another memory


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksReport:
    """A model's bytes on each rank. assumptions: what the figures assume, and what they omit."""

    parallelism: Parallelism
    ranks: tuple[RankBytes, ...]
    assumptions: tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedDevice:
    """What accelerate puts on one device ("0", "cpu", "disk", ...). capacity_bytes: None if no limit was given.

    modules: the names in the device map, runs of layers as a range, "" for the whole model. weights, buffers: in bytes, tied
    weights once; buffers of offloaded modules are on the device that computes them.
    """

    device: str
    capacity_bytes: int | None
    modules: tuple[str, ...]
    weights: int
    buffers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMapReport:
    """A model as `device_map="auto"` distributes it. made_by: the libraries' versions."""

    devices: tuple[PlacedDevice, ...]
    made_by: str
    assumptions: tuple[Message, ...]

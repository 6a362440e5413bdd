"""A model over several devices: how it is taken apart, and what each rank then holds, in bytes. `None` means unknown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..language import Message

if TYPE_CHECKING:
    from .memory import Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallelism:
    """How many ranks share the model in each way, 1 where it is not shared so.

    tensor: each matrix cut. pipeline: layers in stages. expert: whole experts dealt out, over the ranks of `tensor` and `fsdp`.
    fsdp: each rank with a batch of its own. zero_stage: what they share: 1 the optimizer's states, 2 gradients and what the
    optimizer updates, 3 the weights in use too.
    """

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    fsdp: int = 1
    zero_stage: int = 3

    @property
    def ranks(self) -> int:
        return self.pipeline * self.fsdp * self.tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One rank of those that share the model, numbered as transformers' mesh (pipeline, fsdp, tensor)."""

    how: Parallelism
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plans:
    """How transformers takes a class apart: pairs of a module's or a parameter's full name, with `*` for numbers, and a style.

    tensor, expert, fsdp: empty where the class has no such plan. pipeline: the module whose layers are dealt out to stages, None
    where the class cannot be cut so.
    """

    tensor: tuple[tuple[str, str], ...]
    expert: tuple[tuple[str, str], ...]
    fsdp: tuple[tuple[str, str], ...]
    pipeline: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBytes:
    """What each of `ranks`, all alike, holds in bytes: at the end of a generation, or when the optimizer has stepped.

    layers: the first of its stage, and the one after its last; None where one stage has all. experts: of a layer that it holds
    whole; None where none are dealt out. weights: with `padding`; `replicated` of them lie on other ranks too. gathered: what
    FSDP puts together for a while, beside the rank's own share; None where that is not known. cache, state: None where it is not
    known how the class shares them. peak: the moment when the rank's allocator holds most, activations included, and
    peak_reserved what it has reserved by then; None where no trace tells them.
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
    peak: Moment | None = None
    peak_reserved: int | None = None

    @property
    def total(self) -> int | None:
        """What is held at the end: all but what is gathered, activations, workspace and buffers of communication."""
        parts: list[int | None] = [getattr(self, term) for term in RANK_TERMS if term not in NOT_IN_TOTAL]
        known = [size_bytes for size_bytes in parts if size_bytes is not None]
        return sum(known) if len(known) == len(parts) else None


# The terms of a rank, in the order in which they are shown.
RANK_TERMS = ("weights", "replicated", "padding", "buffers", "cache", "state", "gradients", "optimizer", "gathered")
NOT_IN_TOTAL = ("replicated", "padding", "gathered")  # parts of the weights, and what is there for a while alone


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksReport:
    """A model's bytes on each rank. assumptions: what they take for granted, and what they leave out."""

    parallelism: Parallelism
    ranks: tuple[RankBytes, ...]
    assumptions: tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedDevice:
    """What accelerate puts on one device ("0", "cpu", "disk", ...) of `capacity_bytes` (None: no limit was given).

    modules: the names in the device map, runs of layers as a range, "" for the whole model. weights, buffers: in bytes, a tied
    weight once; buffers of what is offloaded lie where it is computed.
    """

    device: str
    capacity_bytes: int | None
    modules: tuple[str, ...]
    weights: int
    buffers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMapReport:
    """A model as `device_map="auto"` spreads it. made_by: the versions that did."""

    devices: tuple[PlacedDevice, ...]
    made_by: str
    assumptions: tuple[Message, ...]

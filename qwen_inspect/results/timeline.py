"""What a run asks its allocator for, in order: the events that a trace records and that an allocator's model replays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

FLASH_SCRATCH = (
    "flash_attention_backward.scratch"  # the operator of what flash attention's backward takes for itself on CUDA
)
SCALES_SCRATCH = (
    "bitsandbytes.gemm_4bit.scales"  # of scales without their offset, which bitsandbytes keeps on CUDA alone
)
SOFTMAX_SCRATCH = "softmax.scratch"  # the operator of what softmax and its gradient take for themselves on CUDA alone
# All that a trace has of CUDA alone.
CUDA_SCRATCH = (FLASH_SCRATCH, SCALES_SCRATCH, SOFTMAX_SCRATCH)
GATHERED = "fsdp.all_gather"  # whole weights that FSDP puts together for a while
ADAPTER = "adapter"  # the operator of the matrices that PEFT adds to a model


class Allocate(NamedTuple):
    """A storage comes to life: `size_bytes` as requested, and the module and operator that asked for it."""

    id: int
    size_bytes: int
    module: str
    operator: str


class Free(NamedTuple):
    """The storage of the `Allocate` with the same id is released."""

    id: int


Event = Allocate | Free


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of a run ("load", "prefill", "decode", "backward", ...), which begins with the event of index `first_event`."""

    name: str
    first_event: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSum:
    """A sum over rows: `inputs` numbers for each of `outputs`, of which `vector` at a time are loaded."""

    outputs: int
    inputs: int
    vector: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A whole run. Ids are unique in it; what is not freed is alive at its end.

    kept: what the cache keeps where a stage ends, by id: "cache" or "state"; empty where that is not recorded. sums: the sums
    over rows of a run that trains, by the id of what they give; empty of any other. cast: whether all that is loaded but weights
    of 4 bits came in 16 bits and was cast to 32.
    """

    events: tuple[Event, ...]
    stages: tuple[Stage, ...]
    kept: tuple[tuple[int, str], ...] = field(default=(), compare=False)
    sums: tuple[tuple[int, ColumnSum], ...] = field(default=(), compare=False)
    cast: bool = field(default=False, compare=False)


class Change(NamedTuple):
    """Memory that a real run takes at an address or, where `size_bytes` is negative, gives back.

    operators: those it happens inside of, the innermost last; none where the device's record does not tell.
    """

    size_bytes: int
    address: int
    operators: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A real run's changes in order, and its stages; of decoding, a stage for each step."""

    changes: tuple[Change, ...]
    stages: tuple[Stage, ...]


def living(events: Iterable[Event]) -> tuple[Allocate, ...]:
    """What is alive after `events`, in the order in which it came to life."""
    found: dict[int, Allocate] = {}
    for event in events:
        if isinstance(event, Free):
            del found[event.id]
        else:
            found[event.id] = event
    return tuple(found.values())

"""A run's allocator requests, in order: the events that a trace records and that the model of the allocator replays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from ..typed import NamedTuple
from ..values import dataclass, field

# Operators of scratch memory that kernels allocate only on CUDA.
FLASH_SCRATCH = "flash_attention_backward.scratch"
SCALES_SCRATCH = "bitsandbytes.gemm_4bit.scales"  # scales before their offset is added
SOFTMAX_SCRATCH = "softmax.scratch"  # of softmax and of its gradient
BATCHED_SCRATCH = "batched_product.scratch"  # copies of operands that cuBLAS cannot read in place
FILTER_SCRATCH = "convolution.scratch"  # a copy of the weight in the order of the input's dimensions
CUDA_SCRATCH = (FLASH_SCRATCH, SCALES_SCRATCH, SOFTMAX_SCRATCH, BATCHED_SCRATCH, FILTER_SCRATCH)
# Operators that a trace names itself.
GATHERED = "fsdp.all_gather"  # whole weights that FSDP holds temporarily
ADAPTER = "adapter"  # the matrices that PEFT adds to a model


class Allocate(NamedTuple):
    """A storage is allocated: `size_bytes` as requested, and the module and operator that requested it."""

    id: int
    size_bytes: int
    module: str
    operator: str


class Free(NamedTuple):
    """The storage of the `Allocate` with the same id is released."""

    id: int


Event = Allocate | Free


def allocations(
    ids: Iterable[int], sizes: Iterable[int], modules: Iterable[str], operators: Iterable[str]
) -> Iterator[Allocate]:
    """As many `Allocate`, made in a third of the time."""
    return map(partial(tuple.__new__, Allocate), zip(ids, sizes, modules, operators, strict=True))


def operators_of(events: Iterable[Event]) -> set[str]:
    """Every operator that requests something."""
    return {event[3] for event in events if len(event) > 1}


def modules_of(events: Iterable[Event]) -> set[str]:
    """Every module that requests something."""
    return {event[2] for event in events if len(event) > 1}


def frees(ids: Iterable[int]) -> Iterator[Free]:
    """As many `Free`, likewise."""
    return map(partial(tuple.__new__, Free), zip(ids, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of a run ("load", "prefill", "decode", "backward", ...), starting at the event with index `first_event`."""

    name: str
    first_event: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSum:
    """A sum over rows: `inputs` numbers for each of `outputs`, loaded `vector` at a time."""

    outputs: int
    inputs: int
    vector: int


class Ready(NamedTuple):
    """A backward has made a parameter's gradient, just before the event with index `event`: ids of both storages.

    None: all of a step's are made.
    """

    event: int
    parameter: int | None = None
    gradient: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A whole run. Ids are unique in it; what is not freed is alive at its end.

    kept: (id, "cache" or "state") of storages that the cache keeps at the end of a stage; empty if not recorded. sums: (id of the
    result, sum) of a training run's sums over rows; empty otherwise. cast: whether everything loaded except 4-bit weights was
    stored in 16 bits and cast to 32. owners: (id, module) of what an optimizer allocates for a module's parameter. ready: when
    gradients are made, of a run for DeepSpeed.
    """

    events: tuple[Event, ...]
    stages: tuple[Stage, ...]
    kept: tuple[tuple[int, str], ...] = field(default=(), compare=False)
    sums: tuple[tuple[int, ColumnSum], ...] = field(default=(), compare=False)
    cast: bool = field(default=False, compare=False)
    owners: tuple[tuple[int, str], ...] = field(default=(), compare=False)
    ready: tuple[Ready, ...] = field(default=(), compare=False)


class Change(NamedTuple):
    """Memory that a measured run allocates at an address or, if `size_bytes` is negative, frees.

    operators: the enclosing operators, innermost last; empty if the device's record has none.
    """

    size_bytes: int
    address: int
    operators: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A measured run's changes in order, and its stages; each decoding step is a stage."""

    changes: tuple[Change, ...]
    stages: tuple[Stage, ...]


def living(events: Iterable[Event]) -> tuple[Allocate, ...]:
    """The storages alive after `events`, in order of allocation."""
    events = tuple(events)
    freed = {event[0] for event in events if len(event) == 1}  # a `Free`, told from an `Allocate` in the quickest way
    return tuple([event for event in events if len(event) > 1 and event[0] not in freed])

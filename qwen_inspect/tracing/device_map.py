"""Where `device_map="auto"` puts a model's modules: transformers decides on the meta model, this module adds up the bytes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from itertools import groupby

from ..errors import UnavailableError, UnsupportedError
from ..language import Message
from ..results.ranks import DeviceMapReport, PlacedDevice
from ..typed import Any

OFFLOADED = ("cpu", "disk")


def placed(model: Any, capacities: Mapping[str, int] | None) -> DeviceMapReport:
    """The devices that hold `model`, which is on meta, and what each holds.

    capacities: bytes by device ("0", "1", ..., "cpu"); None: this machine's own. UnavailableError without accelerate,
    UnsupportedError if it finds no placement.
    Source: transformers 5.23, integrations/accelerate.py, as from_pretrained calls it.
    """
    try:
        import accelerate
        import torch
        import transformers
        from transformers.integrations.accelerate import _get_device_map, get_max_memory
    except ImportError as error:
        raise UnavailableError("extra_missing", package=error.name, extra="torch") from None

    max_memory = None if capacities is None else {_key(name): size for name, size in capacities.items()}
    # accelerate would warn on stderr that this machine lacks the requested GPUs.
    logging.getLogger("accelerate.utils.modeling").setLevel(logging.ERROR)
    try:
        device_of = {name: str(device) for name, device in _get_device_map(model, "auto", max_memory, None).items()}
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        lines = str(error).strip().splitlines()
        raise UnsupportedError("device_map_failed", reason=lines[0] if lines else type(error).__name__) from None
    limits = {str(name): int(size) for name, size in (get_max_memory() if max_memory is None else max_memory).items()}
    devices = list(dict.fromkeys([*limits, *device_of.values()]))
    # Buffers of offloaded modules stay on the computing device. Source: accelerate, big_modeling.dispatch_model, offload_buffers.
    computing = next((name for name in device_of.values() if name not in OFFLOADED), "cpu")
    offloaded = [name for name in OFFLOADED if name in device_of.values() and name != computing]
    buffered = {name: computing if device in offloaded else device for name, device in device_of.items()}
    versions = f"transformers {transformers.__version__}, accelerate {accelerate.__version__}"
    return DeviceMapReport(
        devices=tuple(_placed_on(device, model, device_of, buffered, limits.get(device)) for device in devices),
        made_by=f"{versions}, torch {torch.__version__.partition('+')[0]}",
        assumptions=(
            Message("assume_device_map" if capacities is not None else "assume_device_map_here"),
            *([Message("assume_offloaded", devices=", ".join(offloaded))] if offloaded else []),
            Message("assume_ranks_unknown"),
        ),
    )


def _key(device: str) -> int | str:
    return int(device) if device.isdigit() else device


def _placed_on(
    device: str, model: Any, device_of: Mapping[str, str], buffered: Mapping[str, str], capacity: int | None
) -> PlacedDevice:
    modules = [name for name, where in device_of.items() if where == device]
    return PlacedDevice(
        device=device,
        capacity_bytes=capacity,
        modules=tuple(_folded(modules)),
        weights=sum(_sizes(model.named_parameters(), modules)),
        buffers=sum(_sizes(model.named_buffers(), [name for name, where in buffered.items() if where == device])),
    )


def _sizes(named: Iterator[tuple[str, Any]], modules: list[str]) -> Iterator[int]:
    """Bytes of the tensors that lie in one of `modules`; "" is the whole model. `named` has tied tensors once."""
    for name, tensor in named:
        if any(module in ("", name) or name.startswith(f"{module}.") for module in modules):
            yield tensor.numel() * tensor.element_size()


def _folded(names: list[str]) -> Iterator[str]:
    """Folds names that end in consecutive numbers into ranges: `model.layers.0-11`."""

    def run(pair: tuple[int, str]) -> tuple[str, object]:
        index, name = pair
        path, _, number = name.rpartition(".")
        return (path, int(number) - index) if number.isdecimal() else (name, None)

    for (path, offset), several in groupby(enumerate(names), key=run):
        members = [name for _, name in several]
        if offset is None or len(members) == 1:
            yield from members
        else:
            yield f"{path}.{members[0].rpartition('.')[2]}-{members[-1].rpartition('.')[2]}"

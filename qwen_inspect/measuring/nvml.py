"""This machine's cards and their use, as NVIDIA's driver tells it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from ..errors import UnavailableError
from ..typed import TYPE_CHECKING, Any
from . import other_cards

if TYPE_CHECKING:
    from ..results.fit import Gpu


@contextmanager
def _started_nvml() -> Iterator[Any]:
    """NVML, initialised. ImportError without its package, NVMLError if the driver is missing or refuses."""
    import pynvml

    pynvml.nvmlInit()
    try:
        yield pynvml
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


@contextmanager
def _nvml() -> Iterator[Any]:
    """NVML, initialised; None if the package or the driver is missing."""
    with ExitStack() as stack:
        try:
            import pynvml
        except ImportError:
            yield None
            return
        try:
            nvml = stack.enter_context(_started_nvml())
        except pynvml.NVMLError:
            nvml = None
        yield nvml


def _handle(nvml: Any, index: int) -> Any:
    """NVML's handle of torch's device `index`, by UUID, because CUDA_VISIBLE_DEVICES renumbers only torch's devices."""
    import torch

    identity = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    if identity is None:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity}")


def process_bytes(index: int) -> tuple[int | None, int | None]:
    """(this process's bytes, all others' bytes) on a device, as the driver reports them; None if it does not."""
    with _nvml() as nvml:
        if nvml is None:
            return None, None
        try:
            processes = nvml.nvmlDeviceGetComputeRunningProcesses(_handle(nvml, index))
        except nvml.NVMLError:
            return None, None
    mine = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
    others = [process.usedGpuMemory for process in processes if process.pid != os.getpid()]
    if None in mine or None in others:  # NVML has no figures under some driver models
        return None, None
    return (mine[0] if mine else None), sum(others)


def cards_here() -> tuple[Gpu, ...]:
    """This machine's cards according to NVML, else AMD's or Apple's; UnavailableError if there is none or no way to ask."""
    try:
        import pynvml
    except ImportError:
        return _cards_without_nvml()
    try:
        with _started_nvml() as nvml:
            cards = tuple(_card(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError_LibraryNotFound:
        return _cards_without_nvml()
    except pynvml.NVMLError as error:
        raise UnavailableError("nvml_failed", reason=str(error)) from None
    if not cards:
        raise UnavailableError("nvml_no_card")
    return cards


def _cards_without_nvml() -> tuple[Gpu, ...]:
    cards = other_cards.cards()
    if not cards:
        raise UnavailableError("nvml_missing")
    return cards


def _card(nvml: Any, index: int) -> Gpu:
    """One card. usable_bytes excludes the driver's reserved memory; None for drivers before 510, which do not report it.

    NVML reports no memory of a GPU that shares the host's, as DGX Spark's: the host's total is that GPU's, for CUDA too.
    Sources: nvml.h of CUDA 12, nvmlMemory_v2_t, whose `free` is the unused part of the rest; NVIDIA, DGX Spark user guide, known
    issues (Memory-Usage: Not Supported)
    """
    from ..results.fit import Gpu

    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    capability = tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle))
    name = str(nvml.nvmlDeviceGetName(handle))
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        usable_bytes = memory.total - memory.reserved
    except nvml.NVMLError_FunctionNotFound:
        memory, usable_bytes = nvml.nvmlDeviceGetMemoryInfo(handle), None
    except nvml.NVMLError_NotSupported:
        total, available = other_cards.host_memory()
        return Gpu(
            name=name,
            kind="here",
            unified=True,
            memory_bytes=total,
            free_bytes=available,
            compute_capability=capability,
            device_names=(name,),
        )
    return Gpu(
        name=name,
        kind="here",
        memory_bytes=memory.total,
        reported_bytes=memory.total,
        usable_bytes=usable_bytes,
        free_bytes=memory.free,
        compute_capability=capability,
        device_names=(name,),
    )


def driver_version() -> str | None:
    with _nvml() as nvml:
        return None if nvml is None else str(nvml.nvmlSystemGetDriverVersion())

"""What reads a device's memory while a model runs, whatever the kind of run."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import UnavailableError
from ..results.measurement import Reading
from ..results.timeline import Record
from ..typed import TYPE_CHECKING, Protocol
from ..units import size

if TYPE_CHECKING:
    pass


class Recorder(Protocol):
    """One run on one device. `stage` begins a stage and closes the one before with its readings."""

    def stage(self, name: str) -> None: ...
    def run(self, work: Callable[[], object]) -> object: ...
    def readings(self) -> tuple[Reading, ...]: ...
    def record(self) -> Record | None: ...


def check_capacity(needed_bytes: int, free_bytes: int | None, device: str, *, key: str = "no_room") -> None:
    """UnavailableError, with the figures, if a run cannot fit; passes if the free memory is unknown. key: of its sentence."""
    if free_bytes is not None and needed_bytes > free_bytes:
        raise UnavailableError(
            key,
            device=device,
            needed=size(needed_bytes),
            free=size(free_bytes),
            short=size(needed_bytes - free_bytes),
        )

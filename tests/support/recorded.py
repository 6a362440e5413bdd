"""Recorded runs, and what they asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from benchmarks.recordings import EMPTY, Recording
from qwen_inspect.predicting.allocation.allocator import DRIVER_STEP_BYTES, Allocator, Block, Driver


class RecordedDriver(Driver):
    """Gives the addresses that the real one gave."""

    def __init__(self, segments: Iterable[tuple[int, int]]) -> None:
        super().__init__()
        self._segments = iter(segments)

    def place(self, size_bytes: int) -> int:
        address, recorded_bytes = next(self._segments)
        assert size_bytes == recorded_bytes
        return address

    def give_back(self, address: int, size_bytes: int) -> None:
        pass


class UpwardsDriver(Driver):
    """Takes each range above the last, as a process gets addresses that it gave back before."""

    def place(self, size_bytes: int) -> int:
        if any(addresses and rest >= size_bytes for rest, addresses in self.rests.items()):
            return super().place(size_bytes)
        step_bytes = -(-size_bytes // DRIVER_STEP_BYTES) * DRIVER_STEP_BYTES
        start, self.lowest = self.lowest, self.lowest + step_bytes
        self.steps[start] = step_bytes
        self._leave(start + size_bytes, step_bytes - size_bytes)
        return start


def replayed(recording: Recording, driver: Driver) -> Iterator[tuple[str, list[int], Allocator]]:
    """The name of each stage, its blocks' addresses, and the allocator as it is then."""
    allocator = Allocator(driver=driver)
    blocks: dict[int, Block] = {}
    addresses: list[int] = []
    begins = 0
    for stage in recording.stages:
        for entry in recording.order[begins : stage.last]:
            if entry is EMPTY:
                allocator.empty_cache()
            elif entry < 0:
                allocator.free(blocks.pop(-1 - entry))
            else:
                blocks[entry] = block = allocator.allocate(recording.requests[entry])
                addresses.append(block.address)
        yield stage.name, addresses, allocator
        allocator.reset_peak()
        addresses.clear()
        begins = stage.last

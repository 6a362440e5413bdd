"""A card and its published figures."""

from __future__ import annotations

from ..typed import Literal
from ..values import dataclass

Origin = Literal["usable", "reported", "nominal", "given", "here"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A published figure as printed, and its source."""

    text: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A card. memory_bytes: the nominal size, or the size from the user or the driver.

    reported_bytes: the total of nvidia-smi. usable_bytes: the total that CUDA reports to a process (torch's `total_memory`),
    which is less. free_bytes: free now, for a card of this machine. compute_capability: (major, minor). multiprocessors: their
    number. bandwidth: bytes a second from its memory. tensor_rate: operations a second of its tensor cores with 16-bit matrices,
    sums in 32 bits, no sparsity. generation: tokens a second that a published run of llama.cpp generated on it (one sequence of
    128 tokens, Llama 2 7B in Q4_0). kind: "datacentre", "workstation", "consumer", "given" (a size), "here" (NVML). device_names:
    torch's names for it. figures: the table's figures by name, with sources. unified: shares the host's memory.
    """

    name: str
    kind: Literal["datacentre", "workstation", "consumer", "given", "here"]
    memory_bytes: int
    reported_bytes: int | None = None
    usable_bytes: int | None = None
    free_bytes: int | None = None
    compute_capability: tuple[int, int] | None = None
    multiprocessors: int | None = None
    bandwidth: int | None = None
    tensor_rate: int | None = None
    generation: float | None = None
    aliases: tuple[str, ...] = ()
    device_names: tuple[str, ...] = ()
    figures: tuple[tuple[str, Published], ...] = ()
    maker: Literal["nvidia", "amd", "apple"] = "nvidia"
    unified: bool = False

    @property
    def available_bytes(self) -> int:
        """The smallest known total: what a process can use at most."""
        return self.usable_bytes or self.reported_bytes or self.memory_bytes

    @property
    def room_bytes(self) -> int:
        """`available_bytes`, or what is free now if that is less."""
        return self.available_bytes if self.free_bytes is None else min(self.available_bytes, self.free_bytes)

    @property
    def origin(self) -> Origin:
        """The origin of `available_bytes`: "usable", "reported" or "nominal"; "given" by the user, "here" by the driver."""
        if self.kind in ("given", "here"):
            return self.kind
        return "usable" if self.usable_bytes else "reported" if self.reported_bytes else "nominal"

    def supports(self, dtype: str) -> bool | None:
        """Whether its tensor cores compute in "bfloat16" (from 8.0 on) or "fp8" (from 8.9 on).

        Source: NVIDIA, parallel thread execution ISA 8.7, mma: .bf16 needs sm_80, .e4m3 needs sm_89
        """
        first = {"bfloat16": (8, 0), "fp8": (8, 9)}.get(dtype)
        return None if self.compute_capability is None or first is None else self.compute_capability >= first

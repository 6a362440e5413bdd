"""Where vLLM's versions differ in what they reserve. A version outside of these is answered as the nearest, with wider ranges."""

from __future__ import annotations

from typing import Literal

from ...errors import UsageError
from ...values import dataclass

Sampler = Literal["sort", "flashinfer", "triton"]
DEFAULT = "0.19.0"
LAST = (0, 22)  # the last whose sources were read


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A version and its rules. sampler: how top-k and top-p are applied in the profile run. reserves_graphs: whether its estimate
    of CUDA graphs is taken off the budget. known: whether its sources were read.

    Source: v1/sample/ops/topk_topp_sampler.py (0.9.2, 0.10.1.1, 0.11.0, 0.16.0, 0.17.0, 0.19.0, 0.20.0, 0.22.0),
    config/cache.py, envs.py (VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS) of the same versions.
    """

    name: str
    sampler: Sampler
    utilization: float
    reserves_graphs: bool
    known: bool = True


def release(name: str | None) -> Release:
    """The rules of a version such as "0.19.0" or "v0.11"; raises UsageError for what is no version."""
    name = (name or DEFAULT).removeprefix("v")
    parts = name.split(".")
    if len(parts) < 2 or not (parts[0].isdecimal() and parts[1].isdecimal()) or len(name) > 60:
        raise UsageError("vllm_version", found=name[:60])
    version = int(parts[0]), int(parts[1])
    if version < (0, 17):
        # FlashInfer samples where it is installed, as in 0.10's images, unless VLLM_USE_FLASHINFER_SAMPLER=0.
        sampler: Sampler = "flashinfer" if version == (0, 10) else "sort"
        return Release(name=name, sampler=sampler, utilization=0.9, reserves_graphs=False, known=version >= (0, 9))
    later = version >= (0, 20)
    return Release(
        name=name,
        sampler="triton",
        utilization=0.92 if later else 0.9,
        reserves_graphs=later,
        known=version <= LAST,
    )

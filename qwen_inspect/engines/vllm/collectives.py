"""What tensor-parallel ranks take outside of PyTorch in the profile run: FlashInfer's workspace, and NCCL's buffers by logs.

NCCL allocates its channels' buffers when a collective first needs them. Sums of hidden states go through NCCL only where they are
larger than what symmetric memory or FlashInfer takes, whose buffers are allocated before vLLM's first look at the card or are the
workspace here; gathering the logits always goes through it.
Source: vLLM 0.9 to 0.33, distributed/device_communicators: cuda_communicator.py (all_reduce), symm_mem.py, all_reduce_utils.py,
flashinfer_all_reduce.py; compilation/passes/fusion/allreduce_rms_fusion.py; NCCL 2.27.5 and 2.29.7, src/init.cc (runtimeConn).
"""

from __future__ import annotations

from ...units import MIB
from ...values import dataclass
from .releases import Release

HOPPER = (9, 0)
# The largest sum in MiB, by compute capability and ranks.
SYMMETRIC_MIB = {
    (9, 0): {2: 64, 4: 32, 6: 64, 8: 64},
    (10, 0): {2: 8, 4: 32, 6: 128, 8: 128},
    (10, 3): {2: 4, 4: 32, 6: 32, 8: 64},
}
FLASHINFER_KIB = {
    (9, 0): {2: 65_536, 4: 2048, 8: 512},
    (10, 0): {2: 65_536, 4: 32_768, 8: 1024},
    (10, 3): {2: 65_536, 4: 65_536, 8: 4096},
}
# In hundredths of a GiB, by ranks. KNOWN: with kernels, of an H100 from 0.17 to 0.19, whose NCCL is 2.27.5, by logs of those
# releases. The others without kernels: of older releases from the same logs, widened; from 0.20 on (NCCL 2.28 and later), of
# which there is no log on an H100, widened more, and on a B200 and a B300 by two logs of four ranks. LOGITS: alone, by a log of
# eight ranks of an H100 at 0.31, before 0.20 up to all that NCCL takes.
KNOWN = {2: (157, 160), 4: (210, 218)}
SUMS, SUMS_OTHERS = {2: (110, 140), 4: (155, 200)}, (150, 270)
NEWER_SUMS, NEWER_OTHERS, BLACKWELL_SUMS = {2: (60, 150), 4: (60, 200)}, (60, 270), (20, 110)
EXCHANGED, LINKED_EXCHANGED = 70, 270  # at most, of data-parallel ranks: all that NCCL takes, as no log is known
LOGITS, NEWER_LOGITS = (5, 140), (5, 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Tensor-parallel ranks, and what they sum in the profile run: `tokens` hidden states of `hidden` numbers.

    exchanges: whether data-parallel ranks exchange tokens for their experts, which goes through NCCL.
    """

    count: int
    tokens: int
    hidden: int
    element_bytes: int
    bfloat16: bool
    data_ranks: int = 1
    pipeline_ranks: int = 1
    exchanges: bool = False
    compiled: bool = True

    @property
    def sum_bytes(self) -> int:
        return self.tokens * self.hidden * self.element_bytes


def linked(capability: tuple[int, int] | None) -> bool:
    """Whether NVLink joins cards of this compute capability, as far as that tells."""
    return capability is None or capability[0] in (9, 10)


def nccl_hundredths(
    release: Release, capability: tuple[int, int] | None, ranks: Ranks, kernels: tuple[int, int], *, known: bool
) -> tuple[int, int]:
    """(least, most) hundredths of a GiB of NCCL's buffers and `kernels` with NVLink. known: an H100, whose logs were read."""
    newer = release.version >= (0, 20)
    if not _sums_by_nccl(release, capability, ranks):
        low, high = NEWER_LOGITS if newer else LOGITS
    elif known and release.version >= (0, 17) and not newer and ranks.count in KNOWN:
        return KNOWN[ranks.count]
    elif newer and capability is not None and capability[0] == 10:
        low, high = BLACKWELL_SUMS
    elif newer:
        low, high = NEWER_SUMS.get(ranks.count, NEWER_OTHERS)
    else:
        low, high = SUMS.get(ranks.count, SUMS_OTHERS)
    return kernels[0] + low, kernels[1] + high


def _sums_by_nccl(release: Release, capability: tuple[int, int] | None, ranks: Ranks) -> bool:
    version, of = release.version, capability or HOPPER
    most = SYMMETRIC_MIB.get(of, {}).get(ranks.count, 0) * MIB
    if not ranks.bfloat16 or version < (0, 11):
        most = 0  # symmetric memory takes bfloat16 alone, and is not the default before
    below = ranks.sum_bytes <= most if version >= (0, 22) else ranks.sum_bytes < most
    if version >= (0, 29):
        below = below or ranks.sum_bytes <= _flashinfer_bytes(of, ranks.count)
    return not below


def workspace_bytes(release: Release, capability: tuple[int, int] | None, ranks: Ranks) -> tuple[int, int]:
    """(least, most) bytes of FlashInfer's workspace for sums with norms; from 0.20 on of either of its implementations.

    Source: flashinfer 0.6.6, comm/trtllm_ar.py (trtllm_create_ipc_workspace_for_all_reduce_fusion), trtllm_mnnvl_ar.py
    (get_required_buffer_size_bytes); vLLM's config/vllm.py, enable_allreduce_rms_fusion.
    """
    version = release.version
    alone = version >= (0, 22) or (ranks.data_ranks == 1 and ranks.pipeline_ranks == 1)
    largest_bytes = _flashinfer_bytes(capability or HOPPER, ranks.count)
    if version < (0, 17) or not alone or not ranks.compiled or not largest_bytes:
        return 0, 0
    row_bytes = ranks.hidden * ranks.element_bytes
    tokens = min(largest_bytes // row_bytes, ranks.tokens)
    data = ranks.count * tokens * row_bytes
    twice = _aligned(data) + _aligned(1) + _aligned(3 * data)
    if version < (0, 20):
        return twice, twice
    halves = _aligned(3 * 2 * -(-tokens // ranks.count) * ranks.count * row_bytes)
    return min(twice, halves), max(twice, halves)


def _flashinfer_bytes(capability: tuple[int, int], ranks: int) -> int:
    return FLASHINFER_KIB.get(capability, {}).get(ranks, 0) * 1024


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // (2 * MIB)) * 2 * MIB

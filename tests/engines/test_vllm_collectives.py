"""What vLLM's tensor-parallel ranks take outside of PyTorch: published figures of several cards, and FlashInfer's own sizes."""

from __future__ import annotations

import pytest

from qwen_inspect.engines.vllm.collectives import Ranks, workspace_bytes
from qwen_inspect.engines.vllm.outside import non_torch
from qwen_inspect.engines.vllm.releases import release
from qwen_inspect.units import GIB, MIB

B200 = (10, 0)
HOPPER = (9, 0)


def ranks(count: int, hidden: int, tokens: int = 8192, *, bfloat16: bool = True, compiled: bool = True) -> Ranks:
    return Ranks(count=count, tokens=tokens, hidden=hidden, element_bytes=2, bfloat16=bfloat16, compiled=compiled)


@pytest.mark.parametrize(
    ("version", "capability", "multiprocessors", "run", "printed"),
    [
        # "non-torch memory" of logs that stand in public repositories. The ranges were read from others: of 0.19, and of 0.31.
        ("0.10.2", HOPPER, 132, ranks(2, 2048), 1.38),  # H200, Qwen3-Next-80B-A3B
        ("0.10.2", HOPPER, 132, ranks(4, 2048), 1.84),  # H100, the same model, vLLM's issue 24881
        ("0.26.0", B200, 152, ranks(4, 6144), 0.95),  # GLM-5.2 in NVFP4
        ("0.19.0", HOPPER, 132, ranks(2, 8192), 2.09),  # Qwen2.5-72B
        ("0.19.0", HOPPER, 132, ranks(4, 5120), 2.17),  # Llama 4 Scout
        # One rank: B300 with gemma-4-31B, RTX PRO 6000, a part of an H100 whose multiprocessors it does not name.
        ("0.26.0", (10, 3), 148, ranks(1, 5376), 0.25),
        ("0.26.0", (12, 0), 188, ranks(1, 5120), 0.26),
    ],
)
def test_printed_figures_lie_inside(
    version: str, capability: tuple[int, int], multiprocessors: int, run: Ranks, printed: float
) -> None:
    found = non_torch(
        release(version), capability=capability, multiprocessors=multiprocessors, ranks=run, vocabulary=128_256
    )
    assert found.most_bytes is not None
    assert found.least_bytes <= printed * GIB + 0.005 * GIB
    assert printed * GIB - 0.005 * GIB <= found.most_bytes
    assert found.most_bytes - found.least_bytes < 1.7 * GIB


def test_sums_that_symmetric_memory_takes_need_no_buffers_of_nccl() -> None:
    """8,192 tokens of 4,096 numbers are 64 MiB, all that eight ranks of an H100 take; from 0.22 on with the bound itself."""

    def most(version: str, run: Ranks) -> int:
        return (
            non_torch(
                release(version), capability=HOPPER, multiprocessors=132, ranks=run, vocabulary=128_256
            ).most_bytes
            or 0
        )

    at, above = ranks(8, 4096), ranks(8, 4104)
    assert most("0.31.0", at) + GIB < most("0.31.0", above)
    assert most("0.21.0", at) == most("0.21.0", ranks(8, 4096, bfloat16=False))
    assert most("0.31.0", at) + GIB < most("0.31.0", ranks(8, 4096, bfloat16=False))
    assert most("0.10.2", ranks(8, 512)) == most("0.10.2", ranks(8, 8192))  # symmetric memory is not the default yet


def test_flashinfers_workspace_is_what_its_own_function_asks_for() -> None:
    """comm/trtllm_ar.py of flashinfer 0.6.6: ranks x tokens x hidden x 2 bytes, a flag, and three times as much."""

    def of(version: str, run: Ranks, capability: tuple[int, int] = HOPPER) -> tuple[int, int]:
        return workspace_bytes(release(version), capability, run)

    assert of("0.19.0", ranks(2, 4096)) == (514 * MIB, 514 * MIB)  # 64 MiB a rank: 128 + 2 + 384
    assert of("0.19.0", ranks(2, 3584)) == (450 * MIB, 450 * MIB)  # all 8,192 tokens are 56 MiB
    assert of("0.19.0", ranks(4, 8192)) == (34 * MIB, 34 * MIB)  # 2 MiB
    assert of("0.26.0", ranks(4, 6144), B200) == (
        194 * MIB,
        514 * MIB,
    )  # 6 x 2,732 tokens, which four ranks divide, in the other form
    none = [ranks(2, 4096, compiled=False), ranks(6, 4096)]
    assert [of("0.19.0", run) for run in none] == [(0, 0)] * 2
    assert of("0.16.0", ranks(2, 4096)) == (0, 0)
    assert of("0.19.0", ranks(2, 4096), (8, 0)) == (0, 0)

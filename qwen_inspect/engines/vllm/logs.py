"""What vLLM's logs report in addition to the weights, as ranges over all logs."""

from __future__ import annotations

from collections.abc import Sequence

from ...results.serving import Reserved
from ...units import GIB
from ...values import dataclass

HUNDREDTH = GIB // 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What vLLM printed for one run, in hundredths of a GiB."""

    model: str
    family: str
    ranks: int
    weights: int
    activation: int
    non_torch: int


# vLLM 0.19.0 on H100 80GB, with its defaults: 8,192 tokens a step, 1,024 sequences.
LOGS_SOURCES = (
    "https://github.com/llm-d-incubation/llm-d-planner/blob/56dc5b76ca535960998bdf9fd4a3077d98fdf60a"
    "/accuracy/results/v0.19.0/results_raw.csv",
    "https://github.com/llm-d-incubation/llm-d-planner/blob/d3121e059da88662db39a926a3ead964be97359b"
    "/accuracy/results/v0.19.0/logs/qwen-qwen1-5-moe-a2-7b--h100-80gb--tp1pp1dp1--8192.log",
)
LOGS = (
    Log(model="Qwen/Qwen2.5-7B-Instruct", family="qwen2", ranks=1, weights=1425, activation=221, non_torch=24),
    Log(model="Qwen/Qwen1.5-MoE-A2.7B", family="qwen2_moe", ranks=1, weights=2667, activation=247, non_torch=25),
    Log(model="Qwen/Qwen3-8B", family="qwen3", ranks=1, weights=1527, activation=221, non_torch=25),
    Log(model="Qwen/Qwen3-30B-A3B", family="qwen3_moe", ranks=1, weights=5688, activation=268, non_torch=27),
    Log(model="Qwen/Qwen2.5-7B-Instruct", family="qwen2", ranks=2, weights=712, activation=221, non_torch=206),
    Log(model="Qwen/Qwen2.5-7B-Instruct", family="qwen2", ranks=4, weights=355, activation=221, non_torch=213),
)

GRAPHS_MOST_BYTES = 141 * HUNDREDTH  # the largest "Graph capturing finished ... took" of the same logs


def beside_weights(ranks: int) -> tuple[Reserved, ...]:
    """Ranges of the logged figures other than the weights, widened by the rounding of the print-out.

    non_torch: includes NCCL's buffers with several ranks; no log has more than 4.
    """
    non_torch = [log.non_torch for log in LOGS if (log.ranks > 1) == (ranks > 1)]
    return (_range("activation", [log.activation for log in LOGS]), _range("non_torch", non_torch))


def _range(name: str, figures: Sequence[int]) -> Reserved:
    """A figure printed to 0.01 GiB is accurate to half of that."""
    return Reserved(
        name=name,
        least_bytes=(2 * min(figures) - 1) * HUNDREDTH // 2,
        most_bytes=(2 * max(figures) + 1) * HUNDREDTH // 2,
        sources=LOGS_SOURCES,
    )

"""vLLM's published budgets for its cache, beside what `fit --engine vllm` predicts: a section of reports/accuracy.md."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from qwen_inspect.fitting.serving import serve
from qwen_inspect.loaders import gpus
from qwen_inspect.renderers.blocks import Block, Heading, Items, Paragraph, Table
from qwen_inspect.results.serving import Serving, VllmEnvironment, VllmReserve
from qwen_inspect.structure.inspect import inspect

LOGS = Path(__file__).parent / "published" / "vllm_profile.csv"
GIB = 1 << 30
PEERS = ("llm-d-planner", "vramscout")
HALF = 0.005  # of the last digit of a printed figure, in GiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A row of LOGS and its prediction. available: as printed, in GiB; low, high: the predicted range."""

    log: Mapping[str, str]
    reserve: VllmReserve

    @property
    def available(self) -> float:
        """A pipeline's log prints the first rank's budget; its blocks are the last rank's, which has fewer."""
        if self.log["pp"] != "1":
            return int(self.log["num_gpu_blocks"]) * self.reserve.block_bytes / GIB
        return float(self.log["available_gib"])

    @property
    def low(self) -> float:
        return self.reserve.least.budget_bytes / GIB

    @property
    def high(self) -> float:
        return self.reserve.most.budget_bytes / GIB

    @property
    def inside(self) -> bool:
        return self.low - HALF <= self.available <= self.high + HALF

    @property
    def error(self) -> float:
        """Of the range's middle, relative to the published figure."""
        return (self.low + self.high) / 2 / self.available - 1

    def peers(self) -> dict[str, float | None]:
        """The relative errors of PEERS; None where they have no answer."""
        planner, scout = self.log["llm_d_planner_percent"], self.log["vramscout_gib"]
        errors = (float(planner) / 100 if planner else None, float(scout) / self.available - 1 if scout else None)
        return dict(zip(PEERS, errors, strict=True))

    @property
    def width(self) -> float:
        return (self.high - self.low) / self.available

    @property
    def blocks(self) -> tuple[int, int]:
        """Blocks of the printed budget, at both ends of what rounds to it."""
        low, high = (int((self.available + half) * GIB) // self.reserve.block_bytes for half in (-HALF, HALF))
        return low, high

    def term(self, *names: str) -> float:
        """The low end of terms together, in GiB."""
        return sum(term.least_bytes for term in self.reserve.terms if term.name in names) / GIB

    def cells(self) -> list[str]:
        log = self.log
        return [
            log["log"],
            log["engine_version"],
            log["gpu"],
            f"{log['tp']} × {log['pp']}",
            log["kv_cache_dtype"],
            log["weights_gib"] or "–",
            f"{self.term('weights', 'rounding'):.2f}",
            log["activation_gib"] or "–",
            f"{self.term('activation'):.2f}",
            f"{self.available:.2f}",
            f"{self.low:.2f} to {self.high:.2f}",
            f"{self.error:+.2%}",
            f"{self.width:.2%}",
            f"{int(log['num_gpu_blocks']):,}" if log["num_gpu_blocks"] else "–",
            "{:,} to {:,}".format(*self.blocks),
            log["unexplained"],
        ]


def budgets() -> Iterator[Budget]:
    with open(LOGS, newline="", encoding="utf-8") as stream:
        for log in csv.DictReader(stream):
            yield Budget(log=log, reserve=predicted(log))


def predicted(log: Mapping[str, str]) -> VllmReserve:
    """What `fit --engine vllm` answers for the run of a row."""
    card = gpus.find(log["gpu"])
    if log["total_gib"]:
        card = replace(card, usable_bytes=int(float(log["total_gib"]) * GIB))
    serving = Serving(
        engine="vllm",
        version=log["engine_version"],
        ranks=int(log["tp"]),
        pipeline_ranks=int(log["pp"]),
        cache_format=log["kv_cache_dtype"],
        context_tokens=int(log["max_model_len"]),
        utilization=float(log["gpu_memory_utilization"]),
        sequences=int(log["max_num_seqs"] or 0) or None,
        step_tokens=int(log["max_num_batched_tokens"] or 0) or None,
        eager=log["enforce_eager"] == "1",
        expert_parallel=log["expert_parallel"] == "1",
        images=log["language_model_only"] != "1",
        without_towers=("vision", "audio") if log["language_model_only"] == "1" else (),
        environment=VllmEnvironment(flashinfer=_set(log["flashinfer"]), second_runner=_set(log["second_runner"])),
    )
    report = inspect(log["model"], source="catalog", dtype=log["dtype"] or None)
    reserve = serve(report, serving, [card], beyond_limit=True).cards[0].reserve
    assert isinstance(reserve, VllmReserve)
    return reserve


def _set(text: str) -> bool | None:
    return None if not text else text == "1"


def blocks() -> list[Block]:
    rows = list(budgets())
    inside = [row for row in rows if row.inside]
    others = [row for row in rows if row.log["check"] == "yes"]  # "used": of it a range was read
    return [
        Heading("vLLM's budget"),
        Paragraph(
            "What vLLM found available for its cache, in GiB, to 0.01 GiB as printed (benchmarks/published/vllm_profile.csv), "
            "and the range that fit --engine vllm predicts from the card, the version and the options alone. Weights and the "
            "peak of the profile run are worked out; what lies outside PyTorch is a range of the same logs."
        ),
        Table(
            ["Log", "vLLM", "Card", "TP × PP", "Cache"]
            + [f"{name}, {kind}" for name in ("Loaded", "Peak") for kind in ("published", "predicted")]
            + [
                "Available, published",
                "Predicted",
                "Middle",
                "Width",
                "Blocks, published",
                "Of that budget",
                "Not explained",
            ],
            [row.cells() for row in rows],
            "lllllrrrrrrrrrrl",
        ),
        Items(
            [
                f"{len(inside)} of {len(rows)} rows lie inside. Median error of the middle: "
                f"{median(abs(row.error) for row in rows):.2%}; the largest of a row inside: "
                f"{max(abs(row.error) for row in inside):.2%}. The widest range: {max(row.width for row in rows):.1%}.",
                "Of rows on other cards and versions than those that the ranges of 0.10, 0.11 and 0.19 were read from (from the "
                f"A100 at 0.31 on): {len([row for row in others if row.inside])} of {len(others)} inside, median error of the "
                f"middle {median(abs(row.error) for row in others):.2%}. Small cards have wide ranges, as a CUDA graph takes as "
                "much there.",
                "FlashInfer samples at 0.11 where it is installed: with Mistral-Small's, by its peak; the other runs sort.",
                "A pipeline's log prints the first rank's weights, peak and budget; its blocks are the last rank's.",
                "Ranges rather than figures, because no cause is known: 0.21 GiB more outside PyTorch for a vocabulary that 16 "
                "does not divide (granite); another activation of the MLP in float32.",
                "NCCL's buffers are as the logs print them, where the profile run's sums go through NCCL. Those of "
                "Qwen3.8-Flash-Next on eight ranks fit into symmetric memory: its log tells what gathering the logits takes "
                "alone, so it is no check. FlashInfer's workspace is worked out.",
                "gpt-oss-120b at 0.11 is reckoned with a share of 0.95, which the document's figures add up to, not 0.9.",
                "Files of other makers stand for their base model with --dtype (fp8, gptq-int4), of the same sizes.",
            ]
        ),
        *_peers(rows),
    ]


def _peers(rows: Sequence[Budget]) -> list[Block]:
    """Other tools on the same rows."""
    cells = [
        [
            row.log["log"],
            row.log["engine_version"],
            row.log["gpu"],
            f"{row.log['tp']} × {row.log['pp']}",
            f"{row.error:+.2%}",
        ]
        + ["–" if error is None else f"{error:+.2%}" for error in row.peers().values()]
        for row in rows
    ]
    lines = []
    for name in PEERS:
        answered = [(row, error) for row in rows if (error := row.peers()[name]) is not None]
        theirs = median(abs(error) for _, error in answered)
        ours = median(abs(row.error) for row, _ in answered)
        lines.append(f"{name}: {len(answered)} rows, median {theirs:.2%}; qwen-inspect on the same rows {ours:.2%}.")
    return [
        Heading("Peers beside ours", 3),
        Paragraph(
            "The error of the budget, of qwen-inspect in the middle of its range. A dash: no answer, or none was published."
        ),
        Table(["Log", "vLLM", "Card", "TP × PP", "qwen-inspect", *PEERS], cells, "llllrrr"),
        Items(
            [
                *lines,
                "llm-d-planner: as its own report has them (accuracy/results/v0.19.0/accuracy_report.md, commit fbd68515), which "
                "leaves out a part of its runs.",
                "vramscout 0.7.0, run here with the catalog's configurations and the sizes of files that a hub would tell: its "
                "budget less weights, runtime and prefill. It has no pipelines, and refuses Gemma-3-4B's configuration.",
            ]
        ),
    ]

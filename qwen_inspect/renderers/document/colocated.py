"""A step of GRPO on one card: each phase by what holds memory in it, with bars."""

from __future__ import annotations

from collections.abc import Sequence

from ...language import Language
from ...results.colocated import Colocated, Phase
from ...units import count, size
from ..blocks import Block, Fields, Heading, Items, Paragraph, Table
from .common import size_range

BAR = 24  # characters of a full card
# What a bar is made of, in the order of the table's columns.
PARTS = (
    ("policy", "█"),
    ("cached", "░"),
    ("reference", "▓"),
    ("reward", "▒"),
    ("engine_most", "▚"),
    ("context_most", "·"),
)


def colocated_blocks(step: Colocated, say: Language) -> list[Block]:
    shown = [part for part, _ in PARTS if part == "policy" or any(getattr(phase, part) for phase in step.phases)]
    legend = say("comma").join(f"{mark} {say(f'column_grpo_{part}')}" for part, mark in PARTS if part in shown)
    return [
        Heading(say("heading_grpo", gpu=step.gpu.name)),
        Fields(_fields(step, say)),
        Table(
            [say("column_grpo_phase"), *(say(f"column_grpo_{part}") for part in shown), say("column_grpo_sum")],
            [[say(f"stage_grpo_{phase.name}"), *_cells(phase, shown, say)] for phase in step.phases],
            "l" + "r" * (len(shown) + 1),
        ),
        Table(
            [say("column_grpo_phase"), say("column_grpo_bar", size=size(step.gpu.available_bytes))],
            [[say(f"stage_grpo_{phase.name}"), bar(phase, step.gpu.available_bytes)] for phase in step.phases],
            "ll",
        ),
        Paragraph(legend),
        Heading(say("heading_grpo_assumptions"), 3),
        Items([say(message) for message in step.assumptions if message.key.startswith("assume_grpo")]),
    ]


def _fields(step: Colocated, say: Language) -> Sequence[tuple[str, str]]:
    fields = [(say("field_grpo_engine"), step.engine), (say("field_grpo_rollouts"), count(step.rollouts))]
    if step.engine == "vllm":
        fields += [
            (say("field_grpo_share"), f"{step.utilization:g}"),
            (say("field_grpo_sleep"), str(step.sleep) if step.sleep else say("grpo_awake")),
            (say("field_grpo_cache"), count(step.kv_cache_tokens)),
            (say("field_grpo_host"), size(step.host_bytes)),
        ]
    return fields


def _cells(phase: Phase, shown: Sequence[str], say: Language) -> Sequence[str]:
    least = {"engine_most": phase.engine_least, "context_most": phase.context_least}
    cells = [size_range(least.get(part, getattr(phase, part)), getattr(phase, part), say) for part in shown]
    return [*cells, size_range(phase.least, phase.most, say)]


def bar(phase: Phase, available_bytes: int) -> str:
    """The phase's parts to scale, a card's memory being `BAR` characters; "|" is its end, if it is passed."""
    drawn, end = "", 0
    for part, mark in PARTS:
        end += getattr(phase, part)
        drawn += mark * (round(BAR * end / available_bytes) - len(drawn))
    over = drawn[BAR : 2 * BAR]
    return f"{drawn[:BAR]}|{over}" if over else drawn.ljust(BAR, " ") + "|"

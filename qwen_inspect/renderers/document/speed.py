"""The bounds of a run's speed on a card, step by step."""

from __future__ import annotations

from ...language import Language
from ...results.speed import Speed, Step
from ...units import UNKNOWN, count, seconds, size
from ..blocks import Block, Heading, Items, Table


def speed_blocks(speed: Speed, say: Language) -> list[Block]:
    columns = ["step", "context", "operations", "weights", "cache", "time", "limit", "rate"]
    if speed.mixture:
        columns.append("even")
    return [
        Heading(say("heading_speed", gpu=speed.gpu.name)),
        Table(
            [say(f"column_speed_{name}") for name in columns],
            [_row(speed, step, say) for step in speed.steps],
            "lrrrrrlrr"[: len(columns)],
            expendable=((2,), (3,), (4,)),
        ),
        Items([say(key, **values) for key, values in _notes(speed)]),
    ]


def _row(speed: Speed, step: Step, say: Language) -> list[str]:
    unknown = step.name == "prompt" and step.rate is None
    cells = [
        say(f"speed_step_{step.name}"),
        count(step.context_tokens),
        count(step.operations),
        size(step.weight_bytes),
        size(step.cache_bytes),
        seconds(step.seconds),
        say("speed_limit_memory_alone" if unknown else f"speed_limit_{step.limit}"),
        UNKNOWN if step.name == "prompt" else f"{speed.tokens_a_second(step):,.1f}",
    ]
    return [*cells, seconds(step.even_seconds)] if speed.mixture else cells


def _notes(speed: Speed) -> list[tuple[str, dict[str, object]]]:
    figures = {name: figure for name, figure in speed.gpu.figures if name in ("bandwidth", "tensor_rate")}
    notes: list[tuple[str, dict[str, object]]] = [("speed_bound", {})]
    notes += [
        (f"speed_from_{name}", {"text": figure.text, "source": figure.source}) for name, figure in figures.items()
    ]
    if (share := speed.measured_share) is not None:
        source = dict(speed.gpu.figures)["generation"].source
        notes.append(("speed_measured", {"share": f"{share:.0%}", "rate": speed.gpu.generation, "source": source}))
    if speed.steps[0].rate is None:
        notes.append(("speed_rate_unknown", {"name": speed.gpu.name}))
    if speed.mixture:
        notes.append(("speed_mixture", {}))
    if speed.uncounted:
        notes.append(("speed_uncounted", {"layers": speed.uncounted}))
    return notes

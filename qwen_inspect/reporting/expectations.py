"""What a command expects of a model, and whether it holds."""

from __future__ import annotations

from ..language import Message
from ..results.memory import MemoryReport
from ..results.whole import Expectation, WholeReport


def expectations(
    whole: WholeReport, *, parameters: int | None, attention: str | None, most_vram: tuple[str, int] | None
) -> list[Expectation]:
    """Each expectation of a model with whether it holds. most_vram: a size as typed, and in bytes."""
    report, checked = whole.report, []
    name = report.ref.id
    if parameters is not None:
        counted = report.parameters.theory
        checked.append(
            _expectation("expect_params", parameters == counted, name=name, found=counted, expected=parameters)
        )
    if attention is not None:
        kind = report.attention.kind if report.settled else "–"
        wanted = attention if attention == "mixed" else attention.upper()
        checked.append(_expectation("expect_attention", kind == wanted, name=name, found=kind, expected=wanted))
    if most_vram is not None:
        checked.append(_within(_requested_memory(whole), name, *most_vram))
    return checked


def _expectation(key: str, holds: bool, **values: object) -> Expectation:
    return Expectation(message=Message(f"{key}_{'holds' if holds else 'fails'}", **values), holds=holds)


def _requested_memory(whole: WholeReport) -> MemoryReport:
    """The prediction for the requested prompt, else for the longest."""
    requested = whole.request.context_tokens
    return next((memory for memory in whole.memory if memory.run.prompt_tokens == requested), whole.memory[-1])


def _within(memory: MemoryReport, name: str, limit: str, limit_bytes: int) -> Expectation:
    """Whether the reserved memory stays within the limit; it fails if unknown, or if the limit lies within the range."""
    from ..units import size

    run, reserved = memory.run, memory.predicted.peak_reserved
    values = {"name": name, "limit": limit, "tokens": run.prompt_tokens, "new": run.new_tokens, "batch": run.batch}
    if (peak_range := memory.predicted.peak_range) is not None:
        low, high = peak_range.reserved_bytes
        if low <= limit_bytes and (high is None or limit_bytes < high):
            message = Message("expect_vram_between", low=size(low), high=size(high), **values)
            return Expectation(message=message, holds=False)
        return _expectation(
            "expect_vram", low <= limit_bytes, found=size(high if low <= limit_bytes else low), **values
        )
    if reserved is None:
        return Expectation(message=Message("expect_vram_unknown", **values), holds=False)
    return _expectation("expect_vram", reserved <= limit_bytes, found=size(reserved), **values)

"""`params`: the count, and whether the witnesses agree on it."""

from __future__ import annotations

from collections.abc import Iterator

from ...language import Language
from ...results.counts import Check
from ...results.model import Report
from ...units import count, signed
from . import structure, within


def sentences(report: Report, say: Language) -> list[str]:
    parameters = structure.parameters(report, say)
    return [
        say("answer_count", name=report.ref.id, parameters=parameters),
        *structure.adapter(report, say),
        *verdicts(report, say),
    ]


def verdicts(report: Report, say: Language) -> Iterator[str]:
    """Whether the counts agree: a sentence for those that do, and one for each pair that does not."""
    if agreeing := [_pair(check, say) for check in report.checks if check.agrees]:
        yield say("answer_agree", pairs=say("semicolon").join(agreeing))
    for check in report.checks:
        if not check.agrees:
            left_over = {"residual": signed(check.residual), "tensors": len(check.unexplained)}
            yield say("answer_disagree", pair=_pair(check, say), **left_over)
    if report.known.spec.from_file:
        yield say("answer_from_file", architecture=report.known.spec.family)
    elif not report.checks:
        unread = report.known.unread if report.tensors is not None else None
        yield say("answer_unchecked") if unread is None else say("answer_not_known", reason=within(say(unread.message)))


def _pair(check: Check, say: Language) -> str:
    """Theory 596,049,920, files 751,632,384 (+155,582,464: tied copy stored again)"""
    sides = ((check.left, check.left_parameters), (check.right, check.right_parameters))
    left, right = (f"{say(f'witness_{name}')} {count(value)}" for name, value in sides)
    if not check.difference:
        return f"{left} = {right}"
    causes = say("comma").join(say(f"cause_name_{cause.name}") for cause in check.causes if cause.parameters)
    cause = causes or say("answer_no_cause")
    return say("answer_differ", left=left, right=right, difference=signed(check.difference), causes=cause)

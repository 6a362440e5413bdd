"""`report --check` and the CI summary: drifted figures, results of expectations, and each model's key figures."""

from __future__ import annotations

from collections.abc import Sequence

from ...language import Language
from ...results.whole import Drift, Expectation, Figure, ReportCheck, WholeReport
from ...units import UNKNOWN, count, size
from ..blocks import Answer, Block, Heading, Items, Paragraph, Table
from .common import active_rows, size_range, unique_parameters

MOST_DRIFTS = 20
LONGEST_FIGURE = 80
MOST_NAMED = 3


def check_blocks(checks: Sequence[ReportCheck], say: Language) -> list[Block]:
    """Whether all agree; a sentence per report; then a table of the changed figures of each report that drifted."""
    return [Answer(_checked(checks, say)), *_each_check(checks, say)]


def _checked(checks: Sequence[ReportCheck], say: Language) -> list[str]:
    failed = [check.document for check in checks if not check.agrees]
    values = {"agreeing": len(checks) - len(failed), "count": len(checks)}
    if not failed:
        return [say("answer_checks", **values)] if checks else []
    named = [*failed[:MOST_NAMED], *(["…"] if len(failed) > MOST_NAMED else [])]
    return [say("answer_checks_fail", documents=say("comma").join(named), **values)]


def _expected(expectations: Sequence[Expectation], say: Language) -> list[str]:
    holding = sum(expectation.holds for expectation in expectations)
    return [say("answer_expectations", holding=holding, count=len(expectations))] if expectations else []


def _each_check(checks: Sequence[ReportCheck], say: Language) -> list[Block]:
    content: list[Block] = [Heading(say("heading_checked")), Items([_sentence(check, say) for check in checks])]
    for check in checks:
        if check.drifts:
            content += [Heading(check.document, 3), *_drift_blocks(check.drifts, say)]
    return content


def _sentence(check: ReportCheck, say: Language) -> str:
    if check.problem is not None:
        return say(check.problem)
    if check.drifts:
        return say("check_reports_drifted", document=check.document, count=len(check.drifts))
    return say(check.note) if check.note is not None else say("check_reports_agree", document=check.document)


def _drift_blocks(drifts: Sequence[Drift], say: Language) -> list[Block]:
    rows = [[drift.figure[:LONGEST_FIGURE], _shown(drift.was), _shown(drift.now)] for drift in drifts[:MOST_DRIFTS]]
    content: list[Block] = [Table([say("column_figure"), say("column_was"), say("column_is")], rows, "lrr")]
    if len(drifts) > MOST_DRIFTS:
        content.append(Paragraph(say("drifts_more", count=len(drifts) - MOST_DRIFTS)))
    return content


def _shown(figure: Figure) -> str:
    if figure is None or (isinstance(figure, int) and not isinstance(figure, bool)):
        return count(figure)
    text = str(figure)
    return text if len(text) <= LONGEST_FIGURE else f"{text[:LONGEST_FIGURE]}…"


def summary_blocks(
    wholes: Sequence[WholeReport],
    checks: Sequence[ReportCheck],
    expectations: Sequence[Expectation],
    say: Language,
) -> list[Block]:
    """A CI job's summary: key figures of each model, results of expectations, and of `--check`."""
    verdicts = [*_checked(checks, say), *_expected(expectations, say)]
    content: list[Block] = [Answer(verdicts)] if verdicts else []
    for whole in wholes:
        content += [Heading(whole.report.ref.id), _key_figures(whole, say)]
    if expectations:
        rows = [
            [say(expectation.message), say("verdict_holds" if expectation.holds else "verdict_fails")]
            for expectation in expectations
        ]
        columns = [say("column_expectation"), say("column_verdict")]
        content += [Heading(say("heading_expectations")), Table(columns, rows, "ll")]
    return [*content, *(_each_check(checks, say) if checks else [])]


def _key_figures(whole: WholeReport, say: Language) -> Table:
    report = whole.report
    counts = report.parameters
    rows = [(say("field_unique"), unique_parameters(report, say))]
    rows += active_rows(counts, say)
    rows += [
        (say("field_attention"), report.attention.kind),
        (say("field_cache_per_token"), size(report.cache.bytes_per_token)),
        (say("term_weights"), size(whole.memory[0].predicted.steady.weights if whole.memory else None)),
    ]
    for memory in whole.memory:
        required, tokens = memory.predicted.required_bytes, memory.run.prompt_tokens
        rows.append(
            (say("field_required_at", tokens=tokens), UNKNOWN if required is None else size_range(*required, say))
        )
        rows.append((say("field_peak_at", tokens=tokens), size(memory.predicted.peak_reserved)))
    return Table([say("column_quantity"), say("column_value")], rows, "lr")

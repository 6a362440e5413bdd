"""The `report` command, without printing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import QwenInspectError
from ..language import Language, Message
from ..loaders.resolve import Access
from ..renderers.document.checked import check_blocks, summary_blocks
from ..results.model import Report
from ..results.whole import Expectation, ReportCheck, ReportRequest, WholeReport
from ..values import dataclass, replace
from .checks import check, check_all
from .compiling import compiled
from .documents import refuse_a_file, rendered, save
from .expectations import expectations


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A `report` command. request: None for every report in `directory`. Expectations are None if not set.

    action: "show", "write", "overwrite", "check" or "update". summary: for a CI job's page, in Markdown.
    columns: of the terminal that a check's text goes to, None if it goes elsewhere.
    """

    request: ReportRequest | None
    directory: str | None
    action: str
    summary: bool = False
    expected_parameters: int | None = None
    expected_attention: str | None = None
    most_vram: tuple[str, int] | None = None
    trust_remote_code: bool = False
    columns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The text to print, the documents written, the expectations that failed, and whether all checks and expectations hold.

    refusal: why a document lacks memory or cache figures, None if it has them.
    """

    text: str
    saved: tuple[str, ...]
    failed: tuple[Message, ...]
    agrees: bool
    refusal: QwenInspectError | None = None


def carry_out(task: Task, access: Access, say: Language) -> Outcome:
    """Runs the command, without printing."""
    wholes: list[WholeReport] = []
    checks: list[ReportCheck] = []
    saved: list[str] = []
    if task.directory is not None:
        refuse_a_file(task.directory)
    if task.request is not None:
        wholes = [compiled(task.request, access, trust_remote_code=task.trust_remote_code)]
    if task.directory is not None and task.action in ("check", "update"):
        results: Iterable[tuple[ReportCheck, WholeReport | None]] = (
            check_all(task.directory, access) if not wholes else [(check(wholes[0], task.directory), wholes[0])]
        )
        for report_check, whole in results:
            if whole is not None and task.request is None:
                wholes.append(whole)
            if (
                task.action == "update"
                and whole is not None
                and not (report_check.agrees and report_check.note is None)
            ):
                saved.append(save(whole, task.directory, overwrite=True))
            else:
                checks.append(report_check)
    elif task.directory is not None:
        saved = [save(wholes[0], task.directory, overwrite=task.action == "overwrite")]
    expected = [
        expectation
        for whole in _each_once(wholes)
        for expectation in expectations(
            whole, parameters=task.expected_parameters, attention=task.expected_attention, most_vram=task.most_vram
        )
    ]
    return Outcome(
        text=_printed(task, wholes, checks, expected, say),
        saved=tuple(saved),
        failed=tuple(expectation.message for expectation in expected if not expectation.holds),
        agrees=all(report_check.agrees for report_check in checks)
        and all(expectation.holds for expectation in expected),
        refusal=None
        if task.action in ("check", "update")
        else next((refusal for whole in wholes if (refusal := _refusal(whole.report)) is not None), None),
    )


def _refusal(report: Report) -> QwenInspectError | None:
    """Why a document lacks memory or cache figures; None if it has them."""
    return report.known.unread or report.known.cache_refusal


def _printed(
    task: Task,
    wholes: Sequence[WholeReport],
    checks: Sequence[ReportCheck],
    expected: Sequence[Expectation],
    say: Language,
) -> str:
    if task.summary:
        from ..renderers import markdown

        return markdown.render(summary_blocks(_each_once(wholes), checks, expected, say))
    if checks:
        from ..renderers import terminal
        from ..renderers.screen import Screen

        screen = None if task.columns is None else Screen(task.columns, say)
        return terminal.render(check_blocks(checks, say), screen)
    return rendered(wholes[0], with_picture=False) if task.action == "show" else ""


def _each_once(wholes: Sequence[WholeReport]) -> list[WholeReport]:
    """`wholes` without repeats of a model in other languages or forms."""
    return list({replace(whole.request, language="", form=""): whole for whole in wholes}.values())

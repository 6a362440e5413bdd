"""`compare`: whether two hubs hold the same weights; what differs between models, their sizes and needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...language import Language
from ...results.compare import Comparison, SideBySide
from ...results.listing import FilesComparison
from ...results.model import Report
from ...units import short_count
from ..document.compare import letter_of
from . import memory


def sentences(comparison: Comparison, say: Language) -> list[str]:
    content = [] if comparison.files is None else [_files(comparison.files, say)]
    if comparison.models is not None:
        content += _models(comparison.models, say)
    return content or [say(message) for message in comparison.notices[:1]]


def _files(files: FilesComparison, say: Language) -> str:
    left, right = (f"{ref.source}:{ref.id}" for ref in (files.left, files.right))
    different = sum(pair.same is False for pair in files.weights)
    values = {"left": left, "right": right, "files": len(files.weights), "different": different}
    verdict = {True: "answer_files_equal", False: "answer_files_differ", None: "answer_files_unknown"}
    return say(verdict[files.identical], **values)


def _models(sides: SideBySide, say: Language) -> Iterator[str]:
    rows = [*(row.same for row in sides.facts), *(row.same for row in sides.config)]
    differing, unknown = rows.count(False), rows.count(None)
    key = "answer_rows_unknown" if unknown else "answer_rows"
    yield say(key, rows=len(rows), differing=differing, **({"unknown": unknown} if unknown else {}))
    yield say("answer_sides_parameters", values=_each(sides, lambda index: _parameters(sides.reports[index], say), say))
    needed = _each(sides, lambda index: _needed(sides, index, say), say)
    yield say("answer_sides_needed", values=needed, run=memory.workload(sides.run, say))


def _each(sides: SideBySide, value_of: Callable[[int], str], say: Language) -> str:
    return say("comma").join(f"{letter_of(index)} {value_of(index)}" for index in range(len(sides.reports)))


def _parameters(report: Report, say: Language) -> str:
    return say("answer_unknown") if report.design is None else short_count(report.parameters.theory)


def _needed(sides: SideBySide, index: int, say: Language) -> str:
    prediction = sides.memories[index]
    return say("answer_unknown") if prediction is None else memory.needed(prediction.predicted, say)

"""Committed reports held against new ones, figure by figure."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import NotFoundError, UsageError
from ..language import LANGUAGES, Message
from ..loaders.regular import read_regular
from ..loaders.resolve import Access
from ..renderers import record
from ..renderers.record import SUFFIX
from ..results.whole import Drift, Figure, ReportCheck, ReportRequest, WholeReport
from ..typed import Any
from ..values import fields, replace
from .compiling import compiled
from .documents import document_name, files, sha256_of

FORMS = ("md", "html", "json")

LARGEST_FILE_BYTES = 64 << 20  # far above any report

LARGEST_COUNT = 10**18


def recorded(directory: str) -> list[tuple[str, ReportRequest | Message]]:
    """(document name, request) of each recorded report in `directory`; a message instead if the record cannot be read."""
    if not os.path.isdir(directory):
        missing = "report_directory" if os.path.lexists(directory) else "report_directory_missing"
        raise UsageError(missing, path=directory)
    names = sorted(name.removesuffix(SUFFIX) for name in os.listdir(directory) if name.endswith(SUFFIX))
    if not names:
        raise NotFoundError("check_reports_none", directory=directory)
    stored = {name: _record(Path(directory, name + SUFFIX)) for name in names}
    return [
        (name, _request((entry or {}).get("request")) or _problem_of(name, entry)) for name, entry in stored.items()
    ]


def check_all(directory: str, access: Access) -> Iterator[tuple[ReportCheck, WholeReport | None]]:
    """Checks every recorded report in `directory` against a new one; a model in several languages is compiled once."""
    compiled_by_request: dict[ReportRequest, WholeReport] = {}
    for name, request in recorded(directory):
        if isinstance(request, Message):
            yield ReportCheck(document=name, problem=request), None
            continue
        neutral = replace(request, language="en", form="md")
        if neutral not in compiled_by_request:
            compiled_by_request[neutral] = compiled(neutral, access)
        whole = replace(
            compiled_by_request[neutral], request=replace(request, model=compiled_by_request[neutral].request.model)
        )
        if (expected := document_name(whole)) != name:
            problem = Message("check_report_renamed", document=name, expected=expected)
            yield ReportCheck(document=name, problem=problem), None
        else:
            yield check(whole, directory), whole


def check(whole: WholeReport, directory: str) -> ReportCheck:
    """Checks the report in `directory` against `whole`: first its figures, then whether its files are unedited."""
    name = document_name(whole)
    if not Path(directory, name).is_file():
        return ReportCheck(document=name, problem=Message("check_report_missing", document=name))
    stored = _record(Path(directory, name + SUFFIX))
    if stored is None or stored.get("report_format") != record.FORMAT_VERSION or not _is_whole(stored):
        return ReportCheck(document=name, problem=_problem_of(name, stored))
    if drifts := _drifts(stored["figures"], record.figures(whole)):
        return ReportCheck(document=name, drifts=drifts)
    note = None
    for file, text in files(whole).items():
        if file.endswith(SUFFIX):
            continue
        digest = _digest_of(Path(directory, file))
        if digest is None or digest != stored["documents"].get(file):
            return ReportCheck(document=name, problem=Message("check_report_edited", document=name, file=file))
        if digest != sha256_of(text):
            note = Message("check_report_reworded", document=name)
    return ReportCheck(document=name, note=note)


def _drifts(was: Mapping[str, Figure], now: Mapping[str, Figure]) -> tuple[Drift, ...]:
    """Figures that differ. A file's SHA-256 that is unknown on one side is no difference."""

    def differs(name: str) -> bool:
        left, right = was.get(name), now.get(name)
        is_unknown_hash = name.startswith("files.") and name.endswith(".sha256") and None in (left, right)
        return left != right and not (is_unknown_hash and name in was and name in now)

    names = dict.fromkeys((*now, *was))
    return tuple(Drift(figure=name, was=was.get(name), now=now.get(name)) for name in names if differs(name))


def _record(path: Path) -> Mapping[str, Any] | None:
    """The record at `path`; None if it is absent or no JSON object."""
    content = _content(path)
    try:
        stored = None if content is None else json.loads(content)
    except (ValueError, RecursionError):
        return None
    return stored if isinstance(stored, dict) else None


def _problem_of(name: str, stored: Mapping[str, Any] | None) -> Message:
    """The message that says why a record cannot be compared."""
    version = None if stored is None else stored.get("report_format")
    if version in (None, record.FORMAT_VERSION):
        return Message("check_report_unrecorded", document=name, record=name + SUFFIX)
    return Message("check_report_version", document=name, found=str(version)[:20], expected=record.FORMAT_VERSION)


def _is_whole(stored: Mapping[str, Any]) -> bool:
    figures = stored.get("figures")
    return (
        isinstance(stored.get("documents"), dict)
        and isinstance(figures, dict)
        and all(isinstance(figure, Figure) for figure in figures.values())
    )


def _request(stored: object) -> ReportRequest | None:
    """A recorded request; None if the command line could not have produced it."""
    if not isinstance(stored, dict):
        return None
    stored = {"file": None, "measured": [], "gpus": None, **stored}  # keys absent in older records
    if {*stored} != {field.name for field in fields(ReportRequest)}:
        return None
    measured = stored["measured"]
    lengths = [
        stored["batch"],
        stored["new_tokens"],
        1 if stored["context_tokens"] is None else stored["context_tokens"],
    ]
    is_sound = (
        isinstance(stored["model"], str)
        and isinstance(stored["revision"], str | None)
        and isinstance(stored["file"], str | None)
        and stored["source"] in ("auto", "hf", "ms", "local", "catalog")
        and all(type(length) is int and 0 < length < LARGEST_COUNT for length in lengths)
        and isinstance(stored["instantiate"], bool)
        and stored["language"] in LANGUAGES
        and stored["form"] in FORMS
        and isinstance(stored["gpus"], str | None)
        and isinstance(measured, list)
        and all(isinstance(path, str) and "\0" not in path for path in measured)
    )
    return ReportRequest(**{**stored, "measured": tuple(measured)}) if is_sound else None


def _content(path: Path) -> bytes | None:
    """A file's content; None if it cannot be read or is larger than any report."""
    try:
        content = read_regular(path, cap=LARGEST_FILE_BYTES)
    except OSError:
        return None
    return content if len(content) <= LARGEST_FILE_BYTES else None


def _digest_of(path: Path) -> str | None:
    content = _content(path)
    return None if content is None else sha256_of(content)

"""`report`: compiles a model's report, writes its files, and checks committed reports and expectations.

A report is the document, its pictures (separate files for Markdown only), and a record of its figures and its request, so
that a later run can repeat the request and compare number by number.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from .checkpoint import Tensor
from .errors import NotFoundError, QwenInspectError, UnsupportedError, UsageError
from .fitting.advice import limits, savings
from .language import LANGUAGES, Language, Message
from .loaders import gpus
from .loaders.kept_measurement import read_measurement
from .loaders.regular import read_regular
from .loaders.resolve import Access
from .output import write_all_whole
from .predicting.predict import explored, predict
from .renderers import record
from .renderers.blocks import Figure as Picture
from .renderers.document import View, document
from .renderers.document.checked import check_blocks, summary_blocks
from .renderers.record import SUFFIX
from .results.cache import Workload
from .results.fit import Gpu
from .results.measurement import KeptMeasurement
from .results.memory import MemoryReport, Run
from .results.model import Report
from .results.whole import Advice, Drift, Expectation, Figure, ReportCheck, ReportRequest, WholeReport
from .structure.inspect import inspect
from .tracing import versions
from .values import dataclass

PROMPTS = (2048, 8192, 32_768)
FORMS = ("md", "html", "json")
LONGEST_NAME_BYTES = 120
LARGEST_FILE_BYTES = 64 << 20  # far above any report
LARGEST_COUNT = 10**18


def compiled(request: ReportRequest, access: Access, *, trust_remote_code: bool = False) -> WholeReport:
    """The whole report of the requested model. Raises what `inspect`, `predict` and `gpus.find` raise."""
    cards = tuple(gpus.find(name.strip()) for name in request.gpus.split(",")) if request.gpus else None
    whole = predicted(request, access, trust_remote_code=trust_remote_code)
    return replace(whole, advice=_advice(whole, tuple(gpus.common()) if cards is None else cards))


def predicted(request: ReportRequest, access: Access, *, trust_remote_code: bool = False) -> WholeReport:
    """The report without advice."""
    # Refused before the model is read.
    measured = [read_measurement(_relative(path)) for path in request.measured]
    report = inspect(
        _relative(request.model),
        source=request.source,
        revision=request.revision,
        file=request.file,
        access=access,
        predict_files=True,
        instantiate=request.instantiate,
        workload=Workload(batch=request.batch, context_tokens=request.context_tokens),
        trust_remote_code=trust_remote_code,
    )
    if report.ref.source == "local" and os.path.isabs(report.ref.id):
        report = replace(report, ref=replace(report.ref, id=_file_name(report.ref.id)))
    if report.settled and report.cache.source_bytes_per_token and report.cache.source_tokens is None:
        refusal = UnsupportedError("source_tokens_unknown")  # a report is of no source
        report = replace(report, design=replace(report.known, attention=None, cache=None, cache_refusal=refusal))
    unknown = report.known.unread is not None and report.tensors is None  # not even the weights' bytes are known
    return WholeReport(
        request=replace(
            request, model=_relative(request.model), measured=tuple(_relative(path) for path in request.measured)
        ),
        name=_file_name(report.ref.id),
        report=report,
        memory=() if unknown else tuple(predict(report, _run(request, tokens)) for tokens in _prompts(report, request)),
        config_sha256=_digest(json.dumps(report.written, sort_keys=True, separators=(",", ":"))),
        tensors_sha256=_tensors_digest(report.tensors) if report.tensors_origin == "stored" else None,
        built_by=versions() if request.instantiate else None,
        measured=tuple(map(_of_model, measured, request.measured, [report] * len(measured))),
    )


def _advice(whole: WholeReport, cards: tuple[Gpu, ...]) -> Advice | None:
    """On the requested prompt, else the middle one: how far it goes on each card; on the longest: what changes save."""
    if not whole.memory:
        return None
    requested = [memory for memory in whole.memory if memory.run.prompt_tokens == whole.request.context_tokens]
    middle, longest = (requested or whole.memory)[len(requested or whole.memory) // 2], whole.memory[-1]
    return Advice(
        run=middle.run, limits=limits(whole.memory, middle.run, cards), saving_run=longest.run, savings=savings(longest)
    )


def _of_model(kept: KeptMeasurement, path: str, report: Report) -> KeptMeasurement:
    """The measurement read from `path`; UsageError if it is of a model with another class, dtype or weight bytes."""
    spec = report.spec
    weights = next((difference.predicted for difference in kept.differences if difference.term == "weights"), None)
    measured = {"class_name": kept.class_name, "dtype": kept.dtype, "bytes": weights}
    expected = {
        "class_name": spec.class_name,
        "dtype": str(spec.dtype),
        "bytes": sum(report.known.loaded_bytes),
    }
    if measured != expected:
        expected_values = {f"expected_{name}": value for name, value in expected.items()}
        raise UsageError("measured_of_another", path=path, **{**measured, "bytes": weights or 0}, **expected_values)
    return kept


def _relative(model: str) -> str:
    """An absolute path below the working directory made relative, so that a report is the same on every machine."""
    if not os.path.isabs(model):
        return model
    relative = os.path.relpath(model)
    return model if relative.startswith(os.pardir) else relative


def _file_name(model: str) -> str:
    """The name of a model's files: the last part of its name, in characters valid on every file system."""
    path = Path(os.path.abspath(model) if model in ("", ".", "..") else model)
    last = path.parent.name or path.stem if path.name == "config.json" else path.name
    name = re.sub(r"[^\w.-]+", "-", re.sub(r"\.(safetensors|json|gguf)$", "", last)).strip("-.")
    return name.encode()[:LONGEST_NAME_BYTES].decode(errors="ignore") or "model"


def _prompts(report: Report, request: ReportRequest) -> list[int]:
    """The usual prompt lengths within the model's limit, and the requested one; half the limit if there is neither."""
    limit = report.spec.context_tokens
    usual = [tokens for tokens in PROMPTS if limit is None or tokens + request.new_tokens <= limit]
    requested = [] if request.context_tokens is None else [request.context_tokens]
    return sorted({*usual, *requested}) or [max(1, (limit or 2) // 2)]


def _run(request: ReportRequest, prompt_tokens: int) -> Run:
    return Run(
        mode="generate",
        batch=request.batch,
        prompt_tokens=prompt_tokens,
        new_tokens=request.new_tokens,
        loader="warmup",
        gpu="sm_80",
    )


def _digest(text: str | bytes) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text).hexdigest()


def _tensors_digest(tensors: Sequence[Tensor] | None) -> str:
    rows = sorted((tensor.name, tensor.dtype.code, tensor.shape) for tensor in tensors or ())
    return _digest(json.dumps(rows))


# --- documents


def rendered(whole: WholeReport, *, with_picture: bool = True) -> str:
    """The document in the requested form and language. with_picture: False for Markdown without files beside it."""
    say = Language(whole.request.language)
    if whole.request.form == "json":
        from .renderers import json as json_renderer

        return json_renderer.render("report", whole, say)
    if whole.request.form == "html":
        from .renderers import html

        live = replace(whole, memory=tuple(explored(memory) for memory in whole.memory[:1]) + whole.memory[1:])
        return html.render(document("report", live, say, View(live=True)), say)
    blocks = document("report", whole, say, View())
    from .renderers import markdown

    return markdown.render([block for block in blocks if with_picture or not isinstance(block, Picture)])


def files(whole: WholeReport) -> dict[str, str]:
    """The names and contents of a report's files, the document first and the record of its figures last."""
    written = {document_name(whole): rendered(whole)}
    if whole.request.form == "md":
        from .renderers.document.report import pictures

        written |= {picture.file: picture.svg for picture in pictures(whole, Language(whole.request.language))}
    digests = {name: _digest(text) for name, text in written.items()}
    return {**written, document_name(whole) + SUFFIX: record.render(whole, digests)}


def document_name(whole: WholeReport) -> str:
    return f"{whole.name}.{whole.request.language}.{whole.request.form}"


def save(whole: WholeReport, directory: str, *, overwrite: bool) -> str:
    """Writes a report's files into `directory`, created if missing; returns the document's path."""
    try:
        os.makedirs(directory, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError("report_directory", path=directory) from None
    except OSError as error:
        raise UsageError("output_unwritable", path=directory, reason=error.strerror) from None
    contents = {os.path.join(directory, name): text for name, text in files(whole).items()}
    write_all_whole(contents, overwrite=overwrite)
    return os.path.join(directory, document_name(whole))


# --- checks


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
        if digest != _digest(text):
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
    return None if content is None else _digest(content)


# --- expectations


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
    from .units import size

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


# --- the command


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
        from .renderers import markdown

        return markdown.render(summary_blocks(_each_once(wholes), checks, expected, say))
    if checks:
        from .renderers import terminal
        from .renderers.screen import Screen

        screen = None if task.columns is None else Screen(task.columns, say)
        return terminal.render(check_blocks(checks, say), screen)
    return rendered(wholes[0], with_picture=False) if task.action == "show" else ""


def _each_once(wholes: Sequence[WholeReport]) -> list[WholeReport]:
    """`wholes` without repeats of a model in other languages or forms."""
    return list({replace(whole.request, language="", form=""): whole for whole in wholes}.values())

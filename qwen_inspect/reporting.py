"""`report`: a request -> a model's whole report -> its files; committed reports and expectations held against it.

A report is the document, its pictures (Markdown alone needs them beside it), and a record of its figures with the
request, by which a later run can ask again and compare number by number.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from .checkpoint import Tensor
from .errors import NotFoundError, QwenInspectError, UsageError
from .language import LANGUAGES, Language, Message
from .loaders.kept_measurement import read_measurement
from .loaders.resolve import Access
from .output import write_all_whole
from .predicting.predict import explored, predict
from .renderers import record
from .renderers.blocks import Figure as Picture
from .renderers.document import View, document
from .renderers.document.checked import check_blocks, summary_blocks
from .renderers.record import SUFFIX
from .results.cache import Workload
from .results.measurement import KeptMeasurement
from .results.memory import MemoryReport, Run
from .results.model import Report
from .results.whole import Drift, Expectation, Figure, ReportCheck, ReportRequest, WholeReport
from .spec import each_tensor
from .structure.inspect import inspect
from .tracing import versions

PROMPTS = (2048, 8192, 32_768)
FORMS = ("md", "html", "json")
LONGEST_NAME_BYTES = 120
LARGEST_FILE_BYTES = 64 << 20  # no report comes near it
LARGEST_COUNT = 10**18


def compiled(request: ReportRequest, access: Access, *, trust_remote_code: bool = False) -> WholeReport:
    """Everything that `report` tells of the model asked for. Raises what `inspect` and `predict` raise."""
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
    unknown = report.known.unread is not None and report.tensors is None  # not a byte of the weights is known
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
        measured=tuple(_measured(path, report) for path in request.measured),
    )


def _measured(path: str, report: Report) -> KeptMeasurement:
    """What was measured of this model; UsageError where it was another, by its class, its dtype or the bytes of its weights."""
    kept = read_measurement(_relative(path))
    spec = report.spec
    weights = next((difference.predicted for difference in kept.differences if difference.term == "weights"), None)
    tensors = each_tensor(report.tree) if report.known.weights is None else report.known.weights
    found = {"class_name": kept.class_name, "dtype": kept.dtype, "bytes": weights}
    expected = {
        "class_name": spec.class_name,
        "dtype": str(spec.dtype),
        "bytes": sum(tensor.size_bytes for tensor in tensors),
    }
    if found != expected:
        wanted = {f"expected_{name}": value for name, value in expected.items()}
        raise UsageError("measured_of_another", path=path, **{**found, "bytes": weights or 0}, **wanted)
    return kept


def _relative(model: str) -> str:
    """A path below the working directory as seen from there, so that a report reads the same on another machine."""
    if not os.path.isabs(model):
        return model
    relative = os.path.relpath(model)
    return model if relative.startswith(os.pardir) else relative


def _file_name(model: str) -> str:
    """What a model's files are called: its name's last part, made of characters that every file system takes."""
    path = Path(os.path.abspath(model) if model in ("", ".", "..") else model)
    last = path.parent.name or path.stem if path.name == "config.json" else path.name
    name = re.sub(r"[^\w.-]+", "-", re.sub(r"\.(safetensors|json|gguf)$", "", last)).strip("-.")
    return name.encode()[:LONGEST_NAME_BYTES].decode(errors="ignore") or "model"


def _prompts(report: Report, request: ReportRequest) -> list[int]:
    """The prompts that the model's limit has room for, and the one asked for; half the limit where it is that small."""
    limit = report.spec.context_tokens
    usual = [tokens for tokens in PROMPTS if limit is None or tokens + request.new_tokens <= limit]
    asked = [] if request.context_tokens is None else [request.context_tokens]
    return sorted({*usual, *asked}) or [max(1, (limit or 2) // 2)]


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
    """The document in the form and language asked for. Markdown shows a picture only where a file can lie beside it."""
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
    """Writes a report's files into `directory`, which is made where it is missing; gives the document's path."""
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
    """Each report of `directory` by its record, with what it was asked for, or why that cannot be read."""
    if not os.path.isdir(directory):
        missing = "report_directory" if os.path.lexists(directory) else "report_directory_missing"
        raise UsageError(missing, path=directory)
    names = sorted(name.removesuffix(SUFFIX) for name in os.listdir(directory) if name.endswith(SUFFIX))
    if not names:
        raise NotFoundError("check_reports_none", directory=directory)
    found = {name: _record(Path(directory, name + SUFFIX)) for name in names}
    return [(name, _request((one or {}).get("request")) or _problem_of(name, one)) for name, one in found.items()]


def check_all(directory: str, access: Access) -> Iterator[tuple[ReportCheck, WholeReport | None]]:
    """Every recorded report of `directory` held against what is found now; a model in both languages is looked at once."""
    known: dict[ReportRequest, WholeReport] = {}
    for name, asked in recorded(directory):
        if isinstance(asked, Message):
            yield ReportCheck(document=name, problem=asked), None
            continue
        of_any_form = replace(asked, language="en", form="md")
        if of_any_form not in known:
            known[of_any_form] = compiled(of_any_form, access)
        whole = replace(known[of_any_form], request=replace(asked, model=known[of_any_form].request.model))
        if (expected := document_name(whole)) != name:
            problem = Message("check_report_renamed", document=name, expected=expected)
            yield ReportCheck(document=name, problem=problem), None
        else:
            yield check(whole, directory), whole


def check(whole: WholeReport, directory: str) -> ReportCheck:
    """The report in `directory` held against what is found now: first its figures, then whether its files are as written."""
    name = document_name(whole)
    if not Path(directory, name).is_file():
        return ReportCheck(document=name, problem=Message("check_report_missing", document=name))
    found = _record(Path(directory, name + SUFFIX))
    if found is None or found.get("report_format") != record.FORMAT_VERSION or not _is_whole(found):
        return ReportCheck(document=name, problem=_problem_of(name, found))
    if drifts := _drifts(found["figures"], record.figures(whole)):
        return ReportCheck(document=name, drifts=drifts)
    note = None
    for file, text in files(whole).items():
        if file.endswith(SUFFIX):
            continue
        digest = _digest_of(Path(directory, file))
        if digest is None or digest != found["documents"].get(file):
            return ReportCheck(document=name, problem=Message("check_report_edited", document=name, file=file))
        if digest != _digest(text):
            note = Message("check_report_reworded", document=name)
    return ReportCheck(document=name, note=note)


def _drifts(was: Mapping[str, Figure], now: Mapping[str, Figure]) -> tuple[Drift, ...]:
    """Figures that differ. A file's SHA-256 that one of the two was not told says nothing about the file."""

    def differs(name: str) -> bool:
        left, right = was.get(name), now.get(name)
        is_untold = name.startswith("files.") and name.endswith(".sha256") and None in (left, right)
        return left != right and not (is_untold and name in was and name in now)

    names = dict.fromkeys((*now, *was))
    return tuple(Drift(figure=name, was=was.get(name), now=now.get(name)) for name in names if differs(name))


def _record(path: Path) -> Mapping[str, Any] | None:
    """A record as it stands there; None where it is not there or no JSON object."""
    content = _content(path)
    try:
        found = None if content is None else json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _problem_of(name: str, found: Mapping[str, Any] | None) -> Message:
    """Why a record cannot be compared with."""
    version = None if found is None else found.get("report_format")
    if version in (None, record.FORMAT_VERSION):
        return Message("check_report_unrecorded", document=name, record=name + SUFFIX)
    return Message("check_report_version", document=name, found=str(version)[:20], expected=record.FORMAT_VERSION)


def _is_whole(found: Mapping[str, Any]) -> bool:
    figures = found.get("figures")
    return (
        isinstance(found.get("documents"), dict)
        and isinstance(figures, dict)
        and all(isinstance(figure, Figure) for figure in figures.values())
    )


def _request(found: object) -> ReportRequest | None:
    """A recorded request, if it is one that the command line could have made."""
    if not isinstance(found, dict):
        return None
    found = {"file": None, "measured": [], **found}  # records of before there were any do not name them
    if {*found} != {field.name for field in fields(ReportRequest)}:
        return None
    measured = found["measured"]
    lengths = [found["batch"], found["new_tokens"], 1 if found["context_tokens"] is None else found["context_tokens"]]
    is_sound = (
        isinstance(found["model"], str)
        and isinstance(found["revision"], str | None)
        and isinstance(found["file"], str | None)
        and found["source"] in ("auto", "hf", "ms", "local", "catalog")
        and all(type(length) is int and 0 < length < LARGEST_COUNT for length in lengths)
        and isinstance(found["instantiate"], bool)
        and found["language"] in LANGUAGES
        and found["form"] in FORMS
        and isinstance(measured, list)
        and all(isinstance(path, str) and "\0" not in path for path in measured)
    )
    return ReportRequest(**{**found, "measured": tuple(measured)}) if is_sound else None


def _content(path: Path) -> bytes | None:
    """A file's content; None where it cannot be read or is larger than any report."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_FILE_BYTES:
            return None
        return path.read_bytes()
    except OSError:
        return None


def _digest_of(path: Path) -> str | None:
    content = _content(path)
    return None if content is None else _digest(content)


# --- expectations


def expectations(
    whole: WholeReport, *, parameters: int | None, attention: str | None, most_vram: tuple[str, int] | None
) -> list[Expectation]:
    """What was expected of a model beside what was found. most_vram: a size as typed, and in bytes."""
    report, made = whole.report, []
    name = report.ref.id
    if parameters is not None:
        found = report.parameters.theory
        made.append(_expectation("expect_params", parameters == found, name=name, found=found, expected=parameters))
    if attention is not None:
        kind = report.attention.kind if report.settled else "–"
        wanted = attention if attention == "mixed" else attention.upper()
        made.append(_expectation("expect_attention", kind == wanted, name=name, found=kind, expected=wanted))
    if most_vram is not None:
        made.append(_within(_memory_asked_for(whole), name, *most_vram))
    return made


def _expectation(key: str, holds: bool, **values: object) -> Expectation:
    return Expectation(message=Message(f"{key}_{'holds' if holds else 'fails'}", **values), holds=holds)


def _memory_asked_for(whole: WholeReport) -> MemoryReport:
    """The prediction for the prompt asked for, else for the longest."""
    asked = whole.request.context_tokens
    return next((one for one in whole.memory if one.run.prompt_tokens == asked), whole.memory[-1])


def _within(memory: MemoryReport, name: str, limit: str, limit_bytes: int) -> Expectation:
    """Whether what the allocator reserves stays within the limit; what is unknown does not, nor a range that the limit is in."""
    from .units import size

    run, reserved = memory.run, memory.predicted.peak_reserved
    values = {"name": name, "limit": limit, "tokens": run.prompt_tokens, "new": run.new_tokens, "batch": run.batch}
    if (between := memory.predicted.peak_range) is not None:
        low, high = between.reserved_bytes
        if low <= limit_bytes and (high is None or limit_bytes < high):
            told = Message("expect_vram_between", low=size(low), high=size(high), **values)
            return Expectation(message=told, holds=False)
        return _expectation(
            "expect_vram", low <= limit_bytes, found=size(high if low <= limit_bytes else low), **values
        )
    if reserved is None:
        return Expectation(message=Message("expect_vram_unknown", **values), holds=False)
    return _expectation("expect_vram", reserved <= limit_bytes, found=size(reserved), **values)


# --- the command


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What the command line asks for. request: None for every report of `directory`. Expectations are None where there are none.

    action: "show", "write", "overwrite", "check" or "update". summary: for a CI job's page, in Markdown.
    """

    request: ReportRequest | None
    directory: str | None
    action: str
    summary: bool = False
    expected_parameters: int | None = None
    expected_attention: str | None = None
    most_vram: tuple[str, int] | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What is to be printed, the documents that were written, the expectations that do not hold, and whether all is well.

    refusal: why a document that was made does not tell of the cache, where it does not.
    """

    text: str
    saved: tuple[str, ...]
    failed: tuple[Message, ...]
    agrees: bool
    refusal: QwenInspectError | None = None


def carry_out(task: Task, access: Access, say: Language) -> Outcome:
    """The whole of the command but its printing."""
    wholes: list[WholeReport] = []
    checks: list[ReportCheck] = []
    saved: list[str] = []
    if task.request is not None:
        wholes = [compiled(task.request, access, trust_remote_code=task.trust_remote_code)]
    if task.directory is not None and task.action in ("check", "update"):
        found: Iterable[tuple[ReportCheck, WholeReport | None]] = (
            check_all(task.directory, access) if not wholes else [(check(wholes[0], task.directory), wholes[0])]
        )
        for one, whole in found:
            if whole is not None and task.request is None:
                wholes.append(whole)
            if task.action == "update" and whole is not None and not (one.agrees and one.note is None):
                saved.append(save(whole, task.directory, overwrite=True))
            else:
                checks.append(one)
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
        failed=tuple(one.message for one in expected if not one.holds),
        agrees=all(one.agrees for one in checks) and all(one.holds for one in expected),
        refusal=None
        if task.action in ("check", "update")
        else next((refusal for whole in wholes if (refusal := _refusal(whole.report)) is not None), None),
    )


def _refusal(report: Report) -> QwenInspectError | None:
    """Why a document does not tell of the memory or the cache of a model, where it does not."""
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

        return terminal.render(check_blocks(checks, say))
    return rendered(wholes[0], with_picture=False) if task.action == "show" else ""


def _each_once(wholes: Sequence[WholeReport]) -> list[WholeReport]:
    """A model that is reported in several languages or forms, once."""
    return list({replace(whole.request, language="", form=""): whole for whole in wholes}.values())

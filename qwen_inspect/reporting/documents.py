"""The document of a whole report and the files that are written with it."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from ..errors import UsageError
from ..language import Language
from ..output import write_all_whole
from ..predicting.predict import explored
from ..renderers import record
from ..renderers.blocks import Figure as Picture
from ..renderers.document import View, document
from ..renderers.record import SUFFIX
from ..results.whole import WholeReport
from ..values import replace

LONGEST_NAME_BYTES = 120


def file_name(model: str) -> str:
    """The name of a model's files: the last part of its name, in characters valid on every file system."""
    path = Path(os.path.abspath(model) if model in ("", ".", "..") else model)
    last = path.parent.name or path.stem if path.name == "config.json" else path.name
    name = re.sub(r"[^\w.-]+", "-", re.sub(r"\.(safetensors|json|gguf)$", "", last)).strip("-.")
    return name.encode()[:LONGEST_NAME_BYTES].decode(errors="ignore") or "model"


def sha256_of(text: str | bytes) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text).hexdigest()


def rendered(whole: WholeReport, *, with_picture: bool = True) -> str:
    """The document in the requested form and language. with_picture: False for Markdown without files beside it."""
    say = Language(whole.request.language)
    if whole.request.form == "json":
        from ..renderers import json as json_renderer

        return json_renderer.render("report", whole, say)
    if whole.request.form == "html":
        from ..renderers import html

        live = replace(whole, memory=tuple(explored(memory) for memory in whole.memory[:1]) + whole.memory[1:])
        return html.render(document("report", live, say, View(live=True)), say)
    blocks = document("report", whole, say, View())
    from ..renderers import markdown

    return markdown.render([block for block in blocks if with_picture or not isinstance(block, Picture)])


def files(whole: WholeReport) -> dict[str, str]:
    """The names and contents of a report's files, the document first and the record of its figures last."""
    written = {document_name(whole): rendered(whole)}
    if whole.request.form == "md":
        from ..renderers.document.report import pictures

        written |= {picture.file: picture.svg for picture in pictures(whole, Language(whole.request.language))}
    digests = {name: sha256_of(text) for name, text in written.items()}
    return {**written, document_name(whole) + SUFFIX: record.render(whole, digests)}


def document_name(whole: WholeReport) -> str:
    return f"{whole.name}.{whole.request.language}.{whole.request.form}"


def refuse_a_file(directory: str) -> None:
    """UsageError where the directory of reports is something else, before a model is read for it."""
    if os.path.lexists(directory) and not os.path.isdir(directory):
        raise UsageError("report_directory", path=directory)


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

"""Where a command's answer goes, in which format, and its notices."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from ..console import complain, is_terminal, one_line, print_text, screen_columns
from ..errors import UsageError
from ..language import LANGUAGES, Language, Message
from ..standard import re
from ..typed import TYPE_CHECKING, Any
from .parser import Namespace, Parser

if TYPE_CHECKING:
    from ..checkpoint import Release
    from ..results.listing import CatalogEntry
    from ..results.model import Report

FORMATS = ("table", "md", "html", "json", "csv")
MARKUP = ("html", "svg")
# Commands whose answer is a single table.
IN_CSV = ("config", "weights", "params", "attention", "fit", "compare", "models", "gpus")
MOST_MISSING = 12  # characters without a font, of which a notice gives examples


def declare(command: Parser, say: Language, *, metavar: str = "FILE", help_key: str = "help_output") -> None:
    """The options of every command. metavar, help_key: of -o."""
    command.add_argument("--lang", choices=("auto", *LANGUAGES), default="auto", help=say("help_lang"))
    command.add_argument("-o", "--output", metavar=metavar, help=say(help_key))
    command.add_argument("--overwrite", action="store_true", help=say("help_overwrite"))
    command.add_argument("--no-color", action="store_true", help=say("help_no_color"))
    command.add_argument("-q", "--quiet", action="store_true", help=say("help_quiet"))
    command.add_argument("-v", "--verbose", action="store_true", help=say("help_verbose"))


def declare_document(command: Parser, say: Language) -> None:
    """`declare`, and --format for commands whose answer `show` writes."""
    declare(command, say)
    command.add_argument("--format", choices=FORMATS, default="table", help=say("help_format"))


def check(options: Namespace, *, picture: str | None = None) -> None:
    """Raises UsageError, before anything is computed, for --format csv of several tables, and for output files that exist or have
    a wrong suffix."""
    if options.format == "csv" and options.command not in IN_CSV:
        raise UsageError("csv_several_tables", command=options.command, known=", ".join(IN_CSV))
    for path, suffixes in ((destination(options), ("",)), (picture, (".svg", ".png"))):
        if path is not None and not path.lower().endswith(suffixes):
            raise UsageError("picture_suffix", path=path)
        if path is not None and os.path.lexists(path) and not options.overwrite:
            raise UsageError("output_exists", path=path)


def destination(options: Namespace) -> str | None:
    """The file that the answer goes to, None for stdout: that of -o, and for a picture or page, whose source says nothing on a
    terminal, one in the working directory."""
    if options.output is not None or options.format not in MARKUP or not is_terminal(sys.stdout):
        return None if options.output is None else str(options.output)
    from .model import DEFAULT_MODEL

    # Commands of no model, or of several, are named themselves.
    typed = (options.model or DEFAULT_MODEL) if "model" in options else None
    model = [] if typed is None else [re.sub(r"[^\w.-]+", "-", os.path.basename(os.path.abspath(typed)))]
    return ".".join([*model, options.command, options.format])


def show(subject: object, options: Namespace, say: Language, **view: Any) -> None:
    """Writes the command's document about `subject` in the requested format. view: fields of `View`."""
    write(_text(subject, options, say, view), options, say)


def write(text: str, options: Namespace, say: Language) -> None:
    """Writes the answer to the file of -o, or else to stdout."""
    path = destination(options)
    if path is None:
        print_text(text)
        return
    from ..output import write_whole

    write_whole(path, text, overwrite=options.overwrite)
    _say_saved(path, options, say)


def write_picture(svg: str, path: str, options: Namespace, say: Language) -> None:
    """Writes SVG or PNG by suffix; warns if the PNG's font lacks letters."""
    from ..output import write_whole
    from ..renderers.svg import missing_glyphs, png

    as_png = path.lower().endswith(".png")
    write_whole(path, png(svg) if as_png else svg, overwrite=options.overwrite)
    if as_png and (missing := missing_glyphs(svg)):
        complain(one_line(say("lacks_glyphs", path=path, characters=missing[:MOST_MISSING])))
    _say_saved(path, options, say)


def _say_saved(path: str, options: Namespace, say: Language) -> None:
    chosen_here = options.output is None and path == destination(options)  # nobody else knows its name
    if chosen_here or not options.quiet:
        complain(one_line(say("saved", path=path)))


def say_notices(report: Report, options: Namespace, say: Language) -> None:
    """Prints notices to stderr unless the document on stdout has them; with --verbose, the catalog's sources too."""
    in_document = destination(options) is None and options.format in ("table", "md", "html")
    if not options.quiet and not in_document:
        for notice in report.notices:
            complain(one_line(say(notice)))
    if options.verbose and report.release is not None:
        complain(one_line(say(_sources(report.release))))


def say_sources(entries: Iterable[CatalogEntry], options: Namespace, say: Language) -> None:
    """With --verbose, prints to stderr how far each entry of the catalog is confirmed, and by what."""
    for entry in entries if options.verbose else ():
        assert entry.release is not None
        values = {
            "kind": Message(f"catalog_kind_{entry.release.kind}"),
            "confidence": Message(f"confidence_{entry.release.confidence}"),
            "sources": _sources(entry.release),
        }
        complain(one_line(say("catalog_entry_sources", id=entry.id, **values)))


def _sources(release: Release) -> Message:
    return Message("catalog_sources", config=release.config_source, counts=release.source or "–")


def _text(subject: object, options: Namespace, say: Language, view: dict[str, Any]) -> str:
    if options.format == "json":
        from ..renderers import json

        return json.render(options.command, subject, say)
    if options.format == "csv":
        from ..renderers import csv

        return csv.render(options.command, subject, say, sort=view.get("sort", "name"), top=view.get("top"))
    from ..renderers.document import View, document

    columns = screen_columns() if options.format == "table" and options.output is None else None
    on_screen = {
        "live": options.format == "html",
        "brief": columns is not None and not options.verbose,
        "fold": columns is not None and not view.get("expand", False),
    }
    blocks = document(options.command, subject, say, View(**on_screen, **view))
    if options.format == "md":
        from ..renderers import markdown

        return markdown.render(blocks)
    if options.format == "html":
        from ..renderers import html

        return html.render(blocks, say)
    from ..renderers import terminal
    from ..renderers.screen import Screen

    screen = None if columns is None else Screen(columns, say, whole=options.verbose)
    plain = (
        options.output is not None or options.no_color or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    )
    render = terminal.render if plain or not is_terminal(sys.stdout) else terminal.render_in_colour
    return render(blocks, screen)

"""Where a command's answer goes: stdout, stderr, files, and the exit code of its checks. The only module that prints."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from .language import Language

if TYPE_CHECKING:
    from .results.model import Report

LONGEST_LINE = 1000
EXIT_CHECK_FAILED, EXIT_USAGE, EXIT_MALFORMED, EXIT_UNAVAILABLE, EXIT_INTERRUPTED = 1, 2, 6, 8, 130


def text_of(options: argparse.Namespace, subject: object, say: Language, view: object) -> str:
    """What `--format` makes of the subject of a command; in colour for a terminal that has it."""
    if options.format == "json":
        from .renderers import json

        return json.render(options.command, subject, say)
    from .renderers.document import View, document

    assert isinstance(view, View)
    blocks = document(options.command, subject, say, view)
    if options.format == "md":
        from .renderers import markdown

        return markdown.render(blocks)
    if options.format == "html":
        from .renderers import html

        return html.render(blocks, say)
    from .renderers import terminal

    plain = (
        options.output is not None or options.no_color or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    )
    return terminal.render(blocks) if plain or not is_terminal(sys.stdout) else terminal.render_in_colour(blocks)


def write(text: str, options: argparse.Namespace, say: Language) -> None:
    """To the file of `-o`, which is told, or to stdout."""
    if options.output is None:
        print_text(text)
        return
    from .output import write_whole

    write_whole(options.output, text, overwrite=options.overwrite)
    if not options.quiet:
        complain(one_line(say("saved", path=options.output)))


def write_picture(svg: str, path: str, options: argparse.Namespace, say: Language) -> None:
    """As SVG or as PNG, by the suffix; a PNG without its letters is not kept silent."""
    from .output import write_whole
    from .renderers.svg import lacks_glyphs, png

    as_png = path.lower().endswith(".png")
    write_whole(path, png(svg) if as_png else svg, overwrite=options.overwrite)
    if as_png and lacks_glyphs(svg):
        complain(one_line(say("lacks_glyphs", path=path)))
    if not options.quiet:
        complain(one_line(say("saved", path=path)))


def print_text(text: str) -> None:
    """To stdout; UsageError where it is closed or full."""
    from .errors import UsageError

    if sys.stdout is None:
        raise UsageError("output_unwritable", path="stdout", reason="closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        silence_stdout()
        raise UsageError("output_unwritable", path="stdout", reason=error.strerror) from None


def silence_stdout() -> None:
    """Keeps Python from complaining when it flushes at exit what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def verdict(report: Report, options: argparse.Namespace, say: Language) -> int:
    """Notices to stderr where the reader does not see the document, and the exit code of the checks."""
    if not options.quiet and (
        options.output is not None or options.format in ("json", "svg") or not is_terminal(sys.stdout)
    ):
        for notice in report.notices:
            complain(one_line(say(notice)))
    if options.verbose and report.release is not None:
        complain(
            one_line(say("catalog_sources", config=report.release.config_source, counts=report.release.source or "–"))
        )
    if options.command != "params":
        return 0
    claimed = options.expect_params
    if claimed is not None and claimed != report.parameters.theory:
        complain(say("claim_failed", theory=report.parameters.theory, claimed=claimed))
        return EXIT_CHECK_FAILED
    if failed := [check for check in report.checks if not check.agrees]:
        complain(say("check_failed", count=len(failed)))
        return EXIT_CHECK_FAILED
    if report.known.unread is not None and report.tensors is not None:
        raise report.known.unread  # the files could not be held against anything
    return 0


def progress(written: Callable[[int], str], *, quiet: bool) -> Callable[[int, int], None]:
    """Counts what arrives, on one line of a terminal that is erased at the end; nowhere else, nothing."""
    stream = sys.stderr  # a client may be kept from writing to it meanwhile
    if quiet or not is_terminal(stream):
        return lambda done, total: None

    def show(done: int, total: int) -> None:
        if total > 1:
            stream.write(f"\r{written(done)}/{written(total)}\x1b[K" if done < total else "\r\x1b[K")
            stream.flush()

    return show


def show_piece(text: str) -> None:
    """A piece of generated text, on a terminal, harmless: only its line breaks are sent as they are."""
    from .renderers.terminal import safe

    with contextlib.suppress(OSError):
        sys.stderr.write("\n".join(map(safe, text.split("\n"))))
        sys.stderr.flush()


def one_line(text: str) -> str:
    """A sentence with hostile values written out and cut: one line, no control characters, no 100 KB name."""
    from .renderers.terminal import safe

    shown = safe(text[:LONGEST_LINE])
    return shown if len(text) <= LONGEST_LINE else f"{shown}…"


def work_shown(options: argparse.Namespace, say: Language) -> contextlib.AbstractContextManager[None]:
    """Says what takes long, on one line of a terminal that is erased when it is over; nowhere else, nothing."""
    stream = sys.stderr
    if options.quiet or not is_terminal(stream):
        return contextlib.nullcontext()
    from .language import Message
    from .progress import told_to

    def show(message: Message | None) -> None:
        from .renderers.terminal import cut_to

        with contextlib.suppress(OSError):
            columns = os.get_terminal_size(stream.fileno()).columns
            text = "" if message is None else cut_to(say(message), columns - 1)
            stream.write(f"\r{text}\x1b[K")
            stream.flush()

    return told_to(show)


def is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def complain(line: str) -> None:
    """A line to stderr."""
    if sys.stderr is None:  # closed by the caller; print would turn to stdout
        return
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)

"""Printing to stdout and stderr, and exit codes. The only module that prints."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import TextIO

from .language import Language

LONGEST_LINE = 1000
EXIT_CHECK_FAILED, EXIT_USAGE, EXIT_MALFORMED, EXIT_UNAVAILABLE, EXIT_INTERRUPTED = 1, 2, 6, 8, 130


def print_text(text: str) -> None:
    """Writes `text` to stdout; UsageError if it is closed or full."""
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
    """Points stdout to the null device, so that the flush at exit raises no BrokenPipeError or OSError."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def progress(written: Callable[[int], str], *, quiet: bool) -> Callable[[int, int], None]:
    """A callback (done, total) that shows progress on one line of a terminal, erased at the end; silent elsewhere."""
    stream = sys.stderr  # bound here: sys.stderr may be redirected to silence a client
    if quiet or not is_terminal(stream):
        return lambda done, total: None

    def show(done: int, total: int) -> None:
        if total > 1:
            stream.write(f"\r{written(done)}/{written(total)}\x1b[K" if done < total else "\r\x1b[K")
            stream.flush()

    return show


def show_piece(text: str) -> None:
    """Shows a piece of generated text on stderr; every control character but the line break is escaped."""
    from .renderers.terminal import safe

    with contextlib.suppress(OSError):
        sys.stderr.write("\n".join(map(safe, text.split("\n"))))
        sys.stderr.flush()


def one_line(text: str) -> str:
    """`text` as one line of at most LONGEST_LINE characters, with control characters escaped."""
    from .renderers.terminal import safe

    shown = safe(text[:LONGEST_LINE])
    return shown if len(text) <= LONGEST_LINE else f"{shown}…"


def work_shown(say: Language, *, quiet: bool) -> contextlib.AbstractContextManager[None]:
    """Within it, slow work is named on one line of a terminal, erased when done; silent elsewhere."""
    stream = sys.stderr
    if quiet or not is_terminal(stream):
        return contextlib.nullcontext()
    from .language import Message
    from .progress import reporting_to

    def show(message: Message | None) -> None:
        from .renderers.terminal import cut_to

        with contextlib.suppress(OSError):
            columns = os.get_terminal_size(stream.fileno()).columns
            text = "" if message is None else cut_to(say(message), columns - 1)
            stream.write(f"\r{text}\x1b[K")
            stream.flush()

    return reporting_to(show)


def is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def complain(line: str) -> None:
    """A line to stderr."""
    if sys.stderr is None:  # closed by the caller; print would write to stdout
        return
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)

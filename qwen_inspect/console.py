"""Printing to stdout and stderr, and exit codes. The only module that prints."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

from .language import Language, Message
from .typed import TextIO

LONGEST_LINE = 1000
QUIET_SECONDS = 0.5  # of a command: what takes no longer needs no word
NARROWEST_SCREEN = 20  # columns; a terminal with fewer wraps lines itself
EXIT_CHECK_FAILED, EXIT_USAGE, EXIT_MALFORMED, EXIT_UNAVAILABLE = 1, 2, 6, 8


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


class _WorkLine:
    """The line of a terminal that names the work under way, from `QUIET_SECONDS` after its creation on."""

    def __init__(self, stream: TextIO, say: Language) -> None:
        from threading import Lock, Timer

        self._stream, self._say = stream, say
        self._begins = time.monotonic() + QUIET_SECONDS
        self._message: Message | None = None
        self._shown = False
        self._lock = Lock()
        self._timer = Timer(QUIET_SECONDS, self._begin)
        self._timer.daemon = True
        self._waiting = False

    def show(self, message: Message | None) -> None:
        with self._lock:
            self._message = message
            if time.monotonic() >= self._begins:
                self._write()
            elif not self._waiting:
                self._timer.interval, self._waiting = self._begins - time.monotonic(), True
                self._timer.start()

    def close(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._message = None
            self._write()

    def _begin(self) -> None:
        with self._lock:
            self._write()

    def _write(self) -> None:
        from .renderers.terminal import cut_to

        if self._message is None and not self._shown:
            return
        with contextlib.suppress(OSError):
            columns = os.get_terminal_size(self._stream.fileno()).columns
            text = "" if self._message is None else cut_to(self._say(self._message), columns - 1)
            self._stream.write(f"\r{text}\x1b[K")
            self._stream.flush()
        self._shown = self._message is not None


@contextlib.contextmanager
def work_shown(say: Language, *, quiet: bool) -> Iterator[None]:
    """Within it, work that takes longer than a moment is named on one line of a terminal, erased when done; silent elsewhere."""
    if quiet or not is_terminal(sys.stderr):
        yield
        return
    from .progress import reporting_to

    line = _WorkLine(sys.stderr, say)
    try:
        with reporting_to(line.show):
            yield
    finally:
        line.close()


def is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def screen_columns() -> int | None:
    """The width that text on stdout must fit: COLUMNS, else the terminal's; None if unknown, or if stdout is no terminal.

    Not COLUMNS alone: Python's readline sets it for every child process, and scripts read all columns.
    """
    if not is_terminal(sys.stdout):
        return None
    columns = int(given) if (given := os.environ.get("COLUMNS", "")).isdecimal() else 0
    with contextlib.suppress(OSError):
        columns = columns or os.get_terminal_size(sys.stdout.fileno()).columns
    return max(columns, NARROWEST_SCREEN) if columns else None


def complain(line: str) -> None:
    """A line to stderr."""
    if sys.stderr is None:  # closed by the caller; print would write to stdout
        return
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)

"""One input, read in this process within bounds of seconds and memory."""

from __future__ import annotations

import contextlib
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from random import Random
from types import FrameType
from typing import NamedTuple

from qwen_inspect.errors import QwenInspectError
from qwen_inspect.language import LANGUAGES, Language
from tests.support.hostile import assert_is_safe
from tests.support.invoking import captured

LONGEST_SECONDS = 10.0
MOST_BYTES = 300_000_000
ERRORS = range(2, 9)  # exit codes, of which errors.py has the list


class Case(NamedTuple):
    """The content of a file or an answer, and the command that reads it."""

    content: bytes
    words: Sequence[str] = ()


class Verdict(NamedTuple):
    """The exit code, and what else is counted."""

    code: int
    note: str | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of input. share: of all inputs. prepare: what `read` needs in its folder, written before the first input."""

    name: str
    share: float
    make: Callable[[Random], Case]
    read: Callable[[Case, Path], Verdict]
    prepare: Callable[[Path], None] = lambda folder: None


class Outcome(NamedTuple):
    """fault: what must not happen, and where; empty if nothing did."""

    verdict: Verdict
    seconds: float
    bytes_taken: int
    fault: str = ""


class TimeIsUp(BaseException):
    pass


def _time_is_up(signal_number: int, frame: FrameType | None) -> None:
    raise TimeIsUp(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else "")


class Bounds:
    """Holds inputs to the bounds: seconds of the processor, for others may be at work on the machine, and memory.

    Memory is what the process takes beyond its size when `Bounds` was made or last left.
    """

    def __init__(self) -> None:
        signal.signal(signal.SIGPROF, _time_is_up)
        self._start = _reset_peak()

    def outcome(self, kind: Kind, case: Case, folder: Path) -> Outcome:
        began, fault, verdict = time.perf_counter(), "", Verdict(1)
        signal.setitimer(signal.ITIMER_PROF, LONGEST_SECONDS)
        try:
            try:
                verdict = _verdict(kind, case, folder)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        except TimeIsUp as error:
            fault = f"over {LONGEST_SECONDS:g} s: {error}"
        except Exception as error:
            fault = f"traceback: {type(error).__name__} at {_place(error)}: {str(error)[:100]!r}"
        taken = max(0, _peak() - self._start)
        if taken > MOST_BYTES:
            self._start = _reset_peak()
            fault = fault or f"over {MOST_BYTES // 1_000_000} MB"
        return Outcome(verdict, time.perf_counter() - began, taken, fault)


def _verdict(kind: Kind, case: Case, folder: Path) -> Verdict:
    """What comes of an input. An error that cannot be said in a language is a KeyError."""
    try:
        return kind.read(case, folder)
    except QwenInspectError as error:
        for language in LANGUAGES:
            Language(language)(error.message)
        return Verdict(error.exit_code)


def _place(error: BaseException) -> str:
    """The last line of ours that an exception passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "qwen_inspect" in frame.filename and "benchmarks" not in frame.filename]
    frame = (ours or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def _peak() -> int:
    """VmHWM: unlike getrusage's maximum it begins at this program's own start, and can be reset. Source: as below."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def _reset_peak() -> int:
    """Lets the peak begin anew, at what the process takes now. Source: Linux, Documentation/filesystems/proc.rst."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def command(words: Sequence[str]) -> Verdict:
    """A command run in this process. AssertionError if what it prints is not what is promised."""
    code, shown, told = astuple(captured(*words))
    errors = [line for line in told.splitlines() if line.startswith(("error: ", "错误："))]
    assert code in (0, 1, *ERRORS), f"exit code {code}"
    assert len(errors) == (code in ERRORS), f"exit code {code} with {len(errors)} errors: {told[:300]}"
    assert_is_safe(shown + told)
    return Verdict(code)

"""The fuzzers in short: thousands of damaged and hostile inputs, each ends in an answer or in an error, within its bounds."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from mmap import mmap
from pathlib import Path

import pytest

from benchmarks.fuzz import trial
from benchmarks.fuzz.trial import Bounds, Case, Kind, Verdict
from qwen_inspect.errors import MalformedError

RUN = Path(__file__).parent.parent.parent / "benchmarks" / "fuzz" / "run.py"


def test_every_input_is_answered_or_refused_within_its_bounds() -> None:
    words = [sys.executable, str(RUN), "--seed", "1", "--inputs", "3000", "--processes", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| safetensors header | 1,350 |" in done.stdout


@pytest.fixture
def bounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bounds]:
    monkeypatch.setattr(trial, "LONGEST_SECONDS", 1.0)
    monkeypatch.setattr(trial, "MOST_BYTES", 50_000_000)
    handler = signal.getsignal(signal.SIGPROF)
    yield Bounds()
    signal.signal(signal.SIGPROF, handler)


def refuses() -> None:
    raise MalformedError("json_not_utf8", file="x")


@pytest.mark.parametrize(
    ("read", "code", "fault"),
    [
        (lambda: None, 0, ""),
        (refuses, 6, ""),
        (lambda: [][0], 1, "traceback: IndexError at test_fuzz.py"),
        (lambda: sum(iter(lambda: 1, 2)), 1, "over 1 s: test_fuzz.py"),
        (lambda: mmap(-1, 100_000_000).write(bytes(100_000_000)), 0, "over 50 MB"),  # pages of its own, not of the heap
    ],
    ids=["answers", "refuses", "falls", "takes long", "takes much"],
)
def test_what_falls_or_goes_over_a_bound_is_a_fault(
    read: Callable[[], object], code: int, fault: str, bounds: Bounds, tmp_path: Path
) -> None:
    def read_case(case: Case, folder: Path) -> Verdict:
        read()
        return Verdict(0)

    outcome = bounds.outcome(Kind("kind", 1, lambda random: Case(b""), read_case), Case(b""), tmp_path)
    assert outcome.verdict.code == code
    assert outcome.fault.startswith(fault)
    assert bool(outcome.fault) == bool(fault)

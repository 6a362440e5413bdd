"""The fuzzers in short: thousands of damaged and hostile inputs, each ends in an answer or in an error, within its bounds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).parent.parent.parent / "benchmarks" / "fuzz" / "run.py"


def test_every_input_is_answered_or_refused_within_its_bounds() -> None:
    words = [sys.executable, str(RUN), "--seed", "1", "--inputs", "3000", "--processes", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| safetensors header | 1,350 |" in done.stdout

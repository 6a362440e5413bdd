"""Every fault of a hub on a first visit, on a second, and offline after it: time, exit code, line, and no token astray."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qwen_inspect.loaders import transfer

from ..support.asking import SOURCES
from ..support.hub_faults import FAULTS, visits
from ..support.turns import in_turn


@pytest.mark.parametrize(("fault", "source"), in_turn(FAULTS, list(SOURCES)))
def test_a_fault_ends_in_time_and_what_an_earlier_visit_kept_outlives_it(
    fault: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`visits` holds besides that a token is sent, printed and written nowhere but to its own hub."""
    monkeypatch.setattr(transfer, "FIRST_PAUSE_SECONDS", 0.01)  # between tries, of which there are as many
    first, second, offline = visits(source, fault, tmp_path, "--timeout", "1")
    assert (first.code, second.code) == FAULTS[fault].codes
    assert re.search(FAULTS[fault].words, first.line)
    assert ("what an earlier run kept is used" in second.line) == (second.code == 0)
    assert (offline.requests, offline.code) == (0, 0)
    assert "Offline: read from what an earlier run kept" in offline.line
    # 1 s to the first answer, 3 s for all headers, and what a busy machine takes.
    assert max(first.seconds, second.seconds) < 1 + 3 + 2

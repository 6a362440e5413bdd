"""What a command makes of each fault of a hub -> reports/hub-faults.md: seconds, requests, exit code and line; `make faults`.

With the deadlines that the command has if none is given, so that it takes minutes. The hub is a server on loopback.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.support.asking import SOURCES
from tests.support.hub_faults import FAULTS, VISITS, visits

PAGE = Path(__file__).parent.parent / "reports" / "hub-faults.md"


def page() -> Iterator[str]:
    yield "# Faults of a hub"
    yield ""
    yield f"Written by `make faults` on {date.today()}: `qwen-inspect params hf:org/model` and `ms:org/model`, from a server"
    yield "on loopback that spoils its answers. The first visit finds nothing kept; before the second, with `--refresh`, the"
    yield "model was read whole and has changed since; the last is `--offline`. A hub has 10 s to its first answer and 30 s for"
    yield "all headers (`--timeout`). Both hubs' tokens were set: each went to its own hub alone, and is in no line and no file."
    yield ""
    yield "| Fault | Hub | Visit | s | requests | exit | line |"
    yield "|---|---|---|---|---|---|---|"
    for fault in FAULTS:
        for source in SOURCES:
            with tempfile.TemporaryDirectory() as home:
                for name, visit in zip(VISITS, visits(source, fault, Path(home)), strict=True):
                    cells = (fault, source, name, f"{visit.seconds:.1f}", visit.requests, visit.code, visit.line)
                    yield f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    PAGE.write_text("\n".join([*page(), ""]), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Published figures, by file."""

from __future__ import annotations

import csv
from pathlib import Path

PUBLISHED = Path(__file__).parents[2] / "benchmarks" / "published"


def published(name: str) -> list[dict[str, str]]:
    with open(PUBLISHED / name, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))

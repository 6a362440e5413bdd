"""`config` -> JSON: the configuration as it was read."""

from __future__ import annotations

from typing import Any

from ...language import Language
from ...results.model import Report
from .common import model_content


def content(report: Report, say: Language) -> dict[str, Any]:
    return {"model": model_content(report, say), "config": dict(report.written or {})}

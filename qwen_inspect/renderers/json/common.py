"""What the JSON of every command of one model begins with."""

from __future__ import annotations

from typing import Any

from ...language import Language
from ...results.model import Report


def model_content(report: Report, say: Language) -> dict[str, Any]:
    findings = report.attention.findings if report.design and report.design.attention else ()
    config = report.config or {}
    model_type = config.get("model_type")
    return {
        "id": report.ref.id,
        "source": report.ref.source,
        "revision": report.ref.revision,
        "architecture": report.spec.class_name if report.design else None,
        "model_type": model_type if isinstance(model_type, str) else None,
        "dtype": str(report.spec.dtype) if report.design else None,
        "notices": [say(message) for message in (*report.notices, *findings)],
    }

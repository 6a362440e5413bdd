"""`config` -> JSON: the configuration as it was read."""

from __future__ import annotations

from ...language import Language
from ...results.model import Report
from ...typed import Any
from .common import OfModelJSON, model_content


class ConfigurationJSON(OfModelJSON):
    """`config`."""

    config: dict[str, Any]
    """config.json's keys and values."""
    missing_keys: list[str]
    """Keys that the release's config.json has and the catalog's copy lacks; empty for any other source."""


def content(report: Report, say: Language) -> ConfigurationJSON:
    return {
        "model": model_content(report, say),
        "config": dict(report.written or {}),
        "missing_keys": [] if report.release is None else list(report.release.missing_keys),
    }

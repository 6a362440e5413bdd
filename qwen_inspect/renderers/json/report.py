"""`report` -> JSON: the keys of `structure`, caches and memory by context, and saved measurements."""

from __future__ import annotations

from ...language import Language
from ...results.whole import WholeReport
from .common import OfModelJSON, model_content
from .measured import KeptMeasurementJSON, kept_content
from .memory import PredictionJSON, prediction_content
from .structure import DesignJSON, structure_content
from .values import Count, Sha256, TypedDict


class FileJSON(TypedDict):
    """A weight file; `sha256` is null if no hub states it."""

    name: str
    bytes: Count
    sha256: Sha256 | None


class ProvenanceJSON(TypedDict):
    """The inputs of the report."""

    config_sha256: Sha256
    """Of the configuration in its canonical form."""
    tensors_sha256: Sha256 | None
    """Of every stored tensor's name, dtype and shape; null if no file was read."""
    built_by: str | None
    """The libraries that instantiated the model."""
    files: list[FileJSON]


class CacheSizeJSON(TypedDict):
    """The cache of `batch` sequences of `context_tokens`."""

    context_tokens: Count
    batch: Count
    bytes: Count


class ReportJSON(OfModelJSON, DesignJSON):
    """`report`."""

    provenance: ProvenanceJSON
    cache_by_context: list[CacheSizeJSON]
    memory: list[PredictionJSON]
    measured: list[KeptMeasurementJSON]


def content(whole: WholeReport, say: Language) -> ReportJSON:
    report = whole.report
    return {
        "model": model_content(report, say),
        "provenance": {
            "config_sha256": whole.config_sha256,
            "tensors_sha256": whole.tensors_sha256,
            "built_by": whole.built_by,
            "files": [{"name": file.name, "bytes": file.size_bytes, "sha256": file.sha256} for file in report.files],
        },
        **structure_content(report, say),
        "cache_by_context": [
            {
                "context_tokens": tokens,
                "batch": batch,
                "bytes": report.cache.size_bytes(tokens=tokens, batch=batch),
            }
            for tokens, batch in (whole.cache_points if report.settled else ())
        ],
        "memory": [prediction_content(memory, say) for memory in whole.memory],
        "measured": [kept_content(measurement, say) for measurement in whole.measured],
    }

"""`report` -> JSON: what `structure` has, caches and memory by context, and measurements that were kept."""

from __future__ import annotations

from typing import Any

from ...language import Language
from ...results.whole import WholeReport
from .common import model_content
from .measured import kept_content
from .memory import memory_content
from .structure import structure_content


def content(whole: WholeReport, say: Language) -> dict[str, Any]:
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
        "memory": [
            {key: value for key, value in memory_content(memory, say).items() if key in ("workload", "predicted")}
            for memory in whole.memory
        ],
        "measured": [kept_content(kept, say) for kept in whole.measured],
    }

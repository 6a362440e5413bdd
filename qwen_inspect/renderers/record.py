"""A report's figures by stable, language-independent names: saved beside a document, and compared by `report --check`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict

from .. import __version__
from ..results.fit import CardLimits
from ..results.measurement import KeptMeasurement
from ..results.memory import RARE_TERMS, TERMS, MemoryReport
from ..results.whole import Figure, WholeReport
from ..typed import Any

FORMAT_VERSION = 1
SKIPPED_TERMS = (*RARE_TERMS, "gradients", "optimizer")  # a report's runs generate on one device
SUFFIX = ".figures.json"


def render(whole: WholeReport, documents: Mapping[str, str]) -> str:
    """The record of one report, as JSON. documents: file name -> SHA-256 of each file written with it."""
    content = {
        "report_format": FORMAT_VERSION,
        "tool_version": __version__,
        "request": asdict(whole.request),
        "documents": dict(documents),
        "figures": figures(whole),
    }
    return json.dumps(content, indent=2) + "\n"


def figures(whole: WholeReport) -> dict[str, Figure]:
    """Every figure under a name such as "memory.8192.peak.cache_bytes"; None if unknown."""
    report = whole.report
    counts = report.parameters
    config = report.written or {}
    return {
        # Not flattened, so that a nested key of the configuration cannot collide with a figure's name.
        **{f"config.{key}": _plain(config[key]) for key in sorted(config)},
        **dict(
            _flat(
                {
                    "tensors_sha256": whole.tensors_sha256,
                    "files": {file.name: {"bytes": file.size_bytes, "sha256": file.sha256} for file in report.files},
                    "parameters": {**asdict(counts), "non_embedding": counts.non_embedding},
                    "components": {
                        part.name: {"parameters": part.parameters, "bytes": part.size_bytes}
                        for part in report.components
                    },
                    "checks": {
                        f"{check.left}/{check.right}": {
                            "difference": check.difference,
                            "causes": {cause.name: cause.parameters for cause in check.causes},
                            "residual": check.residual,
                            "unexplained_tensors": len(check.unexplained),
                        }
                        for check in report.checks
                    },
                    **(_attention(whole) if report.settled else {}),
                    "memory": {str(memory.run.prompt_tokens): _memory(memory) for memory in whole.memory},
                    "limits": {}
                    if whole.advice is None
                    else {card.gpu.name: _limits(card) for card in whole.advice.limits},
                    "measured": {
                        str(number): _measured(measurement) for number, measurement in enumerate(whole.measured, 1)
                    },
                }
            )
        ),
    }


def _attention(whole: WholeReport) -> dict[str, Any]:
    report = whole.report
    layers, softmax, linear = report.attention.layers, report.attention.softmax, report.attention.linear
    first = softmax[0] if len({layer.heads for layer in softmax}) == 1 else None
    return {
        "attention": {
            "kind": report.attention.kind,
            "layers": len(layers),
            "query_heads": first.query_heads if first else None,
            "kv_heads": first.kv_heads if first else None,
            "head_dim": first.head_dim if first else None,
            "window_tokens": first.window_tokens if first else None,
            "linear_layers": len(linear),
            "linear_key_heads": linear[0].key_heads if linear else None,
            "linear_value_heads": linear[0].value_heads if linear else None,
        },
        "cache": {
            "dtype": report.cache.dtype,
            "bytes_per_token": report.cache.bytes_per_token,
            "fixed_bytes": report.cache.fixed_bytes,
            **{
                f"{tokens}x{batch}_bytes": report.cache.size_bytes(tokens=tokens, batch=batch)
                for tokens, batch in whole.cache_points
            },
        },
    }


def _memory(memory: MemoryReport) -> dict[str, Any]:
    footprint = memory.predicted
    moments = {"steady": footprint.steady, "peak": footprint.peak}
    terms = (*(term for term in TERMS if term not in SKIPPED_TERMS), "allocated")
    return {
        "method": footprint.method,
        **{
            name: {f"{term}_bytes": None if moment is None else getattr(moment, term) for term in terms}
            for name, moment in moments.items()
        },
        "peak_reserved_bytes": footprint.peak_reserved,
    }


def _limits(card: CardLimits) -> dict[str, Any]:
    """The largest context and batch that are known to fit, else their upper limits."""
    return {
        name: largest.at_most if largest.value is None else largest.value
        for name, largest in (("context", card.context), ("batch", card.batch))
    }


def _measured(measurement: KeptMeasurement) -> dict[str, Any]:
    names = ("predicted", "measured", "residual")
    return {
        "device": measurement.device,
        **{
            f"{difference.term}.{name}_bytes": getattr(difference, name)
            for difference in measurement.differences
            for name in names
        },
    }


def _plain(value: object) -> Figure:
    """A value of the configuration as a figure; lists and objects as JSON."""
    return value if isinstance(value, int | float | str | None) else json.dumps(value, sort_keys=True)


def _flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Figure]]:
    for key, value in nested.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value

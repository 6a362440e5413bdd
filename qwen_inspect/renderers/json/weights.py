"""`weights` -> JSON: every stored tensor, sums by dtype and in all."""

from __future__ import annotations

from typing import Any

from ...errors import NotFoundError
from ...language import Language
from ...results.model import Report
from ..dtypes import by_dtype
from .common import model_content


def content(report: Report, say: Language) -> dict[str, Any]:
    if report.tensors is None:
        raise NotFoundError("no_tensors", id=report.ref.id)
    tensors = report.tensors
    return {
        "model": model_content(report, say),
        "origin": report.tensors_origin,
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype),
                "elements": tensor.elements,
                "bytes": tensor.size_bytes,
                "file": tensor.file,
            }
            for tensor in tensors
        ],
        "dtypes": [
            {"dtype": dtype, "tensors": found, "elements": elements, "bytes": size_bytes}
            for dtype, found, elements, size_bytes in by_dtype(tensors)
        ],
        "totals": {
            "tensors": len(tensors),
            "elements": sum(tensor.elements for tensor in tensors),
            "bytes": sum(tensor.size_bytes for tensor in tensors),
            "unique_parameters": report.parameters.unique if report.design else None,
        },
    }

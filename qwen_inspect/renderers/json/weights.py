"""`weights` -> JSON: every stored tensor, sums by dtype, and totals."""

from __future__ import annotations

from ...checkpoint import Origin
from ...errors import NotFoundError
from ...language import Language
from ...results.model import Report
from ..dtypes import by_dtype
from .common import OfModelJSON, model_content
from .values import Count, TypedDict


class TensorJSON(TypedDict):
    """A stored tensor; for packed weights, `elements` counts stored words."""

    name: str
    shape: list[Count]
    dtype: str
    elements: Count
    bytes: Count
    file: str | None


class DtypeJSON(TypedDict):
    """Sums over the tensors of one dtype."""

    dtype: str
    tensors: Count
    elements: Count
    bytes: Count


class TotalsJSON(TypedDict):
    """Sums over all tensors; `unique_parameters` counts tied copies once."""

    tensors: Count
    elements: Count
    bytes: Count
    unique_parameters: Count | None


class WeightsJSON(OfModelJSON):
    """`weights`."""

    origin: Origin
    """Whether the tensors were read from files or predicted."""
    tensors: list[TensorJSON]
    dtypes: list[DtypeJSON]
    totals: TotalsJSON


def content(report: Report, say: Language) -> WeightsJSON:
    if report.tensors is None or report.tensors_origin is None:
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
            {"dtype": dtype, "tensors": tensor_count, "elements": elements, "bytes": size_bytes}
            for dtype, tensor_count, elements, size_bytes in by_dtype(tensors)
        ],
        "totals": {
            "tensors": len(tensors),
            "elements": sum(tensor.elements for tensor in tensors),
            "bytes": sum(tensor.size_bytes for tensor in tensors),
            "unique_parameters": report.parameters.unique if report.design else None,
        },
    }

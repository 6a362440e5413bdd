"""`weights`: how many tensors and bytes, and the largest tensor."""

from __future__ import annotations

from ...language import Language
from ...results.model import Report
from ...units import size
from ..document.weights import arranged, listed
from ..dtypes import by_dtype


def sentences(report: Report, say: Language) -> list[str]:
    tensors = listed(report)
    total = say(
        f"answer_weights_{report.tensors_origin}",
        name=report.ref.id,
        tensors=len(tensors),
        elements=sum(tensor.elements for tensor in tensors),
        size=size(sum(tensor.size_bytes for tensor in tensors)),
        dtypes=say("comma").join(dtype for dtype, *_ in by_dtype(tensors)),
        files=len(report.files),
    )
    if not tensors:
        return [total]
    largest = arranged(tensors, "size")[0]
    shape = str(largest.shape)
    return [total, say("answer_largest", tensor=largest.name, shape=shape, size=size(largest.size_bytes))]

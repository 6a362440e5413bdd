"""`weights`: every stored tensor, and the largest."""

from __future__ import annotations

from collections.abc import Sequence

from ...checkpoint import Tensor
from ...errors import NotFoundError
from ...language import Language
from ...results.model import Report
from ...units import count, mib
from ..blocks import Block, Fields, Heading, Table
from ..dtypes import by_dtype
from . import View
from .common import notices


def blocks(report: Report, say: Language, view: View) -> Sequence[Block]:
    tensors = listed(report)
    elements = sum(tensor.elements for tensor in tensors)
    fields = [
        (say("field_path"), report.ref.id),
        (say("field_origin"), say(f"origin_tensors_{report.tensors_origin}", files=len(report.files))),
        (say("field_tensors"), count(len(tensors))),
        (say("field_elements"), count(elements)),
        (say("field_unique"), count(report.parameters.unique) if report.design is not None else "–"),
        (say("field_memory"), f"{mib(sum(tensor.size_bytes for tensor in tensors))} MiB"),
    ]
    return [
        Heading(say("heading_weights", name=report.ref.id), 1),
        *notices(report, say),
        Heading(say("heading_basics")),
        Fields(fields),
        Heading(say("heading_dtypes")),
        dtype_table(tensors, say),
        Heading(say("heading_tensors")),
        tensor_table(arranged(tensors, view.sort), say),
        Heading(say("heading_largest", top=min(view.top, len(tensors)))),
        Table(
            [say("column_tensor"), say("column_shape"), say("column_mib")],
            [
                [tensor.name, str(tensor.shape), mib(tensor.size_bytes)]
                for tensor in arranged(tensors, "size")[: view.top]
            ],
            "llr",
        ),
    ]


def tensor_table(tensors: Sequence[Tensor], say: Language) -> Table:
    columns = [say(f"column_{name}") for name in ("tensor", "shape", "dtype", "elements", "mib")]
    rows = [
        [tensor.name, str(tensor.shape), str(tensor.dtype), count(tensor.elements), mib(tensor.size_bytes)]
        for tensor in tensors
    ]
    return Table(columns, rows, "lllrr")


def dtype_table(tensors: Sequence[Tensor], say: Language) -> Table:
    """For each dtype: tensors, elements, bytes and bits per element."""
    rows = [
        [
            dtype,
            count(tensor_count),
            count(elements),
            count(size_bytes),
            f"{size_bytes * 8 / elements:.3f}" if elements else "–",
        ]
        for dtype, tensor_count, elements, size_bytes in by_dtype(tensors)
    ]
    columns = [say(f"column_{name}") for name in ("dtype", "tensors", "elements", "bytes", "bits")]
    return Table(columns, rows, "lrrrr")


def listed(report: Report) -> Sequence[Tensor]:
    """The report's tensors. Raises NotFoundError if no file was read and no layout is known."""
    if report.tensors is None:
        raise NotFoundError("no_tensors", id=report.ref.id)
    return report.tensors


def arranged(tensors: Sequence[Tensor], sort: str) -> list[Tensor]:
    """Sorted by name, or by size (largest first, then by name)."""
    by_name = sorted(tensors, key=lambda tensor: tensor.name)
    return by_name if sort == "name" else sorted(by_name, key=lambda tensor: -tensor.size_bytes)

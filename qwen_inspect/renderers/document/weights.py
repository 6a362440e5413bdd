"""`weights`: every stored tensor, and the largest."""

from __future__ import annotations

from collections.abc import Sequence

from ...checkpoint import Tensor
from ...errors import NotFoundError
from ...language import Language
from ...results.model import Report
from ...standard import re
from ...units import count, mib, size
from ...values import replace
from ..blocks import Block, Fields, Heading, Paragraph, Table
from ..dtypes import by_dtype
from . import View
from .common import notices, runs, span

RANKED = 20  # tensors in the ranking by size
NUMBER = re.compile(r"\.(\d+)(?=\.|$)")  # of a layer or an expert


def blocks(report: Report, say: Language, view: View) -> Sequence[Block]:
    tensors = listed(report)
    elements = sum(tensor.elements for tensor in tensors)
    size_bytes = sum(tensor.size_bytes for tensor in tensors)
    fields = [
        (say("field_path"), report.ref.id),
        (say("field_origin"), say(f"origin_tensors_{report.tensors_origin}", files=len(report.files))),
        (say("field_tensors"), count(len(tensors))),
        (say("field_elements"), count(elements)),
        (say("field_unique"), count(report.parameters.unique) if report.design is not None else "–"),
        (say("field_memory"), f"{mib(size_bytes)} MiB ({size(size_bytes)})"),
    ]
    return [
        Heading(say("heading_weights", name=report.ref.id), 1),
        *notices(report, say),
        Heading(say("heading_basics")),
        Fields(fields),
        Heading(say("heading_dtypes")),
        dtype_table(tensors, say),
        *([] if view.top is not None else _all_blocks(tensors, say, view)),
        Heading(say("heading_largest", top=min(view.top or RANKED, len(tensors)))),
        Table(
            [say("column_tensor"), say("column_shape"), say("column_mib")],
            [
                [tensor.name, str(tensor.shape), mib(tensor.size_bytes)]
                for tensor in arranged(tensors, "size")[: view.top or RANKED]
            ],
            "llr",
            expendable=((1,),),
        ),
    ]


def _all_blocks(tensors: Sequence[Tensor], say: Language, view: View) -> list[Block]:
    """Every tensor; where the view folds, those of equal layers or experts in one row."""
    arranged_tensors = arranged(tensors, view.sort)
    alike: dict[tuple[object, ...], list[Tensor]] = {}
    for tensor in arranged_tensors:
        alike.setdefault((NUMBER.sub(".*", tensor.name), tensor.shape, tensor.dtype), []).append(tensor)
    if not view.fold or len(alike) == len(tensors):
        return [Heading(say("heading_tensors")), tensor_table(arranged_tensors, say)]
    table = tensor_table([replace(equal[0], name=_names(equal)) for equal in alike.values()], say)
    numbers = [count(len(equal)) for equal in alike.values()]
    folded = Table(
        [table.columns[0], say("column_number"), *table.columns[1:]],
        [[row[0], number, *row[1:]] for number, row in zip(numbers, table.rows, strict=True)],
        "lrllrr",
        expendable=((4,), (3,), (1,), (2,)),
    )
    return [Heading(say("heading_tensors")), folded, Paragraph(say("tensors_folded", count=count(len(tensors))))]


def _names(tensors: Sequence[Tensor]) -> str:
    """The name of tensors that differ in numbers alone: model.layers.0-27.mlp.up_proj.weight."""
    indices_of = zip(*([int(number) for number in NUMBER.findall(tensor.name)] for tensor in tensors), strict=True)
    ranges = iter([_ranges(sorted(set(indices))) for indices in indices_of])
    return NUMBER.sub(lambda match: f".{next(ranges)}", tensors[0].name)


def _ranges(indices: Sequence[int]) -> str:
    ends = [(first, last) for first, last, _ in runs(list(enumerate(indices)), lambda pair: pair[1] - pair[0])]
    return ",".join(span(indices[first], indices[last]) for first, last in ends)


def tensor_table(tensors: Sequence[Tensor], say: Language) -> Table:
    columns = [say(f"column_{name}") for name in ("tensor", "shape", "dtype", "elements", "mib")]
    rows = [
        [tensor.name, str(tensor.shape), str(tensor.dtype), count(tensor.elements), mib(tensor.size_bytes)]
        for tensor in tensors
    ]
    return Table(columns, rows, "lllrr", expendable=((3,), (2,)))


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

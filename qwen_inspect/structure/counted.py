"""Whether a hub's own count of the stored tensors is what the configuration implies, so that no header need be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from ..architectures import Architecture
from ..checkpoint import DTYPE_OF_CODE, Checkpoint, HubCount, Tensor
from ..declarations import MODEL_DTYPES
from ..language import Message
from ..spec import each_tensor
from ..typed import TYPE_CHECKING
from .accounting import tied_copies

if TYPE_CHECKING:
    from .packing import Packing


def vouched(checkpoint: Checkpoint, architecture: Architecture, packing: Packing | None) -> Message | None:
    """A notice of what the hub counts, if that is what the configuration implies; None if it is not.

    Files may hold more than the model: copies of tied tensors, the prediction layer, persistent buffers, each wholly or not at
    all. Counts by dtype must be equal for quantised weights; dense weights may be stored in another dtype than the model's.
    """
    count = checkpoint.hub_count
    assert count is not None
    tensors = [part for tensor in each_tensor(architecture.tree) for part in _stored(tensor, packing)]
    beside = (tied_copies(architecture.tree), architecture.prediction_layers, architecture.buffers)
    groups = [tuple(group) for group in beside if group]
    for size in range(len(groups) + 1):
        for chosen in combinations(groups, size):
            extras = [tensor for group in chosen for tensor in group]
            if _agrees(count, tensors, extras, quantised=packing is not None):
                return _notice(checkpoint, count, _elements(extras))
    return None


def _stored(tensor: Tensor, packing: Packing | None) -> Sequence[Tensor]:
    """How files hold a tensor; dense ones may be split, which changes no count."""
    return (tensor,) if packing is None else packing.stored_form(tensor)


def _agrees(count: HubCount, tensors: Iterable[Tensor], extras: Iterable[Tensor], *, quantised: bool) -> bool:
    expected = [*tensors, *extras]
    if count.elements is None:
        return count.size_bytes == sum(tensor.size_bytes for tensor in expected)
    if quantised:
        return _positive(count.elements) == _by_code(expected)
    dense = all(DTYPE_OF_CODE[code] in MODEL_DTYPES for code in _positive(count.elements))
    return dense and count.total == _elements(expected)


def _by_code(tensors: Iterable[Tensor]) -> dict[str, int]:
    elements: Counter[str] = Counter()
    for tensor in tensors:
        elements[tensor.dtype.code] += tensor.elements
    return _positive(elements)


def _positive(elements: Mapping[str, int]) -> dict[str, int]:
    return {code: count for code, count in elements.items() if count}


def _elements(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.elements for tensor in tensors)


def _notice(checkpoint: Checkpoint, count: HubCount, extra: int) -> Message:
    implied = Message("counted_beside", extra=extra) if extra else Message("counted_alone")
    values = {"files": len(checkpoint.files), "implied": implied}
    if count.elements is None:
        return Message("counted_by_index", size_bytes=count.size_bytes, **values)
    hub = Message(f"source_{checkpoint.ref.source}")
    dtypes = ", ".join(str(DTYPE_OF_CODE[code]) for code in sorted(_positive(count.elements)))
    return Message("counted_by_hub", hub=hub, elements=count.total, dtypes=dtypes, **values)

"""Selections by a mask whose number follows from lengths alone: fake tensors have no data to count."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..typed import TYPE_CHECKING, Any
from .kernels import replaced

if TYPE_CHECKING:
    from .recorder import Recorder

NONZERO = "aten.nonzero.default"
# How many elements a mask selects in what is running now; None if only the data tell.
selected: ContextVar[int | None] = ContextVar("selected", default=None)


@contextmanager
def known_selections(model: Any, recorder: Recorder) -> Iterator[None]:
    """Within it, a class whose masks select a known number of elements can be traced; any other mask is refused as before.

    GLM-5.3-Flash keeps the pools of keys that are complete in any sequence: all that the longest fills. Not with a static cache.
    Source: transformers 5.23, Glm5NextTextIndexer.get_pooled_states
    """
    indexer = getattr(sys.modules[type(model).__module__], "Glm5NextTextIndexer", None)
    if indexer is None:
        yield
        return
    get_pooled_states = indexer.get_pooled_states

    def counted(module: Any, packed_states: Any) -> Any:
        token = selected.set(packed_states.shape[1] // module.index_kpool)
        try:
            return get_pooled_states(module, packed_states=packed_states)
        finally:
            selected.reset(token)

    with replaced([(indexer, "get_pooled_states", counted)]), _selecting(recorder):
        yield


def _selecting(recorder: Recorder) -> Any:
    """A mask in brackets stands for the places that it selects. Source: torch 2.13, IndexingUtils.h, expandTensors"""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    index_by = torch.ops.aten.index.Tensor

    def places(mask: Any, count: int) -> Any:
        with recorder.named(NONZERO):
            found = mask.new_empty((count, mask.dim()), dtype=torch.int64)
        return found.unbind(1)

    class Selecting(TorchDispatchMode):  # type: ignore[misc]  # torch is untyped here
        _should_skip_dynamo = classmethod(lambda _: False)  # nothing is compiled here

        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            count = selected.get()
            if operator is index_by and count is not None:
                indices = [
                    places(index, count) if index is not None and index.dtype is torch.bool else (index,)
                    for index in args[1]
                ]
                args = (args[0], [part for parts in indices for part in parts])
                del indices
            return operator(*args, **(kwargs or {}))

    return Selecting()

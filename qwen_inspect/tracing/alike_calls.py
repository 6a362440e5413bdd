"""Traces calls of attention that are alike once: a tower calls it for each window, image and frame, with few different lengths.

What a call without a mask allocates and frees depends on the shapes, strides and types of its inputs alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..results.timeline import Allocate, Event
from ..typed import TYPE_CHECKING, Any
from ..values import dataclass

if TYPE_CHECKING:
    from .recorder import Recorder


@dataclass(frozen=True, slots=True)
class _Call:
    """A call's events: the size and operator of an allocation, or the number of the call's allocation that is freed.

    output: the number of the allocation of what it returns, with this shape, these strides and this type.
    """

    events: tuple[tuple[int, str] | int, ...]
    output: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Any


@contextmanager
def alike_calls(recorder: Recorder) -> Iterator[None]:
    """Within it, attention by sdpa without a mask and without a backward is traced once for inputs that are alike."""
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    calls: dict[object, _Call | None] = {}  # None: one that cannot be repeated

    def once(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
        if attention_mask is not None or torch.is_grad_enabled() or not recorder.recording:
            return attend(module, query, key, value, attention_mask, **options)
        inputs = [(*tensor.shape, *tensor.stride(), tensor.dtype) for tensor in (query, key, value)]
        settings = [repr(getattr(module, name, None)) for name in ("num_key_value_groups", "is_causal", "training")]
        alike = (type(module), *inputs, *settings, repr(sorted(options.items())))
        if (call := calls.get(alike)) is not None:
            return _repeated(call, query, recorder), None
        first = len(recorder.events)
        outputs = attend(module, query, key, value, attention_mask, **options)
        if alike not in calls:
            calls[alike] = _call(recorder.events[first:], outputs[0])
        return outputs

    ALL_ATTENTION_FUNCTIONS["sdpa"] = once
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


def _call(events: list[Event], output: Any) -> _Call | None:
    """None unless the call frees nothing but its own and leaves nothing but a new output."""
    numbers: dict[int, int] = {}
    made: list[tuple[int, str] | int] = []
    left: dict[int, int] = {}  # bytes of what is not freed, by number
    for event in events:
        if isinstance(event, Allocate):
            numbers[event.id] = len(numbers)
            left[numbers[event.id]] = event.size_bytes
            made.append((event.size_bytes, event.operator))
        elif event.id not in numbers:
            return None
        else:
            del left[numbers[event.id]]
            made.append(numbers[event.id])
    if list(left.values()) != [output.untyped_storage().nbytes()] or output.storage_offset():
        return None
    return _Call(tuple(made), next(iter(left)), tuple(output.shape), tuple(output.stride()), output.dtype)


def _repeated(call: _Call, query: Any, recorder: Recorder) -> Any:
    """Records the call's events again, and returns an output like its."""
    module = recorder.modules[-1] if recorder.modules else recorder.outside
    ids: list[int] = []
    with recorder.paused():
        output = query.new_empty_strided(call.shape, call.strides, dtype=call.dtype)
    for event in call.events:
        if isinstance(event, int):
            recorder.let_go(ids[event])
        elif len(ids) == call.output:
            ids.append(recorder.next_id)
            recorder.see(output, event[1], module=module)
        else:
            ids.append(recorder.take(*event, module=module))
    return output

"""Positions, grids and masks with their values in a trace, whose other tensors have none.

A model that sees decides by them: how long each window is, where an image's tokens stand, how positions run. An operator whose
inputs all have values computes, and its outputs have values too; with any other input they have none. Nor has a tensor that such
an input was written to, though it keeps its storage.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..typed import TYPE_CHECKING, Any
from .recorder import tensors_in
from .selecting import NONZERO

if TYPE_CHECKING:
    from .recorder import Recorder

LARGEST_FLOATS = 1 << 16  # elements of a new tensor of floating-point numbers that gets values


def turns_by_length(model: Any) -> bool:
    """Whether a module's RoPE asks in each forward how long the sequence is.

    Source: transformers 5.23, modeling_rope_utils.dynamic_rope_update
    """
    kinds = (getattr(module, "rope_type", None) for module in model.modules())
    return any("dynamic" in (kind.values() if isinstance(kind, dict) else (kind,)) for kind in kinds)


@contextmanager
def known_values(recorder: Recorder, device: str) -> Iterator[None]:
    """Between fake tensors' mode and the recorder's. device: "cuda" has scratch where it scatters."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

    aten = torch.ops.aten
    by_values = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    index_put = aten.index_put.default
    by_index = (aten.index.Tensor, index_put, aten.index_put_.default)

    written: set[int] = set()  # addresses of living storages that something without values was written to

    def is_real(tensor: Any) -> bool:
        return not isinstance(tensor, FakeTensor) and tensor.device.type != "meta"

    def has_values(tensor: Any) -> bool:
        return is_real(tensor) and not (written and tensor.untyped_storage()._cdata in written)

    def lose_values(tensor: Any) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in written:
            written.add(storage._cdata)
            weakref.finalize(storage, written.discard, storage._cdata).atexit = False

    def writes(operator: Any) -> bool:
        """Whether it writes to its first input."""
        alias = operator._schema.arguments[0].alias_info if operator._schema.arguments else None
        return alias is not None and alias.is_write

    def gets_values(arguments: Sequence[Any], dtype: Any) -> bool:
        """Whether a new tensor does: whole numbers and truth values, and few of other kinds."""
        shape = arguments[0] if arguments and isinstance(arguments[0], (list, tuple)) else ()
        is_float = shape if dtype is None else dtype.is_floating_point
        return not is_float or math.prod(shape) <= LARGEST_FLOATS

    def places(index: Any) -> Sequence[Any]:
        """Of truth values where they are true, because the result's shape depends on them.

        Source: torch 2.13, IndexingUtils.h, expandTensors
        """
        if index is None or index.dtype is not torch.bool or not has_values(index):
            return (index,)
        with _disable_current_modes():
            count = int(index.sum())
        selected = index.new_empty((count, index.dim()), dtype=torch.int64)
        recorder.see(selected, NONZERO, module=module_now())
        return selected.unbind(1)  # type: ignore[no-any-return]

    def put_into_a_copy(whole: Any, indices: Sequence[Any], *others: Any) -> Any:
        """The copy is made before the places. Source: torch 2.13, TensorAdvancedIndexing.cpp, index_put"""
        copy = whole.clone()
        recorder.see(copy, str(index_put), module=module_now())
        return copy.index_put_([place for index in indices for place in places(index)], *others)

    def module_now() -> str:
        return recorder.modules[-1] if recorder.modules else recorder.outside

    class KnownValues(TorchDispatchMode):  # type: ignore[misc]
        _should_skip_dynamo = classmethod(lambda _: False)  # nothing is compiled here

        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            options = kwargs or {}
            if operator is index_put and not has_values(args[0]):
                return put_into_a_copy(*args)
            inputs = [*tensors_in([*args, *options.values()])]
            placed = [place for index in args[1] for place in places(index)] if operator in by_index else []
            if all(map(has_values, inputs)) if inputs else gets_values(args, options.get("dtype")):
                with _disable_current_modes():
                    outputs = operator(*args, **options)
            elif inputs and all(map(is_real, inputs)) and not by_values.intersection(operator.tags):
                with _disable_current_modes():
                    outputs = operator(*args, **options)
                for tensor in tensors_in(outputs):
                    lose_values(tensor)
            elif args and isinstance(args[0], torch.Tensor) and is_real(args[0]) and writes(operator):
                lose_values(args[0])
                return args[0]
            elif operator is aten.masked_scatter_backward.default:
                return gathered(*args)
            else:
                args = (args[0], placed, *args[2:]) if placed else args
                outputs = operator(*args, **options)
            if placed:
                for tensor in tensors_in(outputs):  # before the places are freed
                    recorder.see(tensor, str(operator), module=module_now())
            if operator is aten.masked_scatter.default and device == "cuda":
                scattered(outputs, args[1])
            return outputs

    def scattered(output: Any, mask: Any) -> None:
        """Scratch of a scatter: prefix sums of the mask, and the mask at full size.

        Source: torch 2.11, aten/src/ATen/native/cuda/IndexKernel.cpp, masked_scatter__cuda, and IndexKernel.cu
        """
        module = module_now()
        name = str(aten.masked_scatter.default)
        recorder.see(output, name, module=module)
        sums = output.new_empty(output.shape, dtype=torch.int64)
        recorder.see(sums, name, module=module)
        if mask.shape != output.shape:
            recorder.see(output.new_empty(output.shape, dtype=torch.bool), name, module=module)

    def gathered(gradient: Any, mask: Any, sizes: Sequence[int]) -> Any:
        """The gradient of what was scattered: by CUDA's kernel selected by all places of the mask, one for each dimension.

        Source: torch 2.13, aten/src/ATen/native/TensorAdvancedIndexing.cpp, masked_scatter_backward; cuda/IndexKernel.cpp,
        masked_select_out_cuda_impl
        """
        module, name = module_now(), str(aten.masked_select.default)
        with _disable_current_modes():
            count = int(mask.expand(gradient.shape).sum())
        missing = math.prod(sizes) - count
        if device == "cuda":
            places = gradient.new_empty((gradient.dim(), count), dtype=torch.int64)
            recorder.see(places, NONZERO, module=module)
        selected = gradient.new_empty((count,))
        recorder.see(selected, name, module=module)
        if device == "cuda":
            del places
        if missing > 0:
            zeros = gradient.new_zeros((missing,))
            recorder.see(zeros, str(aten.zeros.default), module=module)
            selected = torch.cat([selected, zeros])
            recorder.see(selected, str(aten.cat.default), module=module)
        return selected.view(sizes)

    with KnownValues():
        yield

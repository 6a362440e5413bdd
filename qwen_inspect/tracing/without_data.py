"""torch's fake tensors, answered sooner: a trace asks for the same few thousand operators again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from inspect import signature

from ..typed import Any

# What torch 2.13's FakeTensorMode has and `_quick` replaces. Of another torch that has it otherwise, the mode is used as it is.
REPLACED = {
    "_cache_key": ["self", "state", "func", "args", "kwargs"],
    "_get_output_tensor_from_cache_entry": ["self", "state", "entry", "key", "func", "args"],
}


def fake_mode() -> Any:
    """A FakeTensorMode, to enter, in which real tensors may be operands too."""
    from torch._subclasses import fake_tensor

    mode = _quick() if _is_known(fake_tensor.FakeTensorMode) else fake_tensor.FakeTensorMode
    return mode(allow_non_fake_inputs=True)


def _is_known(mode: Any) -> bool:
    return all([*signature(getattr(mode, name, len)).parameters] == expected for name, expected in REPLACED.items())


class _NotPlainError(Exception):
    """An argument of which torch itself has to say whether the operator's result follows from it."""


@cache
def _quick() -> Any:
    """torch's mode with its table of results, by a key that takes a third of the time: all of torch's own key but what follows
    from the rest of it, for tensors of fixed sizes.

    Source: torch 2.13, torch/_subclasses/fake_tensor.py, FakeTensorMode._cache_key and extract_tensor_metadata
    """
    import torch
    from torch._subclasses import fake_tensor

    FakeTensor, Key = fake_tensor.FakeTensor, fake_tensor._DispatchCacheKey
    plain = {int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}
    sequences = {list, tuple, torch.Size}
    queries = fake_tensor._DISPATCH_META_HANDLERS
    directly = fake_tensor._DISPATCH_HANDLE_DIRECTLY
    in_kernel: Callable[[Any], Any] = fake_tensor.in_kernel_invocation_manager

    def describe(values: list[Any], arguments: Iterable[Any], mode: Any) -> None:
        for argument in arguments:
            kind = type(argument)
            if kind in plain:
                values += (kind, argument)
            elif kind in sequences:
                values += (kind, len(argument))
                describe(values, argument, mode)
            elif not isinstance(argument, FakeTensor) or not is_plain(argument, mode):
                raise _NotPlainError
            else:
                values += (
                    argument.dtype,
                    argument.shape,
                    argument.stride(),
                    argument.fake_device,
                    argument.storage_offset(),
                    argument.untyped_storage().nbytes(),
                    argument.requires_grad,
                    argument.is_quantized,
                    argument.is_conj(),
                    argument.is_neg(),
                    argument.is_inference(),
                )

    def is_plain(tensor: Any, mode: Any) -> bool:
        dense = tensor.layout is torch.strided and not tensor._has_symbolic_sizes_strides
        return dense and tensor.fake_mode is mode and tensor.constant is None

    def faked(tensor: Any, device: Any, mode: Any) -> Any:
        """As FakeTensor's constructor makes it; the attributes, which that sets singly, are those of the first on the device."""
        if device not in alike:
            first = FakeTensor(mode, tensor, device)
            alike[device] = {name: value for name, value in vars(first).items() if value is not mode}
            return first
        made = torch.Tensor._make_subclass(
            FakeTensor, tensor, tensor.requires_grad, dispatch_device=True, device_for_backend_keys=device
        )
        torch._C._set_throw_on_mutable_data_ptr(made)
        vars(made).update(alike[device])
        made.fake_mode = mode
        return made

    alike: dict[Any, dict[str, Any]] = {}  # by device

    class Quick(fake_tensor.FakeTensorMode):  # type: ignore[misc]
        _should_skip_dynamo = classmethod(lambda _: False)  # nothing is compiled here

        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if operator in queries:
                return queries[operator](args)
            if operator in directly or not self.cache_enabled:
                return self.dispatch(operator, types, args, kwargs or {})
            return self._cached_dispatch_impl(operator, types, args, kwargs or {})

        def _cache_key(self, state: Any, func: Any, args: Any, kwargs: Any) -> Any:
            values = [
                Quick,
                func,
                torch.get_default_dtype(),
                torch._C._get_default_device(),
                torch.is_inference_mode_enabled(),
            ]
            try:
                describe(values, args, self)
                values += kwargs
                describe(values, kwargs.values(), self)
            except _NotPlainError:
                return super()._cache_key(state, func, args, kwargs)
            return Key(tuple(values))

        def _get_output_tensor_from_cache_entry(self, state: Any, entry: Any, key: Any, func: Any, args: Any) -> Any:
            found = entry.metadata
            if (
                found is None
                or found.layout is not torch.strided
                or found.is_conj
                or found.is_neg
                or state.known_symbols
            ):
                return super()._get_output_tensor_from_cache_entry(state, entry, key, func, args)
            with in_kernel(self):
                tensor = torch.empty_strided(
                    found.shape, found.stride, dtype=found.dtype, device="meta", requires_grad=found.requires_grad
                )
                if entry.view_idx is not None:
                    storage = args[entry.view_idx].untyped_storage()
                    tensor.set_(storage, found.storage_offset, found.shape, found.stride)
            return faked(tensor, found.device, self)

    return Quick

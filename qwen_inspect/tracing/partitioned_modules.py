"""Modules of DeepSpeed's ZeRO stage 3: what it does around each of a traced model, and its own linear layer.

Source: DeepSpeed 0.19.8, runtime/zero: parameter_offload.py, linear.py and utils.py, whose names stand at each function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..errors import UnsupportedError
from ..typed import Any
from .partitioned import Weights, is_leaf


def with_hooks(model: Any, weights: Weights) -> None:
    """Registers what stage 3 does around each module. Source: DeepSpeedZeRoOffload, setup_zero_stage3_hooks"""
    in_forward = [False]

    def begin(*_: Any) -> None:
        in_forward[0] = True
        weights.running = [model]
        weights.begin()

    def end(*_: Any) -> None:
        in_forward[0] = False

    model.register_forward_pre_hook(begin)
    for module in _down_to_leaves(model):
        _hook(module, weights)
    for module in model.modules():
        module._parameters = Watched(module._parameters, weights, in_forward)
    model.register_forward_hook(end)


class Watched(dict[str, Any]):
    """A module's parameters, which are gathered where a forward takes one that is not whole.

    Source: ZeROOrderedDict, which replaces the same attribute
    """

    def __init__(self, parameters: dict[str, Any], weights: Weights, in_forward: list[bool]) -> None:
        super().__init__(parameters)
        self.weights, self.in_forward = weights, in_forward

    def __getitem__(self, name: str) -> Any:
        import torch

        parameter = super().__getitem__(name)
        part = self.weights.by_parameter.get(id(parameter))
        if self.in_forward[0] and part is not None and part.state == "gone":
            with torch.no_grad():
                self.weights.take(part)
        return parameter


def around(model: Any) -> Any:
    """A module that only calls another, as PEFT puts them around a model: DeepSpeed looks ahead there too."""
    import torch

    class Around(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *arguments: Any, **options: Any) -> Any:
            return self.model(*arguments, **options)

    return Around().train()


def _down_to_leaves(module: Any) -> Iterator[Any]:
    yield module
    if not is_leaf(module):
        for child in module.children():
            yield from _down_to_leaves(child)


def _hook(module: Any, weights: Weights) -> None:
    """Source: _register_deepspeed_module"""
    import torch

    expected = left = 0

    def before(*_: Any) -> None:
        weights.running.append(module)
        with torch.no_grad():
            weights.fetch(module, forward=True)

    def after(*_: Any) -> None:
        weights.running.pop()
        with torch.no_grad():
            weights.release(module, forward=True)

    class BeforeBackward(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(outputs: Any) -> Any:
            return outputs.detach()

        @staticmethod
        def setup_context(context: Any, inputs: Any, output: Any) -> None:
            nonlocal expected
            expected += 1

        @staticmethod
        def backward(context: Any, *gradients: Any) -> Any:
            nonlocal expected
            if expected > 0:
                with torch.no_grad():
                    weights.fetch(module, forward=False)
                expected -= 1
            return gradients

    class AfterBackward(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(output: Any) -> Any:
            return output.detach()

        @staticmethod
        def setup_context(context: Any, inputs: Any, output: Any) -> None:
            nonlocal left
            (tensor,) = inputs
            if tensor.requires_grad:
                left += 1

        @staticmethod
        def backward(context: Any, *gradients: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                with torch.no_grad():
                    weights.release(module, forward=False)
            return gradients

    def around_inputs(_: Any, inputs: Any) -> Any:
        nonlocal left
        left = 0
        return on_tensors(AfterBackward.apply, inputs)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)
    module.register_forward_hook(lambda _, __, output: on_tensors(BeforeBackward.apply, output))
    module.register_forward_pre_hook(around_inputs)


def on_tensors(function: Callable[[Any], Any], value: Any) -> Any:
    """Source: utils.py, apply_to_tensors_only"""
    if isinstance(value, (tuple, list)):
        touched = [on_tensors(function, one) for one in value]
        return type(value)(*touched) if hasattr(value, "_fields") else type(value)(touched)
    if isinstance(value, dict):
        for key in value:
            value[key] = on_tensors(function, value[key])
        return value
    return function(value) if hasattr(value, "untyped_storage") else value


def linear_without_weight() -> Callable[..., Any]:
    """A linear layer in place of torch's, whose graph does not hold the gathered weight.

    Source: linear.py, LinearFunctionForZeroStage3
    """
    import torch

    class Linear(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(tensor: Any, weight: Any, bias: Any = None) -> Any:
            if tensor.dim() == 2 and bias is not None:
                return torch.addmm(bias, tensor, weight.t())
            output = tensor.matmul(weight.t())
            if bias is not None:
                output += bias
            return output

        @staticmethod
        def setup_context(context: Any, inputs: Any, output: Any) -> None:
            context.save_for_backward(*inputs, *[None] * (3 - len(inputs)))

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:
            tensor, weight, bias = context.saved_tensors
            if not weight.numel():
                raise UnsupportedError("ranks_deepspeed_peak_outside")
            of_tensor = of_weight = of_bias = None
            if context.needs_input_grad[0]:
                of_tensor = gradient.matmul(weight)
            if context.needs_input_grad[1]:
                if gradient.dim() > 2:
                    rows = tensor.reshape(-1, tensor.shape[-1])
                    of_weight = gradient.reshape(-1, gradient.shape[-1]).t().matmul(rows)
                elif gradient.dim() == 1:
                    of_weight = gradient.unsqueeze(-1) * tensor.unsqueeze(0)
                else:
                    of_weight = gradient.t().matmul(tensor)
            if bias is not None and context.needs_input_grad[2]:
                of_bias = gradient if gradient.dim() == 1 else gradient.sum(list(range(gradient.dim() - 1)))
            return of_tensor, of_weight, of_bias

    def linear(tensor: Any, weight: Any, bias: Any = None) -> Any:
        return Linear.apply(tensor, weight, bias)

    return linear

"""torch's own fused linear cross entropy, with the requests that it makes on CUDA."""

from __future__ import annotations

from ..typed import Any


def torch_rows(tokens: int, hidden_size: int, vocabulary: int) -> int:
    """Tokens of a chunk: its logits are about half as large as the hidden states of all tokens.

    Source: torch 2.13, nn/modules/linear_cross_entropy_options.py, _compute_batch_chunk_size with "aspect_ratio:2"
    """
    share = -(-tokens // -(-vocabulary // hidden_size))
    return max(1, min((1 << (share - 1).bit_length()) // 2, tokens))


def torch_loss(hidden: Any, weight: Any, target: Any) -> Any:
    """`linear_cross_entropy(hidden, weight, target, options=LinearCrossEntropyOptions())` with its choices for CUDA: "compact",
    "aspect_ratio:2", and in 16 bits logits in float32, of which products with an output in float32 make no copy.

    hidden: (tokens, hidden_size), weight: (vocabulary, hidden_size), target: (tokens,). torch's own loop over the chunks runs.
    Both gradients are made in the forward and kept for the backward. They are outputs of the operator, so autograd makes zeros
    as large in the backward. Source: torch 2.13, nn/modules/linear_cross_entropy.py
    """
    import torch
    from torch.nn.modules import linear_cross_entropy as code

    from .kernels import replaced

    if hidden.dtype != weight.dtype:
        raise TypeError(f"linear_cross_entropy multiplies {hidden.dtype} by {weight.dtype}")
    half = hidden.dtype in (torch.float16, torch.bfloat16)
    options = torch.nn.LinearCrossEntropyOptions(acc_dtype=torch.float32 if half else None)._adjust(
        *hidden.shape, len(weight), hidden.dtype
    )
    build = code._ChunkContext.build

    def on_cuda(states: Any, *arguments: Any, **options: Any) -> Any:
        context = build(OnCuda(states), *arguments, **options)
        context.input = states
        return context

    def multiply(_: Any, left: Any, right: Any, *, out: Any) -> None:
        """Into `out`, in whose dtype it accumulates."""
        assert (left.shape[0], right.shape[1]) == tuple(out.shape)

    class Loss(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, hidden: Any, weight: Any, target: Any) -> Any:
            needed = hidden.requires_grad, weight.requires_grad
            with replaced([(code._ChunkContext, "build", on_cuda), (code._ChunkContext, "mm", multiply)]):
                loss, *gradients = code._linear_cross_entropy_batch_chunked_accumulator(
                    hidden, weight, target, None, None, "mean", -100, 0.0,
                    options.batch_chunk_size, options.acc_policy, options.acc_dtype, *needed, False,
                )  # fmt: skip
            ctx.gradients = [each.detach() if wanted else None for each, wanted in zip(gradients, needed, strict=False)]
            return loss, *gradients

        @staticmethod
        def backward(ctx: Any, gradient: Any, *_: Any) -> Any:
            gradients, ctx.gradients = ctx.gradients, None
            return *(each if each is None else each.mul_(gradient) for each in gradients), None

    return Loss.apply(hidden, weight, target)[0]


class OnCuda:
    """A tensor that says it is on CUDA, to what asks for nothing but its shape, dtype and kind of device."""

    class Device(str):
        type = "cuda"

    def __init__(self, tensor: Any) -> None:
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, self.Device(tensor.device)

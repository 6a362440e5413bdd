"""Unsloth's fused cross entropy, with the requests that its own code makes on CUDA.

Its products and buffers are PyTorch's; its Triton kernels write in place, and compute nothing here. Nothing of it is compiled.
Variables live as long as there, so the same tensors are alive together.
Sources: unsloth_zoo 2026.10.9, fused_losses/chunked_logprob.py and fused_linear.py; unsloth 2026.10.9, models/llama.py,
CausalLM_fast_forward
"""

from __future__ import annotations

import functools

from ..typed import Any
from ..units import GIB

IGNORED = -100
FEWEST_LOGITS, FEWEST_ROWS, MOST_ROWS = 512 * 151_936, 512, 4096  # _MIN_LOGITS and _MAX_ROWS
MOST_BYTES = 2 * GIB  # _CHUNK_GB
TILE_COLUMNS, TILE_ROWS = 16_384, 4096  # _SPLIT_COLS and _BWD_ROWS: 256 MiB in float32
TILED_FROM = 4096  # labelled tokens, on cards of more than 24.5 GiB: _flash_min_rows_auto
LOGIT_BYTES = 4  # of 16-bit states, whose products have float32 results


def unsloth_rows(tokens: int, hidden_size: int, vocabulary: int, logit_bytes: int = LOGIT_BYTES) -> int:
    """Labelled tokens of a chunk, on a card that has twice the bytes of their logits free.

    Source: fused_linear.py, fused_linear_rows
    """
    fewest = min(max(_power_of_two(FEWEST_LOGITS // vocabulary), FEWEST_ROWS), MOST_ROWS)
    rows = min(max(_power_of_two(tokens * hidden_size // vocabulary), fewest), MOST_ROWS)
    return min(rows, max(MOST_BYTES // (vocabulary * logit_bytes), 2), tokens)


def _power_of_two(number: int) -> int:
    """The largest one up to `number`; 1 for 0."""
    return 1 << (max(number, 1).bit_length() - 1)


def has_tiles(vocabulary: int) -> bool:
    """Whether logits below a frozen head may be made in tiles. Source: fused_linear.py, _tiled_vocab"""
    return vocabulary > 2 * TILE_COLUMNS


def unsloth_loss(hidden: Any, weight: Any, labels: Any, count: Any, *, labelled: int, tiled_from: int) -> Any:
    """The loss of all tokens' states, the head's weight and labels that are not moved.

    hidden: (batch, tokens, hidden_size), weight: (vocabulary, hidden_size), labels: (batch, tokens). count: what the sum is
    divided by; None: the number of labels. labelled: tokens that are predicted. tiled_from: from so many of them on a frozen
    head's logits are made in tiles.
    """
    import torch

    targets = _targets(labels)
    number = (targets != IGNORED).sum() if count is None else torch.as_tensor(count)
    number = number.to(torch.float32).reshape(())
    number = _not_zero(number)
    states = hidden.reshape(-1, hidden.shape[-1])
    divisor = _not_zero(number)
    scaling = torch.ones((), dtype=torch.float32)
    needed = hidden.requires_grad, weight.requires_grad
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
    return _function().apply(states, weight, targets, divisor, scaling, dtype, needed, labelled, tiled_from)[0]


def _not_zero(number: Any) -> Any:
    import torch

    return torch.where(number == 0, torch.ones_like(number), number)


def _targets(labels: Any) -> Any:
    """Source: chunked_logprob.py, _ce_targets"""
    import torch

    pad = torch.full_like(labels[..., :1], IGNORED)
    labels = torch.cat((labels[..., 1:], pad), dim=-1)
    return labels.reshape(-1)


@functools.cache
def _function() -> Any:
    """Both gradients are made in the forward; the backward makes scaled copies of them, each beside the first.

    Source: fused_linear.py, _ce_op, _ce_setup, _ce_backward and _scale_rows_impl
    """
    import torch

    class UnslothFusedLinearCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, states: Any, weight: Any, targets: Any, divisor: Any, scaling: Any, *how: Any) -> Any:
            checked = _check_targets(targets, len(weight))
            loss, *gradients = _forward(states, weight, targets, divisor, scaling, *how)
            del checked
            ctx.mark_non_differentiable(*(each for each in gradients if each is not None))
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*gradients, scaling)
            return loss, *gradients

        @staticmethod
        def backward(ctx: Any, gradient: Any, *_: Any) -> Any:
            of_states, of_weight, scaling = ctx.saved_tensors
            scale = gradient.to(torch.float64) / scaling.to(torch.float64)
            made = [None if each is None else _scaled(each, scale) for each in (of_states, of_weight)]
            return *made, *(None,) * 7

    return UnslothFusedLinearCrossEntropy


def _scaled(gradient: Any, scale: Any) -> Any:
    import torch

    scale = scale.reshape(-1, 1).to(torch.float32)
    return torch.empty_like(gradient)


def _check_targets(targets: Any, vocabulary: int) -> tuple[Any, Any]:
    """What the check of the targets leaves while the loss is computed. Source: fused_linear.py, _ce_checked, on CUDA"""
    bad = (targets != IGNORED) & ((targets < 0) | (targets >= vocabulary))
    return bad, bad.any().logical_not()


def _forward(
    states: Any,
    weight: Any,
    targets: Any,
    divisor: Any,
    scaling: Any,
    dtype: Any,
    needed: tuple[bool, bool],
    labelled: int,
    tiled_from: int,
) -> tuple[Any, Any, Any]:
    """The loss, and the gradients that are needed of the states and of the head, in their dtypes.

    Source: fused_linear.py, _ce_impl
    """
    import torch

    of_states, of_weight = needed
    vocabulary, hidden_size = weight.shape
    half = dtype in (torch.float16, torch.bfloat16)
    index = _labelled(targets, vocabulary, labelled)
    grad_states = torch.zeros(states.shape, dtype=states.dtype) if of_states else None
    grad_weight = torch.zeros(weight.shape, dtype=weight.dtype) if of_weight else None
    loss = torch.zeros((), dtype=torch.float32)
    head = weight.to(dtype)
    coefficient = (scaling.to(torch.float32) / divisor.to(torch.float32)).reshape(())
    scores = torch.empty(labelled, dtype=torch.float32)
    _ratio = None
    if half and not of_weight and labelled >= tiled_from and has_tiles(vocabulary):
        _in_tiles(states, index, targets, head, grad_states, coefficient)
    else:
        rows = unsloth_rows(labelled, hidden_size, vocabulary, LOGIT_BYTES if half else dtype.itemsize)
        _buffer = torch.empty((rows, -(-vocabulary // 8) * 8), dtype=torch.float32 if half else dtype)
        if half and (grad_weight is None or grad_weight.dtype == torch.float32):
            power = torch.exp2(torch.round(torch.log2(coefficient)))
            _ratio, coefficient = coefficient / power, power
        for start in range(0, labelled, rows):
            chosen = index[start : start + rows]
            _chunk = states.index_select(0, chosen).to(dtype)
            _target = targets.index_select(0, chosen)
            _sums = _row_sums(len(chosen), vocabulary, coefficient)
            if grad_states is not None:
                product = torch.empty((len(chosen), hidden_size), dtype=torch.float32)  # in which it accumulates
                grad_states.index_copy_(0, chosen, product.to(grad_states.dtype))
    losses = -scores.to(torch.float64)
    loss = (losses.sum() / divisor.to(torch.float64)).to(torch.float32)
    return loss, grad_states, grad_weight


def _labelled(targets: Any, vocabulary: int, labelled: int) -> Any:
    """Positions of the labelled tokens. Source: fused_linear.py, _keep_index"""
    import torch

    keep = (targets >= 0) & (targets < vocabulary)
    keep &= targets != IGNORED
    return torch.empty((labelled, 1), dtype=torch.int64).squeeze(-1)


def _row_sums(rows: int, vocabulary: int, coefficient: Any) -> Any:
    """Logarithms of the rows' sums; in parts first, if the vocabulary has more than two. Source: fused_linear.py, _row_forward"""
    import torch

    sums = torch.empty(rows, dtype=torch.float32)
    parts = -(-vocabulary // TILE_COLUMNS)
    if parts > 2:
        torch.empty((7, parts, rows), dtype=torch.float32)
    -coefficient.reshape(())
    return sums


def _in_tiles(states: Any, index: Any, targets: Any, head: Any, grad_states: Any, coefficient: Any) -> None:
    """Tiles of rows and columns, over which the gradient of the rows' states is summed up.

    Source: fused_linear.py, _tiled_forward and _tiled_layout
    """
    import torch

    _sums, _scale = torch.empty(len(index), dtype=torch.float32), -coefficient
    rows, parts = min(TILE_ROWS, len(index)), -(-len(head) // TILE_COLUMNS)
    _buffer = torch.empty((rows, TILE_COLUMNS), dtype=torch.float32)
    _total = torch.empty((rows, states.shape[1]), dtype=torch.float32)
    _highest = torch.empty(rows, dtype=torch.float32)
    for start in range(0, len(index), rows):
        chosen = index[start : start + rows]
        _chunk = states.index_select(0, chosen).to(head.dtype)
        _target = targets.index_select(0, chosen)
        _part = torch.empty((8, parts, len(chosen)), dtype=torch.float32)

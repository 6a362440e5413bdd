"""What a budget holds, and what of a card vLLM may use."""

from __future__ import annotations

import math

from ...bisection import largest
from ...results.serving import Capacity
from .blocks import BlockPool


def requested_bytes(memory_bytes: int, utilization: float) -> int:
    """Bytes of a card that vLLM may use. Source: v1/worker/utils.request_memory."""
    return math.ceil(memory_bytes * utilization)


def capacity(pool: BlockPool, budget_bytes: int, *, sequence_tokens: int, step_tokens: int | None) -> Capacity:
    """What a budget holds of sequences of `sequence_tokens` tokens. step_tokens: the most in one step (None: unknown).

    Raises UnsupportedError for windows if `step_tokens`, on which their blocks depend, is unknown.
    Source: kv_cache_utils.get_max_concurrency_for_kv_cache_config.
    """
    blocks = pool.blocks(budget_bytes)
    unbounded = all(group.window_tokens or not group.block_tokens for group in pool.groups)
    limit = blocks * max(group.block_tokens for group in pool.groups)

    def fits(tokens: int) -> bool:
        return pool.size_bytes(tokens=tokens, batched_tokens=step_tokens) <= blocks * pool.block_bytes

    return Capacity(
        budget_bytes=budget_bytes,
        blocks=blocks,
        tokens=pool.tokens(blocks, sequence_tokens),
        sequence_blocks=pool.size_bytes(tokens=sequence_tokens, batched_tokens=step_tokens) // pool.block_bytes,
        most_context_tokens=None if unbounded and fits(sequence_tokens) else largest(fits, limit),
    )

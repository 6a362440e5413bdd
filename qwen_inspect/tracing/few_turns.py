"""Ends linear attention's loops over the chunks of a prompt early, so that a trace's length does not grow with the prompt.

Each turn allocates and frees the same as the one before, so `predicting.traces.turns` can add the others.
Source: transformers 5.23, torch_chunk_gated_delta_rule and chunk_kimi_delta_attention
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..typed import Any
from . import CHUNK_TURNS

DELTA_RULE, DELTA_ATTENTION = "torch_chunk_gated_delta_rule", "chunk_kimi_delta_attention"


@contextmanager
def few_turns(model: Any) -> Iterator[None]:
    """Within it, such a loop of the model's module has CHUNK_TURNS turns at most."""
    code = sys.modules[type(model).__module__]
    if hasattr(code, DELTA_RULE):
        code.range = _few  # type: ignore[attr-defined]  # shadows the built-in
    elif hasattr(code, DELTA_ATTENTION):
        code.range = _few_of_chunks  # type: ignore[attr-defined]
    else:
        yield
        return
    try:
        yield
    finally:
        del code.range


def _few(*bounds: int) -> range:
    return range(*bounds)[:CHUNK_TURNS]


def _few_of_chunks(*bounds: int) -> range:
    """All turns of other loops of the module, and of the one over the tokens of a chunk, which begins with the second."""
    chunks = len(bounds) == 1 and sys._getframe(1).f_code.co_name == DELTA_ATTENTION
    return _few(*bounds) if chunks else range(*bounds)

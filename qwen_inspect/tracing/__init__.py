"""transformers' classes run on tensors without data: what they build, keep and ask an allocator for. Needs torch."""

from __future__ import annotations

CHUNK_TURNS = 8  # of linear attention's loop over the chunks of a prompt, which a trace of inference ends after


def versions() -> str:
    """The libraries that a trace taken now is made by."""
    import torch
    import transformers

    return f"transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}"

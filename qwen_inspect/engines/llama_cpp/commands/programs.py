"""What programs of llama.cpp set themselves, beside their options.

Source: llama.cpp 0c1e57098, tools/perplexity/perplexity.cpp and tools/imatrix/imatrix.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping

from ....typed import Any

CHUNK_TOKENS = 512  # -c of llama-perplexity and llama-imatrix, if it is not given
BATCH = 2048


def as_the_program_runs(program: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """options: fields of LlamaCppOptions that the command sets."""
    context, batch = options.get("context_tokens"), options.get("batch", BATCH)
    match program:
        case "llama-perplexity" | "llama-imatrix":
            chunk = context or CHUNK_TOKENS
            sequences = max(batch // chunk, 1)
            tokens = sequences * chunk
            return {**options, "context_tokens": tokens, "batch": min(batch, tokens), "sequences": sequences}
    return options

"""The end of a report: what follows from its figures, and what they advise."""

from __future__ import annotations

TEXT = {
    "heading_advice": "Conclusions and advice",
    "heading_limits": "How far it goes on a card",
    "heading_savings": "What a change saves",
    "conclude_heads": "The KV cache takes {now} a token, {share} of the {mha} that MHA with its {query_heads} query heads would take; at {tokens:,} tokens and batch {batch:,} that is {now_at} instead of {mha_at}",
    "conclude_heads_some": "The KV cache takes {now} a token, {share} of the {mha} that MHA would take in its {layers:,} layers with KV heads; at {tokens:,} tokens and batch {batch:,} that is {now_at} instead of {mha_at}",
    "conclude_mha": "Every query head has a KV head of its own (MHA), so the KV cache takes {now} a token: {now_at} at {tokens:,} tokens and batch {batch:,}",
    "conclude_mha_grouped": "GQA with {heads} KV heads would take {grouped} a token, {saved} less; the number of KV heads is decided in training, not when the model runs",
    "conclude_no_heads": "No layer keeps keys and values by head, so there is no MHA to compare with: the cache takes {now} a token",
    "conclude_no_cache": "The KV cache is unknown: {reason}",
    "conclude_largest": "With a prompt of {prompt:,} tokens and batch {batch:,}, the largest part of the peak is “{term}”: {size} of {allocated} allocated ({share})",
    "conclude_largest_range": "With a prompt of {prompt:,} tokens and batch {batch:,}, at least {allocated} are allocated at the peak; the largest part is “{term}”: {size} ({share})",
    "conclude_largest_end": "With a prompt of {prompt:,} tokens and batch {batch:,}, the largest part of what is known at the end of the run is “{term}”: {size} of {allocated} ({share}); the peak is unknown",
    "conclude_known": "“{term}” takes {size}; the rest of the memory is unknown",
    "conclude_fits": "A prompt of {prompt:,} tokens at batch {batch:,} fits {gpu}, the smallest of these cards that has the room ({available} available)",
    "conclude_limits": "On {gpu} the largest prompt at batch {batch:,} is {context} tokens; the largest batch at a prompt of {prompt:,} tokens is {most}",
    "conclude_fits_none": "A prompt of {prompt:,} tokens at batch {batch:,} fits none of these cards: {gpus}",
    "conclude_saving": "The change that saves most: {change}, {before} down to {after} ({saved} less)",
    "conclude_shorter": "A prompt of {half:,} tokens in place of {prompt:,} saves {saved} of KV cache",
    "conclude_quantised": "The weights are quantised already: {now}, {bits} bits a parameter; at 16 bits they would take {dense}",
    "limits_origin": "The first is prompt tokens at batch {batch:,}, the second sequences at a prompt of {prompt:,} tokens, each with {new:,} new tokens and the larger CUDA context; both as fit finds them.",
    "limits_partial": "The longest of the prompts predicted above that fits at batch {batch:,}, with {new:,} new tokens and the larger CUDA context; – where the kernels of that card differ from the predicted ones. The largest context and batch take traces of more lengths than a report has time for; this command gives them:",
    "savings_origin": "KV cache at a prompt of {prompt:,} tokens and batch {batch:,}. Activations and the kernels' scratch are not counted: fit tells whether the change fits a card.",
    "column_limit_context": "Largest context (batch {batch:,})",
    "column_limit_batch": "Largest batch (prompt of {prompt:,} tokens)",
    "column_unchanged": "Before",
    "column_changed": "After",
    "column_saved": "Saved",
}

"""The input of explorer.js: the run's requests, from which it computes memory for any batch and lengths, and its labels."""

from __future__ import annotations

from ..language import Language
from ..predicting.allocation.allocator import UNLIMITED_BYTES
from ..predicting.allocation.allocator_settings import read_settings
from ..results.exploration import GROWTHS, Exploration, RequestSize
from ..results.memory import OF_SOME_RUNS, TERMS, MemoryReport
from ..typed import Any
from .blocks import Live
from .document.common import prompt_label
from .document.memory import required_rows

LARGEST_BATCH = 256
LONGEST_CONTEXT = 131_072  # if the model states no limit
MOST_NEW_TOKENS = 32_768


def explorer(memory: MemoryReport, exploration: Exploration, say: Language) -> Live:
    """The explorer's block, whose sliders start at the run of `memory`."""
    run = memory.run
    longest = memory.report.spec.context_tokens or LONGEST_CONTEXT
    low, scratch = exploration.low, exploration.scratch
    has_peak = exploration.method == "trace" or low is not None
    at_end, at_peak, unit = say("column_steady"), say("column_peak"), say("column_bytes")
    content = {
        "method": exploration.method,
        "start": {"batch": run.batch, "context": run.prompt_tokens, "fresh": run.new_tokens},
        "limits": {
            "batch": [1, max(LARGEST_BATCH, run.batch)],
            "context": [1, max(longest, run.prompt_tokens)],
            "fresh": [exploration.least_new_tokens, max(min(MOST_NEW_TOKENS, longest), run.new_tokens)],
        },
        "labels": {
            "batch": say("field_batch"),
            "context": say(prompt_label(run)),
            "fresh": say("field_new"),
            "by_context": say("explore_by_context" if has_peak else "explore_by_context_end"),
            "by_batch": say("explore_by_batch" if has_peak else "explore_by_batch_end"),
            "terms": {
                term: say(f"term_{term}") for term in TERMS if term not in OF_SOME_RUNS or term in exploration.terms
            },
            **{name: say(f"term_{name}") for name in ("allocated", "reserved_only", "reserved")},
            "cuda_context": say("term_context"),
            "required": [name for name, _ in required_rows(memory.predicted, say)],
            "range": say("size_range", low="{low}", high="{high}"),
            "at_least": say("at_least", value="{value}"),
            "columns": [say("column_term"), f"{at_end} ({unit})", at_end, f"{at_peak} ({unit})", at_peak],
        },
        "context": memory.predicted.context_ends,
        **_requests(exploration),
        "between": None
        if low is None or scratch is None
        else {"method": low.method, **_requests(low), "scratch": _size(scratch)},
    }
    return Live("explorer", content, say("explore_noscript"))


def _size(size: RequestSize) -> list[Any]:
    growth = [size.before, size.growth] if size.growth else []
    return [size.coefficients, size.most_tokens, size.half, *growth]


def _requests(exploration: Exploration) -> dict[str, Any]:
    """The run in compact form.

    kinds: distinct (size, term) pairs. requests: index into kinds. order: an entry per event, 0 to allocate the next request,
    n > 0 to free the request allocated n allocations ago.
    """
    kinds = {kind: index for index, kind in enumerate(dict.fromkeys(exploration.requests))}
    order, allocations = [], 0
    for entry in exploration.order:
        allocations += entry >= 0
        order.append(0 if entry >= 0 else allocations - (-1 - entry))
    settings = read_settings(exploration.allocator)
    return {
        "terms": exploration.terms,
        "sizes": [_size(size) for size in exploration.sizes],
        "growths": GROWTHS,
        "kinds": list(kinds),
        "requests": [kinds[request] for request in exploration.requests],
        "order": order,
        "stages": [[stage.name, stage.first_event] for stage in exploration.stages],
        "settings": {
            "largeSegment": settings.large_segment_bytes,
            "maxSplit": None if settings.max_split_bytes == UNLIMITED_BYTES else settings.max_split_bytes,
            "maxNonSplit": settings.max_non_split_rounding_bytes,
            "divisions": settings.roundup_divisions,
            "expandable": settings.expandable_segments,
        },
    }

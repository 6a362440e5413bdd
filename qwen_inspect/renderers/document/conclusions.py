"""The end of a report: what follows from its figures, how far the model goes on some cards, and what changes save."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from ...language import Language
from ...results.fit import CardLimits, Largest
from ...results.memory import MemoryReport, Moment
from ...results.whole import Advice, WholeReport
from ...units import percent, size
from ..blocks import Block, Code, Heading, Items, Paragraph, Table
from .common import reach


def blocks(whole: WholeReport, say: Language) -> list[Block]:
    advice = whole.advice
    return [
        Heading(say("heading_advice")),
        Items(sentences(whole, say), numbered=True),
        *([] if advice is None or not advice.limits else _limits(whole, advice, say)),
        *([] if advice is None or not advice.savings else _savings(advice, say)),
    ]


def sentences(whole: WholeReport, say: Language) -> list[str]:
    """The conclusions, each computed from the report's figures."""
    return [
        *_heads(whole, say),
        *_largest(whole, say),
        *([] if whole.advice is None or not whole.advice.limits else _fits(whole.advice, say)),
        *_weights(whole, say),
    ]


def _heads(whole: WholeReport, say: Language) -> Iterator[str]:
    """The cache beside that of as many KV heads as query heads."""
    report = whole.report
    if not report.settled:
        assert report.known.cache_refusal is not None
        yield say("conclude_no_cache", reason=say(report.known.cache_refusal.message))
        return
    if report.cache.keeps_nothing:
        yield say("cache_note_encoder")
        return
    cache, as_mha, softmax = report.cache, whole.cache_as_mha, report.attention.softmax
    if as_mha is None:
        yield say("conclude_no_heads", now=size(cache.bytes_per_token))
        return
    tokens, batch = report.context_tokens or whole.cache_points[-1][0], whole.request.batch
    values = {
        "now": size(cache.bytes_per_token),
        "now_at": size(cache.size_bytes(tokens=tokens, batch=batch)),
        "mha": size(as_mha.bytes_per_token),
        "mha_at": size(as_mha.size_bytes(tokens=tokens, batch=batch)),
        "tokens": tokens,
        "batch": batch,
    }
    if cache != as_mha:
        share = percent(cache.bytes_per_token * 10_000 // as_mha.bytes_per_token)
        uniform = len(softmax) == len(cache.layers) and len({layer.query_heads for layer in softmax}) == 1
        heads = {"query_heads": softmax[0].query_heads} if uniform else {"layers": len(softmax)}
        yield say("conclude_heads" if uniform else "conclude_heads_some", share=share, **heads, **values)
        return
    yield say("conclude_mha", **values)
    query_heads = softmax[0].query_heads
    fewer = [heads for heads in range(2, query_heads // 4 + 1) if query_heads % heads == 0]
    if fewer and {layer.query_heads for layer in softmax} == {query_heads}:
        grouped = cache.bytes_per_token * fewer[-1] // query_heads  # exact: K and V by head
        saved = percent((query_heads - fewer[-1]) * 10_000 // query_heads)
        yield say("conclude_mha_grouped", heads=fewer[-1], grouped=size(grouped), saved=saved)


def _largest(whole: WholeReport, say: Language) -> Iterator[str]:
    """The largest term of the longest and of the shortest prompt's peak; once if it is the same."""
    ends = [whole.memory[-1], whole.memory[0]] if whole.memory else []
    named: set[str] = set()
    for memory in ends:
        moment, term = largest_term(memory)
        if term in named:
            continue
        named.add(term)
        size_bytes, allocated = moment.bytes_by_term[term], moment.allocated
        assert size_bytes is not None
        if not allocated:
            yield say("conclude_known", term=say(f"term_{term}"), size=size(size_bytes))
            continue
        predicted = memory.predicted
        yield say(
            "conclude_largest"
            if predicted.peak is not None
            else "conclude_largest_range"
            if predicted.peak_range is not None
            else "conclude_largest_end",
            prompt=memory.run.prompt_tokens,
            batch=memory.run.batch,
            term=say(f"term_{term}"),
            size=size(size_bytes),
            allocated=size(allocated),
            share=percent(size_bytes * 10_000 // allocated),
        )


def largest_term(memory: MemoryReport) -> tuple[Moment, str]:
    """`Footprint.peak_at_least` and its largest term."""
    moment = memory.predicted.peak_at_least
    return moment, max(moment.bytes_by_term, key=lambda term: moment.bytes_by_term[term] or 0)


def _fits(advice: Advice, say: Language) -> Iterator[str]:
    """The smallest of the cards that the run fits, with its limits."""
    run = advice.run
    values = {"prompt": run.prompt_tokens, "batch": run.batch}
    fitting = [card for card in advice.limits if (card.context.value or 0) >= run.prompt_tokens]
    if fitting:
        card = min(fitting, key=lambda card: card.available_bytes)
        yield say("conclude_fits", gpu=card.gpu.name, available=size(card.available_bytes), **values)
        if card.batch.value is not None:
            limits = {"context": reach(card.context, say), "most": reach(card.batch, say)}
            yield say("conclude_limits", gpu=card.gpu.name, **limits, **values)
    elif advice.limits and all(
        card.context.at_most is not None and card.context.at_most < run.prompt_tokens for card in advice.limits
    ):
        yield say("conclude_fits_none", gpus=say("comma").join(card.gpu.name for card in advice.limits), **values)


def _weights(whole: WholeReport, say: Language) -> Iterator[str]:
    """What quantised weights save already; the change that saves most, or, if none is known, what half the context saves."""
    quantised, advice = whole.report.known.quantised, whole.advice
    if quantised is not None:
        yield say(
            "conclude_quantised",
            now=size(quantised.total_bytes),
            dense=size(whole.report.parameters.theory * 2),
            bits=f"{quantised.bits_per_parameter:.3f}",
        )
    if advice is None:
        return
    if advice.savings:
        saving = advice.savings[0]
        sizes = {"before": saving.before_bytes, "after": saving.after_bytes, "saved": saving.saved_bytes}
        yield say(
            "conclude_saving", change=saving.change, **{name: size(size_bytes) for name, size_bytes in sizes.items()}
        )
    elif whole.report.settled and not whole.report.cache.keeps_nothing:
        run, cache = advice.saving_run, whole.report.cache
        whole_bytes, half_bytes = (
            cache.size_bytes(tokens=tokens, batch=run.batch) for tokens in (run.prompt_tokens, run.prompt_tokens // 2)
        )
        yield say(
            "conclude_shorter",
            prompt=run.prompt_tokens,
            half=run.prompt_tokens // 2,
            saved=size(whole_bytes - half_bytes),
        )


def _limits(whole: WholeReport, advice: Advice, say: Language) -> list[Block]:
    """How far the run goes on each card; with the command that tells, if this is known only in part."""
    values = {"batch": advice.run.batch, "prompt": advice.run.prompt_tokens, "new": advice.run.new_tokens}
    is_whole = any(card.batch.at_most is not None for card in advice.limits)
    names = ("gpu", "available", "limit_context", *(("limit_batch",) if is_whole else ()))
    rows = [_limits_row(card, say)[: len(names)] for card in advice.limits]
    table = Table([say(f"column_{name}", **values) for name in names], rows, "lrrr"[: len(names)])
    if is_whole:
        return [Heading(say("heading_limits"), 3), table, Paragraph(say("limits_origin", **values))]
    words = ["qwen-inspect", "fit", model_argument(whole), "--gpu", advice.limits[0].gpu.name]
    return [
        Heading(say("heading_limits"), 3),
        table,
        Paragraph(say("limits_partial", **values)),
        Code(shlex.join(words), "sh"),
    ]


def _limits_row(card: CardLimits, say: Language) -> list[str]:
    return [card.gpu.name, size(card.available_bytes), _reach(card.context, say), _reach(card.batch, say)]


def _reach(largest: Largest, say: Language) -> str:
    return say("fits_no") if largest.at_most == 0 else reach(largest, say)


def _savings(advice: Advice, say: Language) -> list[Block]:
    run = advice.saving_run
    rows = [
        [
            say(saving.change),
            say("term_cache" if saving.kind == "cache" else "term_weights"),
            size(saving.before_bytes),
            size(saving.after_bytes),
            size(saving.saved_bytes),
        ]
        for saving in advice.savings
    ]
    names = ("change_to", "term", "unchanged", "changed", "saved")
    return [
        Heading(say("heading_savings"), 3),
        Table([say(f"column_{name}") for name in names], rows, "llrrr"),
        Paragraph(say("savings_origin", prompt=run.prompt_tokens, batch=run.batch)),
    ]


def model_argument(whole: WholeReport) -> str:
    """What names the model in a command, pinned to the source and revision that were read."""
    ref = whole.report.ref
    if ref.source not in ("hf", "ms", "catalog"):
        return whole.request.model
    return f"{ref.source}:{ref.id}{f'@{ref.revision}' if ref.revision else ''}"

"""`fit --engine`: the memory that an engine reserves on each card, by term with sources, and its KV capacity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...language import Language
from ...results.serving import Capacity, EngineCard, LlamaCppReserve, LogTerm, ServingReport, VllmReserve
from ...units import UNKNOWN, count, size
from ..blocks import Block, Fields, Heading, Items, Table
from .common import identity, notices, reach
from .fit import suggestion_blocks
from .llama_cpp import buffer_table


def blocks(report: ServingReport, say: Language) -> Sequence[Block]:
    sources = dict.fromkeys(source for card in report.cards for term in card.reserve.terms for source in term.sources)
    content: list[Block] = [
        Heading(say("heading_fit", name=report.report.ref.id), 1),
        identity(report.report, say),
        *notices(report.report, say),
        Heading(say("heading_run")),
        _workload_fields(report, say),
        *(block for card in report.cards for block in _card_blocks(card, report, say)),
        *_log_blocks(report.log, say),
        Heading(say("heading_assumptions")),
        Items([say(message) for message in report.assumptions]),
    ]
    if sources:
        content += [Heading(say("heading_sources")), Items([*sources])]
    return content


def _workload_fields(report: ServingReport, say: Language) -> Fields:
    return Fields(
        [
            (say("field_engine"), f"{report.serving.engine} {report.version}"),
            (say("field_sequences"), count(report.serving.batch)),
            (say("field_sequence_tokens"), count(report.context_tokens)),
            *([(say("field_tp_ranks"), count(report.serving.ranks))] if report.serving.engine != "llama.cpp" else []),
        ]
    )


def _card_blocks(card: EngineCard, report: ServingReport, say: Language) -> Iterator[Block]:
    name = say("serving_budget") if card.gpu is None else card.gpu.name
    yield Heading(say("heading_card", name=name, verdict=_verdict(card, say)))
    reserve = card.reserve
    match reserve:
        case VllmReserve():
            if reserve.terms:
                yield _budget_table(card, reserve, say)
            yield _capacity_table(card, reserve, report, say)
            yield Fields([*_block_fields(reserve, say)])
        case LlamaCppReserve():
            yield _term_table(card, say)
            yield Fields([*_offload_fields(card, reserve, say)])
            yield buffer_table(reserve.buffers, say)
        case _:
            yield _term_table(card, say)
            yield Fields([*_reach_fields(card, say)])
    yield from suggestion_blocks(card.answer, say)


def _verdict(card: EngineCard, say: Language) -> str:
    if card.answer.high.fits is False and card.answer.low.fits:
        return say("serving_best_only")
    return _mark(card.answer.high.fits, say)


def _mark(fits: bool | None, say: Language) -> str:
    return say({True: "fits_yes", False: "fits_no", None: "serving_unknown"}[fits])


# --- vLLM ----------------------------------------------------------------------------------------------------------


def _budget_table(card: EngineCard, reserve: VllmReserve, say: Language) -> Table:
    """Requested memory minus each term, at both ends, gives the KV budget."""
    requested = reserve.requested_bytes or 0
    rows = [_both(say("row_requested", share=f"{reserve.utilization:g}"), requested, requested)]
    for term in reserve.terms:
        rows.append(_both(say(f"reserved_{term.name}"), -(term.most_bytes or 0), -term.least_bytes))
    rows.append(_both(say("row_budget"), reserve.least.budget_bytes, reserve.most.budget_bytes))
    ends = [say("column_cautious"), say("column_best")]
    columns = [say("column_term"), *(text for end in ends for text in (f"{end} ({say('column_bytes')})", end))]
    return Table(columns, rows, "lrrrr", totals=1, expendable=((1, 3),))


def _log_blocks(log: Sequence[LogTerm] | None, say: Language) -> Iterator[Block]:
    """Printed figures beside the predicted ranges; what lies outside of its range is the cause of a difference."""
    if log is None:
        return
    rows = []
    for term in log:
        show = _signed if term.unit == "bytes" else count
        name = say(f"reserved_{term.name}" if f"log_{term.name}" not in LOG_NAMES else f"log_{term.name}")
        outside = "✓" if term.agrees else show(term.difference)
        rows.append([name, show(term.printed), f"{show(term.low)} – {show(term.high)}", outside])
    yield Heading(say("heading_log"))
    yield Table([say(f"column_{key}") for key in ("term", "printed", "log_range", "outside")], rows, "lrrr")


LOG_NAMES = ("log_budget", "log_blocks", "log_tokens")


def _both(name: str, *values: int) -> list[str]:
    return [name, *(cell for value in values for cell in (f"{value:,}".replace("-", "−"), _signed(value)))]


def _signed(size_bytes: int) -> str:
    return f"−{size(-size_bytes)}" if size_bytes < 0 else size(size_bytes)


def _capacity_table(card: EngineCard, reserve: VllmReserve, report: ServingReport, say: Language) -> Table:
    """Blocks, tokens and concurrency of the KV budget; two columns if its ends differ."""
    ends = [reserve.least] if reserve.least == reserve.most else [reserve.least, reserve.most]
    heads = ["column_cautious", "column_best"] if len(ends) == 2 else ["column_size"]

    def most(end: Capacity) -> str:
        return say("serving_endless") if end.most_context_tokens is None else count(end.most_context_tokens)

    rows = [
        [say("row_budget"), *(_signed(end.budget_bytes) for end in ends)],
        [say("row_blocks"), *(count(end.blocks) for end in ends)],
        [say("field_kv_cache_tokens_engine"), *(count(end.tokens) for end in ends)],
        [say("row_sequence_blocks", tokens=report.context_tokens), *(count(end.sequence_blocks) for end in ends)],
        [say("row_concurrency", tokens=report.context_tokens), *(f"{end.concurrency:,.2f}×" for end in ends)],
        [say("row_most_context"), *map(most, ends)],
    ]
    return Table([say("column_capacity"), *(say(head) for head in heads)], rows, "l" + "r" * len(ends))


def _block_fields(reserve: VllmReserve, say: Language) -> Iterator[tuple[str, str]]:
    yield say("field_cache_dtype"), reserve.cache_format
    yield say("field_block"), say("block_of", tokens=reserve.block_tokens, bytes=reserve.block_bytes)
    if reserve.groups > 1:
        yield say("field_block_groups"), count(reserve.groups)
    if (asleep := reserve.asleep) is not None:
        yield say("field_asleep"), f"{size(asleep.least_bytes)} – {size(asleep.most_bytes)}"
        yield say("field_asleep_host"), size(asleep.host_bytes)


# --- llama.cpp, and any other --------------------------------------------------------------------------------------


def _term_table(card: EngineCard, say: Language) -> Table:
    """The terms on the card and their sum, which is a lower bound if a term is unknown."""
    known_bytes = sum(term.least_bytes if term.most_bytes is None else term.most_bytes for term in card.reserve.terms)
    required = "required_in_all" if card.answer.requirement.whole else "required_at_least"
    rows = [
        [say(f"reserved_{term.name}"), count(term.most_bytes), size(term.most_bytes)]
        for term in card.reserve.terms
        if term.most_bytes != 0
    ]
    left = card.answer.available_bytes - known_bytes
    for name, value in ((required, known_bytes), ("available", card.answer.available_bytes), ("left", left)):
        rows.append([say(f"row_{name}"), f"{value:,}".replace("-", "−"), _signed(value)])
    return Table(
        [say("column_term"), say("column_bytes"), say("column_size")], rows, "lrr", totals=3, expendable=((1,),)
    )


def _offload_fields(card: EngineCard, reserve: LlamaCppReserve, say: Language) -> Iterator[tuple[str, str]]:
    yield say("field_offloaded"), say("offloaded_of", value=reserve.offloaded, layers=reserve.layers)
    yield say("field_cells"), count(reserve.cells)
    yield say("field_cache_dtype"), ", ".join(reserve.cache_formats)
    yield say("field_host"), size(reserve.host_bytes)
    known = all(buffer.size_bytes is not None for buffer in reserve.buffers)
    most = count(reserve.most_offloaded) if known else say("reach_at_most", value=reserve.most_offloaded)
    yield say("field_most_offloaded"), most
    if reserve.host_experts is not None:
        yield say("field_fewest_host_experts"), count(reserve.host_experts)
    if reserve.offloaded:
        yield from _reach_fields(card, say)
    else:
        yield say("field_most_context"), UNKNOWN


def _reach_fields(card: EngineCard, say: Language) -> Iterator[tuple[str, str]]:
    yield say("field_most_context"), reach(card.answer.high.context, say)
    yield say("field_most_sequences"), reach(card.answer.high.batch, say)

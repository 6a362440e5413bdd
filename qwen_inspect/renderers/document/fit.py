"""`fit`: whether a run fits each card, how far it goes there, and what to change where it does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...language import Language
from ...results.fit import CardAnswer, FitReport, Suggestion
from ...results.serving import ServingReport
from ...units import count, signed_size, size
from ..blocks import Block, Fields, Heading, Items, Paragraph, Table
from . import View
from .common import identity, notices, reach


def blocks(found: FitReport | ServingReport, say: Language, view: View) -> Sequence[Block]:
    if isinstance(found, ServingReport):
        from . import serving

        return serving.blocks(found, say)
    return [
        Heading(say("heading_fit", name=found.report.ref.id), 1),
        identity(found.report, say),
        *notices(found.report, say),
        Heading(say("heading_run")),
        _run_fields(found, say),
        *([_cards_table(found, say)] if len(found.cards) > 1 else []),
        *(block for card in found.cards for block in _card_blocks(card, say)),
        Heading(say("heading_assumptions")),
        Items([say(message) for message in found.assumptions]),
    ]


def _run_fields(found: FitReport, say: Language) -> Fields:
    run = found.run
    return Fields(
        [
            (say("field_engine"), found.engine),
            (say("field_mode"), say(f"mode_{run.mode}")),
            (say("field_batch"), count(run.batch)),
            (say("field_prompt"), count(run.prompt_tokens)),
            *([(say("field_new"), count(run.new_tokens))] if run.mode == "generate" else []),
            (say("field_kernel"), run.attention),
            *([(say("field_cache"), say("cache_static"))] if run.cache == "static" else []),
            *([(say("field_padding"), say("padded"))] if run.padded else []),
            *([(say("field_autocast"), run.autocast)] if run.autocast else []),
        ]
    )


def _cards_table(found: FitReport, say: Language) -> Table:
    names = ("gpu", "available", "required", "margin", "fits", "max_context", "max_batch")
    rows = [
        [
            card.gpu.name,
            size(card.available_bytes),
            _bounded(size(card.high.required_bytes), "at_least", card, say),
            _bounded(signed_size(card.high.margin_bytes), "reach_left_at_most", card, say),
            verdict(card, say),
            reach(card.high.context, say),
            reach(card.high.batch, say),
        ]
        for card in found.cards
    ]
    return Table([say(f"column_{name}") for name in names], rows, "lrrrlrr")


def _card_blocks(card: CardAnswer, say: Language) -> Iterator[Block]:
    yield Heading(f"{card.gpu.name}: {verdict(card, say)}")
    yield Paragraph(_sentence(card, say))
    yield _term_table(card, say)
    if card.notices:
        yield Items([say(message) for message in card.notices])
    if card.passes_by_release is not None:
        yield Paragraph(say("fit_passes" if card.passes_by_release else "fit_passes_not"))
    yield Fields([*_reach_rows(card, say)])
    if any(point.batch.at_most for point in card.curve):
        yield Heading(say("heading_curve"), 3)
        columns = [say("column_prompt_tokens"), say("column_max_batch")]
        yield Table(columns, [[count(point.context_tokens), reach(point.batch, say)] for point in card.curve], "rr")
    yield from suggestion_blocks(card, say)


def suggestion_blocks(card: CardAnswer, say: Language) -> Iterator[Block]:
    if card.suggestions:
        yield Heading(say("heading_suggestions"), 3)
        columns = [say(f"column_{name}") for name in ("change_to", "required_bytes", "required", "fits")]
        yield Table(columns, [_suggestion_row(suggestion, say) for suggestion in card.suggestions], "lrrl")


def _suggestion_row(one: Suggestion, say: Language) -> list[str]:
    sizes = [count(one.required_bytes), size(one.required_bytes)]
    if not one.whole:
        sizes = [say("at_least", value=value) for value in sizes]
    return [say(one.change), *sizes, _mark(one.fits, say, likely=one.likely)]


def _bounded(text: str, key: str, card: CardAnswer, say: Language) -> str:
    """The text as it is, or as the bound that `key` says it is where not all that is required is known."""
    return text if card.requirement.whole else say(key, value=text)


def verdict(card: CardAnswer, say: Language) -> str:
    """In a word: at the cautious end, or that it depends on the context's size."""
    if card.high.fits is False and card.low.fits:
        return say("fits_low_only")
    return _mark(card.high.fits, say, likely=card.likely)


def _mark(fits: bool | None, say: Language, *, likely: bool | None = None) -> str:
    if fits is None and likely:
        return say("fits_likely")
    return say({True: "fits_yes", False: "fits_no", None: "fits_unknown"}[fits])


def _sentence(card: CardAnswer, say: Language) -> str:
    where = say(f"available_{card.gpu.origin}", available=size(card.available_bytes))
    context = "context_measured" if card.calibrated else "context_range"
    low, high = size(card.requirement.context_low_bytes), size(card.requirement.context_high_bytes)
    return f"{where} {say(context, low=low, high=high)}"


def _term_table(card: CardAnswer, say: Language) -> Table:
    """Each term, adding up to what is required at either end, against what is available."""
    required = card.requirement
    ends = [card.low, card.high] if card.low != card.high else [card.high]
    rows = [
        [say(f"term_{term}"), *[count(size_bytes), size(size_bytes)] * len(ends)] for term, size_bytes in required.terms
    ]
    contexts = [required.context_low_bytes, required.context_high_bytes][-len(ends) :]
    rows.append([say("term_context"), *(cell for context in contexts for cell in (count(context), size(context)))])
    for name, values in (
        ("required_in_all" if required.whole else "required_at_least", [end.required_bytes for end in ends]),
        ("available", [card.available_bytes] * len(ends)),
    ):
        rows.append([say(f"row_{name}"), *(cell for value in values for cell in (count(value), size(value)))])
    if not required.whole and required.most_bytes is not None:
        most = [required.most_bytes - required.context_high_bytes + context for context in contexts]
        rows.insert(-1, [say("row_required_at_most"), *(cell for one in most for cell in (count(one), size(one)))])
    margins = [end.margin_bytes for end in ends]
    margin = say("row_margin" if required.whole else "row_left")
    rows.append([margin, *(cell for one in margins for cell in (f"{one:,}", signed_size(one)))])
    heads = ["column_context_low", "column_context_high"] if len(ends) == 2 else ["column_size"]
    unit = say("column_bytes")
    columns = [say("column_term"), *(text for head in heads for text in (f"{say(head)} ({unit})", say(head)))]
    return Table(
        columns, rows, "l" + "rr" * len(ends), totals=3 if required.whole or required.most_bytes is None else 4
    )


def _reach_rows(card: CardAnswer, say: Language) -> Iterator[tuple[str, str]]:
    for name in ("context", "batch"):
        high, low = getattr(card.high, name), getattr(card.low, name)
        text = reach(high, say)
        if low != high:
            text = say("reach_range", high=text, low=reach(low, say))
        yield say(f"field_max_{name}"), text
    yield say("field_kv_cache_tokens"), count(card.cache_tokens)

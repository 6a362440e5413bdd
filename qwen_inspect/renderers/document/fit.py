"""`fit`: whether a run fits each card, the largest context and batch that fit, and changes that would make it fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...language import Language
from ...results.fit import CardAnswer, FitReport, MediaReach, Suggestion
from ...results.llama_cpp import LlamaCppReport
from ...results.serving import ServingReport
from ...units import count, signed_size, size
from ..blocks import Block, Fields, Heading, Items, Paragraph, Table
from . import View
from .common import identity, notes, notices, prompt_label, reach


def blocks(report: FitReport | ServingReport | LlamaCppReport, say: Language, view: View) -> Sequence[Block]:
    if isinstance(report, LlamaCppReport):
        from . import llama_cpp

        return llama_cpp.blocks(report, say)
    if isinstance(report, ServingReport):
        from . import serving

        return serving.blocks(report, say)
    return [
        Heading(say("heading_fit", name=report.report.ref.id), 1),
        identity(report.report, say),
        *notices(report.report, say),
        Heading(say("heading_run")),
        _run_fields(report, say),
        *([_cards_table(report, say)] if len(report.cards) > 1 else []),
        *(block for card in report.cards for block in _card_blocks(card, say)),
        Heading(say("heading_assumptions")),
        *notes(report.assumptions, say, view),
    ]


def _run_fields(report: FitReport, say: Language) -> Fields:
    run = report.run
    return Fields(
        [
            (say("field_engine"), report.engine),
            (say("field_mode"), say(f"mode_{run.mode}")),
            (say("field_batch"), count(run.batch)),
            (say(prompt_label(run)), count(run.prompt_tokens)),
            *([(say("field_new"), count(run.new_tokens))] if run.mode == "generate" else []),
            (say("field_kernel"), run.attention),
            *([(say("field_cache"), say("cache_static"))] if run.cache == "static" else []),
            *([(say("field_padding"), say("padded"))] if run.padded else []),
            *([(say("field_autocast"), run.autocast)] if run.autocast else []),
        ]
    )


def _cards_table(report: FitReport, say: Language) -> Table:
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
        for card in report.cards
    ]
    return Table([say(f"column_{name}") for name in names], rows, "lrrrlrr", expendable=((3,), (1,)))


def _card_blocks(card: CardAnswer, say: Language) -> Iterator[Block]:
    yield Heading(say("heading_card", name=card.gpu.name, verdict=verdict(card, say)))
    yield Paragraph(_sentence(card, say))
    yield _term_table(card, say)
    if card.notices:
        yield Items([say(message) for message in card.notices])
    if card.passes_by_release is not None:
        yield Paragraph(say("fit_passes" if card.passes_by_release else "fit_passes_not"))
    if card.media:
        columns = [say(f"column_{name}") for name in ("media_limit", "media_most", "tokens", "required", "media_bound")]
        yield Table(columns, [_media_row(reach, say) for reach in card.media], "lrrrl")
    else:
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
        yield Table(
            columns, [_suggestion_row(suggestion, say) for suggestion in card.suggestions], "lrrl", expendable=((1,),)
        )


def _suggestion_row(suggestion: Suggestion, say: Language) -> list[str]:
    sizes = [count(suggestion.required_bytes), size(suggestion.required_bytes)]
    if not suggestion.whole:
        sizes = [say("at_least", value=value) for value in sizes]
    return [say(suggestion.change), *sizes, _mark(suggestion.fits, say, likely=suggestion.likely)]


def _bounded(text: str, key: str, card: CardAnswer, say: Language) -> str:
    """`text`; if only a lower bound of the requirement is known, the message `key` around it."""
    return text if card.requirement.whole else say(key, value=text)


def verdict(card: CardAnswer, say: Language) -> str:
    """Short verdict at the cautious end; a separate one if it only fits with a small CUDA context."""
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
    return say("answer_joint").join([where, say(context, low=low, high=high)])


def _term_table(card: CardAnswer, say: Language) -> Table:
    """The terms, their sum (required, at each end of the CUDA context's range), the available bytes and the margin."""
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
        cells = (cell for size_bytes in most for cell in (count(size_bytes), size(size_bytes)))
        rows.insert(-1, [say("row_required_at_most"), *cells])
    margins = [end.margin_bytes for end in ends]
    margin = say("row_margin" if required.whole else "row_left")
    rows.append([margin, *(cell for size_bytes in margins for cell in (f"{size_bytes:,}", signed_size(size_bytes)))])
    heads = ["column_context_low", "column_context_high"] if len(ends) == 2 else ["column_size"]
    unit = say("column_bytes")
    columns = [say("column_term"), *(text for head in heads for text in (f"{say(head)} ({unit})", say(head)))]
    return Table(
        columns,
        rows,
        "l" + "rr" * len(ends),
        totals=3 if required.whole or required.most_bytes is None else 4,
        expendable=((1, 3)[: len(ends)],),
    )


def _media_row(reach: MediaReach, say: Language) -> list[str]:
    required = None if reach.required_bytes is None else size(reach.required_bytes)
    bound = say(f"media_bound_{reach.bound}")
    return [
        say(f"media_limit_{reach.kind}"),
        media_most(reach, say),
        count(reach.tokens),
        required or count(None),
        bound,
    ]


def media_most(reach: MediaReach, say: Language) -> str:
    """1024 × 768, 12 of 1024 × 768, 90 s of 1280 × 720, or 90 s."""
    if (medium := reach.medium) is None:
        return say("media_none")
    from ...results.media import TypedAudio

    if isinstance(medium, TypedAudio):
        return say("seconds_of", seconds=int(medium.seconds))
    sides = f"{medium.width} × {medium.height}"
    if medium.seconds is not None:
        return say("media_most_video", seconds=int(medium.seconds), size=sides)
    return say("media_most_images", count=reach.count, size=sides) if reach.kind == "images" else sides


def _reach_rows(card: CardAnswer, say: Language) -> Iterator[tuple[str, str]]:
    for name in ("context", "batch"):
        high, low = getattr(card.high, name), getattr(card.low, name)
        text = reach(high, say)
        if low != high:
            text = say("reach_range", high=text, low=reach(low, say))
        yield say(f"field_max_{name}"), text
    yield say("field_kv_cache_tokens"), count(card.cache_tokens)

"""What an engine reserves of each card, whether it fits, and the largest context and batch there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..engines import engine_of
from ..errors import UsageError
from ..language import Message
from ..results.fit import Gpu
from ..results.model import Report
from ..results.serving import EngineCard, Serving, ServingReport
from ..units import size
from .search import answers


def serve(report: Report, serving: Serving, cards: Sequence[Gpu], *, beyond_limit: bool = False) -> ServingReport:
    """What `serving.engine` reserves of each of `cards`, and what fits there.

    Raises UnsupportedError for a model that the engine does not serve or whose reserve is unknown; UsageError for a budget
    smaller than a block.
    """
    engine = engine_of(serving.engine)
    report = engine.reads(report)
    limit = report.spec.context_tokens
    tokens = serving.context_tokens or limit
    if tokens is None:
        raise UsageError("serving_needs_context")
    serving = replace(serving, context_tokens=tokens)
    card_answers = tuple(answers(engine, report, serving, cards, beyond_limit=beyond_limit))
    assumptions = tuple(engine.assumptions(report, serving, card_answers))
    if limit is not None and tokens > limit:
        report = replace(report, notices=(*report.notices, Message("context_beyond", tokens=tokens, limit=limit)))
    return ServingReport(
        report=report,
        serving=serving,
        version=serving.version or engine.version,
        context_tokens=tokens,
        cards=tuple(
            EngineCard(
                gpu=None if serving.kv_budget_bytes is not None else card_answer.gpu,
                answer=card_answer,
                reserve=demand.reserve(card_answer.gpu, serving.batch, tokens),
            )
            for demand, card_answer in card_answers
        ),
        assumptions=assumptions,
    )


def budget_card(budget_bytes: int) -> Gpu:
    """A stand-in for the card if a cache budget is given: all its memory is the cache's."""
    return Gpu(name=size(budget_bytes), kind="given", memory_bytes=budget_bytes)

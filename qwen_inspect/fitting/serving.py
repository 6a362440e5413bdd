"""A model and an engine -> what the engine reserves of each card, whether that fits, and how far it goes there."""

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
    """What `serving.engine` takes of each of `cards`, and what fits there.

    Raises UnsupportedError for a model that the engine does not serve, or whose share of a card is not known here; UsageError for
    a budget that holds no block.
    """
    engine = engine_of(serving.engine)
    report = engine.reads(report)
    limit = report.spec.context_tokens
    tokens = serving.context_tokens or limit
    if tokens is None:
        raise UsageError("serving_needs_context")
    serving = replace(serving, context_tokens=tokens)
    answered = tuple(answers(engine, report, serving, cards, beyond_limit=beyond_limit))
    assumptions = tuple(engine.assumptions(report, serving, answered))
    if limit is not None and tokens > limit:
        report = replace(report, notices=(*report.notices, Message("context_beyond", tokens=tokens, limit=limit)))
    return ServingReport(
        report=report,
        serving=serving,
        version=engine.version,
        context_tokens=tokens,
        cards=tuple(
            EngineCard(
                gpu=None if serving.kv_budget_bytes is not None else found.gpu,
                answer=found,
                reserve=demand.reserve(found.gpu, serving.batch, tokens),
            )
            for demand, found in answered
        ),
        assumptions=assumptions,
    )


def budget_card(budget_bytes: int) -> Gpu:
    """Stands for a card where the budget of the cache is given: all of it is the cache's."""
    return Gpu(name=size(budget_bytes), kind="given", memory_bytes=budget_bytes)

"""What a report advises: how far a run goes on several cards, and what changes to it save, as far as that is quick to know."""

from __future__ import annotations

from collections.abc import Sequence

from ..engines.interface import Alternative
from ..engines.transformers.changes import changes
from ..engines.transformers.demand import TransformersDemand
from ..predicting.allocation.workspaces import is_hopper
from ..predicting.predict import explored
from ..results.fit import CardLimits, Gpu, Largest, Saving
from ..results.memory import MemoryReport, Run
from ..values import replace
from .search import Search

# Holds nothing, so that no change is traced to see whether it fits.
NO_CARD = Gpu(name="0 B", kind="given", memory_bytes=0)
DEEPEST = 160  # layers; each of some 190 numbers is tried with all of them


def limits(memories: Sequence[MemoryReport], run: Run, cards: Sequence[Gpu]) -> tuple[CardLimits, ...]:
    """How far `run`, one of the predicted ones, goes on each card. Empty if the weights' bytes or the cache are unknown.

    If that takes traces of other lengths, or of very many layers, which are slow, the context is the longest predicted prompt,
    and the batch unknown. No calibration of this machine is used, so that the answer is the same everywhere.
    """
    memory = next(memory for memory in memories if memory.run == run)
    if not memory.report.settled or memory.report.known.unread is not None:
        return ()
    exploration = explored(memory).exploration
    design = memory.report.design
    deep = design is not None and len(design.spec.layers) > DEEPEST
    if deep or exploration is None or exploration.method != memory.predicted.method:
        return tuple(_of_predicted(memories, card) for card in cards)
    demands: dict[object, TransformersDemand] = {}  # by what tells cards apart
    answers = []
    for card in cards:
        demand = TransformersDemand(memory.report, memory.run, replace(card, device_names=()))
        answers.append(_limits(demands.setdefault(demand.card_facts, demand), card))
    return tuple(answers)


def _of_predicted(memories: Sequence[MemoryReport], card: Gpu) -> CardLimits:
    """The longest predicted prompt that fits a card like the one predicted for; unknown for Hopper, whose kernels differ."""
    enough, too_long = 0, None
    for memory in () if is_hopper(card.name) else memories:
        low, high = memory.predicted.required_bytes or (0, None)
        if high is not None and high <= card.available_bytes:
            enough = max(enough, memory.run.prompt_tokens)
        elif low > card.available_bytes:
            too_long = min(too_long or memory.run.prompt_tokens, memory.run.prompt_tokens)
    return CardLimits(
        gpu=card,
        available_bytes=card.available_bytes,
        context=Largest(value=enough or None, at_most=None if too_long is None else too_long - 1, bound="search"),
        batch=Largest(value=None, at_most=None, bound="search"),
    )


def _limits(demand: TransformersDemand, card: Gpu) -> CardLimits:
    run = demand.run
    available, required = demand.available_bytes(card), demand.requirement(run.batch, run.prompt_tokens)
    room = available - required.context_high_bytes
    search = Search(demand, available, required, beyond_limit=False)
    return CardLimits(
        gpu=card,
        available_bytes=available,
        context=search.largest_context(run.batch, room, requested=run.prompt_tokens),
        batch=search.largest_batch(run.prompt_tokens, room, requested=run.batch),
    )


def savings(memory: MemoryReport) -> tuple[Saving, ...]:
    """What a smaller cache and smaller weights save, the largest saving first: those of `fit`'s changes that take no trace."""
    if not memory.report.settled or memory.report.known.unread is not None:
        return ()
    demand = TransformersDemand(memory.report, memory.run, NO_CARD)
    alternatives = (
        alternative
        for choice in changes(demand, memory.report, memory.run, NO_CARD)
        if choice.shown == "all"
        for alternative in choice.alternatives
    )
    saved = (_saving(memory, alternative) for alternative in alternatives)
    worthwhile = (saving for saving in saved if saving.saved_bytes > 0)
    return tuple(sorted(worthwhile, key=lambda saving: saving.saved_bytes, reverse=True))


def _saving(memory: MemoryReport, alternative: Alternative[Run]) -> Saving:
    run, changed = memory.run, alternative.report or memory.report
    if alternative.kind == "cache":
        before, after = (
            report.cache.size_bytes(tokens=run.cached_tokens, batch=run.batch) for report in (memory.report, changed)
        )
    else:
        packed = None if alternative.required is None else dict(alternative.required.terms)["weights"]
        before, after = memory.predicted.steady.weights, changed.tree.size_bytes if packed is None else packed
    return Saving(kind=alternative.kind, change=alternative.change, before_bytes=before, after_bytes=after)

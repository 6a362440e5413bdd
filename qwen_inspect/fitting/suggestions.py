"""Changes to a request that does not fit a card. The engine computes the demand of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..engines.interface import Alternative, AnyDemand, Choice, Demand, Engine, Request
from ..errors import QwenInspectError
from ..language import Message
from ..progress import purpose
from ..results.fit import CardAnswer, Change, Gpu, Requirement, Suggestion
from ..results.model import Report


def smaller(
    engine: Engine[Request, AnyDemand], demand: Demand, answer: CardAnswer, *, batch: int, context_tokens: int
) -> Iterator[Suggestion]:
    """A shorter context and a smaller batch, each the largest that fits; of a run of which only a lower bound is known, the
    largest that may."""
    whole, high = answer.requirement.whole, answer.high
    shorter, fewer = ((most.value if whole else most.at_most) or 0 for most in (high.context, high.batch))
    changes: tuple[tuple[Change, int, int, tuple[int, int]], ...] = (
        ("context", shorter, context_tokens, (batch, shorter)),
        ("batch", fewer, batch, (fewer, context_tokens)),
    )
    for message, (kind, value, requested, changed) in zip(engine.smaller, changes, strict=True):
        if 0 < value < requested:
            yield Suggestion(
                kind=kind,
                change=Message(message, value=value, asked=requested),
                required_bytes=demand.held_bytes(*changed) + answer.requirement.context_high_bytes,
                fits=True if whole else None,
                whole=whole,
            )


def changes(
    engine: Engine[Request, AnyDemand], demand: AnyDemand, report: Report, request: Request, gpu: Gpu
) -> Iterator[Suggestion]:
    """The engine's alternatives, of each choice those that it shows."""
    for choice in engine.changes(demand, report, request, gpu):
        tried = (_tried(engine, alternative) for alternative in choice.alternatives)
        yield from _shown(choice, (suggestion for suggestion in tried if suggestion is not None))


def _shown(choice: Choice[Request], tried: Iterable[Suggestion]) -> Iterable[Suggestion]:
    match choice.shown:
        case "all":
            return tried
        case "until":
            return _until_it_fits(tried)
        case "first":
            return tuple(_until_it_fits(tried))[-1:]


def _until_it_fits(suggestions: Iterable[Suggestion]) -> Iterator[Suggestion]:
    for suggestion in suggestions:
        yield suggestion
        if suggestion.fits is not False:
            return


def _tried(engine: Engine[Request, AnyDemand], change: Alternative[Request]) -> Suggestion | None:
    """The change with the engine's requirement, else with the alternative's own; None if neither is known."""
    without_engine = None if change.required is None else _suggestion(change, change.required, change.gpu.room_bytes)
    if change.report is None:
        return without_engine
    try:
        with purpose(Message("purpose_suggestion", change=change.change)):
            demand = engine.demand(change.report, change.request, change.gpu)
            required = demand.total(change.request.batch, change.request.context_tokens or 0)
    except QwenInspectError:
        return without_engine
    return _suggestion(change, required, demand.available_bytes(change.gpu))


def _suggestion(change: Alternative[Request], required: Requirement, available_bytes: int) -> Suggestion:
    enough = required.high_bytes <= available_bytes
    return Suggestion(
        kind=change.kind,
        change=change.change,
        required_bytes=required.high_bytes,
        fits=enough if required.whole or not enough else None,
        whole=required.whole,
        bounded=not required.whole and required.most_bytes is not None and required.most_bytes <= available_bytes,
    )

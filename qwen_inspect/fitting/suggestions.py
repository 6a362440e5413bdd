"""What to change where a request does not fit a card: an engine's alternatives, each asked of the engine as the request was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..engines.interface import Alternative, Asked, Choice, Demand, Engine, Taken
from ..errors import QwenInspectError
from ..language import Message
from ..progress import purpose
from ..results.fit import CardAnswer, Change, Gpu, Requirement, Suggestion
from ..results.model import Report


def smaller(
    engine: Engine[Asked, Taken], demand: Demand, found: CardAnswer, *, batch: int, context_tokens: int
) -> Iterator[Suggestion]:
    """A shorter context and a smaller batch, each the largest that fits."""
    context, fewer = found.high.context.at_most or 0, found.high.batch.at_most or 0
    whole = found.requirement.whole
    changes: tuple[tuple[Change, int, int, tuple[int, int]], ...] = (
        ("context", context, context_tokens, (batch, context)),
        ("batch", fewer, batch, (fewer, context_tokens)),
    )
    for message, (kind, value, asked, changed) in zip(engine.smaller, changes, strict=True):
        if 0 < value < asked:
            yield Suggestion(
                kind=kind,
                change=Message(message, value=value, asked=asked),
                required_bytes=demand.held_bytes(*changed) + found.requirement.context_high_bytes,
                fits=True if whole else None,
                whole=whole,
            )


def changes(engine: Engine[Asked, Taken], report: Report, asked: Asked, gpu: Gpu) -> Iterator[Suggestion]:
    """The engine's alternatives as far as they are shown."""
    for choice in engine.changes(report, asked, gpu):
        yield from _shown(
            choice, (found for alternative in choice.alternatives if (found := _tried(engine, alternative)) is not None)
        )


def _shown(choice: Choice[Asked], tried: Iterable[Suggestion]) -> Iterable[Suggestion]:
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


def _tried(engine: Engine[Asked, Taken], change: Alternative[Asked]) -> Suggestion | None:
    """What the engine says of a change, else what is known without it; None where neither is known."""
    known = None if change.required is None else _suggestion(change, change.required, change.gpu.room_bytes)
    if change.report is None:
        return known
    try:
        with purpose(Message("purpose_suggestion", change=change.change)):
            demand = engine.demand(change.report, change.asked, change.gpu)
            required = demand.requirement(change.asked.batch, change.asked.context_tokens or 0)
    except QwenInspectError:
        return known
    return _suggestion(change, required, demand.available_bytes(change.gpu))


def _suggestion(change: Alternative[Asked], required: Requirement, available_bytes: int) -> Suggestion:
    enough = required.high_bytes <= available_bytes
    return Suggestion(
        kind=change.kind,
        change=change.change,
        required_bytes=required.high_bytes,
        fits=enough if required.whole or not enough else None,
        whole=required.whole,
        bounded=not required.whole and required.most_bytes is not None and required.most_bytes <= available_bytes,
    )

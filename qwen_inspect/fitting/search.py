"""A model, a run and cards -> what fits, how far it goes, and which changes would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

from ..bisection import largest
from ..checkpoint import DType
from ..engines import engine_of
from ..engines.interface import Asked, Demand, Engine, Taken
from ..engines.transformers.demand import TransformersDemand, calibration_of
from ..errors import UnsupportedError, UsageError
from ..language import Message
from ..loaders import calibration, gpus
from ..predicting.predict import installed, with_kernel
from ..progress import purpose
from ..results.fit import (
    Bound,
    CardAnswer,
    CardReach,
    ContextFit,
    CurvePoint,
    Ends,
    FitReport,
    Gpu,
    Largest,
    Requirement,
)
from ..results.memory import Run
from ..results.model import Report
from ..units import size
from . import suggestions

MOST_BATCH = 1 << 16
MOST_CONTEXT_TOKENS = 1 << 24  # where the model's own limit is not to count
CURVE_CONTEXTS = (1024, 4096, 16_384, 65_536, 262_144)  # few: each takes several replays, of 94 layers 10 ms each


def cards(names: str | None, memory: tuple[str, int] | None = None) -> tuple[Gpu, ...]:
    """The cards of a list of names; "auto" for those of this machine, or one of which only the memory is said (text, bytes).

    UsageError for names that mean no card or several, or the same one twice; UnavailableError where this machine tells of none.
    """
    if (names is None) == (memory is None):
        raise UsageError("fit_needs_card" if names is None else "fit_card_twice")
    if memory is not None:
        text, size_bytes = memory
        return (Gpu(name=text, kind="given", memory_bytes=size_bytes),)
    assert names is not None
    named = [_named(name.strip()) for name in names.split(",")]
    if twice := [one[0].name for index, one in enumerate(named) if one in named[:index]]:
        raise UsageError("fit_card_named_twice", name=twice[0])
    return tuple(chain.from_iterable(named))


def card_name(name: str) -> str:
    """What a prediction calls the card that `name` means: as it was measured under, else as the table has it.

    UsageError for a name that means no card or several, and was not measured here.
    """
    if calibration.find(name, installed()) is not None:
        return name
    card = gpus.find(name)
    measured = calibration_of(card)
    return card.name if measured is None else measured.gpu


def _named(name: str) -> tuple[Gpu, ...]:
    if name != "auto":
        return (gpus.find(name),)
    from ..measuring.device import cards_here

    return tuple(map(_as_known, cards_here()))


def _as_known(card: Gpu) -> Gpu:
    """What CUDA told a process of such a card, where that is less than what its driver leaves: CUDA takes some for itself."""
    alike = (one for one in gpus.table() if card.name in one.device_names and one.reported_bytes == card.reported_bytes)
    told = [one.usable_bytes for one in (card, *alike) if one.usable_bytes is not None]
    return replace(card, usable_bytes=min(told, default=None))


def fit(report: Report, run: Run, cards: Sequence[Gpu], *, beyond_limit: bool = False) -> FitReport:
    """Whether `run` fits each of `cards`, and how far it goes there. beyond_limit: contexts past the model's own limit too.

    What `predict` raises for a run that cannot be predicted at all is raised. `refusal` says why only a lower bound is known.
    """
    engine: Engine[Run, TransformersDemand] = engine_of("transformers")
    cards_answers: list[CardAnswer] = []
    assumptions: dict[Message, None] = {}
    read, refusal = report, None
    run = with_kernel(run, report)
    for demand, found in answers(engine, report, run, cards, beyond_limit=beyond_limit):
        memory = demand.predicted(run.batch, run.prompt_tokens)
        read = memory.report
        assumptions |= {
            assumption: None for assumption in memory.predicted.assumptions if assumption.key != "assume_context"
        }
        cards_answers.append(replace(found, notices=(*found.notices, *_of_dtypes(report, found.gpu))))
        if memory.predicted.peak_reserved is None and not found.likely:
            refusal = memory.refusal or UnsupportedError("fit_lower_bound")
    return FitReport(
        report=read,
        run=run,
        engine=engine.name,
        cards=tuple(cards_answers),
        assumptions=tuple(assumptions),
        refusal=refusal,
    )


def answers(
    engine: Engine[Asked, Taken], report: Report, asked: Asked, cards: Sequence[Gpu], *, beyond_limit: bool
) -> Iterator[tuple[Taken, CardAnswer]]:
    """For each card what the engine takes of it, what fits there, and what to change where it does not."""
    batch, tokens = asked.batch, asked.context_tokens or 0
    for gpu in cards:
        demand = engine.demand(report, asked, gpu)
        found = answer(demand, gpu, batch=batch, context_tokens=tokens, beyond_limit=beyond_limit)
        if found.high.fits is False:
            shorter = suggestions.smaller(engine, demand, found, batch=batch, context_tokens=tokens)
            found = replace(found, suggestions=(*shorter, *suggestions.changes(engine, report, asked, gpu)))
        yield demand, found


def _of_dtypes(report: Report, gpu: Gpu) -> Iterator[Message]:
    """What a card does otherwise with numbers that its tensor cores do not compute in.

    Source: transformers 5.23, quantizer_finegrained_fp8.py, validate_environment; torch 2.13, torch/cuda/__init__.py,
    is_bf16_supported, which counts emulation
    """
    if report.design is None:
        return
    quantised = report.design.quantised
    if quantised is not None and quantised.method == "fp8" and gpu.supports("fp8") is False:
        yield Message("card_dequantises", name=gpu.name)
    if report.design.spec.dtype is DType.BF16 and gpu.supports("bfloat16") is False:
        yield Message("card_emulates", name=gpu.name)


def answer(demand: Demand, gpu: Gpu, *, batch: int, context_tokens: int, beyond_limit: bool = False) -> CardAnswer:
    """Whether what a demand needs for a batch and a context fits a card, and how far it goes there, at both ends of the range."""
    available = demand.available_bytes(gpu)
    required = demand.requirement(batch, context_tokens)
    search = _Search(demand, available, required, beyond_limit=beyond_limit)
    # With more room first: what is too large then need not be looked at again.
    low = search.ends(batch, context_tokens, context_bytes=required.context_low_bytes)
    high = search.ends(batch, context_tokens, context_bytes=required.context_high_bytes)
    return CardAnswer(
        gpu=gpu,
        available_bytes=available,
        requirement=required,
        high=high,
        low=low,
        cache_tokens=None if not high.context.value else demand.cache_tokens(batch, high.context.value),
        calibrated=required.context_low_bytes == required.context_high_bytes,
        passes_by_release=None
        if high.fits is not False or not required.whole or demand.least_bytes(batch, context_tokens) > available
        else demand.passes(batch, context_tokens, available - required.context_high_bytes),
        curve=search.curve(batch, context_tokens, available - required.context_high_bytes) if demand.quick else (),
        notices=tuple(_in_use(gpu)),
    )


def _in_use(gpu: Gpu) -> Iterator[Message]:
    if gpu.room_bytes < gpu.available_bytes:
        used = size(gpu.available_bytes - gpu.room_bytes)
        yield Message("card_in_use", used=used, usable=size(gpu.available_bytes), free=size(gpu.room_bytes))


def reach(report: Report, run: Run, gpu: Gpu, contexts: Sequence[int]) -> CardReach:
    """Whether a run fits a card with each of `contexts`, and the largest context that does; what `predict` raises is raised."""
    demand = TransformersDemand(report, run, gpu)
    available, required = demand.available_bytes(gpu), demand.requirement(run.batch, run.prompt_tokens)
    search = _Search(demand, available, required, beyond_limit=False)
    return CardReach(
        gpu=gpu,
        available_bytes=available,
        contexts=tuple(search.context(run.batch, tokens, required.context_high_bytes) for tokens in contexts),
        largest=search.largest_context(run.batch, available - required.context_high_bytes, asked=run.prompt_tokens),
    )


class _Search:
    """Questions to one demand on one card."""

    def __init__(self, demand: Demand, available_bytes: int, required: Requirement, *, beyond_limit: bool) -> None:
        self._demand = demand
        self._available_bytes = available_bytes
        self._whole = required.whole
        self._context_high_bytes = required.context_high_bytes
        limit = None if beyond_limit else demand.most_context_tokens
        self._most_context = MOST_CONTEXT_TOKENS if limit is None else limit
        self._context_bound: Bound = "search" if limit is None else "model"

    def ends(self, batch: int, context_tokens: int, *, context_bytes: int) -> Ends:
        required = self._demand.held_bytes(batch, context_tokens) + context_bytes
        enough = required <= self._available_bytes
        room = self._available_bytes - context_bytes
        return Ends(
            required_bytes=required,
            fits=enough if self._whole or not enough else None,
            margin_bytes=self._available_bytes - required,
            context=self.largest_context(batch, room, asked=context_tokens),
            batch=self.largest_batch(context_tokens, room, asked=batch),
        )

    def context(self, batch: int, context_tokens: int, context_bytes: int) -> ContextFit:
        if context_tokens > self._most_context:
            return ContextFit(context_tokens=context_tokens, required_bytes=None, fits=None)
        required = self._demand.held_bytes(batch, context_tokens) + context_bytes
        enough = required <= self._available_bytes
        fits = enough if self._whole or not enough else None
        return ContextFit(context_tokens=context_tokens, required_bytes=required, fits=fits)

    def largest_context(self, batch: int, room: int, *, asked: int) -> Largest:
        step = self._demand.context_step
        fits = _told("context", lambda tokens: self._demand.fits(batch, tokens, room))
        found = step * largest(lambda steps: fits(step * steps), self._most_context // step, asked=asked // step)
        if found < asked <= self._most_context and asked % step and fits(asked):
            found = asked
        limit = self._most_context // step * step
        return bounded(found, limit=limit, bound=self._context_bound, whole=self._whole)

    def largest_batch(self, context_tokens: int, room: int, *, asked: int) -> Largest:
        fits = _told("batch", lambda batch: self._demand.fits(batch, context_tokens, room))
        found = largest(fits, MOST_BATCH, asked=asked)
        return bounded(found, limit=MOST_BATCH, bound="search", whole=self._whole)

    def curve(self, batch: int, context_tokens: int, room: int) -> tuple[CurvePoint, ...]:
        """The largest batch for usual contexts; without a limit of the model's own, up to what one sequence can have.

        Nothing where that is not known.
        """
        longest = self._most_context
        if self._context_bound != "model":
            most = self.largest_context(1, room, asked=context_tokens).at_most
            if most is None:
                return ()
            longest = most
        return tuple(
            CurvePoint(context_tokens=tokens, batch=self.largest_batch(tokens, room, asked=batch))
            for tokens in curve_contexts(context_tokens, longest)
        )


def _told(what: str, fits: Callable[[int], bool]) -> Callable[[int], bool]:
    """The same question; who waits is told what is known so far."""
    most, least = 0, None  # the largest that fits, the smallest that does not

    def asked(value: int) -> bool:
        nonlocal most, least
        known = Message("purpose_from", low=most) if least is None else Message("purpose_between", low=most, high=least)
        with purpose(Message(f"purpose_{what}", known=known)):
            found = fits(value)
        if found:
            most = max(most, value)
        else:
            least = value if least is None else min(least, value)
        return found

    return asked


def bounded(value: int, *, limit: int, bound: Bound, whole: bool) -> Largest:
    """`value` as an answer: what stops it, and whether it is certain. bound: what `limit` stands for.

    Where a lower bound fits as far as was searched, the search's own end says nothing of what is the most.
    """
    if value < limit:
        bound = "memory"
    unknown = bound == "search" and not whole
    return Largest(value=value if whole else None, at_most=None if unknown else value, bound=bound)


def curve_contexts(asked: int, limit: int) -> Sequence[int]:
    """Usual contexts up to a limit, the one asked for, and the limit where it is not a usual one."""
    return sorted({tokens for tokens in (*CURVE_CONTEXTS, asked) if tokens <= limit} | {limit})

"""Whether a run fits each card, the largest context and batch there, and changes that would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ..bisection import largest
from ..checkpoint import DType
from ..engines import engine_of
from ..engines.interface import AnyDemand, Demand, Engine, Request
from ..errors import UnsupportedError
from ..language import Message
from ..loaders import gpus
from ..progress import purpose, working
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
from ..typed import TYPE_CHECKING
from ..units import size
from ..values import replace
from . import suggestions
from .cards import cards as cards

if TYPE_CHECKING:
    from ..engines.transformers.demand import TransformersDemand
    from .media import Seen

MOST_BATCH = 1 << 16
MOST_CONTEXT_TOKENS = 1 << 24  # if the model's own limit is ignored
CURVE_CONTEXTS = (
    1024,
    4096,
    16_384,
    65_536,
    262_144,
)  # few, since each takes several replays (10 ms each for 94 layers)


def card_name(name: str) -> str:
    """The name under which a prediction looks a card up: that of its measurement on this machine, else the table's.

    UsageError for a name that was not measured here and matches no card or several.
    """
    from ..engines.transformers.on_card import calibration_of
    from ..loaders import calibration
    from ..predicting.sources import installed

    if calibration.find(name, installed()) is not None:
        return name
    card = gpus.find(name)
    measured = calibration_of(card)
    return card.name if measured is None else measured.gpu


def fit(
    report: Report, run: Run, cards: Sequence[Gpu], *, beyond_limit: bool = False, seen: Seen | None = None
) -> FitReport:
    """Whether `run` fits each of `cards`, and the largest context and batch there.

    beyond_limit: try contexts past the model's own limit too. seen: the images and videos of a run that has any; the largest
    are then searched, and no context and batch. Raises what `predict` raises; `refusal` of the answer says why only
    a lower bound is known.
    """
    from ..predicting.sources import with_kernel

    engine: Engine[Run, TransformersDemand] = engine_of("transformers")
    card_answers: list[CardAnswer] = []
    assumptions: dict[Message, None] = {}
    noted, refusal = report, None
    run = with_kernel(run, report)
    unsearched = _unsearched(report, run)
    if unsearched is not None:
        from .media import unsearched as answers_alone

        each_card = answers_alone(engine, report, run, cards)
        assumptions[unsearched] = None
    elif run.media is None:
        each_card = answers(engine, report, run, cards, beyond_limit=beyond_limit)
    else:
        from .media import answers as media_answers

        each_card = media_answers(engine, report, run, cards, seen)
    for demand, card_answer in each_card:
        memory = demand.predicted(run.batch, run.prompt_tokens)
        noted = memory.report  # with the notices of the prediction
        assumptions |= {
            assumption: None for assumption in memory.predicted.assumptions if assumption.key != "assume_context"
        }
        given = [Message("card_given")] if card_answer.gpu.kind == "given" else []
        notices = *card_answer.notices, *given, *_dtype_notices(report, card_answer.gpu)
        card_answers.append(replace(card_answer, notices=notices))
        if memory.predicted.peak_reserved is None and not card_answer.likely:
            refusal = memory.refusal or _only_lower_bound(memory.predicted.assumptions)
    return FitReport(
        report=noted,
        run=run,
        engine=engine.name,
        cards=tuple(card_answers),
        assumptions=tuple(assumptions),
        refusal=refusal,
    )


def _unsearched(report: Report, run: Run) -> Message | None:
    """Why no context and batch is searched: sequences in one row, and a fused loss or a moving average around a run of which each
    length would have to be traced; None if they are.
    """
    loop = run.loop
    if loop.padding_free:
        return Message("fit_unsearched", option="--padding-free")
    if loop.loss == "model" and not loop.ema:
        return None
    from ..predicting.families.shallow_training import same_events_above

    if same_events_above(report, run) is None:
        return Message("fit_unsearched", option="--ema" if loop.ema else f"--loss {loop.loss}")
    return None


def _only_lower_bound(assumptions: Sequence[Message]) -> UnsupportedError:
    without_torch = next((message for message in assumptions if message.key == "assume_no_torch"), None)
    return (
        UnsupportedError("fit_lower_bound")
        if without_torch is None
        else UnsupportedError("fit_no_torch", **without_torch.values)
    )


def answers(
    engine: Engine[Request, AnyDemand], report: Report, request: Request, cards: Sequence[Gpu], *, beyond_limit: bool
) -> Iterator[tuple[AnyDemand, CardAnswer]]:
    """For each card the engine's demand and what fits, with suggestions if the request does not."""
    batch, tokens = request.batch, request.context_tokens or 0
    for gpu in cards:
        demand = engine.demand(report, request, gpu)
        card_answer = answer(demand, gpu, batch=batch, context_tokens=tokens, beyond_limit=beyond_limit)
        if card_answer.high.fits is False:
            smaller = suggestions.smaller(engine, demand, card_answer, batch=batch, context_tokens=tokens)
            changes = suggestions.changes(engine, demand, report, request, gpu)
            card_answer = replace(card_answer, suggestions=(*smaller, *changes))
        yield demand, card_answer


def _dtype_notices(report: Report, gpu: Gpu) -> Iterator[Message]:
    """Notices for number formats that the card's tensor cores do not support.

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
    """Whether a demand fits a card for this batch and context, and the largest ones that do, at both ends of the range."""
    available = demand.available_bytes(gpu)
    required = demand.requirement(batch, context_tokens)
    search = Search(demand, available, required, beyond_limit=beyond_limit)
    # The end with more room first: what is too large there is too large at the other.
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
        notices=(*_in_use(gpu), *_unlike_cuda(gpu)),
    )


def _in_use(gpu: Gpu) -> Iterator[Message]:
    if gpu.room_bytes < gpu.available_bytes:
        used = size(gpu.available_bytes - gpu.room_bytes)
        yield Message("card_in_use", used=used, usable=size(gpu.available_bytes), free=size(gpu.room_bytes))


def _unlike_cuda(gpu: Gpu) -> Iterator[Message]:
    """Notices for what a prediction of CUDA cannot know of this GPU."""
    if gpu.maker != "nvidia":
        yield Message("card_not_cuda", name=gpu.name)
    if gpu.unified:
        yield Message("card_unified", name=gpu.name)


def reach(report: Report, run: Run, gpu: Gpu, contexts: Sequence[int]) -> CardReach:
    """Whether a run fits a card with each of `contexts`, and the largest context that does. Raises what `predict` raises."""
    from ..engines.transformers.demand import TransformersDemand

    demand = TransformersDemand(report, run, gpu)
    available, required = demand.available_bytes(gpu), demand.requirement(run.batch, run.prompt_tokens)
    search = Search(demand, available, required, beyond_limit=False)
    return CardReach(
        gpu=gpu,
        available_bytes=available,
        contexts=tuple(search.context(run.batch, tokens, required.context_high_bytes) for tokens in contexts),
        largest=search.largest_context(run.batch, available - required.context_high_bytes, requested=run.prompt_tokens),
    )


class Search:
    """Searches one demand on one card for what fits."""

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
            context=self.largest_context(batch, room, requested=context_tokens),
            batch=self.largest_batch(context_tokens, room, requested=batch),
        )

    def context(self, batch: int, context_tokens: int, context_bytes: int) -> ContextFit:
        if context_tokens > self._most_context:
            return ContextFit(context_tokens=context_tokens, required_bytes=None, fits=None)
        required = self._demand.held_bytes(batch, context_tokens) + context_bytes
        enough = required <= self._available_bytes
        fits = enough if self._whole or not enough else None
        return ContextFit(context_tokens=context_tokens, required_bytes=required, fits=fits)

    def largest_context(self, batch: int, room: int, *, requested: int) -> Largest:
        step = self._demand.context_step
        tried = _Tried("context", lambda tokens: self._demand.fits(batch, tokens, room))

        def search(fits: Callable[[int], bool]) -> int:
            most, asked = self._most_context // step, requested // step
            tokens = step * largest(lambda steps: fits(step * steps), most, asked=asked)
            in_reach = tokens < requested <= self._most_context and requested % step > 0
            return requested if in_reach and fits(requested) else tokens

        limit = self._most_context // step * step
        return self._answer(tried, search, limit, self._context_bound)

    def largest_batch(self, context_tokens: int, room: int, *, requested: int) -> Largest:
        tried = _Tried("batch", lambda batch: self._demand.fits(batch, context_tokens, room))
        return self._answer(tried, lambda fits: largest(fits, MOST_BATCH, asked=requested), MOST_BATCH, "search")

    def _answer(
        self, tried: _Tried, search: Callable[[Callable[[int], bool]], int], limit: int, bound: Bound
    ) -> Largest:
        """The largest that fits; where a larger one may fit, of which only a lower bound is known, the largest that may."""
        found = bounded(search(tried), limit=limit, bound=bound, whole=self._whole)
        if found.value is None or tried.unknown <= found.value:
            return found
        return bounded(search(tried.may_fit), limit=limit, bound=bound, whole=False)

    def curve(self, batch: int, context_tokens: int, room: int) -> tuple[CurvePoint, ...]:
        """The largest batch for usual contexts, up to the model's limit, else up to what fits with one sequence.

        Empty if that is unknown.
        """
        longest = self._most_context
        if self._context_bound != "model":
            most = self.largest_context(1, room, requested=context_tokens).at_most
            if most is None:
                return ()
            longest = most
        return tuple(
            CurvePoint(context_tokens=tokens, batch=self.largest_batch(tokens, room, requested=batch))
            for tokens in curve_contexts(context_tokens, longest)
        )


class _Tried:
    """Whether values fit, with the bounds found so far as progress. what: "context" or "batch". fits: None if it is not known.

    unknown: the largest value of which it was not known.
    """

    def __init__(self, what: str, fits: Callable[[int], bool | None]) -> None:
        self._what, self._fits = what, fits
        self._low = self.unknown = 0  # _low: the largest that fits
        self._high: int | None = None  # the smallest that does not

    def __call__(self, value: int) -> bool:
        return bool(self._try(value))

    def may_fit(self, value: int) -> bool:
        return self._try(value) is not False

    def _try(self, value: int) -> bool | None:
        low, high = self._low, self._high
        bounds = Message("purpose_from", low=low) if high is None else Message("purpose_between", low=low, high=high)
        what_for = Message(f"purpose_{self._what}", known=bounds)
        with purpose(what_for), working(f"working_search_{self._what}", value=value, known=bounds):
            does_fit = self._fits(value)
        if does_fit:
            self._low = max(low, value)
        elif does_fit is None:
            self.unknown = max(self.unknown, value)
        else:
            self._high = value if high is None else min(high, value)
        return does_fit


def bounded(value: int, *, limit: int, bound: Bound, whole: bool) -> Largest:
    """`value` as an answer, with what bounds it and whether it is certain. bound: what `limit` stands for.

    If only a lower bound of the requirement is known (not `whole`) and it fits up to the search's end, the most is unknown.
    """
    if value < limit:
        bound = "memory"
    unknown = bound == "search" and not whole
    return Largest(value=value if whole else None, at_most=None if unknown else value, bound=bound)


def curve_contexts(requested: int, limit: int) -> Sequence[int]:
    """Usual contexts and the requested one, up to `limit`, and `limit` itself."""
    return sorted({tokens for tokens in (*CURVE_CONTEXTS, requested) if tokens <= limit} | {limit})

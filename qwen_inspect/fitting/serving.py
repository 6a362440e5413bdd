"""What an engine reserves of each card, whether it fits, and the largest context and batch there."""

from __future__ import annotations

from collections.abc import Sequence

from ..architectures.thinkers import refuse_whole
from ..engines import engine_of
from ..errors import UsageError
from ..language import Message
from ..results.fit import Gpu
from ..results.model import Report
from ..results.serving import EngineCard, Serving, ServingReport, VllmReserve
from ..typed import TYPE_CHECKING
from ..units import size
from ..values import replace
from .search import answers

if TYPE_CHECKING:
    from ..engines.sglang.command import Command as SglangCommand
    from ..engines.vllm.command import Command
    from ..engines.vllm.log import Log


def serve_command(
    report: Report,
    command: Command | SglangCommand,
    cards: Sequence[Gpu],
    *,
    beyond_limit: bool = False,
    log: Log | None = None,
) -> ServingReport:
    """A pasted command of vLLM or SGLang; with --max-model-len auto the longest sequence that fits.

    A log names its version and card.
    """
    serving = command.serving
    answer = serve_logged(report, serving, cards, beyond_limit=beyond_limit, log=log)
    longest = answer.cards[answer.deciding].answer.high.context.value
    if command.automatic and answer.fits is False and longest:
        shorter = replace(serving, context_tokens=longest)
        answer = serve_logged(report, shorter, cards, beyond_limit=beyond_limit, log=log)
    if command.ignored:
        notice = Message("vllm_ignored", options=", ".join(command.ignored))
        answer = replace(answer, report=replace(answer.report, notices=(*answer.report.notices, notice)))
    return answer


def serve_logged(
    report: Report, serving: Serving, cards: Sequence[Gpu], *, beyond_limit: bool = False, log: Log | None = None
) -> ServingReport:
    """`serve`, with a log of vLLM or SGLang beside it: of its version and on its card, where it names them."""
    if log is None:
        return serve(report, serving, _as_reported(report, serving, cards), beyond_limit=beyond_limit)
    if serving.engine == "sglang":
        return _sglang_logged(report, serving, cards, beyond_limit=beyond_limit, log=log)
    from ..engines.vllm.log import beside

    serving = replace(serving, logs=())
    serving = replace(serving, version=serving.version or log.version)
    if log.total_bytes is not None and serving.kv_budget_bytes is None:
        cards = [replace(card, usable_bytes=log.total_bytes) for card in cards]
    answer = serve(report, serving, cards, beyond_limit=beyond_limit)
    reserve = answer.cards[answer.deciding].reserve
    assert isinstance(reserve, VllmReserve)
    return replace(answer, log=tuple(beside(log, reserve)))


def _sglang_logged(
    report: Report, serving: Serving, cards: Sequence[Gpu], *, beyond_limit: bool, log: Log
) -> ServingReport:
    from ..engines.sglang.demand import SglangDemand
    from ..engines.sglang.log import beside

    serving = replace(serving, logs=(), version=serving.version or log.version)
    answer = serve(report, serving, cards, beyond_limit=beyond_limit)
    demand = SglangDemand(answer.report, answer.serving, cards[answer.deciding])
    return replace(answer, log=tuple(beside(log, demand)))


def _as_reported(report: Report, serving: Serving, cards: Sequence[Gpu]) -> Sequence[Gpu]:
    """Cards of the table with the memory that CUDA reported to an earlier run whose log counts."""
    if not serving.logs or serving.engine != "vllm":
        return cards
    from ..engines.vllm.calibrating import matching
    from ..engines.vllm.releases import release

    def reported(card: Gpu) -> Gpu:
        log = matching(report, serving, card.name, release(serving.version))
        total_bytes = None if log is None else log.total_bytes
        return card if card.origin != "usable" or total_bytes is None else replace(card, usable_bytes=total_bytes)

    return [reported(card) for card in cards]


def serve(report: Report, serving: Serving, cards: Sequence[Gpu], *, beyond_limit: bool = False) -> ServingReport:
    """What `serving.engine` reserves of each of `cards`, and what fits there.

    Raises UnsupportedError for a model that the engine does not serve or whose reserve is unknown; UsageError for a budget
    smaller than a block.
    """
    refuse_whole(report.config or {})
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

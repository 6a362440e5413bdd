"""Answers about vLLM and SGLang with the logs of earlier runs: used, ignored or forgotten, and a log that is read now is kept."""

from __future__ import annotations

from collections.abc import Callable

from ..loaders import served_logs
from ..results.serving import VllmReserve
from ..typed import TYPE_CHECKING, Literal
from ..values import replace

if TYPE_CHECKING:
    from ..engines.vllm.log import Log
    from ..results.gpu import Gpu
    from ..results.serving import ServedLog, Serving, ServingReport


def calibrated(
    served: Callable[[Serving], ServingReport],
    serving: Serving,
    calibration: Literal["use", "ignore", "forget"],
    *,
    log: Log | None,
) -> ServingReport:
    """The answer of `served`. log: read beside it on a card with a name; it is kept with "use".

    forget: what is kept for this card, version, class and number of ranks is removed first.
    """
    if calibration == "ignore":
        return served(serving)
    entries = served_logs.kept() if log is None else ()
    answer = served(replace(serving, logs=entries))
    if (card := answer.cards[answer.deciding].gpu) is None:
        return answer
    if calibration == "forget":
        key = _key(answer, card.name)
        served_logs.forget(entry for entry in served_logs.kept() if entry.key == key)
        return served(serving)
    if log is not None and answer.log is not None:
        import datetime

        date = datetime.date.today().isoformat()
        entry = _entry(log, answer, card, date)
        if entry is not None:
            served_logs.keep(entry)
    return answer


def _key(answer: ServingReport, card: str) -> object:
    if answer.serving.engine == "sglang":
        from ..engines.sglang.calibrating import key_of as sglang_key

        return sglang_key(answer.report, answer.serving, card)
    from ..engines.vllm.calibrating import key_of
    from ..engines.vllm.releases import release

    return key_of(answer.report, answer.serving, card, release(answer.serving.version))


def _entry(log: Log, answer: ServingReport, card: Gpu, date: str) -> ServedLog | None:
    report, serving, reserve = answer.report, answer.serving, answer.cards[answer.deciding].reserve
    if isinstance(reserve, VllmReserve):
        from ..engines.vllm.calibrating import served_log

        return served_log(log, answer.log or (), reserve, report, serving, card.name, date=date)
    from ..engines.sglang.calibrating import served_log as sglang_log

    weights_bytes = next(term.least_bytes for term in reserve.terms if term.name == "weights")
    total_bytes = card.available_bytes
    return sglang_log(log, report, serving, card.name, total_bytes=total_bytes, weights_bytes=weights_bytes, date=date)

"""Answers about vLLM with the logs of earlier runs: used, ignored or forgotten, and a log that is read now is kept."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from ..engines.vllm.calibrating import key_of, served_log
from ..engines.vllm.releases import release
from ..loaders import served_logs
from ..values import replace

if TYPE_CHECKING:
    from ..engines.vllm.log import Log
    from ..results.serving import Serving, ServingReport


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
        key = key_of(answer.report, answer.serving, card.name, release(answer.serving.version))
        served_logs.forget(entry for entry in served_logs.kept() if entry.key == key)
        return served(serving)
    if log is not None and answer.log is not None:
        date = datetime.date.today().isoformat()
        entry = served_log(log, answer.log, answer.report, answer.serving, card.name, date=date)
        if entry is not None:
            served_logs.keep(entry)
    return answer

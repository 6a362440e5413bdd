"""What a log of SGLang tells of later runs on the same card, with the same version, class and number of ranks."""

from __future__ import annotations

from ...results.model import Report
from ...results.serving import ServedLog, Serving
from ...typed import TYPE_CHECKING
from ...units import GIB
from .release import VERSION

if TYPE_CHECKING:
    from ..vllm.log import Log

ROUNDING_BYTES = GIB // 50  # of two figures of 0.01 GiB, and what is taken between weights and pools
Key = tuple[str, str, str, int, int, int, bool]


def key_of(report: Report, serving: Serving, card: str) -> Key:
    """As `ServedLog.key`; the version has the engine's name before it."""
    spec = report.spec
    return (card.casefold(), _version(serving), spec.class_name, spec.vocab_size, serving.ranks, 1, False)


def matching(report: Report, serving: Serving, card: str) -> ServedLog | None:
    key = key_of(report, serving, card)
    return next((log for log in serving.logs if log.key == key), None)


def served_log(
    log: Log, report: Report, serving: Serving, card: str, *, total_bytes: int, weights_bytes: int, date: str
) -> ServedLog | None:
    """What was taken before the weights, as `non_torch_bytes`, and of the weights beyond their size; None if not printed."""
    if "free_before" not in log.printed:
        return None
    before = int(float(log.printed["free_before"]) * GIB)
    loaded = int(float(log.printed["weights"]) * GIB) - weights_bytes if "weights" in log.printed else 0
    return ServedLog(
        card=card,
        version=_version(serving),
        class_name=report.spec.class_name,
        vocabulary=report.spec.vocab_size,
        ranks=serving.ranks,
        pipeline_ranks=1,
        eager=False,
        date=date,
        log=log.name[-100:],
        non_torch_bytes=max(0, total_bytes - before),
        rounding_bytes=ROUNDING_BYTES,
        activation_beyond_bytes=loaded,
        graphs_bytes=None,
        total_bytes=None,
    )


def _version(serving: Serving) -> str:
    return f"sglang {serving.version or VERSION}"

"""What a log of an earlier run tells of a later one: on the same card, with the same version, class and number of ranks."""

from __future__ import annotations

from ...results.model import Report
from ...results.serving import LogTerm, Reserved, ServedLog, Serving, VllmReserve
from ...typed import TYPE_CHECKING
from ...units import GIB
from .releases import Release, release

if TYPE_CHECKING:
    from .log import Log


def key_of(report: Report, serving: Serving, card: str, version: Release) -> tuple[str, str, str, int, int, int, bool]:
    """As `ServedLog.key`."""
    name = "{}.{}".format(*version.version)
    spec = report.spec
    ranks, stages = serving.ranks, serving.pipeline_ranks
    return card.casefold(), name, spec.class_name, spec.vocab_size, ranks, stages, serving.eager


def matching(report: Report, serving: Serving, card: str, version: Release) -> ServedLog | None:
    key = key_of(report, serving, card, version)
    return next((log for log in serving.logs if log.key == key), None)


def calibrated(term: Reserved, log: ServedLog) -> Reserved:
    """A term with what the log printed in place of the range of other logs."""
    source = f"{log.log} ({log.date})"
    if term.name == "activation":
        if not log.activation_beyond_bytes:
            return term
        least, most = (
            max(0, end + log.activation_beyond_bytes) for end in (term.least_bytes, term.most_bytes or term.least_bytes)
        )
        return Reserved(name=term.name, least_bytes=least, most_bytes=most, sources=(source,))
    printed = log.non_torch_bytes if term.name == "non_torch" else log.graphs_bytes
    if term.name not in ("non_torch", "graphs") or printed is None:
        return term
    least, most = printed - log.rounding_bytes, printed + log.rounding_bytes
    return Reserved(name=term.name, least_bytes=max(0, least), most_bytes=most, sources=(source,))


def served_log(
    log: Log,
    terms: tuple[LogTerm, ...],
    reserve: VllmReserve,
    report: Report,
    serving: Serving,
    card: str,
    *,
    date: str,
) -> ServedLog | None:
    """What of a log is kept; None if it prints neither what lies outside of PyTorch nor a budget."""
    from .log import ADDED_UP

    printed = {term.name: term for term in terms}
    outside = printed.get("non_torch")
    if outside is None:
        together = _together(log, reserve)
        if together is None:
            return None
        outside_bytes, rounding_bytes, graphs = together, ADDED_UP, None if serving.eager else "0"
    elif outside.printed < 0:
        return None
    else:
        outside_bytes, rounding_bytes, graphs = outside.printed, GIB // 200, log.printed.get("graphs")
    peak = printed.get("activation")
    version = release(serving.version).version
    return ServedLog(
        card=card,
        version="{}.{}".format(*version),
        class_name=report.spec.class_name,
        vocabulary=report.spec.vocab_size,
        ranks=serving.ranks,
        pipeline_ranks=serving.pipeline_ranks,
        eager=serving.eager,
        date=date,
        log=log.name[-100:],
        non_torch_bytes=outside_bytes,
        rounding_bytes=rounding_bytes,
        activation_beyond_bytes=0 if peak is None or peak.agrees else peak.difference,
        graphs_bytes=None if graphs is None or float(graphs) < 0 else int(float(graphs) * GIB),
        total_bytes=log.total_bytes,
    )


def _together(log: Log, reserve: VllmReserve) -> int | None:
    """What lies outside of PyTorch and graphs take, from what is left of the budget less the peak, which is worked out."""
    from .log import beside_weights

    terms = {term.name: term for term in reserve.terms}
    if "activation" not in terms:
        return None
    apart = beside_weights(log)
    if apart is None and {"budget", "weights"} <= log.printed.keys():
        requested = log.printed.get("requested")
        whole = (reserve.requested_bytes or 0) if requested is None else float(requested) * GIB
        apart = int(whole - (float(log.printed["budget"]) + float(log.printed["weights"])) * GIB)
    return None if apart is None else max(0, apart - terms["activation"].least_bytes)

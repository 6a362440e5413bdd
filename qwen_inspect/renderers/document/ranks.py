"""A model on several devices: bytes per rank, or accelerate's placement on devices."""

from __future__ import annotations

from collections.abc import Sequence

from ...language import Language
from ...results.ranks import RANK_TERMS, DeviceMapReport, Parallelism, RankBytes, RanksReport
from ...units import UNKNOWN, count, size
from ..blocks import Block, Heading, Items, Table
from .common import bytes_cell
from .memory import terms_of

MOST_NAMES = 12
# Shown only if not zero on some rank.
OPTIONAL_TERMS = ("padding", "adapters", "cache", "state", "gradients", "optimizer", "gathered", "host")


def ranks_blocks(report: RanksReport, say: Language) -> list[Block]:
    return [
        Heading(say("heading_ranks", how=described(report.parallelism, say))),
        rank_table(report.ranks, say),
        *([] if any(rank.peak is None for rank in report.ranks) else _peaks(report.ranks, say)),
        Items([say(message) for message in report.assumptions]),
    ]


def described(how: Parallelism, say: Language) -> str:
    """The degrees above 1, such as `TP 4, PP 2`; a fixed text for a single rank."""
    degrees = (("TP", how.tensor), ("PP", how.pipeline), ("EP", how.expert), ("FSDP", how.fsdp))
    named = [f"{name} {ranks}" for name, ranks in degrees if ranks > 1]
    if how.fsdp > 1 or how.by_deepspeed:
        named.append(f"ZeRO {how.zero_stage}")
    if how.deepspeed:
        named.append("DeepSpeed")
    if how.offload:
        named.append(say("offloaded"))
    if how.offload_optimizer:
        named.append(say("offloaded_optimizer"))
    if how.offload_params:
        named.append(say("offloaded_params"))
    return say("comma").join(named) or say("one_rank")


def rank_table(ranks: Sequence[RankBytes], say: Language) -> Table:
    """A row per group of equal ranks. Skips terms that are zero on every rank."""
    terms = [
        term for term in RANK_TERMS if term not in OPTIONAL_TERMS or any(getattr(rank, term) != 0 for rank in ranks)
    ]
    if all(rank.gathered is None for rank in ranks):
        terms = [term for term in terms if term != "gathered"]
    staged, with_experts = any(rank.layers for rank in ranks), any(rank.experts for rank in ranks)
    rows = [
        [
            rank_names(rank.ranks),
            *([_span(rank.layers)] if staged else []),
            *([count(rank.experts)] if with_experts else []),
            *(bytes_cell(getattr(rank, term)) for term in terms),
            count(rank.total),
            size(rank.total),
        ]
        for rank in ranks
    ]
    columns = [
        "rank",
        *(["layers"] if staged else []),
        *(["experts"] if with_experts else []),
        *terms,
        "total_bytes",
        "total",
    ]
    return Table(
        [say(f"column_rank_{name}") for name in columns],
        rows,
        "l" + "r" * (len(columns) - 1),
        expendable=((len(columns) - 2,),),
    )


def _peaks(ranks: Sequence[RankBytes], say: Language) -> list[Block]:
    """Peak memory by term, a row per group of equal ranks."""
    peaks = [rank.peak for rank in ranks if rank.peak is not None]
    terms = (*terms_of(*peaks), "allocated")
    reserved = any(rank.peak_reserved is not None for rank in ranks)
    rows = [
        [
            rank_names(rank.ranks),
            say(f"stage_{peak.stage}"),
            *(bytes_cell(getattr(peak, term)) for term in terms),
            size(peak.allocated),
            *([size(rank.peak_reserved)] if reserved else []),
        ]
        for rank, peak in zip(ranks, peaks, strict=True)
    ]
    columns = [
        say("column_rank_rank"),
        say("column_rank_stage"),
        *(say(f"term_{term}") for term in terms[:-1]),
        f"{say('term_allocated')} ({say('column_bytes')})",
        say("term_allocated"),
        *([say("term_reserved")] if reserved else []),
    ]
    return [
        Heading(say("heading_ranks_peak")),
        Table(columns, rows, "ll" + "r" * (len(columns) - 2), expendable=((len(terms) + 1,),)),
    ]


def rank_names(ranks: Sequence[int]) -> str:
    """Ranks as runs: `0, 2-5`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1][1:] = [rank]
        else:
            runs.append([rank])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _span(layers: tuple[int, int] | None) -> str:
    if layers is None or layers[0] == layers[1]:
        return UNKNOWN
    first, end = layers
    return str(first) if end == first + 1 else f"{first}-{end - 1}"


def _module_names(modules: Sequence[str], say: Language) -> str:
    shown = [name or say("whole_model") for name in modules[:MOST_NAMES]]
    return ", ".join([*shown, *(["…"] if len(modules) > MOST_NAMES else [])]) or UNKNOWN


def device_map_blocks(report: DeviceMapReport, say: Language) -> list[Block]:
    names = ("device", "capacity", "weights", "buffers", "total", "modules")
    rows = [
        [
            device.device,
            size(device.capacity_bytes),
            bytes_cell(device.weights),
            bytes_cell(device.buffers),
            size(device.weights + device.buffers),
            _module_names(device.modules, say),
        ]
        for device in report.devices
    ]
    return [
        Heading(say("heading_device_map", versions=report.made_by)),
        Table([say(f"column_rank_{name}") for name in names], rows, "lrrrrl"),
        Items([say(message) for message in report.assumptions]),
    ]

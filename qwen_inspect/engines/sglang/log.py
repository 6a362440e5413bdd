"""What a log of SGLang prints of its memory, and the prediction beside it. What it calls GB are GiB.

Source: SGLang 0.5.23, srt/model_executor/model_runner.py (load_model), srt/mem_cache/memory_pool.py, srt/managers/scheduler.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...results.serving import LogTerm
from ...typed import Literal
from ...units import GIB, MIB
from ..vllm.log import NUMBER, Log, figures
from .demand import SglangDemand

VERSION = re.compile(r"\bsglang(?:==| version |[ :]v?)([0-9]{1,3}\.[0-9]{1,3}\.[0-9A-Za-z.+]{1,40})", re.IGNORECASE)
FORMS: dict[str, re.Pattern[str]] = {
    "free_before": re.compile(rf"Load weight begin\. avail mem={NUMBER} GB"),
    "weights": re.compile(rf"Load weight end\..{{0,200}}mem usage={NUMBER} GB"),
    "free_loaded": re.compile(rf"Load weight end\..{{0,200}}avail mem={NUMBER} GB"),
    "keys": re.compile(rf"KV Cache is allocated\..{{0,80}}\bKV? size: {NUMBER} GB"),
    "values": re.compile(rf"KV Cache is allocated\..{{0,120}} V size: {NUMBER} GB"),
    "slots": re.compile(r"max_mamba_cache_size: ([0-9]{1,12})"),
    "free_after": re.compile(rf"Memory pool end\. avail mem={NUMBER} GB"),
    "tokens": re.compile(r"(?:max_total_num_tokens=|KV Cache is allocated\..{0,60}#tokens: )([0-9]{1,15})"),
}
LOADED_MIB = (
    128  # libraries that are loaded with the weights, and counted among them: the log reads the card's free memory
)


def read_log(text: str, *, name: str = "") -> Log:
    """The first figure of each line: those of a drafter come later."""
    printed = figures(text, FORMS)
    if "weights" not in printed and {"free_before", "free_loaded"} <= printed.keys():
        printed["weights"] = f"{float(printed['free_before']) - float(printed['free_loaded']):.2f}"
    version = VERSION.search(text[:1_000_000])
    return Log(version=version[1] if version else None, printed=printed, name=name)


def beside(log: Log, demand: SglangDemand) -> Iterator[LogTerm]:
    """Each printed figure with the predicted range, in the order of the log."""
    total, (least, most) = demand.total_bytes, demand.context_ends
    pool_least, pool_most = demand.pool_tokens()
    yield from _of_bytes(log, "free_before", (total - most, total - least))
    yield from _of_bytes(log, "weights", (demand.allocated_bytes, demand.weights_bytes + LOADED_MIB * MIB))
    if demand.pools.state_bytes:
        yield from _of_number(log, "slots", "blocks", demand.state_slots())
    if not demand.pools.window_bytes and "keys" in log.printed:
        cache = float(log.printed["keys"]) + float(log.printed.get("values", 0))
        ends = pool_least * demand.pools.cell_bytes, pool_most * demand.pools.cell_bytes
        yield from _of_bytes(Log(version=None, printed={"cache": f"{cache:.2f}"}), "cache", ends, digits=2)
    yield from _of_number(log, "tokens", "tokens", (pool_least, pool_most))


def _of_bytes(log: Log, name: str, ends: tuple[int, int], *, digits: int = 1) -> Iterator[LogTerm]:
    """digits: figures that were added up, each accurate to half of 0.01."""
    if name not in log.printed:
        return
    printed, half = round(float(log.printed[name]) * GIB), digits * GIB // 200
    agrees = ends[0] - half <= printed <= ends[1] + half
    yield LogTerm(name=name, unit="bytes", printed=printed, low=ends[0], high=ends[1], agrees=agrees)


def _of_number(log: Log, name: str, unit: Literal["blocks", "tokens"], ends: tuple[int, int]) -> Iterator[LogTerm]:
    if name in log.printed:
        printed = int(log.printed[name])
        agrees = ends[0] <= printed <= ends[1]
        yield LogTerm(name=name, unit=unit, printed=printed, low=ends[0], high=ends[1], agrees=agrees)

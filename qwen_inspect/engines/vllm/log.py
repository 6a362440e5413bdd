"""What a log of vLLM prints of its memory, and the prediction beside it.

Source: vLLM 0.9 to 0.22, v1/worker/gpu_worker.py, gpu_model_runner.py, utils/mem_utils.py, v1/core/kv_cache_utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ...results.serving import Capacity, LogTerm, VllmReserve
from ...units import GIB
from ...values import dataclass

LONGEST_LINE = 20_000
MOST_LINES = 200_000
BESIDE_WEIGHTS = ("activation", "non_torch", "graphs")
ADDED_UP = 3 * GIB // 200  # three figures, each accurate to half of 0.01 GiB
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
NUMBER = r"(-?[0-9]{1,9}(?:\.[0-9]{1,6})?)"
VERSION = re.compile(r"(?:\(v|\bversion )([0-9]{1,3}\.[0-9]{1,3}(?:\.[0-9A-Za-z+]{1,40}){0,4})")
# name -> the line's form. GiB, but for tokens, blocks and sequences.
FORMS: dict[str, re.Pattern[str]] = {
    "total": re.compile(
        r"(?:total_memory=|total_gpu_memory \(|Free memory on device(?: cuda:[0-9]+)? \([0-9.]{1,12}/)"
        r"([0-9]{1,6}\.[0-9]{1,6}) ?GiB"
    ),
    "weights": re.compile(
        rf"(?:[Mm]odel loading took|Loading model weights took|model weights take) ?{NUMBER} ?(?:GiB|GB)"
    ),
    "activation": re.compile(rf"(?:torch peak memory increase: |PyTorch activation peak memory takes ){NUMBER} ?GiB"),
    "peak": re.compile(rf"{NUMBER} GiB for peak activation"),
    "non_torch": re.compile(
        rf"(?:non-torch forward increase memory: |non_torch_memory takes |peak activation, ){NUMBER} ?GiB(?! for CUDAGraph)"
    ),
    "consumed": re.compile(
        rf"(?:Actual usage is |total consumed \(from mem_get_info\): ){NUMBER} ?GiB(?! for weight\b)"
    ),
    "graphs": re.compile(rf"Estimated CUDA graph memory: {NUMBER} GiB"),
    "requested": re.compile(rf"Desired GPU memory utilization is \([0-9.]{{1,8}}, {NUMBER} GiB\)"),
    "budget": re.compile(rf"(?:Available KV cache memory: |reserved for KV Cache is ){NUMBER} ?GiB"),
    "blocks": re.compile(r"(?:# GPU blocks: |num_gpu_blocks is: )([0-9,]{1,15})"),
    "tokens": re.compile(r"GPU KV cache size: ([0-9,]{1,15}) tokens"),
    "concurrency": re.compile(rf"Maximum concurrency for [0-9,]{{1,15}} tokens per request: {NUMBER}x"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """version: as printed, None without it. printed: the first figure of each line as text. name: of its file."""

    version: str | None
    printed: dict[str, str]
    name: str = ""

    @property
    def total_bytes(self) -> int | None:
        """The card's memory as CUDA told vLLM."""
        return int(float(self.printed.get("total", 0)) * GIB) or None


def read_log(text: str, *, name: str = "") -> Log:
    version = None
    for line in _lines(text):
        if (version is None and "vllm" in line.lower()) or " LLM engine" in line or "version " in line:
            match = VERSION.search(line)
            version = match[1] if match and version is None else version
    printed = figures(text, FORMS)
    if "consumed" not in printed and "peak" in printed:  # later versions count graphs in it, and not what stays
        printed.setdefault("activation", printed["peak"])
    return Log(version=version, printed=printed, name=name)


def figures(text: str, forms: Mapping[str, re.Pattern[str]]) -> dict[str, str]:
    """The first figure of each form."""
    printed: dict[str, str] = {}
    for line in _lines(text):
        for figure, form in forms.items():
            if figure not in printed and (found := form.search(line)):
                printed[figure] = found[1].replace(",", "")
    return printed


def _lines(text: str) -> Iterator[str]:
    return (COLOUR.sub("", line[:LONGEST_LINE]) for line in text.splitlines()[:MOST_LINES])


def beside(log: Log, reserve: VllmReserve) -> Iterator[LogTerm]:
    """Each printed figure of memory with the predicted range, in the order of the budget, then what the budget holds."""
    terms = {term.name: (term.least_bytes, term.most_bytes or 0) for term in reserve.terms}
    if "weights" in terms:
        beside = [terms.get(name, (0, 0)) for name in ("rounding", "drafter", "adapters")]
        low_bytes, high_bytes = (terms["weights"][end] + sum(ends[end] for ends in beside) for end in (0, 1))
        terms["weights"] = low_bytes, high_bytes
    low, high = reserve.least, reserve.most
    terms["budget"] = low.budget_bytes, high.budget_bytes
    if (apart := beside_weights(log)) is not None and "activation" in terms:
        parts = [terms[name] for name in BESIDE_WEIGHTS if name in terms]
        ends = sum(least for least, _ in parts), sum(most for _, most in parts)
        agrees = ends[0] - ADDED_UP <= apart <= ends[1] + ADDED_UP
        yield LogTerm(name="beside_weights", unit="bytes", printed=apart, low=ends[0], high=ends[1], agrees=agrees)
    for name in ("weights", "activation", "non_torch", "graphs", "budget"):
        if name in log.printed and name in terms:
            yield _of_bytes(name, log.printed[name], terms[name])
    yield from _of_capacity(log, low, high)


def beside_weights(log: Log) -> int | None:
    """Bytes of the peak, outside of PyTorch and of graphs together, where a log prints them only so, as from 0.27 on."""
    if not {"consumed", "peak", "weights"} <= log.printed.keys():
        return None
    consumed, peak, weights = (float(log.printed[name]) for name in ("consumed", "peak", "weights"))
    return round((consumed + peak - weights) * GIB)


def _of_bytes(name: str, text: str, ends: tuple[int, int]) -> LogTerm:
    half = GIB // 2 // 10 ** len(text.partition(".")[2])
    printed = round(float(text) * GIB)
    return LogTerm(
        name=name,
        unit="bytes",
        printed=printed,
        low=ends[0],
        high=ends[1],
        agrees=ends[0] - half <= printed <= ends[1] + half,
    )


def _of_capacity(log: Log, low: Capacity, high: Capacity) -> Iterator[LogTerm]:
    """Blocks and tokens, by the digits of a budget that is printed to 0.01 GiB, or by the predicted range."""
    for name in ("blocks", "tokens"):
        if name in log.printed:
            ends = int(getattr(low, name)), int(getattr(high, name))
            printed = int(log.printed[name])
            share = GIB / 100 / max(1, high.budget_bytes)
            slack = int(ends[1] * share) + 1
            yield LogTerm(
                name=name,
                unit=name,
                printed=printed,
                low=ends[0],
                high=ends[1],
                agrees=ends[0] - slack <= printed <= ends[1] + slack,
            )

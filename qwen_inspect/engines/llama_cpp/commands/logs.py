"""The buffers that a log of llama.cpp prints, and the build that it names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ....results.llama_cpp import Buffer, BufferKind, LogLine
from ....units import MIB
from ....values import dataclass
from ..options import as_cuda

KINDS: dict[str, BufferKind] = {
    "model": "weights",
    "KV": "cache",
    "RS": "state",
    "compute": "compute",
    "output": "output",
}
# load_tensors:        CUDA0 model buffer size = 15922.41 MiB; before December 2024: "llm_load_tensors:        CUDA0 buffer size".
LINE = re.compile(
    r"(?P<device>[A-Za-z][A-Za-z0-9_]{0,31})(?:\([A-Za-z0-9 ]{0,31}\))? +(?:(?P<kind>model|KV|RS|compute|output) +)?"
    r"buffer size *= *(?P<mib>[0-9]{1,12}\.[0-9]{2}) MiB"
)
LOADING = "load_tensors:"
CONTEXT = re.compile(r"\bn_ctx += *(?P<count>[0-9]{1,9})\b")  # llama_context: n_ctx         = 32768
OFFLOADED = re.compile(r"\boffloaded (?P<count>[0-9]{1,4})/[0-9]{1,4} layers to GPU")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
BUILD = re.compile(r"\b(?:build|version)(?:_info)? *[:=] *(?P<number>b?[0-9]{1,6})[ -]*\(?(?P<commit>[0-9a-f]{7,40})?")
FORK_LINE = "fused_moe "  # llama_new_context_with_model: fused_moe  = 1
LONGEST_LINE = 2000
Printed = tuple[BufferKind, str, int]
MOST_LINES = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """build, commit: as printed, None without them. fork: it is of ik_llama.cpp.

    runs: (kind, device, hundredths of a MiB) of each model that was loaded, with its contexts.
    contexts, offloaded: of each run, the first n_ctx and the layers on cards, None where they are not printed.
    """

    build: str | None
    commit: str | None
    fork: bool
    runs: tuple[tuple[Printed, ...], ...]
    contexts: tuple[int | None, ...] = ()
    offloaded: tuple[int | None, ...] = ()

    def printed(self, *, models: int = 1) -> tuple[Printed, ...]:
        """What was printed of the last models: llama.cpp may have loaded them before, to fit itself to the memory."""
        return tuple(line for run in self.runs[-models:] for line in run)

    def context_tokens(self, *, models: int) -> int | None:
        """n_ctx of the first of the last models."""
        return next(iter(self.contexts[-models:]), None)

    def layers(self, *, models: int) -> int | None:
        """The layers on cards of the first of the last models."""
        return next(iter(self.offloaded[-models:]), None)


def read_log(text: str) -> Log:
    build = commit = None
    runs: list[list[Printed]] = [[]]
    contexts: list[int | None] = [None]
    offloaded: list[int | None] = [None]

    def begin() -> None:
        if any(kind != "weights" for kind, _, _ in runs[-1]):
            runs.append([])
            contexts.append(None)
            offloaded.append(None)

    for line in text.splitlines()[:MOST_LINES]:
        line = COLOUR.sub("", line[:LONGEST_LINE])
        if build is None and (match := BUILD.search(line)):
            build, commit = f"b{match['number'].lstrip('b')}", match["commit"]
        if match := OFFLOADED.search(line):
            begin()
            offloaded[-1] = int(match["count"])
        if contexts[-1] is None and (match := CONTEXT.search(line)):
            contexts[-1] = int(match["count"])
        if not (match := LINE.search(line)) or (match["kind"] is None and LOADING not in line):
            continue
        kind = KINDS[match["kind"] or "model"]
        if kind == "weights":
            begin()
        runs[-1].append((kind, match["device"], int(match["mib"].replace(".", ""))))
    return Log(
        build=build,
        commit=commit,
        fork=FORK_LINE in text,
        runs=tuple(map(tuple, runs)),
        contexts=tuple(contexts),
        offloaded=tuple(offloaded),
    )


def beside(buffers: Sequence[Buffer], printed: Iterable[Printed]) -> tuple[LogLine, ...]:
    """Each printed line with a prediction of the same kind and device, in order; then what the log lacks."""
    left = list(buffers)
    lines = []
    for kind, device, mib in printed:
        same = [buffer for buffer in left if buffer.kind == kind and buffer.device == as_cuda(device)]
        exact = [buffer for buffer in same if _agrees(buffer, mib)]
        buffer = next(iter(exact or same), None)
        if buffer is not None:
            left.remove(buffer)
        lines.append(
            LogLine(
                kind=kind,
                device=device,
                printed=mib,
                predicted_bytes=None if buffer is None else buffer.size_bytes,
                agrees=False if buffer is None else _agrees(buffer, mib),
            )
        )
    shown = [buffer for buffer in left if buffer.size_bytes]
    return (
        *lines,
        *(
            LogLine(kind=one.kind, device=one.device, printed=None, predicted_bytes=one.size_bytes, agrees=False)
            for one in shown
        ),
    )


def _agrees(buffer: Buffer, printed: int) -> bool | None:
    """Whether the prediction prints the same hundredths of a MiB; None if it is not known, or a range that holds them."""
    size_bytes = buffer.size_bytes
    if size_bytes is None:  # one that grows is printed at its least
        if buffer.least_bytes and _prints(buffer.least_bytes, printed):
            return True
        outside = buffer.most_bytes is not None and not (
            _hundredths(buffer.low_bytes) <= printed <= _hundredths(buffer.most_bytes)
        )
        return False if outside else None
    return _prints(size_bytes, printed)


def _prints(size_bytes: int, printed: int) -> bool:
    return _hundredths(size_bytes) == printed


def _hundredths(size_bytes: int) -> int:
    """Of a MiB, as they are printed."""
    return int(f"{size_bytes / MIB:.2f}".replace(".", ""))

"""llama-bench's options as other programs have them, for the largest of its tests: each has a context of its own.

Source: llama.cpp 0c1e57098, tools/llama-bench/llama-bench.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ....errors import UsageError

SIZES: Mapping[str, str] = {
    **dict.fromkeys(("-p", "--n-prompt"), "prompt"),
    **dict.fromkeys(("-n", "--n-gen"), "generated"),
    **dict.fromkeys(("-d", "--n-depth"), "depth"),
}
DEFAULTS: Mapping[str, Sequence[int]] = {"prompt": (512,), "generated": (128,), "depth": (0,)}
BATCHES = ("-b", "--batch-size", "-ub", "--ubatch-size")
# Options whose value is 0 or 1 -> what they mean.
SWITCHED: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("-nkvo", "--no-kv-offload"), ("-kvo", "-nkvo")),
    **dict.fromkeys(("-embd", "--embeddings"), ("", "--embedding")),
    **dict.fromkeys(("-nopo", "--no-op-offload"), ("--op-offload", "-nopo")),
    **dict.fromkeys(("-mmp", "--mmap"), ("--no-mmap", "--mmap")),
    "--no-host": ("", "--no-host"),
    "--repack": ("--no-repack", "--repack"),
}
OWN = ("-r", "--repetitions", "--delay", "-oe", "--output-err")  # that change no buffer
ONE_OF_SEVERAL = (
    *("-ngl", "--n-gpu-layers", "-ncmoe", "--n-cpu-moe", "-ctk", "--cache-type-k", "-ctv", "--cache-type-v"),
    *("-fa", "--flash-attn", "-sm", "--split-mode", "-mg", "--main-gpu", "-m", "--model", "-fitt", "--fit-target"),
)
RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?:([+*])(\d{1,9}))?)?")
LISTS: Mapping[str, str] = {"-ts": "/", "--tensor-split": "/", "-ot": ",", "--override-tensor": ",", "-dev": ","}


def usual_options(words: Sequence[str]) -> Iterator[str]:
    """Raises UsageError for several values of an option where none is the largest."""
    sizes = dict(DEFAULTS)
    together = [0]
    at = 0
    while at < len(words):
        word, at = words[at], at + 1
        value = words[at] if at < len(words) else ""
        if word in SIZES:
            sizes[SIZES[word]] = _numbers(word, value)
        elif word == "-pg":
            together.append(sum(_numbers(word, value)))
        elif word in SWITCHED:
            yield from filter(None, (SWITCHED[word][value == "1"],))
        elif word in BATCHES:
            yield from (word, str(max(_numbers(word, value))))
        elif word in LISTS or word in ONE_OF_SEVERAL:
            if "," in value:
                raise UsageError("llama_cpp_bench_several", option=word, found=value[:80])
            yield from (word, re.sub("[;/]", LISTS[word], value) if word in LISTS else value)
        elif word not in OWN:
            yield word
            continue
        at += 1
    context = max(*sizes["prompt"], *sizes["generated"], *together) + max(sizes["depth"])
    yield from ("-c", str(max(context, 1)), *(() if "-fitt" in words or "--fit-target" in words else ("-fit", "off")))


def _numbers(option: str, value: str) -> Sequence[int]:
    """FIRST, FIRST-LAST, FIRST-LAST+STEP and FIRST-LAST*FACTOR, with commas between; of a range the last alone is kept."""
    numbers = []
    for part in value.split(","):
        match = RANGE.fullmatch(part)
        if match is None:
            raise UsageError("llama_cpp_number", option=option, found=value[:80])
        first, last, factor = int(match[1]), int(match[2] or match[1]), int(match[4] or 1)
        if match[3] == "*":
            while factor > 1 and 0 < first * factor <= last:
                first *= factor
        elif last > first:
            first = last - (last - first) % max(factor, 1)
        numbers.append(first)
    return numbers

"""A pasted command of SGLang: `python -m sglang.launch_server`, `sglang serve`, or its image.

Source: SGLang 0.5.23, srt/arg_groups/fields (model.py, schedule.py, parallel.py, exec_.py, memory.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ...errors import UnsupportedError, UsageError
from ...results.serving import WHOLE_PROMPTS, Serving, SglangOptions
from ...typed import Any
from ...values import dataclass, replace
from ..pasted import (
    SET_BEFORE,
    each_option,
    of_program,
    read_count,
    read_dtype,
    read_format,
    read_share,
    read_tokens,
    words_of,
)

IMAGE = re.compile(r"(?:\S*/)?sglang(?::v?(?P<version>[0-9]+\.[0-9]+[0-9A-Za-z.]*)\S*)?")
SHORT: Mapping[str, str] = {
    "--model": "--model-path",
    "--tp": "--tp-size",
    "--tensor-parallel-size": "--tp-size",
    "-tp": "--tp-size",
    "--dp": "--dp-size",
    "--data-parallel-size": "--dp-size",
    "--pp": "--pp-size",
    "--pipeline-parallel-size": "--pp-size",
    "--ep": "--ep-size",
    "--expert-parallel-size": "--ep-size",
    "--cuda-graph-max-bs": "--cuda-graph-max-bs-decode",
}
SERVING: Mapping[str, tuple[str, Callable[[str, str], Any]]] = {
    "--tp-size": ("ranks", read_count),
    "--mem-fraction-static": ("utilization", read_share),
    "--context-length": ("context_tokens", read_tokens),
    "--kv-cache-dtype": ("cache_format", read_format),
}
CHUNK = "--chunked-prefill-size"
OPTIONS: Mapping[str, tuple[str, Callable[[str, str], Any]]] = {
    CHUNK: ("chunk_tokens", read_count),
    "--cuda-graph-max-bs-decode": ("graph_sequences", read_count),
    "--max-running-requests": ("running", read_count),
    "--max-prefill-tokens": ("prefill_tokens", read_count),
    "--max-total-tokens": ("total_tokens", read_tokens),
    "--page-size": ("page_tokens", read_count),
    "--swa-full-tokens-ratio": ("window_share", read_share),
    "--max-mamba-cache-size": ("state_slots", read_count),
}
SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "--disable-cuda-graph": {"graphs": False},
    "--disable-radix-cache": {"radix": False},
}
# What changes weights, pools or the share by rules that are not modelled.
REFUSED = ("--speculative-algorithm", "--enable-dp-attention", "--lora-paths", "--enable-lora", "--cpu-offload-gb")
WITHOUT_VALUE = frozenset(
    """
    --trust-remote-code --enable-metrics --disable-overlap-schedule --enable-mixed-chunk --skip-server-warmup --log-requests
    --enable-torch-compile --enable-cache-report --disable-custom-all-reduce --enable-p2p-check --enable-multimodal
    """.split()  # noqa: SIM905
)
WITH_VALUE = frozenset(
    """
    --host --port --api-key --served-model-name --tokenizer-path --tokenizer-mode --chat-template --tool-call-parser
    --reasoning-parser --random-seed --download-dir --load-format --revision --log-level --attention-backend --dp-size --ep-size
    --sampling-backend --watchdog-timeout --schedule-policy --schedule-conservativeness --nccl-init-addr --dist-init-addr
    --moe-runner-backend --mamba-backend --stream-interval
    """.split()  # noqa: SIM905
)
OTHERS = ("--model-path", "--dtype", "--quantization", "--mamba-full-memory-ratio", "--pp-size")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """model: as it is named. dtype: that weights are loaded in (None: the model's). ignored: options that may take memory."""

    serving: Serving
    model: str | None
    dtype: str | None
    ignored: tuple[str, ...]
    automatic: bool = False


def parse_command(line: str) -> Command:
    """Raises UsageError for a line that no shell reads and values without meaning, UnsupportedError for what is not modelled."""
    version, words = _arguments(words_of(line))
    serving: dict[str, Any] = {} if version is None else {"version": version}
    sglang: dict[str, Any] = {}
    named: dict[str, str] = {}
    ignored: dict[str, None] = {}
    bare = WITHOUT_VALUE | SWITCHES.keys() | {"--enable-dp-attention", "--enable-lora"}
    for option, value in each_option(of_program(words), short=SHORT, valued=_valued, bare=bare):
        if option in REFUSED:
            raise UnsupportedError("sglang_option", option=option)
        if option in SWITCHES:
            sglang.update(SWITCHES[option])
        elif option in SERVING and value is not None:
            name, read = SERVING[option]
            serving[name] = read(option, value)
        elif option in OPTIONS and value is not None:
            name, read = OPTIONS[option]
            sglang[name] = WHOLE_PROMPTS if option == CHUNK and value == "-1" else read(option, value)
        elif option in OTHERS and value is not None:
            named[option] = value
        elif not option and value:
            ignored[value[:40]] = None
        elif option and option not in WITHOUT_VALUE | WITH_VALUE:
            ignored[option] = None
    if named.get("--pp-size", "1") != "1":
        raise UnsupportedError("sglang_option", option="--pp-size")
    if "--mamba-full-memory-ratio" in named:
        sglang["state_share"] = _ratio("--mamba-full-memory-ratio", named["--mamba-full-memory-ratio"])
    quantization = named.get("--quantization")
    if quantization is not None and quantization != "fp8":
        ignored["--quantization"] = None
    return Command(
        serving=replace(Serving(engine="sglang"), sglang=SglangOptions(**sglang), **serving),
        model=named.get("--model-path"),
        dtype="fp8" if quantization == "fp8" else read_dtype(named.get("--dtype", "auto")),
        ignored=tuple(ignored),
    )


def _arguments(words: list[str]) -> tuple[str | None, list[str]]:
    """The version that an image names, and the words after the program."""
    version = None
    for at, word in enumerate(words):
        if word == "sglang.launch_server":
            return version, words[at + 1 :]
        if (image := IMAGE.fullmatch(word)) is not None and image["version"]:
            version = image["version"]
        elif re.split(r"[/\\]", word)[-1] == "sglang" and words[at + 1 : at + 2] == ["serve"]:
            return version, words[at + 2 :]
        elif not SET_BEFORE.fullmatch(word) and word.startswith("-") and at == 0:
            return version, words
    raise UsageError("sglang_command")


def _valued(option: str) -> bool:
    return any(option in options for options in (SERVING, OPTIONS, OTHERS, WITH_VALUE))


def _ratio(option: str, value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,12})?", value) or not float(value):
        raise UsageError("llama_cpp_number", option=option, found=value[:80])
    return float(value)

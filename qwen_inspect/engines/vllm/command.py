"""A pasted command of vLLM, read as vLLM reads it: `vllm serve`, its module, or its image.

Source: vLLM 0.19.0, engine/arg_utils.py, entrypoints/cli/serve.py and utils/argparse_utils.py (underscores for hyphens).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ...errors import UsageError
from ...results.serving import Serving, VllmEnvironment
from ...typed import Any
from ...values import dataclass, field, replace
from ..pasted import (
    SET_BEFORE,
    each_option,
    of_program,
    read_count,
    read_dtype,
    read_format,
    read_gib,
    read_share,
    read_tokens,
    words_of,
)
from .connectors import connectors_of, parse_transfer
from .limits import LIMIT, WITHOUT_VISION, read_limits, takes_videos
from .speculative_config import parse_speculation, proposal

IMAGE = re.compile(r"(?:\S*/)?vllm-openai(?::v?(?P<version>[0-9]+\.[0-9]+[0-9A-Za-z.]*)\S*)?")
MODULE = re.compile(r"vllm\.entrypoints\.\S+")
OTHER_COMMANDS = ("bench", "chat", "complete", "collect-env", "run-batch", "launch")
SHORT: Mapping[str, str] = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-q": "--quantization",
    "-ep": "--enable-expert-parallel",
    "-sc": "--speculative-config",
    "--kv-cache-memory": "--kv-cache-memory-bytes",  # as its own log names it
}
# Variables before the program, or after -e of an image: 0 or 1.
VARIABLE = re.compile(r"(?:--env=)?(VLLM_[A-Z0-9_]{1,60})=([01])")
ENVIRONMENT: Mapping[str, str] = {
    "VLLM_USE_FLASHINFER_SAMPLER": "flashinfer",
    "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS": "graphs",
    "VLLM_USE_V2_MODEL_RUNNER": "second_runner",
    "VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE": "chunks",
}
UNNAMED_TOKENS = 2048  # of a model that names no limit. Source: vLLM 0.33, config/model.py (_get_and_verify_max_len)
# That change where ranks' sums are made, and so what lies outside PyTorch, which is not counted.
UNCOUNTED = ("VLLM_ALLREDUCE_USE_SYMM_MEM", "VLLM_ALLREDUCE_USE_FLASHINFER", "VLLM_ALLREDUCE_USE_FLASHINFER_PCIE_IPC")
SPECULATIVE: Mapping[str, str] = {
    "--spec-method": "method",
    "--spec-model": "model",
    "--spec-tokens": "num_speculative_tokens",
}
SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "--enable-sleep-mode": {"sleeps": True},
    "--enforce-eager": {"eager": True},
    "--no-enforce-eager": {"eager": False},
    "--enable-expert-parallel": {"expert_parallel": True},
    "--no-enable-expert-parallel": {"expert_parallel": False},
    "--enable-prefix-caching": {"prefix_caching": True},
    "--no-enable-prefix-caching": {"prefix_caching": False},
    "--language-model-only": {"images": False, "without_towers": ("vision", "audio")},
    "--skip-mm-profiling": {"images": False},
}
# Options that take no memory of the card here: without a value; any other that is not known has one where a word follows.
WITHOUT_VALUE = frozenset(
    """
    --trust-remote-code --enable-auto-tool-choice --enable-chunked-prefill
    --disable-log-requests --enable-log-requests --disable-log-stats --headless --disable-custom-all-reduce --api-server
    --enable-reasoning --disable-uvicorn-access-log --disable-log-request --no-enable-log-requests
    """.split()  # noqa: SIM905
)
WITH_VALUE = frozenset(
    """
    --host --port --api-key --served-model-name --tokenizer --tokenizer-mode --chat-template --tool-call-parser
    --reasoning-parser --seed --download-dir --load-format --revision --uvicorn-log-level --distributed-executor-backend
    --swap-space --generation-config --override-generation-config --root-path --allowed-origins --max-log-len --scheduling-policy
    --mm-processor-cache-gb --chat-template-content-format --structured-outputs-config --config-format
    --default-chat-template-kwargs
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """model: as it is named. dtype: that weights are loaded in (None: the model's). automatic: --max-model-len auto.

    draft: the model that proposes tokens, as it is named (None: none of its own), which is not read yet.
    ignored: options that may take memory and are not known here. no_images: whether images are limited to none and videos
    are not, which leaves out the encoder of a model without videos.
    """

    serving: Serving
    model: str | None
    dtype: str | None
    automatic: bool
    ignored: tuple[str, ...]
    draft: str | None = None
    no_images: bool = False

    def for_model(self, config: Mapping[str, Any], limit_tokens: int | None) -> Command:
        """limit_tokens: of a context, by the model's configuration (None: not named)."""
        serving = self.serving
        if limit_tokens is None and serving.context_tokens is None:
            serving = replace(serving, context_tokens=UNNAMED_TOKENS)
        if self.no_images and takes_videos(config):
            return replace(self, serving=serving, ignored=(*self.ignored, LIMIT))  # what videos take is not known
        if self.no_images:
            serving = replace(serving, **WITHOUT_VISION)
        return replace(self, serving=serving)


@dataclass(slots=True)
class _Reading:
    values: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    dtype: str | None = None
    automatic: bool = False
    ignored: list[str] = field(default_factory=list)
    lora: bool = False
    speculative: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    transfer: dict[str, Any] | None = None
    limits: dict[str, str] = field(default_factory=dict)
    positional: str | None = None
    module: bool = False


def parse_command(line: str, *, version: str | None = None) -> Command:
    """Raises UsageError for a line that no shell reads and values without meaning. version: if the image does not name it."""
    words = words_of(line)
    reading = _Reading()
    if version is not None:
        reading.values["version"] = version
    arguments = _arguments(words, reading)
    before = words[: len(words) - len(arguments)]
    arguments = of_program(arguments)
    set_before = [VARIABLE.fullmatch(word) for word in before]
    named = {ENVIRONMENT[found[1]]: found[2] == "1" for found in set_before if found and found[1] in ENVIRONMENT}
    reading.environment.update(named)
    reading.ignored.extend(found[1] for found in set_before if found and found[1] in UNCOUNTED)
    _read(arguments, reading)
    no_images = reading.limits.get("image") == "0"
    if no_images and reading.limits.get("video") == "0" and "without_towers" not in reading.values:
        reading.values.update(WITHOUT_VISION)
    if reading.transfer is not None:
        reading.environment["connectors"] = connectors_of(reading.transfer)
    if reading.environment:
        reading.values["environment"] = VllmEnvironment(**reading.environment)
    if not reading.lora:
        reading.values.pop("lora_slots", None)
    draft = None
    if reading.speculative:
        proposed = proposal(reading.speculative, reading.model)
        reading.values["speculation"], draft = proposed.speculation, proposed.model
        reading.ignored.extend(proposed.ignored)
    return Command(
        serving=replace(Serving(engine="vllm"), **reading.values),
        model=reading.model,
        dtype=reading.dtype,
        automatic=reading.automatic,
        ignored=tuple(dict.fromkeys(reading.ignored)),
        draft=draft,
        no_images=no_images and "without_towers" not in reading.values,
    )


def _arguments(words: list[str], reading: _Reading) -> list[str]:
    """The words after the program, its module or its image, which may name the version."""
    for at, word in enumerate(words):
        if MODULE.fullmatch(word):
            reading.module = True
            return words[at + 1 :]
        if (image := IMAGE.fullmatch(word)) is not None:
            if image["version"]:
                reading.values["version"] = image["version"]
            return words[at + 1 :]
        if re.split(r"[/\\]", word)[-1] == "vllm":
            if (named := "".join(words[at + 1 : at + 2])) in OTHER_COMMANDS:
                break
            return words[at + 2 :] if named == "serve" else words[at + 1 :]
        if not SET_BEFORE.fullmatch(word) and word.startswith("-") and at == 0:
            return words
    raise UsageError("vllm_command")


def _read(words: list[str], reading: _Reading) -> None:
    """Raises UsageError for words that vLLM's parser refuses: beside the model, or any of a module, except an option's further
    values. Of an option that is not known they may be such."""
    values_follow = False
    for option, value in each_option(words, short=SHORT, valued=_valued, bare=BARE):
        if not option:
            if values_follow:
                continue
            if reading.module or reading.positional is not None:
                raise UsageError("vllm_stray_word", found=(value or "")[:80])
            reading.model = reading.positional = value
            continue
        values_follow = option in SEVERAL or not (option in BARE or _valued(option))
        if option.startswith(EVENTS):
            reading.environment["events"] = True
        elif option.startswith(TRANSFER) and value is not None:
            _set_transfer(option, value, reading)
        elif option in ENVIRONMENTAL:
            name, on = ENVIRONMENTAL[option]
            reading.environment[name] = on
        elif option in SWITCHES:
            reading.values.update(SWITCHES[option])
        elif option == LORA:
            reading.lora = True
            reading.values.setdefault("lora_slots", 1)
        elif value is not None and _valued(option):
            _set(option, value, reading)
        elif option not in WITHOUT_VALUE:
            reading.ignored.append(option)


def _valued(option: str) -> bool:
    known = any(option in options for options in (VALUES, FIELDS, SPECULATIVE, WITH_VALUE))
    return known or option.startswith((DOTTED, TRANSFER, EVENTS, f"{LIMIT}."))


def _set_transfer(option: str, value: str, reading: _Reading) -> None:
    """A connector, whose own buffers on the card are not counted."""
    key = option.removeprefix(f"{TRANSFER}.").replace("-", "_")
    given = parse_transfer(option, value) if option == TRANSFER else {key: value}
    reading.transfer = {**(reading.transfer or {}), **given}
    reading.ignored.append(TRANSFER)


def _set(option: str, value: str, reading: _Reading) -> None:
    if option in FIELDS:
        name, read = FIELDS[option]
        reading.values[name] = read(option, value)
        return
    if option in SPECULATIVE or option.startswith(DOTTED):
        key = SPECULATIVE.get(option, option.removeprefix(DOTTED).replace("-", "_"))
        reading.speculative[key] = int(value) if re.fullmatch("[0-9]{1,9}", value) else value
        return
    if option.startswith(LIMIT):
        reading.limits.update(read_limits(option, value))
        return
    match option:
        case "--speculative-config":
            reading.speculative.update(parse_speculation(value))
        case "--model":
            reading.model = reading.positional or value  # as vLLM's "serve" does
        case "--dtype":
            reading.dtype = read_dtype(value)
        case "--quantization":
            if value == "fp8":
                reading.dtype = value
            elif value not in OF_FILES:
                reading.ignored.append(f"{option} {value[:40]}")
        case "--max-model-len":
            reading.automatic = value in ("auto", "-1")
            if not reading.automatic:
                reading.values["context_tokens"] = read_tokens(option, value)


# Methods that vLLM only takes for files quantised so. Others may pack weights as they are loaded (bitsandbytes, torchao).
# Source: model_executor/layers/quantization/__init__.py
OF_FILES = frozenset(
    """
    awq awq_marlin gptq gptq_marlin gptq_marlin_24 moe_wna16 compressed-tensors fbgemm_fp8 modelopt modelopt_fp4 gguf aqlm
    """.split()  # noqa: SIM905
)
LORA = "--enable-lora"
ENVIRONMENTAL: Mapping[str, tuple[str, bool]] = {
    "--async-scheduling": ("asynchronous", True),
    "--no-async-scheduling": ("asynchronous", False),
    "--disable-hybrid-kv-cache-manager": ("windows", False),
    "--no-disable-hybrid-kv-cache-manager": ("windows", True),
}
BARE = WITHOUT_VALUE | SWITCHES.keys() | ENVIRONMENTAL.keys() | {LORA}
DOTTED = "--speculative-config."  # a key of it, with its value behind
TRANSFER, EVENTS = "--kv-transfer-config", "--kv-events-config"
SEVERAL = ("--api-key", "--served-model-name")  # with one value or more
VALUES = frozenset(
    (
        *("--model", "--dtype", "--quantization", "--max-model-len"),
        *("--speculative-config", LIMIT),
    )
)
FIELDS: Mapping[str, tuple[str, Callable[[str, str], Any]]] = {
    "--tensor-parallel-size": ("ranks", read_count),
    "--pipeline-parallel-size": ("pipeline_ranks", read_count),
    "--data-parallel-size": ("data_ranks", read_count),
    "--gpu-memory-utilization": ("utilization", read_share),
    "--max-num-seqs": ("sequences", read_tokens),
    "--max-num-batched-tokens": ("step_tokens", read_tokens),
    "--kv-cache-dtype": ("cache_format", read_format),
    "--block-size": ("block_tokens", read_count),
    "--max-loras": ("lora_slots", read_count),
    "--max-lora-rank": ("lora_rank", read_count),
    "--cpu-offload-gb": ("offloaded_bytes", read_gib),
    "--kv-cache-memory-bytes": ("kv_budget_bytes", read_tokens),
}

"""A pasted command of vLLM, read as vLLM reads it: `vllm serve`, its module, or its image.

Source: vLLM 0.19.0, engine/arg_utils.py, entrypoints/cli/serve.py and utils/argparse_utils.py (underscores for hyphens).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import UsageError
from ...results.serving import Serving
from ...units import GIB
from ...values import dataclass, field, replace
from .speculative_config import parse_speculation, proposal

LONGEST_COMMAND = 20_000
SET_BEFORE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)  # VAR=value before a program
IMAGE = re.compile(r"(?:\S*/)?vllm-openai(?::v?(?P<version>[0-9]+\.[0-9]+[0-9A-Za-z.]*)\S*)?")
MODULE = re.compile(r"vllm\.entrypoints\.\S+")
SHORT: Mapping[str, str] = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-q": "--quantization",
    "-ep": "--enable-expert-parallel",
    "-sc": "--speculative-config",
}
SPECULATIVE: Mapping[str, str] = {
    "--spec-method": "method",
    "--spec-model": "model",
    "--spec-tokens": "num_speculative_tokens",
}
SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "--enforce-eager": {"eager": True},
    "--no-enforce-eager": {"eager": False},
    "--enable-expert-parallel": {"expert_parallel": True},
    "--no-enable-expert-parallel": {"expert_parallel": False},
    "--enable-prefix-caching": {"prefix_caching": True},
    "--no-enable-prefix-caching": {"prefix_caching": False},
    "--language-model-only": {"images": False},
    "--skip-mm-profiling": {"images": False},
}
# Options that take no memory of the card here: without a value; any other that is not known has one where a word follows.
WITHOUT_VALUE = frozenset(
    """
    --trust-remote-code --enable-auto-tool-choice --enable-chunked-prefill --async-scheduling --no-async-scheduling
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
    ignored: options that may take memory and are not known here.
    """

    serving: Serving
    model: str | None
    dtype: str | None
    automatic: bool
    ignored: tuple[str, ...]
    draft: str | None = None


@dataclass(slots=True)
class _Reading:
    values: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    dtype: str | None = None
    automatic: bool = False
    ignored: list[str] = field(default_factory=list)
    lora: bool = False
    speculative: dict[str, Any] = field(default_factory=dict)


def parse_command(line: str, *, version: str | None = None) -> Command:
    """Raises UsageError for a line that no shell reads and values without meaning. version: if the image does not name it."""
    if len(line) > LONGEST_COMMAND:
        raise UsageError("llama_cpp_command_long", most=LONGEST_COMMAND)
    try:
        words = shlex.split(line.replace("\\\n", " "), comments=False)
    except ValueError:
        raise UsageError("llama_cpp_command_quotes") from None
    reading = _Reading()
    if version is not None:
        reading.values["version"] = version
    _read(_arguments(words, reading), reading)
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
    )


def _arguments(words: list[str], reading: _Reading) -> list[str]:
    """The words after the program, its module or its image, which may name the version."""
    for at, word in enumerate(words):
        if MODULE.fullmatch(word):
            return words[at + 1 :]
        if (image := IMAGE.fullmatch(word)) is not None:
            if image["version"]:
                reading.values["version"] = image["version"]
            return words[at + 1 :]
        if re.split(r"[/\\]", word)[-1] == "vllm":
            return words[at + 2 :] if words[at + 1 : at + 2] == ["serve"] else words[at + 1 :]
        if not SET_BEFORE.fullmatch(word) and word.startswith("-") and at == 0:
            return words
    raise UsageError("vllm_command")


def _read(words: list[str], reading: _Reading) -> None:
    at = 0
    while at < len(words):
        word, at = words[at], at + 1
        if not word.startswith("-"):
            if reading.model is None:
                reading.model = word
            continue
        word, equals, value = word.partition("=")
        if equals:
            words.insert(at, value)
        word = SHORT.get(word, "--" + word.lstrip("-").replace("_", "-") if word.startswith("--") else word)
        following = words[at] if at < len(words) else None
        if word in VALUES or word in FIELDS or word in SPECULATIVE or word.startswith(DOTTED):
            if following is None:
                raise UsageError("llama_cpp_value_missing", option=word)
            _set(word, following, reading)
            at += 1
        elif word in SWITCHES:
            reading.values.update(SWITCHES[word])
        elif word in WITH_VALUE:
            at += 1
        elif word == "--enable-lora":
            reading.lora = True
            reading.values.setdefault("lora_slots", 1)
        elif word not in WITHOUT_VALUE:
            reading.ignored.append(word)
            if following is not None and not following.startswith("-"):
                at += 1


def _set(option: str, value: str, reading: _Reading) -> None:
    if option in FIELDS:
        name, read = FIELDS[option]
        reading.values[name] = read(option, value)
        return
    if option in SPECULATIVE or option.startswith(DOTTED):
        key = SPECULATIVE.get(option, option.removeprefix(DOTTED).replace("-", "_"))
        reading.speculative[key] = int(value) if re.fullmatch("[0-9]{1,9}", value) else value
        return
    match option:
        case "--speculative-config":
            reading.speculative.update(parse_speculation(value))
        case "--model":
            reading.model = value
        case "--dtype":
            reading.dtype = None if value == "auto" else {"half": "float16", "float": "float32"}.get(value, value)
        case "--quantization":
            reading.dtype = "fp8" if value == "fp8" else reading.dtype
        case "--max-model-len":
            reading.automatic = value in ("auto", "-1")
            if not reading.automatic:
                reading.values["context_tokens"] = _tokens(option, value)
        case "--limit-mm-per-prompt":
            if _no_images(value):
                reading.values["images"] = False


def _no_images(value: str) -> bool:
    """Whether each kind is limited to 0: as JSON, or KIND=N with commas between."""
    try:
        limits = json.loads(value)
    except (ValueError, RecursionError):
        limits = dict(part.partition("=")[::2] for part in value.split(","))
    return isinstance(limits, dict) and str(limits.get("image")) == "0" and str(limits.get("video", 0)) == "0"


def _number(option: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", value) or int(value) == 0:
        raise UsageError("vllm_count", option=option, found=value[:80])
    return int(value)


def _tokens(option: str, value: str) -> int:
    """A number, with k, m, g (thousands) or K, M, G (1024s) behind. Source: human_readable_int of arg_utils."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([kmgKMG]?)", value)
    if match is None:
        raise UsageError("llama_cpp_number", option=option, found=value[:80])
    letter = match[2]
    base = 1024 if letter.isupper() else 1000
    tokens = int(float(match[1]) * base ** ("kmg".index(letter.lower()) + 1 if letter else 0))
    return _number(option, str(tokens))


def _share(option: str, value: str) -> float:
    if not re.fullmatch(r"[0-9]{0,2}(\.[0-9]{1,12})?", value) or not 0 < float(value or 0) <= 1:
        raise UsageError("vllm_share", option=option, found=value[:80])
    return float(value)


def _gib(option: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value):
        raise UsageError("llama_cpp_number", option=option, found=value[:80])
    return int(float(value) * GIB)


def _format(option: str, value: str) -> str:
    """Both 8-bit kinds are a byte; bfloat16 and float16 are as they say."""
    return "fp8" if value.startswith("fp8") else value


DOTTED = "--speculative-config."  # a key of it, with its value behind
VALUES = frozenset(
    (
        *("--model", "--dtype", "--quantization", "--max-model-len", "--limit-mm-per-prompt"),
        "--speculative-config",
    )
)
FIELDS: Mapping[str, tuple[str, Callable[[str, str], Any]]] = {
    "--tensor-parallel-size": ("ranks", _number),
    "--pipeline-parallel-size": ("pipeline_ranks", _number),
    "--data-parallel-size": ("data_ranks", _number),
    "--gpu-memory-utilization": ("utilization", _share),
    "--max-num-seqs": ("sequences", _tokens),
    "--max-num-batched-tokens": ("step_tokens", _tokens),
    "--kv-cache-dtype": ("cache_format", _format),
    "--block-size": ("block_tokens", _number),
    "--max-loras": ("lora_slots", _number),
    "--max-lora-rank": ("lora_rank", _number),
    "--cpu-offload-gb": ("offloaded_bytes", _gib),
    "--kv-cache-memory-bytes": ("kv_budget_bytes", _tokens),
}

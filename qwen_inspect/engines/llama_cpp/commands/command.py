"""A pasted command of llama.cpp, read as llama.cpp reads it.

Source: llama.cpp b11549 and 0c1e57098, common/arg.cpp; tools/server/server.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from ....errors import UnsupportedError, UsageError
from ....typed import Any, Literal
from ....values import dataclass, field, replace
from ..ggml.scheduler import HOST
from ..graphs.design import POOLING
from ..options import (
    CARD_NAME,
    DRAFT_TYPES,
    EXPERTS,
    NGRAM_TOKENS,
    DraftOptions,
    LlamaCppOptions,
    as_cuda,
    first_layers,
    of_embedding,
)
from .bench import usual_options
from .neutral import WITH_VALUE, WITHOUT_VALUE
from .programs import as_the_program_runs
from .shell import read_line
from .spellings import (
    DRAFT_HOST_EXPERTS,
    FALSE,
    FLASH,
    HOST_EXPERTS,
    PRESETS,
    PROJECTOR_SWITCHES,
    SPELLINGS,
    SWITCHES,
    TRUE,
    normal,
    words_of,
)

MOST_LAYERS = 512  # LLAMA_MAX_LAYERS
WHOLE_CONTEXT = 2**32 - 1
DENSE = r"\.ffn_(up|down|gate)\."  # LLM_FFN_DENSE_REGEX
FILE_OF_A_HUB = re.compile(r"https://huggingface\.co/([^/]+/[^/]+)/resolve/[^/]+/([^?]+\.gguf)(\?.*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class BesideFile:
    """A file that llama.cpp loads beside the model, and its option."""

    kind: Literal["projector", "draft", "adapter"]
    option: str
    path: str


BESIDE: Mapping[str, Literal["projector", "draft", "adapter"]] = {
    "projector": "projector",
    "draft_model": "draft",
    "adapter": "adapter",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """model: as --model or -hf name it, None: not named. ignored: options that are not known here.

    locked: --mlock. projector_on_card: not --no-mmproj-offload. projector_device: -mmdev. image_tokens: --image-max-tokens.
    backend: of the devices that the command names, None if it names none. projects: a file of --mmproj beside a model of a hub is
    looked for, unless --no-mmproj forbids it. unknown_program: none of llama.cpp's, read as llama-server.
    """

    options: LlamaCppOptions
    model: str | None = None
    flash_attention: bool | None = None
    ignored: tuple[str, ...] = ()
    beside: tuple[BesideFile, ...] = ()
    locked: bool = False
    projector_on_card: bool = True
    projector_device: str | None = None
    image_tokens: int | None = None
    backend: str | None = None
    projects: bool = True
    unknown_program: str | None = None


@dataclass(slots=True)
class _Reading:
    values: dict[str, Any] = field(default_factory=dict)
    overrides: list[tuple[str, str]] = field(default_factory=list)
    model: str | None = None
    hub_file: str | None = None
    flash: bool | None = None
    ignored: list[str] = field(default_factory=list)
    beside: list[BesideFile] = field(default_factory=list)
    locked: bool = False
    host_experts: list[str] = field(default_factory=list)
    draft: dict[str, Any] = field(default_factory=dict)
    draft_overrides: list[tuple[str, str]] = field(default_factory=list)
    projector: dict[str, Any] = field(default_factory=dict)
    backend: str | None = None


def parse_command(text: str) -> Command:
    """Raises UsageError for a line that no shell reads, values without meaning, and options that contradict each other."""
    line = read_line(text)
    program = line.program if line.known else "llama-server"
    reading = _Reading()
    words = usual_options(line.words) if program == "llama-bench" else line.words
    _read([*words_of(line.variables), *words], reading)
    if len(reading.host_experts) > 1:
        raise UsageError("llama_cpp_contradiction", first=reading.host_experts[0], second=reading.host_experts[1])
    values = {
        **as_the_program_runs(program, reading.values),
        "program": program,
        "overrides": tuple(reading.overrides),
        "draft": DraftOptions(**reading.draft, overrides=tuple(reading.draft_overrides)),
    }
    options = LlamaCppOptions(**values)
    options = of_embedding(options) if program == "llama-embedding" else options
    if reading.flash is not None:
        options = replace(options, flash_attention=reading.flash)
    model = reading.model
    if model is not None and reading.hub_file is not None and model.startswith("hf:"):
        model = f"{model.split(':')[0]}:{model.split(':')[1]}:{reading.hub_file}"
    return Command(
        options=options,
        model=model,
        flash_attention=reading.flash,
        ignored=tuple(reading.ignored),
        beside=tuple(reading.beside),
        locked=reading.locked,
        backend=reading.backend,
        unknown_program=None if line.known else line.program,
        **reading.projector,
    )


def _read(words: list[str], reading: _Reading) -> None:
    names = {spelling: name for name, spellings in SPELLINGS.items() for spelling in spellings}
    at = 0
    while at < len(words):
        word, at = words[at], at + 1
        if word.startswith("--") and "=" in word:
            word, value = word.split("=", 1)
            words.insert(at, value)
        word, following = normal(word), words[at] if at < len(words) else None
        if word in names:
            if following is None:
                raise UsageError("llama_cpp_value_missing", option=word)
            _set(names[word], word, following, reading)
            at += 1
        elif word in FLASH:
            reading.flash, used = _flash(following)
            at += used
        elif word in WITH_VALUE:
            at += 1
        elif word in PRESETS:
            words[at:at] = PRESETS[word].split()
        elif not _switch(word, reading):
            reading.ignored.append(word)
            if word.startswith("-") and following is not None and not _is_option(following):
                at += 1


def _switch(word: str, reading: _Reading) -> bool:
    """Whether it is an option without a value, which is set then."""
    if word in SWITCHES:
        reading.values.update(SWITCHES[word])
    elif word in PROJECTOR_SWITCHES:
        reading.projector |= PROJECTOR_SWITCHES[word]
    elif word in HOST_EXPERTS:
        reading.host_experts.append(word)
        reading.overrides.append((EXPERTS, HOST))
    elif word in DRAFT_HOST_EXPERTS:
        reading.draft_overrides.append((EXPERTS, HOST))
    elif word in WITHOUT_VALUE:
        reading.locked = reading.locked or word == "--mlock"
    else:
        return False
    return True


def _is_option(word: str) -> bool:
    return word.startswith("-") and not re.fullmatch(r"-[0-9.]+", word)


def _flash(following: str | None) -> tuple[bool | None, int]:
    """-fa alone turns it on, as before August 2025; then on, off or auto follow."""
    if following in TRUE:
        return True, 1
    if following in FALSE:
        return False, 1
    if following in ("auto", "-1"):
        return None, 1
    return True, 0


def _set(name: str, option: str, value: str, reading: _Reading) -> None:
    match name:
        case "model":
            reading.model = value
        case "context":
            reading.values["context_tokens"] = _number(option, value) or None
            if reading.values["context_tokens"] is None:  # the model's limit, which --fit leaves
                reading.values["fit_context"] = WHOLE_CONTEXT
        case "hub":
            reading.model = f"hf:{value}"
        case "hub_file":
            reading.hub_file = value
        case "url":
            match = FILE_OF_A_HUB.fullmatch(value)
            reading.model = f"hf:{match[1]}:{match[2]}" if match else value
        case "docker":
            raise UnsupportedError("llama_cpp_docker", option=option)
        case "draft_hub":
            reading.beside.append(BesideFile(kind="draft", option=option, path=f"hf:{value}"))
        case "projector" | "draft_model":
            reading.beside.append(BesideFile(kind=BESIDE[name], option=option, path=value))
        case "adapter" | "scaled_adapter":
            paths = value.split(",")
            if name == "scaled_adapter":
                paths = [path.rpartition(":")[0] or path for path in paths]
            reading.beside += [BesideFile(kind="adapter", option=option, path=path) for path in paths]
        case "latent":
            reading.values.update({"fork": True, "latent": _number(option, value)})
        case "attended_at_once":
            reading.values["fork"] = True
        case "batched":
            reading.values["sequences"] = max(_number(option, count) for count in value.split(","))
        case "devices":
            reading.values["devices"] = _devices(value, reading)
        case "draft_devices":
            reading.draft["devices"] = _devices(value, reading)
        case "projector_device":
            device = next(iter(_devices(value, reading)), None)
            reading.projector |= {"projector_on_card": device is not None, "projector_device": device}
        case "image_tokens":
            reading.projector["image_tokens"] = _number(option, value) or None
        case "override":
            reading.overrides += _overrides(option, value, reading)
        case "host_experts":
            reading.host_experts.append(option)
            reading.overrides += _first_layers(_number(option, value), EXPERTS)
        case "host_dense":
            reading.overrides += _first_layers(_number(option, value), DENSE)
        case "load_mode":
            reading.values["memory_mapped"] = "mmap" in value or value == "auto"
        case "draft_override":
            reading.draft_overrides += _overrides(option, value, reading)
        case "draft_host_experts":
            reading.draft_overrides += _first_layers(_number(option, value), EXPERTS)
        case "draft_simple":
            reading.draft.setdefault("types", ("draft-simple",))
            reading.draft["most_tokens"] = _number(option, value)
        case _ if name in DRAFT_FIELDS:
            field_name, read = DRAFT_FIELDS[name]
            reading.draft[field_name] = read(option, value)
        case _:
            field_name, read = FIELDS[name]
            reading.values[field_name] = read(option, value)


def _first_layers(count: int, part: str) -> list[tuple[str, str]]:
    """llama.cpp has a pattern for each layer, which means the same."""
    return [(first_layers(min(count, MOST_LAYERS), part), HOST)] if count else []


def _devices(value: str, reading: _Reading) -> tuple[str, ...]:
    """Source: parse_device_list."""
    return () if value == "none" else tuple(_device(name.strip(), reading) for name in value.split(","))


def _device(name: str, reading: _Reading) -> str:
    """As CUDA's backend names it."""
    if match := CARD_NAME.fullmatch(name):
        reading.backend = match[1]
    return as_cuda(name)


def _overrides(option: str, value: str, reading: _Reading) -> Iterator[tuple[str, str]]:
    """PATTERN=DEVICE, several with commas between. Source: parse_tensor_buffer_overrides."""
    for part in value.split(","):
        pattern, equals, device = part.rpartition("=")
        if not equals or not pattern or not device:
            raise UsageError("llama_cpp_override", option=option, found=part[:80])
        yield pattern, _device(device.strip(), reading)


def _number(option: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", value):
        raise UsageError("llama_cpp_number", option=option, found=value[:80])
    return int(value)


def _layers(option: str, value: str) -> int | None:
    if value in ("all", "-2"):
        return MOST_LAYERS + 1
    return None if value in ("auto", "-1") else _number(option, value)


def _switched(option: str, value: str) -> bool:
    if value not in (*TRUE, *FALSE):
        raise UsageError("llama_cpp_spec_type", option=option, found=value[:80], known="on, off")
    return value in TRUE


def _sequences(option: str, value: str) -> int | None:
    if value == "0":
        raise UsageError("llama_cpp_none_at_once", option=option)
    return None if value == "-1" else _number(option, value)


def _kind(option: str, value: str) -> str:
    return value.lower()


def _shares(option: str, value: str) -> tuple[float, ...]:
    """Shares of cards, with commas or slashes between. Source: arg.cpp, --tensor-split."""
    parts = re.split(r"[,/]+", value)
    if not all(re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", part) for part in parts):
        raise UsageError("llama_cpp_number", option=option, found=value[:80])
    return tuple(float(part) for part in parts)


def _types(option: str, value: str) -> tuple[str, ...]:
    known = ("none", *DRAFT_TYPES, *NGRAM_TOKENS)
    types = tuple(value.split(","))
    for kind in types:
        if kind not in known:
            raise UsageError("llama_cpp_spec_type", option=option, found=kind[:80], known=", ".join(known))
    return tuple(kind for kind in types if kind != "none")


def _mode(option: str, value: str) -> str:
    if value == "tensor":
        raise UnsupportedError("llama_cpp_split_tensor")
    if value not in ("none", "layer", "row"):
        raise UsageError("llama_cpp_split_mode", found=value[:80])
    return value


def _pooling(option: str, value: str) -> str:
    if value not in POOLING:
        raise UsageError("llama_cpp_spec_type", option=option, found=value[:80], known=", ".join(POOLING))
    return value


FIELDS: Mapping[str, tuple[str, Callable[[str, str], Any]]] = {
    "fit": ("fits", _switched),
    "fit_context": ("fit_context", _number),
    "fit_targets": (
        "fit_targets",
        lambda option, value: tuple(_number(option, part) for part in re.split(r"[,/]+", value)),
    ),
    "batch": ("batch", _number),
    "micro_batch": ("micro_batch", _number),
    "layers": ("offloaded", _layers),
    "key_type": ("key_type", _kind),
    "value_type": ("value_type", _kind),
    "sequences": ("sequences", _sequences),
    "split": ("split", _shares),
    "split_mode": ("split_mode", _mode),
    "main_card": ("main_card", _number),
    "pooling": ("pooling", _pooling),
}
DRAFT_FIELDS: Mapping[str, tuple[str, Callable[[str, str], Any]]] = {
    "draft_types": ("types", _types),
    "draft_tokens": ("most_tokens", _number),
    "draft_layers": ("offloaded", _layers),
    "draft_key_type": ("key_type", _kind),
    "draft_value_type": ("value_type", _kind),
}

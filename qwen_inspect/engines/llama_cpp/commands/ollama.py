"""What Ollama asks of llama.cpp for a model of its store: the Modelfile's parameters, then the server's environment.

Source: ollama 01562a7f, docs/context-length.mdx, and 00182b50, docs/faq.mdx.
"""

from __future__ import annotations

from collections.abc import Mapping

from ....errors import UsageError
from ....language import Message
from ....results.fit import Gpu
from ....results.model import Report
from ....results.serving import Serving
from ....typed import Any
from ....values import replace

FORMATS = ("f16", "q8_0", "q4_0")
FALSE = ("0", "f", "F", "false", "FALSE", "False")  # Go, strconv.ParseBool
# GiB of a card below which a default context holds; above the last, 256k.
CONTEXTS = ((24, 4096), (48, 32_768))
LARGEST_CONTEXT = 262_144


def as_served(
    serving: Serving, report: Report, gpu: Gpu, environment: Mapping[str, str]
) -> tuple[Serving, tuple[Message, ...]]:
    """The request with Ollama's settings where none was typed, and what they are."""
    settings: dict[str, str] = {}
    changes: dict[str, Any] = {}
    if serving.context_tokens is None:
        changes["context_tokens"], settings["num_ctx"] = _context(report, gpu, environment)
    if serving.batch == 1 and (parallel := _count(environment, "OLLAMA_NUM_PARALLEL")):
        changes["batch"], settings["OLLAMA_NUM_PARALLEL"] = parallel, str(parallel)
    if serving.offloaded is None and (layers := report.served.get("num_gpu", -1)) >= 0:
        changes["offloaded"], settings["num_gpu"] = layers, str(layers)
    if (micro_batch := report.served.get("num_batch", 0)) > 0:
        changes["micro_batch"], settings["num_batch"] = micro_batch, str(micro_batch)
    flash = _setting(environment, "OLLAMA_FLASH_ATTENTION")
    if flash in FALSE:
        changes["flash_attention"], settings["OLLAMA_FLASH_ATTENTION"] = False, flash
    if serving.cache_format in ("auto", "auto,auto") and (name := _setting(environment, "OLLAMA_KV_CACHE_TYPE")):
        if name not in FORMATS:
            raise UsageError("ollama_setting", name="OLLAMA_KV_CACHE_TYPE", found=name, known=", ".join(FORMATS))
        if flash not in FALSE:
            changes["cache_format"], settings["OLLAMA_KV_CACHE_TYPE"] = name, name
    shown = ", ".join(f"{name} {value}" for name, value in settings.items())
    notices = (Message("assume_ollama", settings=shown),) if shown else ()
    return replace(serving, **changes), (*notices, Message("assume_ollama_engine"))


def _context(report: Report, gpu: Gpu, environment: Mapping[str, str]) -> tuple[int, str]:
    """The context, and where it is from. A default is no longer than the model's own limit."""
    if given := report.served.get("num_ctx"):
        return given, str(given)
    if given := _count(environment, "OLLAMA_CONTEXT_LENGTH"):
        return given, f"{given} (OLLAMA_CONTEXT_LENGTH)"
    default = next((tokens for gib, tokens in CONTEXTS if gpu.memory_bytes < gib << 30), LARGEST_CONTEXT)
    return min(default, report.spec.context_tokens or default), f"{default} (default)"


def _setting(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name, "").strip("\"' ")


def _count(environment: Mapping[str, str], name: str) -> int | None:
    """A positive number; None if it is not set. UsageError for anything else (Ollama ignores it and logs so)."""
    text = _setting(environment, name)
    if not text or text == "0":
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise UsageError("ollama_setting", name=name, found=text[:40], known="1, 2, 3, …")
    return int(text)

"""A run with another version of transformers than the installed one, for what is known to differ."""

from __future__ import annotations

import re

from ..errors import UnsupportedError, UsageError
from ..language import Message
from ..results.attention import LayerAttention
from ..results.memory import PACKING, Run
from ..results.model import Report
from ..values import replace

REFERENCE = "5.23"  # of the sources that are cited, and of shipped traces
# Families whose small models were run with transformers 4.57.6 and torch 2.13, forward and training, sdpa: every request is that
# of 5.23 with the mask, but for RoPE's tables and the making of the mask, which are gone before the first layer.
SAME_FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "phi3", "olmo2", "granite")
# Those whose sdpa_attention_forward is that of 4.57.6. 4.54 and 4.55 also make Q, K and V contiguous, and 4.53 always repeats K
# and V; with the mask, which asks for the same, only the short-lived copies differ.
SAME_FORWARD = ("4.56", "4.57")


def with_version(run: Run, report: Report) -> Run:
    """The run with `transformers` as major.minor, None if it is the installed version.

    UsageError for what is no version, UnsupportedError for one of which it is not known what differs, or not for such a run.
    """
    typed = run.transformers or ""
    number = re.fullmatch(r"(\d{1,3}\.\d{1,3})(\.\d{1,3})?", typed)
    if number is None:
        raise UsageError("version_text", text=typed[:40])
    asked = number[1]
    if asked == _installed():
        return replace(run, transformers=None)
    if asked not in PACKING or typed == "4.53.0":
        raise UnsupportedError("version_unknown", version=typed, known=_known())
    if run.mode != "train" and (run.mode != "forward" or asked not in SAME_FORWARD):
        raise UnsupportedError("version_mode", version=typed, forward=" and ".join(SAME_FORWARD), mode=run.mode)
    if run.loop.by_trainer:
        raise UnsupportedError("version_trainer", version=typed, reference=REFERENCE)
    if not _is_same(report) or (run.mode == "train" and run.attention != "sdpa"):
        raise UnsupportedError("version_model", version=typed, families=", ".join(SAME_FAMILIES))
    return replace(run, transformers=asked)


def assumption(run: Run) -> Message:
    """What a run with the other version assumes."""
    key = "assume_packed" if run.packed and not run.loop.padding_free else "assume_version"
    return Message(key, version=run.transformers or "", reference=REFERENCE)


def _installed() -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow, and seldom needed

    try:
        return ".".join(version("transformers").split(".")[:2])
    except PackageNotFoundError:
        return REFERENCE


def _known() -> str:
    return f"{PACKING[0]}.1 - {PACKING[-1]}, {_installed()}"


def _is_same(report: Report) -> bool:
    """Whether the model is of a known family, dense, and attends to all tokens in every layer."""
    if report.design is None or report.known.quantised is not None or report.known.attention is None:
        return False
    layers = report.known.attention.layers
    return report.spec.family in SAME_FAMILIES and all(
        isinstance(layer, LayerAttention) and layer.window_tokens is None for layer in layers
    )

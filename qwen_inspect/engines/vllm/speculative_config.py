"""--speculative-config: which method proposes tokens, with which model. Source: vLLM 0.19.0, config/speculative.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import get_args

from ...errors import UnsupportedError, UsageError
from ...results.serving import Speculation, SpeculativeMethod
from ...typed import Any
from ...values import dataclass
from .drafter import WITHOUT_MODEL

OPTION = "--speculative-config"
METHODS = get_args(SpeculativeMethod)
# Keys that change neither weights nor the profile run nor the cache.
NEUTRAL = frozenset(
    """
    method model num_speculative_tokens draft_tensor_parallel_size enforce_eager revision code_revision max_model_len
    disable_padded_drafter_batch use_local_argmax_reduction prompt_lookup_max prompt_lookup_min
    suffix_decoding_max_tree_depth suffix_decoding_max_cached_requests suffix_decoding_max_spec_factor
    suffix_decoding_min_token_prob disable_by_batch_size
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """model: the drafter's name (None: without a model of its own). ignored: keys that may take memory and are not known here."""

    speculation: Speculation
    model: str | None
    ignored: tuple[str, ...]


def parse_speculation(text: str) -> Mapping[str, Any]:
    """Raises UsageError for what is no JSON object."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UsageError("vllm_speculative_json", option=OPTION, found=text[:80])
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def proposal(values: Mapping[str, Any], target: str | None) -> Proposal:
    """target: the model's name. Raises UsageError for values without meaning, UnsupportedError for methods not modelled."""
    model, tokens, ranks = (
        values.get(key) for key in ("model", "num_speculative_tokens", "draft_tensor_parallel_size")
    )
    if model is not None and not isinstance(model, str):
        raise UsageError("vllm_speculative_json", option=f"{OPTION} model", found=str(model)[:80])
    for key, value in (("num_speculative_tokens", tokens), ("draft_tensor_parallel_size", ranks)):
        if value is not None and (type(value) is not int or not 0 < value <= 1024):
            raise UsageError("vllm_count", option=f"{OPTION} {key}", found=str(value)[:80])
    method = _method(values.get("method"), model)
    own = method == "mtp" or method in WITHOUT_MODEL
    if (
        (own and method == "mtp" and model not in (None, target))
        or values.get("quantization")
        or values.get("parallel_drafting")
    ):
        raise UnsupportedError("vllm_speculation", method=method)
    if not own and model is None:
        raise UsageError("vllm_speculative_model", method=method)
    if tokens is None and method not in ("mtp", "suffix"):
        raise UsageError("vllm_speculative_tokens", option=OPTION)
    return Proposal(
        speculation=Speculation(method=method, tokens=tokens, ranks=ranks),
        model=None if own else model,
        ignored=tuple(f"{OPTION} {key[:40]}" for key in values if key not in NEUTRAL),
    )


def _method(named: object, model: str | None) -> SpeculativeMethod:
    """As named, else by the drafter's name. Source: SpeculativeConfig.__post_init__."""
    if named is None:
        name = (model or "").lower()
        if name in ("ngram", "[ngram]"):
            return "ngram"
        return "eagle" if "eagle-" in name else "eagle3" if "eagle3" in name else "draft_model"
    method = "mtp" if str(named).endswith("_mtp") else str(named)
    for known in METHODS:
        if method == known:
            return known  # type: ignore[no-any-return]
    raise UnsupportedError("vllm_speculation", method=str(named)[:80])

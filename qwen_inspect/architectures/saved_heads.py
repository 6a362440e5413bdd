"""Gemma 4's wider heads of full attention, which releases state by keys of their own and transformers saves layer by layer.

Source: transformers 5.23, Gemma4TextConfig.__post_init__ and HeterogeneousConfigMixin
"""

from __future__ import annotations

from collections.abc import Mapping

from ..typed import Any

SAVED = "per_layer_config"
TYPES = ("gemma4", "gemma4_text")
HEADS = frozenset({"head_dim", "num_key_value_heads"})
HEAD_DIM = 256  # of the class by default


def as_released(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration with the keys of releases where it was saved by transformers and layers differ in nothing else."""
    if config.get("model_type") not in TYPES:
        return config
    if isinstance(config.get("text_config"), Mapping):
        return {**config, "text_config": _decoder(config["text_config"])}
    return _decoder(config)


def _decoder(text: Mapping[str, Any]) -> Mapping[str, Any]:
    own = _own_heads(text) if SAVED in text else None
    if own is None:
        return text
    kv_heads, head_dim = own.get("num_key_value_heads"), own.get("head_dim", text.get("head_dim", HEAD_DIM))
    rest = {key: value for key, value in text.items() if key != SAVED}
    return {**rest, "global_head_dim": head_dim, "num_global_key_value_heads": kv_heads}


def _own_heads(text: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What layers of full attention have otherwise than the others; None if they differ among themselves, or in anything else."""
    saved, types = text[SAVED], text.get("layer_types")
    if not saved:
        return {}
    if not isinstance(saved, Mapping) or not isinstance(types, list):
        return None
    full = [index for index, kind in enumerate([*types[:-1], "full_attention"]) if kind == "full_attention"]
    heads = [saved.get(f"{index:0{len(str(len(types) - 1))}}", saved.get(str(index))) for index in full]
    first = heads[0]
    if len(saved) != len(full) or not isinstance(first, Mapping) or any(own != first for own in heads):
        return None
    keys = (
        HEADS if text.get("attention_k_eq_v") else {"head_dim"}
    )  # which decides whether the class reads the releases' key
    return first if {*first} <= keys else None

"""State space layers: dimensions that none of their tensors shows, and lengths at which their code does something else.

A prompt shorter than the convolution's kernel is padded to it. Mamba-2's code pads a prompt to whole chunks, and computes with
all pairs of them. Source: transformers 5.23, mamba2_chunk_scan in models/mamba2/modeling_mamba2.py and the classes made of it
"""

from __future__ import annotations

from collections.abc import Mapping

from ...results.cache import CacheLayer
from ...spec import Module, each_module
from ...typed import Any, NamedTuple
from .kept_trace import CHUNK_TOKENS
from .token_loops import FOLDED_TOKENS

FLASH_HEAD_DIM = 256  # the widest of flash attention, which pads to eights. Source: torch 2.13, sdp_utils.cpp

# By model_type: the keys of a chunk's tokens, of which the first that is there holds, and the class's default.
# Source: transformers 5.23, models/*/configuration_*.py; NemotronHConfig.__post_init__
CHUNK_SIZES: Mapping[str, tuple[tuple[str, ...], int]] = {
    "mamba2": (("chunk_size",), 256),
    "nemotron_h": (("mamba_chunk_size", "chunk_size"), 128),
    "bamba": (("mamba_chunk_size",), 256),
    "falcon_h1": (("mamba_chunk_size",), 256),
    "granitemoehybrid": (("mamba_chunk_size",), 256),
}


class Scan(NamedTuple):
    """A layer's scan. path: what decides which path its code takes. thresholds: lengths beyond which it does something else, with
    what has them.
    """

    path: tuple[bool, ...]
    dimensions: tuple[int, ...]
    thresholds: tuple[tuple[str, int], ...]


def chunk_tokens(config: Mapping[str, Any]) -> int | None:
    """Tokens of a chunk to which prompts are padded; None if that is no number."""
    keys, default = CHUNK_SIZES.get(str(config.get("model_type")), ((), CHUNK_TOKENS))
    size = next((config[key] for key in keys if key in config), default)
    return size if type(size) is int and size > 0 else None


def scan_of(block: Module, kept: CacheLayer, config: Mapping[str, Any]) -> Scan | None:
    """The scan of a layer that keeps a convolution's inputs and a state, and its attention if it has both; None for a mixer that
    is not known here.
    """
    mixers = [
        module
        for _, module in each_module(block)
        if {"conv1d", "out_proj"} <= {child.name for child in module.children}
        or {"conv1d", "forget_gate"} <= {child.name for child in module.children}
    ]
    chunk = chunk_tokens(config)
    if len(mixers) != 1 or len(kept.states_bytes) != 2 or chunk is None:
        return None
    children = {child.name: child for child in mixers[0].children}
    shapes = {tensor.name: tensor.shape for tensor in mixers[0].tensors}
    channels, _, kernel = children["conv1d"].tensors[0].shape
    if "forget_gate" in children:  # Kimi's delta attention, whose tensors show all
        return Scan((), (), (("chunks", kernel),))
    if "x_proj" in children:  # Mamba 1, as well
        return Scan((), (), (("kernel", kernel), ("turns", FOLDED_TOKENS)))
    if len(shapes.get("A_log", ())) != 1 or "in_proj" not in children:
        return None
    (heads,) = shapes["A_log"]
    inner = children["out_proj"].tensors[0].shape[1]
    state = kept.states_bytes[1] // (4 * inner)  # float32
    groups = (channels - inner) // (2 * state)
    path: tuple[bool, ...] = (groups == 1, groups == heads)
    dimensions: tuple[int, ...] = (heads, inner // heads, groups, state, kernel, chunk)
    if kept.kind == "hybrid":
        more_path, more = _attention(block, config)
        path, dimensions = (*path, *more_path), (*dimensions, *more)
    return Scan(path, dimensions, (("kernel", kernel), ("chunk", chunk)))


def _attention(block: Module, config: Mapping[str, Any]) -> tuple[tuple[bool, ...], tuple[int, ...]]:
    """As `outline` describes softmax attention, of a layer that has it beside its scan."""
    rows = {
        module.name: module.tensors[0].shape[0]
        for _, module in each_module(block)
        if module.name in ("q_proj", "k_proj")
    }
    heads = config["num_attention_heads"]
    head_dim = rows["q_proj"] // heads
    kv_heads = rows["k_proj"] // head_dim
    return (kv_heads == heads, head_dim % 8 > 0, head_dim > FLASH_HEAD_DIM), (heads, kv_heads, head_dim)

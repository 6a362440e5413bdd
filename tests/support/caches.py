"""What a real model keeps in its cache, and what is predicted of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_inspect.architectures import Architecture
from qwen_inspect.architectures.generic import read_generic
from qwen_inspect.results.cache import CacheReport

BATCH, PROMPT, DECODED = 2, 9, 4


def generic(config: Mapping[str, Any]) -> Architecture:
    architecture = read_generic(config, ())
    assert architecture.built is not None
    return architecture


def real_bytes(model: Any) -> list[int]:
    """Bytes of the tensors that each layer of the cache holds after a prompt and some tokens, really computed."""
    import torch

    torch.manual_seed(0)
    highest = min(model.get_input_embeddings().num_embeddings, 100)
    name: str = ""
    cache: Any = None
    with torch.inference_mode():
        for tokens in (PROMPT, *[1] * DECODED):
            ids = torch.randint(3, highest, (BATCH, tokens))
            outputs = model(input_ids=ids, use_cache=True, **({name: cache} if name else {}))
            name = "past_key_values" if getattr(outputs, "past_key_values", None) is not None else "cache_params"
            cache = getattr(outputs, name)
    return [sum(one.nbytes for one in tensors_of(vars(layer))) for layer in cache.layers]


def tensors_of(value: Any) -> list[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [one for key, inner in value.items() if key != "_sliding_window_tensor" for one in tensors_of(inner)]
    return [one for inner in value for one in tensors_of(inner)] if isinstance(value, (list, tuple)) else []


def predicted_bytes(cache: CacheReport) -> list[int]:
    return [BATCH * layer.size_bytes(PROMPT + DECODED) for layer in cache.layers]

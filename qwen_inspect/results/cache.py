"""The KV cache, as transformers holds it and as engines reserve it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ..language import Message

CacheKind = Literal[
    "full", "sliding", "linear", "chunked", "latent", "indexed", "recurrent", "convolution", "hybrid", "shared", "none"
]
CacheEngine = Literal["transformers", "vllm", "llama_cpp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayer:
    """What one layer keeps for one sequence: bytes for each token held, bytes whatever the length, the most tokens held.

    kind: "full", "sliding", "linear"; of a class known by its cache alone also "chunked", "latent" (MLA), "indexed" (with keys
    of an index), "recurrent", "convolution", "hybrid" (keys and values beside a state), "shared" (it reads another layer's) and
    "none". states_bytes: of linear attention, the convolution's inputs and the recurrent state.
    """

    index: int
    kind: CacheKind
    bytes_per_token: int
    states_bytes: tuple[int, ...]
    window_tokens: int | None

    @property
    def fixed_bytes(self) -> int:
        return sum(self.states_bytes)

    def size_bytes(self, tokens: int) -> int:
        """Bytes after `tokens` tokens of one sequence."""
        held = tokens if self.window_tokens is None else min(tokens, self.window_tokens - 1)
        return self.fixed_bytes + held * self.bytes_per_token

    def storage_bytes(self, tokens: int, *, fed_last: int) -> int:
        """Bytes of what lies in memory for them, where the last `fed_last` were fed at once: with a window, views of these and of
        what was kept before.

        Source: transformers 5.23, cache_utils.DynamicSlidingWindowLayer.update
        """
        if self.window_tokens is None:
            return self.size_bytes(tokens)
        before = min(tokens - fed_last, self.window_tokens - 1)
        return self.fixed_bytes + (before + fed_last) * self.bytes_per_token

    def static_bytes(self, tokens: int) -> int:
        """Bytes of what a static cache with room for `tokens` tokens makes, a window's all at once.

        Source: transformers 5.23, cache_utils.StaticLayer and StaticSlidingWindowLayer
        """
        room = tokens if self.window_tokens is None else min(tokens, self.window_tokens)
        return self.fixed_bytes + room * self.bytes_per_token


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """The KV cache as transformers' DynamicCache holds it, in `dtype`."""

    dtype: str
    layers: tuple[CacheLayer, ...]

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one more token adds while no window is full."""
        return sum(layer.bytes_per_token for layer in self.layers)

    @property
    def fixed_bytes(self) -> int:
        return sum(layer.fixed_bytes for layer in self.layers)

    def size_bytes(self, *, tokens: int, batch: int = 1) -> int:
        """Bytes for `batch` sequences of `tokens` tokens each."""
        return batch * sum(layer.size_bytes(tokens) for layer in self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCache:
    """What an engine reserves for the workload on one rank: None, with the reason, where that is not known here."""

    engine: CacheEngine
    format: str
    size_bytes: int | None
    reason: Message | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the model is asked to do.

    batch: sequences at once. context_tokens: tokens in each (None: the model's own limit). cache_format: K's and V's number
    format ("auto": the model's dtype). ranks: tensor-parallel ranks of an engine that shares the cache among them.
    """

    batch: int = 1
    context_tokens: int | None = None
    cache_format: str = "auto"
    ranks: int = 1

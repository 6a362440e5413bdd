"""The KV cache in transformers and in serving engines."""

from __future__ import annotations

from ..errors import UnsupportedError
from ..typed import TYPE_CHECKING, Literal
from ..values import dataclass

if TYPE_CHECKING:
    from ..language import Message

CacheKind = Literal[
    "full", "sliding", "linear", "chunked", "latent", "indexed", "recurrent", "convolution", "hybrid", "shared", "none"
]
CacheEngine = Literal["transformers", "vllm", "llama_cpp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayer:
    """One layer's cache for one sequence.

    kind: "full", "sliding", "linear"; for a class known only by its cache also "chunked", "latent" (MLA), "indexed" (with keys
    of an index), "recurrent", "convolution", "hybrid" (keys, values and a state), "shared" (it reads another layer's) and
    "none". states_bytes: of constant size; for linear attention, the convolution's inputs and the recurrent state.
    source_bytes_per_token: K and V of cross-attention for each position of the encoder's output. source_tokens: the number of
    positions, None if unknown or without an encoder.
    """

    index: int
    kind: CacheKind
    bytes_per_token: int
    states_bytes: tuple[int, ...]
    window_tokens: int | None
    source_bytes_per_token: int = 0
    source_tokens: int | None = None

    @property
    def source_bytes(self) -> int:
        """Bytes of cross-attention's K and V for one sequence; UnsupportedError if the source's length is unknown."""
        if not self.source_bytes_per_token:
            return 0
        if self.source_tokens is None:
            raise UnsupportedError("source_tokens_unknown")
        return self.source_tokens * self.source_bytes_per_token

    @property
    def fixed_bytes(self) -> int:
        return sum(self.states_bytes)

    def size_bytes(self, tokens: int) -> int:
        """Bytes after `tokens` tokens of one sequence."""
        cached_tokens = tokens if self.window_tokens is None else min(tokens, self.window_tokens - 1)
        return self.fixed_bytes + cached_tokens * self.bytes_per_token + self.source_bytes

    def storage_bytes(self, tokens: int, *, fed_last: int) -> int:
        """Bytes of the storages after `tokens` tokens, of which the last `fed_last` were fed at once. With a window the cache is
        a view of a larger storage: these tokens and those kept before.

        Source: transformers 5.23, cache_utils.DynamicSlidingWindowLayer.update
        """
        self._check_for_runs()
        if self.window_tokens is None:
            return self.size_bytes(tokens)
        before = min(tokens - fed_last, self.window_tokens - 1)
        return self.fixed_bytes + (before + fed_last) * self.bytes_per_token

    def static_bytes(self, tokens: int) -> int:
        """Bytes of a static cache with room for `tokens` tokens; a sliding layer allocates at most its window.

        Source: transformers 5.23, cache_utils.StaticLayer and StaticSlidingWindowLayer
        """
        self._check_for_runs()
        room_tokens = tokens if self.window_tokens is None else min(tokens, self.window_tokens)
        return self.fixed_bytes + room_tokens * self.bytes_per_token

    def _check_for_runs(self) -> None:
        """Raises UnsupportedError if an encoder runs too, whose outputs generate keeps beside the cache."""
        if self.source_bytes_per_token:
            raise UnsupportedError("memory_encoder_decoder")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """The KV cache in transformers' DynamicCache, with keys and values in `dtype`."""

    dtype: str
    layers: tuple[CacheLayer, ...]

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one more token adds while no window is full."""
        return sum(layer.bytes_per_token for layer in self.layers)

    @property
    def fixed_bytes(self) -> int:
        return sum(layer.fixed_bytes for layer in self.layers)

    @property
    def keeps_nothing(self) -> bool:
        """Whether there is no cache, as in an encoder."""
        return not any(layer.bytes_per_token or layer.fixed_bytes for layer in self.layers)

    @property
    def source_bytes_per_token(self) -> int:
        """Bytes that one more position of the encoder's output adds; 0 without an encoder."""
        return sum(layer.source_bytes_per_token for layer in self.layers)

    @property
    def source_tokens(self) -> int | None:
        """Positions of the encoder's output; None if unknown or without an encoder."""
        return next((layer.source_tokens for layer in self.layers if layer.source_bytes_per_token), None)

    def size_bytes(self, *, tokens: int, batch: int = 1) -> int:
        """Bytes for `batch` sequences of `tokens` tokens each; UnsupportedError if the length of a source is unknown."""
        return batch * sum(layer.size_bytes(tokens) for layer in self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCache:
    """What an engine reserves for the workload on one rank; size_bytes is None, with the reason, if that is unknown."""

    engine: CacheEngine
    format: str
    size_bytes: int | None
    reason: Message | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The sequences for which a cache is computed.

    batch: sequences at once. context_tokens: tokens in each (None: the model's own limit). cache_format: K's and V's number
    format ("auto": the model's dtype). ranks: tensor-parallel ranks among which an engine shares the cache. source_tokens:
    positions of an encoder's output, which cross-attention keeps (None: unknown, unless the model fixes them).
    """

    batch: int = 1
    context_tokens: int | None = None
    cache_format: str = "auto"
    ranks: int = 1
    source_tokens: int | None = None

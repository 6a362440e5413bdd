"""Each layer's attention: softmax heads, linear-attention states, or what transformers caches for the layer."""

from __future__ import annotations

from itertools import groupby

from ..spec import heads_kind
from ..typed import TYPE_CHECKING
from ..values import dataclass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..language import Message
    from .cache import CacheKind


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAttention:
    """One layer's softmax attention. window_tokens: None if it attends to every earlier token.

    gated: q_proj has twice the rows, half of them for a gate on the output.
    """

    index: int
    query_heads: int
    kv_heads: int
    head_dim: int
    window_tokens: int | None
    gated: bool = False

    @property
    def kind(self) -> str:
        return heads_kind(self.query_heads, self.kv_heads)

    @property
    def span(self) -> CacheKind:
        """The tokens it attends to: "full" or "sliding"."""
        return "full" if self.window_tokens is None else "sliding"

    @property
    def heads(self) -> tuple[int, ...]:
        """The figures in which layers can differ; 0 stands for no window."""
        return self.query_heads, self.kv_heads, self.head_dim, self.window_tokens or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearLayerAttention:
    """One layer's linear attention: one state for each value head, and the widths of keys and values."""

    index: int
    key_heads: int
    value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel: int

    @property
    def kind(self) -> str:
        return "linear"

    @property
    def span(self) -> CacheKind:
        return "linear"

    @property
    def heads(self) -> tuple[int, ...]:
        """The figures in which layers can differ."""
        return self.key_heads, self.value_heads, self.key_head_dim, self.value_head_dim, self.conv_kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherLayerAttention:
    """A layer known only by what transformers caches for it. cache_kind: as `CacheLayer.kind`."""

    index: int
    cache_kind: CacheKind
    window_tokens: int | None

    @property
    def kind(self) -> str:
        return "MLA" if self.cache_kind == "latent" else self.cache_kind

    @property
    def span(self) -> CacheKind:
        return self.cache_kind

    @property
    def heads(self) -> tuple[int, ...]:
        """The figures in which layers of a kind can differ; 0 stands for no window."""
        return (self.window_tokens or 0,)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderLayerAttention:
    """One layer's softmax attention to the tokens before and after each, of which nothing is cached.

    window_tokens: those that it attends to, with the token itself; None for all.
    """

    index: int
    query_heads: int
    kv_heads: int
    head_dim: int
    window_tokens: int | None

    @property
    def kind(self) -> str:
        return heads_kind(self.query_heads, self.kv_heads)

    @property
    def span(self) -> CacheKind:
        return "none"

    @property
    def heads(self) -> tuple[int, ...]:
        """As `LayerAttention.heads`."""
        return self.query_heads, self.kv_heads, self.head_dim, self.window_tokens or 0


AnyLayerAttention = LayerAttention | LinearLayerAttention | OtherLayerAttention | EncoderLayerAttention
WITH_STATES, WITHOUT_CACHE = ("linear", "recurrent", "convolution", "hybrid"), ("shared", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionReport:
    """Each layer's attention by the configuration and, if files were read, by the shapes of the projections."""

    by_config: tuple[AnyLayerAttention, ...]
    by_shapes: tuple[AnyLayerAttention, ...] | None
    findings: tuple[Message, ...]

    @property
    def layers(self) -> tuple[AnyLayerAttention, ...]:
        """By shapes if they were read, since they decide what the model does; else by the configuration."""
        return self.by_shapes or self.by_config

    @property
    def softmax(self) -> tuple[LayerAttention, ...]:
        """The softmax layers with known heads. Every described family has at least one."""
        return tuple(layer for layer in self.layers if isinstance(layer, LayerAttention))

    @property
    def both_ways(self) -> tuple[EncoderLayerAttention, ...]:
        """The layers of an encoder, which a decoder has none of."""
        return tuple(layer for layer in self.layers if isinstance(layer, EncoderLayerAttention))

    @property
    def linear(self) -> tuple[LinearLayerAttention, ...]:
        """The layers with a state of constant size."""
        return tuple(layer for layer in self.layers if isinstance(layer, LinearLayerAttention))

    @property
    def kind(self) -> str:
        """MHA, GQA or MQA; "mixed" if layers differ, "hybrid" if some are linear."""
        kinds = {layer.kind for layer in self.layers if layer.kind not in WITHOUT_CACHE} or {"none"}
        if self.linear or (len(kinds) > 1 and kinds & set(WITH_STATES)):
            return "hybrid"
        return kinds.pop() if len(kinds) == 1 else "mixed"

    @property
    def pattern(self) -> tuple[tuple[CacheKind, int], ...] | None:
        """The shortest sequence of spans that repeats, as runs: (("linear", 3), ("full", 1)).

        None if all layers have the same span, or no sequence repeats.
        """
        spans = [layer.span for layer in self.layers]
        for length in range(2, len(spans) // 2 + 1):
            if len(spans) % length == 0 and spans == spans[:length] * (len(spans) // length):
                return _run_lengths(spans[:length]) if len(set(spans)) > 1 else None
        return None


def _run_lengths(words: Sequence[CacheKind]) -> tuple[tuple[CacheKind, int], ...]:
    return tuple((word, len(list(run))) for word, run in groupby(words))

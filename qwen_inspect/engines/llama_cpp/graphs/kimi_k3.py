"""The nodes of Kimi K3's layers: what the stream held at some layers is mixed into it by attention over those layers.

Source: llama.cpp b11549, src/models/kimi-k3.cpp.
"""

from __future__ import annotations

from ..ggml.tensors import I32, Node, contiguous, like, new, reshape, rows, view
from .attention import Attention
from .feed_forward import FeedForward
from .recurrent import Recurrent


class KimiK3(Attention, FeedForward, Recurrent):
    """From the embedding to the state before the last norm."""

    def _kimi_k3(self, state: Node) -> Node:
        kept: Node | None = None
        every = self._key("attn_res.block_size") or 0
        for layer in range(self._read.layers):
            prefix = f"blk.{layer}."
            mixed = self._mixed_with(kept, state, f"{prefix}attn_res_score")
            keeps = every > 0 and layer % every == 0
            if keeps:
                row = reshape(state, state.shape[0], 1, state.shape[1])
                kept = row if kept is None else _joined(kept, row)
            normed = self.graph.expand(self._norm(mixed, f"{prefix}attn_norm"))
            recurrent = self._read.recurrent[layer]
            attended = self._recurrent(layer, normed) if recurrent else self._attention(layer, normed)
            state = attended if keeps else like("ADD", state, attended)
            mixed = self._mixed_with(kept, state, f"{prefix}ffn_res_score")
            state = like("ADD", state, self._feed_forward(layer, self._norm(mixed, f"{prefix}ffn_norm")))
        mixed = self._mixed_with(kept, state, "output_res_score")
        return rows(mixed, self._input("out_ids", I32, self._batch.outputs))

    def _mixed_with(self, kept: Node | None, state: Node, name: str) -> Node:
        """The sum of the kept states and this one, by scores of their norms. kept: (numbers, states, tokens)."""
        if kept is None:
            return state
        count, tokens = kept.shape[1:3]
        weight = self._needed(f"{name}.weight")
        scores = reshape(_scores(kept, weight), count, tokens)
        joined = new("CONCAT", (count + 1, tokens, 1, 1), scores, _scores(state, weight))
        shares = like("SOFT_MAX", joined)
        first = contiguous(view(shares, (count, tokens), (shares.strides[1],)))
        last = contiguous(view(shares, (1, tokens), (shares.strides[1],), 4 * count))
        summed = new("DSV4_HC_PRE", state.shape, kept, first)
        return like("ADD", summed, like("MUL", state, last))


def _scores(node: Node, weight: Node) -> Node:
    scaled = like("MUL", like("RMS_NORM", node), weight)
    return new("SUM_ROWS", (1, *node.shape[1:]), scaled)


def _joined(kept: Node, row: Node) -> Node:
    return new("CONCAT", (kept.shape[0], kept.shape[1] + 1, *kept.shape[2:]), kept, row)

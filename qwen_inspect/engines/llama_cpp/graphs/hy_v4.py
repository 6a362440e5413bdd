"""The nodes of HY V4: independent hyper-connections, whose streams are summed and written to by shares alone.

Source: llama.cpp b11549, src/models/hy-v4.cpp.
"""

from __future__ import annotations

from ..ggml.tensors import F32, I32, Node, cast, like, matmul, new, reshape, rows, view
from .attention import Attention
from .feed_forward import FeedForward
from .hyper import HyperConnections


class HyV4(Attention, FeedForward, HyperConnections):
    """From the embedding to the state before the last norm."""

    def _hy_v4(self, state: Node) -> Node:
        states = self._in_streams(state)
        for layer in range(self._read.layers):
            prefix = f"blk.{layer}."
            mixes, read = self._read_shares(states, f"{prefix}hc_attn")
            attended = self._attention(layer, self._norm(read, f"{prefix}attn_norm"))
            states = self._shared_out(attended, states, self._written_shares(mixes, f"{prefix}hc_attn"))
            mixes, read = self._read_shares(states, f"{prefix}hc_ffn")
            forward = self._feed_forward(layer, self._norm(read, f"{prefix}ffn_norm"))
            states = self._shared_out(forward, states, self._written_shares(mixes, f"{prefix}hc_ffn"))
        last = rows(self._flat(states), self._input("out_ids", I32, self._batch.outputs))
        states = reshape(last, *states.shape[:2], self._batch.outputs)
        mixes = matmul(self._needed("output_hc_fn.weight"), like("RMS_NORM", self._flat(states)))
        shares = like("MUL", mixes, self._needed("output_hc_scale.weight"))
        shares = like("SCALE", like("UNARY", like("ADD", shares, self._needed("output_hc_base.weight"))))
        return self._reduced(states, shares)

    def _read_shares(self, states: Node, name: str) -> tuple[Node, Node]:
        """(all shares before they are shifted, the sum that a block reads). Source: build_hc_pre."""
        mixes = matmul(self._needed(f"{name}_fn.weight"), like("RMS_NORM", self._flat(states)))
        shares = like("SCALE", like("UNARY", self._shares_at(mixes, name, 0)))
        return mixes, self._reduced(states, shares)

    def _written_shares(self, mixes: Node, name: str) -> Node:
        return like("SCALE", like("SCALE", like("UNARY", self._shares_at(mixes, name, 1))))

    def _shares_at(self, mixes: Node, name: str, at: int) -> Node:
        count = self._streams
        part = view(mixes, (count, mixes.shape[1]), (mixes.strides[1],), 4 * count * at)
        part = like("MUL", part, view(self._needed(f"{name}_scale.weight"), (1,), (), 4 * at))
        return like("ADD", part, view(self._needed(f"{name}_base.weight"), (count,), (), 4 * count * at))

    def _reduced(self, states: Node, shares: Node) -> Node:
        """Source: hy_v4_hc_reduce."""
        states = cast(states, F32)
        width, count, tokens = states.shape[:3]
        total: Node | None = None
        for at in range(count):
            stream = view(states, (width, tokens), (states.strides[2],), at * states.strides[1])
            scaled = like("MUL", stream, view(shares, (1, tokens), (shares.strides[1],), 4 * at))
            total = scaled if total is None else like("ADD", total, scaled)
        assert total is not None
        return cast(total, F32)

    def _shared_out(self, result: Node, states: Node, shares: Node) -> Node:
        """Source: build_hc_post."""
        result, shares, states = cast(result, F32), cast(shares, F32), cast(states, F32)
        width, count, tokens = states.shape[:3]
        total: Node | None = None
        for at in range(count):
            stream = view(states, (width, tokens), (states.strides[2],), at * states.strides[1])
            share = view(shares, (1, tokens), (shares.strides[1],), 4 * at)
            part = reshape(like("ADD", stream, like("MUL", result, share)), width, 1, tokens)
            total = part if total is None else new("CONCAT", (width, at + 1, tokens, 1), total, part)
        assert total is not None
        return cast(total, F32)

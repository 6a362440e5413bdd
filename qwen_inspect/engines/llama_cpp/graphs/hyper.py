"""The nodes of hyper-connections: several streams of states, of which a block reads a sum and to which it writes.

Source: llama.cpp b11549, src/models/deepseek4.cpp (build_hc_pre, build_hc_post, build_hc_head).
"""

from __future__ import annotations

from ..ggml.tensors import Node, like, matmul, new, reshape, view
from .parts import Parts


class HyperConnections(Parts):
    """Streams: (numbers, streams, tokens)."""

    @property
    def _streams(self) -> int:
        return int(self._key("hyper_connection.count") or 0)

    def _in_streams(self, state: Node) -> Node:
        width, tokens = state.shape[:2]
        return new("REPEAT", (width, self._streams, tokens, 1), reshape(state, width, 1, tokens))

    def _read_streams(self, states: Node, name: str) -> tuple[Node, Node, Node]:
        """(what the block reads, the streams' shares of its result, how they are mixed). name: of three tensors."""
        count, tokens = states.shape[1:3]
        scale, base = self._needed(f"{name}_scale.weight"), self._needed(f"{name}_base.weight")
        mixes = matmul(self._needed(f"{name}_fn.weight"), like("RMS_NORM", self._flat(states)))

        def part(at: int) -> Node:
            node = view(mixes, (count, tokens), (mixes.strides[1],), 4 * count * at)
            node = like("MUL", node, view(scale, (1,), (), 4 * at))
            return like("SCALE", like("UNARY", like("ADD", node, view(base, (count,), (), 4 * count * at))))

        mixed = new("DSV4_HC_COMB", (count, count, tokens, 1), mixes, scale, base)
        return new("DSV4_HC_PRE", (states.shape[0], tokens, 1, 1), states, part(0)), part(1), mixed

    def _written(self, result: Node, states: Node, shares: Node, mixed: Node) -> Node:
        return new("DSV4_HC_POST", states.shape, result, states, shares, mixed)

    def _summed_streams(self, states: Node, name: str) -> Node:
        """What the output layer reads."""
        width, count, tokens = states.shape[:3]
        mixes = matmul(self._needed(f"{name}_fn.weight"), like("RMS_NORM", self._flat(states)))
        mixes = like("MUL", mixes, self._needed(f"{name}_scale.weight"))
        shares = like("SCALE", like("UNARY", like("ADD", mixes, self._needed(f"{name}_base.weight"))))
        total: Node | None = None
        for at in range(count):
            stream = view(states, (width, tokens), (states.strides[2],), at * states.strides[1])
            share = view(shares, (1, tokens), (shares.strides[1],), 4 * at)
            scaled = like("MUL", stream, share)
            total = scaled if total is None else like("ADD", total, scaled)
        assert total is not None
        return total

    def _flat(self, states: Node) -> Node:
        return reshape(states, states.shape[0] * states.shape[1], states.shape[2])

"""The nodes of Kimi Delta Attention: Gated DeltaNet with a decay for each number, and convolutions of Q, K and V apart.

Source: llama.cpp b11549, src/models/kimi-linear.cpp (causal_conv1d, graph), delta-net-base.cpp (build_delta_net).
"""

from __future__ import annotations

from ..ggml.tensors import Node, contiguous, copied, like, matmul, new, reshape, transpose, view
from .recurrent import Recurrent


class Kda(Recurrent):
    """A layer of Kimi Delta Attention."""

    def _kda(self, layer: int, inputs: Node) -> Node:
        prefix, size = f"blk.{layer}.", self._read.recurrence.kda_head_dim
        tokens, sequences = self._by_sequence
        heads = self._read.heads[layer]
        shape = (size, heads, tokens, sequences)
        steps = self._read.recurrence.conv_kernel - 1
        states, last = self._state(layer, 3 * steps * size * heads)
        query, key, value = (self._convolved(layer, part, at, states, last, inputs) for at, part in enumerate("qkv"))
        decay, wide = matmul(self._needed(f"{prefix}ssm_f_a.weight"), inputs), self._weight(f"{prefix}ssm_f_b.weight")
        decay = decay if wide is None else matmul(wide, decay)
        decay = like("ADD", decay, self._needed(f"{prefix}ssm_dt.bias"))
        rate = reshape(self._needed(f"{prefix}ssm_a"), 1, heads)
        if self._key("kda.gate_lower_bound") is not None:
            decay = like("MUL", reshape(decay, size, heads, tokens * sequences), rate)
            decay = decay if wide is None else like("SCALE", decay)
            decay = like("SCALE", like("UNARY", decay))
        else:
            decay = like("MUL", reshape(like("UNARY", decay), size, heads, tokens * sequences), rate)
        decay = reshape(decay, *shape)
        strength = reshape(matmul(self._needed(f"{prefix}ssm_beta.weight"), inputs), 1, heads, tokens, sequences)
        strength = like("UNARY", strength)
        states, state = self._state(layer, size * size * heads)
        state = reshape(state, size, size, heads, sequences)
        query, key = (like("SCALE", like("RMS_NORM", node)) for node in (query, key))
        snapshots = 1 + self._batch.drafted
        rows = (size * heads, tokens * sequences + size * sequences * snapshots, 1, 1)
        result = new("GATED_DELTA_NET", rows, query, key, value, decay, strength, state)
        strides = (4 * size, 4 * size * heads, 4 * size * heads * tokens)
        output = contiguous(view(result, shape, strides))
        numbers = size * size * heads
        after = view(result, (numbers, sequences), (4 * numbers,), 4 * size * heads * tokens * sequences)
        self.graph.expand(copied(after, view(states, (numbers, sequences), (states.strides[1],))))
        gate = inputs
        for part in ("", "_a", "_b"):  # one matrix, or two
            matrix = self._weight(f"{prefix}ssm_g{part}.weight")
            gate = gate if matrix is None else matmul(matrix, gate)
        gate = like("UNARY", reshape(gate, size, heads, tokens * sequences))
        normed = self._norm(reshape(output, size, heads, tokens * sequences), f"{prefix}ssm_norm")
        gated = contiguous(like("MUL", normed, gate), size * heads, tokens * sequences)
        return matmul(self._needed(f"{prefix}attn_output.weight"), gated)

    def _convolved(self, layer: int, part: str, at: int, states: Node, last: Node, inputs: Node) -> Node:
        """Q, K or V after its convolution, whose last inputs lie beside the others'."""
        prefix, size = f"blk.{layer}.", self._read.recurrence.kda_head_dim
        tokens, sequences = self._by_sequence
        steps, heads = self._read.recurrence.conv_kernel - 1, self._read.heads[layer]
        inner = size * heads
        strides = (4 * steps, 12 * steps * inner)
        before = view(last, (steps, inner, sequences), strides, 4 * at * steps * inner)
        mixed = reshape(matmul(self._needed(f"{prefix}attn_{part}.weight"), inputs), inner, tokens, sequences)
        joined = new("CONCAT", (steps + tokens, inner, sequences, 1), before, transpose(mixed))
        for _ in range(1 + self._batch.drafted):
            kept = view(joined, (steps, inner, sequences), joined.strides[1:3], 4 * tokens)
            self.graph.expand(copied(kept, view(states, (steps, inner, sequences), strides, 4 * at * steps * inner)))
        kernel = reshape(self._needed(f"{prefix}ssm_conv1d_{part}.weight"), steps + 1, inner)
        turned = reshape(new("SSM_CONV", (inner, tokens, sequences, 1), joined, kernel), inner, tokens * sequences)
        return reshape(like("UNARY", turned), size, heads, tokens, sequences)

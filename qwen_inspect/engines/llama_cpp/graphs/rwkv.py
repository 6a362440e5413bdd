"""The nodes of RWKV 6 and 7, and of Qwen2 with their time mix in place of attention.

Source: llama.cpp b11549, src/models/rwkv6-base.cpp, rwkv7-base.cpp, rwkv6.cpp, rwkv6qwen2.cpp, rwkv7.cpp, arwkv7.cpp;
src/llama-graph.cpp (build_rwkv_token_shift_load and _store).
"""

from __future__ import annotations

from ..ggml.tensors import I32, Node, contiguous, copied, like, matmul, new, permute, reshape, rows, view
from .feed_forward import FeedForward
from .recurrent import Recurrent


class Rwkv(FeedForward, Recurrent):
    """From the embedding to the state before the last norm."""

    def _rwkv(self, state: Node) -> Node:
        for layer in range(self._read.layers):
            state = self._rwkv_layer(layer, state)
        return state

    def _rwkv_layer(self, layer: int, state: Node) -> Node:
        prefix, width = f"blk.{layer}.", self._read.embedding
        tokens, sequences = self._by_sequence
        shifts = self._read.recurrence.token_shift_count
        inputs = reshape(state, width, tokens, sequences)
        states, before = self._state(layer, shifts * width)
        before = reshape(before, width, shifts, sequences)
        normed = self._norm(inputs, f"{prefix}attn_norm")
        mixed = self._time_mix(layer, normed, self._shifted(before, normed, 0))
        target = view(states, (shifts * width * sequences,))
        if shifts == 1:
            self.graph.expand(copied(view(self._last(normed), (width * sequences,)), target))
        middle = like("ADD", mixed, inputs)
        if f"{prefix}channel_mix_key.weight" not in self._tensors:
            middle = self._rows_of_last(layer, reshape(middle, width, tokens * sequences))
            return like("ADD", self._dense(self._norm(middle, f"{prefix}ffn_norm"), prefix, ""), middle)
        second = self._norm(middle, f"{prefix}attn_norm_2")
        previous = self._shifted(before, second, 1)
        kept = new("CONCAT", (width, 2, sequences, 1), self._last(normed), self._last(second))
        self.graph.expand(copied(view(kept, (2 * width * sequences,)), target))
        flat = [reshape(node, width, tokens * sequences) for node in (middle, second, previous)]
        middle, second, previous = (self._rows_of_last(layer, node) for node in flat)
        result = like("ADD", self._channel_mix(prefix, second, previous), middle)
        every = self._key("rescale_every_n_layers") or 0
        return like("SCALE", result) if every and (layer + 1) % every == 0 else result

    def _rows_of_last(self, layer: int, node: Node) -> Node:
        if layer < self._read.layers - 1:
            return node
        return rows(node, self._input("out_ids", I32, self._batch.outputs))

    def _shifted(self, before: Node, node: Node, at: int) -> Node:
        """Each token's predecessor. at: which of the kept rows comes before the first."""
        width, tokens, sequences = node.shape[:3]
        first = before
        if before.shape[1] > 1:
            first = view(before, (width, 1, sequences), before.strides[1:3], 4 * width * at)
        rest = view(node, (width, tokens - 1, sequences), node.strides[1:3])
        return new("CONCAT", node.shape, first, rest)

    def _last(self, node: Node) -> Node:
        width, tokens, sequences = node.shape[:3]
        return view(node, (width, 1, sequences), node.strides[1:3], 4 * width * (tokens - 1))

    def _time_mix(self, layer: int, inputs: Node, previous: Node) -> Node:
        seventh = f"blk.{layer}.time_mix_a1.weight" in self._tensors
        result = (self._time_mix_7 if seventh else self._time_mix_6)(layer, inputs, previous)
        result = matmul(self._needed(f"blk.{layer}.time_mix_output.weight"), result)
        return reshape(result, *inputs.shape[:3])

    def _mix(self, layer: int, name: str, ending: str = "weight") -> Node:
        return self._needed(f"blk.{layer}.time_mix_{name}.{ending}")

    def _wkv(self, layer: int, state: Node, *sources: Node) -> Node:
        """The recurrence, whose last states are written back."""
        size, width = self._read.recurrence.wkv_head_size, self._read.embedding
        tokens, sequences = self._batch.tokens, self._batch.sequences
        result = new("RWKV_WKV", (width, tokens + size * sequences, 1, 1), *sources, state)
        numbers = width * size * sequences
        after = view(result, (numbers,), (), 4 * width * tokens)
        self.graph.expand(copied(after, view(self._inputs[f"states_{layer}"], (numbers,))))
        return view(result, (width * tokens,))

    def _wkv_state(self, layer: int) -> Node:
        width, size = self._read.embedding, self._read.recurrence.wkv_head_size
        self._inputs[f"states_{layer}"], state = self._state(layer, width * size)
        return state

    def _group_normed(self, layer: int, node: Node) -> Node:
        size, width = self._read.recurrence.wkv_head_size, self._read.embedding
        if f"blk.{layer}.time_mix_ln.weight" not in self._tensors:
            return reshape(node, width, self._batch.tokens)
        normed = like("NORM", reshape(node, size, width // size, self._batch.tokens))
        normed = reshape(normed, width, self._batch.tokens)
        return like("ADD", like("MUL", normed, self._mix(layer, "ln")), self._mix(layer, "ln", "bias"))

    # RWKV 6.

    def _time_mix_6(self, layer: int, inputs: Node, previous: Node) -> Node:
        width, size, tokens = self._read.embedding, self._read.recurrence.wkv_head_size, self._batch.tokens
        plain = f"blk.{layer}.time_mix_first.weight" in self._tensors
        decay_in, key_in, value_in, query_in, gate_in = self._parts_6(layer, inputs, previous)
        query, key, value = (
            self._with_bias(matmul(self._mix(layer, name), node), f"blk.{layer}.time_mix_{name}.bias")
            for name, node in (("receptance", query_in), ("key", key_in), ("value", value_in))
        )
        gate = like("UNARY", matmul(self._mix(layer, "gate"), gate_in))
        heads, kv_heads = width // size, self._read.kv_heads[layer]
        if kv_heads not in (0, heads):
            key, value = (
                new("REPEAT", (size, heads // kv_heads, kv_heads, tokens), reshape(node, size, 1, kv_heads, tokens))
                for node in (key, value)
            )
        key, value, query = (reshape(node, size, heads, tokens) for node in (key, value, query))
        decay = like("UNARY", matmul(self._mix(layer, "decay_w1"), decay_in))
        decay = like("ADD", matmul(self._mix(layer, "decay_w2"), decay), self._mix(layer, "decay"))
        decay = reshape(like("UNARY", like("UNARY", like("UNARY", decay))), size, heads, tokens)
        if not plain:
            key = like("SUB", key, like("MUL", key, decay))
        state = self._wkv_state(layer)
        first = (self._mix(layer, "first"),) if plain else ()
        result = self._wkv(layer, state, key, value, query, *first, decay)
        result = self._group_normed(layer, result) if plain else reshape(result, width, tokens)
        return like("MUL", result, gate)

    def _parts_6(self, layer: int, inputs: Node, previous: Node) -> list[Node]:
        """The inputs of decay, key, value, receptance and gate."""
        width, tokens = self._read.embedding, self._batch.tokens
        change = reshape(like("SUB", previous, inputs), width, tokens)
        inputs = reshape(inputs, width, tokens)
        mixed = like("ADD", like("MUL", change, self._mix(layer, "lerp_x")), inputs)
        narrow = matmul(self._mix(layer, "w1"), mixed)
        mixed = reshape(like("UNARY", narrow), narrow.shape[0] // 5, 1, 5, tokens)
        mixed = contiguous(permute(mixed, 0, 1, 3, 2))
        second = self._mix(layer, "w2")
        mixed = matmul(reshape(second, second.shape[0], second.shape[1], 1, 5), mixed)
        fused = f"blk.{layer}.time_mix_lerp_fused.weight" in self._tensors
        if fused:
            change, inputs = (reshape(node, width, 1, tokens) for node in (change, inputs))
            mixed = like("ADD", mixed, self._mix(layer, "lerp_fused"))
            mixed = like("ADD", like("MUL", mixed, change), inputs)
        parts = [view(mixed, (width, tokens), (mixed.strides[1],), 4 * width * tokens * at) for at in range(5)]
        if fused:
            return parts
        changed = [
            like("ADD", part, self._mix(layer, f"lerp_{name}")) for part, name in zip(parts, "wkvrg", strict=True)
        ]
        return [like("ADD", like("MUL", part, change), inputs) for part in changed]

    # RWKV 7.

    def _time_mix_7(self, layer: int, inputs: Node, previous: Node) -> Node:
        width, size, tokens = self._read.embedding, self._read.recurrence.wkv_head_size, self._batch.tokens
        gated = f"blk.{layer}.time_mix_g1.weight" in self._tensors
        change = like("SUB", previous, inputs)
        change = new("REPEAT", (*inputs.shape[:3], 6 if gated else 5), change)
        mixed = like("ADD", like("MUL", change, self._mix(layer, "lerp_fused")), inputs)
        parts = [view(mixed, (width, tokens), (mixed.strides[1],), 4 * width * tokens * at) for at in range(6)]
        query = matmul(self._mix(layer, "receptance"), parts[0])
        decay = like("UNARY", like("ADD", self._narrow(layer, "w", parts[1], "tanh"), self._mix(layer, "w0")))
        decay = like("UNARY", like("SCALE", decay))
        key = matmul(self._mix(layer, "key"), parts[2])
        value = self._value_7(layer, parts[3])
        gate = self._narrow(layer, "g", parts[5], "sigmoid") if gated else None
        rate = like("UNARY", like("ADD", self._narrow(layer, "a", parts[4]), self._mix(layer, "a0")))
        heads = (size, width // size, tokens)
        unit = new("L2_NORM", (*heads, 1), reshape(like("MUL", key, self._mix(layer, "k_k")), *heads))
        scaled = like("MUL", key, self._mix(layer, "k_a"))
        key = like("ADD", key, like("SUB", like("MUL", rate, scaled), scaled))
        query, decay, key, value, rate = (reshape(node, *heads) for node in (query, decay, key, value, rate))
        state = self._wkv_state(layer)
        result = self._wkv(layer, state, query, decay, key, value, like("UNARY", unit), like("MUL", unit, rate))
        result = self._group_normed(layer, result)
        weighted = like("MUL", like("MUL", key, query), reshape(self._mix(layer, "r_k"), size, width // size))
        summed = new("SUM_ROWS", (1, *weighted.shape[1:]), weighted)
        result = like("ADD", result, reshape(like("MUL", value, summed), width, tokens))
        return result if gate is None else like("MUL", result, gate)

    def _narrow(self, layer: int, name: str, inputs: Node, activation: str | None = None) -> Node:
        narrow = matmul(self._mix(layer, f"{name}1"), inputs)
        return matmul(self._mix(layer, f"{name}2"), like("UNARY", narrow) if activation else narrow)

    def _value_7(self, layer: int, inputs: Node) -> Node:
        """With a part of the first layer's."""
        value = matmul(self._mix(layer, "value"), inputs)
        first = self._inputs.setdefault("first_value", value)
        if first is value:
            return value
        share = like("UNARY", like("ADD", self._narrow(layer, "v", inputs), self._mix(layer, "v0")))
        return like("ADD", value, like("MUL", like("SUB", first, value), share))

    def _channel_mix(self, prefix: str, inputs: Node, previous: Node) -> Node:
        change = like("SUB", previous, inputs)

        def part(name: str) -> Node:
            return like("ADD", like("MUL", change, self._needed(f"{prefix}channel_mix_lerp_{name}.weight")), inputs)

        gates = f"{prefix}channel_mix_receptance.weight" in self._tensors
        gate = part("r") if gates else None
        key = like("SQR", like("UNARY", matmul(self._needed(f"{prefix}channel_mix_key.weight"), part("k"))))
        value = matmul(self._needed(f"{prefix}channel_mix_value.weight"), key)
        if gate is None:
            return value
        opened = like("UNARY", matmul(self._needed(f"{prefix}channel_mix_receptance.weight"), gate))
        return like("MUL", opened, value)

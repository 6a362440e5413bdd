"""The nodes of layers with a recurrent state: Gated DeltaNet of Qwen3-Next and Qwen3.5, and LFM2's short convolution.

Source: llama.cpp b11549, src/llama-graph.cpp (build_rs), src/models/delta-net-base.cpp, qwen35.cpp, qwen3next.cpp, lfm2.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..ggml.tensors import (
    F32,
    I32,
    Node,
    contiguous,
    copied,
    like,
    matmul,
    new,
    overwritten,
    reshape,
    rows,
    stored,
    transpose,
    view,
)
from .parts import Parts


class Recurrent(Parts):
    """A layer that keeps a state for each sequence."""

    def _recurrent(self, layer: int, inputs: Node) -> Node:
        if self._read.recurrence.shortconv_cache:
            return self._short_convolution(layer, inputs)
        if f"blk.{layer}.ssm_in.weight" in self._tensors:
            return self._mamba(layer, inputs)
        if f"blk.{layer}.ssm_f_a.weight" in self._tensors:
            return self._kda(layer, inputs)
        return self._delta_net(layer, inputs)

    def _kda(self, layer: int, inputs: Node) -> Node:
        raise NotImplementedError

    def _mamba(self, layer: int, inputs: Node) -> Node:
        raise NotImplementedError

    @property
    def _by_sequence(self) -> tuple[int, int]:
        """Tokens of a sequence in the micro-batch, and sequences."""
        return self._batch.tokens // self._batch.sequences, self._batch.sequences

    def _state(self, layer: int, numbers: int) -> tuple[Node, Node]:
        """(all states of a layer, those of the micro-batch's sequences, gathered). Source: build_rs."""
        sequences = self._batch.sequences
        cells = sequences * (1 + self._batch.drafted)
        states = stored(F32, (numbers, cells), self._placed[f"cache.{layer}"], weight=False)
        flat = reshape(states, numbers, cells)
        self.graph.expand(overwritten("SCALE", view(flat, (numbers,))))
        if self._batch.build.gathers_states_once:
            gathered = rows(flat, self._input("state_copy", I32, sequences))
            chosen = view(gathered, (numbers, sequences), (gathered.strides[1],))
            self.graph.expand(chosen)
            others = view(gathered, (numbers, 0), (gathered.strides[1],), sequences * gathered.strides[1])
        else:
            chosen = self.graph.expand(rows(flat, self._places(sequences, 0, sequences)))
            others = rows(flat, self._places(sequences, sequences, sequences))
        target = view(states, (numbers, 0), (states.strides[1],))
        self.graph.expand(copied(others, target))
        return states, chosen

    def _places(self, cells: int, start: int, end: int) -> Node:
        """The part of the input of states' places, one view for all layers. Source: llm_graph_input_rs."""
        name = f"state_copy_{start}_{end}"
        if name not in self._inputs:
            self._inputs[name] = view(self._input("state_copy", I32, cells), (end - start,), (), 4 * start)
        return self._inputs[name]

    def _convolution_inputs(self, layer: int, inputs: Node, channels: int) -> Node:
        """The last inputs of before, then those of the micro-batch; and what is kept of them. Source: build_conv_state."""
        kernel = self._kernel(layer)
        steps = kernel - 1
        states, last = self._state(layer, steps * channels)
        sequences = self._batch.sequences
        last = reshape(last, steps, channels, sequences)
        joined = self._joined(last, transpose(inputs))
        for _ in range(1 + self._batch.drafted):
            kept = view(joined, (steps, channels, sequences), joined.strides[1:3])
            kept = contiguous(kept) if self._design.contiguous_tails else kept
            target = view(states, (steps * channels, sequences), (states.strides[1],))
            self.graph.expand(copied(kept, target))
        return joined

    def _joined(self, last: Node, moved: Node) -> Node:
        """Without causal attention the window's middle is the token: half of the last inputs, then zeros after those of now."""
        steps, channels, sequences = last.shape[:3]
        if self._read.causal:
            return new("CONCAT", (steps + moved.shape[0], channels, sequences, 1), last, moved)
        half = steps // 2
        left = contiguous(view(last, (half, channels, sequences), last.strides[1:3], 4 * (steps - half)))
        joined = new("CONCAT", (half + moved.shape[0], channels, sequences, 1), left, moved)
        return new("PAD", (2 * half + moved.shape[0], channels, sequences, 1), joined)

    def _kernel(self, layer: int) -> int:
        if self._read.recurrence.shortconv_cache:
            return self._read.recurrence.shortconv_cache
        return self._needed(f"blk.{layer}.ssm_conv1d.weight").shape[0]

    # Gated DeltaNet.

    def _delta_net(self, layer: int, inputs: Node) -> Node:
        prefix, sizes = f"blk.{layer}.", self._read.recurrence
        tokens, sequences = self._by_sequence
        heads, key_heads, size = sizes.time_step_rank, sizes.group_count, sizes.state_size
        mixed = matmul(self._needed(f"{prefix}attn_qkv.weight"), inputs)
        mixed = reshape(mixed, mixed.shape[0], tokens, sequences)
        gate = matmul(self._needed(f"{prefix}attn_gate.weight"), inputs)
        strength, decay = self._strength_and_decay(prefix, inputs)
        channels = sizes.inner_size + 2 * key_heads * size
        joined = self._convolution_inputs(layer, mixed, channels)
        width = sizes.inner_size // heads
        states, state = self._state(layer, size * sizes.inner_size)
        state = reshape(state, width, width, heads, sequences)
        kernel = self._needed(f"{prefix}ssm_conv1d.weight")
        turned = like("UNARY", new("SSM_CONV", (channels, tokens, sequences, 1), joined, kernel))
        row = 4 * channels

        def part(length: int, count: int, start: int) -> Node:
            return view(turned, (length, count, tokens, sequences), (4 * length, row, row * tokens), 4 * start)

        query, key = (like("SCALE", like("RMS_NORM", part(size, key_heads, start))) for start in (0, size * key_heads))
        value = part(width, heads, 2 * size * key_heads)
        snapshots = 1 + self._batch.drafted
        shape = (width * heads, tokens * sequences + width * sequences * snapshots, 1, 1)
        result = new("GATED_DELTA_NET", shape, query, key, value, decay, strength, state)
        output = view(
            result,
            (width, heads, tokens, sequences),
            (4 * width, 4 * width * heads, 4 * width * heads * tokens),
        )
        numbers = width * width * heads
        after = view(result, (numbers, sequences), (4 * numbers,), 4 * width * heads * tokens * sequences)
        self.graph.expand(copied(after, view(states, (numbers, sequences), (states.strides[1],))))
        return self._gated_output(prefix, output, gate, (width, heads, tokens, sequences))

    def _strength_and_decay(self, prefix: str, inputs: Node) -> tuple[Node, Node]:
        """beta and g of the delta rule."""
        tokens, sequences = self._by_sequence
        heads, key_heads = self._read.recurrence.time_step_rank, self._read.recurrence.group_count
        if f"{prefix}ssm_ba.weight" in self._tensors:
            both = matmul(self._needed(f"{prefix}ssm_ba.weight"), inputs)
            share = heads // key_heads
            both = reshape(both, 2 * share, key_heads, tokens, sequences)
            first, second = (
                view(both, (share, key_heads, tokens, sequences), both.strides[1:], at) for at in (0, 4 * share)
            )
            strength = like("UNARY", contiguous(first))
            decay = contiguous(second, heads, tokens, sequences)
        else:
            strength = matmul(self._needed(f"{prefix}ssm_beta.weight"), inputs)
            strength = like("UNARY", reshape(strength, 1, heads, tokens, sequences))
            decay = reshape(matmul(self._needed(f"{prefix}ssm_alpha.weight"), inputs), heads, tokens, sequences)
        decay = like("UNARY", like("ADD", decay, self._needed(f"{prefix}ssm_dt.bias")))
        decay = like("MUL", decay, self._needed(f"{prefix}ssm_a"))
        return reshape(strength, 1, heads, tokens, sequences), reshape(decay, 1, heads, tokens, sequences)

    def _gated_output(self, prefix: str, output: Node, gate: Node, shape: Sequence[int]) -> Node:
        width, heads, tokens, sequences = shape
        gate = reshape(gate, width, heads, tokens, sequences)
        normed = self._norm(output, f"{prefix}ssm_norm")
        gated = like("MUL", normed, like("UNARY", gate))
        flat = reshape(gated, width * heads, tokens, sequences)
        result = matmul(self._needed(f"{prefix}ssm_out.weight"), flat)
        return reshape(result, result.shape[0], tokens * sequences)

    # LFM2.

    def _short_convolution(self, layer: int, inputs: Node) -> Node:
        """Source: lfm2.cpp, build_shortconv_block."""
        prefix, width = f"blk.{layer}.", self._read.embedding
        tokens, sequences = self._by_sequence
        inputs = reshape(inputs, width, tokens, sequences)
        joined = matmul(self._needed(f"{prefix}shortconv.in_proj.weight"), inputs)
        first, second, third = (
            view(joined, (width, tokens, sequences), joined.strides[1:3], 4 * width * at) for at in range(3)
        )
        joined = self._convolution_inputs(layer, new("MUL", first.shape, first, third), width)
        kernel = self._needed(f"{prefix}shortconv.conv.weight")
        turned = new("SSM_CONV", (width, tokens, sequences, 1), joined, kernel)
        result = matmul(self._needed(f"{prefix}shortconv.out_proj.weight"), new("MUL", second.shape, second, turned))
        return reshape(result, width, tokens * sequences)

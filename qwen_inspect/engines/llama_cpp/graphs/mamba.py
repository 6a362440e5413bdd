"""The nodes of Mamba (1, PLaMo 2's and 2), alone or in hybrids.

Source: llama.cpp b11549, src/models/mamba-base.cpp (build_mamba_layer, build_mamba2_layer), plamo2.cpp, src/llama-graph.cpp
(build_rs).
"""

from __future__ import annotations

from ..ggml.tensors import (
    F32,
    Node,
    contiguous,
    copied,
    like,
    matmul,
    new,
    overwritten,
    permute,
    reshape,
    rows,
    stored,
    strides_of,
    view,
)
from .recurrent import Recurrent


class Mamba(Recurrent):
    """A layer of Mamba."""

    def _mamba(self, layer: int, inputs: Node) -> Node:
        if f"blk.{layer}.ssm_x.weight" in self._tensors:
            return self._mamba_1(layer, inputs)
        prefix, sizes = f"blk.{layer}.", self._read.recurrence
        tokens, sequences = self._by_sequence
        heads, groups, size, inner = sizes.time_step_rank, sizes.group_count, sizes.state_size, sizes.inner_size
        width, channels = inner // heads, inner + 2 * groups * size
        joined = matmul(self._needed(f"{prefix}ssm_in.weight"), inputs)
        joined = reshape(joined, joined.shape[0], tokens, sequences)
        row, plane = joined.strides[1:3]
        gate = view(joined, (width, heads, tokens, sequences), (4 * width, row, plane))
        mixed = view(joined, (channels, tokens, sequences), (row, plane), 4 * inner)
        steps = view(joined, (heads, tokens, sequences), (row, plane), 4 * (2 * inner + 2 * groups * size))
        kernel = self._needed(f"{prefix}ssm_conv1d.weight")
        turned = new(
            "SSM_CONV", (channels, tokens, sequences, 1), self._convolution_inputs(layer, mixed, channels), kernel
        )
        turned = like("UNARY", self._with_bias(turned, f"{prefix}ssm_conv1d.bias"))
        row, plane = turned.strides[1:3]
        value = view(turned, (width, heads, tokens, sequences), (4 * width, row, plane))
        key, query = (
            view(turned, (size, groups, tokens, sequences), (4 * size, row, plane), 4 * start)
            for start in (inner, inner + groups * size)
        )
        steps = like("ADD", contiguous(steps), self._needed(f"{prefix}ssm_dt.bias"))
        scanned = self._scan(layer, value, steps, key, query)
        result = view(scanned, (width, heads, tokens, sequences), (4 * width, 4 * inner, 4 * inner * tokens))
        skipped = new("MUL", value.shape, value, self._needed(f"{prefix}ssm_d"))
        result = new("GLU", value.shape, contiguous(gate), new("ADD", value.shape, result, skipped))
        if f"{prefix}ssm_norm.weight" in self._tensors:
            result = self._norm(reshape(result, inner // groups, groups, tokens, sequences), f"{prefix}ssm_norm")
        return matmul(self._needed(f"{prefix}ssm_out.weight"), reshape(result, inner, tokens * sequences))

    def _mamba_1(self, layer: int, inputs: Node) -> Node:
        """Steps, B and C come of the convolution's result. PLaMo 2's has heads, and its gate lies between their inputs."""
        prefix, sizes = f"blk.{layer}.", self._read.recurrence
        tokens, sequences = self._by_sequence
        inner, by_head = sizes.inner_size, self._read.architecture == "plamo2"
        heads = sizes.time_step_rank if by_head else inner
        width = inner // heads
        inputs = reshape(inputs, inputs.shape[0], tokens, sequences)
        joined = matmul(self._needed(f"{prefix}ssm_in.weight"), inputs)
        if by_head:
            joined = contiguous(permute(joined, 0, 2, 1, 3), 2 * width, heads, tokens, sequences)
            gate, mixed = (
                view(joined, (width, heads, tokens, sequences), joined.strides[1:], at) for at in (0, 4 * width)
            )
            mixed = contiguous(mixed, inner, tokens, sequences)
        else:
            gate, mixed = (view(joined, (inner, tokens, sequences), joined.strides[1:3], at) for at in (0, 4 * inner))
        kernel = self._needed(f"{prefix}ssm_conv1d.weight")
        turned = new("SSM_CONV", (inner, tokens, sequences, 1), self._convolution_inputs(layer, mixed, inner), kernel)
        turned = like("UNARY", self._with_bias(turned, f"{prefix}ssm_conv1d.bias"))
        steps, key, query = self._steps(prefix, turned, by_head)
        steps = self._with_bias(matmul(self._needed(f"{prefix}ssm_dt.weight"), steps), f"{prefix}ssm_dt.bias")
        value = reshape(turned, width, heads, tokens, sequences)
        scanned = self._scan(layer, value, steps, key, query)
        shape = value.shape if by_head else turned.shape
        result = view(scanned, shape, strides_of(F32, shape)[1:])
        skipped = new("MUL", shape, value if by_head else turned, self._needed(f"{prefix}ssm_d"))
        result = new("GLU", shape, contiguous(gate), new("ADD", shape, result, skipped))
        result = matmul(self._needed(f"{prefix}ssm_out.weight"), view(result, (inner, tokens, sequences)))
        return reshape(result, result.shape[0], tokens * sequences)

    def _steps(self, prefix: str, turned: Node, by_head: bool) -> tuple[Node, Node, Node]:
        """The steps before their matrix, B and C. Source: ssm_dt_b_c_rms."""
        tokens, sequences = self._by_sequence
        size = self._read.recurrence.state_size
        mixed = matmul(self._needed(f"{prefix}ssm_x.weight"), turned)
        rank = mixed.shape[0] - 2 * size
        starts = (2 * size, 0, size) if by_head else (0, rank, rank + size)
        steps = view(mixed, (rank, tokens, sequences), mixed.strides[1:3], 4 * starts[0])
        key, query = (
            view(mixed, (size, 1, tokens, sequences), (4 * size, *mixed.strides[1:3]), 4 * start)
            for start in starts[1:]
        )
        if not self._key("ssm.dt_b_c_rms") and not self._has(f"{prefix}ssm_dt_norm"):
            return contiguous(steps), key, query
        names = ("dt", "b", "c")
        normed = [
            self._norm(node, f"{prefix}ssm_{name}_norm") for name, node in zip(names, (steps, key, query), strict=True)
        ]
        return normed[0], normed[1], normed[2]

    def _scan(self, layer: int, value: Node, steps: Node, key: Node, query: Node) -> Node:
        """Reads the states where they lie, and writes them back."""
        width, heads, tokens, sequences = value.shape
        size = self._read.recurrence.state_size
        numbers, cells = size * width * heads, sequences * (1 + self._batch.drafted)
        states = stored(F32, (numbers, cells), self._placed[f"cache.{layer}"], weight=False)
        flat = reshape(states, numbers, cells)
        self.graph.expand(overwritten("SCALE", view(flat, (numbers,))))
        chosen = self._places(sequences, 0, sequences)
        shape = (width * heads * tokens * sequences + numbers * cells, 1, 1, 1)
        decay = self._needed(f"blk.{layer}.ssm_a")
        if self._read.architecture == "plamo2":  # a view of a weight, by which the scheduler does not go
            decay = reshape(decay, 1, heads)
        before = reshape(flat, size, width, heads, cells)
        scanned = self.graph.expand(new("SSM_SCAN", shape, before, value, steps, decay, key, query, chosen))
        if self._batch.build.gathers_states_once:
            tail = rows(flat, self._places(sequences, 1, sequences))
            others = view(tail, (numbers, 0), (tail.strides[1],), (sequences - 1) * tail.strides[1])
        else:
            others = rows(flat, self._places(sequences, sequences, sequences))
        self.graph.expand(copied(others, view(states, (numbers, 0), (states.strides[1],))))
        after = view(scanned, (numbers, sequences), (4 * numbers,), 4 * width * heads * tokens * sequences)
        self.graph.expand(copied(after, view(states, (numbers, sequences), (states.strides[1],))))
        return scanned

"""The graph of Gemma 4's tower that hears: a conformer whose frames attend to their own and the last chunk.

Source: llama.cpp 0c1e57098, tools/mtmd/models/gemma4a.cpp.
"""

from __future__ import annotations

from ..ggml.tensors import (
    F16,
    F32,
    Node,
    contiguous,
    leaf,
    like,
    matmul,
    new,
    permute,
    reshape,
    transpose,
    view,
)
from .parts import VisionParts

RMS = "RMS_NORM"
CHUNK, PAST, TAPS = 12, 12, 5


class Conformer(VisionParts):
    """Builds the graph."""

    def gemma4a(self) -> Node:
        state = self._subsampled(contiguous(transpose(leaf(F32, self._image_width, self._image_height, 1))))
        blocks = -(-state.shape[1] // CHUNK)
        distances = leaf(F32, self._heads * self._head, PAST + 1)
        mask = leaf(F32, CHUNK + PAST, CHUNK, blocks)
        for layer in range(self._layers):
            state = self._conformer_layer(f"a.blk.{layer}", state, distances, mask)
        if "a.pre_encode.out.weight" in self._tower.by_name:
            state = self._linear("a.pre_encode.out", state)
        normed = self._norm(state, "mm.a.soft_emb_norm", RMS)
        return self._product("mm.a.input_projection", normed)

    def _subsampled(self, state: Node) -> Node:
        """A quarter of the frames."""
        for at in range(2):
            name = f"a.conv1d.{at}"
            state = self._with_bias(_halved(self._needed(f"{name}.weight"), state), f"{name}.bias")
            if (norm := self._weight(f"{name}.norm.weight")) is not None:
                state = like("MUL", like("NORM", contiguous(permute(state, 1, 2, 0, 3))), norm)
                state = contiguous(permute(state, 2, 0, 1, 3))
            state = like("UNARY", state)
        state = contiguous(permute(state, 1, 2, 0, 3))
        return self._linear("a.input_projection", reshape(state, state.shape[0] * state.shape[1], state.shape[2]))

    def _conformer_layer(self, prefix: str, state: Node, distances: Node, mask: Node) -> Node:
        state = self._half_step(prefix, state, "")
        before = f"{prefix}.attn_pre_norm"
        before = before if f"{before}.weight" in self._tower.by_name else f"{prefix}.ln1"
        inputs = self._norm(state, before, RMS) if f"{before}.weight" in self._tower.by_name else state
        attended = self._linear(f"{prefix}.attn_out", self._heard(prefix, inputs, distances, mask))
        if f"{prefix}.attn_post_norm.weight" in self._tower.by_name:
            attended = self._norm(attended, f"{prefix}.attn_post_norm", RMS)
        state = like("ADD", state, attended)
        if f"{prefix}.conv_norm.weight" in self._tower.by_name:
            state = like("ADD", state, self._mixed_frames(prefix, self._norm(state, f"{prefix}.conv_norm", RMS)))
        state = self._half_step(prefix, state, "_1")
        return self._norm(state, f"{prefix}.ln2", RMS) if f"{prefix}.ln2.weight" in self._tower.by_name else state

    def _half_step(self, prefix: str, state: Node, end: str) -> Node:
        normed = self._norm(state, f"{prefix}.ffn_norm{end}", RMS)
        inner = like("UNARY", self._product(f"{prefix}.ffn_up{end}", normed))
        result = self._product(f"{prefix}.ffn_down{end}", inner)
        if f"{prefix}.ffn_post_norm{end}.weight" in self._tower.by_name:
            result = self._norm(result, f"{prefix}.ffn_post_norm{end}", RMS)
        return like("ADD", state, like("SCALE", result))

    def _heard(self, prefix: str, inputs: Node, distances: Node, mask: Node) -> Node:
        """Attention by chunks."""
        frames, (head, heads), blocks = inputs.shape[1], (self._head, self._heads), mask.shape[2]
        query, key, value = (
            reshape(self._product(f"{prefix}.attn_{part}", inputs), head, heads, frames) for part in "qkv"
        )
        query = self._scaled_numbers(query, f"{prefix}.per_dim_scale.weight")
        key = self._scaled_numbers(key, f"{prefix}.per_dim_k_scale.weight")
        query = new("PAD", (head, heads, CHUNK * blocks, 1), query)
        query = contiguous(permute(reshape(query, head, heads, CHUNK, blocks), 0, 3, 1, 2))
        keys = contiguous(permute(self._windows(key, blocks), 0, 3, 1, 2))
        values = contiguous(permute(self._windows(value, blocks), 1, 3, 0, 2))
        scores = matmul(keys, query)
        if (weight := self._weight(f"{prefix}.attn_k_rel.weight")) is not None:
            scores = like("ADD", scores, self._by_distance(weight, query, distances))
        scores = like("SCALE", like("UNARY", like("SCALE", scores)))
        scores = like("SOFT_MAX", like("ADD", scores, mask))
        result = contiguous(permute(matmul(values, scores), 0, 2, 3, 1))
        result = contiguous(result, head * heads, CHUNK * blocks)
        if CHUNK * blocks > frames:
            result = contiguous(view(result, (head * heads, frames), (result.strides[1],)))
        return result

    def _scaled_numbers(self, node: Node, name: str) -> Node:
        node, scale = like("SCALE", node), self._weight(name)
        return node if scale is None else like("MUL", node, reshape(scale, self._head, 1, 1))

    def _windows(self, node: Node, blocks: int) -> Node:
        """Of each chunk, with the one before it."""
        head, heads, size = self._head, self._heads, CHUNK + PAST
        whole = new("PAD", (head, heads, size * blocks, 1), node)
        row, frame = whole.strides[1:3]
        return contiguous(view(whole, (head, heads, size, blocks), (row, frame, CHUNK * frame)))

    def _by_distance(self, weight: Node, query: Node, distances: Node) -> Node:
        head, heads, blocks, size = self._head, self._heads, query.shape[2], CHUNK + PAST
        keys = reshape(matmul(weight, distances), head, heads, PAST + 1)
        keys = contiguous(permute(keys, 0, 2, 1, 3))
        scores = matmul(keys, reshape(query, head, CHUNK * blocks, heads))
        scores = reshape(scores, PAST + 1, CHUNK, blocks, heads)
        scores = new("PAD", (size + 1, CHUNK, blocks, heads), scores)
        scores = reshape(scores, (size + 1) * CHUNK, blocks, heads)
        scores = contiguous(view(scores, (CHUNK * size, blocks, heads), scores.strides[1:3]))
        return reshape(scores, size, CHUNK, blocks, heads)

    def _mixed_frames(self, prefix: str, inputs: Node) -> Node:
        """A gated unit, and a convolution over the last frames."""
        both = self._product(f"{prefix}.conv_pw1", inputs)
        width, frames, row = both.shape[0] // 2, both.shape[1], both.strides[1]
        gate = like("UNARY", contiguous(view(both, (width, frames), (row,), 4 * width)))
        gated = like("MUL", view(both, (width, frames), (row,)), gate)
        padded = new("PAD", (frames + TAPS - 1, width, 1, 1), contiguous(transpose(gated)))
        mixed = new("SSM_CONV", (width, frames, 1, 1), padded, self._needed(f"{prefix}.conv_dw.weight"))
        mixed = self._with_bias(mixed, f"{prefix}.conv_dw.bias")
        if (norm := self._weight(f"{prefix}.norm_conv.weight")) is not None:
            mixed = like("MUL", like(RMS, mixed), norm)
        return self._product(f"{prefix}.conv_pw2", like("UNARY", mixed))


def _halved(kernel: Node, inputs: Node) -> Node:
    """A convolution with a step of two, padded by one on every side. Source: ggml_conv_2d."""
    across, down = ((inputs.shape[at] + 2 - kernel.shape[at]) // 2 + 1 for at in (0, 1))
    numbers = kernel.shape[0] * kernel.shape[1] * kernel.shape[2]
    kind = F32 if kernel.type.name == "bfloat16" else F16
    columns = new("IM2COL", (numbers, across, down, 1), kernel, inputs, kind=kind)
    flat = reshape(columns, numbers, across * down)
    product = matmul(flat, reshape(kernel, numbers, kernel.shape[3]))
    return contiguous(permute(reshape(product, across, down, 1, kernel.shape[3]), 0, 1, 3, 2))

"""The nodes of T5's encoder and decoder: a bias by the distance of tokens, and attention to what the encoder gave.

Source: llama.cpp b11549, src/models/t5.cpp; src/llama-graph.cpp (build_pos_bias, build_attn_inp_cross).
"""

from __future__ import annotations

from ....errors import UnsupportedError
from ..ggml.tensors import F16, F32, I32, Node, contiguous, leaf, like, matmul, permute, reshape, rows
from .encoders import Encoder


class T5(Encoder):
    """From the embedding to the state before the last norm."""

    def _t5(self, state: Node) -> Node:
        batch, encodes = self._batch, self._design.relative == "encoder"
        if not encodes and batch.streams > 1:  # llama.cpp ends there: the bias has no sequences
            raise UnsupportedError("llama_cpp_graph", architecture=self._read.architecture)
        cells = batch.tokens if encodes else batch.cells
        buckets = leaf(I32, cells, batch.tokens)
        layers = self._read.layers if encodes else self._read.decoder_layers or self._read.layers
        for layer in range(layers):
            prefix = f"{'enc' if encodes else 'dec'}.blk.{layer}."
            state = self._t5_layer(layer, prefix, state, buckets, last=layer == layers - 1)
        return state

    def _t5_layer(self, layer: int, prefix: str, inputs: Node, buckets: Node, *, last: bool) -> Node:
        normed = self._norm(inputs, f"{prefix}attn_norm")
        query, *own = (self._t5_heads(layer, f"{prefix}attn_{part}", part, normed) for part in "qkv")
        bias = self._distances(prefix, buckets)
        attend = self._attend_cells if self._design.cached else self._attend_here
        attended = matmul(self._needed(f"{prefix}attn_o.weight"), attend(layer, query, own, bias=bias))
        if f"{prefix}cross_attn_q.weight" in self._tensors:
            inputs = like("ADD", attended, inputs)
            attended = self._attend_across(layer, prefix, self._norm(inputs, f"{prefix}cross_attn_norm"))
        if last:
            chosen = self._input("out_ids", I32, self._batch.outputs)
            attended, inputs = rows(attended, chosen), rows(inputs, chosen)
        middle = like("ADD", attended, inputs)
        return like("ADD", self._dense(self._norm(middle, f"{prefix}ffn_norm"), prefix, ""), middle)

    def _t5_heads(self, layer: int, name: str, part: str, inputs: Node) -> Node:
        heads = self._read.heads[layer] if part == "q" else self._read.kv_heads[layer]
        return reshape(matmul(self._needed(f"{name}.weight"), inputs), self._read.key_length, heads, inputs.shape[1])

    def _distances(self, prefix: str, buckets: Node) -> Node:
        """(cells, tokens, heads), from the layer's table or the first layer's."""
        first = f"{prefix[:8]}0.attn_rel_b.weight"
        table = self._weight(f"{prefix}attn_rel_b.weight") or self._needed(first)
        cells, tokens = buckets.shape[:2]
        gathered = reshape(rows(table, reshape(buckets, cells * tokens)), table.shape[0], cells, tokens)
        return contiguous(permute(gathered, 2, 0, 1, 3))

    def _attend_across(self, layer: int, prefix: str, inputs: Node) -> Node:
        """Before there is an encoder's result, it is taken to be as long as the model's context."""
        length = self._read.context_tokens or 0
        encoded = self._input("cross_embd", F32, self._read.embedding, length)
        kind = F16 if self._batch.flash_attention else F32
        mask = self._input("cross_mask", kind, length, self._batch.tokens)
        query, key, value = (
            self._t5_heads(layer, f"{prefix}cross_attn_{part}", part, inputs if part == "q" else encoded)
            for part in "qkv"
        )
        for node in (query, key, value):
            self.graph.expand(node)
        return matmul(self._needed(f"{prefix}cross_attn_o.weight"), self._mha(query, key, value, mask, layer))

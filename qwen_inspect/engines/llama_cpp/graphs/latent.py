"""The nodes of latent attention (MLA): with the latent in the cache, or with every head's K and V.

Source: llama.cpp b11549, src/models/deepseek2.cpp, kimi-linear.cpp, minicpm3.cpp, plm.cpp; src/llama-graph.cpp (build_attn).
"""

from __future__ import annotations

from ..ggml.tensors import I64, Node, contiguous, like, matmul, new, permute, reshape, stored, view
from .attention import cache_view, stored_whole
from .indexer import Indexer


class Latent(Indexer):
    """Attention over a latent of K and V."""

    def _latent_attention(self, layer: int, inputs: Node) -> Node:
        """Source: src/models/deepseek2.cpp."""
        read, prefix = self._read, f"blk.{layer}."
        heads, rank, rope, tokens = read.heads[layer], read.kv_lora_rank, read.rope_dimensions, self._batch.tokens
        length = read.key_length_mla if read.latent else read.key_length
        if f"{prefix}attn_q.weight" in self._tensors:
            query = matmul(self._needed(f"{prefix}attn_q.weight"), inputs)
        else:
            narrow = self._norm(matmul(self._needed(f"{prefix}attn_q_a.weight"), inputs), f"{prefix}attn_q_a_norm")
            self._choose_cells(layer, narrow, inputs)
            query = matmul(self._needed(f"{prefix}attn_q_b.weight"), narrow)
        query = reshape(query, length, heads, tokens)
        joined = matmul(self._needed(f"{prefix}attn_kv_a_mqa.weight"), inputs)
        row = 4 * (rank + rope)
        latent = view(joined, (rank, tokens), (row,))
        key_rope = self._turned(layer, view(joined, (rope, 1, tokens), (row, row), 4 * rank))
        latent = self._norm(latent, f"{prefix}attn_kv_a_norm")
        absorbs = self._absorbed if read.latent else self._decompressed
        attended = absorbs(layer, query, latent, key_rope)
        gate = self._weight(f"{prefix}attn_gate.weight")
        if gate is not None:
            scores = matmul(gate, inputs)
            attended = (
                self._gated_heads(attended, scores) if self._design.gated_heads else self._gated(attended, scores)
            )
        return self._linear(f"{prefix}attn_output", attended)

    def _gated_heads(self, attended: Node, scores: Node) -> Node:
        """By a number for each head. Source: bailingmoe3.cpp."""
        heads, tokens = scores.shape[:2]
        opened = like("UNARY", reshape(scores, 1, heads, tokens))
        by_head = reshape(attended, attended.shape[0] // heads, heads, tokens)
        return contiguous(like("MUL", by_head, opened), *attended.shape[:2])

    def _absorbed(self, layer: int, query: Node, latent: Node, key_rope: Node) -> Node:
        """The latent alone lies in the cache. Source: build_attn with llm_graph_input_attn_k."""
        batch, prefix = self._batch, f"blk.{layer}."
        length, heads, tokens = query.shape[:3]
        rank, rope = latent.shape[0], key_rope.shape[0]
        plain = length - rope
        unturned = view(query, (plain, heads, tokens), query.strides[1:3])
        turned = view(query, (rope, heads, tokens), query.strides[1:3], 4 * plain)
        turned = self._turned(layer, turned)
        absorbed = matmul(self._needed(f"{prefix}attn_k_b.weight"), permute(unturned, 0, 2, 1, 3))
        absorbed = permute(absorbed, 0, 2, 1, 3)
        query = new("CONCAT", (rank + rope, heads, tokens, 1), absorbed, turned)
        if self._key("attention.temperature_scale"):
            query = self._scaled_by_position(query)
        latent = reshape(latent, rank, 1, tokens)
        key = new("CONCAT", (rank + rope, 1, tokens, 1), latent, key_rope)
        for node in (query, latent, key):
            self.graph.expand(node)
        cache = stored(
            batch.key_type, (rank + rope, batch.cells, batch.streams), self._placed[f"cache.{layer}"], weight=False
        )
        places = self._input("k_idxs", I64, tokens) if batch.build.indexed else None
        self.graph.expand(stored_whole(key, cache, places))
        cached = cache_view(cache, rank + rope, 1, batch.cells, batch.streams)
        value = view(cached, (rank, 1, batch.cells, batch.streams), cached.strides[1:])
        decompress = self._needed(f"{prefix}attn_v_b.weight")
        mask = self._mask_of_chosen(self._mask(False, batch.cells))
        return self._mha(query, cached, value, mask, layer, decompress)

    def _decompressed(self, layer: int, query: Node, latent: Node, key_rope: Node) -> Node:
        """K and V of every head lie in the cache. Source: deepseek2.cpp without MLA, minicpm3.cpp, plm.cpp."""
        heads, tokens = query.shape[1:3]
        rope, value_length = key_rope.shape[0], self._read.value_length
        plain = query.shape[0] - rope
        both = matmul(self._needed(f"blk.{layer}.attn_kv_b.weight"), latent)
        head = 4 * (plain + value_length)
        key = view(both, (plain, heads, tokens), (head, head * heads))
        value = contiguous(view(both, (value_length, heads, tokens), (head, head * heads), 4 * plain))
        repeated = new("REPEAT", (rope, heads, tokens, 1), key_rope)
        key = new("CONCAT", (plain + rope, heads, tokens, 1), key, repeated)
        query = self._turned(layer, query)
        if self._key("attention.temperature_scale"):
            query = self._scaled_by_position(query)
        return self._attend(layer, query, [key, value])

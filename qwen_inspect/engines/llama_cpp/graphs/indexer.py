"""The nodes of sparse attention's index, which chooses the cells that a token attends to.

Source: llama.cpp b11434, src/models/deepseek32.cpp and glm-dsa.cpp; src/llama-graph.cpp (build_attn_inp_k_dsa, build_attn).
"""

from __future__ import annotations

from ..ggml.tensors import (
    F16,
    F32,
    I32,
    I64,
    Node,
    contiguous,
    leaf,
    like,
    matmul,
    new,
    reshape,
    set_rows,
    stored,
    view,
)
from .attention import cache_view, stored_whole
from .block_sparse import BlockSparse


class Indexer(BlockSparse):
    """Chooses cells by keys of its own in a second cache; a layer without an index has the cells of the last one with one."""

    _cells_chosen: Node | None = None

    def _choose_cells(self, layer: int, narrow: Node, inputs: Node) -> None:
        """narrow: the compressed query."""
        if not any(self._read.index_cells(layer)):
            return
        batch, prefix, index = self._batch, f"blk.{layer}.indexer.", self._read.indexer
        length, heads, tokens = index.key_length, index.heads, batch.tokens
        positions = self._input("positions", I32, tokens)
        query = matmul(self._needed(f"{prefix}attn_q_b.weight"), narrow)
        query = like("ROPE", reshape(query, length, heads, tokens), positions)
        key = like("NORM", matmul(self._needed(f"{prefix}attn_k.weight"), inputs))
        key = self._with_bias(like("MUL", key, self._needed(f"{prefix}k_norm.weight")), f"{prefix}k_norm.bias")
        key = like("ROPE", reshape(key, length, 1, tokens), positions)
        if self._read.architecture != "hy_v4":
            rotation = self._input("rotation_index", F32, length, length)
            query, key = matmul(rotation, query), matmul(rotation, key)
        device = self._placed[f"cache.{layer}"]
        cache = stored(batch.key_type, (length, batch.cells, batch.streams), device, weight=False)
        self.graph.expand(stored_whole(key, cache, self._input("k_idxs_index", I64, tokens)))
        weights = matmul(self._needed(f"{prefix}proj.weight"), inputs)
        each = tokens // batch.streams
        query = view(query, (length, heads, each, batch.streams), (*query.strides[1:3], query.strides[2] * each))
        row = weights.strides[1]
        weights = like("SCALE", view(weights, (heads, each, 1, batch.streams), (row, row * each, row * each)))
        keys = cache_view(cache, length, 1, batch.cells, batch.streams)
        mask = self._index_mask()
        scores = new("LIGHTNING_INDEXER", (batch.cells, each, 1, batch.streams), query, keys, weights, mask)
        shape = (min(batch.cells, index.top_k), *scores.shape[1:])
        self._cells_chosen = contiguous(new("TOP_K", shape, scores, kind=I32))

    def _index_mask(self) -> Node:
        batch = self._batch
        if "index_mask" not in self._inputs:
            self._inputs["index_mask"] = leaf(F16, batch.cells, batch.tokens // batch.streams, 1, batch.streams)
        return self._inputs["index_mask"]

    def _mask_of_chosen(self, mask: Node) -> Node:
        """The mask with all other cells hidden; itself without an index."""
        chosen = self._cells_chosen
        if chosen is None:
            return mask
        cells, each, _, streams = mask.shape
        number, row, _, stream = mask.strides
        hidden = like("FILL", mask)
        hidden = view(hidden, (1, cells, each, streams), (number, row, row * each))
        count = chosen.shape[0]
        indices = view(chosen, (count, each, streams), chosen.strides[1:3])
        empty = Node("NONE", F32, (1, count, each, streams), (4, 4, 4 * count, 4 * count * each))
        shown = set_rows(hidden, like("FILL", empty), indices)
        shown = view(shown, (cells, each, 1, streams), (row, stream, stream))
        return like("ADD", shown, mask)

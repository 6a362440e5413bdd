"""The nodes of attention to blocks of positions that an index chooses, as MiniMax-M3 has it.

Source: llama.cpp b11434, src/models/minimax-m3.cpp, src/llama-kv-cache-msa.cpp.
"""

from __future__ import annotations

from ..ggml.tensors import (
    F16,
    F32,
    I32,
    I64,
    Node,
    Type,
    contiguous,
    like,
    matmul,
    new,
    overwritten,
    permute,
    reshape,
    rows,
    set_rows,
    stored,
    transpose,
    view,
)
from .attention import Attention, cache_view, rotated, stored_whole


class BlockSparse(Attention):
    """Attention of one layer; dense without flash attention, or where sequences share their cells."""

    def _attend(self, layer: int, query: Node, own: list[Node], inputs: Node | None = None) -> Node:
        batch = self._batch
        alone = batch.sequences == 1 or batch.streams > 1
        indexed = f"blk.{layer}.indexer.q_proj.weight" in self._tensors and self._key("attention.indexer.block_size")
        if indexed and batch.flash_attention and alone and inputs is not None:
            return self._attend_blocks(layer, query, own, inputs)
        return super()._attend(layer, query, own, inputs)

    @property
    def _blocks(self) -> tuple[int, int]:
        """Positions of a block, and blocks."""
        size = int(self._key("attention.indexer.block_size") or 1)
        return size, -(-self._batch.positions // size)

    def _attend_blocks(self, layer: int, query: Node, own: list[Node], inputs: Node) -> Node:
        batch, read, index = self._batch, self._read, self._read.indexer
        heads, streams, cells = index.heads, batch.streams, batch.cells
        mask = self._mask(False, cells)
        index_query, index_keys = self._indexed(layer, inputs)
        length, value_length = read.key_length, read.value_length
        rotations = self._rotation(batch.key_type, length, "k"), self._rotation(batch.value_type, value_length, "v")
        if rotations[0] is not None:
            query, own[0] = rotated(query, rotations[0]), rotated(own[0], rotations[0])
        if rotations[1] is not None:
            own[1] = rotated(own[1], rotations[1])
        for node in (query, *own):
            self.graph.expand(node)
        keys = self._cached(layer, own[0], batch.key_type, "k", length)
        values = self._cached(layer, own[1], batch.value_type, "v", value_length)
        each = batch.tokens // streams
        results = []
        for stream in range(streams):
            chosen = self._blocks_mask(stream, index_query, index_keys, mask, heads)
            part = view(query, (*query.shape[:2], each), query.strides[1:3], stream * each * query.strides[2])
            key, value = (
                permute(view(node, (*node.shape[:3], 1), node.strides[1:], stream * node.strides[3]), 0, 3, 1, 2)
                for node in (keys, values)
            )
            results.append(self._grouped(part, key, value, chosen))
        result = results[0]
        for part in results[1:]:
            result = new("CONCAT", (result.shape[0], result.shape[1] + part.shape[1], 1, 1), result, part)
        return result if rotations[1] is None else rotated(result, rotations[1])

    def _cached(self, layer: int, node: Node, kind: Type, part: str, length: int) -> Node:
        batch, heads = self._batch, self._read.kv_heads[layer]
        device = self._placed[f"cache.{layer}"]
        cache = stored(kind, (length * heads, batch.cells, batch.streams), device, weight=False)
        self.graph.expand(stored_whole(node, cache, self._input(f"{part}_idxs", I64, batch.tokens)))
        return cache_view(cache, length, heads, batch.cells, batch.streams)

    def _indexed(self, layer: int, inputs: Node) -> tuple[Node, Node]:
        """The index's queries, and its cached keys."""
        batch, prefix, length = self._batch, f"blk.{layer}.indexer.", self._read.indexer.key_length
        positions = self._input("positions", I32, batch.tokens)
        query = reshape(
            matmul(self._needed(f"{prefix}q_proj.weight"), inputs), length, self._read.indexer.heads, batch.tokens
        )
        key = reshape(matmul(self._needed(f"{prefix}k_proj.weight"), inputs), length, 1, batch.tokens)
        query, key = (
            like("ROPE", self._norm(node, f"{prefix}{part}_norm"), positions)
            for node, part in ((query, "q"), (key, "k"))
        )
        device = self._placed[f"cache.{layer}"]
        cache = stored(batch.key_type, (length, batch.cells, batch.streams), device, weight=False)
        self.graph.expand(stored_whole(key, cache, self._input("k_idxs_index", I64, batch.tokens)))
        return query, cache_view(cache, length, 1, batch.cells, batch.streams)

    def _blocks_mask(self, stream: int, query: Node, keys: Node, mask: Node, heads: int) -> Node:
        """The mask of one stream, in which only the chosen blocks are seen, for each head of the index."""
        batch, (size, count) = self._batch, self._blocks
        positions, cells, each = size * count, batch.cells, batch.tokens // batch.streams
        length = query.shape[0]
        bias = self._input("block_bias", F32, count, batch.tokens)
        seen = self._input("position_mask", F32, positions, batch.tokens)
        slots = self._input("position_slots", I32, positions, batch.streams)
        blocks = self._input("cell_blocks", I32, cells, batch.streams)
        if "mask_f32" not in self._inputs:
            self._inputs["mask_f32"] = new("CPY", mask.shape, mask)
        whole = self._inputs["mask_f32"]
        part = view(query, (length, heads, each), query.strides[1:3], stream * each * query.strides[2])
        own_keys = view(keys, (length, cells), (keys.strides[2],), stream * keys.strides[3])
        row = seen.strides[1]
        own_seen = view(seen, (positions, 1, each), (row, row), stream * each * row)
        own_blocks = view(blocks, (cells,), (), stream * blocks.strides[1])
        own_mask = view(whole, (cells, each, 1), (whole.strides[1], whole.strides[3]), stream * whole.strides[3])
        row = bias.strides[1]
        own_bias = view(bias, (count, 1, each), (row, row), stream * each * row)
        gathered = rows(own_keys, view(slots, (positions,), (), stream * slots.strides[1]))
        scores = reshape(matmul(gathered, reshape(part, length, heads * each)), positions, heads, each)
        scores = overwritten("ADD", scores)
        scores.sources.append(own_seen)
        pooled = new("POOL_2D", (count, heads, each, 1), scores)
        ranked = like("ADD", pooled, own_bias)
        chosen = min(self._read.indexer.top_k, count)
        ids = new("TOP_K", (chosen, heads, each, 1), ranked, kind=I32)
        hidden = like("SCALE", own_bias)
        hidden = new("CPY", hidden.shape, hidden, kind=F16)
        hidden = new("REPEAT", (count, heads, each, 1), hidden, kind=F16)
        shown = like("SCALE", new("CPY", ids.shape, ids))
        marked = set_rows(
            reshape(hidden, 1, count, heads * each),
            reshape(shown, 1, chosen, heads * each),
            reshape(ids, chosen, heads * each),
        )
        marked = contiguous(permute(reshape(marked, count, heads, each), 0, 2, 1, 3))
        marked = contiguous(transpose(reshape(marked, count, each * heads)))
        by_cell = contiguous(transpose(rows(marked, own_blocks)))
        combined = overwritten("ADD", reshape(by_cell, cells, each, heads))
        combined.sources.append(own_mask)
        combined = reshape(combined, cells, each, 1, heads)
        return new("CPY", combined.shape, combined, kind=F16)

    def _grouped(self, query: Node, key: Node, value: Node, mask: Node) -> Node:
        """Each group of heads as a sequence of its own. Source: build_attn_msa_fa."""
        length, heads, tokens = query.shape[:3]
        groups = key.shape[3]
        query = permute(reshape(query, length, heads // groups, groups, tokens), 0, 2, 3, 1)
        shape = (value.shape[0], heads // groups, tokens, groups)
        result = permute(new("FLASH_ATTN_EXT", shape, query, key, value, mask), 0, 1, 3, 2)
        return reshape(contiguous(result), length * heads, tokens)

"""An index of pools: keys of several consecutive cells as one, and the mask of the cells whose pools a token chooses.

Source: llama.cpp b11549, src/models/glm5-next.cpp (build_kpool_select) and qwen4exp.cpp (build_qsa_sel);
src/llama-memory-hybrid-idx.cpp (kpool_access, kpool_pad).
"""

from __future__ import annotations

from ..ggml.tensors import F16, F32, I32, I64, Node, Shape, Type, cast, like, new, reshape, rows, set_rows, stored, view
from .attention import stored_whole
from .parts import Parts

POOLS_MULTIPLE = 64


class Pools(Parts):
    """Pools of all sequences' cells."""

    @property
    def _pools(self) -> int:
        return self._batch.cells // self._read.indexer.pool * self._batch.sequences

    @property
    def _pools_padded(self) -> int:
        return max(POOLS_MULTIPLE, -(-(self._pools + 1) // POOLS_MULTIPLE) * POOLS_MULTIPLE)

    @property
    def _best_count(self) -> int:
        """Pools that a token chooses."""
        index = self._read.indexer
        return min(self._pools_padded, index.top_k // index.pool)

    def _pool_inputs(self) -> list[Node]:
        tokens, pool, pools = self._batch.tokens, self._read.indexer.pool, self._pools_padded
        return [
            self._input("pool_cells", I32, pools),
            self._input("pool_idxs", I32, pool, pools),
            self._input("pool_mask", F16, pools, tokens),
            self._input("tail_idxs", I32, pool - 1, tokens),
        ]

    def _pool_cache(self, layer: int, key: Node) -> Node:
        """The index's cells, to which the micro-batch's are written, with room for pools."""
        batch, length = self._batch, self._read.indexer.key_length
        width = key.shape[0] + length
        packed = new("CONCAT", (width, batch.tokens, 1, 1), key, filled(F32, length, batch.tokens))
        packed = reshape(packed, width, 1, batch.tokens)
        device = self._placed[f"cache.{layer}"]
        cache = stored(batch.key_type, (width, batch.cells, batch.streams), device, weight=False)
        self.graph.expand(stored_whole(packed, cache, self._input("k_idxs_index", I64, batch.tokens)))
        return cache

    def _gathered_cells(self, cache: Node) -> Node:
        """What the pools to be made consist of: (numbers, cells, pools)."""
        pool, count = self._read.indexer.pool, self._pools
        width = cache.shape[0] - self._read.indexer.key_length
        indices = reshape(self._input("new_pool_idxs", I32, pool, count), pool * count)
        every = view(cache, (width, self._batch.cells * self._batch.streams), (cache.strides[1],))
        return reshape(rows(every, indices), width, pool, count)

    def _all_pools(self, cache: Node, made: Node) -> Node:
        """After the new ones are written."""
        length = self._read.indexer.key_length
        start = self._batch.key_type.row_bytes(cache.shape[0] - length)
        pools = view(cache, (length, self._batch.cells * self._batch.streams), (cache.strides[1],), start)
        self.graph.expand(set_rows(pools, made, self._input("new_pool_rep", I64, self._pools)))
        return reshape(rows(pools, self._inputs["pool_cells"]), length, 1, self._pools_padded)

    def _cells_of_pools(self, top: Node, *, tail: bool) -> Node:
        """tail: with the cells of an unfinished pool."""
        pool, best, tokens = self._read.indexer.pool, self._best_count, self._batch.tokens
        cells = reshape(rows(self._inputs["pool_idxs"], reshape(top, best * tokens)), pool * best, tokens)
        if tail:
            shape = (cells.shape[0] + pool - 1, tokens, 1, 1)
            cells = new("CONCAT", shape, cells, self._inputs["tail_idxs"], kind=I32)
        return self.graph.expand(cells)

    def _mask_base(self, count: int, mask: Node) -> tuple[Node, Node]:
        """All cells hidden, with `count` spare ones, and what shows a cell."""
        tokens, every = self._batch.tokens, mask.shape[0] + count
        hidden, shown = (
            reshape(new("REPEAT", (size, tokens, 1, 1), filled(mask.type, size), kind=mask.type), 1, size, tokens)
            for size in (every, count)
        )
        return hidden, shown

    def _shown(self, base: tuple[Node, Node], cells: Node, live: Node, spare: Node) -> Node:
        """With the chosen cells shown; those that are none go to spare places."""
        count, tokens = cells.shape[:2]
        places = like("MUL", like("SUB", cast(cells, F32), spare), live)
        places = cast(like("ADD", places, spare), I32)
        return set_rows(base[0], base[1], reshape(places, count, tokens))


def filled(kind: Type, width: int, height: int = 1) -> Node:
    shape: Shape = (width, height, 1, 1)
    return like("FILL", new("NONE", shape, kind=kind))

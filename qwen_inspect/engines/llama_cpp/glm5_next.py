"""The nodes of GLM-5.3-Flash: hyper-connections, delta attention, and a latent whose cells an index of pools chooses.

Source: llama.cpp b11549, src/models/glm5-next.cpp; src/llama-memory-hybrid-idx.cpp (kpool_access, kpool_pad).
"""

from __future__ import annotations

from ...errors import UnsupportedError
from .attention import Attention, cache_view, stored_whole
from .feed_forward import FeedForward
from .hyper import HyperConnections
from .recurrent import Recurrent
from .tensors import (
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
    permute,
    reshape,
    rows,
    set_rows,
    stored,
    view,
)

POOLS_MULTIPLE = 64
FEW_TOKENS = 16  # up to which the chosen cells are gathered


class Glm5Next(Attention, FeedForward, Recurrent, HyperConnections):
    """From the embedding to the state before the last norm."""

    def _glm5_next(self, state: Node) -> Node:
        batch = self._batch
        if batch.tokens <= FEW_TOKENS:
            raise UnsupportedError("llama_cpp_graph", architecture=self._read.architecture)
        for node in self._pool_inputs():
            self.graph.expand(node)
        states = self._in_streams(state)
        chosen: Node | None = None
        for layer in range(self._read.layers):
            prefix = f"blk.{layer}."
            mixed, shares, mixing = self._read_streams(states, f"{prefix}hc_attn")
            normed = self.graph.expand(self._norm(mixed, f"{prefix}attn_norm"))
            if self._read.recurrent[layer]:
                attended = self._recurrent(layer, normed)
            else:
                attended, chosen = self._pooled_attention(layer, normed, chosen)
            states = self._written(attended, states, shares, mixing)
            mixed, shares, mixing = self._read_streams(states, f"{prefix}hc_ffn")
            forward = self._feed_forward(layer, self._norm(mixed, f"{prefix}ffn_norm"))
            states = self._written(forward, states, shares, mixing)
        last = rows(self._flat(states), self._input("out_ids", I32, batch.outputs))
        return self._mean(reshape(last, *states.shape[:2], batch.outputs))

    def _mean(self, states: Node) -> Node:
        width, count, tokens = states.shape[:3]
        parts = [view(states, (width, tokens), (states.strides[2],), at * states.strides[1]) for at in range(count)]
        total = parts[0]
        for part in parts[1:]:
            total = like("ADD", total, part)
        return like("SCALE", total)

    # Pools.

    @property
    def _pools(self) -> int:
        """Pools of all sequences' cells."""
        return self._batch.cells // self._read.indexer.pool * self._batch.sequences

    @property
    def _pools_padded(self) -> int:
        return max(POOLS_MULTIPLE, -(-(self._pools + 1) // POOLS_MULTIPLE) * POOLS_MULTIPLE)

    @property
    def _selected(self) -> tuple[int, int]:
        """Pools that a token chooses, and the cells of those and of its unfinished one."""
        index = self._read.indexer
        best = min(self._pools_padded, index.top_k // index.pool)
        tail = index.pool - 1 if self._key("attention.indexer.kpool_select_tail") else 0
        return best, index.pool * best + tail

    def _pool_inputs(self) -> list[Node]:
        tokens, pool, pools = self._batch.tokens, self._read.indexer.pool, self._pools_padded
        return [
            self._input("pool_cells", I32, pools),
            self._input("pool_idxs", I32, pool, pools),
            self._input("pool_mask", F16, pools, tokens),
            self._input("tail_idxs", I32, pool - 1, tokens),
            self._input("gather_mask", F32, self._selected[1], 1, 1, tokens),
        ]

    def _pooled_attention(self, layer: int, inputs: Node, chosen: Node | None) -> tuple[Node, Node]:
        """And the mask of the chosen cells. chosen: that of the last layer with an index. Source: build_dsa_layer."""
        batch, read, prefix = self._batch, self._read, f"blk.{layer}."
        heads, rank, tokens = read.heads[layer], read.kv_lora_rank, batch.tokens
        narrow = self._norm(matmul(self._needed(f"{prefix}attn_q_a.weight"), inputs), f"{prefix}attn_q_a_norm")
        query = matmul(self._needed(f"{prefix}attn_q_b.weight"), narrow)
        query = reshape(query, read.key_length_mla, heads, tokens)
        latent = self._norm(matmul(self._needed(f"{prefix}attn_kv_a_mqa.weight"), inputs), f"{prefix}attn_kv_a_norm")
        latent = reshape(latent, rank, 1, tokens)
        absorbed = matmul(self._needed(f"{prefix}attn_k_b.weight"), permute(query, 0, 2, 1, 3))
        absorbed = permute(absorbed, 0, 2, 1, 3)
        mask = self._mask(False, batch.cells)
        if chosen is None or any(read.index_cells(layer)):
            chosen = self._best_pools(layer, narrow, inputs, mask)
        for node in (absorbed, latent):
            self.graph.expand(node)
        device = self._placed[f"cache.{layer}"]
        cache = stored(batch.key_type, (rank, batch.cells, batch.streams), device, weight=False)
        self.graph.expand(stored_whole(latent, cache, self._input("k_idxs", I64, tokens)))
        cached = cache_view(cache, rank, 1, batch.cells, batch.streams)
        value = view(cached, cached.shape, cached.strides[1:])
        decompress = self._needed(f"{prefix}attn_v_b.weight")
        attended = self._mha(absorbed, cached, value, reshape(chosen, *mask.shape), layer, decompress)
        return matmul(self._needed(f"{prefix}attn_output.weight"), attended), chosen

    def _best_pools(self, layer: int, narrow: Node, inputs: Node, mask: Node) -> Node:
        """Source: build_kpool_select."""
        batch, index, prefix = self._batch, self._read.indexer, f"blk.{layer}.indexer."
        length, pool, tokens, pools = index.key_length, index.pool, batch.tokens, self._pools_padded
        query = matmul(self._needed(f"{prefix}attn_q_b.weight"), narrow)
        query = reshape(query, length, index.heads, tokens)
        pooled = reshape(self._pooled_keys(layer, prefix, inputs), length, 1, pools)
        weights = like("SCALE", matmul(self._needed(f"{prefix}proj.weight"), inputs))
        shape = (pools, tokens, 1, 1)
        scores = new("LIGHTNING_INDEXER", shape, query, pooled, weights, self._inputs["pool_mask"])
        best, _ = self._selected
        top = new("TOP_K", (best, tokens, 1, 1), scores, kind=I32)
        order = rows(reshape(scores, 1, pools, tokens), top)
        order = new("ARGSORT", (best, tokens, 1, 1), reshape(order, best, tokens), kind=I32)
        top = rows(reshape(_cast(top, F32), 1, best, tokens), order)
        top = _cast(contiguous(reshape(top, best, tokens)), I32)
        cells = rows(self._inputs["pool_idxs"], reshape(top, best * tokens))
        cells = reshape(cells, pool * best, tokens)
        if self._key("attention.indexer.kpool_select_tail"):
            shape = (cells.shape[0] + pool - 1, tokens, 1, 1)
            cells = new("CONCAT", shape, cells, self._inputs["tail_idxs"], kind=I32)
        return self._mask_of_cells(self.graph.expand(cells), mask)

    def _pooled_keys(self, layer: int, prefix: str, inputs: Node) -> Node:
        """Keys of whole pools: sums of their tokens' keys by the softmax of gates."""
        batch, length, pool = self._batch, self._read.indexer.key_length, self._read.indexer.pool
        key = like("NORM", matmul(self._needed(f"{prefix}attn_k.weight"), inputs))
        key = self._with_bias(like("MUL", key, self._needed(f"{prefix}k_norm.weight")), f"{prefix}k_norm.bias")
        gate = matmul(self._needed(f"blk.{layer}.indexer_compressor_gate.weight"), inputs)
        empty = _filled(F32, length, batch.tokens)
        both = new("CONCAT", (2 * length, batch.tokens, 1, 1), key, gate)
        packed = new("CONCAT", (3 * length, batch.tokens, 1, 1), both, empty)
        packed = reshape(packed, 3 * length, 1, batch.tokens)
        device = self._placed[f"cache.{layer}"]
        cache = stored(batch.key_type, (3 * length, batch.cells, batch.streams), device, weight=False)
        self.graph.expand(stored_whole(packed, cache, self._input("k_idxs_index", I64, batch.tokens)))
        every, row = batch.cells * batch.streams, cache.strides[1]
        count = self._pools
        indices = reshape(self._input("new_pool_idxs", I32, pool, count), pool * count)
        gathered = reshape(rows(view(cache, (2 * length, every), (row,)), indices), 2 * length, pool, count)
        keys, gates = (view(gathered, (length, pool, count), gathered.strides[1:3], at) for at in (0, 4 * length))
        gates = like("ADD", gates, self._needed(f"blk.{layer}.indexer_compressor_ape.weight"))
        gates = reshape(contiguous(permute(gates, 1, 0, 2, 3)), pool, length * count)
        shares = reshape(like("SOFT_MAX", gates), pool, length, count)
        weighted = like("MUL", shares, contiguous(permute(keys, 1, 0, 2, 3)))
        pooled = reshape(new("SUM_ROWS", (1, *weighted.shape[1:]), weighted), length, count)
        start = self._batch.key_type.row_bytes(2 * length)
        stored_pools = view(cache, (length, every), (row,), start)
        self.graph.expand(set_rows(stored_pools, pooled, self._input("new_pool_rep", I64, count)))
        return rows(stored_pools, self._inputs["pool_cells"])

    def _mask_of_cells(self, cells: Node, mask: Node) -> Node:
        """The mask of the chosen cells alone, of which some are none."""
        tokens, count, every = self._batch.tokens, self._selected[1], mask.shape[0]
        hidden = new("REPEAT", (every + count, tokens, 1, 1), _filled(mask.type, every + count), kind=mask.type)
        hidden = reshape(hidden, 1, every + count, tokens)
        shown = new("REPEAT", (count, tokens, 1, 1), _filled(mask.type, count), kind=mask.type)
        live = like("UNARY", reshape(self._inputs["gather_mask"], count, tokens))
        spare = new("ARANGE", (count, 1, 1, 1))
        places = like("MUL", like("SUB", _cast(cells, F32), spare), live)
        places = _cast(like("ADD", places, spare), I32)
        chosen = set_rows(hidden, reshape(shown, 1, count, tokens), reshape(places, count, tokens))
        chosen = view(chosen, (every, tokens), (chosen.strides[2],))
        return like("ADD", chosen, reshape(mask, every, tokens))


def _cast(node: Node, kind: Type) -> Node:
    return new("CPY", node.shape, node, kind=kind)


def _filled(kind: Type, *sizes: int) -> Node:
    empty = new("NONE", (*sizes, *[1] * (4 - len(sizes))), kind=kind)  # type: ignore[arg-type]
    return like("FILL", empty)

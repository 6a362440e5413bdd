"""The nodes of GLM-5.3-Flash: hyper-connections, delta attention, and a latent whose cells an index of pools chooses.

Source: llama.cpp b11549, src/models/glm5-next.cpp; src/llama-memory-hybrid-idx.cpp (kpool_access, kpool_pad).
"""

from __future__ import annotations

from ....errors import UnsupportedError
from ..ggml.scheduler import HOST
from ..ggml.tensors import (
    F32,
    I32,
    I64,
    Node,
    cast,
    contiguous,
    like,
    matmul,
    new,
    permute,
    reshape,
    rows,
    stored,
    view,
)
from .attention import Attention, cache_view, stored_whole
from .feed_forward import FeedForward
from .hyper import HyperConnections
from .pools import Pools
from .recurrent import Recurrent

FEW_TOKENS = 16  # up to which the chosen cells are gathered


class Glm5Next(Attention, FeedForward, Recurrent, HyperConnections, Pools):
    """From the embedding to the state before the last norm."""

    def _glm5_next(self, state: Node) -> Node:
        batch = self._batch
        places = {self._needed(f"blk.{layer}.attn_norm.weight").device for layer in range(self._read.layers)}
        split = HOST in places and len(places) > 1  # where llama.cpp computes without DSV4_HC_POST
        if batch.tokens <= FEW_TOKENS or split:
            raise UnsupportedError("llama_cpp_graph", architecture=self._read.architecture)
        for node in (*self._pool_inputs(), self._input("gather_mask", F32, self._selected, 1, 1, batch.tokens)):
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

    @property
    def _tail(self) -> bool:
        return bool(self._key("attention.indexer.kpool_select_tail"))

    @property
    def _selected(self) -> int:
        """Cells that a token chooses."""
        index = self._read.indexer
        return index.pool * self._best_count + (index.pool - 1 if self._tail else 0)

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
        tokens, pools, best = batch.tokens, self._pools_padded, self._best_count
        query = matmul(self._needed(f"{prefix}attn_q_b.weight"), narrow)
        query = reshape(query, index.key_length, index.heads, tokens)
        pooled = self._pooled_keys(layer, prefix, inputs)
        weights = like("SCALE", matmul(self._needed(f"{prefix}proj.weight"), inputs))
        shape = (pools, tokens, 1, 1)
        scores = new("LIGHTNING_INDEXER", shape, query, pooled, weights, self._inputs["pool_mask"])
        top = new("TOP_K", (best, tokens, 1, 1), scores, kind=I32)
        order = rows(reshape(scores, 1, pools, tokens), top)
        order = new("ARGSORT", (best, tokens, 1, 1), reshape(order, best, tokens), kind=I32)
        top = rows(reshape(cast(top, F32), 1, best, tokens), order)
        top = cast(contiguous(reshape(top, best, tokens)), I32)
        cells = self._cells_of_pools(top, tail=self._tail)
        count = cells.shape[0]
        base = self._mask_base(count, mask)
        live = like("UNARY", reshape(self._inputs["gather_mask"], count, tokens))
        shown = self._shown(base, cells, live, new("ARANGE", (count, 1, 1, 1)))
        shown = view(shown, (mask.shape[0], tokens), (shown.strides[2],))
        return like("ADD", shown, reshape(mask, mask.shape[0], tokens))

    def _pooled_keys(self, layer: int, prefix: str, inputs: Node) -> Node:
        """Sums of a pool's keys by the softmax of gates."""
        length, pool, count = self._read.indexer.key_length, self._read.indexer.pool, self._pools
        key = like("NORM", matmul(self._needed(f"{prefix}attn_k.weight"), inputs))
        key = self._with_bias(like("MUL", key, self._needed(f"{prefix}k_norm.weight")), f"{prefix}k_norm.bias")
        gate = matmul(self._needed(f"blk.{layer}.indexer_compressor_gate.weight"), inputs)
        cache = self._pool_cache(layer, new("CONCAT", (2 * length, key.shape[1], 1, 1), key, gate))
        gathered = self._gathered_cells(cache)
        keys, gates = (view(gathered, (length, pool, count), gathered.strides[1:3], at) for at in (0, 4 * length))
        gates = like("ADD", gates, self._needed(f"blk.{layer}.indexer_compressor_ape.weight"))
        gates = reshape(contiguous(permute(gates, 1, 0, 2, 3)), pool, length * count)
        shares = reshape(like("SOFT_MAX", gates), pool, length, count)
        weighted = like("MUL", shares, contiguous(permute(keys, 1, 0, 2, 3)))
        return self._all_pools(cache, reshape(new("SUM_ROWS", (1, *weighted.shape[1:]), weighted), length, count))

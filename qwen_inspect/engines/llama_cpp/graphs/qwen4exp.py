"""The nodes of Qwen4-Exp: hyper-connections of low rank, Gated DeltaNet, attention to chosen blocks, embeddings of n-grams.

Source: llama.cpp b11549, src/models/qwen4exp.cpp.
"""

from __future__ import annotations

from ..ggml.tensors import (
    F32,
    I32,
    Node,
    cast,
    contiguous,
    copied,
    leaf,
    like,
    matmul,
    new,
    reshape,
    rows,
    transpose,
    view,
)
from .attention import Attention
from .feed_forward import FeedForward
from .hyper import HyperConnections
from .pools import Pools, filled
from .recurrent import Recurrent


class Qwen4Exp(Attention, FeedForward, Recurrent, HyperConnections, Pools):
    """From the embedding to the state before the output matrix."""

    _seen: Node | None = None

    def _qwen4exp(self, state: Node, grams: Node | None) -> Node:
        read = self._read
        for node in self._pool_inputs() if read.indexer.pool else ():
            self.graph.expand(node)
        states = self.graph.expand(self._in_streams(state))
        for layer in range(read.layers):
            prefix = f"blk.{layer}."
            if grams is not None and f"{prefix}ple_key.weight" in self._tensors:
                states = self._with_grams(layer, grams, states)
            mixed, shares = self._gated_streams(states, f"{prefix}hc_attn")
            self.graph.expand(mixed)
            attended = self._recurrent(layer, mixed) if read.recurrent[layer] else self._chosen_attention(layer, mixed)
            if layer == read.layers - 1:
                attended, shares, flat = (rows(node, self._last_ids) for node in (attended, shares, self._flat(states)))
                states = reshape(flat, *states.shape[:2], flat.shape[1])
            states = self._added(states, attended, shares)
            mixed, shares = self._gated_streams(states, f"{prefix}hc_ffn")
            states = self._added(states, self._feed_forward(layer, mixed), shares)
        if self._batch.build.rows_in_layer:  # for multi-token prediction: t_h_nextn
            self.graph.expand(self._flat(states))
        return self._mixed_streams(states, "output_hc")

    @property
    def _last_ids(self) -> Node:
        return self._input("out_ids", I32, self._batch.outputs)

    def _attend(self, layer: int, query: Node, own: list[Node], inputs: Node | None = None) -> Node:
        if self._seen is None:
            return super()._attend(layer, query, own, inputs)
        return self._attend_cells(layer, query, own, mask=reshape(self._seen, *self._seen.shape))

    # Streams.

    def _normed_streams(self, states: Node, name: str) -> Node:
        return like("MUL", like("RMS_NORM", states), self._needed(f"{name}.weight"))

    def _gates(self, states: Node, name: str) -> tuple[Node, Node]:
        """(the streams normalised and flat, their gates)."""
        normed = self._flat(self._normed_streams(states, f"{name}_norm"))
        low = like("UNARY", like("SCALE", matmul(self._needed(f"{name}_down.weight"), normed)))
        return normed, matmul(self._needed(f"{name}_up.weight"), low)

    def _gated_streams(self, states: Node, name: str) -> tuple[Node, Node]:
        """(what the block reads, the streams' shares of its result). Source: build_hc_mix."""
        normed, mixed = self._gated_sum(states, name)
        return mixed, matmul(self._needed(f"{name}_inject.weight"), normed)

    def _gated_sum(self, states: Node, name: str) -> tuple[Node, Node]:
        """(the streams normalised and flat, their sum)."""
        normed, gate = self._gates(states, name)
        parts = (reshape(node, *states.shape[:3]) for node in (normed, gate))
        return normed, new("DSV4_HC_PRE_GATED", (states.shape[0], states.shape[2], 1, 1), *parts)

    def _mixed_streams(self, states: Node, name: str) -> Node:
        width, count, tokens = states.shape[:3]
        normed, gate = self._gates(states, name)
        gated = reshape(like("MUL", normed, like("UNARY", gate)), width, count, tokens)
        row = gated.strides[2]
        total = contiguous(view(gated, (width, tokens), (row,)))
        for at in range(1, count):
            total = like("ADD", total, view(gated, (width, tokens), (row,), 4 * width * at))
        return like("SCALE", total)

    def _added(self, states: Node, result: Node, shares: Node) -> Node:
        weights = like("SCALE", like("UNARY", like("SCALE", shares)))
        return new("DSV4_HC_POST", states.shape, result, states, weights)

    # Attention.

    def _chosen_attention(self, layer: int, inputs: Node) -> Node:
        read = self._read
        self._seen = self._chosen_blocks(layer, inputs) if read.indexer.pool and any(read.index_cells(layer)) else None
        return self._attention(layer, inputs)

    def _chosen_blocks(self, layer: int, inputs: Node) -> Node:
        """Source: build_qsa_sel."""
        batch, index, prefix = self._batch, self._read.indexer, f"blk.{layer}.indexer."
        tokens, pools, best = batch.tokens, self._pools_padded, self._best_count
        mask = self._mask(False, batch.cells)
        pooled = self._mean_keys(layer, prefix, inputs)
        query = matmul(self._needed(f"{prefix}q_proj.weight"), inputs)
        query = self._norm(reshape(query, index.key_length, index.heads, tokens), f"{prefix}q_norm")
        query = like("ROPE", query, self._input("positions", I32, 4 * tokens))
        weights, shape = filled(F32, index.heads, tokens), (pools, tokens, 1, 1)
        scores = new("LIGHTNING_INDEXER", shape, query, pooled, weights, self._inputs["pool_mask"])
        top = new("TOP_K", (best, tokens, 1, 1), scores, kind=I32)
        cells = self._cells_of_pools(top, tail=True)
        base = self._mask_base(cells.shape[0], mask)
        live = like("CLAMP", like("SCALE", rows(reshape(scores, 1, pools, tokens), top)))
        live = reshape(new("REPEAT", (index.pool, best, tokens, 1), live), index.pool * best, tokens)
        tail = like("CLAMP", like("SCALE", cast(self._inputs["tail_idxs"], F32)))
        live = new("CONCAT", cells.shape, live, tail)
        spare = like("SCALE", new("CUMSUM", live.shape, like("FILL", live)))
        shown = self._shown(base, cells, live, spare)
        every, each, _, streams = mask.shape
        row = shown.strides[2]
        return like("ADD", view(shown, (every, each, 1, streams), (row, row * each, row * each)), mask)

    def _mean_keys(self, layer: int, prefix: str, inputs: Node) -> Node:
        length, pool, count = self._read.indexer.key_length, self._read.indexer.pool, self._pools
        cache = self._pool_cache(layer, matmul(self._needed(f"{prefix}k_proj.weight"), inputs))
        gathered = self._gathered_cells(cache)
        parts = [
            view(gathered, (length, count), (gathered.strides[2],), at * gathered.strides[1]) for at in range(pool)
        ]
        total = contiguous(parts[0])
        for part in parts[1:]:
            total = like("ADD", total, part)
        normed = reshape(self._norm(like("SCALE", total), f"{prefix}k_norm"), length, 1, count)
        turned = like("ROPE", normed, self._input("new_pool_pos", I32, 4 * count))
        return self._all_pools(cache, reshape(turned, length, count))

    # Embeddings of n-grams.

    def _grams(self) -> Node | None:
        """Rows of the table, as many for each token as it has hashes. Source: build_inp_ple."""
        table = self._weight("per_layer_token_embd.weight")
        if table is None or not self._key("ple.layers"):
            return None
        tokens, hashes = self._batch.tokens, (self._key("ple.ngram_size") - 1) * self._key("ple.heads_per_ngram")
        gathered = rows(table, leaf(I32, hashes * tokens))
        return self.graph.expand(reshape(gathered, table.shape[0] * hashes, tokens))

    def _with_grams(self, layer: int, grams: Node, states: Node) -> Node:
        """Source: build_ple."""
        prefix, shape = f"blk.{layer}.ple_", states.shape
        key, value = (matmul(self._needed(f"{prefix}{name}.weight"), grams) for name in ("key", "value"))
        key = self._normed_streams(reshape(key, *shape[:3]), f"{prefix}norm_key")
        query = self._normed_streams(reshape(states, *shape[:3]), f"{prefix}norm_query")
        product = like("MUL", key, query)
        score = like("SCALE", new("SUM_ROWS", (1, *product.shape[1:]), product))
        size = like("SQRT", like("CLAMP", like("UNARY", score)))
        gate = like("UNARY", like("MUL", like("UNARY", score), size))
        value = new("REPEAT", shape, reshape(value, shape[0], 1, shape[2]))
        gated = like("MUL", value, gate)
        flat = reshape(self._flat(gated), *shape[:3])
        normed = self._flat(self._normed_streams(flat, f"{prefix}norm_conv"))
        turned = self._dilated(layer, f"{prefix}conv1d", normed)
        return like("ADD", states, like("ADD", gated, reshape(turned, *shape[:3])))

    def _dilated(self, layer: int, name: str, inputs: Node) -> Node:
        """A convolution whose taps lie an n-gram apart, as a sum."""
        kernel, dilation, channels = self._key("ple.conv_kernel"), self._key("ple.ngram_size"), inputs.shape[0]
        tokens, sequences = self._by_sequence
        history = (kernel - 1) * dilation
        states, last = self._state(layer, history * channels)
        last = reshape(last, history, channels, sequences)
        moved = transpose(reshape(inputs, channels, tokens, sequences))
        joined = new("CONCAT", (history + tokens, channels, sequences, 1), last, moved)
        for _ in range(1 + self._batch.drafted):
            kept = contiguous(view(joined, (history, channels, sequences), joined.strides[1:3]))
            self.graph.expand(copied(kept, view(states, (history * channels, sequences), (states.strides[1],))))
        weight = self._needed(f"{name}.weight")
        total: Node | None = None
        for tap in range(kernel):
            start = 4 * (history - (kernel - 1 - tap) * dilation)
            shifted = contiguous(transpose(view(joined, (tokens, channels, sequences), joined.strides[1:3], start)))
            column = contiguous(view(weight, (1, channels), (weight.strides[1],), tap * weight.strides[0]))
            column = reshape(column, channels)
            term = like("MUL", shifted, column if column.type.row_bytes(1) == 4 else cast(column, F32))
            total = term if total is None else like("ADD", total, term)
        assert total is not None
        return contiguous(like("UNARY", total))

"""The nodes of DeepSeek-V4: K for V, compressed cells beside those of the last tokens, and hyper-connections.

Source: llama.cpp b11549, src/models/deepseek4.cpp; src/llama-graph.cpp (build_inp_dsv4, dsv4_build_comp_inputs).
"""

from __future__ import annotations

from ..compressed import FEW, MANY, CompressedCells, kinds
from ..ggml.tensors import (
    F16,
    F32,
    I32,
    I64,
    Node,
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
from .attention import Attention, cache_view, rotated, stored_whole
from .feed_forward import FeedForward
from .hyper import HyperConnections
from .parts import type_of


class DeepSeek4(Attention, FeedForward, HyperConnections):
    """From the embedding to the state before the last norm."""

    def _deepseek4(self, state: Node) -> Node:
        tokens = self._batch.tokens
        self.graph.expand(self._cells_mask("raw", self._batch.window_cells))
        states = self._in_streams(state)
        for layer in range(self._read.layers):
            prefix = f"blk.{layer}."
            mixed, shares, mixing = self._read_streams(states, f"{prefix}hc_attn")
            attended = self._compressed_attention(layer, self._norm(mixed, f"{prefix}attn_norm"))
            states = self._written(attended, states, shares, mixing)
            mixed, shares, mixing = self._read_streams(states, f"{prefix}hc_ffn")
            for node in (states, shares, mixing):
                self.graph.expand(node)
            forward = self._hashed_feed_forward(layer, self._norm(mixed, f"{prefix}ffn_norm"))
            states = self._written(forward, states, shares, mixing)
        states.is_output = self._batch.build.rows_in_layer  # which multi-token prediction would read
        chosen = rows(reshape(states, states.shape[0] * states.shape[1], tokens), self._out_ids)
        return self._summed_streams(reshape(chosen, *states.shape[:2], self._batch.outputs), "output_hc")

    @property
    def _out_ids(self) -> Node:
        return self._input("out_ids", I32, self._batch.outputs)

    def _hashed_feed_forward(self, layer: int, inputs: Node) -> Node:
        """The first layers choose experts by the token."""
        table = self._weight(f"blk.{layer}.ffn_gate_tid2eid.weight")
        if table is None:
            return self._feed_forward(layer, inputs)
        shape = (table.shape[0], self._batch.tokens, 1, 1)
        chosen = new("GET_ROWS", shape, table, self._inputs["tokens"], kind=I32)
        return self._feed_forward(layer, inputs, chosen=chosen)

    # Inputs.

    def _cells_mask(self, name: str, cells: int) -> Node:
        batch = self._batch
        kind = F16 if batch.flash_attention or name == "index" else F32
        return self._input(f"mask_{name}", kind, cells, batch.tokens // batch.streams, 1, batch.streams)

    def _turning(self, name: str, length: int) -> Node | None:
        """The Hadamard matrix: of an index always, of other cells where they are quantised."""
        quantised = self._batch.key_type.numbers > 1 and length % 64 == 0
        if length != self._read.indexer.key_length and not quantised:
            return None
        size = 64
        while length % (2 * size) == 0:
            size *= 2
        return self._input(f"rotation_{name}", F32, size, size)

    # Attention.

    def _compressed_attention(self, layer: int, inputs: Node) -> Node:
        prefix, read, tokens = f"blk.{layer}.", self._read, self._batch.tokens
        length, heads, ratio = read.key_length, read.heads[layer], read.compress_ratios[layer]
        narrow = self._norm(matmul(self._needed(f"{prefix}attn_q_a.weight"), inputs), f"{prefix}attn_q_a_norm")
        query = reshape(matmul(self._needed(f"{prefix}attn_q_b.weight"), narrow), length, heads, tokens)
        query = self._turned(layer, like("RMS_NORM", query))
        key = self._norm(matmul(self._needed(f"{prefix}attn_kv.weight"), inputs), f"{prefix}attn_kv_a_norm")
        key = self._turned(layer, reshape(key, length, 1, tokens))
        few, many, index = kinds(read)
        if ratio == FEW:
            self._compress(layer, few, f"{prefix}attn_compressor", inputs)
            self._compress(layer, index, f"{prefix}indexer_compressor", inputs)
        elif ratio == MANY:
            self._compress(layer, many, f"{prefix}attn_compressor", inputs)
        best = self._best_cells(layer, narrow, inputs) if ratio == FEW else None
        attended = self._attend_compressed(layer, query, key, {FEW: few, MANY: many}.get(ratio), best)
        attended = self._turned(layer, reshape(attended, length, heads, tokens))
        return self._grouped_output(prefix, attended)

    def _grouped_output(self, prefix: str, attended: Node) -> Node:
        length, heads, tokens = attended.shape[:3]
        groups, rank = int(self._key("attention.output_group_count")), int(self._key("attention.output_lora_rank"))
        width = length * heads // groups
        tensor = self._tensors[f"{prefix}attn_output_a.weight"]
        device = self._placed[f"{prefix}attn_output_a.weight"]
        first = stored(type_of(tensor), (width, rank, groups), device, weight=True)
        by_group = permute(reshape(attended, width, groups, tokens), 0, 2, 1, 3)
        narrow = permute(matmul(first, by_group), 0, 2, 1, 3)
        narrow = contiguous(narrow, rank * groups, tokens)
        return matmul(self._needed(f"{prefix}attn_output_b.weight"), narrow)

    def _attend_compressed(
        self, layer: int, query: Node, key: Node, kind: CompressedCells | None, best: Node | None
    ) -> Node:
        """To the last tokens' cells and the compressed ones."""
        batch, length = self._batch, key.shape[0]
        turning = self._turning("raw", length)
        if turning is not None:
            query, key = rotated(query, turning), rotated(key, turning)
        for node in (query, key):
            self.graph.expand(node)
        cells = batch.window_cells
        cache = self._cells_of(layer, length, cells)
        self.graph.expand(stored_whole(key, cache, self._input("k_idxs", I64, batch.tokens)))
        cached = cache_view(cache, length, 1, cells, batch.streams)
        mask = self._cells_mask("raw", cells)
        if kind is not None:
            further = kind.cells(batch.cells)
            other = cache_view(self._cells_of(layer, length, further), length, 1, further, batch.streams)
            other = view(other, (length, 1, further, batch.streams), other.strides[1:])
            shape = (length, 1, cells + further, batch.streams)
            cached = new("CONCAT", shape, cached, other, kind=batch.key_type)
            second = self._cells_mask(str(kind.ratio), further)
            if best is not None:
                second = _of_best(second, best)
            mask = new("CONCAT", (cells + further, *mask.shape[1:]), mask, second, kind=mask.type)
        attended = self._mha(query, cached, cached, mask, layer)
        return attended if turning is None else rotated(attended, turning)

    def _cells_of(self, layer: int, length: int, cells: int) -> Node:
        device = self._placed[f"cache.{layer}"]
        return stored(self._batch.key_type, (length, cells, self._batch.streams), device, weight=False)

    def _best_cells(self, layer: int, narrow: Node, inputs: Node) -> Node:
        """Source: build_lid_top_k."""
        batch, index, prefix = self._batch, self._read.indexer, f"blk.{layer}.indexer."
        length, heads, each = index.key_length, index.heads, batch.tokens // batch.streams
        query = matmul(self._needed(f"{prefix}attn_q_b.weight"), narrow)
        query = self._turned(layer, reshape(query, length, heads, batch.tokens))
        turning = self._turning("index", length)
        assert turning is not None
        query = rotated(query, turning)
        weights = like("SCALE", matmul(self._needed(f"{prefix}proj.weight"), inputs))
        cells = kinds(self._read)[2].cells(batch.cells)
        keys = cache_view(self._cells_of(layer, length, cells), length, 1, cells, batch.streams)
        keys = view(keys, (length, 1, cells, batch.streams), keys.strides[1:])
        query = view(query, (length, heads, each, batch.streams), (*query.strides[1:3], query.strides[2] * each))
        row = weights.strides[1]
        weights = view(weights, (heads, each, 1, batch.streams), (row, row * each, row * each))
        shape = (cells, each, 1, batch.streams)
        scores = new("LIGHTNING_INDEXER", shape, query, keys, weights, self._cells_mask("index", cells))
        return contiguous(new("TOP_K", (min(cells, index.top_k), *shape[1:]), scores, kind=I32))

    # Compression.

    def _compress(self, layer: int, kind: CompressedCells, name: str, inputs: Node) -> None:
        """Makes cells of the kept states and the micro-batch's, and keeps the last ones."""
        batch, snapshots = self._batch, self._batch.drafted
        own = "index" if kind.indexes else str(kind.ratio)
        values = matmul(self._needed(f"{name}_kv.weight"), inputs)
        scores = matmul(self._needed(f"{name}_gate.weight"), inputs)
        positions = self._input(f"positions_{own}", I32, batch.tokens)
        scores = like("ADD", scores, rows(self._needed(f"{name}_ape.weight"), positions))
        kept_rows = kind.state_rows * batch.streams
        kept = [self._kept(layer, kind) for _ in range(2)]
        if snapshots:
            kept = [self._placed_rows(node, node, f"restore_{own}", kept_rows) for node in kept]
        base = [view(node, (kind.state_width, kept_rows), (node.strides[1],)) for node in kept]
        sources = [_below(node, added) for node, added in zip(base, (values, scores), strict=True)]
        blocks = batch.tokens // kind.ratio + batch.sequences
        cells = self._cells_made(kind, own, sources, blocks, f"{name}_norm")
        turning = self._turning(own, kind.length)
        if turning is not None:
            cells = rotated(cells, turning)
        cache = self._cells_of(layer, kind.length, kind.cells(batch.cells))
        self.graph.expand(stored_whole(cells, cache, self._input(f"write_{own}", I64, blocks)))
        if snapshots:
            whole = [_below(node, added) for node, added in zip(kept, (values, scores), strict=True)]
            states = [self._kept(layer, kind) for _ in whole]
            count = snapshots * kept_rows
            copies = [
                self._placed_rows(source, state, f"snapshot_{own}", count)
                for source, state in zip(whole, states, strict=True)
            ]
            for node in copies:
                self.graph.expand(node)
        count = min(batch.tokens, kept_rows)
        persisted = [
            self._placed_rows(node, self._kept(layer, kind), f"persist_{own}", count) for node in (values, scores)
        ]
        for node in persisted:
            self.graph.expand(node)

    def _kept(self, layer: int, kind: CompressedCells) -> Node:
        count = kind.state_rows * self._batch.streams * (1 + self._batch.drafted)
        states = stored(F32, (kind.state_width, count), self._placed[f"cache.{layer}"], weight=False)
        return view(states, (kind.state_width, count), (states.strides[1],))

    def _placed_rows(self, source: Node, target: Node, name: str, count: int) -> Node:
        """Rows of `source` written over rows of `target`."""
        gathered = rows(source, self._input(f"{name}_from", I32, count))
        return set_rows(target, gathered, self._input(f"{name}_to", I32, count))

    def _cells_made(self, kind: CompressedCells, own: str, sources: list[Node], blocks: int, norm: str) -> Node:
        """A sum of values by the softmax of their scores, for each number."""
        ratio, length = kind.ratio, kind.length
        count = ratio * blocks * (2 if kind.overlaps else 1)
        indices = self._input(f"read_{own}", I32, count)
        if kind.overlaps:
            parts = [self._overlapping(rows(_with_empty_row(node), indices), kind, blocks) for node in sources]
        else:
            parts = [reshape(rows(node, indices), length, ratio, blocks) for node in sources]
        values, scores = (contiguous(permute(node, 1, 0, 2, 3)) for node in parts)
        weighted = like("MUL", values, like("SOFT_MAX", scores))
        summed = new("SUM_ROWS", (1, *weighted.shape[1:]), weighted)
        cells = self._norm(contiguous(permute(summed, 1, 0, 2, 3)), norm)
        return like("ROPE", cells, self._input(f"cell_positions_{own}", I32, blocks))

    def _overlapping(self, gathered: Node, kind: CompressedCells, blocks: int) -> Node:
        """The first half of earlier tokens' numbers, then the second half of a cell's own."""
        count = kind.ratio * blocks
        row = gathered.strides[1]
        first, second = (
            reshape(contiguous(view(gathered, (kind.length, count), (row,), at)), kind.length, kind.ratio, blocks)
            for at in (0, count * row + 4 * kind.length)
        )
        return new("CONCAT", (kind.length, 2 * kind.ratio, blocks, 1), first, second)


def _below(node: Node, added: Node) -> Node:
    return new("CONCAT", (node.shape[0], node.shape[1] + added.shape[1], 1, 1), node, added)


def _with_empty_row(node: Node) -> Node:
    row = like("SCALE", view(node, (node.shape[0],)))
    return _below(node, reshape(row, node.shape[0], 1))


def _of_best(mask: Node, best: Node) -> Node:
    """The mask of the best cells alone. Source: build_top_k_mask."""
    cells, each, _, streams = mask.shape
    number, row, _, stream = mask.strides
    hidden = view(like("FILL", mask), (1, cells, each, streams), (number, row, row * each))
    count = best.shape[0]
    indices = view(best, (count, each, streams), (best.strides[1], best.strides[2]))
    size = mask.type.block_bytes
    empty = Node("NONE", mask.type, (1, count, each, streams), (size, size, size * count, size * count * each))
    shown = set_rows(hidden, like("FILL", empty), indices)
    return like("ADD", view(shown, (cells, each, 1, streams), (row, stream, stream)), mask)

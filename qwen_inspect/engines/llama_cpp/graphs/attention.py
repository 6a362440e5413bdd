"""The nodes of attention: projections, the cache's cells and scores.

Source: llama.cpp b11549, src/llama-graph.cpp (build_qkv, build_attn), src/llama-kv-cache.cpp.
"""

from __future__ import annotations

from ..ggml.scheduler import HOST
from ..ggml.tensors import (
    F16,
    F32,
    I32,
    I64,
    Node,
    Type,
    contiguous,
    copied,
    is_contiguous,
    leaf,
    like,
    matmul,
    new,
    permute,
    reshape,
    set_rows,
    stored,
    transpose,
    view,
)
from .parts import Parts

WITH_FACTORS = frozenset(
    (
        *("apertus", "arcee", "bailingmoe", "cohere2", "cohere2moe", "deci", "deepseek", "exaone", "exaone-moe"),
        *("exaone4", "gemma4", "granite", "granite_swa", "granitehybrid", "granitemoe", "hunyuan-moe", "hunyuan_vl"),
        *("hy_v3", "llama", "llama4", "minicpm", "minicpm3", "mistral3", "phi3", "phimoe", "step35"),
    )
)
PLAIN_IN_WINDOWS = frozenset(("gemma4", "step35"))


class Attention(Parts):
    """Attention of one layer."""

    def _attention(self, layer: int, inputs: Node) -> Node:
        if f"blk.{layer}.attn_kv_a_mqa.weight" in self._tensors:
            return self._latent_attention(layer, inputs)
        query, *own = self._projections(layer, inputs)
        length = query.shape[0]
        gate = (
            view(query.sources[0], query.shape[:3], (8 * length, 8 * length * query.shape[1]), 4 * length)
            if self._design.gated_query
            else query
        )
        query = self._head(query, layer, "q")
        if own:
            own[0] = self._head(own[0], layer, "k")
        if own and self._design.normed_values:
            own[1] = like("RMS_NORM", own[1])
        if self._key("attention.temperature_scale") or (self._design.chunked and not self._turns(layer)):
            query = self._scaled_by_position(query)
        if self._design.chunked and self._turns(layer) and self._read.experts.count != 128:  # Llama4TextL2Norm
            query, own[0] = like("RMS_NORM", query), like("RMS_NORM", own[0])
        if self._design.scaled_query:
            query = like("SCALE", query)
        attended = self._attend(layer, query, own, inputs)
        if self._design.gated_query:
            attended = like("MUL", attended, like("UNARY", contiguous(gate, *attended.shape[:2])))
        if f"blk.{layer}.attn_gate.weight" in self._tensors:
            attended = self._gated(attended, matmul(self._needed(f"blk.{layer}.attn_gate.weight"), inputs))
        if self._has(f"blk.{layer}.attn_sub_norm"):
            attended = self._norm(attended, f"blk.{layer}.attn_sub_norm")
        attended = self._linear(f"blk.{layer}.attn_output", attended)
        return like("SCALE", attended) if self._key("attention.value_scale") else attended

    def _gated(self, attended: Node, gate: Node) -> Node:
        """By a number for each number, or for each head."""
        gate = like("UNARY", gate)
        if gate.shape[0] == attended.shape[0]:
            return like("MUL", attended, gate)
        heads, tokens = gate.shape[:2]
        by_head = reshape(attended, attended.shape[0] // heads, heads, tokens)
        return reshape(like("MUL", by_head, reshape(gate, 1, heads, tokens)), *attended.shape[:2])

    def _scaled_by_position(self, query: Node) -> Node:
        return like("MUL", query, self._input("attn_scale", F32, 1, 1, self._batch.tokens))

    def _latent_attention(self, layer: int, inputs: Node) -> Node:
        raise NotImplementedError

    def _attend_here(self, layer: int, query: Node, own: list[Node], bias: Node | None = None) -> Node:
        raise NotImplementedError

    def _head(self, node: Node, layer: int, part: str) -> Node:
        """Normalised and turned by RoPE, in the design's order."""
        if self._design.turns_first:
            return self._head_norm(self._turned(layer, node), layer, part)
        return self._turned(layer, self._head_norm(node, layer, part))

    def _turned(self, layer: int, node: Node) -> Node:
        if not self._turns(layer):
            return node
        every = 4 if self._read.architecture == "bailingmoe3" and self._key("rope.dimension_sections") else 1
        positions = max(every, self._design.positions) * self._batch.tokens
        factors = self._turning_factors(layer)
        return like("ROPE", node, self._input("positions", I32, positions), *([] if factors is None else [factors]))

    def _turning_factors(self, layer: int) -> Node | None:
        """Of the frequencies, a copy on the layer's device. Source: llama_model::get_rope_factors."""
        read, name = self._read, "rope_freqs.weight"
        if name not in self._tensors:  # those for short contexts have the same size
            name = "rope_factors_long.weight"
        plain = read.windowed[layer] and read.architecture in PLAIN_IN_WINDOWS
        if name not in self._tensors or read.architecture not in WITH_FACTORS or plain:
            return None
        place = f"blk.{layer}.attn_norm.weight"
        key = f"factors on {self._placed[place]}"
        if key not in self._inputs:
            self._inputs[key] = self._stored(self._tensors[name], place)
        return self._inputs[key]

    def _turns(self, layer: int) -> bool:
        """Whether RoPE turns Q and K. Source: hparams.has_rope, n_no_rope_layer_step."""
        design = self._design
        if design.turns_by_key:
            return self._key("rope.scaling.finetuned") is not False
        if design.turns_windowed and self._read.window_kind is not None:
            dense = layer < self._read.experts.leading_dense or layer >= self._read.layers
            return (dense and self._read.architecture == "cohere2moe") or self._read.windowed[layer]
        if self._read.architecture == "baichuan":  # 7B alone
            return self._read.layers == 32
        return design.turns and (not design.unturned or (layer + 1) % design.unturned != 0)

    def _head_norm(self, node: Node, layer: int, part: str) -> Node:
        name = f"blk.{layer}.attn_{part}_norm"
        if f"{name}.weight" not in self._tensors or self._norms_whole(layer, part):
            return node
        return self._norm(node, name)

    def _norms_whole(self, layer: int, part: str) -> bool:
        """Whether Q or K is normalised over all heads together."""
        weight = self._tensors.get(f"blk.{layer}.attn_{part}_norm.weight")
        return weight is not None and weight.elements > self._read.key_length

    def _lengths(self, layer: int) -> tuple[int, int]:
        """Of a head of K and of V."""
        read = self._read
        if read.windowed[layer]:
            return read.key_length_swa, read.value_length_swa
        return read.key_length, read.value_length

    def _projections(self, layer: int, inputs: Node) -> list[Node]:
        """Q, K and V; Q alone where the layer uses another one's cells. Source: build_qkv."""
        read, tokens, prefix = self._read, self._batch.tokens, f"blk.{layer}."
        key_length, value_length = self._lengths(layer)
        sizes = (
            (key_length, read.heads[layer]),
            (key_length, read.kv_heads[layer]),
            (value_length, read.kv_heads[layer]),
        )
        if f"{prefix}attn_qkv.weight" in self._tensors:
            joined = self._linear(f"{prefix}attn_qkv", inputs)
            starts = (0, key_length * read.heads[layer], key_length * (read.heads[layer] + read.kv_heads[layer]))
            views = [
                view(joined, (length, heads, tokens), (4 * length, joined.strides[1]), 4 * start)
                for (length, heads), start in zip(sizes, starts, strict=True)
            ]
        else:
            views = []
            for part, (length, heads) in zip("qkv" if layer < read.with_cache else "q", sizes, strict=False):
                if part == "v" and f"{prefix}attn_v.weight" not in self._tensors:
                    views.append(reshape(views[1].sources[0], length, heads, tokens))
                    continue
                node = self._linear(f"{prefix}attn_{part}", inputs)
                if part == "q" and self._design.gated_query:
                    views.append(view(node, (length, heads, tokens), (8 * length, 8 * length * heads)))
                    continue
                if self._norms_whole(layer, part):
                    node = self._norm(node, f"{prefix}attn_{part}_norm")
                views.append(reshape(node, length, heads, tokens))
        return views

    def _attend(self, layer: int, query: Node, own: list[Node], inputs: Node | None = None) -> Node:
        """own: K and V, where the layer has cells. inputs: of an index."""
        return self._attend_cells(layer, query, own) if self._design.cached else self._attend_here(layer, query, own)

    def _attend_cells(
        self, layer: int, query: Node, own: list[Node], bias: Node | None = None, mask: Node | None = None
    ) -> Node:
        """bias: added to the scores. mask: of chosen cells. Source: build_attn with llm_graph_input_attn_kv."""
        read, batch = self._read, self._batch
        windowed = read.windowed[layer] and read.window_kind is not None
        kind = "_swa" if windowed else ""
        key_length, value_length = self._lengths(layer)
        key_rotation = self._rotation(batch.key_type, key_length, f"k{kind}")
        value_rotation = self._rotation(batch.value_type, value_length, f"v{kind}")
        if key_rotation is not None:
            query = rotated(query, key_rotation)
        own = [
            node if rotation is None else rotated(node, rotation)
            for node, rotation in zip(own, (key_rotation, value_rotation), strict=False)
        ]
        for node in (query, *(own if read.window_kind is not None or batch.build.fork else own[::-1])):
            self.graph.expand(node)
        cells = batch.window_cells if windowed else batch.cells
        flash = batch.flash_attention
        device = self._placed[f"cache.{self._with_cells(layer)}"]
        wide = read.most_values if not flash else read.values(layer)
        indices = batch.tokens if flash else batch.tokens * read.most_values
        keys = stored(batch.key_type, (read.keys(layer), cells, batch.streams), device, weight=False)
        values = stored(batch.value_type, (wide, cells, batch.streams), device, weight=False)
        for node, cache, name, count in zip(own, (keys, values), "kv", (batch.tokens, indices), strict=False):
            whole = flash or name == "k"
            places = self._input(f"{name}_idxs{kind}", I64, count) if batch.build.indexed else None
            self.graph.expand(stored_whole(node, cache, places) if whole else _stored_across(node, cache, places))
        heads = read.kv_heads[layer]
        cached_key = cache_view(keys, key_length, heads, cells, batch.streams)
        if flash:
            cached_value = cache_view(values, value_length, heads, cells, batch.streams)
        else:
            number = values.strides[0]
            cached_value = view(
                values,
                (cells, heads, value_length, batch.streams),
                (number * cells * value_length, number * cells, number * cells * wide),
            )
        mask = self._mask(windowed, cells) if mask is None else mask
        attended = self._mha(query, cached_key, cached_value, mask, layer, bias=bias)
        if value_rotation is not None:
            attended = rotated(attended, value_rotation)
        return attended

    def _with_cells(self, layer: int) -> int:
        """The layer whose cells this one reads: its own or the last of its kind that has some. Source: create_memory."""
        shared = layer >= self._read.with_cache
        return self._read.with_cache - (2 if self._read.windowed[layer] else 1) if shared else layer

    def _rotation(self, kind: Type, head_length: int, part: str) -> Node | None:
        """The Hadamard matrix that a quantised cache is turned by. Source: build_input_k_rot, build_input_v_rot."""
        if not self._batch.build.rotates or kind.numbers == 1 or head_length % 64:
            return None
        size = 64
        while part.startswith("k") and head_length % (2 * size) == 0:
            size *= 2
        return self._input(f"rotation_{part}", F32, size, size)

    def _mask(self, windowed: bool, cells: int) -> Node:
        batch = self._batch
        if windowed not in self._masks:
            kind = F16 if batch.flash_attention and not batch.build.mask_is_cast else F32
            streams = batch.streams if self._design.cached else 1
            mask = leaf(kind, cells, batch.tokens // streams, 1, streams)
            if batch.flash_attention and batch.build.mask_is_cast:
                mask = new("CPY", mask.shape, mask, kind=F16)
            self._masks[windowed] = mask
        return self._masks[windowed]

    def _mha(
        self,
        query: Node,
        key: Node,
        value: Node,
        mask: Node,
        layer: int,
        decompress: Node | None = None,
        bias: Node | None = None,
    ) -> Node:
        """bias: added to the scores, which flash attention cannot. Source: build_attn_mha."""
        streams, tokens = key.shape[3], query.shape[2]
        strides = query.strides
        query = view(
            query,
            (query.shape[0], query.shape[1], tokens // streams, streams),
            (strides[1], strides[2], strides[2] * (tokens // streams)),
        )
        query, key, value = (permute(node, 0, 2, 1, 3) for node in (query, key, value))
        sinks = self._weight(f"blk.{layer}.attn_sinks.weight")
        further = [] if sinks is None else [sinks]
        if self._batch.flash_attention and bias is None:
            key, value = (new("CPY", node.shape, node, kind=F16) if node.type == F32 else node for node in (key, value))
            shape = (value.shape[0], query.shape[2], query.shape[1], query.shape[3])
            result = new("FLASH_ATTN_EXT", shape, query, key, value, mask, *further)
            if decompress is not None:
                result = permute(matmul(decompress, permute(result, 0, 2, 1, 3)), 0, 2, 1, 3)
                result = contiguous(result)
            result = reshape(result, result.shape[0] * result.shape[1], tokens)
        else:
            scores = matmul(key, query)
            if self._design.capped_scores:
                scores = like("SCALE", like("UNARY", like("SCALE", scores)))
            if bias is not None:
                scores = like("ADD", scores, bias)
            scores = like("SOFT_MAX", scores, mask, *further)
            if value.strides[2] <= value.strides[1]:
                value = contiguous(transpose(value))
            result = matmul(value, scores)
            if decompress is not None:
                result = matmul(decompress, result)
            result = permute(result, 0, 2, 1, 3)
            result = contiguous(result, result.shape[0] * result.shape[1], tokens)
            if self._batch.attends_on_host:  # with flash attention the cards do, on copies of the cache
                result.pinned = HOST
        return self.graph.expand(result)


def rotated(node: Node, rotation: Node) -> Node:
    """Source: llama_mul_mat_hadamard."""
    size = rotation.shape[0]
    count = node.shape[0] * node.shape[1] * node.shape[2] * node.shape[3] // size
    flat = reshape(node, size, count) if is_contiguous(node) else contiguous(node, size, count)
    return reshape(matmul(rotation, flat), *node.shape)


def stored_whole(value: Node, cache: Node, places: Node | None) -> Node:
    """Writes K, or V with flash attention, into a cache. Source: llama_kv_cache::cpy_k."""
    flat = view(value, (value.shape[0] * value.shape[1], value.shape[2]), (value.strides[2],))
    if places is None:
        return copied(flat, view(cache, (flat.shape[0], flat.shape[1]), (cache.strides[1],)))
    if cache.shape[2] > 1:
        cache = reshape(cache, cache.shape[0], cache.shape[1] * cache.shape[2])
    return set_rows(cache, flat, places)


def _stored_across(value: Node, cache: Node, places: Node | None) -> Node:
    """Writes V into a cache without flash attention, which is transposed: a number a row. Source: llama_kv_cache::cpy_v."""
    width, tokens = value.shape[0] * value.shape[1], value.shape[2]
    flat = reshape(value, width, tokens) if value.strides[2] == 4 * width else contiguous(value, width, tokens)
    if places is None:
        return copied(transpose(flat), view(cache, (tokens, width), (cache.strides[0] * cache.shape[1],)))
    if width < cache.shape[0]:
        flat = new("PAD", (cache.shape[0], tokens, 1, 1), flat)
    numbers = flat.shape[0] * tokens
    target = reshape(cache, 1, cache.shape[0] * cache.shape[1] * cache.shape[2])
    return set_rows(target, reshape(flat, 1, numbers), places)


def cache_view(cache: Node, length: int, heads: int, cells: int, streams: int) -> Node:
    head = cache.strides[1] * length // cache.shape[0]
    return view(cache, (length, heads, cells, streams), (head, cache.strides[1], cache.strides[2]))

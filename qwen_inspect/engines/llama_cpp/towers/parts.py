"""The operations that the graphs of towers are made of.

Source: llama.cpp 0c1e57098, tools/mtmd/clip.cpp (clip_graph), ggml/src/ggml.c.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt

from ....errors import UnsupportedError
from ..ggml.tensors import (
    F16,
    F32,
    I32,
    Graph,
    Node,
    Type,
    contiguous,
    leaf,
    like,
    matmul,
    new,
    permute,
    reshape,
    shape_of,
    stored,
    transpose,
    view,
)
from ..graphs.parts import type_of
from .tower import Tower

# Projectors whose old files have the names of the two matrices of a feed-forward block the wrong way round.
SWAPPED = frozenset(
    ("mlp", "mlp_norm", "qwen2vl_merger", "qwen2.5vl_merger", "gemma3", "idefics3", "resampler", "minicpmv4_6")
)
Turn = Callable[[Node], Node]


def convolution(kernel: Node, inputs: Node, step: int) -> Node:
    """Without padding or overlap. Source: ggml_conv_2d."""
    columns = unfolded(kernel, inputs, step, F32 if kernel.type.name == "bfloat16" else F16)
    width, height, count = columns.shape[1:]
    flat = reshape(columns, columns.shape[0], width * height * count)
    product = matmul(flat, reshape(kernel, columns.shape[0], kernel.shape[3]))
    return contiguous(permute(reshape(product, width, height, count, kernel.shape[3]), 0, 1, 3, 2))


def unfolded(kernel: Node, inputs: Node, step: int, kind: Type = F32) -> Node:
    """Source: ggml_im2col."""
    width, height = ((inputs.shape[at] - kernel.shape[at]) // step + 1 for at in (0, 1))
    numbers = kernel.shape[0] * kernel.shape[1] * kernel.shape[2]
    return new("IM2COL", (numbers, width, height, inputs.shape[3]), kernel, inputs, kind=kind)


def convolution_1d(kernel: Node, inputs: Node, step: int) -> Node:
    """Padded by half the kernel. Source: ggml_conv_1d_ph."""
    padding = kernel.shape[0] // 2
    length = (inputs.shape[0] + 2 * padding - kernel.shape[0]) // step + 1
    numbers = kernel.shape[0] * kernel.shape[1]
    kind = F32 if kernel.type.name == "bfloat16" else F16
    columns = new("IM2COL", (numbers, length, inputs.shape[2], 1), kernel, inputs, kind=kind)
    product = matmul(reshape(columns, numbers, length * inputs.shape[2]), reshape(kernel, numbers, kernel.shape[2]))
    return reshape(product, length, kernel.shape[2], inputs.shape[2])


def joined(first: Node, second: Node, axis: int) -> Node:
    """Source: ggml_concat."""
    shape = [*first.shape]
    shape[axis] += second.shape[axis]
    return new("CONCAT", shape_of(*shape), first, second, kind=first.type)


def pooled(node: Node, size: int) -> Node:
    """Source: ggml_pool_2d."""
    return new("POOL_2D", (node.shape[0] // size, node.shape[1] // size, *node.shape[2:]), node)


def table_rows(table: Node, indices: Node) -> Node:
    return new("GET_ROWS", (table.shape[0], *indices.shape[:3]), table, indices)


class VisionParts:
    """A tower whose weights lie on `device`, for one input of `size`: width and height.

    casts_masks: flash attention's mask is made in float32 and cast, once and again by each layer that has it.
    """

    def __init__(
        self, tower: Tower, device: str, size: tuple[int, int], *, flash_attention: bool, casts_masks: bool = False
    ) -> None:
        self._tower, self._device, self._flash = tower, device, flash_attention
        self._casts_masks = casts_masks and flash_attention
        self._image_width, self._image_height = size
        self._prefix = "a" if tower.kind.audio else "v"
        self._width = tower.number("embedding_length")
        self._heads = tower.number("attention.head_count")
        self._kv_heads = tower.key("attention.head_count_kv") or self._heads
        self._head = tower.key("attention.head_dim") or self._width // self._heads
        self._layers = tower.number("block_count", least=0)
        self._across = 0 if tower.kind.audio else self._image_width // tower.patch
        self._down = 0 if tower.kind.audio else self._image_height // tower.patch
        self._weights: dict[str, Node] = {}
        self.graph = Graph()

    @property
    def _patches(self) -> int:
        return self._across * self._down

    def _weight(self, name: str) -> Node | None:
        tensor = self._tower.by_name.get(name)
        if tensor is None:
            return None
        if name not in self._weights:
            self._weights[name] = stored(type_of(tensor), tensor.shape[::-1], self._device, weight=True)
        return self._weights[name]

    def _needed(self, name: str) -> Node:
        """Raises UnsupportedError for a file without it."""
        weight = self._weight(name)
        if weight is None:
            raise UnsupportedError("llama_cpp_tensor_missing", name=name, architecture=self._tower.projector)
        return weight

    def _product(self, name: str, inputs: Node) -> Node:
        """Gemma 4 clamps what goes into a matrix and what comes out. Source: clip_graph_gemma4v::build_mm."""
        weight = self._needed(f"{name}.weight")
        if self._tower.projector not in ("gemma4v", "gemma4a"):
            return matmul(weight, inputs)
        return like("CLAMP", matmul(weight, like("CLAMP", inputs)))

    def _linear(self, name: str, inputs: Node) -> Node:
        return self._with_bias(self._product(name, inputs), f"{name}.bias")

    def _with_bias(self, node: Node, name: str) -> Node:
        bias = self._weight(name)
        return node if bias is None else like("ADD", node, bias)

    def _norm(self, node: Node, name: str, kind: str) -> Node:
        """kind: "NORM" or "RMS_NORM"."""
        normed = like(kind, node)
        weight = self._weight(f"{name}.weight")
        normed = normed if weight is None else like("MUL", normed, weight)
        return self._with_bias(normed, f"{name}.bias")

    def _feed_forward(self, inputs: Node, up: str, down: str, gate: str = "", *, squared: bool = False) -> Node:
        """Source: build_ffn."""
        widened = self._linear(up, inputs)
        if gate and f"{gate}.weight" in self._tower.by_name:
            inner = like("GLU", self._linear(gate, inputs), widened)
        else:
            inner = like("UNARY", widened)
        return self._linear(down, like("SQR", inner) if squared else inner)

    def _attended(self, name: str, query: Node, key: Node, value: Node, mask: Node | None = None) -> Node:
        """Source: build_attn."""
        for node in (query, key, value):
            self.graph.expand(node)
        query, key = permute(query, 0, 2, 1, 3), permute(key, 0, 2, 1, 3)
        masks = [] if mask is None else [self._cast(mask)]
        if self._flash:
            key, value = (new("CPY", node.shape, node, kind=F16) for node in (key, permute(value, 0, 2, 1, 3)))
            shape = (value.shape[0], query.shape[2], query.shape[1], query.shape[3])
            result = new("FLASH_ATTN_EXT", shape, query, key, value, *masks)
            result = reshape(result, shape[0] * shape[1], shape[2] * shape[3])
        else:
            value = contiguous(permute(value, 1, 2, 0, 3))
            scores = like("SOFT_MAX", matmul(key, query), *masks)
            mixed = permute(matmul(value, scores), 0, 2, 1, 3)
            result = contiguous(mixed, mixed.shape[0] * mixed.shape[1], mixed.shape[2] * mixed.shape[3])
        return self._linear(name, result)

    def _cast(self, mask: Node) -> Node:
        return new("CPY", mask.shape, mask, kind=F16) if self._casts_masks else mask

    # The transformer. Source: build_vit.

    def _transformer(self, inputs: Node, norm: str, *, positions: Node | None = None, turn: Turn | None = None) -> Node:
        if positions is not None:
            inputs = like("ADD", inputs, positions)
        tokens = inputs.shape[1]
        state = reshape(inputs, self._width, tokens)
        if f"{self._prefix}.pre_ln.weight" in self._tower.by_name:
            state = self._norm(state, f"{self._prefix}.pre_ln", norm)
        for layer in range(self._layers):
            state = self._layer(f"{self._prefix}.blk.{layer}", state, norm, turn)
        if self._tower.projector in ("qwen2a", "voxtral", "musicflamingo"):
            averaged = contiguous(transpose(state))
            averaged = new("POOL_1D", (averaged.shape[0] // 2, *averaged.shape[1:]), averaged)
            state = contiguous(transpose(averaged))
        last = "mm.post_norm" if self._tower.projector == "dots_ocr" else f"{self._prefix}.post_ln"
        if f"{last}.weight" in self._tower.by_name:
            state = self._norm(state, last, norm)
        return reshape(state, self._width, state.shape[1], 1)

    def _layer(self, prefix: str, inputs: Node, norm: str, turn: Turn | None, mask: Node | None = None) -> Node:
        query, key, value = self._projections(prefix, self._norm(inputs, f"{prefix}.ln1", norm), norm)
        if turn is not None:
            query, key = turn(query), turn(key)
        if self._tower.projector == "gemma4v":
            value = like("RMS_NORM", value)
        result = self._attended(f"{prefix}.attn_out", query, key, value, mask)
        result = self._scaled(result, f"{prefix}.ls1")
        if f"{prefix}.attn_post_norm.weight" in self._tower.by_name:
            result = self._norm(result, f"{prefix}.attn_post_norm", norm)
        middle = like("ADD", result, inputs)
        up, down = self._up_and_down(prefix)
        result = self._feed_forward(self._norm(middle, f"{prefix}.ln2", norm), up, down, f"{prefix}.ffn_gate")
        if f"{prefix}.ffn_post_norm.weight" in self._tower.by_name:
            result = self._norm(result, f"{prefix}.ffn_post_norm", norm)
        result = like("ADD", middle, self._scaled(result, f"{prefix}.ls2"))
        return self._scaled(result, f"{prefix}.out_scale")

    def _scaled(self, node: Node, name: str) -> Node:
        scale = self._weight(f"{name}.weight")
        return node if scale is None else like("MUL", node, scale)

    def _up_and_down(self, prefix: str) -> tuple[str, str]:
        names = f"{prefix}.ffn_up", f"{prefix}.ffn_down"
        swapped = self._needed(f"{names[1]}.weight").shape[0] == self._width and self._tower.projector in SWAPPED
        return (names[1], names[0]) if swapped else names

    def _projections(self, prefix: str, inputs: Node, norm: str) -> tuple[Node, Node, Node]:
        tokens = inputs.shape[1]
        if f"{prefix}.attn_qkv.weight" in self._tower.by_name:
            whole = self._linear(f"{prefix}.attn_qkv", inputs)
            row, part = whole.strides[1], 4 * self._heads * self._head
            shape, strides = (self._head, self._heads, tokens, 1), (4 * self._head, row, row * tokens)
            query, key, value = (view(whole, shape, strides, part * at) for at in range(3))
            return self._head_norm(query, prefix, "q", norm), self._head_norm(key, prefix, "k", norm), value
        parts = [self._linear(f"{prefix}.attn_{part}", inputs) for part in "qkv"]
        by_head = self._norms_heads(prefix)
        if not by_head:
            parts[:2] = [self._head_norm(node, prefix, part, norm) for node, part in zip(parts, "qk", strict=False)]
        heads = (self._heads, self._kv_heads, self._kv_heads)
        parts = [reshape(node, self._head, count, tokens) for node, count in zip(parts, heads, strict=True)]
        if by_head:
            parts[:2] = [self._head_norm(node, prefix, part, norm) for node, part in zip(parts, "qk", strict=False)]
        return parts[0], parts[1], parts[2]

    def _norms_heads(self, prefix: str) -> bool:
        weight = self._weight(f"{prefix}.attn_q_norm.weight")
        return weight is not None and weight.shape[0] == self._head

    def _head_norm(self, node: Node, prefix: str, part: str, norm: str) -> Node:
        name = f"{prefix}.attn_{part}_norm"
        return self._norm(node, name, norm) if f"{name}.weight" in self._tower.by_name else node

    # Patches and positions.

    def _image(self) -> Node:
        return leaf(F32, self._image_width, self._image_height, 3)

    def _embedded(self, image: Node) -> Node:
        """Patches by a convolution. Source: build_inp."""
        patches = convolution(self._needed("v.patch_embd.weight"), image, self._tower.patch)
        patches = reshape(patches, self._patches, self._width, 1)
        return self._with_bias(contiguous(transpose(patches)), "v.patch_embd.bias")

    def _positions(self, each: int = 1) -> Node:
        return leaf(I32, self._patches * each)

    def _turning(self, *positions: Node) -> Turn:
        """RoPE by each of the positions in turn."""

        def turn(node: Node) -> Node:
            for each in positions:
                node = like("ROPE", node, each)
            return node

        return turn

    def _resized_positions(self) -> Node:
        """Source: resize_position_embeddings."""
        table = self._needed("v.position_embd.weight")
        side = isqrt(table.shape[1])
        if self._across == self._down == side:
            return table
        square = permute(reshape(table, self._width, side, side), 2, 0, 1, 3)
        resized = new("UPSCALE", (self._across, self._down, self._width, 1), square, kind=table.type)
        return contiguous(permute(resized, 1, 2, 0, 3), self._width, self._patches)

    def _in_squares(self, node: Node, side: int = 2) -> Node:
        """Patches in the order of the squares that are merged."""
        rows = contiguous(node, self._width * side, self._across // side, self._down, 1)
        rows = reshape(rows, self._width * side, self._across // side, side, self._down // side)
        return contiguous(permute(rows, 0, 2, 1, 3), self._width, self._patches, 1)

    def _merged(self, node: Node) -> Node:
        """Squares of patches become one, after padding. Source: build_patch_merge_permute."""
        side, width, (across, down) = self._tower.merge, node.shape[0], (self._across, self._down)
        node = reshape(node, width, across, down)
        if across % side or down % side:
            across, down = -(-across // side) * side, -(-down // side) * side
            node = new("PAD", (width, across, down, 1), node)
        node = permute(reshape(node, width * side, across // side, down), 0, 2, 1, 3)
        node = contiguous(node, width * side * side, down // side, across // side)
        node = permute(node, 0, 2, 1, 3)
        return contiguous(node, node.shape[0], node.shape[1] * node.shape[2])

    def _without_class(self, node: Node, first: int = 0) -> Node:
        """The tokens of patches alone."""
        row = node.strides[1]
        return view(node, (self._width, self._patches), (row,), first * row)

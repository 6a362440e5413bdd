"""Tensors and graphs as ggml builds them: shapes, strides and views, without data.

Source: llama.cpp b11549, ggml/src/ggml.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ....errors import UnsupportedError
from ....typed import NamedTuple
from ....values import dataclass, field


class Type(NamedTuple):
    """A type of numbers: how many a block has, and its bytes."""

    name: str
    numbers: int
    block_bytes: int

    def row_bytes(self, numbers: int) -> int:
        return numbers // self.numbers * self.block_bytes


F32, F16, BF16 = Type("f32", 1, 4), Type("f16", 1, 2), Type("bf16", 1, 2)
I32, I64 = Type("i32", 1, 4), Type("i64", 1, 8)
# The types of a cache, as llama.cpp names them.
CACHE_TYPES = {
    kind.name: kind
    for kind in (
        F32, F16, BF16, Type("q8_0", 32, 34), Type("q5_1", 32, 24), Type("q5_0", 32, 22), Type("q4_1", 32, 20),
        Type("q4_0", 32, 18), Type("iq4_nl", 32, 18),
    )
}  # fmt: skip
VIEWS = frozenset({"VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE", "NONE"})
# Operations that may write over an argument. Source: ggml-alloc.c, ggml_op_can_inplace.
IN_PLACE = frozenset(
    ("FILL", "SCALE", "ADD", "ADD_ID", "SUB", "MUL", "DIV", "SQR", "SQRT", "UNARY", "ROPE", "RMS_NORM", "CLAMP", "SOFT_MAX")
)  # fmt: skip
Shape = tuple[int, int, int, int]


@dataclass(slots=True, eq=False)
class Node:
    """A tensor of a graph. device: where a weight or a cache lies, None for what is computed.

    pinned: the device that computes it whatever the scheduler would choose. adapters: of LoRA, A and B for this weight.
    """

    op: str
    type: Type
    shape: Shape
    strides: Shape
    sources: list[Node] = field(default_factory=list)
    viewed: Node | None = None
    is_input: bool = False
    is_output: bool = False
    device: str | None = None
    weight: bool = False
    offset: int = 0
    pinned: str | None = None
    adapters: tuple[tuple[Node, Node], ...] = ()

    @property
    def size_bytes(self) -> int:
        """Source: ggml_nbytes."""
        if 0 in self.shape:
            return 0
        numbers, block_bytes = self.type.numbers, self.type.block_bytes
        first = self.shape[0] * self.strides[0] // numbers
        if numbers == 1:
            first = block_bytes + (self.shape[0] - 1) * self.strides[0]
        return first + sum((self.shape[at] - 1) * self.strides[at] for at in (1, 2, 3))

    @property
    def is_view(self) -> bool:
        return self.viewed is not None


def shape_of(*sizes: int) -> Shape:
    padded = (*sizes, 1, 1, 1, 1)
    return padded[0], padded[1], padded[2], padded[3]


def strides_of(kind: Type, shape: Shape) -> Shape:
    row = kind.row_bytes(shape[0])
    return kind.block_bytes, row, row * shape[1], row * shape[1] * shape[2]


def stored(kind: Type, sizes: Sequence[int], device: str, *, weight: bool) -> Node:
    """A tensor that lies in a buffer of its own: a weight or a cache."""
    shape = shape_of(*sizes)
    return Node("NONE", kind, shape, strides_of(kind, shape), device=device, weight=weight)


class Graph:
    """Nodes in the order of computation, and leaves. Source: ggml_build_forward_expand."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.leaves: list[Node] = []
        self._visited: set[int] = set()

    def expand(self, node: Node) -> Node:
        """Adds what `node` needs, then `node`."""
        stack = [(node, iter(node.sources))]
        if id(node) in self._visited:
            return node
        self._visited.add(id(node))
        while stack:
            current, sources = stack[-1]
            for source in sources:
                if id(source) not in self._visited:
                    self._visited.add(id(source))
                    stack.append((source, iter(source.sources)))
                    break
            else:
                (self.leaves if current.op == "NONE" else self.nodes).append(current)
                stack.pop()
        return node


def leaf(kind: Type, *sizes: int) -> Node:
    """An input of the graph."""
    shape = shape_of(*sizes)
    return Node("NONE", kind, shape, strides_of(kind, shape), is_input=True)


def new(op: str, shape: Shape, *sources: Node, kind: Type = F32) -> Node:
    return Node(op, kind, shape, strides_of(kind, shape), list(sources))


def like(op: str, first: Node, *others: Node) -> Node:
    """An operation that keeps the shape and the layout of its first argument. Source: ggml_dup_tensor."""
    return new(op, first.shape, first, *others, kind=first.type)


def matmul(weights: Node, inputs: Node) -> Node:
    """With what the weight's adapters add. Source: build_lora_mm."""
    result = _product(weights, inputs)
    for first, second in weights.adapters:
        result = like("ADD", result, like("SCALE", _product(second, _product(first, inputs))))
    return result


def _product(weights: Node, inputs: Node) -> Node:
    if weights.shape[0] != inputs.shape[0]:
        raise UnsupportedError("llama_cpp_shapes", found=str(inputs.shape), expected=str(weights.shape[:1]))
    return new("MUL_MAT", (weights.shape[1], inputs.shape[1], inputs.shape[2], inputs.shape[3]), weights, inputs)


def matmul_chosen(weights: Node, inputs: Node, chosen: Node) -> Node:
    """A matrix for each row of `inputs` by the experts chosen, with adapters. Source: ggml_mul_mat_id, build_lora_mm_id."""
    result = _product_chosen(weights, inputs, chosen)
    for first, second in weights.adapters:
        added = _product_chosen(second, _product_chosen(first, inputs, chosen), chosen)
        result = like("ADD", result, like("SCALE", added))
    return result


def _product_chosen(weights: Node, inputs: Node, chosen: Node) -> Node:
    return new("MUL_MAT_ID", (weights.shape[1], chosen.shape[0], inputs.shape[2], 1), weights, inputs, chosen)


def rows(table: Node, indices: Node) -> Node:
    kind = I32 if table.type == I32 else F32
    return new("GET_ROWS", (table.shape[0], *indices.shape[:3]), table, indices, kind=kind)


def view(source: Node, sizes: Sequence[int], strides: Sequence[int] = (), offset: int = 0) -> Node:
    """Part of a tensor. strides: in bytes, from the second dimension on."""
    shape = shape_of(*sizes)
    first = source.strides[0]
    given = (first, *strides)
    full = [*given]
    while len(full) < 4:
        full.append(full[-1] * shape[len(full) - 1])
    if not strides:
        full = list(strides_of(source.type, shape))
    return _viewing("VIEW", source, shape, (full[0], full[1], full[2], full[3]), offset)


def reshape(source: Node, *sizes: int) -> Node:
    shape = shape_of(*sizes)
    if prod(shape) != prod(source.shape):
        raise UnsupportedError("llama_cpp_shapes", found=str(source.shape), expected=str(shape))
    return _viewing("RESHAPE", source, shape, strides_of(source.type, shape), 0)


def permute(source: Node, *axes: int) -> Node:
    shape, strides = [0] * 4, [0] * 4
    for at, axis in enumerate(axes):
        shape[axis], strides[axis] = source.shape[at], source.strides[at]
    return _viewing("PERMUTE", source, _four(shape), _four(strides), 0)


def transpose(source: Node) -> Node:
    shape, strides = source.shape, source.strides
    swapped = (shape[1], shape[0], *shape[2:]), (strides[1], strides[0], *strides[2:])
    return _viewing("TRANSPOSE", source, swapped[0], swapped[1], 0)


def set_rows(target: Node, values: Node, indices: Node) -> Node:
    """Writes into `target`, whose view it is. Source: ggml_set_rows."""
    node = _viewing("SET_ROWS", target, target.shape, target.strides, 0)
    node.sources = [values, indices, target]
    return node


def copied(source: Node, target: Node) -> Node:
    """Writes `source` into `target`. Source: ggml_cpy."""
    node = _viewing("CPY", target, target.shape, target.strides, 0)
    node.sources = [source, target]
    return node


def overwritten(op: str, target: Node) -> Node:
    """An operation whose result lies in its argument."""
    return _viewing(op, target, target.shape, target.strides, 0)


def contiguous(source: Node, *sizes: int) -> Node:
    return new("CONT", shape_of(*sizes) if sizes else source.shape, source, kind=source.type)


def cast(source: Node, kind: Type) -> Node:
    return new("CPY", source.shape, source, kind=kind)


def is_contiguous(node: Node) -> bool:
    return node.strides == strides_of(node.type, node.shape)


def _viewing(op: str, source: Node, shape: Shape, strides: Shape, offset: int) -> Node:
    base = source.viewed or source
    return Node(op, source.type, shape, strides, [source], viewed=base, offset=source.offset + offset)


def _four(sizes: Sequence[int]) -> Shape:
    return sizes[0], sizes[1], sizes[2], sizes[3]

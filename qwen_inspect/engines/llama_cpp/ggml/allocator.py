"""ggml's allocator of compute buffers: best fit over free blocks, and arguments written over by their last user.

Source: llama.cpp b11549, ggml/src/ggml-alloc.c (ggml_dyn_tallocr, ggml_gallocr).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ....values import dataclass
from .tensors import IN_PLACE, Node


@dataclass(slots=True)
class _Block:
    offset: int
    size: int


class _Buffer:
    """One buffer that grows. Chunks, which only a limit on a buffer's size makes, are left out."""

    def __init__(self, alignment: int) -> None:
        self._alignment = alignment
        self._free = [_Block(0, 1 << 62)]
        self.most_bytes = 0

    def aligned(self, size_bytes: int) -> int:
        return -(-size_bytes // self._alignment) * self._alignment

    def allocate(self, size_bytes: int) -> int:
        """The offset of the smallest free block that is large enough, the last of those; else at the end."""
        size_bytes = self.aligned(size_bytes)
        best = len(self._free) - 1
        best_size = -1
        for at, block in enumerate(self._free[:-1]):
            if block.size >= size_bytes and (best_size < 0 or block.size <= best_size):
                best, best_size = at, block.size
        block = self._free[best]
        offset = block.offset
        block.offset += size_bytes
        block.size -= size_bytes
        if block.size == 0:
            del self._free[best]
        self.most_bytes = max(self.most_bytes, offset + size_bytes)
        return offset

    def free(self, offset: int, size_bytes: int) -> None:
        size_bytes = self.aligned(size_bytes)
        free = self._free
        for at, block in enumerate(free):
            if block.offset + block.size == offset:
                block.size += size_bytes
                if at + 1 < len(free) and block.offset + block.size == free[at + 1].offset:
                    block.size += free[at + 1].size
                    del free[at + 1]
                return
            if offset + size_bytes == block.offset:
                block.offset = offset
                block.size += size_bytes
                if at > 0 and free[at - 1].offset + free[at - 1].size == block.offset:
                    free[at - 1].size += block.size
                    del free[at]
                return
        at = 0
        while at < len(free) and free[at].offset < offset:
            at += 1
        free.insert(at, _Block(offset, size_bytes))


@dataclass(slots=True)
class _State:
    """children, views: uses not yet computed. buffer, offset: where it lies; owned: until it is freed."""

    children: int = 0
    views: int = 0
    buffer: str = ""
    offset: int = 0
    owned: bool = False


class Allocator:
    """Places a graph's tensors; `most_bytes` is then each buffer's size."""

    def __init__(self, alignments: Mapping[str, int], size_bytes: Callable[[str, Node], int]) -> None:
        self._buffers = {name: _Buffer(alignment) for name, alignment in alignments.items()}
        self._size_bytes = size_bytes
        self._states: dict[int, _State] = {}

    def place(self, nodes: Sequence[tuple[Node, str]], leaves: Sequence[tuple[Node, str]]) -> dict[str, int]:
        """Bytes of every buffer after placing a graph whose tensors are given with their buffers.

        Source: ggml_gallocr_alloc_graph_impl.
        """
        for leaf, buffer in leaves:
            self._allocate(leaf, buffer)
        for node, buffer in nodes:
            if node.viewed is not None and node.op != "NONE":
                self._state(node.viewed).views += 1
            if node.is_input:
                self._allocate(node, buffer)
            for source in node.sources:
                self._state(source).children += 1
                if source.is_input:
                    self._allocate(source, buffer)
        for node, buffer in nodes:
            for source in node.sources:
                self._allocate(source, buffer)
            self._allocate(node, buffer)
            for source in node.sources:
                self._used(source)
        return {name: buffer.most_bytes for name, buffer in self._buffers.items()}

    def _state(self, node: Node) -> _State:
        state = self._states.get(id(node))
        if state is None:
            state = self._states[id(node)] = _State()
        return state

    def _allocate(self, node: Node, buffer: str) -> None:
        state = self._state(node)
        if node.device is not None or state.owned or node.viewed is not None:
            return
        state.owned = True
        if node.op in IN_PLACE and self._reuse(node, state):
            return
        state.buffer = buffer
        state.offset = self._buffers[buffer].allocate(self._size_bytes(buffer, node))

    def _reuse(self, node: Node, state: _State) -> bool:
        """Takes over the memory of an argument that nothing else needs. A view never owns memory, so it is not taken over."""
        for parent in node.sources:
            parent_state = self._state(parent)
            if not parent_state.owned or parent.is_output or not _same_layout(node, parent):
                continue
            if parent_state.children != 1 or parent_state.views:
                continue
            state.buffer, state.offset = parent_state.buffer, parent_state.offset
            parent_state.owned = False
            buffer = self._buffers[state.buffer]
            parent_bytes, node_bytes = (buffer.aligned(self._size_bytes(state.buffer, each)) for each in (parent, node))
            if parent_bytes > node_bytes:
                buffer.free(state.offset + node_bytes, parent_bytes - node_bytes)
            return True
        return False

    def _used(self, parent: Node) -> None:
        state = self._state(parent)
        state.children -= 1
        if state.children or state.views:
            return
        if parent.viewed is None:
            if state.owned:
                self._free(parent, state)
            return
        base = self._state(parent.viewed)
        base.views -= 1
        if not base.views and not base.children and base.owned:
            self._free(parent.viewed, base)

    def _free(self, node: Node, state: _State) -> None:
        if node.is_output:
            return
        self._buffers[state.buffer].free(state.offset, self._size_bytes(state.buffer, node))
        state.owned = False


def _same_layout(left: Node, right: Node) -> bool:
    return left.type == right.type and left.shape == right.shape and left.strides == right.strides

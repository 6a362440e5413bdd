"""ggml's scheduler: which device computes what, and the copies that a device needs of what lies on another.

Source: llama.cpp b11549, ggml/src/ggml-backend.cpp (ggml_backend_sched_split_graph).
Cards are assumed to compute every operation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from ....values import dataclass, field, replace
from ..builds import Build
from .allocator import Allocator
from .fork import offloads
from .fusions import kept_nodes, shared_beside_routed
from .repacking import is_repacked
from .tensors import F16, VIEWS, Graph, Node

HOST = "CPU"
BLAS = "BLAS"  # which computes large products in the host's memory
COPIES = 4  # GGML_SCHED_MAX_COPIES, where layers of several cards compute micro-batches at the same time
ALIGNMENT, HOST_ALIGNMENT = 128, 32  # CUDA's buffers; TENSOR_ALIGNMENT
OFFLOADED_ROWS = 32  # op_offload_min_batch_size: rows from which a card computes with a weight that lies on the host


@dataclass(slots=True)
class _Split:
    device: str
    start: int
    end: int = 0
    inputs: list[Node] = field(default_factory=list)


class Scheduler:
    """Splits a graph over cards and host.

    devices: the cards in llama.cpp's order; the host is added as the last. offloads: whether a card computes with weights that
    lie on the host. repacked: -rtr of ik_llama.cpp, or not --no-repack. pinned: not --no-host.
    """

    def __init__(
        self,
        devices: Sequence[str],
        build: Build,
        *,
        pipeline: bool = False,
        offloads: bool = True,
        repacked: bool = False,
        pinned: bool = True,
    ) -> None:
        self._blas = build.blas and len(devices) > 0  # without cards its buffer is the host's
        self._devices: tuple[str, ...] = (*devices, *((BLAS,) if self._blas else ()), HOST)
        self._copies = COPIES if pipeline else 1
        self._build = build
        self._offloads, self._repacked = offloads and len(devices) > 0, repacked and (build.fork or not pinned)
        self._device: dict[int, str] = {}
        self._copy: dict[tuple[int, str], list[Node]] = {}
        self.splits = 0

    def buffers(self, graph: Graph) -> dict[str, int]:
        """Bytes of every device's compute buffer."""
        self._assign(graph)
        splits = self._split(graph)
        self.splits = len(splits)
        inputs = self._graph_inputs(graph)
        nodes: list[tuple[Node, str]] = []
        for split in splits:
            for node in split.inputs:
                kept = replace(
                    node, op="NONE", sources=[node], viewed=node.viewed or node, is_input=False, is_output=False
                )
                nodes.append((kept, self._device[id(node)]))
                nodes.append((self._copy[id(node), split.device][0], split.device))
            nodes += self._with_kept(graph.nodes[split.start : split.end], split.device)
        leaves = [(copy, device) for copies, device in inputs for copy in copies]
        if self._copies > 1:
            leaves += [
                (copy, split.device)
                for split in splits
                for node in split.inputs
                for copy in self._copy[id(node), split.device]
            ]
        leaves += [(node, self._device[id(node)]) for node in graph.leaves]
        alignments = {name: HOST_ALIGNMENT if name in (HOST, BLAS) else ALIGNMENT for name in self._devices}
        return Allocator(alignments, self._size_bytes).place(nodes, leaves)

    def _with_kept(self, nodes: Sequence[Node], device: str) -> Iterator[tuple[Node, str]]:
        """The nodes of a split with their devices, and what keeps others in memory after the node that they are kept for."""
        kept: dict[int, list[Node]] = {}
        if device not in (HOST, BLAS) and self._build.keeps_fused:
            nodes, shared = shared_beside_routed(nodes) if self._build.moves_shared else (nodes, [])
            for tensors, until in (*shared, *kept_nodes(nodes)):
                kept.setdefault(id(until), []).extend(tensors)
        for node in nodes:
            yield node, self._device[id(node)]
            if id(node) in kept:
                first = kept[id(node)][0]
                yield (
                    replace(first, op="NONE", sources=kept[id(node)], viewed=first.viewed or first, is_input=False),
                    device,
                )

    # Passes 1 to 4.

    def _assign(self, graph: Graph) -> None:
        for node in (*graph.leaves, *graph.nodes):
            device = self._known(node)
            if device is not None:
                self._device[id(node)] = device
        computed = [node for node in graph.nodes if node.op not in VIEWS]
        for host_too in (False, True):
            self._expand(computed, host_too)
            self._expand(computed[::-1], host_too)
        for node in computed:
            if id(node) not in self._device:
                self._device[id(node)] = self._nearest(node)
        for node in graph.nodes:
            if id(node) not in self._device and node.viewed is not None and id(node.viewed) in self._device:
                self._device[id(node)] = self._device[id(node.viewed)]
            for source in node.sources:
                if id(source) not in self._device:
                    base = source.viewed
                    known = self._device.get(id(base)) if base is not None else self._device.get(id(node))
                    if known is not None:
                        self._device[id(source)] = known
            self._device.setdefault(id(node), self._devices[0])

    def _known(self, node: Node) -> str | None:
        """Source: ggml_backend_sched_backend_id_from_cur."""
        base = node.viewed or node
        if node.pinned is not None or base.device is not None:
            return node.pinned or base.device
        if node.is_input:
            return HOST
        if node.op in ("ROPE", "FLASH_ATTN_EXT"):
            return None
        for source in node.sources:
            if source.weight and source.device is not None:
                if source.device == HOST and self._blas and _is_large_product(node):
                    return BLAS
                if source.device == HOST and self._offloads and self._is_offloaded(node, source):
                    return self._devices[0]
                return source.device
        return None

    def _is_offloaded(self, node: Node, weight: Node) -> bool:
        if self._build.fork:
            return offloads(node, weight, self._build, repacked=self._repacked)
        return _rows(node) >= OFFLOADED_ROWS and not (self._repacked and is_repacked(node, weight))

    def _expand(self, nodes: Sequence[Node], host_too: bool) -> None:
        current: str | None = None
        for node in nodes:
            device = self._device.get(id(node))
            if device is not None:
                current = device if host_too or device != HOST else None
            elif current is not None and (current != BLAS or _is_large_product(node)):
                self._device[id(node)] = current

    def _nearest(self, node: Node) -> str:
        """The first device that reaches most of a node's arguments. Source: pass 3."""
        able = [device for device in self._devices if device != BLAS or _is_large_product(node)]
        known = [source for source in node.sources if self._place(source) is not None]
        return max(able, key=lambda device: sum(self._reaches(source, device) for source in known))

    def _place(self, source: Node) -> str | None:
        base = source.viewed or source
        return base.device or self._device.get(id(source)) or self._device.get(id(base))

    def _size_bytes(self, device: str, node: Node) -> int:
        size_bytes = cuda_size_bytes(device, node)
        if device in (HOST, BLAS) or node.op != "FLASH_ATTN_EXT" or not self._build.converts_cache:
            return size_bytes
        return size_bytes + _converted_bytes(node, size_bytes)

    # Pass 5.

    def _split(self, graph: Graph) -> list[_Split]:
        first = next(at for at, node in enumerate(graph.nodes) if node.op not in VIEWS)
        splits = [_Split(self._device[id(graph.nodes[first])], 0)]
        for at in range(first, len(graph.nodes)):
            node, split = graph.nodes[at], splits[-1]
            if node.op in VIEWS:
                continue
            device = self._device[id(node)]
            if device != split.device or (split.inputs and self._weight_elsewhere(node, split.device)):
                split.end = at
                split = _Split(device, at)
                splits.append(split)
            for position, source in enumerate(node.sources):
                if not self._reaches(source, split.device):
                    node.sources[position] = self._copied(source, split)
        splits[-1].end = len(graph.nodes)
        return splits

    def _reaches(self, source: Node, device: str) -> bool:
        """Whether a device computes with memory of the one where `source` lies."""
        place = self._place(source)
        return place == device or {place, device} == {BLAS, HOST}

    def _weight_elsewhere(self, node: Node, device: str) -> bool:
        return any(source.weight and not self._reaches(source, device) for source in node.sources)

    def _copied(self, source: Node, split: _Split) -> Node:
        key = id(source), split.device
        if key not in self._copy:
            flagged = self._copies > 1
            self._copy[key] = [
                replace(
                    source,
                    op="NONE",
                    sources=[],
                    viewed=None,
                    device=None,
                    weight=False,
                    is_input=flagged,
                    is_output=flagged,
                )
                for _ in range(self._copies)
            ]
            split.inputs.append(source)
        return self._copy[key][0]

    # Pass 6.

    def _graph_inputs(self, graph: Graph) -> list[tuple[list[Node], str]]:
        """With copies, every input of the graph as often."""
        if self._copies == 1:
            return []
        result = []
        for node in graph.leaves:
            if node.is_input:
                node.is_output = True
                copies = [node, *(replace(node, is_output=True) for _ in range(self._copies - 1))]
                result.append((copies, self._device[id(node)]))
        return result


def _is_large_product(node: Node) -> bool:
    """Whether BLAS computes it. Source: ggml-blas.cpp, ggml_backend_blas_device_supports_op."""
    least = OFFLOADED_ROWS
    return node.op == "MUL_MAT" and min(*node.shape[:2], node.sources[1].shape[0]) >= least


def _rows(node: Node) -> int:
    """Source: ggml-cuda.cu, get_op_batch_size."""
    match node.op:
        case "GET_ROWS":
            return 0
        case "MUL_MAT":
            return node.shape[1]
        case "MUL_MAT_ID" | "ROPE":
            return node.shape[2]
        case _:
            return node.shape[1] * node.shape[2] * node.shape[3]


def _converted_bytes(node: Node, size_bytes: int) -> int:
    """Bytes after a result for K and V in float16, where the cache has another type; V may be part of K.

    Source: ggml-cuda/fattn.cu (ggml_cuda_flash_attn_ext_get_alloc_size), fattn-common.cuh (f16_extra_data).
    """
    keys, values = node.sources[1:3]
    end = size_bytes
    same = (values.viewed or values) is (keys.viewed or keys) and values.offset == keys.offset
    for part, shared in ((keys, False), (values, same)):
        if part.type != F16 and not shared:
            end = -(-end // ALIGNMENT) * ALIGNMENT + prod(part.shape) * F16.block_bytes
    return end - size_bytes


def cuda_size_bytes(device: str, node: Node) -> int:
    """Bytes that a card's buffer holds for a tensor: quantised rows are padded to a multiple of 512 numbers.

    Source: ggml-cuda.cu, ggml_backend_cuda_buffer_type_get_alloc_size.
    """
    size_bytes = node.size_bytes
    if device not in (HOST, BLAS) and node.type.numbers > 1 and node.shape[0] % 512:
        size_bytes += node.type.row_bytes(512 - node.shape[0] % 512)
    return size_bytes

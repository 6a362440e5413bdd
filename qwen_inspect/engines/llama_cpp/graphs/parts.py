"""A file's tensors as nodes of a graph, and the operations that every block is made of.

Source: llama.cpp b11549, src/llama-graph.cpp (build_norm, build_lora_mm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ....architectures.gguf_hparams import GgufHyperparameters
from ....checkpoint import BlockFormat, Tensor
from ....errors import UnsupportedError
from ....typed import Any
from ..ggml.tensors import Graph, Node, Type, leaf, like, matmul, stored
from ..options import IN_LAYER
from .design import DESIGNS, LAYER_NORMS, Batch


class Parts:
    """placed: the device of each tensor of the file, "cache.N" of each layer's cache, and "layer.N" where norms are pinned.

    adapters: each one's tensors by name, those of LoRA.
    """

    def __init__(
        self,
        hyperparameters: GgufHyperparameters,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        placed: Mapping[str, str],
        batch: Batch,
        adapters: Sequence[Mapping[str, Tensor]] = (),
    ) -> None:
        self._adapters = adapters
        self._read = hyperparameters
        self._metadata = metadata
        self._tensors = tensors
        self._placed = placed
        self._batch = batch
        self._weights: dict[str, Node] = {}
        self._masks: dict[bool, Node] = {}
        self._inputs: dict[str, Node] = {}
        self.graph = Graph()
        if hyperparameters.architecture not in DESIGNS:
            raise UnsupportedError("llama_cpp_graph", architecture=hyperparameters.architecture)
        self._design = DESIGNS[hyperparameters.architecture]

    def _key(self, name: str) -> Any:
        return self._metadata.get(f"{self._read.architecture}.{name}")

    def _weight(self, name: str, place: str | None = None) -> Node | None:
        """A tensor of the file; None if it has none of that name. Shapes there are rows first."""
        if name not in self._tensors:
            return None
        key = place or name
        if key not in self._weights:
            weight = self._stored(self._tensors[name], key)
            weight.adapters = tuple(
                (self._stored(adapter[f"{name}.lora_a"], key), self._stored(adapter[f"{name}.lora_b"], key))
                for adapter in self._adapters
                if f"{name}.lora_a" in adapter and f"{name}.lora_b" in adapter
            )
            self._weights[key] = weight
        return self._weights[key]

    def _stored(self, tensor: Tensor, place: str) -> Node:
        return stored(type_of(tensor), tensor.shape[::-1], self._placed[place], weight=True)

    def _has(self, name: str) -> bool:
        """Whether the file has a norm of that name; a few are stored without the ending."""
        return f"{name}.weight" in self._tensors or name in self._tensors

    def _needed(self, name: str) -> Node:
        weight = self._weight(name)
        if weight is None:
            raise UnsupportedError("llama_cpp_tensor_missing", name=name, architecture=self._read.architecture)
        return weight

    def _input(self, name: str, kind: Type, *sizes: int) -> Node:
        if name not in self._inputs:
            self._inputs[name] = leaf(kind, *sizes)
        return self._inputs[name]

    def _with_bias(self, node: Node, name: str) -> Node:
        bias = self._weight(name)
        return node if bias is None else like("ADD", node, bias)

    @property
    def _plain_norms(self) -> bool:
        """Whether norms are layer norms, not RMS norms; for Cohere 2 MoE by the file's key."""
        if self._read.architecture == "cohere2moe":
            return self._key("attention.layer_norm_rms_epsilon") is None
        return self._read.architecture in LAYER_NORMS

    def _norm(self, node: Node, name: str) -> Node:
        """The norm with the weight of that name, if there is one. Source: build_norm."""
        weight = self._weight(f"{name}.weight") or self._weight(name)
        if weight is not None and self._batch.build.fork:
            return self._with_bias(like("FUSED_RMS_NORM", node, weight), f"{name}.bias")
        normed = like("NORM" if self._plain_norms else "RMS_NORM", node)
        if weight is not None:
            normed.pinned = self._pinned(name)
            normed = like("MUL", normed, weight)
        return self._with_bias(normed, f"{name}.bias")

    def _pinned(self, name: str) -> str | None:
        """Where a layer's norm is computed: with all layers on cards, and for few tokens. Source: llama_context::graph_get_cb."""
        match = IN_LAYER.match(name)
        return None if match is None else self._placed.get(f"layer.{match[1]}")

    def _linear(self, name: str, inputs: Node) -> Node:
        return self._with_bias(matmul(self._needed(f"{name}.weight"), inputs), f"{name}.bias")


def type_of(tensor: Tensor) -> Type:
    if isinstance(tensor.dtype, BlockFormat):
        return Type(str(tensor.dtype), tensor.dtype.block_elements, tensor.dtype.block_bytes)
    return Type(str(tensor.dtype), 1, tensor.dtype.bits // 8)

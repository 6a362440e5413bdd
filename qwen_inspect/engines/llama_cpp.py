"""What llama.cpp puts on a card: the output layer first, then the last layers, each with its weights, cache and state.

Source: llama.cpp 0c1e57098, src/llama-model.cpp (load_tensors), src/llama-model-loader.cpp (create_tensor); the output layer came
last before pull request 18148 of December 2025.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..checkpoint import DType, Tensor
from ..errors import UnsupportedError
from ..results.attention import AnyLayerAttention
from ..structure.engine_cache import llama_cpp_layer_bytes
from ..structure.kv_cache import CacheFormat

VERSION = "0c1e57098"
IN_LAYER = re.compile(r"blk\.(\d+)\..+")
# Of the compute buffer on a card, printed for Qwen3-235B-A22B by a fork of llama.cpp: from 161.02 MiB (16,384 tokens) to 2,502.00
# (40,960 tokens, larger batches). It follows model, batch, build and what is offloaded, so that no range is made of it.
COMPUTE_SOURCES = (
    "https://github.com/ikawrakow/ik_llama.cpp/blob/8337e4cd3861406fc04e0854b1409cd1b027fbc9"
    "/github-data/discussions/357%20-%20Qwen3%20-%20early%20performance%20comparisons.md",
    "https://github.com/ikawrakow/ik_llama.cpp/issues/514",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Bytes of a GGUF file's tensors by where llama.cpp puts them.

    input_bytes: the embedding, which stays with the host. output_bytes: the final norm, and the output matrix unless it is tied:
    then a card gets a copy of the embedding.
    """

    input_bytes: int
    output_bytes: int
    tied: bool
    layers_bytes: tuple[int, ...]


def parts_of(tensors: Sequence[Tensor], layers: int) -> Parts:
    """A file's tensors by layer. Raises UnsupportedError for one that belongs nowhere."""
    layers_bytes, input_bytes, output_bytes = [0] * layers, 0, 0
    for tensor in tensors:
        found = IN_LAYER.fullmatch(tensor.name)
        if found is not None and int(found[1]) < layers:
            layers_bytes[int(found[1])] += tensor.size_bytes
        elif tensor.name.startswith("token_embd."):
            input_bytes += tensor.size_bytes
        elif tensor.name.startswith(("output.", "output_norm.")):
            output_bytes += tensor.size_bytes
        else:
            raise UnsupportedError("llama_cpp_tensor", name=tensor.name)
    return Parts(
        input_bytes=input_bytes,
        output_bytes=output_bytes,
        tied=not any(tensor.name == "output.weight" for tensor in tensors),
        layers_bytes=tuple(layers_bytes),
    )


def converted(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Tensors under a GGUF file's names with the types that the converter gives them when it does not quantise.

    Vectors, norms, routers and short convolutions become float32, and so does what has 64 bits.
    Source: conversion/base.py, ModelBase.prepare_tensors.
    """
    return tuple(
        Tensor(tensor.name, tensor.shape, DType.F32 if _stays_wide(tensor) else tensor.dtype) for tensor in tensors
    )


def _stays_wide(tensor: Tensor) -> bool:
    if tensor.dtype is DType.F64:
        return True
    wide = ("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "ssm_conv1d.weight")
    return len(tensor.shape) < 2 or tensor.name.endswith(wide)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is needed to tell where the bytes of a model lie."""

    parts: Parts
    layers: tuple[AnyLayerAttention, ...]
    keys: CacheFormat
    values: CacheFormat

    @property
    def most_layers(self) -> int:
        """All of them and the output layer."""
        return len(self.layers) + 1

    def weights_bytes(self, offloaded: int) -> int:
        """On the card with --ngl `offloaded`."""
        if offloaded < 1:
            return 0
        copy_bytes = self.parts.input_bytes if self.parts.tied else 0
        return copy_bytes + self.parts.output_bytes + sum(self.parts.layers_bytes[self._first(offloaded) :])

    def cache_bytes(self, offloaded: int, *, tokens: int, sequences: int) -> int:
        """K and V of the layers on the card."""
        return self._held(self.layers[self._first(offloaded) :], tokens, sequences, spans=("full", "sliding"))

    def state_bytes(self, offloaded: int, *, sequences: int) -> int:
        """Recurrent states of the layers on the card."""
        return self._held(self.layers[self._first(offloaded) :], 0, sequences, spans=("linear",))

    def host_bytes(self, offloaded: int, *, tokens: int, sequences: int) -> int:
        """What stays with the host: of the file, and of cache and states."""
        first = self._first(offloaded)
        file_bytes = self.parts.input_bytes + sum(self.parts.layers_bytes[:first])
        output_bytes = 0 if offloaded else self.parts.output_bytes
        spans = ("full", "sliding", "linear")
        return file_bytes + output_bytes + self._held(self.layers[:first], tokens, sequences, spans=spans)

    def _held(self, layers: Sequence[AnyLayerAttention], tokens: int, sequences: int, *, spans: tuple[str, ...]) -> int:
        return sum(
            llama_cpp_layer_bytes(layer, self.keys, self.values, tokens=tokens, sequences=sequences)
            for layer in layers
            if layer.span in spans
        )

    def _first(self, offloaded: int) -> int:
        """The first layer on the card; the output layer counts as the last."""
        return min(max(self.most_layers - offloaded, 0), len(self.layers))

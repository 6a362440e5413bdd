"""What llama.cpp offloads to a card: the output layer first, then layers from the last, with weights, cache and state.

Source: llama.cpp 0c1e57098, src/llama-model.cpp (load_tensors), src/llama-model-loader.cpp (create_tensor). Before pull
request 18148 of December 2025 the output layer came last.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...architectures.gguf import FAMILIES, stored_form
from ...bisection import largest
from ...checkpoint import DType, Tensor
from ...errors import UnsupportedError
from ...results.attention import AnyLayerAttention
from ...results.fit import Gpu, Requirement
from ...results.model import Report
from ...results.serving import LlamaCppReserve, Reserved, Serving
from ...spec import each_tensor
from ...structure.kv_cache import read_formats
from ..interface import Demand
from .cells import llama_cpp_layer_bytes, padded_cells

IN_LAYER = re.compile(r"blk\.(\d+)\..+")
# The compute buffer on a card, as a fork of llama.cpp printed it for Qwen3-235B-A22B: from 161.02 MiB (16,384 tokens) to 2,502.00
# (40,960 tokens, larger batches). It depends on model, batch, build and offloading, so we give no range.
COMPUTE_SOURCES = (
    "https://github.com/ikawrakow/ik_llama.cpp/blob/8337e4cd3861406fc04e0854b1409cd1b027fbc9"
    "/github-data/discussions/357%20-%20Qwen3%20-%20early%20performance%20comparisons.md",
    "https://github.com/ikawrakow/ik_llama.cpp/issues/514",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Bytes of a GGUF file's tensors by where llama.cpp puts them.

    input_bytes: the embedding, which stays on the host. output_bytes: the final norm, and the output matrix unless it is tied; a
    card then gets a copy of the embedding.
    """

    input_bytes: int
    output_bytes: int
    tied: bool
    layers_bytes: tuple[int, ...]


def parts_of(tensors: Sequence[Tensor], layers: int) -> Parts:
    """Bytes of a file's tensors by place. Raises UnsupportedError for an unknown tensor."""
    layers_bytes, input_bytes, output_bytes = [0] * layers, 0, 0
    for tensor in tensors:
        match = IN_LAYER.fullmatch(tensor.name)
        if match is not None and int(match[1]) < layers:
            layers_bytes[int(match[1])] += tensor.size_bytes
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
    """Tensors, under GGUF names, with the types that the converter writes without quantising.

    Vectors, norms, routers, short convolutions and float64 become float32.
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


class LlamaCppDemand(Demand):
    """What llama.cpp takes of a card, except its compute buffer. A context is a sequence's whole length.

    offloaded: layers on the card, as --ngl; the output layer counts as one, the last.
    """

    def __init__(self, report: Report, serving: Serving) -> None:
        self._layers = report.attention.layers
        formats = ["float16" if name == "auto" else name for name in serving.cache_format.split(",")]
        self._keys, self._values = (read_formats(formats[at], report.spec.dtype)[0] for at in (0, -1))
        self._parts = parts_of(_gguf_tensors(report), len(self._layers))
        self.most_context_tokens = report.spec.context_tokens
        self.layers = len(self._layers) + 1
        self.offloaded = self.layers if serving.offloaded is None else min(serving.offloaded, self.layers)

    @property
    def formats(self) -> tuple[str, str]:
        """The names of K's and V's formats."""
        return self._keys.name, self._values.name

    def terms(self, batch: int, context_tokens: int, offloaded: int) -> tuple[tuple[str, int], ...]:
        """Bytes on the card with --ngl `offloaded`: weights, K and V, and recurrent states of the offloaded layers."""
        first = self._first(offloaded)
        copy_bytes = self._parts.input_bytes if self._parts.tied else 0
        output_bytes = copy_bytes + self._parts.output_bytes if offloaded else 0
        layers = self._layers[first:]
        return (
            ("weights", output_bytes + sum(self._parts.layers_bytes[first:])),
            ("cache", self._cache_bytes([layer for layer in layers if layer.span != "linear"], batch, context_tokens)),
            ("state", self._cache_bytes([layer for layer in layers if layer.span == "linear"], batch, context_tokens)),
        )

    def host_bytes(self, batch: int, context_tokens: int) -> int:
        """Bytes of the file, the cache and the states that stay on the host."""
        first = self._first(self.offloaded)
        file_bytes = self._parts.input_bytes + sum(self._parts.layers_bytes[:first])
        output_bytes = 0 if self.offloaded else self._parts.output_bytes
        return file_bytes + output_bytes + self._cache_bytes(self._layers[:first], batch, context_tokens)

    def _cache_bytes(self, layers: Sequence[AnyLayerAttention], batch: int, context_tokens: int) -> int:
        return sum(
            llama_cpp_layer_bytes(layer, self._keys, self._values, tokens=context_tokens, sequences=batch)
            for layer in layers
        )

    def _first(self, offloaded: int) -> int:
        """The first layer on the card."""
        return min(max(self.layers - offloaded, 0), len(self._layers))

    def requirement(self, batch: int, context_tokens: int) -> Requirement:
        terms = self.terms(batch, context_tokens, self.offloaded)
        return Requirement(terms=terms, context_low_bytes=0, context_high_bytes=0, whole=False)

    def cache_tokens(self, batch: int, context_tokens: int) -> int:
        return batch * padded_cells(context_tokens)

    def most_offloaded(self, batch: int, context_tokens: int, available_bytes: int) -> int:
        """The most layers, the output layer included, that fit a card."""

        def fits(offloaded: int) -> bool:
            return sum(size_bytes for _, size_bytes in self.terms(batch, context_tokens, offloaded)) <= available_bytes

        return largest(fits, self.layers)

    def reserve(self, gpu: Gpu, batch: int, context_tokens: int) -> LlamaCppReserve:
        compute = Reserved(name="compute", least_bytes=0, most_bytes=None, sources=COMPUTE_SOURCES)
        cells = self.cache_tokens(batch, context_tokens)
        return LlamaCppReserve(
            offloaded=self.offloaded,
            layers=self.layers,
            cells=cells,
            cache_tokens=cells,
            cache_formats=self.formats,
            terms=(*super().reserve(gpu, batch, context_tokens).terms, compute),
            host_bytes=self.host_bytes(batch, context_tokens),
            most_offloaded=self.most_offloaded(batch, context_tokens, gpu.room_bytes),
        )


def _gguf_tensors(report: Report) -> Sequence[Tensor]:
    """A GGUF file's own tensors, else those that llama.cpp's converter would write without quantising."""
    if report.known.unread is not None:
        raise report.known.unread
    quantised = report.known.quantised
    if quantised is not None and quantised.method == "gguf" and report.tensors is not None:
        return report.tensors
    families = {family for family, _ in FAMILIES.values()}
    if report.spec.built or report.spec.family not in families:
        name = report.spec.class_name if report.spec.family in families else report.spec.family
        raise UnsupportedError("llama_cpp_form", found=name, known=", ".join(sorted(families)))
    if quantised is not None:
        raise UnsupportedError("llama_cpp_packed", method=quantised.method)
    return converted([part for tensor in each_tensor(report.tree) for part in stored_form(tensor)])

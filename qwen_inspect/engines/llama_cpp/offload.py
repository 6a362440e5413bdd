"""What llama.cpp offloads to a card: the output layer first, then layers from the last, with weights, cache and state.

Source: llama.cpp 0c1e57098, src/llama-model.cpp (load_tensors), src/llama-model-loader.cpp (create_tensor). Before pull
request 18148 of December 2025 the output layer came last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...architectures.gguf_hparams import GgufHyperparameters
from ...architectures.gguf_keys import read_hyperparameters
from ...architectures.gguf_writing import as_converted
from ...bisection import largest
from ...checkpoint import DType, Tensor
from ...errors import UnsupportedError
from ...results.fit import Gpu, Requirement
from ...results.model import Report
from ...results.serving import LlamaCppReserve, Reserved, Serving
from ...structure.kept_design import known_architecture
from ...structure.kv_cache import read_formats
from ..interface import Demand
from .cells import cells_bytes, check_formats, padded_cells, states_bytes
from .options import IN_FIRST_LAYER, INPUT

IN_LAYER = re.compile(r"blk\.([0-9]{1,4})\..+")
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

    input_bytes: the embedding, which stays on the host. output_bytes: all that belongs to no layer. copied_bytes: of the
    embedding, if it is the output matrix too, of which a card gets a copy.
    """

    input_bytes: int
    output_bytes: int
    copied_bytes: int
    layers_bytes: tuple[int, ...]


def parts_of(tensors: Sequence[Tensor], layers: int, loaded: int) -> Parts:
    """Bytes of a file's tensors by place. loaded: the layers before those for multi-token prediction, which are not loaded.

    Raises UnsupportedError for an encoder's tensors.
    """
    layers_bytes, input_bytes, output_bytes = [0] * layers, 0, 0
    for tensor in tensors:
        match = IN_LAYER.fullmatch(tensor.name)
        if match is not None and int(match[1]) < layers:
            layers_bytes[int(match[1])] += tensor.size_bytes if int(match[1]) < loaded else 0
        elif tensor.name.startswith(INPUT):
            input_bytes += tensor.size_bytes
        elif tensor.name.startswith(IN_FIRST_LAYER):
            layers_bytes[0] += tensor.size_bytes
        elif match is not None or tensor.name.startswith(("enc.", "dec.")):
            raise UnsupportedError("llama_cpp_tensor", name=tensor.name)
        else:
            output_bytes += tensor.size_bytes
    return Parts(
        input_bytes=input_bytes,
        output_bytes=output_bytes,
        copied_bytes=0
        if any(tensor.name == "output.weight" for tensor in tensors)
        else sum(tensor.size_bytes for tensor in tensors if tensor.name == "token_embd.weight"),
        layers_bytes=tuple(layers_bytes),
    )


class LlamaCppDemand(Demand):
    """What llama.cpp takes of a card, except its compute buffer. A context is a sequence's whole length.

    offloaded: layers on the card, as --ngl; the output layer counts as one, the last.
    """

    def __init__(self, report: Report, serving: Serving) -> None:
        self._model, tensors = gguf_model(report)
        formats = ["float16" if name == "auto" else name for name in serving.cache_format.split(",")]
        self._keys, self._values = (read_formats(formats[at], report.spec.dtype)[0] for at in (0, -1))
        check_formats(self._keys, self._values)
        self._parts = parts_of(tensors, self._model.all_layers, self._model.layers)
        self.most_context_tokens = report.spec.context_tokens
        self.layers = self._model.all_layers + 1
        self.offloaded = self.layers if serving.offloaded is None else min(serving.offloaded, self.layers)

    @property
    def formats(self) -> tuple[str, str]:
        """The names of K's and V's formats."""
        return self._keys.name, self._values.name

    @property
    def windowed(self) -> bool:
        """Whether some layers keep a window."""
        return any(self._model.windowed)

    def terms(self, batch: int, context_tokens: int, offloaded: int) -> tuple[tuple[str, int], ...]:
        """Bytes on the card with --ngl `offloaded`: weights, K and V, and recurrent states of the offloaded layers."""
        first = self._first(offloaded)
        output_bytes = self._parts.copied_bytes + self._parts.output_bytes if offloaded else 0
        cache_bytes, state_bytes = self._kept(range(first, self._model.all_layers), batch, context_tokens)
        return (
            ("weights", output_bytes + sum(self._parts.layers_bytes[first:])),
            ("cache", cache_bytes),
            ("state", state_bytes),
        )

    def host_bytes(self, batch: int, context_tokens: int) -> int:
        """Bytes of the file, the cache and the states that stay on the host."""
        first = self._first(self.offloaded)
        file_bytes = self._parts.input_bytes + sum(self._parts.layers_bytes[:first])
        output_bytes = 0 if self.offloaded else self._parts.output_bytes
        return file_bytes + output_bytes + sum(self._kept(range(first), batch, context_tokens))

    def _kept(self, layers: Iterable[int], batch: int, context_tokens: int) -> tuple[int, int]:
        """Bytes of the cells and of the states of these layers."""
        model, kept = self._model, tuple(layers)
        cells = (
            cells_bytes(model, layer, self._keys, self._values, tokens=context_tokens, sequences=batch)
            for layer in kept
        )
        return sum(cells), sum(states_bytes(model, layer, sequences=batch) for layer in kept)

    def _first(self, offloaded: int) -> int:
        """The first layer on the card."""
        return min(max(self.layers - offloaded, 0), self._model.all_layers)

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


def gguf_model(report: Report) -> tuple[GgufHyperparameters, Sequence[Tensor]]:
    """The hyperparameters and the tensors of `gguf_source`; UnsupportedError too if the cache is not known here."""
    metadata, tensors = gguf_source(report)
    model = read_hyperparameters(metadata, tensors)
    if not model.cache_is_known:
        raise UnsupportedError("gguf_cache_unknown", found=model.architecture)
    return model, tensors


def gguf_source(report: Report) -> tuple[Mapping[str, Any], Sequence[Tensor]]:
    """Metadata and tensors of a GGUF file, else of the file that llama.cpp's converter would write without quantising.

    UnsupportedError for quantised files of other kinds, and for a model whose conversion is not known here.
    """
    if report.known.unread is not None:
        raise report.known.unread
    config, quantised = report.config or {}, report.known.quantised
    if "general.architecture" in config and report.tensors is not None:
        return config, report.tensors
    if quantised is not None:
        raise UnsupportedError("llama_cpp_packed", method=quantised.method)
    dtype = DType.F32 if report.spec.dtype is DType.F64 else report.spec.dtype
    return as_converted(config, known_architecture(config), dtype)

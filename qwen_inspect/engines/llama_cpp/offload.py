"""What llama.cpp takes of a card by `fit --engine llama.cpp`: the output layer first, then layers from the last.

Source: llama.cpp b11549, src/llama-model.cpp (load_tensors), src/llama-model-loader.cpp (create_tensor). Before pull request
18148 of December 2025 the output layer came last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...architectures.gguf_writing import as_converted
from ...bisection import largest
from ...checkpoint import DType, Tensor
from ...errors import UnsupportedError
from ...results.fit import Gpu, Requirement
from ...results.llama_cpp import Buffer
from ...results.model import Report
from ...results.serving import LlamaCppReserve, Reserved, Serving
from ...structure.kept_design import known_architecture
from ...structure.kv_cache import read_formats
from ..interface import Demand
from .buffers import GgufModel, Plan, padded
from .builds import DEFAULT
from .options import LlamaCppOptions

# The compute buffer on a card, as a fork of llama.cpp printed it for Qwen3-235B-A22B: from 161.02 MiB (16,384 tokens) to 2,502.00
# (40,960 tokens, larger batches). A search over contexts does without it; `fit --llama-cpp` has it.
COMPUTE_SOURCES = (
    "https://github.com/ikawrakow/ik_llama.cpp/blob/8337e4cd3861406fc04e0854b1409cd1b027fbc9"
    "/github-data/discussions/357%20-%20Qwen3%20-%20early%20performance%20comparisons.md",
    "https://github.com/ikawrakow/ik_llama.cpp/issues/514",
)
CACHE_NAMES: Mapping[str, str] = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
CARD = "CUDA0"


class LlamaCppDemand(Demand):
    """What llama.cpp takes of a card, except its compute buffer. A context is a sequence's whole length.

    offloaded: layers on the card, as --ngl; the output layer counts as one, the last.
    """

    def __init__(self, report: Report, serving: Serving) -> None:
        metadata, tensors = gguf_source(report)
        for tensor in tensors:
            if tensor.name.startswith(("enc.", "dec.")):
                raise UnsupportedError("llama_cpp_tensor", name=tensor.name)
        self._model = GgufModel(metadata, tuple(tensors))
        formats = ["float16" if name == "auto" else name for name in serving.cache_format.split(",")]
        keys, values = (read_formats(formats[at], report.spec.dtype)[0].name for at in (0, -1))
        self.formats = keys, values
        self._options = LlamaCppOptions(
            key_type=CACHE_NAMES.get(keys, keys), value_type=CACHE_NAMES.get(values, values), sequences=1
        )
        read = self._model.hyperparameters
        if not read.cache_is_known:
            raise UnsupportedError("gguf_cache_unknown", found=read.architecture)
        self.most_context_tokens = report.spec.context_tokens
        self.layers = read.all_layers + 1
        self.offloaded = self.layers if serving.offloaded is None else min(serving.offloaded, self.layers)
        self._plans: dict[int, tuple[Plan, tuple[Buffer, ...]]] = {}

    def _buffers(self, batch: int, context_tokens: int, offloaded: int) -> tuple[Buffer, ...]:
        """Weights, cache and states; weights are the same for every context."""
        if offloaded not in self._plans:
            options = replace(self._options, offloaded=offloaded, context_tokens=context_tokens)
            plan = Plan(self._model, options, [1], DEFAULT)
            self._plans[offloaded] = plan, tuple(plan.weights())
        plan, weights = self._plans[offloaded]
        plan = plan.at(context_tokens=batch * padded(context_tokens), sequences=batch)
        return (*weights, *plan.cache(), *plan.states())

    @property
    def windowed(self) -> bool:
        """Whether some layers keep a window."""
        return any(self._model.hyperparameters.windowed)

    def terms(self, batch: int, context_tokens: int, offloaded: int) -> tuple[tuple[str, int], ...]:
        """Bytes on the card with --ngl `offloaded`: weights, K and V, and recurrent states of the offloaded layers."""
        on_card = [one for one in self._buffers(batch, context_tokens, offloaded) if one.device == CARD]
        return tuple(
            (name, sum(one.low_bytes for one in on_card if one.kind == name)) for name in ("weights", "cache", "state")
        )

    def host_bytes(self, batch: int, context_tokens: int) -> int:
        """Bytes of the file, the cache and the states that stay on the host."""
        buffers = self._buffers(batch, context_tokens, self.offloaded)
        return sum(one.low_bytes for one in buffers if one.device != CARD)

    def requirement(self, batch: int, context_tokens: int) -> Requirement:
        terms = self.terms(batch, context_tokens, self.offloaded)
        return Requirement(terms=terms, context_low_bytes=0, context_high_bytes=0, whole=False)

    def cache_tokens(self, batch: int, context_tokens: int) -> int:
        return batch * padded(context_tokens)

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

"""What llama.cpp takes of a card by `fit --engine llama.cpp`: the output layer first, then layers from the last.

Source: llama.cpp b11549, src/llama-model.cpp (load_tensors), src/llama-model-loader.cpp (create_tensor). Before pull request
18148 of December 2025 the output layer came last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ...architectures.gguf_writing import as_converted
from ...checkpoint import DType, Tensor
from ...errors import UnsupportedError
from ...results.fit import Gpu, Requirement
from ...results.llama_cpp import Buffer
from ...results.model import Report
from ...results.serving import LlamaCppReserve, Reserved, Serving
from ...structure.kv_cache import read_formats
from ...typed import Any
from ..interface import Demand
from .buffers import GgufModel, Plan, flash_attention_is_possible
from .builds import DEFAULT
from .layer_cells import CACHE_NAMES, CELLS_MULTIPLE, padded
from .options import MOST_SEQUENCES, LlamaCppOptions
from .reach import MARGIN_BYTES, Judge, fewest_host_experts, most_offloaded

CARD = "CUDA0"
TERMS = ("weights", "cache", "state", "compute")


class LlamaCppDemand(Demand):
    """What llama-server takes of a card, as `fit --llama-cpp` computes it. A context is a sequence's whole length.

    offloaded: layers on the card, as --ngl; the output layer counts as one, the last. The CUDA context and the kernels' memory
    are between nothing and llama.cpp's own margin. Where the graph is not known, the compute buffer is a lower bound.
    """

    quick = False
    context_step = CELLS_MULTIPLE

    def __init__(self, report: Report, serving: Serving) -> None:
        metadata, tensors = gguf_source(report)
        for tensor in tensors:
            if tensor.name.startswith(("enc.", "dec.")):
                raise UnsupportedError("llama_cpp_tensor", name=tensor.name)
        model = GgufModel(metadata, tuple(tensors))
        formats = ["float16" if name == "auto" else name for name in serving.cache_format.split(",")]
        keys, values = (read_formats(formats[at], report.spec.dtype)[0].name for at in (0, -1))
        self.formats = keys, values
        read = model.hyperparameters
        if not read.cache_is_known:
            raise UnsupportedError("gguf_cache_unknown", found=read.architecture)
        self.most_context_tokens = report.spec.context_tokens
        self.layers = read.all_layers + 1
        self.offloaded = self.layers if serving.offloaded is None else min(serving.offloaded, self.layers)
        options = LlamaCppOptions(
            key_type=CACHE_NAMES.get(keys, keys),
            value_type=CACHE_NAMES.get(values, values),
            flash_attention=flash_attention_is_possible(read) and serving.flash_attention is not False,
            micro_batch=serving.micro_batch or LlamaCppOptions().micro_batch,
            offloaded=self.offloaded,
            context_tokens=CELLS_MULTIPLE,
            sequences=1,
        )
        self._plan = Plan(model, options, [1], DEFAULT)
        self._weights = tuple(self._plan.weights())
        self._known: dict[tuple[int, int], tuple[Buffer, ...]] = {}

    def plan(self, batch: int, context_tokens: int) -> Plan:
        return self._plan.at(context_tokens=batch * padded(context_tokens), sequences=batch)

    def buffers(self, batch: int, context_tokens: int) -> tuple[Buffer, ...]:
        asked = batch, padded(context_tokens)
        if asked not in self._known:
            self._known[asked] = (*self._stored(*asked), *self.plan(*asked).compute())
        return self._known[asked]

    def _stored(self, batch: int, context_tokens: int) -> tuple[Buffer, ...]:
        """All but the compute buffers; weights are the same for every context."""
        plan = self.plan(batch, context_tokens)
        return (*self._weights, *plan.cache(), *plan.states(), plan.output())

    @property
    def windowed(self) -> bool:
        """Whether some layers keep a window."""
        return any(self._plan.read.windowed)

    def requirement(self, batch: int, context_tokens: int) -> Requirement:
        buffers = self.buffers(batch, context_tokens)
        on_card, known = [buffer for buffer in buffers if buffer.device == CARD], _are_known(buffers)
        return Requirement(
            terms=tuple((kind, sum(one.low_bytes for one in on_card if one.kind == kind)) for kind in TERMS),
            context_low_bytes=0,
            context_high_bytes=MARGIN_BYTES if known else 0,
            whole=known,
        )

    def fits(self, batch: int, context_tokens: int, room_bytes: int) -> bool:
        if batch > MOST_SEQUENCES or _on_card(self._stored(batch, context_tokens)) > room_bytes:
            return False
        return self.held_bytes(batch, context_tokens) <= room_bytes

    def cache_tokens(self, batch: int, context_tokens: int) -> int:
        return batch * padded(context_tokens)

    def most_offloaded(self, batch: int, context_tokens: int, available_bytes: int) -> int:
        """The most layers, the output layer included, that fit a card."""
        return most_offloaded(self.plan(batch, context_tokens), self._judge(batch, context_tokens, available_bytes))

    def _judge(self, batch: int, context_tokens: int, available_bytes: int) -> Judge:
        margin = self.requirement(batch, context_tokens).context_high_bytes
        return lambda buffers: _on_card(buffers) + margin <= available_bytes

    def reserve(self, gpu: Gpu, batch: int, context_tokens: int) -> LlamaCppReserve:
        buffers, required = self.buffers(batch, context_tokens), self.requirement(batch, context_tokens)
        plan, judge = self.plan(batch, context_tokens), self._judge(batch, context_tokens, gpu.room_bytes)
        known = required.whole
        cells = self.cache_tokens(batch, context_tokens)
        return LlamaCppReserve(
            offloaded=self.offloaded,
            layers=self.layers,
            cells=cells,
            cache_tokens=cells,
            cache_formats=self.formats,
            terms=(
                *(
                    Reserved(name=kind, least_bytes=size, most_bytes=size if known or kind != "compute" else None)
                    for kind, size in required.terms
                ),
                Reserved(name="context", least_bytes=0, most_bytes=MARGIN_BYTES if known else None),
            ),
            buffers=buffers,
            host_bytes=sum(buffer.low_bytes for buffer in buffers if buffer.device != CARD),
            most_offloaded=most_offloaded(plan, judge),
            host_experts=fewest_host_experts(plan, judge) if known else None,
        )


def _are_known(buffers: Iterable[Buffer]) -> bool:
    return all(buffer.size_bytes is not None for buffer in buffers)


def _on_card(buffers: Iterable[Buffer]) -> int:
    return sum(buffer.low_bytes for buffer in buffers if buffer.device == CARD)


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
    from ...structure.kept_design import known_architecture  # not for files of GGUF

    dtype = DType.F32 if report.spec.dtype is DType.F64 else report.spec.dtype
    return as_converted(config, known_architecture(config), dtype)

"""Every buffer that llama.cpp prints while it loads a model: weights, cache, states, computation and output.

Source: llama.cpp b11549 and 0c1e57098, src/llama-context.cpp, llama-kv-cache.cpp, llama-kv-cache-iswa.cpp,
llama-memory-recurrent.cpp, llama-model.cpp (load_tensors).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property

from ...architectures.gguf_hparams import GgufHyperparameters
from ...architectures.gguf_keys import read_hyperparameters
from ...checkpoint import Tensor
from ...errors import UnsupportedError, UsageError
from ...results.llama_cpp import Buffer
from ...typed import Any
from ...values import dataclass, replace
from .builds import Build
from .cells import Cells, aligned, sizes_of
from .ggml.repacking import REPACKED, can_be_repacked
from .ggml.scheduler import ALIGNMENT, BLAS, HOST, HOST_ALIGNMENT, Scheduler
from .ggml.tensors import CACHE_TYPES, F32, Type
from .graphs.decoder import Decoder
from .graphs.design import ALWAYS_COPIED, DESIGNS, FEWEST_POSITIONS, READS_EMBEDDING, WITHOUT_OUTPUT, Batch, Design
from .graphs.parts import type_of
from .graphs.prediction import Prediction
from .options import IN_LAYER, INPUT, NO_DRAFT, LlamaCppOptions, Placement, cards_used, place

FEW_TOKENS = 32
NO_ROWS = 10_000  # a build near the end of CUDA's split buffers: 36667c8e has them, b10178 has none
FLASH_HEADS = (40, 64, 72, 80, 96, 112, 128, 256, 512)
FLASH_LATENTS = ((576, 512), (320, 256), (192, 128))


@dataclass(frozen=True)
class GgufModel:
    """A GGUF file's metadata and tensors, in the file's order."""

    metadata: Mapping[str, Any]
    tensors: tuple[Tensor, ...]

    @cached_property
    def hyperparameters(self) -> GgufHyperparameters:
        return read_hyperparameters(self.metadata, self.tensors)

    @cached_property
    def by_name(self) -> Mapping[str, Tensor]:
        return {tensor.name: tensor for tensor in self.tensors}

    @property
    def tied(self) -> bool:
        """Whether the output layer has a copy of the embedding."""
        without_copy = READS_EMBEDDING | WITHOUT_OUTPUT
        return "output.weight" not in self.by_name and self.hyperparameters.architecture not in without_copy


def flash_attention_is_possible(read: GgufHyperparameters) -> bool:
    """Whether CUDA has a kernel for the sizes of the heads. Source: ggml-cuda/fattn.cu, ggml_cuda_get_best_fattn_kernel."""
    if DESIGNS.get(read.architecture, Design()).never_flash:
        return False
    if read.latent:
        return (read.key_length, read.value_length) in FLASH_LATENTS
    pairs = {(read.key_length, read.value_length)}
    if any(read.windowed):
        pairs.add((read.key_length_swa, read.value_length_swa))
    attending = any(read.attends(layer) for layer in range(read.all_layers))
    return not attending or all(keys == values and keys in FLASH_HEADS for keys, values in pairs)


class Plan:
    """A model under a command of llama.cpp, on cards with `card_bytes` free each.

    draft_model: of -md. predicts: it is the context that drafts with the model's own layers for multi-token prediction. adapters:
    of --lora. pins_layers: whether what a layer computes is pinned to its card, which llama.cpp forgets where it only measures.
    """

    def __init__(
        self,
        model: GgufModel,
        options: LlamaCppOptions,
        card_bytes: Sequence[int],
        build: Build,
        *,
        draft_model: GgufModel | None = None,
        predicts: bool = False,
        adapters: Sequence[GgufModel] = (),
    ) -> None:
        self.model, self.options, self.build, self.adapters = model, options, build, adapters
        self.draft_model, self.predicts = draft_model, predicts
        self.pins_layers = True
        self.read = model.hyperparameters
        design = DESIGNS.get(self.read.architecture, Design())
        if design.never_flash:
            self.options = options = replace(options, flash_attention=False)
        for name in (options.key_type, options.value_type):
            if name not in CACHE_TYPES:
                raise UnsupportedError("llama_cpp_cache_format", found=name, known=", ".join(CACHE_TYPES))
        if CACHE_TYPES[options.value_type].numbers > 1 and not options.flash_attention:
            raise UsageError("llama_cpp_quantised_values", format=options.value_type)
        for name, head in ((options.key_type, self.read.key_length), (options.value_type, self.read.value_length)):
            if head % CACHE_TYPES[name].numbers:  # llama_init_from_model
                block = CACHE_TYPES[name].numbers
                raise UnsupportedError("cache_not_whole_blocks", format=name, block=block, elements=head)
        self.sizes = sizes_of(self.read, options, build, predicts=predicts)
        self.card_bytes = card_bytes
        if options.split_mode == "row" and card_bytes and build.number >= NO_ROWS:
            raise UsageError("llama_cpp_split_row", build=build.name)
        used = {f"CUDA{at}": card_bytes[at] for at in cards_used(options, len(card_bytes))}
        self.cards = list(used)
        self.placement: Placement = place(
            [tensor.name for tensor in model.tensors],
            self.read.all_layers,
            options,
            used,
            output_first=build.output_first,
            output_norm=design.output_norm,
        )

    def at(self, *, context_tokens: int, sequences: int) -> Plan:
        """The same with another context and other sequences, each with cells of its own."""
        plan = copy(self)
        plan.options = replace(self.options, context_tokens=context_tokens, sequences=sequences)
        plan.sizes = sizes_of(self.read, plan.options, self.build, predicts=self.predicts)
        return plan

    def changed(self, **options: Any) -> Plan:
        """The same with other options."""
        return self.with_options(replace(self.options, **options))

    def with_options(self, options: LlamaCppOptions) -> Plan:
        return Plan(
            self.model,
            options,
            self.card_bytes,
            self.build,
            draft_model=self.draft_model,
            predicts=self.predicts,
            adapters=self.adapters,
        )

    def built(self, build: Build) -> Plan:
        """The same of another build."""
        return Plan(
            self.model, self.options, self.card_bytes, build, draft_model=self.draft_model, adapters=self.adapters
        )

    @property
    def drafts(self) -> tuple[Plan, ...]:
        """The context that drafts, if there is one. Source: common_speculative_init_result."""
        draft = self.options.draft
        if self.predicts or (self.draft_model is None and not draft.predicts):
            return ()
        options = replace(
            self.options,
            context_tokens=self.sizes.context_tokens,
            key_type=draft.key_type,
            value_type=draft.value_type,
            draft=NO_DRAFT,
        )
        if self.draft_model is None:
            return (Plan(self.model, options, self.card_bytes, self.build, predicts=True),)
        flash = options.flash_attention and flash_attention_is_possible(self.draft_model.hyperparameters)
        devices = options.devices if draft.devices is None else draft.devices
        options = replace(
            options, offloaded=draft.offloaded, overrides=draft.overrides, flash_attention=flash, devices=devices
        )
        return (Plan(self.draft_model, options, self.card_bytes, self.build),)

    @property
    def layers(self) -> int:
        """The layers that -ngl counts, the output layer included."""
        return self.read.all_layers + 1

    @property
    def cache_devices(self) -> tuple[str, ...]:
        return self.placement.layers if self.options.cache_on_cards else (HOST,) * self.read.all_layers

    @property
    def graph_is_known(self) -> bool:
        design = DESIGNS.get(self.read.architecture)
        known = design is not None and self.build.number >= design.since
        return known and self.options.split_mode != "row"

    def buffers(self) -> tuple[Buffer, ...]:
        own = (*self.weights(), *self.lora(), *self.cache(), *self.states(), *self.compute(), self.output())
        return (*own, *self._drafting(lambda plan: plan.buffers()))

    def _drafting(self, buffers: Callable[[Plan], Sequence[Buffer]]) -> Iterator[Buffer]:
        for plan in self.drafts:
            yield from (replace(buffer, context="mtp" if plan.predicts else "draft") for buffer in buffers(plan))

    def stored(self) -> tuple[Buffer, ...]:
        """All but compute buffers, which take time to know."""
        own = (*self.weights(), *self.lora(), *self.cache(), *self.states(), self.output())
        return (*own, *self._drafting(lambda plan: plan.stored()))

    def weights(self) -> Iterator[Buffer]:
        """Tensors by device. Mapped into memory, the host's are a stretch of each file; else a buffer with padding."""
        if self.predicts:
            return
        totals: dict[str, int] = defaultdict(int)
        for name, tensor in self._loaded():
            place = self._buffer_of(name, tensor)
            if place in self.cards:
                totals[place] += aligned(_card_bytes(tensor), ALIGNMENT)
            elif place == REPACKED or not self.options.memory_mapped:
                totals[place] += aligned(tensor.size_bytes, HOST_ALIGNMENT)
        for place in (*self.cards, *(place for place in totals if place not in self.cards)):
            if totals[place]:
                yield Buffer(kind="weights", device=place, size_bytes=totals[place])
        if self.options.memory_mapped:
            device = HOST if self.build.fork else "CPU_Mapped"
            yield from (Buffer(kind="weights", device=device, size_bytes=size) for size in self._mapped())

    def _loaded(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors; a tied output is a copy of the embedding where it lies in another buffer, or is made before it."""
        for tensor in self.model.tensors:
            if not self._is_skipped(tensor.name):
                yield tensor.name, tensor
        embedding = self.model.by_name.get("token_embd.weight")
        if self.model.tied and embedding is not None:
            apart = self._buffer_of("output.weight", embedding) != self._buffer_of(embedding.name, embedding)
            if apart or self.read.architecture in ALWAYS_COPIED:
                yield "output.weight", embedding

    def _buffer_of(self, name: str, tensor: Tensor) -> str:
        """A card, or a kind of the host's: pinned if there is a card, repacked, or plain. Source: make_cpu_buft_list."""
        place, lists = self.placement.tensors[name], self.build.lists_buffers
        if place != HOST:
            return place
        if self.cards and self.options.host_buffers and (lists or name not in self.placement.moved):
            return "CUDA_Host"
        if lists and self.options.extra_buffers and not name.startswith(INPUT) and len(tensor.shape) > 1:
            rows, dimensions = tensor.shape[-2], len(tensor.shape)
            if can_be_repacked(type_of(tensor).name, rows, dimensions, experts="_exps" in name):
                return REPACKED
        return HOST

    def _is_skipped(self, name: str) -> bool:
        """Whether it is of a layer for multi-token prediction, which is loaded for that alone."""
        match = IN_LAYER.match(name)
        skips = self.build.skips_prediction and not self.options.draft.predicts
        return match is not None and skips and int(match[1]) >= self.read.layers

    def _mapped(self) -> Iterator[int]:
        """Of each file, from its first tensor on the host to its last; the fork has what -ot puts there apart.

        Source: llama_model_loader::get_mapping_range; ik_llama.cpp 45cd1bcd5, src/llama.cpp (llm_load_tensors).
        """
        alignment = int(self.model.metadata.get("general.alignment", 32))
        at = 0
        ends: dict[tuple[str | None, bool], tuple[int, int]] = {}
        current: str | None = None
        for tensor in self.model.tensors:
            if tensor.file != current:
                at, current = 0, tensor.file
            place = self._buffer_of(tensor.name, tensor)
            if place not in (*self.cards, REPACKED) and not self._is_skipped(tensor.name):
                key = current, self.build.fork and tensor.name in self.placement.moved
                first, _ = ends.get(key, (at, 0))
                ends[key] = first, at + tensor.size_bytes
            at = aligned(at + tensor.size_bytes, alignment)
        return (last - first for first, last in ends.values())

    def lora(self) -> Iterator[Buffer]:
        """Each adapter's tensors, with the weights that they change. Source: llama_adapter_lora_init_impl."""
        for adapter in self.adapters:
            totals: dict[str, int] = defaultdict(int)
            for tensor in adapter.tensors:
                weight = tensor.name.removesuffix(".lora_a").removesuffix(".lora_b")
                if weight == tensor.name:
                    continue
                device = self.placement.tensors.get(weight)
                if device is None:
                    raise UsageError("llama_cpp_adapter", name=weight)
                size_bytes = tensor.size_bytes if device == HOST else _card_bytes(tensor)
                totals[device] += aligned(size_bytes, HOST_ALIGNMENT if device == HOST else ALIGNMENT)
            for device, size_bytes in totals.items():
                yield Buffer(kind="adapter", device=device, size_bytes=size_bytes)

    def cache(self) -> Iterator[Buffer]:
        return self._cells.cache()

    def states(self) -> Iterator[Buffer]:
        return self._cells.states()

    @property
    def _cells(self) -> Cells:
        return Cells(
            read=self.read,
            options=self.options,
            build=self.build,
            sizes=self.sizes,
            devices=self.cache_devices,
            predicts=self.predicts,
        )

    def output(self) -> Buffer:
        """Logits, and states with --embedding, on the host, a row for each sequence. Source: llama_context::output_reserve."""
        states = self.read.embedding_out if self.options.embedding or self.read.architecture == "t5" else 0
        rows = self.sizes.sequences * ((self.read.vocabulary or 0) + states)
        on_card = self.placement.output != HOST or (self.build.fork and self.cards)
        device = "CUDA_Host" if on_card else HOST
        return Buffer(kind="output", device=device, size_bytes=rows * F32.block_bytes if rows else None)

    def compute(self) -> tuple[Buffer, ...]:
        """By device; of an architecture whose graph is not known here, at least the output layer's.

        With adapters they are those of their first use, for which llama.cpp reserves them again.
        """
        found = self._compute_bytes() if self.graph_is_known else None
        if found is None:
            least = self.sizes.outputs * ((self.read.vocabulary or 0) + self.read.embedding) * F32.block_bytes
            return tuple(
                Buffer(
                    kind="compute",
                    device=device,
                    size_bytes=None,
                    least_bytes=least if device == self.placement.output else 0,
                )
                for device in (*self.cards, HOST)
            )
        host = "CUDA_Host" if self.cards else HOST
        full = (self._compute_bytes(self.sizes.cells) if self.grows else None) or found
        return tuple(
            Buffer(
                kind="compute",
                device={HOST: host, BLAS: HOST}.get(device, device),
                size_bytes=size_bytes if full[device] <= size_bytes else None,
                least_bytes=size_bytes,
                most_bytes=max(size_bytes, full[device]),
            )
            for device, size_bytes in found.items()
            if size_bytes
        )

    @property
    def grows(self) -> bool:
        """Whether compute buffers grow with the positions that the cache holds, from those printed at the start."""
        return self.graph_is_known and self.read.architecture == "minimax-m3" and self.options.flash_attention

    def _compute_bytes(self, positions: int = FEWEST_POSITIONS) -> Mapping[str, int] | None:
        """None for a file whose layers have other parts than its architecture's graph here. positions: that the cache holds."""
        sizes = self.sizes
        batch = Batch(
            tokens=sizes.tokens,
            outputs=sizes.outputs,
            sequences=sizes.sequences,
            drafted=self.options.draft.snapshots(self.read.architecture),
            cells=sizes.cells,
            window_cells=sizes.window_cells,
            streams=sizes.streams,
            flash_attention=self.options.flash_attention,
            key_type=CACHE_TYPES[self.options.key_type],
            value_type=CACHE_TYPES[self.options.value_type],
            build=self.build,
            fused_experts=self.options.fused_experts,
            attends_on_host=not self.options.cache_on_cards,
            embeds=self.options.embedding,
            pooling=self.options.pooling,
            positions=positions,
        )
        caches = {f"cache.{layer}": device for layer, device in enumerate(self.cache_devices)}
        placed = {**self.placement.tensors, **caches}
        if self.pins_layers and (self.placement.full_offload or sizes.tokens < FEW_TOKENS):
            placed |= {f"layer.{layer}": device for layer, device in enumerate(self.placement.layers)}
        try:
            decoder = Prediction if self.predicts else Decoder
            adapters = [adapter.by_name for adapter in self.adapters]
            graph = decoder(self.read, self.model.metadata, self.model.by_name, placed, batch, adapters).build()
        except UnsupportedError:
            return None
        pipeline = (
            len(self.cards) > 1
            and self.placement.full_offload
            and self.options.split_mode == "layer"
            and self.options.cache_on_cards
            and not self.options.overrides
        )
        scheduler = Scheduler(
            self.cards,
            self.build,
            pipeline=pipeline,
            offloads=self.options.operations_offloaded,
            repacked=self.options.repacked or (self.build.lists_buffers and self.options.extra_buffers),
            pinned=self.options.host_buffers,
        )
        return scheduler.buffers(graph)


def _card_bytes(tensor: Tensor) -> int:
    """Bytes that a weight takes on a card, whose quantised rows are padded."""
    kind: Type = type_of(tensor)
    width = tensor.shape[-1] if tensor.shape else 1
    padding = kind.row_bytes(512 - width % 512) if kind.numbers > 1 and width % 512 else 0
    return tensor.size_bytes + padding

"""What vLLM takes of a card: weights, its profile run, what lies outside of PyTorch, and cache blocks in the rest.

Source: vLLM 0.19.0, v1/worker/gpu_worker.py, and the files named in each function
"""

from __future__ import annotations

from functools import cached_property

from ...checkpoint import DType
from ...errors import UnavailableError, UnsupportedError, UsageError
from ...results.attention import WITH_STATES
from ...results.fit import Gpu, Requirement
from ...results.model import Report
from ...results.serving import Asleep, Capacity, Reserved, Serving, SpeculativeMethod, VllmReserve
from ...structure.kv_cache import checkpoint_format, read_formats
from ...units import GIB, MIB, size
from ...values import replace
from ..interface import Demand
from .adapters import slot_bytes
from .blocks import (
    BLOCK_FORMATS,
    BLOCK_TOKENS,
    BlockPool,
    Drafting,
    block_pool,
    latent_pool,
    latent_width,
    state_dtypes,
    text_part,
)
from .calibrating import calibrated, matching
from .capacity import capacity, requested_bytes
from .collectives import Ranks
from .compressed import check_compressed, compressed_pool, has_compressed_keys
from .connectors import check_connectors, check_groups
from .drafter import Drafter, drafter_of, prediction_count, proposed_tokens
from .encoder import deepstack_bytes, encoder, unsized
from .mamba import mamba_pool, mamba_sizes
from .outside import asleep, graphs, non_torch
from .profile import Card, ProfileRun, expert_bytes, peak_bytes
from .releases import release
from .short_conv import convolution_pool, has_short_convolutions
from .sparse import LOGITS_BYTES, indexed_pool, sparse_index
from .weights import last_stage, rank_weights, rounding
from .widths import decoder_widths

DEEPSTACK_KEPT = (0, 28)  # from then on not without the tower. Source: models/qwen3_vl.py
PEAK_MARGIN_BYTES = 16 * MIB  # of the allocator's blocks, which are rounded up by 1 MiB at most


class VllmDemand(Demand):
    """What vLLM takes of each rank's card. A context is a sequence's whole length."""

    def __init__(self, report: Report, serving: Serving, gpu: Gpu) -> None:
        attention, self._report, self._serving, self._gpu = report.attention, report, serving, gpu
        self.release = release(serving.version)
        self.log = matching(report, serving, gpu.name, self.release)
        if report.known.quantised is not None and report.known.quantised.method == "gguf":
            raise UnsupportedError("vllm_gguf")
        if not report.spec.built and any(layer.window_tokens for layer in attention.softmax):
            raise UnsupportedError("vllm_qwen_windows")
        if report.known.cache is not None and report.known.cache.source_bytes_per_token:
            raise UnsupportedError("memory_encoder_decoder")
        if has_compressed_keys(report):
            check_compressed(report, serving, self.release.version)
        format_name = checkpoint_format(report.config or {}, serving.cache_format)
        self.format = read_formats(format_name, report.spec.dtype)[0]
        self.format_named = format_name != serving.cache_format  # the checkpoint names it
        if self.format.name == "float32" and report.spec.dtype is not DType.F32:  # only by "auto"
            raise UnsupportedError("vllm_cache_format", found=self.format.name, known=", ".join(BLOCK_FORMATS[1:]))
        text = text_part(report.config or {})
        self.index = sparse_index(text, self.format, gpu.compute_capability, self.release.version)
        self.most_context_tokens = report.spec.context_tokens
        by_default = (None, None) if self.budget_given else self.release.step_defaults(gpu.available_bytes, gpu.name)
        self.step_tokens = serving.step_tokens or by_default[0]
        self.sequences = serving.sequences or by_default[1]
        self.drafter = self._drafter()
        self.pool = self._pool(gpu)
        check_connectors(self.release, serving.environment)
        check_groups(self.pool, self.release, serving.environment)
        if self.step_tokens is None and any(group.window_tokens for group in self.pool.groups):
            raise UsageError("vllm_step_needed")
        self._check_room(gpu)

    @property
    def _stage(self) -> range | None:
        """The layers of a pipeline's last rank."""
        if (ranks := self._serving.pipeline_ranks) == 1:
            return None
        if (layers := len(self._report.attention.layers)) < ranks:
            raise UnsupportedError("vllm_not_divisible", name="layers", size=layers, ranks=ranks)
        return last_stage(layers, ranks)

    def _drafter(self) -> Drafter | None:
        serving = self._serving
        if (speculation := serving.speculation) is None:
            return None
        if serving.pipeline_ranks > 1:
            raise UnsupportedError("vllm_speculation_pipeline")
        if has_compressed_keys(self._report):
            return Drafter(ranks=serving.ranks)
        return drafter_of(
            self._report,
            speculation,
            ranks=serving.ranks,
            step_tokens=self.step_tokens or 0,
            version=self.release.version,
            sees="vision_config" in (self._report.config or {}) and "vision" not in serving.without_towers,
        )

    def _pool(self, gpu: Gpu) -> BlockPool:
        config, ranks = self._report.config or {}, self._serving.ranks
        layers, text = self._report.attention.layers, text_part(config)
        if self._stage is not None:
            layers = tuple(layer for layer in layers if layer.index in self._stage)
        if has_compressed_keys(self._report):
            speculation = self._serving.speculation
            return compressed_pool(
                self._report,
                self.format,
                ranks=ranks,
                predicted=prediction_count(self._report) if self._method == "mtp" else 0,
                proposed=0 if speculation is None else proposed_tokens(self._report, speculation),
                prefix_caching=self.prefix_caching,
            )
        if (width := latent_width(text)) is not None:
            heads = text.get("num_attention_heads")
            if type(heads) is not int or heads % ranks:
                raise UnsupportedError("cache_query_heads_over_ranks", heads=heads, ranks=ranks)
            if self.drafter is not None and self.drafter.layers:
                raise UnsupportedError("vllm_unequal_pages")
            latents = 0 if self.drafter is None else self.drafter.latents
            if self.index is not None:
                indexes = [layer.index for layer in layers]
                return indexed_pool(
                    [*indexes, *range(len(layers), len(layers) + latents)], width, self.index, self.format
                )
            return latent_pool(len(layers) + latents, width, self.format, gpu.compute_capability)
        if (mamba := mamba_sizes(self._report)) is not None and self._report.known.cache is not None:
            if self.drafter is not None:
                raise UnsupportedError("vllm_no_prediction", class_name=self._report.spec.class_name)
            indexed = {layer.index for layer in layers}
            return mamba_pool(
                self._report,
                [layer for layer in self._report.known.cache.layers if layer.index in indexed],
                mamba,
                self.format,
                ranks=ranks,
                release=self.release,
                prefix_caching=self.prefix_caching,
            )
        if has_short_convolutions(self._report):
            if self.drafter is not None:
                raise UnsupportedError("vllm_no_prediction", class_name=self._report.spec.class_name)
            stage = self._stage or range(len(layers))
            return convolution_pool(self._report, stage, self.format, ranks=ranks, prefix_caching=self.prefix_caching)
        states = state_dtypes(config, self._report.spec.dtype)
        drafting: Drafting = ((), 1, 0)
        if self.drafter is not None and self._serving.speculation is not None:
            proposed = proposed_tokens(self._report, self._serving.speculation)
            drafting = self.drafter.layers, self.drafter.ranks, proposed
        cache = self._report.known.cache
        chunked = cache is not None and any(layer.kind == "chunked" for layer in cache.layers)
        windows = self.release.keeps_windows(
            chunked=chunked, drafts=self.drafter is not None, environment=self._serving.environment
        )
        pool = block_pool(
            layers,
            self.format,
            ranks=ranks,
            states=states,
            block_tokens=self._serving.block_tokens or BLOCK_TOKENS,
            drafting=drafting,
            spread=self.release.spread,
            windows=windows,
        )
        return replace(pool, state_blocks=2 if self.prefix_caching else 1, chunked=chunked)

    def _check_room(self, gpu: Gpu) -> None:
        """Raises UsageError for a budget below one block, UnavailableError if less is free than vLLM requests at its start."""
        budget, block = self._serving.kv_budget_bytes, self.pool.block_bytes
        if budget is not None and budget < block:
            raise UsageError("vllm_budget_below_block", budget=size(budget), block=size(block))
        if budget is None and (requested := self.available_bytes(gpu)) > gpu.room_bytes:
            free = size(gpu.room_bytes)
            raise UnavailableError("card_in_use_vllm", requested=size(requested), free=free, name=gpu.name)

    @property
    def budget_given(self) -> bool:
        return self._serving.kv_budget_bytes is not None

    @property
    def prefix_caching(self) -> bool:
        """Whether prefixes of a hybrid model are cached; of other models that changes nothing."""
        asked = self._serving.prefix_caching
        return self.release.caches_prefixes if asked is None else asked

    @property
    def utilization(self) -> float:
        return self.release.utilization if self._serving.utilization is None else self._serving.utilization

    @cached_property
    def terms(self) -> tuple[Reserved, ...]:
        """Everything except the cache; empty if the budget is given."""
        if self.budget_given:
            return ()
        if (unread := self._report.known.unread) is not None:
            raise unread
        serving, capability = self._serving, self._gpu.compute_capability
        weights = rank_weights(
            self._report,
            serving.ranks,
            expert_ranks=serving.ranks * serving.data_ranks,
            stage=self._stage,
            marlin=capability is not None and capability < (9, 0),
            float_routers=self.release.float_routers(self._report, capability),
            without_towers=serving.without_towers,
            version=self.release.version,
        )
        spec, config = self._report.spec, self._report.config or {}
        buffers = 0
        if "vision" not in serving.without_towers or self.release.version < DEEPSTACK_KEPT:
            buffers = deepstack_bytes(config, spec.hidden_size, self.step_tokens or 0, spec.dtype.bits // 8)
        if has_compressed_keys(self._report):
            from .compressed_run import buffer_bytes

            buffers += buffer_bytes(self._report, self.step_tokens or 0, predicts=self._method == "mtp")
        if self.index is not None:
            buffers += self.index.chosen_bytes(self.step_tokens or 0)
        held = max(0, weights.total_bytes + buffers - serving.offloaded_bytes)
        outside = non_torch(
            self.release,
            capability=capability,
            multiprocessors=self._gpu.multiprocessors,
            ranks=Ranks(
                count=serving.ranks,
                tokens=self.step_tokens or 0,
                hidden=spec.hidden_size,
                element_bytes=spec.dtype.bits // 8,
                bfloat16=spec.dtype is DType.BF16,
                data_ranks=serving.data_ranks,
                pipeline_ranks=serving.pipeline_ranks,
                exchanges=serving.data_ranks > 1 and decoder_widths(self._report).experts is not None,
                compiled=not serving.eager,
            ),
            vocabulary=spec.vocab_size,
            second=self.release.runs_second(self._report, self._method, serving.environment),
            recurrent=any(layer.span in WITH_STATES for layer in self._report.attention.layers),
        )
        measured = (self._activation(), outside, *self._graphs())
        if self.log is not None:
            log = self.log
            measured = tuple(calibrated(term, log) for term in measured)
        return (
            Reserved(name="weights", least_bytes=held, most_bytes=held),
            rounding(weights),
            *self._drafted(),
            *self._adapters(),
            *measured,
        )

    def _graphs(self) -> tuple[Reserved, ...]:
        serving, environment, drafter = self._serving, self._serving.environment, self.drafter
        if serving.eager or not self.release.graphs_measured(self._report, self._method, environment):
            return ()
        reserved = graphs(
            capability=self._gpu.compute_capability,
            layers=len(self._stage or self._report.attention.layers),
            ranks=serving.ranks,
            sequences=self.sequences or 0,
            second=self.release.runs_second(self._report, self._method, environment),
            drafted=None if drafter is None or drafter.widths is None else len(drafter.layers) + drafter.latents,
        )
        return (reserved,)

    @property
    def in_flight_tokens(self) -> int | None:
        """Of the steps that run at once; None without the most tokens of one."""
        serving, asked = self._serving, self._serving.environment.asynchronous
        by_default = self._method in (None, "mtp", "eagle", "eagle3", "ngram_gpu")
        second = self.release.runs_second(self._report, self._method, serving.environment)
        batches = self.release.batches_in_flight(second, serving.pipeline_ranks, by_default if asked is None else asked)
        return None if self.step_tokens is None else batches * self.step_tokens

    @property
    def _method(self) -> SpeculativeMethod | None:
        return None if self._serving.speculation is None else self._serving.speculation.method

    def _drafted(self) -> tuple[Reserved, ...]:
        if self.drafter is None or not self.drafter.most_bytes:
            return ()
        return (Reserved(name="drafter", least_bytes=self.drafter.least_bytes, most_bytes=self.drafter.most_bytes),)

    def _adapters(self) -> tuple[Reserved, ...]:
        serving = self._serving
        size_bytes = slot_bytes(self._report, serving.ranks, slots=serving.lora_slots, lora_rank=serving.lora_rank)
        return (Reserved(name="adapters", least_bytes=size_bytes, most_bytes=size_bytes),) if size_bytes else ()

    def _index_bytes(self) -> int:
        """The workspace of sparse attention, for which queries are in the latents' width."""
        spec, text = self._report.spec, text_part(self._report.config or {})
        if self.index is None or (width := latent_width(text)) is None:
            return 0
        heads = text["num_attention_heads"] // self._serving.ranks
        context = self._serving.context_tokens or spec.context_tokens or self.step_tokens or 0
        return self.index.workspace_bytes(context, width, 2 * (self.step_tokens or 0) * heads * width)

    def _activation(self) -> Reserved:
        """The peak of the profile run on the pipeline's last rank, which samples."""
        report, serving = self._report, self._serving
        spec, config = report.spec, report.config or {}
        tokens, sequences = self.step_tokens or 0, self.sequences or 0
        run = ProfileRun(
            tokens=tokens,
            sequences=min(sequences, tokens),
            context_tokens=serving.context_tokens or spec.context_tokens or tokens,
            element_bytes=spec.dtype.bits // 8,
            ranks=serving.ranks,
            first=serving.pipeline_ranks == 1,
            data_ranks=serving.data_ranks,
            experts_whole=serving.expert_parallel,
            compiled=not serving.eager,
            sampler=self.release.sampler(report, self._method, serving.environment, self._gpu.compute_capability),
            drafter=self.drafter,
            index_bytes=self._index_bytes(),
            index_logits_bytes=0 if self.index is None else LOGITS_BYTES,
        )
        images = None
        if serving.images:
            images = encoder(
                config,
                spec.hidden_size,
                tokens,
                run.context_tokens,
                sequences,
                run.element_bytes,
                expands=self.release.expands_images,
            )
        card = Card(compute_capability=self._gpu.compute_capability, multiprocessors=self._gpu.multiprocessors)
        least, most = peak_bytes(decoder_widths(report), run, self.release, card, images)
        if has_compressed_keys(report):
            from .compressed_run import streams_bytes

            held = card.workspace_bytes + expert_bytes(decoder_widths(report), run)
            least, most = (
                max(end, held + streams)
                for end, streams in zip((least, most), streams_bytes(report, tokens), strict=True)
            )
        most += PEAK_MARGIN_BYTES
        if serving.images and unsized(config):
            most += 2 * GIB  # the size of the largest image is not known
        if not self.release.known:
            least, most = least * 3 // 4, most * 5 // 4
        return Reserved(name="activation", least_bytes=least, most_bytes=most)

    def requirement(self, batch: int, context_tokens: int) -> Requirement:
        """Ranges from the logs take the place of the CUDA context, which they include."""
        ranges = [term for term in self.terms if term.least_bytes != term.most_bytes]
        cache = self.pool.size_bytes(tokens=context_tokens, batch=batch, batched_tokens=self.in_flight_tokens)
        return Requirement(
            terms=(*((term.name, term.least_bytes) for term in self.terms if term not in ranges), ("cache", cache)),
            context_low_bytes=sum(term.least_bytes for term in ranges),
            context_high_bytes=sum(term.most_bytes or 0 for term in ranges),
        )

    def available_bytes(self, gpu: Gpu) -> int:
        if self._serving.kv_budget_bytes is not None:
            return self._serving.kv_budget_bytes
        return requested_bytes(gpu.available_bytes, self.utilization)

    def _capacity(self, budget_bytes: int, context_tokens: int) -> Capacity:
        """With the tokens that this version prints: from 0.21 on the concurrency times the sequence's."""
        found = capacity(self.pool, budget_bytes, sequence_tokens=context_tokens, step_tokens=self.in_flight_tokens)
        if not self.release.prints_concurrency:
            return found
        return replace(found, tokens=found.blocks * context_tokens // found.sequence_blocks)

    def reserve(self, gpu: Gpu, batch: int, context_tokens: int) -> VllmReserve:
        """The budget, at both ends of the range of what else is taken."""
        available = self.available_bytes(gpu)
        least, most = (
            self._capacity(available - used_bytes, context_tokens)
            for used_bytes in (
                sum(term.most_bytes or 0 for term in self.terms),
                sum(term.least_bytes for term in self.terms),
            )
        )
        return VllmReserve(
            cache_format=self.format.name,
            utilization=None if self.budget_given else self.utilization,
            requested_bytes=None if self.budget_given else available,
            terms=self.terms,
            cache_tokens=least.tokens,
            block_bytes=self.pool.block_bytes,
            block_tokens=self.pool.block_tokens or context_tokens,  # a state's block is the sequence
            groups=len(self.pool.groups) + self.pool.rings,
            least=least,
            most=most,
            asleep=self._asleep(),
        )

    def _asleep(self) -> Asleep | None:
        if not self._serving.sleeps or self.budget_given:
            return None
        terms = {term.name: term for term in self.terms}
        weights = terms["weights"].least_bytes + (0 if self.drafter is None else self.drafter.most_bytes)
        return asleep(terms["non_torch"], weights, eager=self._serving.eager)

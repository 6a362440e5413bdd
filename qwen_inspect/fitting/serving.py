"""A model and an engine -> what the engine reserves of each card, whether that fits, and how far it goes there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import chain

from ..architectures.gguf import FAMILIES, stored_form
from ..bisection import largest
from ..checkpoint import DType, Tensor
from ..engines import llama_cpp, vllm
from ..errors import UnavailableError, UnsupportedError, UsageError
from ..language import Message
from ..results.attention import AttentionReport
from ..results.fit import CardAnswer, Demand, Gpu, Requirement, Suggestion
from ..results.model import Report
from ..results.serving import EngineCard, LlamaCppReserve, Reserved, Serving, ServingReport, VllmReserve
from ..spec import each_tensor
from ..structure.engine_cache import (
    BLOCK_FORMATS,
    BlockPool,
    block_pool,
    checkpoint_format,
    latent_pool,
    latent_width,
    padded_cells,
    state_dtypes,
    text_part,
)
from ..structure.kv_cache import read_formats
from ..units import size
from .search import answer
from .suggestions import SCHEMES, in_scheme, larger_cards

UTILIZATION = 0.9  # vLLM's default, config/cache.py
RANKS = (2, 4, 8)


def serve(report: Report, serving: Serving, cards: Sequence[Gpu], *, beyond_limit: bool = False) -> ServingReport:
    """What `serving.engine` takes of each of `cards`, and what fits there.

    Raises UnsupportedError for a model that the engine does not serve, or whose share of a card is not known here; UsageError for
    a budget that holds no block.
    """
    attention = _attention(report)
    if serving.engine == "vllm":
        report = _as_vllm_reads(report)
    tokens = serving.context_tokens or report.spec.context_tokens
    if tokens is None:
        raise UsageError("serving_needs_context")
    serve_on = _vllm_card if serving.engine == "vllm" else _llama_cpp_card
    serving = replace(serving, context_tokens=tokens)
    answered = tuple(serve_on(report, attention, serving, gpu, beyond_limit) for gpu in cards)
    return ServingReport(
        report=_with_limit(report, tokens),
        serving=serving,
        version=vllm.VERSION if serving.engine == "vllm" else llama_cpp.VERSION,
        context_tokens=tokens,
        cards=answered,
        assumptions=tuple(
            _vllm_assumptions(report, serving, cards, answered)
            if serving.engine == "vllm"
            else _llama_cpp_assumptions(report, answered)
        ),
    )


def _attention(report: Report) -> AttentionReport:
    """How its layers attend; what is not known of the model is raised."""
    if report.design is None:
        assert report.refusal is not None
        raise report.refusal
    if report.design.attention is None:
        assert report.design.cache_refusal is not None
        raise report.design.cache_refusal
    return report.design.attention


def _as_vllm_reads(report: Report) -> Report:
    """The model with the limit that vLLM gives its sequences."""
    limit = vllm.model_limit(report.config or {}, report.spec.context_tokens)
    if limit == report.spec.context_tokens:
        return report
    return replace(report, design=replace(report.known, spec=replace(report.spec, context_tokens=limit)))


def _with_limit(report: Report, tokens: int) -> Report:
    limit = report.spec.context_tokens
    if limit is None or tokens <= limit:
        return report
    return replace(report, notices=(*report.notices, Message("context_beyond", tokens=tokens, limit=limit)))


def _smaller(found: CardAnswer, serving: Serving, demand: Demand) -> Iterator[Suggestion]:
    """Shorter sequences, and fewer of them, each as far as it fits."""
    whole, tokens = found.requirement.whole, serving.context_tokens or 0
    most_context, most_batch = found.high.context.at_most or 0, found.high.batch.at_most or 0
    for kind, value, asked, batch, length in (
        ("context", most_context, tokens, serving.batch, most_context),
        ("batch", most_batch, serving.batch, most_batch, tokens),
    ):
        if 0 < value < asked:
            yield Suggestion(
                kind=kind,
                change=Message(
                    "suggest_sequence" if kind == "context" else "suggest_sequences", value=value, asked=asked
                ),
                required_bytes=demand.requirement(batch, length).high_bytes,
                fits=True if whole else None,
                whole=whole,
            )


# --- vLLM ----------------------------------------------------------------------------------------------------------


def budget_card(budget_bytes: int) -> Gpu:
    """Stands for a card where vLLM's budget is given: all of it is the cache's."""
    return Gpu(name=size(budget_bytes), kind="given", memory_bytes=budget_bytes)


class VllmDemand:
    """What vLLM takes of a card on each rank: a context is a sequence's whole length. Implements `Demand`."""

    engine = "vllm"
    context_step = 1
    quick = True

    def __init__(self, report: Report, attention: AttentionReport, serving: Serving, gpu: Gpu) -> None:
        if report.known.quantised is not None and report.known.quantised.method == "gguf":
            raise UnsupportedError("vllm_gguf")
        if not report.spec.built and any(layer.window_tokens for layer in attention.softmax):
            raise UnsupportedError("vllm_qwen_windows")
        if report.known.cache is not None and any(layer.kind == "chunked" for layer in report.known.cache.layers):
            raise UnsupportedError("vllm_chunks")
        self._report, self._serving = report, serving
        named = checkpoint_format(report.config or {}, serving.cache_formats[0])
        self.format = read_formats(named, report.spec.dtype)[0]
        self.format_named = named != serving.cache_formats[0]
        if self.format.name == "float32" and report.spec.dtype is not DType.F32:  # only by "auto"
            raise UnsupportedError("vllm_cache_format", found=self.format.name, known=", ".join(BLOCK_FORMATS[1:]))
        self.pool = self._pool(attention, gpu)
        self.most_context_tokens = report.spec.context_tokens
        by_default = None if self.budget_given else vllm.batched_tokens(gpu.available_bytes, gpu.name)
        self.step_tokens = serving.step_tokens or by_default
        if self.step_tokens is None and any(group.window_tokens for group in self.pool.groups):
            raise UsageError("vllm_step_needed")

    def _pool(self, attention: AttentionReport, gpu: Gpu) -> BlockPool:
        config, ranks = self._report.config or {}, self._serving.ranks
        text = text_part(config)
        if (width := latent_width(text)) is not None:
            heads = text.get("num_attention_heads")
            if type(heads) is not int or heads % ranks:
                raise UnsupportedError("cache_query_heads_over_ranks", heads=heads, ranks=ranks)
            return latent_pool(len(attention.layers), width, self.format, gpu.compute_capability)
        states = state_dtypes(config, self._report.spec.dtype)
        pool = block_pool(attention.layers, self.format, ranks=ranks, states=states)
        return replace(pool, state_blocks=2) if self._serving.prefix_caching else pool

    @property
    def budget_given(self) -> bool:
        return self._serving.kv_budget_bytes is not None

    @property
    def utilization(self) -> float:
        return UTILIZATION if self._serving.utilization is None else self._serving.utilization

    @cached_property
    def terms(self) -> tuple[Reserved, ...]:
        """All but the cache; nothing where the budget is given."""
        if self.budget_given:
            return ()
        if (unread := self._report.known.unread) is not None:
            raise unread
        if self._report.spec.built or self._report.spec.family not in {log.family for log in vllm.LOGS}:
            windows = any(group.window_tokens for group in self.pool.groups)
            options = "--kv-budget SIZE" + " --max-num-batched-tokens N" * windows
            raise UnsupportedError("vllm_no_log", class_name=self._report.spec.class_name, options=options)
        weights = vllm.rank_weights(self._report.tree, self._report.spec, self._serving.ranks)
        exact = Reserved(name="weights", least_bytes=sum(weights), most_bytes=sum(weights))
        return (exact, vllm.rounding(self._report.tree, weights), *vllm.beside_weights(self._serving.ranks))

    def requirement(self, batch: int, context_tokens: int) -> Requirement:
        """The ranges of what the logs show stand where the context of CUDA does: they hold it too."""
        ranges = [term for term in self.terms if term.least_bytes != term.most_bytes]
        cache = self.pool.size_bytes(tokens=context_tokens, batch=batch, batched_tokens=self.step_tokens)
        return Requirement(
            terms=(*((term.name, term.least_bytes) for term in self.terms if term not in ranges), ("cache", cache)),
            context_low_bytes=sum(term.least_bytes for term in ranges),
            context_high_bytes=sum(term.most_bytes or 0 for term in ranges),
        )

    def held_bytes(self, batch: int, context_tokens: int) -> int:
        return self.requirement(batch, context_tokens).held_bytes

    def fits(self, batch: int, context_tokens: int, room_bytes: int) -> bool:
        return self.held_bytes(batch, context_tokens) <= room_bytes

    def least_bytes(self, batch: int, context_tokens: int) -> int:
        return 0

    def passes(self, batch: int, context_tokens: int, capacity_bytes: int) -> bool | None:
        return None

    def available_bytes(self, gpu: Gpu) -> int:
        if self._serving.kv_budget_bytes is not None:
            return self._serving.kv_budget_bytes
        return vllm.requested_bytes(gpu.available_bytes, self.utilization)

    def cache_tokens(self, batch: int, context_tokens: int) -> int | None:
        return batch * context_tokens

    def reserve(self, gpu: Gpu, context_tokens: int) -> VllmReserve:
        """The budget at both ends of what is taken beside it."""
        available = self.available_bytes(gpu)
        least, most = (
            vllm.capacity(self.pool, available - taken, sequence_tokens=context_tokens, step_tokens=self.step_tokens)
            for taken in (
                sum(term.most_bytes or 0 for term in self.terms),
                sum(term.least_bytes for term in self.terms),
            )
        )
        return VllmReserve(
            ranks=self._serving.ranks,
            cache_format=self.format.name,
            format_named=self.format_named,
            utilization=None if self.budget_given else self.utilization,
            requested_bytes=None if self.budget_given else available,
            terms=self.terms,
            block_bytes=self.pool.block_bytes,
            block_tokens=self.pool.block_tokens,
            groups=len(self.pool.groups),
            least=least,
            most=most,
        )


def _vllm_card(
    report: Report, attention: AttentionReport, serving: Serving, gpu: Gpu, beyond_limit: bool
) -> EngineCard:
    demand, tokens = VllmDemand(report, attention, serving, gpu), serving.context_tokens or 0
    budget = serving.kv_budget_bytes
    if budget is not None and budget < demand.pool.block_bytes:
        raise UsageError("vllm_budget_below_block", budget=size(budget), block=size(demand.pool.block_bytes))
    if (requested := demand.available_bytes(gpu)) > gpu.room_bytes and budget is None:
        raise UnavailableError("card_in_use_vllm", requested=size(requested), free=size(gpu.room_bytes), name=gpu.name)
    found = answer(demand, gpu, batch=serving.batch, context_tokens=tokens, beyond_limit=beyond_limit)
    return EngineCard(
        gpu=None if demand.budget_given else gpu,
        answer=found,
        reserve=demand.reserve(gpu, tokens),
        suggestions=()
        if found.high.fits is not False
        else (
            *_smaller(found, serving, demand),
            *_vllm_changes(report, attention, serving, gpu, demand.format.name),
        ),
    )


def _vllm_changes(
    report: Report, attention: AttentionReport, serving: Serving, gpu: Gpu, format_name: str
) -> Iterator[Suggestion]:
    """The cache in 8 bits, the weights in fewer bits, the fewest ranks more, a larger card."""

    def asked(kind: str, change: Message, report: Report, serving: Serving, gpu: Gpu) -> Iterator[Suggestion]:
        with suppress(UnsupportedError):  # what the engine does not serve so is no change to make
            demand = VllmDemand(report, attention, serving, gpu)
            required = demand.requirement(serving.batch, serving.context_tokens or 0).high_bytes
            yield Suggestion(
                kind=kind, change=change, required_bytes=required, fits=required <= demand.available_bytes(gpu)
            )

    if format_name != "fp8":
        in_fp8 = replace(serving, cache_formats=("fp8", "fp8"))
        yield from asked("cache", Message("suggest_cache", format="fp8"), report, in_fp8, gpu)
    if serving.kv_budget_bytes is not None:
        return
    for scheme, packed in _packed(report, gpu):
        yield from asked("weights", Message("suggest_weights", dtype=scheme), packed, serving, gpu)
    more = (
        asked("tensor_parallel", Message("suggest_ranks", ranks=ranks), report, replace(serving, ranks=ranks), gpu)
        for ranks in RANKS
        if ranks > serving.ranks
    )
    yield from _until_it_fits(chain.from_iterable(more))
    yield from _last(
        _until_it_fits(
            chain.from_iterable(
                asked("gpu", Message("suggest_gpu", name=one.name), report, serving, one) for one in larger_cards(gpu)
            )
        )
    )


def _packed(report: Report, gpu: Gpu) -> Iterator[tuple[str, Report]]:
    """The model in each scheme that the card computes in; none where it is packed already, or its class is not described here."""
    if report.known.quantised is not None or report.known.unread is not None or report.spec.built:
        return
    for scheme in SCHEMES:
        if scheme != "fp8" or gpu.supports("fp8") is not False:
            yield scheme, in_scheme(report, scheme)


def _until_it_fits(suggestions: Iterable[Suggestion]) -> Iterator[Suggestion]:
    for suggestion in suggestions:
        yield suggestion
        if suggestion.fits is not False:
            return


def _last(suggestions: Iterable[Suggestion]) -> Sequence[Suggestion]:
    return tuple(suggestions)[-1:]


def _vllm_assumptions(
    report: Report, serving: Serving, cards: Sequence[Gpu], answered: Sequence[EngineCard]
) -> Iterator[Message]:
    yield Message("assume_vllm_version", version=vllm.VERSION)
    if serving.prefix_caching:
        yield Message("assume_vllm_prefixes")
    for gpu in cards:
        if report.spec.dtype is DType.BF16 and gpu.supports("bfloat16") is False:
            yield Message("assume_vllm_half", name=gpu.name)
    if any(isinstance(card.reserve, VllmReserve) and card.reserve.format_named for card in answered):
        yield Message("assume_vllm_cache_scheme")
    if any(isinstance(card.reserve, VllmReserve) and card.reserve.groups > 1 for card in answered):
        yield Message("assume_vllm_groups")
    if serving.kv_budget_bytes is None:
        for gpu in cards:
            if gpu.origin == "usable":  # of the table
                yield Message("assume_vllm_card", name=gpu.name, available=size(gpu.available_bytes))
        yield Message("assume_vllm_logs", models=", ".join(dict.fromkeys(log.model for log in vllm.LOGS)))
        yield Message("assume_vllm_graphs")
    if serving.ranks > 1:
        yield Message("assume_vllm_ranks", ranks=serving.ranks)


# --- llama.cpp -----------------------------------------------------------------------------------------------------


class LlamaCppDemand:
    """What llama.cpp takes of a card, but for its compute buffer: a context is a sequence's whole length. Implements `Demand`."""

    engine = "llama.cpp"
    context_step = 1
    quick = True

    def __init__(self, report: Report, attention: AttentionReport, serving: Serving) -> None:
        formats = ["float16" if one == "auto" else one for one in serving.cache_formats]
        keys, values = (read_formats(one, report.spec.dtype)[0] for one in formats)
        self.model = llama_cpp.Model(
            parts=llama_cpp.parts_of(_gguf_tensors(report), len(attention.layers)),
            layers=attention.layers,
            keys=keys,
            values=values,
        )
        self.most_context_tokens = report.spec.context_tokens
        asked = self.model.most_layers if serving.offloaded is None else serving.offloaded
        self.offloaded = min(asked, self.model.most_layers)

    def terms(self, batch: int, context_tokens: int, offloaded: int) -> list[tuple[str, int]]:
        return [
            ("weights", self.model.weights_bytes(offloaded)),
            ("cache", self.model.cache_bytes(offloaded, tokens=context_tokens, sequences=batch)),
            ("state", self.model.state_bytes(offloaded, sequences=batch)),
        ]

    def requirement(self, batch: int, context_tokens: int) -> Requirement:
        return Requirement(
            terms=tuple(self.terms(batch, context_tokens, self.offloaded)),
            context_low_bytes=0,
            context_high_bytes=0,
            whole=False,
        )

    def held_bytes(self, batch: int, context_tokens: int) -> int:
        return sum(size_bytes for _, size_bytes in self.terms(batch, context_tokens, self.offloaded))

    def fits(self, batch: int, context_tokens: int, room_bytes: int) -> bool:
        return self.held_bytes(batch, context_tokens) <= room_bytes

    def least_bytes(self, batch: int, context_tokens: int) -> int:
        return 0

    def passes(self, batch: int, context_tokens: int, capacity_bytes: int) -> bool | None:
        return None

    def available_bytes(self, gpu: Gpu) -> int:
        return gpu.room_bytes

    def cache_tokens(self, batch: int, context_tokens: int) -> int | None:
        return batch * padded_cells(context_tokens)

    def most_offloaded(self, batch: int, context_tokens: int, available_bytes: int) -> int:
        """Layers, the output layer among them, whose bytes a card has."""

        def fits(offloaded: int) -> bool:
            return sum(size_bytes for _, size_bytes in self.terms(batch, context_tokens, offloaded)) <= available_bytes

        return largest(fits, self.model.most_layers)

    def reserve(self, gpu: Gpu, batch: int, context_tokens: int) -> LlamaCppReserve:
        terms = self.terms(batch, context_tokens, self.offloaded)
        return LlamaCppReserve(
            offloaded=self.offloaded,
            layers=self.model.most_layers,
            cells=batch * padded_cells(context_tokens),
            cache_formats=(self.model.keys.name, self.model.values.name),
            terms=(
                *(Reserved(name=name, least_bytes=value, most_bytes=value) for name, value in terms),
                Reserved(name="compute", least_bytes=0, most_bytes=None, sources=llama_cpp.COMPUTE_SOURCES),
            ),
            host_bytes=self.model.host_bytes(self.offloaded, tokens=context_tokens, sequences=batch),
            most_offloaded=self.most_offloaded(batch, context_tokens, gpu.room_bytes),
        )


def _gguf_tensors(report: Report) -> Sequence[Tensor]:
    """A GGUF file's own tensors, or those that llama.cpp's converter would write of the model without quantising it."""
    if report.known.unread is not None:
        raise report.known.unread
    quantised = report.known.quantised
    if quantised is not None and quantised.method == "gguf" and report.tensors is not None:
        return report.tensors
    families = {family for family, _ in FAMILIES.values()}
    if report.spec.built or report.spec.family not in families:
        found = report.spec.class_name if report.spec.family in families else report.spec.family
        raise UnsupportedError("llama_cpp_form", found=found, known=", ".join(sorted(families)))
    if quantised is not None:
        raise UnsupportedError("llama_cpp_packed", method=quantised.method)
    return llama_cpp.converted([part for tensor in each_tensor(report.tree) for part in stored_form(tensor)])


def _llama_cpp_card(
    report: Report, attention: AttentionReport, serving: Serving, gpu: Gpu, beyond_limit: bool
) -> EngineCard:
    demand, tokens = LlamaCppDemand(report, attention, serving), serving.context_tokens or 0
    found = answer(demand, gpu, batch=serving.batch, context_tokens=tokens, beyond_limit=beyond_limit)
    reserve = demand.reserve(gpu, serving.batch, tokens)
    return EngineCard(
        gpu=gpu,
        answer=found,
        reserve=reserve,
        suggestions=()
        if found.high.fits is not False
        else (*_smaller(found, serving, demand), *_llama_cpp_changes(report, attention, serving, gpu, reserve)),
    )


def _llama_cpp_changes(
    report: Report, attention: AttentionReport, serving: Serving, gpu: Gpu, reserve: LlamaCppReserve
) -> Iterator[Suggestion]:
    """The cache in 8 bits, fewer layers on the card, a larger card."""
    in_8_bits = replace(serving, cache_formats=("q8_0", "q8_0"))
    fewer = replace(serving, offloaded=reserve.most_offloaded)
    text = Message("suggest_layers", value=reserve.most_offloaded, layers=reserve.layers)

    def asked(kind: str, change: Message, serving: Serving, gpu: Gpu) -> Suggestion:
        required = LlamaCppDemand(report, attention, serving).held_bytes(serving.batch, serving.context_tokens or 0)
        enough = required <= gpu.room_bytes
        return Suggestion(
            kind=kind, change=change, required_bytes=required, fits=None if enough else False, whole=False
        )

    if reserve.cache_formats != in_8_bits.cache_formats:
        yield asked("cache", Message("suggest_cache", format="q8_0"), in_8_bits, gpu)
    yield asked("layers", text, fewer, gpu)
    cards = (asked("gpu", Message("suggest_gpu", name=one.name), serving, one) for one in larger_cards(gpu))
    yield from _last(_until_it_fits(cards))


def _llama_cpp_assumptions(report: Report, answered: Sequence[EngineCard]) -> Iterator[Message]:
    for card in answered:
        yield from card.answer.notices
    yield Message("assume_llama_cpp_version", version=llama_cpp.VERSION)
    if report.known.quantised is None:
        yield Message("assume_llama_cpp_form", dtype=str(report.spec.dtype))
    yield Message("assume_llama_cpp_compute")

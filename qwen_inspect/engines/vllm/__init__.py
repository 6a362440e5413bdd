"""vLLM, on each of one or more ranks: version 0.19.0 if no other is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from ...checkpoint import DType
from ...errors import QwenInspectError
from ...language import Message
from ...structure.kv_cache import FORMATS, CacheFormat, read_formats
from ...typed import TYPE_CHECKING, Any
from ...units import size
from ...values import replace
from ..interface import RANKS, Alternative, Choice, Engine, cache_rows, schemes
from .blocks import block_pool, state_dtypes, text_part

if TYPE_CHECKING:
    from ...results.cache import EngineCache
    from ...results.fit import CardAnswer, Gpu
    from ...results.model import Report
    from ...results.serving import Serving
    from .demand import VllmDemand


class Vllm(Engine["Serving", "VllmDemand"]):
    name = "vllm"
    version = "0.19.0"

    def reads(self, report: Report) -> Report:
        """The model with vLLM's context limit."""
        limit = model_limit(report.config or {}, report.spec.context_tokens)
        return replace(report, design=replace(report.known, spec=replace(report.spec, context_tokens=limit)))

    def demand(self, report: Report, request: Serving, gpu: Gpu) -> VllmDemand:
        from .demand import VllmDemand

        return VllmDemand(report, request, gpu)

    def changes(self, demand: VllmDemand, report: Report, request: Serving, gpu: Gpu) -> Iterator[Choice[Serving]]:
        """The cache in 8 bits, weights in fewer bits, more ranks, a larger card."""
        if demand.format.name != "fp8":
            in_fp8 = replace(request, cache_format="fp8")
            yield Choice("all", [Alternative("cache", Message("suggest_cache", format="fp8"), report, in_fp8, gpu)])
        if request.kv_budget_bytes is not None:
            return
        if report.known.quantised is None and report.known.unread is None and not report.spec.built:
            yield Choice("all", self._packed(report, request, gpu))
        ranks = (
            Alternative("tensor_parallel", Message("suggest_ranks", ranks=n), report, replace(request, ranks=n), gpu)
            for n in RANKS
            if n > request.ranks
        )
        yield Choice("until", ranks)
        yield self.larger_cards(report, request, gpu)

    def _packed(self, report: Report, request: Serving, gpu: Gpu) -> Iterator[Alternative[Serving]]:
        """Weights in each scheme that the card supports; schemes that do not divide the model's matrices are skipped."""
        from ...structure.inspect import in_scheme

        for scheme in schemes(gpu):
            with suppress(QwenInspectError):
                packed = self.reads(in_scheme(report, scheme))
                yield Alternative("weights", Message("suggest_weights", dtype=scheme), packed, request, gpu)

    def assumptions(
        self, report: Report, request: Serving, answers: Sequence[tuple[VllmDemand, CardAnswer]]
    ) -> Iterator[Message]:
        from .encoder import unsized
        from .releases import release

        version = release(request.version)
        yield Message("assume_vllm_version", version=version.name)
        if not version.known:
            yield Message("assume_vllm_unknown", version=version.name)
        if (speculation := request.speculation) is not None:
            from .drafter import proposed_tokens

            tokens = proposed_tokens(report, speculation)
            yield Message("assume_vllm_speculation", method=speculation.method, tokens=tokens)
        hybrid = any(not group.block_tokens for demand, _ in answers for group in demand.pool.groups)
        if request.prefix_caching or (hybrid and any(demand.prefix_caching for demand, _ in answers)):
            yield Message("assume_vllm_prefixes")
        for _, answer in answers:
            if report.spec.dtype is DType.BF16 and answer.gpu.supports("bfloat16") is False:
                yield Message("assume_vllm_half", name=answer.gpu.name)
        if report.spec.dtype is DType.F32:
            yield Message("assume_vllm_float32")
        if any(demand.format_named for demand, _ in answers):
            yield Message("assume_vllm_cache_scheme")
        if not version.prints_concurrency and any(len(demand.pool.groups) > 1 for demand, _ in answers):
            yield Message("assume_vllm_groups")
        if request.kv_budget_bytes is None:
            for _, answer in answers:
                if answer.gpu.origin == "usable":  # of the table
                    available = size(answer.gpu.available_bytes)
                    yield Message("assume_vllm_card", name=answer.gpu.name, available=available)
            for demand, answer in answers:
                if demand.log is not None:
                    yield Message(
                        "assume_vllm_calibrated", name=answer.gpu.name, log=demand.log.log, date=demand.log.date
                    )
            for demand, _ in answers[:1]:
                yield Message("assume_vllm_profile", tokens=demand.step_tokens or 0, sequences=demand.sequences or 0)
            if version.may_have_flashinfer and request.environment.flashinfer is None:
                samples = {version.sampler(report, None, request.environment)} & {"flashinfer"}
                yield Message("assume_vllm_flashinfer" if samples else "assume_vllm_no_flashinfer")
            if request.images and unsized(report.config or {}):
                yield Message("assume_vllm_images")
            graphs = request.environment.graphs
            if not (version.reserves_graphs if graphs is None else graphs) and not request.eager:
                yield Message("assume_vllm_graphs")
        if request.pipeline_ranks > 1:
            yield Message("assume_vllm_pipeline")
        if request.data_ranks > 1 or request.expert_parallel:
            yield Message("assume_vllm_data")
        if request.ranks > 1:
            yield Message("assume_vllm_ranks", ranks=request.ranks)

    def caches(self, report: Report) -> Iterator[EngineCache]:
        workload, dtype = report.workload, report.spec.dtype
        layers, states = report.attention.layers, state_dtypes(report.config or {}, dtype)

        def size_bytes(cache_format: CacheFormat) -> int:
            pool = block_pool(layers, cache_format, ranks=workload.ranks, states=states)
            return pool.size_bytes(tokens=report.context_tokens or 0, batch=workload.batch)

        return cache_rows("vllm", [read_formats("auto", dtype)[0], FORMATS["fp8"]], size_bytes)


def model_limit(config: Mapping[str, Any], context_tokens: int | None) -> int | None:
    """The default max_model_len: the configuration's positions, multiplied by its rotary scaling factor.

    Source: config/model.py, _get_and_verify_max_len; transformers_utils/config.py, patch_rope_parameters.
    """
    text = text_part(config)
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    if context_tokens is None or not isinstance(rope, Mapping) or "gemma3" in str(text.get("model_type")):
        return context_tokens
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
    if kind in (None, "default", "mrope", "su", "longrope", "llama3") or not isinstance(factor, int | float):
        return context_tokens  # longrope: max_position_embeddings is already the scaled length
    original = rope.get("original_max_position_embeddings", text.get("original_max_position_embeddings"))
    positions = original if kind == "yarn" and isinstance(original, int) else context_tokens
    return int(positions * factor) if 1 <= factor <= 1 << 20 and positions > 0 else context_tokens


ENGINE = Vllm()

"""SGLang 0.5.23, on each of one or more tensor-parallel ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...language import Message
from ...typed import TYPE_CHECKING
from ...units import size
from ...values import replace
from ..interface import RANKS, Alternative, Choice, Engine
from .demand import SglangDemand, is_known
from .release import VERSION

if TYPE_CHECKING:
    from ...results.fit import CardAnswer, Gpu
    from ...results.model import Report
    from ...results.serving import Serving


class Sglang(Engine["Serving", SglangDemand]):
    name = "sglang"
    version = VERSION

    def demand(self, report: Report, request: Serving, gpu: Gpu) -> SglangDemand:
        return SglangDemand(report, request, gpu)

    def changes(self, demand: SglangDemand, report: Report, request: Serving, gpu: Gpu) -> Iterator[Choice[Serving]]:
        """The cache in 8 bits, more ranks, a larger card."""
        if demand.format.name != "fp8":
            in_fp8 = replace(request, cache_format="fp8")
            yield Choice("all", [Alternative("cache", Message("suggest_cache", format="fp8"), report, in_fp8, gpu)])
        ranks = (
            Alternative("tensor_parallel", Message("suggest_ranks", ranks=n), report, replace(request, ranks=n), gpu)
            for n in RANKS
            if n > request.ranks
        )
        yield Choice("until", ranks)
        yield self.larger_cards(report, request, gpu)

    def assumptions(
        self, report: Report, request: Serving, answers: Sequence[tuple[SglangDemand, CardAnswer]]
    ) -> Iterator[Message]:
        for demand, answer in answers:
            low, high = demand.pool_tokens()
            yield Message("assume_sglang_pool", name=answer.gpu.name, low=low, high=high, share=f"{demand.share:g}")
            if demand.pools.state_bytes:
                low, high = demand.state_slots()
                yield Message("assume_sglang_states", low=low, high=high, slots=demand.pools.sequence_slots)
            if demand.pools.window_bytes:
                yield Message("assume_sglang_windows", share=f"{demand.pools.options.window_share:g}")
            if demand.images:
                yield Message("assume_sglang_images")
        for demand, answer in answers:
            if (log := demand.log) is not None:
                yield Message("assume_sglang_calibrated", name=answer.gpu.name, log=log.log, date=log.date)
        ends = [demand.context_ends for demand, _ in answers]
        version = request.version or self.version
        if not is_known(request.version):
            yield Message("assume_sglang_unknown", version=version)
        yield Message(
            "assume_sglang",
            version=version,
            low=size(min(low for low, _ in ends)),
            high=size(max(high for _, high in ends)),
        )
        if request.ranks > 1:
            yield Message("assume_vllm_ranks", ranks=request.ranks)


ENGINE = Sglang()

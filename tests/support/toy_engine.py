"""An engine in the fewest lines: the weights, a MiB of cache for each token, and a range outside."""

from __future__ import annotations

from qwen_inspect.engines.interface import Demand, Engine
from qwen_inspect.results.fit import Gpu, Requirement
from qwen_inspect.results.model import Report
from qwen_inspect.results.serving import Serving


class ToyDemand(Demand):
    def __init__(self, report: Report) -> None:
        self.weights_bytes, self.most_context_tokens = report.tree.size_bytes, report.spec.context_tokens

    def requirement(self, batch: int, context_tokens: int) -> Requirement:
        terms = (("weights", self.weights_bytes), ("cache", batch * context_tokens * 2**20))
        return Requirement(terms=terms, context_low_bytes=100 * 2**20, context_high_bytes=500 * 2**20)


class Toy(Engine[Serving, ToyDemand]):
    name = "toy"
    version = "1.0"

    def demand(self, report: Report, asked: Serving, gpu: Gpu) -> ToyDemand:
        return ToyDemand(report)


ENGINE = Toy()

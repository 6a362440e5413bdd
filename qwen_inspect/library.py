"""What `from qwen_inspect import inspect` gives: a Report that can also tell the memory that its model takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import wraps
from typing import ParamSpec

from .predicting.predict import predict
from .results.memory import Footprint, Run
from .results.model import Report
from .structure.inspect import inspect as report_of

Arguments = ParamSpec("Arguments")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection(Report):
    """A model's report. See `Report` for what it holds; `memory` is predicted when it is asked for."""

    @property
    def memory(self) -> Footprint:
        """The footprint of generating from a prompt of the context asked for (2,048 tokens where none was), as predicted.

        Raises what was refused, where not even a formula is left.
        """
        return self.memory_of(Run())

    def memory_of(self, run: Run) -> Footprint:
        """The footprint of `run`, with the batch, the context and the cache's format of this report."""
        workload = self.workload
        tokens = workload.context_tokens or run.prompt_tokens
        chosen = replace(run, batch=workload.batch, prompt_tokens=tokens, cache_format=workload.cache_format)
        return predict(self, chosen).predicted


def _inspecting(report_of: Callable[Arguments, Report]) -> Callable[Arguments, Inspection]:
    @wraps(report_of)
    def inspect(*arguments: Arguments.args, **options: Arguments.kwargs) -> Inspection:
        report = report_of(*arguments, **options)
        return Inspection(**{field.name: getattr(report, field.name) for field in fields(report)})

    return inspect


inspect = _inspecting(report_of)

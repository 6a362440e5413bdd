"""Training runs composed from a family's trace, against transformers' own, for configurations that it was not made from."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import pytest

from benchmarks.keep_traces import bases, report_of
from benchmarks.sampling import sampled
from qwen_inspect.predicting.family_file import SHIPPED
from qwen_inspect.predicting.family_training import training_trace
from qwen_inspect.predicting.kept_trace import Point
from qwen_inspect.predicting.optimizer_steps import COVERED
from qwen_inspect.predicting.predict import trace_request
from qwen_inspect.predicting.training_plan import plan_of
from qwen_inspect.results.memory import Run
from qwen_inspect.tracing.trace import trace

from .test_family_traces import of_layers, without_order_of_frees

KEPT = sorted(path.name.removesuffix("-training.json.gz") for path in SHIPPED.glob("*-training.json.gz"))
# With each optimizer.
OPTIONS: tuple[Mapping[str, Any], ...] = (
    {},
    {"checkpointing": True},
    {"accumulate": 2},
    {"batch": 1},
    {"batch": 1, "accumulate": 2, "checkpointing": True},
)


def assert_as_transformers(config: Mapping[str, Any], **changes: Any) -> None:
    report = report_of(config)
    run = Run(mode="train", attention=report.spec.kernel, **{"batch": 2, "prompt_tokens": 37, **changes})
    plan = plan_of(report, run)
    composed = training_trace(report, plan)
    assert composed is not None
    theirs = trace(report.spec, config, trace_request(plan.run, plan.four_bits))
    mine = composed.at(Point(run.batch, run.prompt_tokens, run.prompt_tokens))
    assert mine.stages == theirs.stages
    assert without_order_of_frees(mine.events) == without_order_of_frees(theirs.events)
    assert (mine.sums, mine.cast) == (theirs.sums, theirs.cast)


@pytest.mark.parametrize(
    ("family", "seed"),
    [
        # Of each family one in every run.
        pytest.param(family, seed, marks=[] if seed == number % len(COVERED) else pytest.mark.exhaustive)
        for number, family in enumerate(KEPT)
        for seed in range(len(COVERED))
    ],
)
def test_an_unseen_configuration_trains_as_transformers_trains_it(family: str, seed: int) -> None:
    random = Random(f"{family} trained {seed}")
    base = next(bases(family))
    config = of_layers(sampled(base, random), random.randint(4, 5))
    changes = {"optimizer": COVERED[seed], "prompt_tokens": random.randint(8, 90), **OPTIONS[seed]}
    assert_as_transformers(config, **changes)

"""Makes the traces of families' training with images in the package, for installs without torch:
`keep_image_training.py KIND MODEL_TYPE ...`.

KIND: a key of `TRAINED`. With `--unaccumulated`, steps of one micro-batch alone. Regimes that a file has are kept, and are not
learnt again. As `keep_image_traces.py`: learnt from traces of random configurations in a few layers with random
images, and held against traces of others, event by event. An optimizer is no part of them. Needs the torch extra.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.keep_image_traces import SAMPLES, Learner, defaults_of_tower
from benchmarks.keep_traces import defaults_of, report_of
from benchmarks.keep_training import UNACCUMULATED, without_steps
from benchmarks.repeats import NoPattern
from benchmarks.structures import bases
from qwen_inspect.predicting.families.composition import shallow_layers, surroundings_of
from qwen_inspect.predicting.families.family_file import SHIPPED
from qwen_inspect.predicting.families.family_trace import NotCovered
from qwen_inspect.predicting.families.family_training import schedule_of
from qwen_inspect.predicting.families.image_file import dump, read
from qwen_inspect.predicting.families.image_trace import Design, ImageTrace, ImageVariant
from qwen_inspect.predicting.families.image_training import (
    composed,
    image_training_file,
    options_in,
    trained_design,
    trained_regime,
)
from qwen_inspect.predicting.families.shallow_training import constant
from qwen_inspect.predicting.sources import point_of, trace_request
from qwen_inspect.predicting.traces.kept_trace import ALIGNMENTS, KeptTrace
from qwen_inspect.predicting.traces.optimizer_steps import COVERED
from qwen_inspect.predicting.traces.segments import apart
from qwen_inspect.predicting.training import trained_of
from qwen_inspect.predicting.training_plan import plan_of
from qwen_inspect.results.memory import Run
from qwen_inspect.results.model import Report
from qwen_inspect.results.timeline import Free, Timeline
from qwen_inspect.tracing import versions
from qwen_inspect.tracing.trace import trace

TOWER = "visual|vision_tower"
TRAINED: Mapping[str, dict[str, Any]] = {
    "full": {},
    "frozen": {"frozen": TOWER},
    "lora": {"lora_rank": 8},
    "lora-qv": {"lora_rank": 8, "lora_targets": ("q_proj", "v_proj")},
}
KINDS = ("one", "several", "batch")  # of images
MORE_SAMPLES = 3  # of each regime but the first
SCHEDULES: Mapping[str, dict[str, Any]] = {
    schedule_of(Run(mode="train", **options)): options
    for options in (
        {"checkpointing": False},
        {"checkpointing": True},
        {"checkpointing": False, "accumulate": 2},
        {"checkpointing": True, "accumulate": 2},
    )
}


class TrainedLearner(Learner):
    """Of the structure that a release has, and of what is trained of it."""

    surroundings = staticmethod(surroundings_of)  # type: ignore[assignment]
    alignment = ALIGNMENTS[-1]
    first_check = 2

    def __init__(
        self, base: Mapping[str, Any], defaults: Mapping[str, Any], vision: Mapping[str, Any], what: Mapping[str, Any]
    ) -> None:
        self.what = what
        super().__init__(base, defaults, vision)

    def first_layers(self) -> int | None:
        return shallow_layers(self.design.decoder)

    def deep_tower(self, random: Random) -> Sequence[Hashable]:
        """A whole one takes long. All kinds of layers are in it: with fewer features to add it is another structure."""
        whole, known = self.design.tower, set(self.surroundings(self.tower))
        towers = (whole[:layers] for layers in range(len(self.tower) + 1, len(whole) + 1))
        fitting = (tower for tower in towers if {*tower} == {*whole} and set(self.surroundings(tower)) <= known)
        return random.choice([*islice(fitting, 3)])

    def changes(self, random: Random) -> dict[str, Any]:
        return {**self.what, **({"lora_rank": random.randint(3, 40)} if "lora_rank" in self.what else {})}

    def designed(self, config: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[Report, Design]:
        report = report_of(config)
        plan = plan_of(report, Run(mode="train", attention=report.spec.kernel, **changes))
        return report, trained_design(report, plan, self.vision)

    def run(self, grown: str, random: Random, *, deep: bool) -> Run:
        chosen: dict[str, Any] = {**SCHEDULES[grown], "optimizer": random.choice(COVERED) if deep else "sgd"}
        return Run(mode="train", **chosen)

    def some(self, random: Random, kind: str, number: int, regime: str = "") -> tuple[list[Any], int]:
        if number == 0:  # the fewest windows that the regime has
            return [(1, 1)] * (2 if kind == "several" else 1), 2 if kind == "batch" else 1
        return super().some(random, kind, number, regime)

    def numbers(self, place: int, *, beside_known: bool) -> tuple[int, int]:
        """Those of the first images tell variables apart, with each schedule: a frozen tower has a backward only if it is
        checkpointed.
        """
        return (SAMPLES if place < len(self.steps) else MORE_SAMPLES), 1

    def regime(self, run: Run, design: Design) -> str:
        return trained_regime(run, design)

    def traced(self, report: Report, config: Mapping[str, Any], run: Run, *, deep: bool) -> tuple[KeptTrace, Timeline]:
        plan = plan_of(report, run)
        request = trace_request(plan.run, plan.four_bits)
        request = request if deep else replace(request, steps=1)  # which `of_two_steps` has twice
        timeline = trace(report.spec, config, request)
        if deep:  # of any optimizer
            return apart(constant(timeline))[1], timeline
        trained = trained_of(report.tree, plan.run, plan.matrices)
        return apart(without_steps(timeline, trained))[1], timeline

    def options(self) -> dict[str, Any]:
        plan = plan_of(self.report, Run(mode="train", attention=self.report.spec.kernel, **self.changes(Random(0))))
        family = ImageTrace(made_by="", defaults=self.defaults, vision_defaults=self.vision, variants=())
        return options_in(self.report, plan, self.design, family)

    def assert_composed(
        self, variant: ImageVariant, report: Report, design: Design, run: Run, expected: Timeline
    ) -> None:
        plan = plan_of(report, run)
        mine = composed(variant, report, plan, design)
        whole = constant(expected)
        point = point_of(run)
        found, wanted = mine.at(point), whole.at(point)
        if (found.stages, found.sums, rows(found)) != (wanted.stages, wanted.sums, rows(wanted)):
            raise NoPattern("another run")

    @property
    def steps(self) -> Sequence[str]:
        return [*SCHEDULES][: 2 if UNACCUMULATED in sys.argv else None]

    def regimes(self) -> Iterator[tuple[str, str, str]]:
        for kind in KINDS:
            for schedule in self.steps:
                yield kind, schedule, schedule + kind

    def is_of(self, variant: ImageVariant) -> bool:
        return super().is_of(variant) and variant.options == self.options()


def rows(timeline: Timeline) -> list[object]:
    """The events, of which consecutive frees are in order: what the allocator has after them is the same in any."""
    of_frees = groupby(timeline.events, key=lambda event: isinstance(event, Free))
    return [event for frees, group in of_frees for event in (sorted(group) if frees else group)]


def main() -> None:
    kind, *types = [word for word in sys.argv[1:] if word != UNACCUMULATED]
    for model_type in types:
        began = time.perf_counter()
        path = Path(SHIPPED, image_training_file(model_type))
        defaults, vision = defaults_of(next(bases(model_type))), defaults_of_tower(model_type)
        made: list[ImageVariant] = []
        for base in bases(model_type, varied=False):
            try:
                learner = TrainedLearner(base, defaults, vision, TRAINED[kind])
            except NotCovered:
                continue
            if any(learner.is_of(variant) for variant in made):
                continue
            family = read(path.name)
            known = next((variant for variant in family.variants if learner.is_of(variant)), None) if family else None
            try:
                variant = learner.learnt(Random(f"{model_type} {kind}"), known)
                learner.check(variant, Random(f"{model_type} {kind} checks"), known)
            except (NoPattern, NotCovered) as error:
                print(f"  {base.get('architectures')}: {type(error).__name__} {error}"[:1500], flush=True)
                continue
            made.append(variant)
            read.cache_clear()
            family = read(path.name)
            kept = () if family is None else (other for other in family.variants if not learner.is_of(other))
            family = ImageTrace(
                made_by=versions(), defaults=defaults, vision_defaults=vision, variants=(*kept, variant)
            )
            path.write_bytes(dump(family))
            size, seconds = path.stat().st_size, time.perf_counter() - began
            print(f"  {len(family.variants)} variants, {size:,} B, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()

"""Makes the families' traces with images in the package, for installs without torch: `keep_image_traces.py MODEL_TYPE ...`.

Each is learnt from traces of random configurations in a few layers with random images, and is held against traces of others,
event by event. Needs the torch extra.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.image_learning import Sample, learn
from benchmarks.image_samples import FAMILIES, LEAST, images, seeing
from benchmarks.keep_traces import defaults_of, outline, report_of
from benchmarks.repeats import NoPattern
from benchmarks.structures import bases
from qwen_inspect.predicting.family_file import SHIPPED
from qwen_inspect.predicting.family_trace import NotCovered, Variables, loaded_of
from qwen_inspect.predicting.few_layers import around, fewest_layers, first_layers
from qwen_inspect.predicting.image_file import dump, image_file
from qwen_inspect.predicting.image_trace import (
    Design,
    ImageTrace,
    ImageVariant,
    design_of,
    regime_of,
    vision_options,
    workload_of,
)
from qwen_inspect.predicting.kept_trace import Point
from qwen_inspect.predicting.outline import options_of
from qwen_inspect.predicting.segments import apart, fixed
from qwen_inspect.predicting.sources import trace_request
from qwen_inspect.results.media import Media
from qwen_inspect.results.memory import Run
from qwen_inspect.results.model import Report
from qwen_inspect.results.timeline import Timeline
from qwen_inspect.tracing import versions
from qwen_inspect.tracing.trace import trace

GPUS = ("A100-80GB", "H100-80GB")  # of which one has cuDNN's attention
SAMPLES, CHECKS = 9, 2  # of each regime
GROWN = {"grown": (3, 90), "first step": (2, 2), "no step": (1, 1)}  # new tokens
# Windows of each image and sequences of a run, and of others with one more image, or with more windows.
BASES = {
    "one": ([(2, 2)], 1, {"windows": ([(1, 5)], 1)}),
    "several": (
        [(1, 1), (1, 2), (1, 5)],
        1,
        {"images": ([(1, 1), (1, 2), (1, 4), (1, 1)], 1), "windows": ([(1, 1), (1, 2), (1, 6)], 1)},
    ),
    "batch": ([(2, 2)], 3, {"images": ([(1, 3)], 4), "windows": ([(1, 5)], 3)}),
}


def defaults_of_tower(model_type: str) -> dict[str, Any]:
    import transformers

    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in transformers.AutoConfig.for_model(model_type).vision_config.to_dict().items()
        if value is None or isinstance(value, (int, float, str, list, tuple))
    }


class Learner:
    """Of the structure that a release has."""

    def __init__(self, base: Mapping[str, Any], defaults: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
        self.base, self.defaults, self.vision = base, defaults, vision
        self.report, self.design = self._designed(base)
        kept = fewest_layers(self.design.tower)
        assert kept is not None
        self.tower = tuple(self.design.tower[layer] for layer in kept)
        layers = first_layers(around(self.design.decoder))
        assert layers is not None
        self.decoder = self.design.decoder[:layers]

    def _designed(self, config: Mapping[str, Any]) -> tuple[Report, Design]:
        report = report_of(config)
        design = outline(report)
        assert design is not None
        return report, design_of(report, design, self.vision)

    def sample(
        self, seed: object, windows: list[tuple[int, int]], batch: int, grown: str, *, deep: bool = False
    ) -> tuple[Sample, Report, Design, Media, Point, Timeline]:
        random = Random(repr(seed))
        tower = self.tower if not deep else self.design.tower
        layers = len(self.decoder) if not deep else len(self.decoder) + random.randint(1, 4)
        config = seeing(self.base, tower, layers, random)
        report, design = self._designed(config)
        assert (design.structure, design.tower) == (self.design.structure, tower), seed
        vision = {**self.vision, **config["vision_config"]}
        media = images(windows, vision, random)
        new_tokens = random.randint(*GROWN[grown])
        prompt_tokens = media.least_tokens + random.randint(2, 60)
        kernel, gpu = report.spec.kernel, random.choice(GPUS)
        run = Run(
            media=media, batch=batch, prompt_tokens=prompt_tokens, new_tokens=new_tokens, attention=kernel, gpu=gpu
        )
        point = Point(batch, prompt_tokens, run.cached_tokens)
        timeline = trace(report.spec, config, trace_request(run))
        _, rest = apart(fixed(timeline))
        sample = Sample(rest, design.dimensions, *workload_of(media, point, design.window))
        return sample, report, design, media, point, timeline

    def some(self, random: Random, kind: str, number: int) -> tuple[list[tuple[int, int]], int]:
        """Windows of images, and sequences; in the first samples the fewest."""
        if number < 2 and kind == "one":
            return [(1, number + 1)], 1
        count, batch = random.randint(2, 5) if kind == "several" else 1, random.randint(2, 5) if kind == "batch" else 1
        return [(random.randint(1, 4), random.randint(1, 5)) for _ in range(count)], batch

    def runs(self, kind: str, grown: str) -> tuple[str, Sample, dict[str, Sample]]:
        """The regime's name, and the runs that show what repeats."""
        windows, batch, others = BASES[kind]
        base, _, _, media, point, _ = self.sample("base", windows, batch, grown)
        axes = {"images", "windows"} if self.design.window else {"images"}
        longer = {axis: self.sample("base", *more, grown)[0] for axis, more in others.items() if axis in axes}
        return regime_of(media, point), base, longer

    def learnt(self, random: Random) -> ImageVariant:
        runs: dict[str, Any] = {}
        dimensions = []
        for kind in BASES:
            for grown in GROWN:
                name, base, longer = self.runs(kind, grown)
                samples = [
                    self.sample((name, number), *self.some(random, kind, number), grown)[0] for number in range(SAMPLES)
                ]
                runs[name] = base, longer, samples
                dimensions += [sample.dimensions for sample in (base, *samples)]
        variables = Variables.of_samples(dimensions)
        programs = {}
        for name, (base, longer, samples) in runs.items():
            programs[name] = learn(base, longer, samples, variables)
            print(f"    {name}: {len(programs[name].loops)}", flush=True)
        config = dict(self.base)
        return ImageVariant(
            kernel=self.report.spec.kernel,
            options={**options_of(config, self.defaults), **vision_options(config, self.vision)},
            structure=self.design.structure,
            tower=self.tower,
            decoder=self.decoder,
            least=self.design.window or LEAST,
            variables=variables,
            programs=programs,
        )

    def check(self, variant: ImageVariant, random: Random) -> None:
        """Holds deep runs of unseen configurations against their own traces."""
        for kind in BASES:
            for grown in GROWN:
                for number in range(CHECKS):
                    windows, batch = self.some(random, kind, number)
                    _, report, design, media, point, expected = self.sample(
                        ("check", number, kind, grown), windows, batch, grown, deep=True
                    )
                    made = variant.at(design, media, point, loaded_of(report.tree))
                    mine, whole = made.at(point), fixed(expected).at(point)
                    if (mine.events, mine.stages, mine.kept) != (whole.events, whole.stages, whole.kept):
                        raise NoPattern(f"{windows} {batch} {grown}: another run")


def main() -> None:
    for model_type in sys.argv[1:] or FAMILIES:
        began = time.perf_counter()
        defaults, vision = defaults_of(next(bases(model_type))), defaults_of_tower(model_type)
        variants: list[ImageVariant] = []
        for base in bases(model_type, varied=False):
            learner = Learner(base, defaults, vision)
            if any(
                variant.structure == learner.design.structure
                and set(around(learner.design.tower)) <= set(around(variant.tower))
                for variant in variants
            ):
                continue
            try:
                variant = learner.learnt(Random(model_type))
                learner.check(variant, Random(f"{model_type} checks"))
            except (NoPattern, NotCovered) as error:
                print(f"  {base.get('architectures')}: {type(error).__name__} {error}"[:1500], flush=True)
                continue
            variants.append(variant)
            family = ImageTrace(made_by=versions(), defaults=defaults, vision_defaults=vision, variants=tuple(variants))
            path = Path(SHIPPED, image_file(model_type))
            path.write_bytes(dump(family))
            print(
                f"  {len(variants)} variants, {path.stat().st_size:,} B, {time.perf_counter() - began:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()

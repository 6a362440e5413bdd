"""Makes the families' traces with images in the package, for installs without torch: `keep_image_traces.py MODEL_TYPE ...`.

With `--more`, the kept traces stay, and only the regimes that they lack are learnt.
Each is learnt from traces of random configurations in a few layers with random images, and is held against traces of others,
event by event. Needs the torch extra.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.image_learning import Sample, learn
from benchmarks.image_samples import FAMILIES, LEAST, images, kinds_of, seeing
from benchmarks.keep_traces import defaults_of, outline, report_of
from benchmarks.repeats import NoPattern
from benchmarks.structures import bases
from qwen_inspect.predicting.allocation.workspaces import has_cudnn_attention
from qwen_inspect.predicting.families.family_file import SHIPPED
from qwen_inspect.predicting.families.family_trace import NotCovered, Variables, loaded_of
from qwen_inspect.predicting.families.image_file import dump, image_file, read
from qwen_inspect.predicting.families.image_numbers import VIDEO_WINDOWS
from qwen_inspect.predicting.families.image_towers import FAMILIES as TOWERS
from qwen_inspect.predicting.families.image_towers import tower_in
from qwen_inspect.predicting.families.image_trace import (
    BATCH_OF_SEVERAL,
    BESIDE,
    Design,
    ImageTrace,
    ImageVariant,
    design_of,
    regime_of,
    workload_of,
)
from qwen_inspect.predicting.families.repeats import Program, Size
from qwen_inspect.predicting.families.stacks import around, fewest_layers, first_layers
from qwen_inspect.predicting.sources import point_of, trace_request
from qwen_inspect.predicting.traces.kept_trace import CHUNK_TOKENS, KeptTrace
from qwen_inspect.predicting.traces.outline import options_of
from qwen_inspect.predicting.traces.segments import apart, fixed
from qwen_inspect.results.media import Media
from qwen_inspect.results.memory import Run
from qwen_inspect.results.model import Report
from qwen_inspect.results.timeline import Timeline
from qwen_inspect.tracing import versions
from qwen_inspect.tracing.trace import trace

GPUS = ("A100-80GB", "H100-80GB")  # of which one has cuDNN's attention
SAMPLES, CHECKS = 9, 2  # of each regime
FEW_SAMPLES, FEW_CHECKS = (
    6,
    1,
)  # where there are many regimes, and beside known ones, whose samples told variables apart
TRIES = 300  # configurations, and lengths of each, among which a regime is looked for
CHUNKS = 5  # of the prompt of a run that shows what repeats, where linear attention takes it in chunks
GROWN = {"grown": (3, 90), "first step": (2, 2), "no step": (1, 1)}  # new tokens
# On which sides of a window the prompt and all tokens are, and what takes an attention's mask.
SIDES = {"grown": ("<<", "<>", ">>"), "first step": ("<<", ">>"), "no step": ("<<", ">>")}
MASKS = ("cudnn", "padded rows", "whole rows")
# Windows of each image (and frames, of a video), and sequences of a run; of others with one more image or frame, or with more
# windows.
BASES: dict[str, tuple[list[Any], int, dict[str, tuple[list[Any], int]]]] = {
    "one": ([(2, 2)], 1, {"windows": ([(1, 5)], 1)}),
    "several": (
        [(1, 1), (1, 2), (1, 5)],
        1,
        {"images": ([(1, 1), (1, 2), (1, 4), (1, 1)], 1), "windows": ([(1, 1), (1, 2), (1, 6)], 1)},
    ),
    "batch of several": (
        [(1, 1), (1, 2), (1, 5)],
        3,
        {"images": ([(1, 1), (1, 2), (1, 4), (1, 1)], 3), "windows": ([(1, 1), (1, 2), (1, 6)], 3)},
    ),
    "batch": ([(2, 2)], 3, {"images": ([(1, 3)], 4), "windows": ([(1, 5)], 3)}),
    "one video": ([(2, 2, 3)], 1, {"frames": ([(1, 3, 4)], 1), "windows": ([(1, 5, 3)], 1)}),
    "several videos": (
        [(1, 1, 2), (1, 2, 2), (1, 3, 2)],
        1,
        {
            "images": ([(1, 1, 2), (1, 2, 2), (1, 4, 1), (1, 2, 1)], 1),
            "frames": ([(1, 1, 4), (1, 2, 2), (1, 4, 1)], 1),
            "windows": ([(1, 1, 2), (1, 2, 2), (1, 4, 2)], 1),
        },
    ),
}
# The same of images that are stacked: with one more that is as wide as the widest, or narrower; with an odd number of sequences,
# because the rows of a mask of twice as many are always whole.
STACKED = {
    "several": (
        [(1, 1), (1, 5), (1, 2), (1, 5)],
        1,
        {"images": ([(1, 1), (1, 5), (1, 2), (1, 5), (1, 5)], 1), "narrow": ([(1, 1), (1, 5), (1, 2), (1, 2)], 1)},
    ),
    "batch": ([(1, 2)], 3, {"images": ([(1, 3)], 5)}),
}


def _beside(kind: str) -> tuple[list[Any], int, dict[str, tuple[list[Any], int]]]:
    """`BASES` of images beside videos, which have windows of their own."""
    (images, _, more_images), (videos, _, more_videos) = (BASES[part] for part in kind.split(BESIDE))
    others = {axis: ([*windows, *videos], 1) for axis, (windows, _) in more_images.items()}
    others |= {axis.replace("windows", VIDEO_WINDOWS): ([*images, *more], 1) for axis, (more, _) in more_videos.items()}
    return [*images, *videos], 1, others


def defaults_of_tower(model_type: str) -> dict[str, Any]:
    import transformers

    config = transformers.AutoConfig.for_model(model_type)
    tower = config.vision_config or config.sub_configs["vision_config"]()
    beside = TOWERS[model_type].beside if model_type in TOWERS else ()
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in {**{key: getattr(config, key) for key in beside}, **tower.to_dict()}.items()
        if value is None or isinstance(value, (int, float, str, list, tuple))
    }


def in_chunks(prompt_tokens: int, chunks: int | None, random: Random) -> int:
    """A prompt of that length, of at least two chunks; or of so many of them, if it is not longer."""
    if chunks is None:
        return max(prompt_tokens, CHUNK_TOKENS + random.randint(1, CHUNK_TOKENS))
    assert prompt_tokens <= chunks * CHUNK_TOKENS, (prompt_tokens, chunks)
    return random.randint(max(prompt_tokens, (chunks - 1) * CHUNK_TOKENS + 1), chunks * CHUNK_TOKENS)


class Learner:
    """Of the structure that a release has."""

    def __init__(self, base: Mapping[str, Any], defaults: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
        self.base, self.defaults, self.vision = base, defaults, vision
        self.report, self.design = self.designed(base, self.changes(Random(0)))
        kept, layers = fewest_layers(self.design.tower, self.surroundings), self.first_layers()
        if kept is None or layers is None:
            raise NotCovered
        self.tower = tuple(self.design.tower[layer] for layer in kept)
        self.decoder = self.design.decoder[:layers]

    # --- what training has otherwise

    surroundings = staticmethod(around)  # of layers, of which those with equal ones are alike
    alignment = 1  # of dimensions, by which sums over rows are vectorised
    first_check = 0  # the number of `some` for the first check

    def first_layers(self) -> int | None:
        """How many of the decoder's stand for all."""
        return first_layers(around(self.design.decoder))

    def deep_tower(self, random: Random) -> Sequence[Hashable]:
        """Kinds of layers of a tower that the few stand for."""
        return self.design.tower

    def changes(self, random: Random) -> dict[str, Any]:
        """Options of a run that do not matter to its structure."""
        return {}

    def designed(self, config: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[Report, Design]:
        report = report_of(config)
        design = outline(report)
        assert design is not None
        return report, design_of(report, design, self.vision)

    def run(self, grown: str, random: Random, *, deep: bool) -> Run:
        """The run, of which images, sequences and tokens of a prompt are another's business. grown: one of `steps`. deep: whether
        it checks what was learnt.
        """
        return Run(new_tokens=random.randint(*GROWN[grown]))

    def numbers(self, place: int, *, beside_known: bool) -> tuple[int, int]:
        """Of samples and of checks of a regime. place: of the regime, among all."""
        return (FEW_SAMPLES, FEW_CHECKS) if self.many or beside_known else (SAMPLES, CHECKS)

    def regime(self, run: Run, design: Design) -> str:
        assert run.media is not None
        return regime_of(run.media, point_of(run), design, cudnn=has_cudnn_attention(run.gpu))

    def traced(self, report: Report, config: Mapping[str, Any], run: Run, *, deep: bool) -> tuple[KeptTrace, Timeline]:
        """What is learnt of a run, and its trace. deep: whether it is one that checks what was learnt."""
        timeline = trace(report.spec, config, trace_request(run))
        return apart(fixed(timeline))[1], timeline

    def options(self) -> dict[str, Any]:
        config = dict(self.base)
        return {**options_of(config, self.defaults), **tower_in(config).options(config, self.vision)}

    def assert_composed(
        self, variant: ImageVariant, report: Report, design: Design, run: Run, expected: Timeline
    ) -> None:
        """NoPattern unless the variant has the run."""
        assert run.media is not None
        point, cudnn = point_of(run), has_cudnn_attention(run.gpu)
        mine = variant.at(design, run.media, point, loaded_of(report.tree), cudnn=cudnn).at(point)
        whole = fixed(expected).at(point)
        if (mine.events, mine.stages, mine.kept) != (whole.events, whole.stages, whole.kept):
            raise NoPattern("another run")

    # --- samples

    def sample(
        self,
        seed: object,
        windows: list[Any],
        batch: int,
        grown: str,
        *,
        deep: bool = False,
        regime: str = "",
        chunks: int | None = None,
    ) -> tuple[Sample, Report, Design, Media, Run, Timeline]:
        """regime: of the run, one of `regimes`; whichever it is if that is not said. chunks: of the prompt, where linear
        attention takes it in chunks; as many as it happens to have, but several, if that is not said.
        """
        random = Random(repr(seed))
        for _ in range(TRIES):
            config, report, design, media, changes = self._seeing(windows, random, deep=deep)
            long = design.known.tiled or design.known.padded
            longest = max((tokens for kind, tokens in design.thresholds if kind != "dynamic"), default=0) if long else 0
            for _ in range(TRIES):
                prompt_tokens = media.least_tokens + random.randint(1, 60 + longest)
                run = replace(
                    self.run(grown, random, deep=deep),
                    media=media,
                    batch=batch,
                    prompt_tokens=in_chunks(prompt_tokens, chunks, random) if design.kernel else prompt_tokens,
                    attention=report.spec.kernel,
                    gpu=random.choice(GPUS),
                    **changes,
                )
                if not regime or self.regime(run, design) == regime:
                    rest, timeline = self.traced(report, config, run, deep=deep)
                    workload = workload_of(media, point_of(run), design)
                    return Sample(rest, design.dimensions, *workload), report, design, media, run, timeline
        raise NoPattern(f"no sample of {regime}")

    def _seeing(
        self, windows: list[Any], random: Random, *, deep: bool
    ) -> tuple[dict[str, Any], Report, Design, Media, dict[str, Any]]:
        """A configuration of this structure, images for it, and options of a run."""
        tower = self.tower if not deep else self.deep_tower(random)
        for _ in range(TRIES):
            layers = len(self.decoder) if not deep else random.choice(self.deeper())
            config = seeing(self.base, tower, layers, random)
            changes = self.changes(random)
            report, design = self.designed(config, changes)
            if (design.structure, design.tower) == (self.design.structure, tower):
                vision = {**self.vision, **config["vision_config"]}
                return config, report, design, images(windows, config, vision, random), changes
        raise NoPattern("no sample of this structure")

    def is_of(self, variant: ImageVariant) -> bool:
        """Whether a variant was learnt from models like these."""
        design = variant.structure, variant.tower, variant.decoder
        return design == (self.design.structure, self.tower, self.decoder)

    def deeper(self) -> list[int]:
        """Numbers of layers that the few stand for."""
        few, whole = len(self.decoder), self.design.decoder
        known = set(self.surroundings(self.decoder))
        fitting = (
            layers for layers in range(few + 1, len(whole) + 1) if set(self.surroundings(whole[:layers])) <= known
        )
        return [*islice(fitting, 4)]

    @property
    def steps(self) -> Sequence[str]:
        """Those of GROWN that are learnt; where there are many regimes, the rare one of two new tokens is not, nor one new token
        of a family whose traces take long, of which prompts that only decoding takes beyond a window are not learnt either.
        """
        if self.design.known.padded:
            return ["grown"]
        return [grown for grown in GROWN if grown != "first step" or not self.many]

    @property
    def many(self) -> bool:
        """Whether runs differ by masks too."""
        return bool(self.design.known.masked)

    def _regimes(self, kind: str, grown: str) -> Iterator[str]:
        """Those of images and sequences of this kind, and of so many new tokens, but for lengths that are just a threshold's."""
        masked = self.design.known.masked
        thresholds = [kind for kind, _ in self.design.thresholds if kind != "dynamic"]  # longer runs are not learnt
        if any(threshold != "window" for threshold in thresholds) or (thresholds and masked == "patches"):
            raise NotCovered
        sides = SIDES[grown] if thresholds else ("",)
        if self.design.known.padded:
            sides = tuple(side for side in sides if side != "<>")
        for parts in product([kind], [grown], sides, MASKS if masked else ("",)):
            yield ", ".join(filter(None, parts))

    def regimes(self) -> Iterator[tuple[str, str, str]]:
        """Those that are learnt, each with its kind of images and its new tokens."""
        for kind, grown in product(kinds_of(self.base["model_type"]), self.steps):
            yield from ((kind, grown, name) for name in self._regimes(kind, grown))

    def some(self, random: Random, kind: str, number: int, regime: str = "") -> tuple[list[Any], int]:
        """Windows of images, and sequences, for a run of this regime; in the first samples the fewest, and so of chunks."""
        known = self.design.known
        if BESIDE in kind:
            parts = [self.some(random, part, number, regime)[0] for part in kind.split(BESIDE)]
            return [*parts[0], *parts[1]], 1
        if "video" in kind:
            videos = random.randint(2, 3) if kind == "several videos" else 1
            if number < 2:
                return [(1, number + 1, 2)] * (2 if kind == "several videos" else 1), 1
            return [(random.randint(1, 3), random.randint(1, 3), random.randint(2, 5)) for _ in range(videos)], 1
        if known.together and kind == "one":
            return [(1, 1)], 1
        if number < 2 and kind == "one":
            return [(1, number + 1)], 1
        if number == 0 and (self.design.kernel or kind == BATCH_OF_SEVERAL):
            return [(1, 1)] * (2 if "several" in kind else 1), 2 if "batch" in kind else 1
        if number == 0 and kind == "several":
            return [(1, 3), (2, 3)], 1
        if known.tiled and kind == "several":
            return [(random.randint(1, 2), random.randint(2, 4)) for _ in range(random.randint(1, 3))], 1
        if known.together and kind == "several":
            count, batch = random.choice([(1, 2), (2, 1), (1, 4), (3, 1), (2, 3), (3, 2)])
        else:
            count, batch = random.randint(2, 5) if "several" in kind else 1, 1
        if "batch" in kind:
            batch = 2 if number == 0 else random.randint(2, 5)
            if known.masked == "patches" and "padded" in regime:  # of an even number of sequences rows are whole
                batch = random.choice([3, 5])
        return [(random.randint(1, 4), random.randint(1, 5)) for _ in range(count)], batch

    def runs(self, kind: str, grown: str, regime: str, wider: int = 0) -> tuple[Sample, dict[str, Sample]]:
        """The runs that show what repeats. wider: so many sequences more."""
        known = self.design.known
        bases = STACKED if known.stacked else BASES
        windows, batch, others = _beside(kind) if BESIDE in kind else bases.get(kind, BASES[kind])
        if known.together:
            fewest = [(1, 1)] * (2 if kind == "several" else 1)
            return self.sample("base", fewest, 2 if kind == "batch" else 1, grown, regime=regime)[0], {}
        axes = {"images", "frames", "narrow", *(["windows", VIDEO_WINDOWS] if self.design.window else [])}

        def sample(windows: list[Any], batch: int, chunks: int = CHUNKS) -> Sample:
            return self.sample("base", windows, batch + wider, grown, regime=regime, chunks=chunks)[0]

        longer = {axis: sample(*more) for axis, more in others.items() if axis in axes}
        if self.design.kernel:
            longer["chunks"] = sample(windows, batch, CHUNKS + 1)
        return sample(windows, batch), longer

    def learnt(self, random: Random, known: ImageVariant | None = None) -> ImageVariant:
        """known: whose regimes are kept, and are not learnt again."""
        runs: dict[str, Any] = {}
        dimensions = []
        for place, (kind, grown, name) in enumerate(self.regimes()):
            if known is not None and name in known.programs:
                continue
            base, longer = self.runs(kind, grown, name)
            samples = [
                self.sample((name, number), *self.some(random, kind, number, name), grown, regime=name)[0]
                for number in range(self.numbers(place, beside_known=known is not None)[0])
            ]
            wider = self.runs(kind, grown, name, 1) if kind == BATCH_OF_SEVERAL else None
            runs[name] = base, longer, samples, wider
            dimensions += [sample.dimensions for sample in (base, *samples)]
        variables = Variables.of_samples(dimensions, alignment=self.alignment) if known is None else known.variables
        programs: dict[str, Program] = {} if known is None else {**known.programs}
        sizes: dict[str, dict[Size, None]] = defaultdict(dict)
        for name, (base, longer, samples, wider) in runs.items():
            try:
                programs[name] = learn(base, longer, samples, variables, sizes, wider)
            except NoPattern as error:
                print(f"    {name}: {error}"[:1500], flush=True)
                continue
            print(f"    {name}: {len(programs[name].loops)}", flush=True)
        return ImageVariant(
            kernel=self.report.spec.kernel,
            options=self.options(),
            structure=self.design.structure,
            tower=self.tower,
            decoder=self.decoder,
            least=self.design.window or LEAST,
            variables=variables,
            programs=programs,
        )

    def check(self, variant: ImageVariant, random: Random, known: ImageVariant | None = None) -> None:
        """Holds deep runs of unseen configurations against their own traces, but for what is known."""
        for place, (kind, grown, name) in enumerate(self.regimes()):
            if name not in variant.programs or (known is not None and name in known.programs):
                continue
            for number in range(self.numbers(place, beside_known=known is not None)[1]):
                windows, batch = self.some(random, kind, self.first_check + number, name)
                _, report, design, _, run, expected = self.sample(
                    ("check", number, kind, grown), windows, batch, grown, deep=True, regime=name
                )
                try:
                    self.assert_composed(variant, report, design, run, expected)
                except NoPattern as error:
                    raise NoPattern(f"{windows} {batch} {name}: {error}") from None


def main() -> None:
    for model_type in [name for name in sys.argv[1:] if not name.startswith("--")] or FAMILIES:
        began = time.perf_counter()
        defaults, vision = defaults_of(next(bases(model_type))), defaults_of_tower(model_type)
        family = read(image_file(model_type)) if "--more" in sys.argv else None
        older = [*family.variants] if family is not None else []
        variants: list[ImageVariant] = []
        for base in bases(model_type, varied=False):
            try:
                learner = Learner(base, defaults, vision)
            except NotCovered:
                continue
            if any(
                variant.structure == learner.design.structure
                and set(around(learner.design.tower)) <= set(around(variant.tower))
                and set(around(learner.design.decoder)) <= set(around(variant.decoder))
                for variant in variants
            ):
                continue
            known = next((variant for variant in older if learner.is_of(variant)), None)
            try:
                variant = learner.learnt(Random(model_type), known)
                learner.check(variant, Random(f"{model_type} checks"), known)
            except (NoPattern, NotCovered) as error:
                print(f"  {base.get('architectures')}: {type(error).__name__} {error}"[:1500], flush=True)
                if known is None:
                    continue
                variant = known
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

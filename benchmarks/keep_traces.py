"""Makes the traces of families in the package, for installs without torch: `keep_traces.py MODEL_TYPE ...`, or the catalog's.

With `--more`, only what the kept traces do not cover is learnt; with `--released`, no variations of releases' structures; with
`--forward`, a forward pass instead of generation.

Each is learnt from traces of random configurations, of the structures that releases have and of some more, and is held against
traces of others, event by event. Needs the torch extra.
"""

from __future__ import annotations

import inspect as python
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.learning import NotLearnt, Sample, learn
from benchmarks.sampling import WINDOWS, sampled, sampled_point, turned_share
from benchmarks.structures import DIMENSIONS, bases
from qwen_inspect.architectures.families import CLASSES
from qwen_inspect.checkpoint import Checkpoint, ModelRef
from qwen_inspect.errors import QwenInspectError, UnsupportedError
from qwen_inspect.loaders import catalog
from qwen_inspect.predicting.families.family_file import SHIPPED, dump, read
from qwen_inspect.predicting.families.family_trace import FamilyTrace, NotCovered, Variant, loaded_of
from qwen_inspect.predicting.sources import family_file, sample_request
from qwen_inspect.predicting.traces.class_rules import decoder_of
from qwen_inspect.predicting.traces.kept_trace import Point
from qwen_inspect.predicting.traces.outline import (
    BEYOND,
    MOST_SINGLES,
    TOWERS,
    UNRELATED,
    Outline,
    options_of,
    outline_of,
    regime_of,
)
from qwen_inspect.predicting.traces.segments import LAYER, apart, fixed
from qwen_inspect.predicting.traces.token_loops import folded
from qwen_inspect.results.memory import Mode
from qwen_inspect.results.model import Report
from qwen_inspect.structure.inspect import analyse
from qwen_inspect.tracing import versions
from qwen_inspect.tracing.trace import trace

# transformers before 4.48 repeated K and V for flash attention: the published peaks of Qwen2.5 were measured so.
KERNELS = {"qwen2": ("sdpa", "flash_attention_2_repeated")}
SAMPLES, CHECKS = 8, 2  # of each regime, and samples of each sequence of layers
# Regimes that are left out: too short a prompt to fold, and too rare; a run that computes all tokens again in its middle, or
# frequencies in each step.
LEFT_OUT = {"2 turns", "3 turns", "4 turns", "recomputed", BEYOND}
MORE_LAYERS = 2  # at most, of a sample, than one of each kind
TRIES = 300  # workloads among which regimes are looked for


def report_of(config: Mapping[str, Any]) -> Report:
    return analyse(Checkpoint(ref=ModelRef(source="local", id="sample"), config=config, tensors=None))


def outline(report: Report) -> Outline | None:
    if not report.settled:
        return None
    return outline_of(report.spec, report.tree, report.attention.by_config, report.cache, report.config or {})


def first_layers(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The configuration with no more than its first layers. The last ones may share the caches of others."""
    whole = len(report_of(config).cache.layers)
    layers = min(layers, whole)
    shallow = deepcopy(dict(config))
    text = decoder_of(shallow)
    assert isinstance(text, dict)
    text["num_hidden_layers"] = layers
    if shared := text.get("num_kv_shared_layers"):
        text["num_kv_shared_layers"] = max(0, shared - (whole - layers))
    for key, value in text.items():
        if (isinstance(value, list) or key == "hybrid_override_pattern") and len(value) == whole:
            text[key] = value[:layers]
    return shallow


def layers_needed(outline: Outline) -> int:
    """The first so many layers: of each kind that the model has, one that is not the first layer."""
    kinds = [layer.structure for layer in outline.layers]
    wanted = set(kinds[1:])
    return next((count for count in range(2, len(kinds)) if set(kinds[1:count]) == wanted), len(kinds))


def defaults_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the class that its code may read and a design does not show, each with its default."""
    import transformers

    configuration = transformers.AutoConfig.for_model(config["model_type"])
    text = configuration.get_text_config(decoder=True)
    own = text.to_dict()
    model_class = getattr(transformers, CLASSES[config["model_type"]][0])
    code = python.getsource(sys.modules[model_class.__module__])
    read = set(re.findall(r"config\.([a-z_0-9]+)", code)) | set(re.findall(r"getattr\([a-z_.]*config, \"(\w+)\"", code))
    shown = UNRELATED | DIMENSIONS | {*WINDOWS}
    shown |= {other for name, other in text.attribute_map.items() if name in shown}
    names = sorted({*own, *read} - shown)
    return {name: own.get(name) for name in names if name in own or not callable(getattr(type(text), name, None))}


# --- learning


@dataclass
class Group:
    """Configurations of one variant. layers: with how many layers each is traced. samples: those made, by the key of `layers`."""

    mode: Mode
    kernel: str
    options: dict[str, Any]
    outline: Outline
    layers: dict[tuple[Any, ...], tuple[dict[str, Any], int]]
    singles: int = 0
    samples: dict[tuple[Any, ...], list[Sample]] = field(default_factory=lambda: defaultdict(list))

    def point(self, design: Outline, random: Random) -> Point:
        point = sampled_point(design.thresholds, random)
        return point if self.mode == "generate" else replace(point, total_tokens=point.prompt_tokens)

    def regime(self, design: Outline, point: Point) -> str:
        return regime_of(design.thresholds, point, singles=self.singles)


def bases_of(model_type: str, mode: Mode) -> Iterator[dict[str, Any]]:
    """`bases`; for a forward pass of each class that a design describes."""
    for config in bases(model_type, varied="--released" not in sys.argv):
        yield config
        for name in CLASSES[model_type][1:] if mode == "forward" else ():
            yield {**config, "architectures": [name]}


def groups(model_type: str, mode: Mode, defaults: Mapping[str, Any]) -> Iterator[Group]:
    found: dict[Any, Group] = {}
    for config in bases_of(model_type, mode):
        try:
            report = report_of(config)
        except QwenInspectError:
            continue
        if (design := outline(report)) is None:
            continue
        options = options_of(config, defaults)
        kinds = tuple(sorted({layer.structure for layer in design.layers}))
        ones = decoder_of(config).get("num_key_value_heads") == 1, *(size == 1 for size in design.outside.dimensions)
        count = layers_needed(design)
        shape = tuple(layer.structure for layer in design.layers[:count])
        for kernel in KERNELS.get(model_type, (report.spec.kernel,)):
            usual = kernel == report.spec.kernel and report.spec.dtype.bits == 16
            if mode == "generate" and design.thresholds and not usual and not has_scan(design):  # too many regimes
                continue
            if kernel.startswith("flash") and report.spec.dtype.bits != 16:
                continue
            key = kernel, repr(options), design.outside.structure, kinds, ones
            singles = MOST_SINGLES if has_scan(design) else 0
            group = found.setdefault(key, Group(mode, kernel, options, design, {}, singles))
            group.layers.setdefault((*related(config), shape[0], *sorted(set(shape[1:]))), (config, count))
    yield from found.values()


def has_scan(design: Outline) -> bool:
    return any(kind == "kernel" for kind, _ in design.thresholds)


def related(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """What sizes of a configuration and of all samples of it have in common: how they follow from others."""
    text = decoder_of(config)
    return text.get("head_dim") is None, turned_share(text), text.get("n_shared_experts")


def sample(
    group: Group, base: dict[str, Any], count: int, random: Random, regime: str, number: int = 3
) -> tuple[Sample, Report] | None:
    """A random configuration like `base`, traced; None if it has another structure, or none, or the workload another regime.

    count: of its layers, of which there may be some more, because sizes may depend on how many there are.
    number: of four samples one has a single sequence of a single token, one a single sequence, one single tokens, if it may be.
    """
    config = first_layers(sampled(base, random), count + random.randint(0, MORE_LAYERS))
    report = report_of(config)
    if (design := outline(report)) is None:
        return None
    kinds = {layer.structure for layer in design.layers}
    if design.outside.structure != group.outline.outside.structure or kinds != {
        layer.structure for layer in group.outline.layers
    }:
        return None
    tries = (group.point(design, random) for _ in range(TRIES))
    points = [point for point in tries if group.regime(design, point) == regime]
    if not points:
        return None
    singles = ((True, True), (True, False), (False, True), (False, False))[number % 4]
    wanted = [point for point in points if (point.batch == 1, point.prompt_tokens == 1) == singles]
    point = (wanted or points)[0]
    try:
        traced = trace(report.spec, config, sample_request(point, group.kernel, group.mode))
    except UnsupportedError:  # nor can transformers run it
        return None
    _, rest = apart(fixed(folded(traced) if any(kind == "turns" for kind, _ in design.thresholds) else traced))
    return Sample(design, point, rest), report


def regimes(group: Group, random: Random) -> list[str]:
    names = set()
    base, _ = next(iter(group.layers.values()))
    for _ in range(20):
        design = outline(report_of(sampled(base, random)))
        assert design is not None
        for _ in range(TRIES // 20):
            names.add(group.regime(design, group.point(design, random)))
    return sorted(name for name in names if _is_learnt(group, {*name.split(", ")}))


def _is_learnt(group: Group, sides: set[str]) -> bool:
    """Not a prompt of few turns, nor, where turns are folded, one shorter than the kernel: of a kernel beyond all releases'."""
    folds = any(kind == "turns" for kind, _ in group.outline.thresholds)
    return not LEFT_OUT & sides and not (folds and "short" in sides and "1 turns" not in sides)


def learnt(group: Group, random: Random) -> Variant:
    samples: dict[str, list[Sample]] = defaultdict(list)
    for name in regimes(group, random):
        for key, (base, count) in group.layers.items():
            known = [sample for sample in group.samples[key] if group.regime(sample.outline, sample.point) == name]
            tries = (sample(group, base, count, random, name, number) for number in range(4 * SAMPLES))
            more = [made for made, _ in islice(filter(None, tries), max(0, SAMPLES - len(known)))]
            group.samples[key] += more
            samples[name] += known + more
    by_regime, variables = learn(samples)
    variant = Variant(
        kernel=group.kernel,
        options=group.options,
        outside=group.outline.outside.structure,
        kinds=tuple(sorted({layer.structure for layer in group.outline.layers})),
        variables=variables,
        regimes=by_regime,
        singles=group.singles,
        least_tokens=min(sample.point.prompt_tokens for many in samples.values() for sample in many),
    )
    checks = 0
    while checks < CHECKS * len(by_regime):
        name = sorted(by_regime)[checks % len(by_regime)]
        if (made := sample(group, *random.choice([*group.layers.values()]), random, name, checks)) is None:
            continue
        unseen, report = made
        check(variant, unseen, report)
        checks += 1
    return variant


def learnt_somehow(group: Group, random: Random) -> Variant:
    """With as few regimes as suffice."""
    while True:
        try:
            return learnt(group, random)
        except NotLearnt:
            if group.singles == MOST_SINGLES:
                raise
            group.singles += 1


def of_first(loaded: Sequence[tuple[Any, str, str]], layers: int) -> list[tuple[Any, str, str]]:
    """What is loaded outside of the decoder's layers, a tower's with it, and in the first ones, which alone are traced."""
    return [
        row
        for row in loaded
        if TOWERS & {*row[1].split(".")} or not (match := re.search(LAYER, row[1])) or int(match[0]) < layers
    ]


def check(variant: Variant, sample: Sample, report: Report) -> None:
    """Holds what is composed for an unseen configuration against its own trace."""
    loaded = of_first(loaded_of(report.tree), len(sample.outline.layers))
    _, composed = apart(variant.at(sample.outline, sample.point, loaded))
    expected, made = sample.trace.at(sample.point), composed.at(sample.point)
    if (made.events, made.stages, made.kept) != (expected.events, expected.stages, expected.kept):
        raise NotLearnt(f"{sample.point}: another run")


def covers(variant: Variant, config: Mapping[str, Any], group: Group) -> bool:
    report = report_of(config)
    design = outline(report)
    assert design is not None
    kinds = tuple(sorted({layer.structure for layer in design.layers}))
    same = (variant.kernel, variant.outside, variant.kinds) == (group.kernel, design.outside.structure, kinds)
    if not same or variant.options != group.options:
        return False
    for point in (Point(2, 50, 90), Point(2, 500, 90_000), Point(2, 50, 50), Point(2, 90_000, 90_000)):
        with suppress(NotCovered):
            variant.at(design, point, loaded_of(report.tree))
            return True
    return False


def main() -> None:
    known = catalog.entries()
    more = "--more" in sys.argv  # beside what is kept
    mode: Mode = "forward" if "--forward" in sys.argv else "generate"
    types = [name for name in sys.argv[1:] if not name.startswith("--")]
    for model_type in types or sorted({str(catalog.configuration(model, known)["model_type"]) for model in known}):
        began = time.perf_counter()
        random = Random(model_type)
        path = Path(SHIPPED, family_file(model_type, mode))
        kept = read(path.name) if more else None
        defaults = defaults_of(next(bases(model_type))) if kept is None else kept.defaults
        variants: list[Variant] = [] if kept is None else [*kept.variants]
        print(f"{model_type}: {defaults}", flush=True)
        for group in groups(model_type, mode, defaults):
            configs = [config for config, _ in group.layers.values()]
            older = [variant for variant in variants if any(covers(variant, config, group) for config in configs)]
            if all(any(covers(variant, config, group) for variant in older) for config in configs):
                continue
            names = {layer.structure for layer in group.outline.layers}
            try:
                variant = learnt_somehow(group, random)
                variants = [*(other for other in variants if other not in older), variant]
                family = FamilyTrace(made_by=versions(), defaults=defaults, variants=tuple(variants))
                path.write_bytes(dump(family))
                told = f"{len(variant.regimes)} regimes"
            except (NotLearnt, NotCovered, QwenInspectError) as error:
                told = f"{type(error).__name__} {error}"[:600]
            print(
                f"  {group.kernel} {group.options} {len(names)} kinds: {told}, {time.perf_counter() - began:.0f} s",
                flush=True,
            )
        size = path.stat().st_size if variants else 0
        print(f"{model_type}: {len(variants)} variants, {size:,} B, {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()

"""Makes the traces of families' training in the package, for installs without torch: `keep_training.py KIND MODEL_TYPE ...`.

KIND: a key of `TRAINED`. With `--unaccumulated`, steps of one micro-batch alone. As `keep_traces.py`: learnt from traces of
random configurations, and held against traces of others, event by event. An optimizer is no part of them:
`predicting.traces.optimizer_steps` has its rules. Needs the torch extra.
"""

from __future__ import annotations

import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import cycle, islice, pairwise, product
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.keep_traces import defaults_of, of_first, related, report_of
from benchmarks.learning import NotLearnt, Sample, learn
from benchmarks.sampling import EXPERTS, sampled
from benchmarks.structures import small, stated
from qwen_inspect.architectures.quantised_presets import preset
from qwen_inspect.checkpoint import Tensor
from qwen_inspect.errors import QwenInspectError
from qwen_inspect.loaders import catalog
from qwen_inspect.predicting.families.family_file import SHIPPED, dump, read
from qwen_inspect.predicting.families.family_trace import FamilyTrace, NotCovered, Variant
from qwen_inspect.predicting.families.family_training import (
    LOOP,
    loaded_in,
    schedule_of,
    trained_by,
    trained_options,
    training_file,
    training_outline,
)
from qwen_inspect.predicting.families.shallow_training import FEWEST_TOKENS, constant
from qwen_inspect.predicting.sources import trace_request
from qwen_inspect.predicting.traces.class_rules import decoder_of
from qwen_inspect.predicting.traces.kept_trace import ALIGNMENTS, CHUNK_TOKENS, KeptTrace, Point, alignment
from qwen_inspect.predicting.traces.optimizer_steps import INPUTS, OPTIMIZER, groups_of
from qwen_inspect.predicting.traces.outline import MOST_SINGLES, WHOLE_CHUNKS, Outline, options_of, regime_of
from qwen_inspect.predicting.traces.segments import LAYER, apart, ends_of
from qwen_inspect.predicting.training_plan import Plan, plan_of
from qwen_inspect.results.memory import DEFAULT_ALPHA, Run
from qwen_inspect.results.model import Report
from qwen_inspect.results.timeline import Stage, Timeline
from qwen_inspect.results.training import LOOPS
from qwen_inspect.tracing import CHUNK_TURNS, versions
from qwen_inspect.tracing.trace import trace

# Of a variant's first schedule with several sequences, and of each other regime, which takes the same sizes.
SAMPLES, MORE_SAMPLES = 10, 4
UNACCUMULATED = "--unaccumulated"
BATCHES = ((1,), (2, 3, 5))
RANKS = [rank for rank in range(3, 41) if rank != DEFAULT_ALPHA]  # whose scale is not 1
TURNS = (1, 0, 2, 1)  # alignments of samples, the first of which checks
TRIES = 6  # releases, for a sample of the wanted alignment
CONFIGS = 50  # tried for a length of the wanted regime and alignment: a window may have none
_ALL, _SOME = {"lora_rank": 16}, {"lora_rank": 16, "lora_targets": ("q_proj", "v_proj")}
_TRAINER = {"loop": replace(LOOPS["trainer"], clip=False)}  # whose clipping is a rule too
_ATTENTION = {"lora_rank": 16, "lora_targets": ("q_proj", "k_proj", "v_proj", "o_proj")}
TRAINED: Mapping[str, dict[str, Any]] = {
    "full": {},
    "lora": _ALL,
    "lora-qv": _SOME,
    "lora-qkvo": _ATTENTION,
    "autocast": {"autocast": "bfloat16", "dtype": "float32"},
    "trainer": _TRAINER,
    "trainer-lora": {**_ALL, **_TRAINER},
    "trainer-lora-qv": {**_SOME, **_TRAINER},
    "trainer-autocast": {**_TRAINER, "autocast": "bfloat16", "dtype": "float32"},
    "trainer-lora-autocast": {**_ALL, **_TRAINER, "autocast": "bfloat16"},
    "trainer-qlora": {**_ALL, **_TRAINER, "quantised": "bnb-nf4-double"},
    "qlora": {**_ALL, "quantised": "bnb-nf4-double"},
    "qlora-qv": {**_SOME, "quantised": "bnb-nf4-double"},
    "qlora-qkvo": {**_ATTENTION, "quantised": "bnb-nf4-double"},
    "qlora-single": {**_ALL, "quantised": "bnb-nf4"},
}
SCHEDULES: tuple[dict[str, Any], ...] = (
    {"checkpointing": False},
    {"checkpointing": True},
    {"checkpointing": False, "accumulate": 2},
    {"checkpointing": True, "accumulate": 2},
)


def without_steps(timeline: Timeline, trained: Sequence[Tensor]) -> KeptTrace:
    """A run with sgd, whose step only drops the gradients, without these steps; gradients are named in `kept`. trained: as the
    optimizer has them."""
    numbered = constant(timeline)
    gradients: dict[int, str] = {}
    order: list[int] = []
    stages: list[Stage] = []
    bounds = [*(stage.first_event for stage in numbered.stages), len(numbered.order)]
    for stage, (begin, end) in zip(numbered.stages, pairwise(bounds), strict=True):
        entries = numbered.order[begin:end]
        if stage.name != OPTIMIZER:
            stages.append(Stage(name=stage.name, first_event=len(order)))
            order += entries
            continue
        dropped = [-1 - entry for entry in entries]
        dropped = [entry for entry in dropped if entry < 0 or numbered.allocations[entry][1] not in (INPUTS, OPTIMIZER)]
        if len(dropped) != len(trained) or min(dropped) < 0:
            raise NotLearnt(f"{len(dropped)} gradients of {len(trained)} parameters")
        gradients |= {entry: tensor.name for entry, tensor in zip(dropped, trained, strict=True)}
    return replace(numbered, stages=tuple(stages), order=tuple(order), kept=tuple(sorted(gradients.items())), owners=())


def releases(model_type: str) -> Iterator[dict[str, Any]]:
    """The released configurations of a family, and a small one with the options of the class; towers, which a text does not run,
    of a few layers."""
    known = catalog.entries()
    configs = (dict(catalog.configuration(model, known)) for model in known)
    for config in configs:
        if config.get("model_type") == model_type and "quantization_config" not in {*config, *decoder_of(config)}:
            yield stated(with_small_towers(config))
    yield stated(small(model_type, {}))


def with_small_towers(config: dict[str, Any]) -> dict[str, Any]:
    towers = {key: {**part, "depth": 2} for key, part in config.items() if isinstance(part, dict) and "depth" in part}
    return {**config, **towers}


def of_first_layers(tensors: Sequence[Tensor], layers: int) -> list[Tensor]:
    return [tensor for tensor in tensors if not (match := re.search(LAYER, tensor.name)) or int(match[0]) < layers]


@dataclass
class Group:
    """Configurations of one variant, each with how many layers are traced. what: is trained, as options of a run."""

    kernel: str
    options: dict[str, Any]
    outline: Outline
    what: dict[str, Any]
    configs: dict[tuple[Any, ...], tuple[dict[str, Any], int]]


def planned(config: Mapping[str, Any], **changes: Any) -> tuple[Report, Plan, Outline]:
    """quantised: the name of the base's quantisation, of `PRESETS`."""
    scheme, dtype = changes.pop("quantised", None), changes.pop("dtype", None)
    config = {**config, "dtype": dtype, "torch_dtype": dtype} if dtype else config
    report = report_of({**config, "quantization_config": preset(scheme, None, config)} if scheme else config)
    run = Run(mode="train", attention=report.spec.kernel, optimizer="sgd", **changes)
    plan = plan_of(report, run)
    if (outline := training_outline(report, plan)) is None:
        raise NotLearnt("no outline")
    return report, plan, outline


def places(outline: Outline, layers: int) -> set[tuple[str, int]]:
    kinds = [layer.structure for layer in outline.layers[:layers]]
    return set(zip(kinds, ends_of(kinds, [("backward", 1)]), strict=True))


def layers_needed(outline: Outline) -> int:
    """The first so many layers, which have every kind of layer in every place that the model has it."""
    wanted = places(outline, len(outline.layers))
    counts = range(2, len(outline.layers))
    return next((count for count in counts if places(outline, count) >= wanted), len(outline.layers))


def shortened(config: dict[str, Any], outline: Outline) -> dict[str, Any]:
    """With each kind of layer three times at most, if the configuration lists what layers are."""
    import transformers

    kinds = [layer.structure for layer in outline.layers]
    few = [kinds.index(kind) for kind in dict.fromkeys(kinds)] * 3
    few += [len(kinds) - 1] if kinds[few[-1]] != kinds[-1] else []
    stated = transformers.AutoConfig.for_model(**deepcopy(config)).get_text_config(decoder=True).to_dict()
    lists = {key: value for key, value in stated.items() if isinstance(value, list) and len(value) == len(kinds)}
    if len({*kinds}) < 2 or not lists or layers_needed(outline) <= len(few):
        return config
    config = deepcopy(config)
    chosen = {key: [value[layer] for layer in few] for key, value in lists.items()}
    decoder_of(config).update({**chosen, "num_hidden_layers": len(few)})  # type: ignore[attr-defined]
    return config


def groups(model_type: str, defaults: Mapping[str, Any], what: dict[str, Any]) -> Iterator[Group]:
    known: dict[Any, Group] = {}
    for config in releases(model_type):
        try:
            _, plan, outline = planned(config, **what)
            config = shortened(config, outline)
            report, plan, outline = planned(config, **what)
        except (QwenInspectError, NotLearnt):
            continue
        if report.spec.dtype.bits != 16 and "dtype" not in what:
            continue
        options = {**options_of(config, defaults), **trained_options(plan)}
        kinds = tuple(sorted({layer.structure for layer in outline.layers}))
        single = decoder_of(config).get("num_key_value_heads") == 1
        key = repr(options), outline.outside.structure, kinds, single
        group = known.setdefault(key, Group(report.spec.kernel, options, outline, what, {}))
        count = layers_needed(outline)
        group.configs.setdefault((*related(config), *sorted(places(outline, len(outline.layers)))), (config, count))
    yield from known.values()


def is_looped(outline: Outline) -> bool:
    """Whether a layer has linear attention, whose loop runs over the chunks of a prompt."""
    return any(kind == "loop" for kind, _ in outline.thresholds)


def sampled_tokens(outline: Outline, random: Random) -> int:
    if is_looped(outline):  # of which all other numbers of turns are made but one and two
        whole = CHUNK_TOKENS * random.randint(CHUNK_TURNS, CHUNK_TURNS + 6)
        return random.choice([whole, whole + random.randint(1 - CHUNK_TOKENS, -1)])
    near = [tokens + random.randint(-2, 2) for kind, tokens in outline.thresholds if kind != "dynamic"]
    return max(
        FEWEST_TOKENS, random.choice([*near, random.randint(FEWEST_TOKENS, 99), random.randint(FEWEST_TOKENS, 99)])
    )


def aligned(base: Mapping[str, Any], random: Random) -> dict[str, Any]:
    """`sampled`, with numbers of experts whose sums over rows are vectorised as those of `base`."""
    config = sampled(base, random)
    before, text = decoder_of(base), decoder_of(config)
    assert isinstance(text, dict)
    text.update({key: max(12, text[key] - text[key] % 4) for key in EXPERTS if key in text and before[key] % 4 == 0})
    return config


def sample(
    group: Group,
    base: dict[str, Any],
    layers: int,
    random: Random,
    schedule: Mapping[str, Any],
    regime: str,
    number: int,
) -> tuple[Sample, Report, Plan] | None:
    """A random configuration like `base`, traced; None if it has another structure, or no workload is of the regime.

    number: of the round of samples of the regime, which have tokens of different alignments in turns; the first has one layer
    more.
    """
    what = {**group.what, **({"lora_rank": random.choice(RANKS)} if "lora_rank" in group.what else {})}
    batch = random.choice(BATCHES["one sequence" not in regime])
    for _ in range(CONFIGS):
        config = aligned(base, random)
        _, _, outline = planned(config, **what)
        lengths = (sampled_tokens(outline, random) for _ in range(20))
        points = (Point(batch, tokens, tokens) for tokens in lengths)
        wanted = (regime, len(ALIGNMENTS) - 1 if WHOLE_CHUNKS in regime else TURNS[number % len(TURNS)])
        point = next((p for p in points if (regime_of(outline.thresholds, p), alignment(p)) == wanted), None)
        if point is not None:
            break
    else:
        return None
    report, plan, outline = planned(config, batch=batch, prompt_tokens=point.prompt_tokens, **what, **schedule)
    if number == 0:  # so that none holds for one number of layers alone
        layers = min(layers + 1, len(outline.layers))
    same = outline.outside.structure == group.outline.outside.structure
    if not same or {layer.structure for layer in outline.layers} != {layer.structure for layer in group.outline.layers}:
        return None
    request = replace(trace_request(plan.run, plan.four_bits), layers=layers, few_chunks=True)
    timeline = trace(report.spec, report.config or {}, request)
    groups = groups_of(of_first_layers(trained_by(report, plan), layers), report.tree, plan.run.loop)
    _, rest = apart(without_steps(timeline, [tensor for group in groups for tensor in group]))
    return Sample(replace(outline, layers=outline.layers[:layers]), point, rest), report, plan


def first_sample(
    group: Group, configs: Iterable[tuple[dict[str, Any], int]], *args: Any
) -> tuple[Sample, Report, Plan] | None:
    """`sample` of the first of `configs` that has one."""
    return next(filter(None, (sample(group, base, layers, *args) for base, layers in configs)), None)


def regimes(group: Group, random: Random) -> list[str]:
    names = set()
    base, _ = next(iter(group.configs.values()))
    for _ in range(20):
        _, _, outline = planned(aligned(base, random), **group.what)
        for _ in range(10):
            tokens = sampled_tokens(outline, random)
            names |= {regime_of(outline.thresholds, Point(batches[0], tokens, tokens)) for batches in BATCHES}
    return sorted(names)  # several sequences first


def spare(samples: Sequence[Sample]) -> int:
    """Which sample is not learnt from, but checks: the first whose alignment another has too."""
    known = [alignment(sample.point) for sample in samples]
    return next((number for number, one in enumerate(known) if known.count(one) > 1), 0)


def learnt(group: Group, random: Random) -> Variant:
    samples: dict[str, list[Sample]] = defaultdict(list)
    names = regimes(group, random)
    unseen = []
    schedules = SCHEDULES[:2] if UNACCUMULATED in sys.argv else SCHEDULES
    for schedule, regime in product(schedules, names):
        is_first = schedule is SCHEDULES[0] and "one sequence" not in regime
        is_first = is_first and (regime == names[0] or not is_looped(group.outline))
        designs = len(group.configs)  # each has samples of all alignments
        configs = cycle(group.configs.values())
        made = [
            one
            for number in range((SAMPLES if is_first else MORE_SAMPLES) * designs)
            if (one := first_sample(group, islice(configs, TRIES), random, schedule, regime, number // designs))
        ]
        if made:
            unseen.append(made.pop(spare([sample for sample, _, _ in made])))
        samples[schedule_of(Run(mode="train", **schedule)) + regime] += [sample for sample, _, _ in made]
    by_regime, variables = learn(samples, aligned=ALIGNMENTS[-1])
    variant = Variant(
        kernel=group.kernel,
        options=group.options,
        outside=group.outline.outside.structure,
        kinds=tuple(sorted({layer.structure for layer in group.outline.layers})),
        variables=variables,
        regimes=by_regime,
        singles=MOST_SINGLES,
        least_tokens=FEWEST_TOKENS,
    )
    for other, report, plan in unseen:
        check(variant, other, report, plan)
    return variant


def check(variant: Variant, sample: Sample, report: Report, plan: Plan) -> None:
    """Holds what is composed for an unseen configuration against its own trace."""
    loaded = of_first(loaded_in(report, plan), len(sample.outline.layers))
    composed = variant.at(sample.outline, sample.point, loaded, schedule_of(plan.run))
    expected, made = sample.trace.at(sample.point), apart(composed)[1].at(sample.point)
    if (made, made.sums, made.kept) != (expected, expected.sums, expected.kept):
        raise NotLearnt(f"{sample.point}: another run")


def replaces(variant: Variant, other: Variant) -> bool:
    """Whether the variant is of the same designs, as far as variables tell that a sample had."""

    def shape(one: Variant) -> tuple[Any, ...]:
        constants = [variables.constants for _, variables in sorted(one.variables.items())]
        return one.kernel, one.options, one.outside, one.kinds, constants

    return shape(variant) == shape(other)


def main() -> None:
    kind, *types = [word for word in sys.argv[1:] if word != UNACCUMULATED]
    for model_type in types:
        began = time.perf_counter()
        random = Random(f"{model_type} training {kind}")
        path = Path(SHIPPED, training_file(model_type))
        defaults = defaults_of(next(releases(model_type)))
        empty = FamilyTrace(made_by=versions(), defaults=defaults, variants=(), loop=LOOP)
        family = read(path.name) or empty
        for group in groups(model_type, defaults, TRAINED[kind]):
            try:
                variant = learnt(group, random)
                read.cache_clear()
                family = read(path.name) or empty  # which another run may have written
                kept = (other for other in family.variants if not replaces(variant, other))
                family = replace(family, made_by=versions(), variants=(*kept, variant))
                path.write_bytes(dump(family))
                told = f"{len(variant.regimes)} regimes"
            except (NotLearnt, NotCovered, QwenInspectError) as error:
                told = f"{type(error).__name__} {error}"[:600]
            layers = [count for _, count in group.configs.values()]
            print(f"  {group.options} {layers} layers: {told}, {time.perf_counter() - began:.0f} s", flush=True)
        size = path.stat().st_size if family.variants else 0
        print(
            f"{model_type}: {len(family.variants)} variants, {size:,} B, {time.perf_counter() - began:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""Training runs composed from a family's trace, against transformers' own, for configurations that it was not made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks.accuracy import recorded_run
from benchmarks.keep_traces import first_layers, report_of
from benchmarks.keep_training import aligned, is_looped, layers_needed, planned, releases, shortened
from benchmarks.predicted import model_of
from benchmarks.recordings import each
from qwen_inspect.architectures.quantised_presets import preset
from qwen_inspect.loaders import catalog
from qwen_inspect.predicting.families.family_file import SHIPPED, read
from qwen_inspect.predicting.families.family_trace import Variant
from qwen_inspect.predicting.families.family_training import is_covered, training_file, training_outline, training_trace
from qwen_inspect.predicting.sources import trace_request
from qwen_inspect.predicting.traces.kept_trace import CHUNK_TOKENS, Point
from qwen_inspect.predicting.traces.optimizer_steps import COVERED
from qwen_inspect.predicting.traces.training_turns import FEWEST_CHUNKS
from qwen_inspect.predicting.training_plan import plan_of
from qwen_inspect.results.memory import Run
from qwen_inspect.results.timeline import Allocate, Event
from qwen_inspect.results.training import LOOPS
from qwen_inspect.tracing.trace import trace

from .test_family_traces import known, without_order_of_frees

KEPT = sorted(path.name.removesuffix("-training.json.gz") for path in Path(SHIPPED).glob("*-training.json.gz"))
IN_EVERY_RUN = {("llama", 0), ("mixtral", 1), ("qwen2", 2), ("qwen3", 3), ("qwen3_5", 1)}
ADAPTED_IN_EVERY_RUN = {
    ("llama dense 7 modules", 4),
    ("qwen3 bnb-nf4-double 7 modules", 0),
    ("qwen3_5 dense 12 modules", 2),
}
BY_TRAINER_IN_EVERY_RUN = {
    ("llama trainer", 1),
    ("llama trainer bfloat16", 0),
    ("llama dense 7 modules trainer bfloat16", 2),
}
TRAINED = Run(mode="train", prompt_tokens=150, attention="sdpa")
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
    in_forms = freed_forms if config.get("model_type") in ("gemma3", "gemma3_text", "olmo3") else tuple
    assert in_forms(without_order_of_frees(mine.events)) == in_forms(without_order_of_frees(theirs.events))
    assert (mine.sums, mine.cast) == (theirs.sums, theirs.cast)


def adapted_modules(variant: Variant) -> tuple[str, ...]:
    """As targets: with stacked experts, which are parameters, all of a class that can be adapted."""
    if "scaled" in variant.options:
        return ("all-linear",)
    return tuple(sorted({module.rpartition(".")[2] for module in variant.options.get("lora", ())}))


def freed_forms(events: Sequence[Event]) -> tuple[object, ...]:
    """The events, of what is freed its size and who made it: transformers 5.23 makes Gemma 3's and OLMo 3's two tables of RoPE,
    equal in size, in the order of a set of strings, which differs from process to process (`set(self.config.layer_types)`).
    """
    forms = {event.id: event._replace(id=0) for event in events if isinstance(event, Allocate)}
    return tuple(event if isinstance(event, Allocate) else forms[event.id] for event in events)


def loop_in(variant: Variant) -> tuple[str, str]:
    """Whose loop, and its autocast; "" for the default loop, and for none."""
    return variant.options.get("loop", ""), variant.options.get("autocast", "")


def learnt_options(
    family: str, seed: int, modules: Sequence[str] = (), loop: tuple[str, str] = ("", "")
) -> dict[str, Any]:
    """Of OPTIONS; without several micro-batches where only one is learnt."""
    variants = known(read(training_file(family))).variants
    alike = [variant for variant in variants if adapted_modules(variant) == modules and loop_in(variant) == loop]
    accumulated = all(any("accumulated" in regime for regime in variant.regimes) for variant in alike)
    options = OPTIONS[seed % len(OPTIONS)]
    return {name: value for name, value in options.items() if accumulated or name != "accumulate"}


def unseen(family: str, run: Run, scheme: str, random: Random) -> dict[str, Any]:
    """A configuration of random sizes and few layers like the first release whose training is learnt. scheme: of its base. Of
    autocast, which trains float32 weights, or bfloat16 ones with adapters.
    """

    def packed(config: Mapping[str, Any]) -> dict[str, Any]:
        if run.autocast and run.lora_rank is None:
            config = {**config, "dtype": "float32", "torch_dtype": "float32"}
        return {**config, "quantization_config": preset(scheme, None, config)} if scheme else dict(config)

    def is_learnt(config: Mapping[str, Any]) -> bool:
        report = report_of(packed(config))
        return is_covered(report, replace(run, attention=report.spec.kernel))

    base = next(config for config in releases(family) if is_learnt(config))
    if is_looped(planned(base)[2]):  # layers of linear attention follow one another, which no sample's do
        return packed(first_layers(aligned(base, random), 8))
    base = shortened(base, planned(base)[2])
    design = planned(base)[2]
    layers = random.randint(4, 5) if len({*design.layers}) == 1 else layers_needed(design)
    return packed(first_layers(aligned(base, random), layers))


def a_length(config: Mapping[str, Any], random: Random) -> int:
    """Tokens of a prompt; with linear attention of more chunks than a trace has, or of fewer, the last one whole or padded."""
    dense = {key: value for key, value in config.items() if key != "quantization_config"}
    if not is_looped(planned(dense)[2]):
        return random.randint(8, 90)
    whole = CHUNK_TOKENS * random.randint(FEWEST_CHUNKS, 12)
    return whole - random.choice([0, random.randrange(CHUNK_TOKENS)])


@pytest.mark.parametrize(
    ("family", "seed"),
    [
        # Of some families one in every run.
        pytest.param(family, seed, marks=[] if (family, seed) in IN_EVERY_RUN else pytest.mark.exhaustive)
        for family in KEPT
        if any(
            not adapted_modules(each) and not any(loop_in(each)) for each in known(read(training_file(family))).variants
        )
        for seed in range(len(COVERED))
    ],
)
def test_an_unseen_configuration_trains_as_transformers_trains_it(family: str, seed: int) -> None:
    random = Random(f"{family} trained {seed}")
    config = unseen(family, TRAINED, "", random)
    changes = {"optimizer": COVERED[seed], "prompt_tokens": a_length(config, random), **learnt_options(family, seed)}
    assert_as_transformers(config, **changes, loop=replace(LOOPS[None], ema=seed == 3))


def adapters() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Of each family the adapted modules, and the name of the base's quantisation or "", that its trace has."""
    return ((family, scheme, modules) for family, loop, scheme, modules in learnt() if modules and not any(loop))


def learnt() -> Iterator[tuple[str, tuple[str, str], str, tuple[str, ...]]]:
    """Of each family in which loop it is trained, on what base, and which modules have adapters."""
    for family in KEPT:
        for variant in known(read(training_file(family))).variants:
            _, double, *_ = variant.options.get("base", (None, None))
            scheme = {None: "", False: "bnb-nf4", True: "bnb-nf4-double"}[double]
            yield family, loop_in(variant), scheme, adapted_modules(variant)


def named(family: str, scheme: str, modules: tuple[str, ...]) -> str:
    return f"{family} {scheme or 'dense'} {len(modules)} modules"


@pytest.mark.parametrize(
    ("family", "scheme", "modules", "seed"),
    [
        pytest.param(
            *adapted, seed, marks=[] if (named(*adapted), seed) in ADAPTED_IN_EVERY_RUN else pytest.mark.exhaustive
        )
        for adapted in dict.fromkeys(adapters())
        for seed in range(10)
    ],
)
def test_unseen_adapters_train_as_transformers_and_peft_train_them(
    family: str, scheme: str, modules: tuple[str, ...], seed: int
) -> None:
    """On a dense base, or on one that bitsandbytes packed."""
    random = Random(f"{family} {scheme} {modules} {seed}")
    rank = random.randint(2, 70)
    adapted: dict[str, Any] = {"lora_rank": rank, "lora_alpha": 2 * rank, "lora_targets": modules}  # a scale of 2
    run = Run(mode="train", prompt_tokens=150, **adapted)
    config = unseen(family, run, scheme, random)
    changes = {
        "optimizer": COVERED[-seed % len(COVERED)],
        "checkpointing": False,
        **learnt_options(family, -seed, modules),
    }
    tokens = a_length(config, random)
    assert_as_transformers(config, prompt_tokens=tokens, **adapted, **changes)


def in_loop(family: str, loop: tuple[str, str], scheme: str, modules: tuple[str, ...]) -> str:
    return " ".join(filter(None, (named(family, scheme, modules) if modules else family, *loop))).strip()


@pytest.mark.parametrize(
    ("family", "loop", "scheme", "modules", "seed"),
    [
        pytest.param(
            *one, seed, marks=[] if (in_loop(*one), seed) in BY_TRAINER_IN_EVERY_RUN else pytest.mark.exhaustive
        )
        for one in dict.fromkeys(learnt())
        if any(one[1])
        for seed in range(len(COVERED))
    ],
)
def test_trainers_loop_is_composed_with_its_clipping_and_its_groups_of_parameters(
    family: str, loop: tuple[str, str], scheme: str, modules: tuple[str, ...], seed: int
) -> None:
    random = Random(f"{in_loop(family, loop, scheme, modules)} {seed}")
    rank = random.randint(2, 70)
    adapted: dict[str, Any] = {"lora_rank": rank, "lora_alpha": 2 * rank, "lora_targets": modules} if modules else {}
    name, autocast = loop
    by_trainer = replace(LOOPS[name or None], clip=seed != 4, ema=seed == 3 and not modules)  # type: ignore[index]
    run = Run(mode="train", prompt_tokens=150, loop=by_trainer, autocast=autocast or None, **adapted)  # type: ignore[arg-type]
    config = unseen(family, run, scheme, random)
    changes = {"optimizer": COVERED[seed], **learnt_options(family, seed, modules, loop), **adapted}
    tokens = a_length(config, random)
    assert_as_transformers(config, prompt_tokens=tokens, loop=by_trainer, autocast=autocast or None, **changes)


def test_what_trains_otherwise_is_not_covered() -> None:
    """A tied head sums two gradients; dropout keeps masks; a loop, its loss, a mask or what is frozen changes what is kept."""
    config = dict(catalog.configuration("Qwen/Qwen3-0.6B", catalog.entries()))
    assert is_covered(report_of(config), TRAINED)
    assert not is_covered(report_of({**config, "attention_dropout": 0.1}), TRAINED)
    optimizers = ("none", "adafactor", "muon")
    facts: list[dict[str, Any]] = [{"keep_gradients": True}, {"keep_logits": "backward"}, {"loss": "liger"}]
    loops = [LOOPS[name] for name in ("sft", "accelerate", "plain")]
    loops += [replace(LOOPS[name], **fact) for name in (None, "trainer") for fact in facts]
    others: list[dict[str, Any]] = [{"padded": True}, {"trained": "mlp"}]
    others += [{"autocast": dtype, "loop": loop} for dtype in ("bfloat16", "float16") for loop in [LOOPS[None], *loops]]
    others += [{"optimizer": optimizer} for optimizer in optimizers] + [{"loop": loop} for loop in loops]
    for changes in others:
        assert not is_covered(report_of(config), replace(TRAINED, **changes)), changes
    structures = {
        known(training_outline(report, plan_of(report, TRAINED))).outside.structure
        for report in (report_of({**config, "tie_word_embeddings": tied}) for tied in (True, False))
    }
    assert len(structures) == 2


@pytest.mark.parametrize(
    "name",
    ["train-0.6B", "train-0.6B-ckpt", "accumulate-0.6B", "sgd-0.6B", "train-8B-4L-forloop", "lora-1.7B", "qlora-1.7B"],
)
def test_recorded_training_is_predicted_without_torch(name: str) -> None:
    """So that what tests/predicting/test_recordings.py holds of it holds of a plain install."""
    recording = next(recording for recording in each("h100") if recording.name == name)
    assert is_covered(model_of(recording), recorded_run(recording))

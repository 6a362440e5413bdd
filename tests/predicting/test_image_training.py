"""Training with images composed from a family's trace, against transformers' and PEFT's own, for models and images that it was
not made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks.image_samples import LEAST, WINDOW
from benchmarks.keep_image_training import SCHEDULES, TRAINED, TrainedLearner, rows
from benchmarks.keep_traces import report_of
from benchmarks.structures import bases
from qwen_inspect.errors import MalformedError
from qwen_inspect.loaders import catalog
from qwen_inspect.media.counting import media_of
from qwen_inspect.predicting.families.family_file import SHIPPED
from qwen_inspect.predicting.families.family_training import is_covered, learnt_training
from qwen_inspect.predicting.families.image_file import dump, load, read
from qwen_inspect.predicting.families.image_trace import ImageTrace
from qwen_inspect.predicting.families.image_training import image_training_file
from qwen_inspect.predicting.families.shallow_training import composed_trace, question_of
from qwen_inspect.predicting.sources import installed_versions, point_of, trace_request, with_kernel
from qwen_inspect.predicting.traces.optimizer_steps import COVERED
from qwen_inspect.predicting.training_plan import plan_of
from qwen_inspect.results.media import Request, Typed
from qwen_inspect.results.memory import Run
from qwen_inspect.results.timeline import Timeline
from qwen_inspect.results.training import LOOPS
from qwen_inspect.structure.inspect import inspect

from ..support.runs import without_torch

MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"
KEPT = sorted(
    path.name.removesuffix("-training-images.json.gz") for path in Path(SHIPPED).glob("*-training-images.json.gz")
)
IN_EVERY_RUN = {("qwen2_5_vl", "full", 0)}


def family(model_type: str) -> ImageTrace:
    found = read(image_training_file(model_type))
    assert found is not None
    return found


def learners(model_type: str, kind: str) -> Iterator[TrainedLearner]:
    """Of the structures that are learnt, with this kind of training."""
    known = family(model_type)
    for base in bases(model_type, varied=False):
        learner = TrainedLearner(base, known.defaults, known.vision_defaults, TRAINED[kind])
        if any(learner.is_of(variant) for variant in known.variants):
            yield learner


def kinds_learnt(model_type: str) -> Iterator[str]:
    """Those of TRAINED that a file has, by what its variants train."""
    for kind, what in TRAINED.items():
        for variant in family(model_type).variants:
            few = "lora_targets" in what
            modules = {module.rpartition(".")[2] for module in variant.options.get("lora", ())}
            if modules:
                found = "lora_rank" in what and few == (modules == {"q_proj", "v_proj"})
            else:
                found = "lora_rank" not in what and bool(variant.options.get("frozen")) == ("frozen" in what)
            if found:
                yield kind
                break


def assert_same(mine: Timeline, theirs: Timeline) -> None:
    assert mine.stages == theirs.stages
    assert rows(mine) == rows(theirs)
    assert (mine.sums, mine.cast) == (theirs.sums, theirs.cast)


@pytest.mark.parametrize(
    ("model_type", "kind", "seed"),
    [
        pytest.param(
            model_type,
            kind,
            seed,
            marks=() if (model_type, kind, seed) in IN_EVERY_RUN else pytest.mark.exhaustive,
        )
        for model_type in KEPT
        for kind in kinds_learnt(model_type)
        for seed in range(10)
    ],
)
def test_an_unseen_model_with_unseen_images_trains_as_transformers_trains_it(
    model_type: str, kind: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With each optimizer, and each regime that is learnt, in turn."""
    random = Random(f"{model_type} {kind} {seed}")
    learner = random.choice([*learners(model_type, kind)])
    variant = next(variant for variant in family(model_type).variants if learner.is_of(variant))
    runs = [(images, schedule, name) for images, schedule, name in learner.regimes() if name in variant.programs]
    images, schedule, regime = runs[seed % len(runs)]
    changes: dict[str, Any] = {
        "optimizer": COVERED[seed % len(COVERED)],
        "loop": replace(LOOPS[None], ema=kind == "full" and seed == 3),
    }
    monkeypatch.setattr(learner, "run", lambda *_, **__: Run(mode="train", **SCHEDULES[schedule], **changes))
    fewest = variant.programs[regime].fewest.get("windows", 0)
    drawn = (learner.some(random, images, 9, regime) for _ in range(100))
    windows, batch = next((some, batch) for some, batch in drawn if batch * sum(map(prod, some)) >= fewest)
    _, report, _, _, run, theirs = learner.sample(("unseen", seed), windows, batch, schedule, deep=True, regime=regime)
    found = learnt_training(report, plan_of(report, run))
    assert found is not None
    numbers = {event.id: number for number, event in enumerate(each for each in theirs.events if len(each) > 1)}
    events = tuple(event._replace(id=numbers[event.id]) for event in theirs.events)
    sums = tuple((numbers[identity], summed) for identity, summed in theirs.sums)
    assert_same(found.at(point_of(run)), replace(theirs, events=events, sums=sums))


def seeing(model: str | Mapping[str, Any], *sizes: tuple[int, int], **changes: Any) -> tuple[Any, Run]:
    """A training run with images of this width and height, on an H100."""
    report = inspect(f"catalog:{model}") if isinstance(model, str) else report_of(model)
    typed = tuple(Typed(text="", width=width, height=height) for width, height in sizes)
    media = media_of(report.config or {}, {}, Request(typed=typed))
    run = Run(mode="train", media=media, prompt_tokens=200 + media.context_tokens, gpu="H100 SXM")
    return report, with_kernel(replace(run, **changes), report)


@pytest.mark.parametrize(
    ("model", "sizes", "changes"),
    [
        pytest.param(MODEL, [(1024, 768)], {"lora_rank": 16}, marks=pytest.mark.exhaustive),
        pytest.param(MODEL, [(1024, 768)], {"lora_rank": 16, "checkpointing": True, "batch": 2}, marks=pytest.mark.exhaustive),
        pytest.param(MODEL, [(640, 480), (333, 444)], {"checkpointing": True}, marks=pytest.mark.exhaustive),
        pytest.param("Qwen/Qwen2.5-VL-3B-Instruct", [(700, 300)], {}, marks=pytest.mark.exhaustive),
        pytest.param(MODEL, [(1024, 768)], {"frozen": "visual"}, marks=pytest.mark.exhaustive),
        pytest.param("Qwen/Qwen3-VL-2B-Instruct", [(700, 300)], {}, marks=pytest.mark.exhaustive),
        pytest.param("Qwen/Qwen3-VL-2B-Instruct", [(700, 300)], {"lora_rank": 16, "batch": 2}, marks=pytest.mark.exhaustive),
        pytest.param("Qwen/Qwen3-VL-8B-Instruct", [(640, 480)], {"lora_rank": 16}, marks=pytest.mark.exhaustive),
        pytest.param("Qwen/Qwen3-VL-8B-Instruct", [(640, 480)] * 2, {"checkpointing": True}, marks=pytest.mark.exhaustive),
    ],
)  # fmt: skip
def test_a_release_trains_as_transformers_trains_it(
    model: str, sizes: list[tuple[int, int]], changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a trace of a few layers of tower and decoder, which tests/predicting/test_few_layers.py holds against all."""
    monkeypatch.setenv("QWEN_INSPECT_CACHE", str(tmp_path))
    report, run = seeing(model, *sizes, **changes)
    plan = plan_of(report, run)
    found = learnt_training(report, plan)
    theirs = composed_trace(question_of(report, plan, trace_request(plan.run), installed_versions()))
    assert found is not None
    assert theirs is not None
    assert_same(found.at(point_of(plan.run)), theirs.at(point_of(plan.run)))


def test_what_trains_otherwise_is_not_covered() -> None:
    config = dict(catalog.configuration(MODEL, catalog.entries()))
    report, run = seeing(config, (300, 200), lora_rank=16)
    assert run.media is not None
    assert is_covered(report, run)
    others: list[dict[str, Any]] = [
        *({"optimizer": optimizer} for optimizer in ("none", "adafactor", "muon")),
        *({"loop": loop} for name, loop in LOOPS.items() if name),
        {"padded": True}, {"autocast": "bfloat16"}, {"attention": "eager"}, {"dora": True},
        {"lora_targets": ("down_proj",)},
        {"lora_rank": None, "frozen": r"blocks\.0\."}, {"lora_rank": None, "trained": "mlp"},
        {"prompt_tokens": run.media.least_tokens},  # no text behind the image
    ]  # fmt: skip
    for changes in others:
        assert not is_covered(report, replace(run, **changes)), changes
    item = run.media.items[0]
    small = replace(item, shape=replace(item.shape, grid=(1, 2 * LEAST, 2 * LEAST), tokens=LEAST**2))
    assert LEAST < WINDOW
    assert not is_covered(report, replace(run, media=replace(run.media, items=(small,))))
    for part in ({"vision_config": {**config["vision_config"], "attention_dropout": 0.1}}, {"attention_dropout": 0.1}):
        assert not is_covered(report_of({**config, **part}), run)


def test_a_plain_install_says_what_training_with_images_takes_and_what_it_does_not_know() -> None:
    line = ["memory", f"catalog:{MODEL}", "--mode", "train", "--lora", "16", "--lang", "en"]
    assert "Method: traced" in without_torch(*line, "--image", "1024x768").stdout
    unknown = without_torch(*line, "--video", "640x480x4s").stdout
    assert "no shipped trace covers this run and torch is not installed" in unknown.splitlines()[0]


@pytest.mark.parametrize("model_type", KEPT)
def test_a_file_reads_back_to_the_same_bytes_and_is_small(model_type: str) -> None:
    content = Path(SHIPPED, image_training_file(model_type)).read_bytes()
    assert len(content) < 200_000
    assert dump(load(content, file="")) == content
    with pytest.raises(MalformedError):
        load(content[:-9], file="")

"""Ranks are true: what is predicted for each is what processes that really share small models hold, to the byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qwen_inspect.architectures import architecture_of
from qwen_inspect.errors import QwenInspectError
from qwen_inspect.predicting import sources
from qwen_inspect.predicting.footprint import traced_footprint
from qwen_inspect.predicting.sources import trace_request
from qwen_inspect.results.memory import Autocast, Moment, Optimizer, Run
from qwen_inspect.results.ranks import Parallelism, Place, RankBytes
from qwen_inspect.results.timeline import Allocate, Free, living
from qwen_inspect.results.training import Loop, Loss, loop_of
from qwen_inspect.sharing.four_bits import base_on_ranks
from qwen_inspect.sharing.ranks import ranks_report, with_peaks
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.tracing.adapting import Adapters
from qwen_inspect.tracing.one_rank import cut, standing_at, unloaded
from qwen_inspect.tracing.trace import TraceRequest, trace

from ..support.distributed_runs import BATCH, FOLLOWED_NEW, FOLLOWED_PROMPT, NEW, PROMPT, STEPS
from ..support.families import FAMILIES
from ..support.following import Change, follow
from ..support.following import Run as Following
from ..support.real_training import STEP_COUNTER_BYTES, is_of_loop, on_cpu
from ..support.shared_models import EXPERTS, LINEAR, MODELS, QWEN3, named
from ..support.small_models import small_config

ROOT = Path(__file__).parents[2]


# Of other types, whose plans come from transformers: plain, with windows, gathered projections, biases of experts, MLA.
GENERIC: Mapping[str, str] = {
    "mistral": "MistralForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
}


# As BitsAndBytesConfig writes it but for bnb_4bit_quant_storage, for which the weights' dtype stands.
FOUR_BITS = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}


# Of what is trained: one layer between a first and a last.
TRAINED_LAYERS = 3


def config_of(model: str, *, trained: bool = False) -> dict[str, Any]:
    if trained:
        return config_of(model) | {"num_hidden_layers": TRAINED_LAYERS}
    if model == "qwen3 in 4 bits":
        return QWEN3 | {"quantization_config": FOUR_BITS}
    if model in GENERIC:
        return {**small_config(model), "architectures": [GENERIC[model]]}
    return MODELS.get(model) or dict(FAMILIES[model.removeprefix("family ")])


@dataclass(frozen=True)
class Job:
    """How a model is shared, by the degrees of DistributedConfig, to generate, or with an optimizer to train.

    followed: each request for memory is recorded too.
    """

    model: str
    degrees: tuple[tuple[str, int], ...]
    zero_stage: int = 3
    optimizer: Optimizer | Literal[""] = ""
    load_only: bool = False
    followed: bool = False
    lora: int | None = None
    targets: str = "all-linear"
    loop: Literal["trainer", "sft"] | None = None
    packing: int | None = None
    loss: Loss = "model"
    accumulate: int = 1
    autocast: Autocast | None = None
    checkpointing: bool = False
    clip: bool = False
    keep_gradients: bool = False
    ema: bool = False
    offload: bool = False

    @property
    def name(self) -> str:
        degrees = " ".join(f"{name}={ranks}" for name, ranks in self.degrees)
        trained = f" {self.optimizer} stage {self.zero_stage}" if self.optimizer else ""
        adapters = f" lora {self.lora} {self.targets}" if self.lora else ""
        facts = (
            "loop",
            "accumulate",
            "autocast",
            "checkpointing",
            "clip",
            "keep_gradients",
            "ema",
            "offload",
            "packing",
            "loss",
        )
        further = (f" {fact} {value}" for fact in facts if (value := getattr(self, fact)) != getattr(Job, fact))
        return f"{self.model} {degrees}{trained}{adapters}{''.join(further)}"

    @property
    def config(self) -> dict[str, Any]:
        return config_of(self.model, trained=bool(self.optimizer))

    @property
    def facts(self) -> Loop:
        keeps = self.keep_gradients or None
        return loop_of(
            self.loop, clip=self.clip or None, keep_gradients=keeps, ema=self.ema, loss=self.loss, packing=self.packing
        )

    @property
    def how(self) -> Parallelism:
        names = {"tp": "tensor", "pp": "pipeline", "ep": "expert", "fsdp": "fsdp"}
        degrees: dict[str, Any] = {names[name]: ranks for name, ranks in self.degrees}
        return Parallelism(**degrees, zero_stage=self.zero_stage, offload=self.offload)

    @property
    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "model": self.config,
            "saved": f"{self.model} {'trained' if self.optimizer else ''}",
            "run": "train" if self.optimizer else "generate",
            "parallel": {f"{name}_size": ranks for name, ranks in self.degrees},
            "zero_stage": self.zero_stage,
            "optimizer": self.optimizer,
            "load_only": self.load_only,
            "followed": self.followed,
            "lora": self.lora,
            "targets": self.targets if self.targets == "all-linear" else self.targets.split(","),
            "loop": self.loop,
            "packing": self.packing,
            "loss": self.loss,
            "accumulate": self.accumulate,
            "autocast": self.autocast,
            "checkpointing": self.checkpointing,
            "clip": self.clip,
            "keep_gradients": self.keep_gradients,
            "ema": self.ema,
            "offload": self.offload,
        }


def job(model: str, *, load_only: bool = False, **degrees: int) -> Job:
    return Job(model=model, degrees=tuple(degrees.items()), load_only=load_only)


def followed(model: str, **degrees: int) -> Job:
    return Job(model=model, degrees=tuple(degrees.items()), followed=True)


def trained(
    model: str,
    optimizer: Optimizer = "adamw_foreach",
    *,
    zero_stage: int = 3,
    follow: bool = True,
    lora: int | None = None,
    targets: str = "all-linear",
    facts: Mapping[str, Any] = MappingProxyType({}),
    **degrees: int,
) -> Job:
    of_model = followed(model, **degrees)
    return replace(
        of_model, optimizer=optimizer, zero_stage=zero_stage, followed=follow, lora=lora, targets=targets, **facts
    )


BY_TRAINER = {"loop": "trainer", "accumulate": 2, "autocast": "bfloat16"}
SCALED = BY_TRAINER | {"autocast": "float16"}
# Linear modules that plans cut by columns.
COLUMNS = "q_proj,k_proj,v_proj,gate_proj,up_proj"
JOBS: Mapping[int, tuple[Job, ...]] = {
    2: (
        *(followed(model, tp=2) for model in ("qwen2", "qwen3", "qwen3_moe", "qwen3_next")),
        *(job(model, tp=2) for model in ("qwen3 tied", "gpt_oss", "deepseek_v3")),
        job("family qwen2_5_vl", tp=2),
        job("qwen3_moe of odd width", tp=2, load_only=True),  # grouped_mm refuses its 17 channels
        *(followed(model, pp=2) for model in ("qwen2", "qwen3_moe")),
        job("qwen3 tied", pp=2),
        *(followed(model, fsdp=2) for model in ("qwen3", "qwen3_moe", "qwen3_next")),
        job("qwen3 tied", fsdp=2),
        followed("qwen3_moe", tp=2, ep=2),
        job("qwen3_moe", fsdp=2, ep=2),
        *(trained(model, fsdp=2) for model in ("qwen3", "qwen3 tied", "qwen3_moe")),
        trained("qwen3", "adamw_fused", fsdp=2, follow=False),
        trained("qwen3", fsdp=2, zero_stage=2),
        trained("qwen3", fsdp=2, lora=3),
        trained("llama", fsdp=2, zero_stage=2, follow=False, lora=3),
        trained("qwen3 in 4 bits", fsdp=2, lora=3, facts={"offload": True}),
        trained("qwen3 in 4 bits", "adamw_fused", fsdp=2, lora=3, facts=BY_TRAINER | {"checkpointing": True}),
        trained("qwen3 tied", "adamw_fused", fsdp=2, facts=BY_TRAINER | {"loop": "sft", "packing": 3}),
        trained("qwen3", "adamw_for_loop", fsdp=2, lora=3, facts=SCALED | {"accumulate": 1, "checkpointing": True}),
        trained("qwen3", "muon", fsdp=2, facts={"accumulate": 2, "clip": True, "keep_gradients": True, "autocast": "float16"}),
        trained("qwen3", "sgd_momentum", fsdp=2, follow=False),
        trained("qwen3 tied", fsdp=2, facts={"offload": True, "accumulate": 2, "clip": True, "autocast": "float16"}),
        *(trained("qwen3", "adamw_fused", fsdp=2, facts=facts | {"offload": True}) for facts in (BY_TRAINER, SCALED)),
        trained("qwen3", "adamw_fused", fsdp=2, facts=BY_TRAINER | {"loss": "torch"}),
        trained("qwen3", "adamw_fused", tp=2, facts=BY_TRAINER),
        trained("qwen3_moe", "adamw_for_loop", tp=2),
        *(trained(model, "adamw_for_loop", tp=2, follow=False) for model in ("llama", "qwen3", "qwen3 tied")),
        trained("qwen3 tied", "adamw_for_loop", tp=2, follow=False, lora=3, targets=COLUMNS),
    ),
    4: (
        *(job(model, tp=4) for model in ("qwen3", "qwen3_moe", "llama")),
        followed("qwen3 tied", pp=4),
        followed("qwen3", tp=2, fsdp=2),
        job("qwen3_moe", tp=2, fsdp=2, ep=2),
        job("qwen3_moe", tp=2, fsdp=2, ep=4),
        job("qwen3_moe", fsdp=4, ep=2),
        *(trained(model, fsdp=4, follow=False) for model in ("qwen3", "qwen3 tied", "qwen3_moe")),
        trained("qwen3", tp=2, fsdp=2),
    ),
}  # fmt: skip
# What others of these are too, in a model or number of ranks of their own: beyond CI's time.
LATER = {
    *(followed("qwen2", tp=2), followed("qwen3", fsdp=2), job("llama", tp=4), job("qwen3_moe", tp=2, fsdp=2, ep=2)),
    trained("qwen3", fsdp=2),  # the others are of it tied and with experts
    *(trained(model, fsdp=4, follow=False) for model in ("qwen3", "qwen3 tied")),
    *(trained(model, "adamw_for_loop", tp=2, follow=False) for model in ("llama", "qwen3")),
}
# As above, of other models: likewise.
MORE = (
    *(job(model, tp=2) for model in ("llama", "mixtral", "mistral", "gemma3_text", "qwen3_5", "phi3")),
    *(job(f"family {model}", tp=2) for model in ("qwen2_vl", "qwen3_5", "qwen2_moe", "qwen3_5_moe")),
    *(job(model, pp=2) for model in ("qwen3", "llama", "phi3", "qwen3_next")),
    *(job(model, fsdp=2) for model in ("gpt_oss", "family qwen3_vl")),
)
# What transformers refuses, and the key of this tool's sentence.
REFUSED: tuple[tuple[Job, str, str], ...] = (
    (job("qwen3 with 3 KV heads", tp=2), "ranks_kv_heads", "is invalid for input of size"),
    (job("qwen3_moe with 9 experts", tp=2, ep=2), "ranks_experts", "Cannot evenly shard 9 experts across 2"),
    (job("gpt2", tp=2), "ranks_no_plan", "has no `tp_plan`"),
    (job("gpt2", pp=2), "ranks_no_pipeline", "no attribute 'layers'"),
    (job("family qwen3_vl", tp=2), "ranks_tied_head", "RuntimeError"),
    (job("family qwen3_vl_moe", tp=2), "ranks_not_loaded", "ignore_mismatched_sizes"),
    (job("family qwen3_vl", pp=2), "ranks_no_pipeline", "no attribute 'layers'"),
    (job("qwen3", tp=2, ep=2), "ranks_no_plan", "has no `ep_plan`"),
    (job("qwen3_moe", ep=2, fsdp=1, tp=1), "", "`ep_size` must divide"),
    (trained("qwen3", tp=2), "ranks_train_mixed", "mixed torch.Tensor and DTensor"),
    (trained("qwen3", "adamw_fused", tp=2), "ranks_train_mixed", "mixed torch.Tensor and DTensor"),
    (trained("qwen3", "sgd", tp=2), "ranks_train_mixed", "mixed torch.Tensor and DTensor"),
    (
        trained("qwen3", "adamw_for_loop", tp=2, follow=False, lora=3, targets="down_proj"),
        "ranks_adapters_style",
        "is invalid for",
    ),
    (trained("qwen3", "adafactor", fsdp=2), "ranks_optimizer_adafactor", "mixed torch.Tensor and DTensor"),
    (trained("qwen3", "adamw_8bit", fsdp=2), "ranks_optimizer_bitsandbytes", "mixed torch.Tensor and DTensor"),
    (trained("qwen3", "lion", fsdp=2), "ranks_optimizer_bitsandbytes", "not have a sharding strategy"),
    (trained("qwen3", fsdp=2, follow=False, facts={"ema": True}), "ranks_ema", "does not support deepcopy"),
    (trained("qwen3", "adamw_for_loop", tp=2, facts={"clip": True}), "ranks_clip", "mixed torch.Tensor and DTensor"),
    (
        trained("qwen3", "adamw_for_loop", tp=2, facts={"autocast": "float16"}),
        "ranks_scaler",
        "mixed torch.Tensor and DTensor",
    ),
    (trained("qwen3", "adamw_for_loop", pp=2), "ranks_train_pipeline", "'NoneType' object has no attribute 'backward'"),
    (job("qwen3", tp=2, pp=2), "ranks_with_pipeline", "KeyError: 'model."),
    (job("qwen3", fsdp=2, pp=2), "ranks_with_pipeline", "Combining FSDP with pipeline parallelism is not supported"),
)


def run_all(directory: Path, jobs: Mapping[int, tuple[Job, ...]]) -> dict[str, list[dict[str, Any]]]:
    """What each rank of each job found. jobs: by the number of processes."""
    listed = directory / "jobs.json"
    listed.write_text(json.dumps([[number, [one.as_json for one in some]] for number, some in jobs.items()]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    finished = subprocess.run(
        [sys.executable, "-m", "tests.support.distributed_runs", str(listed), str(directory)],
        capture_output=True, text=True, check=False, timeout=400, env=environment, cwd=ROOT,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    told = [json.loads(line) for line in finished.stdout.splitlines() if line.startswith("{")]
    return {one["job"]: one["ranks"] for one in told}


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Every job that a test asks for, really run: one start for all; by the first of pytest's workers that asks for it."""
    directory = tmp_path_factory.mktemp("ranks")
    asked = [item.callspec.params.get("one") for item in request.session.items if hasattr(item, "callspec")]
    refused = [one for one, _, _ in REFUSED]
    jobs = {
        2: (*JOBS[2], *(one for one in refused if one.how.ranks < 4)),
        4: (*JOBS[4], *(one for one in refused if one.how.ranks == 4)),
    }
    jobs = {processes: tuple(one for one in some if one in asked) for processes, some in jobs.items()}
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return run_all(directory, jobs)
    kept = tmp_path_factory.getbasetemp().parent / "ranks.json"
    with FileLock(f"{kept}.lock"):
        if not kept.exists():
            kept.write_text(json.dumps(run_all(directory, jobs)))
    found: dict[str, list[dict[str, Any]]] = json.loads(kept.read_text())
    return found


def predicted(one: Job, directory: Path) -> list[RankBytes]:
    """What is predicted for each rank, one by one."""
    (directory / "config.json").write_text(json.dumps(one.config))
    run = Run(
        mode="train" if one.optimizer else "generate",
        batch=BATCH,
        prompt_tokens=PROMPT,
        new_tokens=NEW,
        attention="sdpa",
        optimizer=one.optimizer or Run().optimizer,
        lora_rank=one.lora,
        lora_targets=tuple(one.targets.split(",")),
        accumulate=one.accumulate,
        autocast=one.autocast,
        loop=one.facts,
    )
    found = ranks_report(inspect(str(directory)), run, one.how)
    return [group for rank in range(one.how.ranks) for group in found.ranks if rank in group.ranks]


def case(one: Job, *values: int, late: bool = False) -> Any:
    return pytest.param(one, *values, marks=pytest.mark.exhaustive if late or one in LATER else ())


GENERATED = [case(one) for jobs in JOBS.values() for one in jobs if not one.optimizer]
TRAINED = [case(one) for jobs in JOBS.values() for one in jobs if one.optimizer]
# The last rank, whose parts may be smaller than the first's; that one too where time does not matter. Of adapters and of
# accelerate's FSDP2 the first alone: the last one pads its parts as it loads them, before it is followed.
FOLLOWED = [
    each
    for jobs in JOBS.values()
    for one in jobs
    if one.followed
    for each in (
        [case(one, 0)]
        if one.lora or (one.loop and one.how.fsdp > 1)
        else [case(one, 0, late=True), case(one, one.how.ranks - 1)]
    )
]


@pytest.mark.parametrize("one", GENERATED, ids=lambda one: one.name)
def test_each_rank_holds_the_weights_and_the_cache_that_are_predicted(
    one: Job, runs: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    assert_held(one, runs[one.name], tmp_path)


@pytest.mark.exhaustive
def test_ranks_of_other_models_hold_them_too(tmp_path: Path) -> None:
    found = run_all(tmp_path, {2: MORE})
    for one in MORE:
        assert_held(one, found[one.name], tmp_path)


def assert_held(one: Job, found: list[dict[str, Any]], directory: Path) -> None:
    expected = predicted(one, directory)
    assert [rank["weights"] for rank in found] == [rank.weights - rank.padding for rank in expected]
    if not one.load_only:
        assert [rank["cache"] for rank in found] == [rank.cache for rank in expected]
        assert [rank["state"] for rank in found] == [rank.state for rank in expected]
        if one.model != "deepseek_v3":  # loads a buffer of its routers in float32
            assert [rank["buffers"] for rank in found] == [rank.buffers for rank in expected]


@pytest.mark.parametrize("one", TRAINED, ids=lambda one: one.name)
def test_each_rank_trains_with_the_bytes_that_are_predicted(
    one: Job, runs: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    expected = predicted(one, tmp_path)
    found = runs[one.name]
    if one.offload:  # gradients are as large as the shards, also those that Trainer has dropped
        gradients = [rank.get("gradients", rank.get("trainable")) for rank in found]
        moved = [rank["weights"] - rank["beside"] + rank["optimizer"] for rank in found]
        assert [sum(both) for both in zip(moved, gradients, strict=True)] == [rank.host for rank in expected]
        kept = [rank.weights + rank.adapters + rank.gradients + rank.optimizer for rank in expected]
        assert kept == [rank["beside"] for rank in found]
        return
    if one.degrees[0][0] == "fsdp":
        assert [rank["weights"] for rank in found] == [rank.weights + rank.adapters for rank in expected]
    if one.lora is None or "tp" in dict(one.degrees):
        assert [rank["rows"] for rank in found] == [rank.weights - rank.padding + rank.adapters for rank in expected]
    assert [rank["optimizer"] for rank in found] == [rank.optimizer for rank in expected]
    if one.loop:  # Trainer has dropped them
        return
    assert [rank["gradients"] for rank in found] == [rank.gradients for rank in expected]
    if all(rank.gathered is not None for rank in expected):  # not told where they are tensor-parallel ones too
        assert [rank["gathered"] for rank in found] == [rank.gathered for rank in expected]


@pytest.mark.parametrize(
    ("one", "rank"), FOLLOWED, ids=lambda value: value.name if isinstance(value, Job) else f"rank {value}"
)
def test_each_rank_asks_for_the_memory_that_its_trace_says(
    one: Job, rank: int, runs: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """The real ranks, request by request: what lives after each of them, and so the peak and the end, to the byte."""
    changes = [Change(size, address, tuple(operators)) for size, address, operators in runs[one.name][rank]["changes"]]
    config = one.config
    (tmp_path / "config.json").write_text(json.dumps(config))
    base = base_on_ranks(inspect(str(tmp_path))) if one.lora else None
    spec = architecture_of(config).spec
    workload = TraceRequest(
        mode="train" if one.optimizer else "generate",
        batch=BATCH,
        prompt_tokens=FOLLOWED_PROMPT,
        new_tokens=FOLLOWED_NEW,
        steps=STEPS if one.optimizer else 1,
        optimizer=one.optimizer or "none",
        device="cpu",
        lora=None if one.lora is None else Adapters(rank=one.lora, targets=("all-linear",), base=base),
        accumulate=one.accumulate,
        autocast=one.autocast,
        checkpointing=one.checkpointing,
        loop=one.facts,
    )
    events = on_cpu(trace(spec, config, workload, Place(how=one.how, rank=rank)))
    if one.loop:  # which has returned, and with it what it named
        made = {event.id for event in events if isinstance(event, Allocate)}
        events = [event for event in events if event.id in made]
        events += [Free(event.id) for event in living(events) if is_of_loop(event) and event.operator != "parameter"]
    left = follow(changes, events, Following({}, {}, {})).scratch
    assert {change.size_bytes for change in left.values()} <= {STEP_COUNTER_BYTES}


@pytest.mark.parametrize(("one", "key", "words"), REFUSED, ids=lambda one: one.name if isinstance(one, Job) else "")
def test_what_transformers_refuses_is_refused(
    one: Job, key: str, words: str, runs: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    assert all(words in rank["refused"] for rank in runs[one.name])
    if key:
        with pytest.raises(QwenInspectError) as caught:
            predicted(one, tmp_path)
        assert (caught.value.message.key, caught.value.exit_code) == (key, 7)


def test_more_stages_than_layers_leave_a_stage_without_parameters_and_are_refused(tmp_path: Path) -> None:
    """Such a stage asks for its first parameter, and there is none: its peers wait for it in vain."""
    import torch
    import transformers

    place = Place(how=Parallelism(pipeline=4), rank=1)
    config = QWEN3 | {"num_hidden_layers": 3}
    with standing_at(place), unloaded():
        model = transformers.Qwen3ForCausalLM._from_config(
            transformers.AutoConfig.for_model(**config), dtype=torch.bfloat16
        )
        assert list(cut(model, place).parameters()) == []
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(QwenInspectError) as caught:
        ranks_report(inspect(str(tmp_path)), Run(), place.how)
    assert caught.value.message.key == "ranks_empty_stages"


# --- the peaks that are told


def told(model: Mapping[str, Any], run: Run, directory: Path, **how: Any) -> tuple[RankBytes, ...]:
    (directory / "config.json").write_text(json.dumps(model))
    report = inspect(str(directory))
    return with_peaks(ranks_report(report, run, Parallelism(**how)), report, run).ranks


@pytest.mark.parametrize(
    ("how", "batch"),
    [
        ({"tensor": 2}, 1),
        pytest.param({"tensor": 2}, 2, marks=pytest.mark.exhaustive),
        pytest.param({"tensor": 2, "expert": 2}, 1, marks=pytest.mark.exhaustive),
        pytest.param({"fsdp": 4}, 2, marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_a_kept_trace_of_a_rank_tells_of_any_workload_what_a_new_trace_does(
    how: dict[str, Any], batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call traces, and keeps three layers' trace; the second deepens that, for another workload."""
    monkeypatch.setenv("QWEN_INSPECT_CACHE", str(tmp_path / "cache"))
    config = named("Qwen3MoeForCausalLM", "qwen3_moe", EXPERTS)  # of whose table ranks have unequal parts
    told(config, Run(batch=batch, prompt_tokens=33, new_tokens=5), tmp_path, **how)
    another = Run(batch=batch + (batch > 1), prompt_tokens=70, new_tokens=9)
    monkeypatch.setattr(sources, "traced_now", not_again)
    kept = told(config, another, tmp_path, **how)
    monkeypatch.undo()
    assert len(kept) == 2
    for one in kept:
        assert one.peak is not None
        assert one.peak == traced_peak(config, another, Place(how=Parallelism(**how), rank=one.ranks[0]))


def traced_peak(config: Mapping[str, Any], run: Run, place: Place) -> Moment | None:
    spec = architecture_of(config).spec
    return traced_footprint(trace(spec, config, trace_request(run), place), run, provenance="").peak


@pytest.mark.parametrize("how", [{"tensor": 2}, pytest.param({"fsdp": 4}, marks=pytest.mark.exhaustive)], ids=str)
def test_three_blocks_of_a_hybrid_stand_for_four_on_a_rank_too(how: dict[str, Any], tmp_path: Path) -> None:
    """The gate of a shared expert has one row: other ranks than the first fill up a part of none."""
    parts = (EXPERTS, LINEAR)
    config = named(
        "Qwen3NextForCausalLM", "qwen3_next", *parts, shared_expert_intermediate_size=35, num_hidden_layers=12
    )
    run = Run(prompt_tokens=9, new_tokens=2)
    for one in told(config, run, tmp_path, **how):
        assert one.peak is not None
        assert one.peak == traced_peak(config, run, Place(how=Parallelism(**how), rank=one.ranks[0]))


def not_again(*_: Any, **__: Any) -> None:
    raise AssertionError("traced again")


def test_what_is_not_known_of_a_peak_is_said_and_not_guessed(tmp_path: Path) -> None:
    """Tokens that go to whichever rank has their expert; DeepSpeed's weights on the host."""
    config = named("Qwen3MoeForCausalLM", "qwen3_moe", EXPERTS)
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = inspect(str(tmp_path))
    for run, how in (
        (Run(prompt_tokens=8, new_tokens=2), Parallelism(fsdp=2, expert=2)),
        (Run(mode="train", prompt_tokens=8), Parallelism(fsdp=2, offload_params=True)),
    ):
        found = with_peaks(ranks_report(report, run, how), report, run)
        assert [one.peak for one in found.ranks] == [None] * len(found.ranks)
        assert "assume_ranks_untraced" in [message.key for message in found.assumptions]


@given(
    layers=st.integers(1, 4),
    heads=st.sampled_from([2, 4]),
    width=st.integers(3, 40),
    rows=st.integers(8, 70),
    ranks=st.sampled_from([2, 4]),
    way=st.sampled_from(["tensor", "fsdp"]),
)
@settings(
    max_examples=3, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_rank_holds_at_its_peak_what_it_holds_throughout_and_more(
    layers: int, heads: int, width: int, rows: int, ranks: int, way: str, tmp_path: Path
) -> None:
    """Of random sizes: the trace ends with the bytes that the plans give, else it would not be told; its peak is above them."""
    config = QWEN3 | {"num_hidden_layers": layers, "intermediate_size": width, "vocab_size": rows}
    config |= {"num_attention_heads": 4 * heads, "num_key_value_heads": 4}
    for one in told(config, Run(prompt_tokens=5, new_tokens=2), tmp_path, **{way: ranks}):
        assert one.peak is not None
        assert one.peak.weights >= one.weights
        assert (one.peak.allocated or 0) > one.weights + one.buffers + (one.cache or 0) // 2

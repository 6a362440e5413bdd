"""GRPO on one card: the sum of each phase, from hand-made footprints, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from qwen_inspect.errors import UsageError
from qwen_inspect.fitting import colocated as grpo
from qwen_inspect.fitting.colocated import Rollouts, colocated, with_chunked_head
from qwen_inspect.loaders import gpus
from qwen_inspect.results.colocated import Colocated
from qwen_inspect.results.memory import Footprint, MemoryReport, Moment, Run
from qwen_inspect.results.model import Report
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.values import replace

from ..support.models import run as command
from ..support.schema import assert_keeps_to_the_schema

GIB = 1 << 30
MODEL = "catalog:Qwen/Qwen3-0.6B"  # 596,049,920 parameters in bfloat16: 1,192,099,840 B
WEIGHTS = 1_192_099_840
RUN = Run(mode="train", prompt_tokens=2048, new_tokens=1024, gpu="RTX 4090")


def footprint(run: Run) -> Footprint:
    """Round figures: training peaks at 9 GiB and keeps 10, a step leaves 4, a forward takes 3 and a generation 2 more."""
    beyond = {"train": 5, "forward": 3 * run.batch, "generate": 2}[run.mode] * GIB
    steady = Moment(stage="optimizer", weights=WEIGHTS, buffers=512, total=4 * GIB)
    peak = Moment(stage="backward", weights=WEIGHTS, buffers=512, activations=beyond, total=9 * GIB)
    return Footprint(
        method="trace",
        steady=steady,
        peak=peak,
        peak_reserved=10 * GIB,
        context_bytes=GIB // 2,
        alive=(),
        assumptions=(),
        provenance="",
    )


@pytest.fixture(scope="module")
def report() -> Report:
    return inspect(MODEL)


def step(report: Report, monkeypatch: pytest.MonkeyPatch, run: Run = RUN, **options: Any) -> Colocated:
    def predicted(report: Report, run: Run) -> MemoryReport:
        return MemoryReport(report=report, run=run, predicted=footprint(run))

    monkeypatch.setattr(grpo, "predict", predicted)
    rollouts = Rollouts(**{"engine": "vllm", "gpu": gpus.find("RTX 4090"), "count": 4, **options})
    return colocated(predicted(report, run), rollouts)


def sums(found: Colocated) -> Mapping[str, tuple[int, int, int, int]]:
    """Of each phase: the policy's allocated bytes, its free segments, the reference, the engine's least."""
    return {
        phase.name: (phase.policy, phase.cached, phase.reference, phase.engine_least) for phase in found.phases
    }  # fmt: skip


def test_awake_vllm_has_its_share_in_every_phase(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 % of an RTX 4090's 25,246,040,064 B, rounded up (vLLM 0.19, v1/worker/utils.request_memory)."""
    found = step(report, monkeypatch)
    share = -(-3 * found.gpu.available_bytes // 10)
    assert sums(found) == {
        "rollout": (4 * GIB, 6 * GIB, 0, share),
        "score": (7 * GIB, 3 * GIB, 0, share),
        "train": (9 * GIB, GIB, 0, share),
    }
    assert found.required[0] == 10 * GIB + share + GIB // 2
    assert (found.host_bytes, found.sleep, found.utilization) == (0, 0, 0.3)


def test_a_sleeping_vllm_keeps_what_is_outside_its_pool(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """At level 1 its weights are in the host's memory (vLLM 0.19, gpu_worker.sleep); PyTorch's free segments are given back.

    0.24 to 0.27 GiB of its logs, printed to 0.01: from 0.235 on.
    """
    found = step(report, monkeypatch, sleep=1, reference=True)
    reference, outside = WEIGHTS + 512, 47 * (GIB // 100) // 2
    assert sums(found) == {
        "rollout": (4 * GIB, 0, reference, -(-3 * found.gpu.available_bytes // 10)),
        "score": (7 * GIB, 0, reference, outside),
        "train": (9 * GIB, GIB, reference, outside),
    }
    assert found.fullest.name == "rollout"  # 4 + 1.1 + 7.1 GiB, beside 9 + 1 + 1.1 + 0.3
    assert found.host_bytes == WEIGHTS
    assert step(report, monkeypatch, sleep=2).host_bytes == 0


def test_transformers_generates_in_the_same_allocator(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward model is there in all phases, and works in its own."""
    found = step(report, monkeypatch, engine="transformers", reward=report)
    assert sums(found) == {
        "rollout": (6 * GIB, 4 * GIB, 0, 0),
        "score": (7 * GIB, 3 * GIB, 0, 0),
        "reward": (4 * GIB, 3 * GIB, 0, 0),
        "train": (9 * GIB, GIB, 0, 0),
    }
    rewards = [phase.reward for phase in found.phases]
    assert rewards == [WEIGHTS + 512, WEIGHTS + 512, WEIGHTS + 512 + 3 * GIB, WEIGHTS + 512]


def test_scoring_takes_no_more_than_training(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward with a cache and all logits would take 6 GiB beside the 4 that stay; training, which has neither, peaks at 9."""
    found = step(report, monkeypatch, run=replace(RUN, batch=2), engine="transformers")
    assert sums(found)["score"] == (9 * GIB, GIB, 0, 0)


def test_only_a_shorter_completion_has_labels() -> None:
    assert with_chunked_head(RUN).loop.labelled_tokens(2, 2048) == 2 * 1024
    beyond = replace(RUN, new_tokens=2048)
    assert with_chunked_head(beyond) == beyond


@pytest.mark.parametrize(
    ("options", "key"),
    [({"utilization": 0.04}, "grpo_share"), ({"utilization": 0.08}, "grpo_cache")],
)
def test_a_share_that_holds_no_sequence_is_refused(
    report: Report, monkeypatch: pytest.MonkeyPatch, options: Mapping[str, Any], key: str
) -> None:
    with pytest.raises(UsageError) as raised:
        step(report, monkeypatch, **options)
    assert raised.value.message.key == key


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("--rollout", "vllm", "--gpu", "4090"), "--mode train"),
        (("--mode", "train", "--sleep", "1"), "--rollout"),
        (("--mode", "train", "--rollout", "vllm"), "--gpu NAME"),
        (("--mode", "train", "--rollout", "transformers", "--gpu", "4090", "--sleep", "2"), "--rollout vllm"),
        (("--mode", "train", "--rollout", "vllm", "--gpu", "4090", "--fsdp", "2"), "--fsdp"),
    ],
)
def test_options_that_contradict_each_other_are_one_line(typed: tuple[str, ...], said: str) -> None:
    done = command("memory", MODEL, *typed, "--lang", "en")
    assert (done.code, done.out, said in done.err) == (2, "", True), done.err


def test_every_format_shows_the_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    """The training of Qwen3 is composed from its family's trace, without torch; of the other phases the figures are made up."""
    monkeypatch.setattr(
        grpo, "predict", lambda report, run: MemoryReport(report=report, run=run, predicted=footprint(run))
    )
    typed = ["--mode", "train", "--rollout", "vllm", "--gpu", "4090", "--new-tokens", "1024", "--sleep", "2"]
    typed += ["--lora", "16", "--checkpointing"]
    done = command("memory", MODEL, *typed, "--format", "json", "--lang", "en")
    assert done.code == 0, done.err
    content = json.loads(done.out)
    assert_keeps_to_the_schema(content)
    phases = {phase["phase"]: phase for phase in content["grpo"]["phases"]}
    assert list(phases) == ["rollout", "score", "train"]
    assert phases["train"]["policy_bytes"] == content["predicted"]["peak_allocated_bytes"]
    # TRL 1.16's chunked head: no logits of 2,048 x 151,936 in float32, of which the class's own loss has three at once.
    assert phases["train"]["policy_bytes"] - WEIGHTS < 1_244_659_712
    assert content["grpo"]["kv_cache_tokens"] > 2048
    shown = command("memory", MODEL, *typed, "--lang", "zh").out
    assert "█" in shown
    assert "单卡 GRPO" in shown

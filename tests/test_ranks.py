"""Ranks are true: what is predicted for each is what processes that really share small models hold, to the byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.distribution import ranks_report
from qwen_inspect.errors import QwenInspectError
from qwen_inspect.pipeline import inspect
from qwen_inspect.ranks import Parallelism, RankBytes
from qwen_inspect.report.memory import Run

from .distributed_runs import BATCH, NEW, PROMPT
from .small_models import small_config
from .test_local import FAMILIES

SCRIPT = Path(__file__).parent / "distributed_runs.py"
# Sizes that leave remainders: 131 rows of the table, 97 channels of an MLP, 5 layers.
TEXT: Mapping[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 97,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
EXPERTS: Mapping[str, Any] = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,  # 32 channels for each of 2 ranks, 16 for each of 4: grouped_mm asks for 8
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
LINEAR: Mapping[str, Any] = {
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def named(class_name: str, model_type: str, *parts: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    config = {"architectures": [class_name], "model_type": model_type, **TEXT}
    for part in parts:
        config |= part
    return config | changes


QWEN3 = named("Qwen3ForCausalLM", "qwen3")
MODELS: Mapping[str, dict[str, Any]] = {
    "qwen2": named(
        "Qwen2ForCausalLM", "qwen2", head_dim=8, use_sliding_window=True, sliding_window=8, max_window_layers=2
    ),
    "qwen3": QWEN3,
    "qwen3 tied": QWEN3 | {"tie_word_embeddings": True},
    "qwen3 with 3 KV heads": QWEN3 | {"num_attention_heads": 6, "num_key_value_heads": 3},
    "qwen3_moe": named("Qwen3MoeForCausalLM", "qwen3_moe", EXPERTS),
    "qwen3_moe with 9 experts": named("Qwen3MoeForCausalLM", "qwen3_moe", EXPERTS, num_experts=9),
    "qwen3_moe of odd width": named("Qwen3MoeForCausalLM", "qwen3_moe", EXPERTS, moe_intermediate_size=33),
    "qwen3_next": named("Qwen3NextForCausalLM", "qwen3_next", EXPERTS, LINEAR, shared_expert_intermediate_size=35),
    "qwen3_5": named("Qwen3_5ForCausalLM", "qwen3_5_text", LINEAR),
    "llama": named("LlamaForCausalLM", "llama"),
    "mixtral": named("MixtralForCausalLM", "mixtral", num_local_experts=8, intermediate_size=64),
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2,
        "vocab_size": 131, "n_positions": 64, "dtype": "bfloat16",
    },
}  # fmt: skip

# Of other types, whose plans come from transformers: plain, with windows, gathered projections, biases of experts, MLA.
GENERIC: Mapping[str, str] = {
    "mistral": "MistralForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
}


def config_of(model: str) -> dict[str, Any]:
    if model in GENERIC:
        return {**small_config(model), "architectures": [GENERIC[model]]}
    return MODELS.get(model) or dict(FAMILIES[model.removeprefix("family ")])


@dataclass(frozen=True)
class Job:
    """How a model is shared: the degrees of DistributedConfig, or with `zero_stage` by fully_shard for a step of training."""

    model: str
    degrees: tuple[tuple[str, int], ...]
    zero_stage: int = 0
    load_only: bool = False

    @property
    def name(self) -> str:
        degrees = " ".join(f"{name}={ranks}" for name, ranks in self.degrees)
        return f"{self.model} {degrees}" + (f" stage {self.zero_stage}" if self.zero_stage else "")

    @property
    def how(self) -> Parallelism:
        names = {"tp": "tensor", "pp": "pipeline", "ep": "expert", "fsdp": "fsdp"}
        return Parallelism(**{names[name]: ranks for name, ranks in self.degrees}, zero_stage=self.zero_stage or 3)

    @property
    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "model": config_of(self.model),
            "saved": self.model,
            "run": "train" if self.zero_stage else "generate",
            "parallel": {f"{name}_size": ranks for name, ranks in self.degrees},
            "zero_stage": self.zero_stage,
            "load_only": self.load_only,
        }


def job(model: str, *, zero_stage: int = 0, load_only: bool = False, **degrees: int) -> Job:
    return Job(model=model, degrees=tuple(degrees.items()), zero_stage=zero_stage, load_only=load_only)


JOBS: Mapping[int, tuple[Job, ...]] = {
    2: (
        *(job(model, tp=2) for model in ("qwen2", "qwen3", "qwen3 tied", "qwen3_moe", "qwen3_next", "qwen3_5")),
        *(job(model, tp=2) for model in ("llama", "mixtral", *GENERIC)),
        *(job(f"family {model}", tp=2) for model in ("qwen2_moe", "qwen2_vl", "qwen2_5_vl")),
        *(job(f"family {model}", tp=2) for model in ("qwen3_5", "qwen3_5_moe")),
        job("qwen3_moe of odd width", tp=2, load_only=True),  # grouped_mm refuses its 17 channels
        *(job(model, pp=2) for model in ("qwen2", "qwen3", "qwen3 tied", "qwen3_moe", "qwen3_next", "llama", "phi3")),
        *(job(model, fsdp=2) for model in ("qwen3", "qwen3 tied", "qwen3_next", "family qwen3_vl", "gpt_oss")),
        job("qwen3_moe", tp=2, ep=2),
        job("qwen3_moe", fsdp=2, ep=2),
        *(job(model, fsdp=2, zero_stage=3) for model in ("qwen3", "qwen3 tied", "qwen3_moe", "llama")),
        job("qwen3", fsdp=2, zero_stage=2),
    ),
    4: (
        *(job(model, tp=4) for model in ("qwen3", "qwen3_moe", "llama")),
        job("qwen3 tied", pp=4),
        job("qwen3", tp=2, fsdp=2),
        job("qwen3_moe", tp=2, fsdp=2, ep=2),
        job("qwen3_moe", tp=2, fsdp=2, ep=4),
        job("qwen3_moe", fsdp=4, ep=2),
        *(job(model, fsdp=4, zero_stage=3) for model in ("qwen3", "qwen3 tied", "qwen3_moe")),
    ),
}  # fmt: skip
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
    (job("qwen3", tp=2, pp=2), "ranks_with_pipeline", "KeyError: 'model."),
    (job("qwen3", fsdp=2, pp=2), "ranks_with_pipeline", "Combining FSDP with pipeline parallelism is not supported"),
)


def torchrun(directory: Path, processes: int, jobs: tuple[Job, ...]) -> dict[str, list[dict[str, Any]]]:
    """What each rank of each job found."""
    listed = directory / f"{processes}.json"
    listed.write_text(json.dumps([one.as_json for one in jobs]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    finished = subprocess.run(
        [*command, str(SCRIPT), str(listed), str(directory)],
        capture_output=True, text=True, check=False, timeout=280, env=environment,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    told = [json.loads(line) for line in finished.stdout.splitlines() if line.startswith("{")]
    return {one["job"]: one["ranks"] for one in told}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Every job, really run: one start of 2 processes, one of 4."""
    directory = tmp_path_factory.mktemp("ranks")
    refused = {
        4: [one for one, _, _ in REFUSED if one.how.ranks == 4],
        2: [one for one, _, _ in REFUSED if one.how.ranks < 4],
    }
    started = [torchrun(directory, processes, (*JOBS[processes], *refused[processes])) for processes in (2, 4)]
    return started[0] | started[1]


def predicted(one: Job, directory: Path) -> list[RankBytes]:
    """What is predicted for each rank, one by one."""
    (directory / "config.json").write_text(json.dumps(config_of(one.model)))
    run = Run(
        mode="train" if one.zero_stage else "generate",
        batch=BATCH,
        prompt_tokens=PROMPT,
        new_tokens=NEW,
        attention="sdpa",
    )
    found = ranks_report(inspect(str(directory)), run, one.how)
    return [group for rank in range(one.how.ranks) for group in found.ranks if rank in group.ranks]


GENERATED = [one for jobs in JOBS.values() for one in jobs if not one.zero_stage]
TRAINED = [one for jobs in JOBS.values() for one in jobs if one.zero_stage]


@pytest.mark.parametrize("one", GENERATED, ids=lambda one: one.name)
def test_each_rank_holds_the_weights_and_the_cache_that_are_predicted(
    one: Job, runs: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    expected = predicted(one, tmp_path)
    found = runs[one.name]
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
    assert [rank["weights"] for rank in found] == [rank.weights for rank in expected]
    assert [rank["rows"] for rank in found] == [rank.weights - rank.padding for rank in expected]
    assert [rank["gradients"] for rank in found] == [rank.gradients for rank in expected]
    assert [rank["optimizer"] for rank in found] == [rank.optimizer for rank in expected]
    assert [rank["gathered"] for rank in found] == [rank.gathered for rank in expected]


@pytest.mark.parametrize(("one", "key", "words"), REFUSED, ids=lambda one: one.name if isinstance(one, Job) else "")
def test_what_transformers_refuses_is_refused(
    one: Job, key: str, words: str, runs: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    assert all(words in rank["refused"] for rank in runs[one.name])
    if key:
        with pytest.raises(QwenInspectError) as caught:
            predicted(one, tmp_path)
        assert (caught.value.message.key, caught.value.exit_code) == (key, 7)

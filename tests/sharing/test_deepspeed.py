"""DeepSpeed's peaks are true: its real ranks took what is predicted, as `support/deepspeed_runs.py` recorded them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.architectures import architecture_of
from qwen_inspect.errors import UnsupportedError
from qwen_inspect.results.memory import Optimizer, Run
from qwen_inspect.results.ranks import Parallelism, Place, RanksReport
from qwen_inspect.results.timeline import Allocate, Event, Timeline
from qwen_inspect.results.training import loop_of
from qwen_inspect.sharing.deepspeed_peaks import check_peaks
from qwen_inspect.sharing.ranks import ranks_report, with_peaks
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.tracing.adapting import adapters_of
from qwen_inspect.tracing.partitioned import Partitioning
from qwen_inspect.tracing.trace import TraceRequest, trace
from qwen_inspect.tracing.zero import OPTIMIZER, ROOT, on_rank

from ..support.deepspeed_runs import BATCH, DEFAULT_BUCKET, JOBS, PROMPT, STEPS, Job, recorded, run, unpacked
from ..support.following import Change, follow
from ..support.following import Run as Following
from ..support.real_training import STEP_COUNTER_BYTES, on_cpu
from ..support.shared_models import QWEN3
from ..support.turns import in_turn

# What stage 3's settings are called in `Partitioning`.
SETTINGS = {
    "param_persistence_threshold": "persistent",
    "prefetch_bucket_size": "ahead",
    "max_reuse_distance": "reuse",
    "max_live_parameters": "live",
    "sub_group_size": "group",
}


def how_of(job: Job) -> Parallelism:
    return Parallelism(fsdp=job.ranks, zero_stage=job.stage, deepspeed=True, offload_optimizer=job.offloaded)


def run_of(job: Job, **changes: Any) -> Run:
    optimizer: Optimizer = job.optimizer  # type: ignore[assignment]
    chosen: dict[str, Any] = {
        "frozen": job.frozen,
        "accumulate": job.accumulate,
        "checkpointing": job.checkpointing,
        "lora_rank": job.lora or None,
        "lora_targets": ("all-linear",) if job.lora else (),
        "loop": loop_of("plain" if job.named else None),
    } | changes
    return Run(
        mode="train", batch=BATCH, prompt_tokens=PROMPT, attention="sdpa", device="cpu", optimizer=optimizer, **chosen
    )


@cache
def traced(job: Job, partitioned: Partitioning | None = None) -> Timeline:
    request = TraceRequest(
        mode="train",
        batch=BATCH,
        prompt_tokens=PROMPT,
        steps=STEPS,
        accumulate=job.accumulate,
        checkpointing=job.checkpointing,
        frozen=job.frozen,
        lora=adapters_of(run_of(job)),
        loop=run_of(job).loop,
        optimizer="none",
        device="cpu",
        by_deepspeed=True,
        reduces_each=job.stage == 2,
        partitioned=partitioned,
    )
    return trace(architecture_of(job.config).spec, job.config, request)


def of_rank(job: Job, rank: int) -> Timeline:
    if job.stage < 3:
        place = Place(how=how_of(job), rank=rank)
        return on_rank(traced(job), place, dtype=job.config["dtype"], optimizer=job.optimizer, bucket=job.bucket)
    partitioning = Partitioning(
        ranks=job.ranks,
        rank=rank if job.offloaded else 0,  # else ranks make the same requests
        optimizer=job.optimizer,
        accumulate=job.accumulate,
        offload_optimizer=job.offloaded,
        bucket=job.bucket,
        **{SETTINGS[key]: value for key, value in job.zero},
    )
    return traced(job, partitioning)


def parted(job: Job, rank: int) -> tuple[int, list[Event]]:
    """Bytes that DeepSpeed has made before the run, weights and buffers apart, and what the rank takes and gives back then."""
    found = on_cpu(of_rank(job, rank))
    begins = next(place for place, event in enumerate(found) if len(event) > 1 and event[2] == "inputs")
    assert found[0][2] == (ROOT if job.stage == 3 and job.offloaded else OPTIMIZER)  # type: ignore[misc]
    return sum(event[1] for event in found[:begins] if len(event) > 1), found[begins:]


def real(job: Job, rank: int) -> Following:
    changes = [Change(*change) for change in unpacked(recorded()[job.name][str(rank)])]
    return follow(changes, parted(job, rank)[1], Following({}, {}, {}))


@pytest.mark.parametrize(
    ("job", "place"),
    in_turn(JOBS, (0, -1)),
    ids=lambda value: value.name if isinstance(value, Job) else f"rank {value}",
)
def test_each_rank_takes_what_deepspeed_took(job: Job, place: int) -> None:
    """Request by request: what lives after each of them, and so the peak and the end, to the byte."""
    rank = place % job.ranks
    left = real(job, rank).scratch
    assert {change.size_bytes for change in left.values()} <= {STEP_COUNTER_BYTES}


def told(job: Job, directory: Path, **changes: Any) -> RanksReport:
    (directory / "config.json").write_text(json.dumps(job.config))
    report = inspect(str(directory))
    run = run_of(job, **changes)
    return with_peaks(ranks_report(report, run, how_of(job)), report, run)


DEFAULTS = [job for job in JOBS if job.bucket == DEFAULT_BUCKET and not job.zero]
ALIKE = [job for job in DEFAULTS if job.named or (job.lora and job.stage < 3) or job.config["dtype"] == "float16"]


@pytest.mark.parametrize(
    "job",
    [pytest.param(job, marks=[pytest.mark.exhaustive] * (job in ALIKE)) for job in DEFAULTS],
    ids=lambda job: job.name,
)
def test_the_peak_that_is_told_is_deepspeeds(job: Job, tmp_path: Path) -> None:
    """What it held before the run, weights, buffers and the optimizer's, and the most that it took in addition."""
    found = told(job, tmp_path)
    group_of = {rank: group for group in found.ranks for rank in group.ranks}
    assert sorted(group_of) == list(range(job.ranks))
    for rank in sorted({0, job.ranks - 1}):
        one = group_of[rank]
        assert one.peak is not None
        timeline = of_rank(job, rank)
        loaded = timeline.events[: timeline.stages[1].first_event]
        before = sum(event.size_bytes for event in loaded if isinstance(event, Allocate)) + parted(job, rank)[0]
        if job.stage == 3:  # where the flag of overflows, one byte, was not counted
            assert recorded()[job.name][str(rank)]["held"] == before - (not job.offloaded)
        assert one.peak.allocated == before + real(job, rank).real_peak_bytes
        assert one.peak_reserved is None


@pytest.mark.parametrize(
    ("changes", "how", "key"),
    [
        ({"mode": "generate"}, Parallelism(fsdp=2, zero_stage=1), "train"),
        ({"optimizer": "none"}, Parallelism(fsdp=2, zero_stage=1), "train"),
        ({}, Parallelism(fsdp=2, offload_params=True), "params"),
        ({"loop": loop_of("trainer")}, Parallelism(fsdp=2, zero_stage=1), "loop"),
        ({"loop": loop_of(None, keep_gradients=True)}, Parallelism(fsdp=2, zero_stage=1), "loop"),
        ({}, Parallelism(fsdp=128, zero_stage=1), "ranks"),
    ],
)
def test_what_is_missing_of_a_peak_is_said(changes: dict[str, Any], how: Parallelism, key: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    chosen: dict[str, Any] = {"mode": "train", "prompt_tokens": 8} | changes
    run = Run(**chosen)
    with pytest.raises(UnsupportedError) as caught:
        check_peaks(inspect(str(tmp_path)), run, how)
    assert caught.value.message.key == f"ranks_deepspeed_peak_{key}"


@pytest.mark.exhaustive
@pytest.mark.parametrize("job", JOBS[:1])
def test_deepspeed_still_does_what_is_recorded(job: Job) -> None:
    pytest.importorskip("deepspeed")
    found = run(job)
    for rank, (changes, _) in found.items():
        sizes = [size for size, _, _ in unpacked(recorded()[job.name][str(rank)])]
        assert [change[0] for change in changes] == sizes

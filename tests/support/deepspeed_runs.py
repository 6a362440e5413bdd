"""Run as a module: small models of random weights, really trained by DeepSpeed, and every request for memory.

Writes tests/recordings/deepspeed.json.gz, or the file that is given. Needs what no test needs: DeepSpeed 0.19.8, on CPU
(`DS_BUILD_OPS=0 pip install deepspeed`, and DS_ACCELERATOR=cpu while it runs).
"""

from __future__ import annotations

import gc
import gzip
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from .shared_models import MODELS

RECORDING = Path(__file__).parents[1] / "recordings" / "deepspeed.json.gz"
BATCH, PROMPT, STEPS = 2, 24, 2
DEFAULT_BUCKET = 5 * 10**8


@dataclass(frozen=True)
class Job:
    """A training run. bucket: reduce_bucket_size. frozen: what a parameter's name has in it that is not trained."""

    ranks: int
    stage: int
    model: str = "qwen3"
    bucket: int = DEFAULT_BUCKET
    offloaded: bool = False
    optimizer: str = "adamw_foreach"
    accumulate: int = 1
    checkpointing: bool = False
    frozen: str = ""
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        return MODELS[self.model] | {"num_hidden_layers": 2} | dict(self.changes)

    @property
    def name(self) -> str:
        shown = [f"{key} {value}" for key, value in sorted(vars(self).items()) if key != "changes"]
        return ", ".join([*shown, *(f"{key} {value}" for key, value in self.changes)])


# Parameters have up to 8,384 numbers: some fill a bucket of 5,000 alone, and some of them belong to two ranks.
JOBS = (
    Job(ranks=4, stage=1, bucket=5_000),
    Job(ranks=2, stage=2, bucket=20_000),
    Job(ranks=2, stage=1, model="qwen3 tied", optimizer="adamw_fused", accumulate=2, checkpointing=True),
    Job(ranks=2, stage=1, model="qwen3_moe", optimizer="adamw_for_loop"),
    Job(ranks=4, stage=2, bucket=5_000, offloaded=True),
    Job(ranks=2, stage=2, offloaded=True),
    Job(ranks=2, stage=1, offloaded=True, bucket=20_000, frozen="k_proj"),
    Job(ranks=2, stage=1, optimizer="sgd", changes=(("dtype", "float32"),)),
    Job(ranks=1, stage=1, offloaded=True, changes=(("dtype", "float32"),)),
)


def configuration(job: Job) -> dict[str, Any]:
    """DeepSpeed's, with its defaults but for the bucket."""
    stage: dict[str, Any] = {"stage": job.stage, "reduce_bucket_size": job.bucket}
    if job.offloaded:
        stage["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": BATCH,
        "gradient_accumulation_steps": job.accumulate,
        "zero_optimization": stage,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **({"bf16": {"enabled": True}} if job.config["dtype"] == "bfloat16" else {}),
    }


@contextmanager
def steps_on_host(optimizer: Any) -> Iterator[None]:
    """Of an optimizer on the host, all that its step takes is taken there, though both are the same memory here."""
    from torch.profiler import record_function

    from qwen_inspect.tracing.kernels import replaced

    from .distributed_runs import HOST

    step = type(optimizer).step

    def on_host(*arguments: Any, **options: Any) -> Any:
        with record_function(HOST):
            return step(*arguments, **options)

    with replaced([(type(optimizer), "step", on_host)]):
        yield


def trained(job: Job) -> list[Any]:
    """What this rank takes and gives back in STEPS steps."""
    import deepspeed
    import torch
    import transformers

    from qwen_inspect.tracing.optimizers import optimizer_of

    from .distributed_runs import followed, of_device

    torch.manual_seed(0)
    config = job.config
    found = getattr(transformers, config["architectures"][0])
    model = found._from_config(transformers.AutoConfig.for_model(**config), dtype=getattr(torch, config["dtype"]))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not job.frozen or job.frozen not in name)
    if job.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    engine, optimizer, *_ = deepspeed.initialize(
        model=model.train(), optimizer=optimizer_of(job.optimizer, model), config=configuration(job)
    )

    def steps() -> object:
        for _ in range(STEPS):
            for _ in range(job.accumulate):
                tokens = torch.zeros(BATCH, PROMPT, dtype=torch.int64)
                labels = torch.zeros_like(tokens)
                loss = engine(input_ids=tokens, labels=labels, use_cache=False).loss
                engine.backward(loss)
                engine.step()
        return loss

    gc.disable()
    with ExitStack() as stack:
        if job.offloaded:
            stack.enter_context(steps_on_host(optimizer))
        changes = followed(steps)
    gc.enable()
    return of_device(changes) if job.offloaded else changes


def rank_of(rank: int, job: Job, directory: Path) -> None:
    import torch.distributed as dist

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job.ranks)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]  # of CPUs alone
    meeting = f"file://{directory / 'meet'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=job.ranks, timeout=timedelta(seconds=60))
    (directory / f"{rank}.json").write_text(json.dumps(trained(job)))
    dist.barrier()
    dist.destroy_process_group()


def run(job: Job) -> dict[int, list[Any]]:
    """The requests of the first rank and of the last."""
    import torch.multiprocessing

    with tempfile.TemporaryDirectory() as directory:
        torch.multiprocessing.start_processes(rank_of, (job, Path(directory)), nprocs=job.ranks, start_method="fork")
        ranks = sorted({0, job.ranks - 1})
        return {rank: json.loads((Path(directory) / f"{rank}.json").read_text()) for rank in ranks}


def packed(changes: list[Any]) -> dict[str, Any]:
    """With each tuple of operators once, and small addresses."""
    operators: dict[tuple[str, ...], int] = {}
    addresses: dict[int, int] = {}
    rows = [
        (
            size,
            addresses.setdefault(address, len(addresses)),
            operators.setdefault(tuple(names), len(operators)) if size > 0 else -1,
        )
        for size, address, names in changes
    ]
    return {"operators": list(operators), "changes": rows}


def unpacked(content: dict[str, Any]) -> list[tuple[int, int, tuple[str, ...]]]:
    operators = [tuple(names) for names in content["operators"]]
    return [(size, address, operators[which] if which >= 0 else ()) for size, address, which in content["changes"]]


def recorded() -> dict[str, dict[str, Any]]:
    """By the job's name, by the rank."""
    found: dict[str, dict[str, Any]] = json.loads(gzip.decompress(RECORDING.read_bytes()))
    return found


def main(target: Path) -> None:
    import deepspeed
    import transformers

    importlib.import_module("torch._dynamo")  # before the processes fork
    deepspeed.logger.setLevel("ERROR")
    transformers.logging.set_verbosity_error()
    runs = {job.name: {rank: packed(changes) for rank, changes in run(job).items()} for job in JOBS}
    target.write_bytes(gzip.compress(json.dumps(runs, separators=(",", ":")).encode(), mtime=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else RECORDING)

"""Run as a module: small models of random weights, really trained by DeepSpeed, and every request for memory.

Adds to tests/recordings/deepspeed.json.gz, or to the file that is given, the runs that are not in it. Needs what no test needs:
DeepSpeed 0.19.8, on CPU
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
from collections.abc import Iterator, Mapping
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
    """A training run. bucket: reduce_bucket_size. frozen: what a parameter's name has in it that is not trained. zero: further
    settings of stage 3, without "stage3_". lora: the rank of adapters on all linear modules. named: the loop names outputs.
    """

    ranks: int
    stage: int
    model: str = "qwen3"
    bucket: int = DEFAULT_BUCKET
    offloaded: bool = False
    optimizer: str = "adamw_foreach"
    accumulate: int = 1
    checkpointing: bool = False
    frozen: str = ""
    zero: tuple[tuple[str, int], ...] = ()
    lora: int = 0
    named: bool = False
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        return MODELS[self.model] | {"num_hidden_layers": 2} | dict(self.changes)

    @property
    def name(self) -> str:
        shown = [f"{key} {value}" for key, value in sorted(vars(self).items()) if key not in APART]
        shown += [f"{key} {value}" for key, value in (("lora", self.lora), ("named", self.named)) if value]
        return ", ".join([*shown, *(f"{key} {value}" for key, value in (*self.zero, *self.changes))])


APART = ("changes", "lora", "named", "zero")  # in a job's name if they are stated
PRECISIONS: Mapping[str, dict[str, Any]] = {
    "bfloat16": {"bf16": {"enabled": True}},
    "float16": {"fp16": {"enabled": True, "initial_scale_power": 4}},  # small, so that no step is skipped
    "float32": {},
}
# Of stage 3: nearly all parameters are let go of, and gathered ahead a few at a time.
SMALL = (
    ("param_persistence_threshold", 100),
    ("prefetch_bucket_size", 10_000),
    ("max_reuse_distance", 20_000),
    ("max_live_parameters", 40_000),
    ("sub_group_size", 15_000),
)
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
    Job(ranks=2, stage=3),
    Job(ranks=2, stage=3, bucket=20_000, zero=SMALL),
    Job(
        ranks=2, stage=3, bucket=10_000, zero=SMALL,
        model="qwen3 tied", optimizer="adamw_fused", accumulate=2, checkpointing=True,
    ),
    Job(ranks=4, stage=3, offloaded=True),
    Job(ranks=4, stage=3, bucket=20_000, zero=SMALL, model="qwen3 tied", offloaded=True, accumulate=3),
    Job(ranks=1, stage=3, zero=SMALL, optimizer="adamw_for_loop"),
    Job(ranks=2, stage=3, bucket=20_000, zero=SMALL, model="qwen3_moe", optimizer="sgd"),
    Job(ranks=4, stage=3, bucket=20_000, zero=SMALL, frozen="k_proj"),
    Job(ranks=2, stage=2),
    Job(ranks=2, stage=1, changes=(("dtype", "float16"),)),
    Job(ranks=2, stage=2, offloaded=True, model="qwen3 tied", changes=(("dtype", "float16"),)),
    Job(ranks=2, stage=3, bucket=20_000, zero=SMALL, changes=(("dtype", "float16"),)),
    Job(ranks=2, stage=1, lora=4, checkpointing=True),
    Job(ranks=2, stage=2, lora=4, offloaded=True),
    Job(ranks=2, stage=3, bucket=10_000, zero=SMALL, lora=4, checkpointing=True),
    Job(ranks=2, stage=3, lora=4, model="qwen3 tied"),
    Job(ranks=2, stage=2, named=True, accumulate=2),
    Job(ranks=2, stage=3, named=True),
    Job(ranks=2, stage=3, bucket=20_000, zero=SMALL, model="qwen3_5", changes=(("num_hidden_layers", 4),)),
)  # fmt: skip


def configuration(job: Job) -> dict[str, Any]:
    """DeepSpeed's, with its defaults but for the bucket."""
    stage: dict[str, Any] = {"stage": job.stage, "reduce_bucket_size": job.bucket}
    stage |= {key if key == "sub_group_size" else f"stage3_{key}": value for key, value in job.zero}
    if job.offloaded:
        stage["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": BATCH,
        "gradient_accumulation_steps": job.accumulate,
        "zero_optimization": stage,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **PRECISIONS[job.config["dtype"]],
    }


@contextmanager
def steps_on_host(optimizer: Any) -> Iterator[None]:
    """Of an optimizer on the host, all that its step takes is taken there, though both are the same memory here.

    In stage 3 only a part of DeepSpeed's step is on the host, and gradients that come back from it are copied, as on a card.
    """
    from torch.profiler import record_function

    from qwen_inspect.tracing.kernels import replaced

    from .distributed_runs import HOST

    def on_host(owner: Any, name: str) -> tuple[Any, str, Any]:
        function = getattr(owner, name)

        def named(*arguments: Any, **options: Any) -> Any:
            with record_function(HOST):
                return function(*arguments, **options)

        return owner, name, named

    found = type(optimizer)
    if "Stage3" not in found.__name__:
        with replaced([on_host(found, "step")]):
            yield
        return
    import torch
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.zero import stage3

    moved, host = torch.Tensor.to, optimizer.grad_partitions_flat_buffer.untyped_storage().data_ptr()

    def is_on_host(tensor: Any) -> bool:
        return bool(tensor.untyped_storage().data_ptr() == host)

    def to(tensor: Any, *arguments: Any, **options: Any) -> Any:
        return moved(tensor, *arguments, **(options | {"copy": True} if is_on_host(tensor) else options))

    def to_host(tensor: Any) -> Any:
        with record_function(HOST):
            return tensor.clone()

    methods = ("unscale_and_clip_grads", "_optimizer_step", "_reassign_or_swap_out_partitioned_parameters")
    with replaced(
        [
            *(on_host(found, name) for name in methods),
            *(on_host(stage3, name) for name in ("combine_grad_norm_groups", "is_invalid_grad_norm")),
            (torch.Tensor, "to", to),
            (torch.Tensor, "cpu", to_host),
            (get_accelerator(), "on_accelerator", lambda tensor: not is_on_host(tensor)),
        ]
    ):
        yield


def held(engine: Any, optimizer: Any) -> int:
    """Bytes of the storages that stage 3 has made before a run: parts of weights, buffers, gradients."""
    tensors = [
        *(parameter.ds_tensor for parameter in engine.module.parameters()),
        *engine.module.buffers(),
        *(optimizer.fp32_partitioned_groups_flat if not optimizer.offload_optimizer else ()),
        *([optimizer.grad_partitions_flat_buffer] if not optimizer.offload_optimizer else ()),
        *(bucket.buffer for bucket in optimizer.ipg_buckets.values()),
    ]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def trained(job: Job) -> tuple[list[Any], int | None]:
    """What this rank takes and gives back in STEPS steps; what it held before, of stage 3."""
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
    if job.lora:
        import peft

        model = peft.get_peft_model(
            model, peft.LoraConfig(r=job.lora, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True  # of CPUs it says so where oneDNN is quick
    engine, optimizer, *_ = deepspeed.initialize(
        model=model.train(), optimizer=optimizer_of(job.optimizer, model), config=configuration(job)
    )

    def a_batch() -> dict[str, Any]:
        tokens = torch.zeros(BATCH, PROMPT, dtype=torch.int64)
        mask = torch.ones_like(tokens)
        return {"input_ids": tokens, "attention_mask": mask, "labels": torch.zeros_like(tokens)}

    def steps() -> object:
        loss = outputs = batch = None
        for _ in range(STEPS):
            for _ in range(job.accumulate):
                if job.named:
                    batch = a_batch()
                    outputs = engine(**batch, use_cache=False)
                    loss = outputs.loss
                else:
                    tokens = torch.zeros(BATCH, PROMPT, dtype=torch.int64)
                    labels = torch.zeros_like(tokens)
                    loss = engine(input_ids=tokens, labels=labels, use_cache=False).loss
                engine.backward(loss)
                engine.step()
        return loss, outputs, batch

    before = held(engine, optimizer) if job.stage == 3 else None
    gc.disable()
    with ExitStack() as stack:
        if job.offloaded:
            stack.enter_context(steps_on_host(optimizer))
        changes = followed(steps)
    gc.enable()
    changes = unpacked_products(changes)
    return (of_device(changes) if job.offloaded else changes), before


def unpacked_products(changes: list[Any]) -> list[Any]:
    """Without what a matrix product takes and gives back within itself, which can be as large as its result."""
    kept: list[Any] = []
    for size, address, operators in changes:
        if size < 0 and kept and operators and operators[-1] in ("aten::mm", "aten::addmm", "aten::bmm"):
            place = max((at for at, change in enumerate(kept) if change[1] == address), default=-1)
            if place >= 0 and kept[place] == (-size, address, operators):
                del kept[place]
                continue
        kept.append((size, address, operators))
    return kept


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


def run(job: Job) -> dict[int, Any]:
    """The requests of the first rank and of the last, and what each held before."""
    import torch.multiprocessing

    with tempfile.TemporaryDirectory() as directory:
        torch.multiprocessing.start_processes(rank_of, (job, Path(directory)), nprocs=job.ranks, start_method="fork")
        ranks = sorted({0, job.ranks - 1})
        return {rank: json.loads((Path(directory) / f"{rank}.json").read_text()) for rank in ranks}


def packed(found: tuple[list[Any], int | None]) -> dict[str, Any]:
    """With each tuple of operators once, and small addresses."""
    changes, before = found
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
    return {"operators": list(operators), "changes": rows, "held": before}


def unpacked(content: dict[str, Any]) -> list[tuple[int, int, tuple[str, ...]]]:
    operators = [tuple(names) for names in content["operators"]]
    return [(size, address, operators[which] if which >= 0 else ()) for size, address, which in content["changes"]]


def recorded(file: Path = RECORDING) -> dict[str, dict[str, Any]]:
    """By the job's name, by the rank."""
    found: dict[str, dict[str, Any]] = json.loads(gzip.decompress(file.read_bytes()))
    return found


def main(target: Path) -> None:
    import deepspeed
    import transformers

    for name in ("torch._dynamo", "peft"):  # before the processes fork
        importlib.import_module(name)
    deepspeed.logger.setLevel("ERROR")
    transformers.logging.set_verbosity_error()
    runs = recorded(target) if target.exists() else {}
    for job in JOBS:
        if job.name not in runs:
            runs[job.name] = {str(rank): packed(found) for rank, found in run(job).items()}
            target.write_bytes(gzip.compress(json.dumps(runs, separators=(",", ":")).encode(), mtime=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else RECORDING)

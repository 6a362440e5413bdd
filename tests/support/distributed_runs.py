"""Run as a module: small models of random weights, really shared by processes, and what each process then holds.

Arguments: a JSON file of pairs, a number of processes and their jobs, and a directory for the models. The processes are forked
from one that has imported what they need. Prints one JSON line for each job: its name and what every rank found.
A job: "model" (a configuration with `architectures`), "parallel" (arguments of transformers' DistributedConfig, by which
from_pretrained cuts it) and "run": "generate" or "train" (by "optimizer"). "followed": also every request for memory, as torch's
profiler records it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
import transformers
from torch.distributed import _functional_collectives
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.optim import swa_utils
from torch.profiler import record_function
from transformers.distributed import DistributedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from qwen_inspect.results.ranks import Parallelism, Place
from qwen_inspect.tracing.autocast import scaler_of, step
from qwen_inspect.tracing.kernels import replaced
from qwen_inspect.tracing.one_rank import cut, materialise, unloaded
from qwen_inspect.tracing.optimizers import optimizer_of
from qwen_inspect.tracing.torch_loss import torch_loss

from .following import mark, profiled

BATCH, PROMPT, NEW = 2, 7, 4
FOLLOWED_PROMPT, FOLLOWED_NEW, STEPS = 48, 2, 2
OPTIMIZERS = {"adamw_fused": "adamw_torch_fused", "adamw_for_loop": "adamw_torch"}  # Trainer's names
# Imported by some jobs only, and slowly: once is enough.
LATE = ("accelerate", "peft", "bitsandbytes", "torch._dynamo", "transformers.trainer")
HOST = "host"
MOMENT_SECONDS, LONGEST_SECONDS = 0.001, 0.2


def local(tensor: Any) -> Any:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def held(tensors: Iterable[Any]) -> int:
    """Bytes of the numbers that this process has of them."""
    return sum(local(one).numel() * local(one).element_size() for one in tensors)


def allocated(tensors: Iterable[Any]) -> int:
    """Bytes of the storages under them, each once."""
    storages = (local(one).untyped_storage() for one in tensors)
    return sum({one.data_ptr(): one.nbytes() for one in storages if one.nbytes()}.values())


def model_of(job: dict[str, Any], models: Path) -> tuple[Any, Path]:
    """The class, and where rank 0 has saved one with random weights."""
    found, path = getattr(transformers, job["model"]["architectures"][0]), models / job["saved"]
    if dist.get_rank() == 0 and not path.exists():
        torch.manual_seed(0)
        configuration = transformers.AutoConfig.for_model(**job["model"])
        found._from_config(configuration, dtype=torch.bfloat16).save_pretrained(path)
    dist.barrier()
    return found, path


def prompt() -> Any:
    return torch.arange(BATCH * PROMPT).reshape(BATCH, PROMPT) % 50 + 3


def caches(cache: Any) -> tuple[int, int]:
    """Bytes of keys and values, and of states."""
    kept, states = [], []
    for layer in cache.layers:
        kept += [one for name in ("keys", "values") if (one := getattr(layer, name, None)) is not None]
        for name in ("conv_states", "recurrent_states"):
            found = getattr(layer, name, None)
            states += [one for one in (found.values() if isinstance(found, dict) else [found]) if one is not None]
    return held(kept), held(states)


def generated(job: dict[str, Any], models: Path) -> dict[str, Any]:
    found, path = model_of(job, models)
    parallel = DistributedConfig(**job["parallel"])
    model = found.from_pretrained(path, dtype=torch.bfloat16, distributed_config=parallel)
    told: dict[str, Any] = {"weights": held(model.parameters()), "buffers": held(model.buffers())}
    if job["load_only"]:
        return told
    if job["followed"]:
        told["changes"] = followed(lambda: a_generation(model))
    with torch.no_grad():
        answer = model.generate(
            prompt(), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, return_dict_in_generate=True
        )
    told["cache"], told["state"] = caches(answer.past_key_values)
    return told


def a_generation(model: Any) -> object:
    """A prefill and one step of decoding."""
    tokens = torch.zeros(BATCH, FOLLOWED_PROMPT, dtype=torch.int64)
    return tokens, model.generate(
        tokens, max_new_tokens=FOLLOWED_NEW, do_sample=False, return_dict_in_generate=True, eos_token_id=None
    )


def followed(run: Callable[[], object]) -> list[Any]:
    """Every change of this process's memory while it runs."""
    dist.barrier()
    with waiting_for_gloo():
        return [(one.size_bytes, one.address, one.operators) for one in profiled(run)]


def others_rest() -> None:
    """Wait until no other thread of this process wants to run (Linux: proc(5), the state after the thread's name)."""
    end = time.monotonic() + LONGEST_SECONDS
    own = str(threading.get_native_id())
    while time.monotonic() < end:
        time.sleep(MOMENT_SECONDS)
        if all(is_asleep(thread) for thread in os.listdir("/proc/self/task") if thread != own):
            return


def is_asleep(thread: str) -> bool:
    file = os.open(f"/proc/self/task/{thread}/stat", os.O_RDONLY)
    try:
        return os.read(file, 256).rpartition(b") ")[2][:1] == b"S"
    finally:
        os.close(file)


@contextmanager
def waiting_for_gloo() -> Iterator[None]:
    """Let gloo's own threads let go of what they sent before this one goes on: the profiler does not see them do it."""
    arrived, waited = _functional_collectives.wait_tensor, dist.Work.wait

    def wait_tensor(tensor: Any) -> Any:
        result = arrived(tensor)
        others_rest()
        return result

    def wait(work: Any, *arguments: Any) -> Any:
        result = waited(work, *arguments)
        others_rest()
        return result

    _functional_collectives.wait_tensor, dist.Work.wait = wait_tensor, wait
    try:
        yield
    finally:
        _functional_collectives.wait_tensor, dist.Work.wait = arrived, waited


def each_group(model: Any) -> Iterator[Any]:
    """FSDP's groups of parameters, each once, though its modules share it."""
    states = [module._get_fsdp_state() for module in model.modules() if isinstance(module, FSDPModule)]
    for state in {id(one): one for one in states}.values():
        yield from state._fsdp_param_groups


def gathered(model: Any) -> int:
    """Bytes of whole weights: put together, or already gathered for that."""
    total = 0
    for group in each_group(model):
        total += sum(one.untyped_storage().nbytes() for param in group.fsdp_params for one in param.all_gather_outputs)
        if group._all_gather_result is not None:
            total += group._all_gather_result.all_gather_output.untyped_storage().nbytes()
    return total


@contextmanager
def two_memories() -> Iterator[None]:
    """Where CPUOffloadPolicy moves tensors between host and device they are copied, though both are the same memory here; what is
    taken on the host is taken within "host".

    FSDP's own moves are `.to(device)` in FSDPParam.all_gather_inputs and `.to("cpu")` in foreach_reduce; nothing is pinned.
    """
    moved = torch.Tensor.to

    def to(tensor: Any, *arguments: Any, **options: Any) -> Any:
        caller = sys._getframe(1).f_code.co_name
        if caller == "all_gather_inputs":
            return moved(tensor, *arguments, copy=True, **options)
        if caller == "foreach_reduce" and arguments == (torch.device("cpu"),):
            with record_function(HOST):
                return moved(tensor, *arguments, copy=True, **options)
        return moved(tensor, *arguments, **options)

    def on_host(run: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(run)
        def named(*arguments: Any, **options: Any) -> Any:
            with record_function(HOST):
                return run(*arguments, **options)

        return named

    replacements = (
        (torch.Tensor, "to", to),
        (torch.Tensor, "pin_memory", lambda tensor: tensor),
        (torch.nn.utils, "clip_grad_norm_", on_host(torch.nn.utils.clip_grad_norm_)),
        (FSDPParam, "reset_sharded_param", on_host(FSDPParam.reset_sharded_param)),  # which fills shards up
        (torch.optim.AdamW, "step", on_host(torch.optim.AdamW.step)),
    )
    with replaced(replacements):
        yield


def of_device(changes: list[Any]) -> list[Any]:
    """Without what is taken on the host, and without what gives it back."""
    kept, on_host = [], set()
    for size, address, operators in changes:
        if size > 0 and HOST in operators:
            on_host.add(address)
        elif size < 0 and address in on_host:
            on_host.remove(address)
        else:
            kept.append((size, address, operators))
    return kept


def loaded(job: dict[str, Any], models: Path) -> Any:
    """To train, cut by transformers."""
    found, path = model_of(job, models)
    parallel = DistributedConfig(**job["parallel"], fsdp_cpu_offload=job["offload"])
    model = found.from_pretrained(path, dtype=torch.bfloat16, distributed_config=parallel).train()
    for module in model.modules():
        if isinstance(module, FSDPModule) and job["zero_stage"] == 2:
            module.set_reshard_after_forward(False, recurse=False)
    return model


def wrapped(job: dict[str, Any], models: Path) -> Any:
    """To train, cut by FSDP2 as transformers and accelerate wrap a decoder: embedding, layers, norm with head, what is left."""
    found, path = model_of(job, models)
    return sharded(found.from_pretrained(path, dtype=torch.bfloat16), job)


def sharded(model: Any, job: dict[str, Any]) -> Any:
    reshard = job["zero_stage"] == 3
    policy = CPUOffloadPolicy(pin_memory=False) if job["offload"] else OffloadPolicy()
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    units = [*([] if tied else [model.model.embed_tokens]), *model.model.layers]
    for unit in units:
        fully_shard(unit, reshard_after_forward=reshard, offload_policy=policy)
    tail = [model.model.norm, *([model.model.embed_tokens] if tied else []), model.lm_head]
    fully_shard(tail, reshard_after_forward=False, offload_policy=policy)
    return fully_shard(model, reshard_after_forward=False, offload_policy=policy)


def adapted(job: dict[str, Any], models: Path) -> Any:
    """To train adapters, which PEFT adds before the model is cut by transformers' plan for FSDP; numbers are what memory has."""
    import peft

    found = getattr(transformers, job["model"]["architectures"][0])
    with unloaded():
        model = found._from_config(transformers.AutoConfig.for_model(**job["model"]), dtype=torch.bfloat16)
        peft.get_peft_model(model, peft.LoraConfig(r=job["lora"], target_modules="all-linear", task_type="CAUSAL_LM"))
    how = Parallelism(fsdp=job["parallel"]["fsdp_size"], zero_stage=job["zero_stage"])
    model = cut(model, Place(how=how, rank=dist.get_rank())).train()
    materialise(model)
    return model


def in_four_bits(job: dict[str, Any], models: Path) -> Any:
    """To train adapters on a base in 4 bits, which FSDP2 cuts."""
    return sharded(quantised(job, models).get_base_model(), job)


def quantised(job: dict[str, Any], models: Path) -> Any:
    """Adapters on a base that bitsandbytes quantises, with codes in the weights' dtype."""
    import peft

    config = dict(job["model"])
    stated = {key: value for key, value in config.pop("quantization_config").items() if key != "quant_method"}
    found, path = model_of(job | {"model": config}, models)
    options = transformers.BitsAndBytesConfig(**stated, bnb_4bit_quant_storage=torch.bfloat16)
    model = found.from_pretrained(path, quantization_config=options, dtype=torch.bfloat16, device_map="cpu").train()
    config = peft.LoraConfig(r=job["lora"], target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


def scales(model: Any) -> int:
    """Bytes of what belongs to weights in 4 bits and is no parameter."""
    states = [module.quant_state for module in model.modules() if hasattr(module, "quant_state")]
    nested = [one.state2 for one in states if one.nested]
    parts = [part for one in (*states, *nested) for part in (one.absmax, one.code)]
    return allocated([*parts, *(one.offset for one in states if one.nested)])


def cut_and_adapted(job: dict[str, Any], models: Path) -> Any:
    """To train adapters, which PEFT adds to a model that transformers has cut."""
    import peft

    model = loaded(job, models)
    config = peft.LoraConfig(r=job["lora"], target_modules=job["targets"], task_type="CAUSAL_LM")
    peft.get_peft_model(model, config)
    return model


def trained(job: dict[str, Any], models: Path) -> dict[str, Any]:
    if job["loop"]:
        return by_trainer(job, models)
    by_torch = list(job["parallel"]) == ["fsdp_size"]
    by_peft = in_four_bits if "quantization_config" in job["model"] else adapted
    load = loaded if not job["lora"] else by_peft if by_torch else cut_and_adapted
    if job["followed"] or not by_torch:
        model = load(job, models)
    with two_memories() if job["offload"] else nullcontext():
        changes = of_device(followed(lambda: some_steps(model, job))) if job["followed"] else []
    weights = None  # where transformers cuts, a part on CPU shares the storage of the whole tensor that was read
    if by_torch:
        model = (by_peft if job["lora"] else wrapped)(job, models)
        weights = allocated(model.parameters()) + scales(model)
    optimizer = optimizer_of(job["optimizer"], model)
    if job["ema"]:
        swa_utils.AveragedModel(model)
    seen = [0]
    for module in [*(layer.mlp for layer in model.model.layers), model.lm_head]:
        module.register_forward_pre_hook(lambda *_: seen.append(gathered(model)))
        module.register_full_backward_pre_hook(lambda *_: seen.append(gathered(model)))
    model(input_ids=prompt(), labels=prompt(), use_cache=False).loss.backward()
    gradients = [one.grad for one in model.parameters() if one.requires_grad]
    if job["clip"]:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return {
        "weights": weights,
        "beside": scales(model),
        "rows": held(model.parameters()),
        "gradients": allocated(gradients),
        "optimizer": states(optimizer, job["optimizer"]),
        "gathered": max(seen),
        "changes": changes,
    }


def states(optimizer: Any, name: str) -> int:
    """Bytes of an optimizer's states on the device; only fused AdamW counts its steps there."""
    counted = ("exp_avg", "exp_avg_sq", "momentum_buffer", *(["step"] if name == "adamw_fused" else []))
    return allocated(one for state in optimizer.state.values() for name, one in state.items() if name in counted)


def some_steps(model: Any, job: dict[str, Any]) -> object:
    chosen, norm = optimizer_of(job["optimizer"], model), None
    scaler = scaler_of(job["autocast"], "cpu")
    for _ in range(STEPS):
        for _ in range(job["accumulate"]):
            tokens = torch.zeros(BATCH, FOLLOWED_PROMPT, dtype=torch.int64)
            labels = torch.zeros_like(tokens)
            with nullcontext() if job["autocast"] is None else torch.autocast("cpu", getattr(torch, job["autocast"])):
                loss = model(input_ids=tokens, labels=labels, use_cache=False).loss
            if job["accumulate"] > 1:
                loss = loss / job["accumulate"]
            (loss if scaler is None else scaler.scale(loss)).backward()
        norm = None
        if job["clip"]:
            if scaler is not None:
                scaler.unscale_(chosen)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        step(chosen, scaler)
        chosen.zero_grad(set_to_none=not job["keep_gradients"])
    return loss, chosen, norm, scaler


def with_torchs_loss(model: Any) -> Any:
    """The model whose forward ends with torch's linear_cross_entropy on its last states, as it is on CUDA."""

    def forward(self: Any, *, labels: Any, num_items_in_batch: Any, **inputs: Any) -> Any:
        states, weight = self.model(**inputs)[0], self.lm_head.weight
        labels = torch.nn.functional.pad(labels, (0, 1), value=-100)
        moved = labels[..., 1:].contiguous()
        loss = torch_loss(states.view(-1, states.shape[-1]), weight, moved.view(-1)) / num_items_in_batch
        loss.data.zero_()  # its products were not computed
        return CausalLMOutputWithPast(loss=loss)

    model.forward = types.MethodType(forward, model)
    return model


class OnHost:
    """A micro-batch that takes memory once it is moved to the device. packing: sequences in each row, all of them in one."""

    def __init__(self, packing: int) -> None:
        self.packing = packing

    def to(self, *_: object, **__: object) -> dict[str, Any]:
        if self.packing:
            return packed(BATCH * FOLLOWED_PROMPT, BATCH * self.packing)
        tokens = torch.zeros(BATCH, FOLLOWED_PROMPT, dtype=torch.int64)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": torch.zeros_like(tokens)}


def packed(tokens: int, sequences: int) -> dict[str, Any]:
    """As TRL 1.16's DataCollatorForLanguageModeling(padding_free=True) gives it to the model: one row."""
    length = tokens // sequences
    row = {name: torch.zeros(1, tokens, dtype=torch.int64) for name in ("input_ids", "labels", "position_ids")}
    bounds = {name: torch.zeros(sequences + 1, dtype=torch.int32) for name in ("cu_seq_lens_q", "cu_seq_lens_k")}
    positions, starts = row["position_ids"].view(sequences, length), row["labels"].view(sequences, length)
    for position in range(length):
        positions[:, position].fill_(position)
    starts[:, 0].fill_(-100)
    numbers = torch.zeros(1, tokens, dtype=torch.int32)
    return {**row, **bounds, "max_length_q": length, "max_length_k": length, "seq_idx": numbers}


def by_trainer(job: dict[str, Any], models: Path) -> dict[str, Any]:
    """transformers' real Trainer, with fsdp=True or a model that transformers has cut; followed from its first step on.

    On CPU accelerate would take DDP and gloo's way to gather: it is told that processes have GPUs and NCCL.
    """
    import accelerate

    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_"))]:
        del os.environ[name]  # of the job before
    by_torch = list(job["parallel"]) == ["fsdp_size"]
    micro_batches = STEPS * job["accumulate"]
    with_loss = with_torchs_loss if job["loss"] == "torch" else lambda model: model
    arguments = transformers.TrainingArguments(
        output_dir=str(models / "trainer"), per_device_train_batch_size=BATCH, max_steps=STEPS,
        optim=OPTIMIZERS[job["optimizer"]],
        gradient_accumulation_steps=job["accumulate"], gradient_checkpointing=job["checkpointing"],
        bf16=job["autocast"] == "bfloat16", fp16=job["autocast"] == "float16",
        fsdp=by_torch, fsdp_config={"cpu_offload": job["offload"]} if by_torch else None,
        use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    kind = accelerate.utils.DistributedType.MULTI_GPU
    device = torch.device("cpu")  # without a number, as what is on it already
    accelerate.PartialState._shared_state.update(device=device, backend="nccl", distributed_type=kind)
    arguments.__dict__["_setup_devices"] = device
    in_bits = "quantization_config" in job["model"]
    if in_bits:
        model = quantised(job, models)
    elif by_torch:
        found, path = model_of(job, models)
        model = with_loss(found.from_pretrained(path, dtype=torch.bfloat16))
    else:
        model = loaded(job, models)
    if job["lora"] and not in_bits:
        import peft

        config = peft.LoraConfig(r=job["lora"], target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, config)
    batches = dist.get_world_size() if by_torch else 1
    made = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"number": number} for number in range(micro_batches * BATCH * batches)],
        data_collator=lambda _: OnHost(job["packing"]),
    )
    if job["autocast"] == "float16":  # which accelerate has on GPUs alone
        made.accelerator.native_amp, made.accelerator.scaler = True, scaler_of("float16", "cpu")
    made._get_train_sampler = lambda *_: None  # in order: shuffling takes memory of the host
    for callback in list(made.callback_handler.callbacks):
        made.remove_callback(callback)
    prepare = made._prepare_for_training

    def prepared(*arguments: Any, **options: Any) -> Any:
        result = prepare(*arguments, **options)
        gc.collect()
        mark()
        return result

    made._prepare_for_training = prepared
    with two_memories() if job["offload"] else nullcontext():
        changes = of_device(followed(lambda: (made.train(), made)))
    start = max(place for place, change in enumerate(changes) if change[0] == 0)
    return {
        "weights": allocated(model.parameters()) + scales(model) if by_torch else None,
        "beside": scales(model),
        "rows": held(model.parameters()),
        "trainable": allocated(one for one in model.parameters() if one.requires_grad),
        "optimizer": states(made.optimizer, job["optimizer"]),
        "changes": changes[start + 1 :],
    }


def outcome(job: dict[str, Any], models: Path) -> dict[str, Any]:
    """What this rank found; a refusal is one that every rank meets, so that none waits for another."""
    try:
        return generated(job, models) if job["run"] == "generate" else trained(job, models)
    except (AssertionError, AttributeError, KeyError, RuntimeError, StopIteration, ValueError) as error:
        return {"refused": f"{type(error).__name__}: {error}"}


def forget_groups() -> None:
    """Let go of a job's own groups, whose threads would be hundreds in the end, and of what DTensor learnt with them."""
    _clear_sharding_prop_cache()
    _, *others = dist.distributed_c10d._world.pg_map
    for group in others:
        dist.destroy_process_group(group)


def rank_of(rank: int, processes: int, jobs: list[dict[str, Any]], models: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}  # as torchrun's
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # which accelerate asks for and does not use
    meeting = f"file://{models / f'{processes} meet'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes, timeout=timedelta(seconds=60))
    for job in jobs:
        found: list[Any] = [None] * processes
        dist.all_gather_object(found, outcome(job, models))
        if rank == 0:
            print(json.dumps({"job": job["name"], "ranks": found}), flush=True)
        forget_groups()
    dist.destroy_process_group()


def main(jobs: Path, models: Path) -> None:
    for name in LATE:
        importlib.import_module(name)
    gc.freeze()  # what imports made is in no collection: each takes a quarter of a second with it
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for processes, listed in json.loads(jobs.read_text()):
        torch.multiprocessing.start_processes(
            rank_of, (processes, listed, models), nprocs=processes, start_method="fork"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

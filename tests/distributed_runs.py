"""Run by torchrun: small models of random weights, really shared by the processes, and what each process then holds.

Arguments: a JSON file of jobs, a directory for the models. Prints one JSON line for each job: its name and what every rank found.
A job: "model" (a configuration with `architectures`), "parallel" (arguments of transformers' DistributedConfig) and "run":
"generate" (loaded by from_pretrained, which cuts it), or "train" (whole, cut by torch's fully_shard, one step of AdamW).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig

BATCH, PROMPT, NEW = 2, 7, 4


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
    if job.get("load_only"):
        return told
    with torch.no_grad():
        answer = model.generate(
            prompt(), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, return_dict_in_generate=True
        )
    told["cache"], told["state"] = caches(answer.past_key_values)
    return told


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


def trained(job: dict[str, Any], models: Path) -> dict[str, Any]:
    """FSDP2 as transformers and accelerate wrap a decoder: embedding, layers, then norm and head, then what is left."""
    found, path = model_of(job, models)
    model = found.from_pretrained(path, dtype=torch.bfloat16)
    reshard = job["zero_stage"] == 3
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    units = [*([] if tied else [model.model.embed_tokens]), *model.model.layers]
    for unit in units:
        fully_shard(unit, reshard_after_forward=reshard)
    tail = [model.model.norm, *([model.model.embed_tokens] if tied else []), model.lm_head]
    fully_shard(tail, reshard_after_forward=False)
    fully_shard(model, reshard_after_forward=False)
    optimizer = torch.optim.AdamW(model.parameters())
    seen: list[int] = []
    for module in [*(layer.mlp for layer in model.model.layers), model.lm_head]:
        module.register_forward_pre_hook(lambda *_: seen.append(gathered(model)))
        module.register_full_backward_pre_hook(lambda *_: seen.append(gathered(model)))
    weights = allocated(model.parameters())
    model(input_ids=prompt(), labels=prompt(), use_cache=False).loss.backward()
    gradients = [one.grad for one in model.parameters()]
    optimizer.step()
    states = [one for state in optimizer.state.values() for name, one in state.items() if name != "step"]
    return {
        "weights": weights,
        "rows": held(model.parameters()),
        "gradients": allocated(gradients),
        "optimizer": allocated(states),
        "gathered": max(seen),
    }


def outcome(job: dict[str, Any], models: Path) -> dict[str, Any]:
    """What this rank found; a refusal is one that every rank meets, so that none waits for another."""
    try:
        return generated(job, models) if job["run"] == "generate" else trained(job, models)
    except (AttributeError, KeyError, RuntimeError, ValueError) as error:
        return {"refused": f"{type(error).__name__}: {error}"}


def main(jobs: Path, models: Path) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for job in json.loads(jobs.read_text()):
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, outcome(job, models))
        if dist.get_rank() == 0:
            print(json.dumps({"job": job["name"], "ranks": found}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

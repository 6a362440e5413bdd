"""The peak of a run by torch's own MemTracker, on fake CPU tensors: `memtracker.py CONFIG OPTIONS`, for benchmarks/training.py.

OPTIONS are those of the published row, as `memory` takes them. The loop is the published one (vramcalc 0.1.2, bench.py): three
steps of foreach AdamW, gradients zeroed in place, the outputs deleted after the backward. Run on its own, so that another
transformers than the installed one can be put before it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

from qwen_inspect.tracing.adapting import without_moves

TOKENS = 2048
STEPS = 3
ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj"]


def value(options: list[str], name: str) -> str | None:
    return options[options.index(name) + 1] if name in options else None


def peak_bytes(config: dict[str, Any], mode: str, options: list[str]) -> int:
    import torch
    import transformers
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    mixed, rank = value(options, "--autocast"), value(options, "--lora")
    with FakeTensorMode():
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**config),
            dtype=torch.float32 if mixed else torch.bfloat16,
            attn_implementation=value(options, "--attention") or "sdpa",
        )
        tokens = torch.zeros(1, TOKENS, dtype=torch.int64)
        tracker = MemTracker()
        if mode == "forward":
            model.eval()
            tracker.track_external(model)
            with torch.no_grad(), tracker:
                model(input_ids=tokens)
        else:
            model = prepared(model, rank, checkpointing="--checkpointing" in options)
            optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], foreach=True)
            tracker.track_external(model, optimizer)
            leave_frozen(tracker, model)
            with tracker:
                for _ in range(STEPS):
                    tracker.reset_mod_stats()
                    with torch.autocast("cpu", dtype=torch.bfloat16) if mixed else contextlib.nullcontext():
                        outputs = model(input_ids=tokens, labels=tokens, use_cache=False)
                    outputs.loss.backward()
                    del outputs
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=False)
    return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


def leave_frozen(tracker: Any, model: Any) -> None:
    """Keeps the tracker of torch 2.13 from hooking gradients of frozen parameters, at which it stops; the hooks sort bytes, and
    count none."""
    for each in model.parameters():
        if not each.requires_grad:
            tracker._param_to_grad_hook_handles[each] = (SimpleNamespace(remove=lambda: None),) * 2


def prepared(model: Any, rank: str | None, *, checkpointing: bool) -> Any:
    """The model as the published loop trains it."""
    if rank:
        import peft

        config = peft.LoraConfig(r=int(rank), lora_alpha=int(rank), target_modules=ADAPTED, task_type="CAUSAL_LM")
        with without_moves():  # of fake parameters, which torch cannot swap
            model = peft.get_peft_model(model, config)
        for each in model.parameters():
            if each.requires_grad:
                each.data = each.data.float()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if rank:
            model.enable_input_require_grads()
    return model.train()


if __name__ == "__main__":
    from importlib.metadata import version

    with open(sys.argv[1], encoding="utf-8") as stream:
        described = json.load(stream)
    found = peak_bytes(described, sys.argv[2], sys.argv[3:])
    print(json.dumps({"peak_bytes": found, "transformers": version("transformers")}))

"""What the options ask for, as the library takes it; what contradicts itself is refused before anything is read."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..arguments import DEFAULT_PROMPT_TOKENS
from ..console import progress

if TYPE_CHECKING:
    from ..loaders.resolve import Access
    from ..results.fit import Gpu
    from ..results.memory import Run
    from ..results.model import Report

PROMPT_OPTIONS = ("max_new_tokens", "device")


def check_options(options: argparse.Namespace) -> None:
    """UsageError for a file or a picture that cannot be written, and for a prompt that is none."""
    from ..errors import UsageError

    if options.output is not None and os.path.lexists(options.output) and not options.overwrite:
        raise UsageError("output_exists", path=options.output)
    plot = options.output if options.command == "diagram" else getattr(options, "plot", None)
    if plot is not None:
        _check_picture(plot, options)
    _check_prompt_options(options)


def _check_picture(path: str, options: argparse.Namespace) -> None:
    """Refuses what cannot be written as a picture before anything is computed for it."""
    from ..errors import UsageError

    if not path.lower().endswith((".svg", ".png")):
        raise UsageError("picture_suffix", path=path)
    if os.path.lexists(path) and not options.overwrite:
        raise UsageError("output_exists", path=path)


def _check_prompt_options(options: argparse.Namespace) -> None:
    """Before anything is asked of a hub: a prompt that is one, and nothing that goes with a prompt without it."""
    from ..errors import UsageError

    if "prompt" not in options:
        return
    if options.prompt is not None:
        from ..measuring.generation import check_prompt

        check_prompt(options.prompt)
    elif given := next((name for name in PROMPT_OPTIONS if getattr(options, name)), None):
        raise UsageError("prompt_needed", option=f"--{given.replace('_', '-')}")


def inspected(options: argparse.Namespace) -> Report:
    """The report of the model that is named; its design is required where the command shows nothing without."""
    from ..results.cache import Workload
    from ..structure.inspect import inspect

    return inspect(
        options.model,
        source=options.source,
        revision=options.revision,
        file=options.file,
        access=access_of(options),
        require_design=options.command not in ("weights", "config", "memory", "fit")
        or getattr(options, "explain", False),
        predict_files=options.command in ("weights", "params"),
        instantiate=getattr(options, "instantiate", False),
        expected_parameters=getattr(options, "expect_params", None),
        workload=Workload(
            batch=getattr(options, "batch", 1),
            context_tokens=getattr(options, "context", None),
            cache_format=getattr(options, "cache_dtype", "auto"),
            ranks=getattr(options, "tp", None) or 1,
        ),
        dtype=getattr(options, "dtype", None),
        dense_dtype=None if getattr(options, "autocast", None) is None else "float32",
        group_size=getattr(options, "group_size", None),
        trust_remote_code=options.trust_remote_code,
    )


def run_of(options: argparse.Namespace) -> Run:
    """The run that is predicted; UsageError for options of LoRA without it, and of training in another mode."""
    from ..errors import UsageError
    from ..results.memory import Run

    run = Run(
        mode=options.mode,
        batch=options.batch,
        prompt_tokens=options.context or DEFAULT_PROMPT_TOKENS,
        new_tokens=options.new_tokens,
        attention=options.attention,
        loader=options.load,
        gpu=options.gpu or "sm_80",
        optimizer=options.optimizer,
        checkpointing=options.checkpointing,
        trained=options.trained,
        accumulate=options.accumulate,
        lora_rank=options.lora,
        lora_targets=_lora_targets(options),
        cache_format=options.cache_dtype,
        cache=options.cache,
        padded=getattr(options, "padded", False),
        autocast=getattr(options, "autocast", None),
        # The first of the two that is set, as torch 2.13 looks for them.
        allocator=os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or os.environ.get("PYTORCH_ALLOC_CONF", ""),
    )
    if run.cache == "static" and run.mode != "generate":
        raise UsageError("static_cache_mode", mode=run.mode)
    if run.cache == "static" and run.cache_format != "auto":
        raise UsageError("static_cache_format", format=run.cache_format)
    if run.mode != "train" and run.training_options:
        raise UsageError("train_option", option=run.training_options[0], mode=run.mode)
    return run


def _lora_targets(options: argparse.Namespace) -> tuple[str, ...]:
    from ..errors import UsageError

    if options.lora_targets is None:
        return ("all-linear",)
    if options.lora is None:
        raise UsageError("lora_targets_alone")
    return tuple(name.strip() for name in options.lora_targets.split(","))


def access_of(options: argparse.Namespace) -> Access:
    """What may be asked of hubs and files, and where the progress of that is shown."""
    from ..loaders.resolve import Access
    from ..units import size

    return Access(
        offline=options.offline,
        refresh=options.refresh,
        partial=options.partial,
        seconds=options.timeout,
        progress=progress(str, quiet=options.quiet),
        downloaded=progress(size, quiet=options.quiet),
    )


def is_capability(gpu: str) -> bool:
    """Whether the name is a compute capability, such as sm_90."""
    return gpu[:3].lower() == "sm_" and gpu[3:].isdecimal()


def cards_of(options: argparse.Namespace) -> Sequence[Gpu]:
    """The cards that are meant by --gpu or --memory; what stands for one where vLLM's budget is given."""
    if getattr(options, "kv_budget", None) is not None:
        from ..fitting.serving import budget_card

        return (budget_card(options.kv_budget[1]),)
    from ..fitting.search import cards

    return cards(options.gpu, getattr(options, "memory", None))

"""Options of the run that `memory`, `fit` and `compare` predict."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..console import complain
from ..errors import UsageError
from ..language import Language
from ..typed import TYPE_CHECKING
from . import given, model
from .parser import Namespace, Parser
from .values import number_format, positive, probability, tokens

if TYPE_CHECKING:
    from ..results.media import Request
    from ..results.memory import Run
    from ..results.model import Report

DEFAULT_PROMPT_TOKENS = 2048
DEFAULT_CAPABILITY = "sm_80"
PLAIN_DTYPES = ("bfloat16", "float16", "float32", "float64")
# The same as in architectures.quantised_presets, which --help does not import.
SCHEMES = ("awq-int4", "gptq-int4", "gptq-int8", "fp8", "bnb-int8", "bnb-nf4", "bnb-fp4", "bnb-nf4-double", "nvfp4")
# Names that leave the scheme open: the one that transformers quantises to as it loads, whose runs are traced exactly.
TAKEN_FOR: Mapping[str, str] = {
    "int8": "bnb-int8",
    "8bit": "bnb-int8",
    "int4": "bnb-nf4",
    "4bit": "bnb-nf4",
    "nf4": "bnb-nf4",
    "awq": "awq-int4",
    "gptq": "gptq-int4",
}
KERNELS = ("auto", "sdpa", "eager", "flash_attention_2", "flash_attention_2_repeated")
LOOPS = ("trainer", "sft", "accelerate", "plain")
LOSSES = ("model", "liger", "torch", "trl", "unsloth")
OPTIMIZERS = (
    *("adamw_foreach", "adamw_fused", "adamw_for_loop", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"),
    *("sgd", "sgd_momentum", "adafactor", "lion", "lion_8bit", "muon", "none"),
)

OF_LORA = (
    *("lora_targets", "lora_parameters", "modules_to_save", "lora_alpha", "lora_dropout"),
    *("dora", "rslora"),
)


def declare(command: Parser, say: Language) -> None:
    """All options that `run_of` reads, except --gpu, which `memory` declares differently."""
    add = command.add_argument
    add("--mode", choices=("generate", "forward", "train"), help=say("help_mode"))
    add("--batch", type=positive(say), default=1, metavar="N", help=say("help_batch"))
    add("--context", type=tokens(say), metavar="TOKENS", help=say("help_prompt"))
    add("--new-tokens", type=positive(say), default=128, metavar="N", help=say("help_new_tokens"))
    dtypes = (*PLAIN_DTYPES, *SCHEMES, *TAKEN_FOR)
    add("--dtype", type=number_format, choices=dtypes, metavar="DTYPE", help=say("help_dtype"))
    add("--group-size", type=positive(say), metavar="N", help=say("help_group_size"))
    add("--attention", choices=KERNELS, default="auto", help=say("help_attention_kernel"))
    add("--optimizer", choices=OPTIMIZERS, help=say("help_optimizer"))
    add("--checkpointing", action="switch", help=say("help_checkpointing"))
    add("--trained", default="", metavar="REGEX", help=say("help_trained"))
    add("--lora", type=positive(say), metavar="RANK", help=say("help_lora"))
    add("--freeze", default="", metavar="REGEX", help=say("help_freeze"))
    add("--lora-targets", metavar="NAMES", help=say("help_lora_targets"))
    add("--lora-parameters", metavar="NAMES", help=say("help_lora_parameters"))
    add("--modules-to-save", metavar="NAMES", help=say("help_modules_to_save"))
    add("--lora-alpha", type=positive(say), metavar="ALPHA", help=say("help_lora_alpha"))
    add("--lora-dropout", type=probability(say), metavar="P", help=say("help_lora_dropout"))
    add("--dora", action="store_true", help=say("help_dora"))
    add("--rslora", action="store_true", help=say("help_rslora"))
    add("--accumulate", type=positive(say), default=1, metavar="N", help=say("help_accumulate"))
    add("--cache-dtype", type=number_format, default="auto", metavar="FORMAT", help=say("help_cache_dtype"))
    add("--cache", choices=("dynamic", "static"), default="dynamic", help=say("help_cache"))
    add("--load", choices=("warmup", "per-tensor"), default="warmup", help=say("help_load"))


def declare_batch(command: Parser, say: Language) -> None:
    """Options for a single model: padding, autocast, and the loop that trains it."""
    command.add_argument("--loop", choices=LOOPS, help=say("help_loop"))
    command.add_argument("--keep-gradients", action="switch", help=say("help_keep_gradients"))
    command.add_argument("--keep-logits", action="switch", help=say("help_keep_logits"))
    command.add_argument("--loss", choices=LOSSES, help=say("help_loss"))
    command.add_argument("--completion-only", type=tokens(say), metavar="TOKENS", help=say("help_completion_only"))
    command.add_argument("--padding-free", action="store_true", help=say("help_padding_free"))
    command.add_argument("--packing", type=positive(say), metavar="N", help=say("help_packing"))
    command.add_argument("--ema", action="store_true", help=say("help_ema"))
    command.add_argument("--clip", action="switch", help=say("help_clip"))
    command.add_argument("--transformers", metavar="VERSION", help=say("help_transformers"))
    command.add_argument("--padded", action="store_true", help=say("help_padded"))
    half = ("bfloat16", "float16")
    command.add_argument("--autocast", type=number_format, choices=half, metavar="DTYPE", help=say("help_autocast"))


def declare_cards(command: Parser, say: Language) -> None:
    """The cards to fit into, each separately."""
    command.add_argument("--gpu", metavar="NAME", help=say("help_cards"))


def inspected(
    options: Namespace,
    typed: str | None = None,
    *,
    dtype: str | None = None,
    tokens: int | None = DEFAULT_PROMPT_TOKENS,
    cache_format: str | None = None,
) -> Report:
    """The model that runs, or `typed`; only its stored tensors if its architecture is unknown. dtype: without --dtype. tokens: of
    an untyped context. cache_format: of transformers' cache, if not --cache-dtype.
    """
    from ..values import replace

    workload = model.workload_of(options)
    return model.inspected(
        options,
        typed=typed,
        require_design=False,
        dtype=dtype_of(options) or dtype,
        dense_dtype=None if options.autocast is None else "float32",
        group_size=options.group_size,
        workload=replace(
            workload,
            context_tokens=workload.context_tokens or tokens,
            cache_format=cache_format or workload.cache_format,
        ),
    )


def dtype_of(options: Namespace) -> str | None:
    """The dtype or scheme of --dtype."""
    dtype: str | None = options.dtype
    return dtype if dtype is None else TAKEN_FOR.get(dtype, dtype)


def say_dtype(options: Namespace, say: Language) -> None:
    """Says which scheme --dtype was taken for, if its name leaves that open."""
    if options.dtype in TAKEN_FOR and not options.quiet:
        complain(say("dtype_taken_for", found=options.dtype, scheme=dtype_of(options), known=", ".join(SCHEMES)))


def run_of(options: Namespace, *, gpu: str | None) -> Run:
    """The run to predict for `gpu`. Raises UsageError for LoRA options without --lora and training options in other modes."""
    from ..results.memory import DEFAULT_ALPHA, Run
    from ..results.training import loop_of

    if options.lora is None and (typed := given(options, *OF_LORA)):
        raise UsageError("option_needs", option=typed[0], other="--lora RANK")
    named = options.lora_targets is not None or options.lora_parameters is not None
    loop = loop_of(
        getattr(options, "loop", None),  # not options of `compare`
        completion_tokens=getattr(options, "completion_only", None),
        ema=getattr(options, "ema", False),
        padding_free=getattr(options, "padding_free", False),
        packing=getattr(options, "packing", None),
        **{fact: getattr(options, fact, None) for fact in ("keep_gradients", "keep_logits", "clip", "loss")},
    )
    run = Run(
        mode=options.mode or "generate",
        batch=options.batch,
        prompt_tokens=options.context or DEFAULT_PROMPT_TOKENS,
        new_tokens=options.new_tokens,
        attention=options.attention,
        loader=options.load,
        gpu=gpu or DEFAULT_CAPABILITY,
        optimizer=options.optimizer or ("adamw_fused" if loop.by_trainer else "adamw_foreach"),
        checkpointing=True if loop.name == "sft" and options.checkpointing is None else options.checkpointing,
        trained=options.trained,
        accumulate=options.accumulate,
        lora_rank=options.lora,
        lora_targets=_names(options.lora_targets) if named else ("all-linear",),
        lora_parameters=_names(options.lora_parameters),
        saved_modules=_names(options.modules_to_save),
        lora_alpha=options.lora_alpha or DEFAULT_ALPHA,
        lora_dropout=options.lora_dropout or 0.0,
        dora=options.dora,
        rslora=options.rslora,
        frozen=options.freeze,
        cache_format=options.cache_dtype,
        cache=options.cache,
        padded=getattr(options, "padded", False),  # not an option of `compare`
        autocast=getattr(options, "autocast", None),
        loop=loop,
        transformers=getattr(options, "transformers", None),
        # The first that is set wins: torch 2.13, AcceleratorAllocatorConfig::instance, c10/core/AllocatorConfig.cpp.
        allocator=os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or os.environ.get("PYTORCH_ALLOC_CONF", ""),
    )
    if run.cache == "static" and run.mode != "generate":
        raise UsageError("static_cache_mode", mode=run.mode)
    if run.cache == "static" and run.cache_format != "auto":
        raise UsageError("static_cache_format", format=run.cache_format)
    if run.mode != "train" and run.training_options:
        raise UsageError("train_option", option=run.training_options[0], mode=run.mode)
    return run


def _names(typed: str | None) -> tuple[str, ...]:
    return () if typed is None else tuple(name.strip() for name in typed.split(","))


def check_media(request: Request | None, run: Run) -> None:
    """Raises UsageError for what is predicted for text alone."""
    if request is not None and (run.padded or run.cache == "static"):
        raise UsageError("options_exclude", option=media_option(request), other="--padded" if run.padded else "--cache")


def media_option(request: Request) -> str:
    """The option of the request's first medium."""
    return f"--{request.typed[0].kind}" if request.typed else "--audio"


def with_media(run: Run, report: Report, options: Namespace) -> Run:
    """The run with the report's images, videos and audio. An untyped prompt has its default number of tokens beside them."""
    from ..values import replace

    media = report.media
    if media is None:
        return run
    tokens = run.prompt_tokens if options.context else run.prompt_tokens + media.context_tokens
    if tokens < media.least_tokens:
        raise UsageError("media_beyond_context", tokens=media.least_tokens, context=tokens)
    return replace(run, media=media, prompt_tokens=tokens)


def as_the_model_runs(run: Run, report: Report, options: Namespace) -> Run:
    """The run, of an encoder its forward pass unless a mode was typed: it generates nothing. Without --context no longer than the
    model's positions.
    """
    from ..values import replace

    if report.refusal is not None:
        return run
    if options.mode is None and report.attention.both_ways:
        run = replace(run, mode="forward")
    limit = report.spec.context_tokens
    if options.context is None and limit is not None:
        most = limit - (run.new_tokens if run.mode == "generate" else 0)
        run = replace(run, prompt_tokens=max(1, min(run.prompt_tokens, most)))
    return run


def is_capability(gpu: str) -> bool:
    """Whether the name is a compute capability such as sm_90, not a card."""
    return gpu[:3].lower() == "sm_" and gpu[3:].isdecimal()

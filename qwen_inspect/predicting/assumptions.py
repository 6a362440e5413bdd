"""What a prediction takes for granted, in sentences."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ..language import Message
from ..loaders import gpus
from ..results.memory import Run, context_range
from ..results.timeline import Timeline, modules_of, operators_of
from ..tracing.scratch import ANY_MULTIPROCESSORS, varies_by_card
from ..typed import TYPE_CHECKING
from ..units import size as shown_size
from .allocation.allocator import ROUNDING_BYTES
from .allocation.on_device import BIASED_PRODUCT, is_one_of
from .allocation.uses import LINEAR
from .allocation.workspaces import LT_WORKSPACE_BYTES, workspace_of
from .idle_towers import TOWERS, is_within

CONVOLVED = "aten.convolution_backward.default"
# Of a prompt of text, by whether the model sees and whether it hears.
OF_TEXT = {
    (True, False): "assume_text_only",
    (False, True): "assume_text_only_hearing",
    (True, True): "assume_text_only_both",
}

if TYPE_CHECKING:
    from ..results.measurement import Calibration


def assumptions(run: Run) -> tuple[Message, ...]:
    """The assumptions of a prediction for `run`, as sentences."""
    if run.device == "cpu":
        return (
            Message("assume_host"),
            *_kernel_assumptions(run),
            *_static_assumptions(run),
            *_training_assumptions(run),
            *_version_assumptions(run),
        )
    return (
        Message(f"assume_loader_{run.loader.replace('-', '_')}"),
        Message(
            "assume_workspace_training" if run.mode == "train" else "assume_workspace",
            bytes=workspace_of(run),
            gpu=run.gpu,
        ),
        *_kernel_assumptions(run),
        *_static_assumptions(run),
        *_caller_assumptions(run),
        *_training_assumptions(run),
        *_version_assumptions(run),
        *([Message("assume_cache_format", format=run.cache_format)] if run.cache_format != "auto" else []),
        *([Message("assume_allocator", settings=run.allocator)] if run.allocator else []),
        _uncalibrated_assumption(run) if run.calibration is None else _calibrated_assumption(run.calibration),
    )


def _version_assumptions(run: Run) -> Iterator[Message]:
    if run.transformers is not None:
        from .version import assumption

        yield assumption(run)


def _static_assumptions(run: Run) -> tuple[Message, ...]:
    return (Message("assume_static_cache", tokens=run.cached_tokens),) if run.cache == "static" else ()


def _kernel_assumptions(run: Run) -> Iterator[Message]:
    if not run.padded:
        yield Message("assume_kernel", kernel=run.attention)
    elif not run.attention.startswith("flash"):  # with which no padded run is predicted
        yield Message("assume_kernel_padded", kernel=run.attention, tokens=run.prompt_tokens)


def mask_bytes(run: Run) -> int:
    """Block size of a prompt's attention mask (one int64 per token), which a caller of `generate` keeps until it returns."""
    return -(-8 * run.batch * run.prompt_tokens // ROUNDING_BYTES) * ROUNDING_BYTES


def _caller_assumptions(run: Run) -> Iterator[Message]:
    """Memory of a caller's own `generate` that is not counted: its mask, which the model does not get if it masks nothing.

    Source: transformers 5.23, generation/utils.py, _prepare_special_tokens: one int64 per special token, for this call alone.
    """
    if run.mode == "generate" and not run.padded:  # else the mask is counted
        tokens = run.batch * run.prompt_tokens
        yield Message("assume_caller", tokens=tokens, bytes=mask_bytes(run), token_bytes=ROUNDING_BYTES)


def _uncalibrated_assumption(run: Run) -> Message:
    low, high = map(shown_size, context_range(run))
    return Message("assume_context", low=low, high=high)


def _calibrated_assumption(calibration: Calibration) -> Message:
    key = {
        "gpu": calibration.gpu,
        "driver": calibration.driver,
        "torch": calibration.torch,
        "transformers": calibration.transformers,
    }
    return Message("assume_calibrated", date=calibration.date, context=shown_size(calibration.context_bytes), **key)


def timeline_assumptions(timeline: Timeline, run: Run) -> tuple[Message, ...]:
    """`part_assumptions` of a run's timeline."""
    modules, operators = modules_of(timeline.events), operators_of(timeline.events)
    return part_assumptions(modules, operators, run, by_card=varies_by_card(timeline))


def part_assumptions(
    modules: Collection[str], operators: Collection[str], run: Run, *, by_card: bool = False
) -> tuple[Message, ...]:
    """Assumptions about parts that only some models have. by_card: `tracing.scratch.varies_by_card`."""
    four_bits = any(operator.startswith("bitsandbytes.gemm") for operator in operators)
    linear = any(module.endswith(LINEAR) for module in modules)
    biased = any(is_one_of(operator, BIASED_PRODUCT) for operator in operators)
    return (
        *([Message("assume_workspace_biases", bytes=LT_WORKSPACE_BYTES)] if biased and run.device == "cuda" else []),
        *(
            [Message("assume_multiprocessors", gpu=run.gpu, count=ANY_MULTIPROCESSORS)]
            if run.device == "cuda" and gpus.multiprocessors(run.gpu) is None and by_card
            else []
        ),
        *([Message("assume_linear_reference")] if linear else []),
        *_idle_towers(modules, run),
        *([Message("assume_audio")] if run.media is not None and run.media.clips and run.device == "cuda" else []),
        *([Message("assume_four_bits")] if four_bits and run.mode == "train" else []),
        *(
            [Message("assume_tower_trained")]
            if run.media is not None and CONVOLVED in operators and run.device == "cuda" and not linear
            else []
        ),
    )


def _idle_towers(modules: Collection[str], run: Run) -> Iterator[Message]:
    """The towers whose weights are held, but which do not run."""
    sees, hears = (any(is_within(name, module) for module in modules) for name in TOWERS)
    if run.media is None:
        key = OF_TEXT.get((sees, hears))
    elif sees and not run.media.items:
        key = "assume_no_images"
    else:
        key = "assume_no_audio" if hears and not run.media.clips else None
    if key is not None:
        yield Message(key)


def _training_assumptions(run: Run) -> Iterator[Message]:
    """Assumptions of a training run."""
    if run.mode != "train":
        return
    chosen: Message | str = run.trained or Message("all_parameters")
    if run.frozen:
        chosen = Message("trained_except", trained=chosen, frozen=run.frozen)
    yield Message(
        "assume_training",
        optimizer=run.optimizer,
        checkpointing=Message("on" if run.checkpointing else "off"),
        trained=chosen if run.lora_rank is None else run.adapters_text,
    )
    if run.optimizer in ("adafactor", "muon") or run.optimizer.startswith("paged"):
        yield Message(f"assume_optimizer_{run.optimizer.partition('_')[0]}")
    if run.lora_rank is not None:
        adapters = "assume_lora" if run.autocast is None else "assume_lora_autocast"
        yield Message(adapters, alpha=run.lora_alpha, dropout=run.lora_dropout)
        if run.rslora:
            yield Message("assume_rslora")
    if run.accumulate > 1:
        yield Message("assume_accumulation", count=run.accumulate, batch=run.batch)
    loop = run.loop
    if loop.ema:
        yield Message("assume_ema")
    if loop.name is not None:
        batch = Message("micro_batch_in_rows" if loop.masked else "micro_batch_in_one_row")
        yield Message(f"assume_loop_{loop.name}", batch=batch)
    yield Message(
        "assume_loop",
        gradients=Message("loop_gradients_kept" if loop.keep_gradients else "loop_gradients_dropped"),
        logits=Message(f"loop_logits_{loop.keep_logits}"),
        clip=Message("loop_clip" if loop.clip else "loop_no_clip"),
        loss=Message(f"loop_loss_{loop.loss}"),
    )

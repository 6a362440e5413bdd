"""A training run whose loss is a library's instead of the class's."""

from __future__ import annotations

from collections.abc import Iterator

from ..checkpoint import DType
from ..errors import UnsupportedError, UsageError
from ..language import Message
from ..loaders import gpus
from ..results.memory import Run
from ..results.model import Report
from ..results.training import Loop, Loss
from ..spec import ModelSpec
from ..tracing.fused_losses import OF_LIGER, TRL_TOKENS, TRL_VOCABULARY, liger_rows
from ..tracing.torch_loss import torch_rows
from ..tracing.unsloth_loss import LOGIT_BYTES, TILE_COLUMNS, TILE_ROWS, TILED_FROM, has_tiles, unsloth_rows
from ..units import GIB, size
from ..values import dataclass

UNSEARCHED: tuple[Loss, ...] = ("torch", "unsloth")  # whose requests change with the number of chunks
SMALL_CARD_BYTES = 49 * GIB // 2  # unsloth_zoo 2026.10.9, fused_losses/fused_linear.py, _SMALL_CARD_BYTES


@dataclass(frozen=True, slots=True)
class LossBuffer:
    """The buffer of a fused loss for the logits of a chunk of tokens, which is no polynomial in the workload."""

    loss: Loss
    hidden_size: int
    vocabulary: int
    completion_tokens: int | None

    def rows(self, batch: int, tokens: int) -> int:
        if self.loss == "liger":
            return liger_rows(batch * tokens, self.hidden_size, self.vocabulary)
        labelled = Loop(completion_tokens=self.completion_tokens).labelled_tokens(batch, tokens)
        return min(labelled, TRL_TOKENS)

    @property
    def columns(self) -> int:
        return self.vocabulary if self.loss == "liger" else TRL_VOCABULARY


def loss_buffer(spec: ModelSpec, run: Run) -> LossBuffer | None:
    loop = run.loop
    if loop.loss in ("model", *UNSEARCHED) or loop.padding_free:
        return None
    return LossBuffer(loop.loss, spec.hidden_size, spec.vocab_size, loop.completion_tokens)


def chunks_alike(report: Report, run: Run) -> bool:
    """Whether a run makes the same requests whatever the number of its loss's chunks: none of them is cast, nor is a product of
    Liger's added to a gradient in float32.

    Source: `tracing.fused_losses`
    """
    if run.loop.loss == "model":
        return True
    if run.loop.padding_free or run.loop.loss in UNSEARCHED:
        return False
    dtype = report.spec.dtype if report.known.quantised is None else DType.F32  # as PEFT prepares a base in 4 bits
    is_cast = run.autocast is not None and run.autocast != str(dtype)
    return not is_cast and (dtype.bits == 16 or run.loop.loss == "trl" or run.lora_rank is not None)


def check_loss(report: Report, run: Run) -> None:
    """UsageError on the host, UnsupportedError for a class or a card of which the library's requests are not known."""
    loss, completion = run.loop.loss, run.loop.completion_tokens
    if completion is not None and loss not in ("trl", "unsloth"):
        raise UsageError("option_needs", option="--completion-only", other="--loss trl|unsloth")
    if completion is not None and completion > run.prompt_tokens // run.loop.packing:
        raise UsageError("completion_beyond", completion=completion, tokens=run.prompt_tokens // run.loop.packing)
    if run.loop.name == "sft" and report.known.quantised is not None:
        raise UnsupportedError("sft_quantised")
    if loss == "model":
        return
    if run.device != "cuda":
        raise UsageError("loss_device", loss=loss)
    class_name = report.spec.class_name
    patched = loss != "liger" or (report.config or {}).get("model_type") in OF_LIGER
    if not (class_name.endswith("ForCausalLM") and patched):
        raise UnsupportedError("loss_class", loss=loss, class_name=class_name)
    if loss == "unsloth" and (run.loop.name == "sft" or run.autocast == "float16"):
        raise UnsupportedError("loss_unsloth")
    if loss in ("liger", "torch", "unsloth") and (gpus.compute_capability(run.gpu) or (8, 0)) < (8, 0):
        raise UnsupportedError("loss_capability", loss=loss, gpu=run.gpu)


def loss_assumption(spec: ModelSpec, run: Run) -> Iterator[Message]:
    tokens = run.batch * run.prompt_tokens
    if run.loop.loss == "liger":
        yield Message("assume_loss_liger", tokens=liger_rows(tokens, spec.hidden_size, spec.vocab_size))
    if run.loop.loss == "torch":
        yield Message("assume_loss_torch", tokens=torch_rows(tokens, spec.hidden_size, spec.vocab_size))
    if run.loop.loss == "trl":
        labelled = run.loop.labelled_tokens(run.batch, run.prompt_tokens)
        yield Message(
            "assume_loss_trl",
            tokens=min(labelled, TRL_TOKENS),
            vocabulary=min(TRL_VOCABULARY, spec.vocab_size),
            labelled=labelled,
        )
    if run.loop.loss == "unsloth":
        labelled = run.loop.labelled_tokens(run.batch, run.prompt_tokens)
        rows, columns = unsloth_rows(labelled, spec.hidden_size, spec.vocab_size), spec.vocab_size
        yield Message("assume_loss_unsloth", tokens=rows, size=size(rows * columns * LOGIT_BYTES), labelled=labelled)
        if has_tiles(spec.vocab_size) and labelled >= tiled_from(run):
            rows, columns = min(TILE_ROWS, labelled), TILE_COLUMNS
            made = size(rows * columns * LOGIT_BYTES)
            yield Message("assume_loss_unsloth_tiles", tokens=rows, columns=columns, size=made)


def tiled_from(run: Run) -> int:
    """Labelled tokens from which Unsloth makes the logits below a frozen head in tiles, by the card's memory.

    Source: unsloth_zoo 2026.10.9, fused_losses/fused_linear.py, _flash_min_rows_auto
    """
    card = gpus.named(run.gpu)
    return TILED_FROM if card is None or card.memory_bytes > SMALL_CARD_BYTES else 0

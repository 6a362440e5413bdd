"""A training run whose micro-batches are single rows without padding: TRL's packing and padding_free."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import UnsupportedError, UsageError
from ..language import Message
from ..results.memory import Run
from ..results.model import Report


def check_rows(report: Report, run: Run) -> None:
    """UsageError for options that contradict it, UnsupportedError for layers of which a row's sequences are not known apart.

    Sources: TRL 1.16, sft_trainer.py, which refuses both for images; transformers 5.23, modeling_qwen3_5.py, whose linear
    attention needs packages of kernels for it
    """
    loop = run.loop
    if not loop.padding_free:
        return
    if loop.name != "sft":
        raise UsageError(
            "option_needs", option="--packing" if loop.packing > 1 else "--padding-free", other="--loop sft"
        )
    if run.padded:
        raise UsageError("rows_padded")
    if run.media is not None:
        raise UsageError("rows_media")
    if loop.packing > run.prompt_tokens:
        raise UsageError("packing_beyond", packing=loop.packing, tokens=run.prompt_tokens)
    attention = report.known.attention
    if attention is None or attention.linear:
        raise UnsupportedError("rows_attention")


def rows_assumption(run: Run) -> Iterator[Message]:
    sequences = run.loop.in_one_row(run.batch)
    if sequences is None:
        return
    without_mask = "rows_flash" if run.attention.startswith("flash") else "rows_single"
    yield Message(
        "assume_one_row",
        tokens=run.batch * run.prompt_tokens,
        sequences=sequences,
        attention=Message("rows_masked", kernel=run.attention) if run.packed else Message(without_mask),
    )

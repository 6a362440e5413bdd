"""A training run whose loss is a library's instead of the class's."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import UnsupportedError, UsageError
from ..language import Message
from ..loaders import gpus
from ..results.memory import Run
from ..results.model import Report
from ..spec import ModelSpec
from ..tracing.fused_losses import OF_LIGER, TRL_TOKENS, TRL_VOCABULARY, liger_rows


def check_loss(report: Report, run: Run) -> None:
    """UsageError on the host, UnsupportedError for a class or a card of which the library's requests are not known."""
    loss, completion = run.loop.loss, run.loop.completion_tokens
    if completion is not None and loss != "trl":
        raise UsageError("option_needs", option="--completion-only", other="--loss trl")
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
    if loss == "liger" and (gpus.compute_capability(run.gpu) or (8, 0)) < (8, 0):
        raise UnsupportedError("loss_capability", gpu=run.gpu)


def loss_assumption(spec: ModelSpec, run: Run) -> Iterator[Message]:
    tokens = run.batch * run.prompt_tokens
    if run.loop.loss == "liger":
        yield Message("assume_loss_liger", tokens=liger_rows(tokens, spec.hidden_size, spec.vocab_size))
    if run.loop.loss == "trl":
        labelled = run.loop.labelled_tokens(run.batch, run.prompt_tokens)
        yield Message(
            "assume_loss_trl",
            tokens=min(labelled, TRL_TOKENS),
            vocabulary=min(TRL_VOCABULARY, spec.vocab_size),
            labelled=labelled,
        )

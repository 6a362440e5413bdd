"""Losses that never make the logits of all tokens: the head and the cross entropy together, chunk by chunk.

Each function makes the requests of the library's code on CUDA, in its order; what its Triton kernels write in place computes
nothing here. `matmul` with an output in float32 accumulates there, without a copy.
"""

from __future__ import annotations

import functools
import types
from collections import OrderedDict
from collections.abc import Callable

from ..errors import UnsupportedError
from ..results.training import Loop, Loss
from ..typed import Any
from .one_rank import unshard, unsharded_type, whole_weight
from .torch_loss import torch_loss
from .unsloth_loss import unsloth_loss

# Model types whose text model Liger gives such a loss. Source: liger-kernel 0.8.5, transformers/monkey_patch.py,
# MODEL_TYPE_TO_APPLY_LIGER_FN
OF_LIGER = frozenset({
    "deepseek_v2", "deepseek_v3", "exaone4", "falcon_h1", "gemma", "gemma2", "gemma3_text", "gemma4_text", "glm4", "gpt_oss",
    "granite", "hunyuan_v1_dense", "hunyuan_v1_moe", "llama", "llama4_text", "ministral", "mistral", "mixtral", "nemotron",
    "olmo2", "olmo3", "phi3", "qwen2", "qwen3", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe", "qwen3_next", "smollm3",
})  # fmt: skip
IGNORED = -100
TRL_RESULTS = ("log_probs", "entropy", "is_top1", "label_mask")
TRL_TOKENS, TRL_VOCABULARY = 4096, 32768  # TRL 1.16, kernels/chunked_logprob.py and trainer/utils.py


def fuse_loss(model: Any, loop: Loop, labelled: int, tiled_from: int) -> None:
    """Replaces the model's forward by that of the library; UnsupportedError for a model that it has none for. labelled: tokens
    of a micro-batch that are predicted. tiled_from: as in `unsloth_loss`.
    """
    loss = loop.loss
    outputs = ("entropy", "is_top1") if loop.hits else ("entropy",)
    if loss == "model":
        return
    from transformers.modeling_outputs import CausalLMOutputWithPast as outputs_of

    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = whole.get_output_embeddings()
    if not _is_fused(whole, head, loss):
        raise UnsupportedError("loss_class", loss=loss, class_name=type(whole).__name__)

    @functools.wraps(type(whole).forward)
    def forward(self: Any, *, labels: Any, num_items_in_batch: Any = None, **inputs: Any) -> Any:
        if loss == "liger":
            return outputs_of(loss=_liger_loss(self, labels, num_items_in_batch, inputs))
        if loss == "torch":
            return outputs_of(loss=_loss_of(torch_loss, self, labels, num_items_in_batch, inputs))
        if loss == "unsloth":
            loss_of = functools.partial(unsloth_loss, labelled=labelled, tiled_from=tiled_from)
            states, head = _last_states(self, inputs), self.get_output_embeddings()
            unshard(head)
            return outputs_of(loss=loss_of(states, head.weight, labels, num_items_in_batch))
        return TRLOutputs(zip(TRL_RESULTS, _trl_results(labelled, self, labels, inputs, outputs), strict=True))

    whole.forward = types.MethodType(forward, whole)


def _last_states(model: Any, inputs: dict[str, Any]) -> Any:
    return model.base_model(**inputs).last_hidden_state


def _is_fused(model: Any, head: Any, loss: Loss) -> bool:
    """Whether the loss takes the last layer's states and the head's weight alone. Experts' auxiliary losses are not known."""
    import torch

    config = model.config
    return (
        type(model).__name__.endswith("ForCausalLM")
        and unsharded_type(head) is torch.nn.Linear
        and head.bias is None
        and not getattr(config, "output_router_logits", False)
        and (loss != "liger" or config.model_type in OF_LIGER)
    )


# --- Liger


def _liger_loss(model: Any, labels: Any, count: Any, inputs: dict[str, Any]) -> Any:
    """Source: liger-kernel 0.8.5, transformers/model/loss_utils.py, LigerForCausalLMLoss"""
    return _loss_of(_liger_function().apply, model, labels, count, inputs)


def _loss_of(function: Callable[..., Any], model: Any, labels: Any, count: Any, inputs: dict[str, Any]) -> Any:
    """Of all tokens' states, the head's weight and labels that are moved by one."""
    import torch

    hidden = _last_states(model, inputs)
    weight = model.get_output_embeddings().weight
    labels = torch.nn.functional.pad(labels, (0, 1), value=IGNORED)
    shifted = labels[..., 1:].contiguous()
    loss = function(hidden.view(-1, hidden.shape[-1]), weight, shifted.view(-1))
    return loss if count is None else loss / count


def liger_rows(tokens: int, hidden_size: int, vocabulary: int) -> int:
    """Tokens of a chunk: its logits are about as large as the hidden states of all tokens.

    Source: liger-kernel 0.8.5, ops/fused_linear_cross_entropy.py, fused_linear_cross_entropy_forward
    """
    share = -(-tokens // -(-vocabulary // hidden_size))
    return min(1 << (share - 1).bit_length(), tokens)


@functools.cache
def _liger_function() -> Any:
    """Both gradients are made in the forward, in the dtypes of the states and of the head, and kept for the backward.

    Source: liger-kernel 0.8.5, ops/fused_linear_cross_entropy.py; on cards of capability 8.0 or more
    """
    import torch

    def forward(ctx: Any, hidden: Any, weight: Any, target: Any) -> Any:
        tokens, hidden_size = hidden.shape
        rows = liger_rows(tokens, hidden_size, weight.shape[0])
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros_like(weight) if weight.requires_grad else None
        losses = torch.zeros(tokens, dtype=torch.float32)
        mask = target != IGNORED
        mask.sum()
        whole = hidden.dtype == weight.dtype and hidden.dtype == _autocast_dtype(hidden.dtype)
        buffer = torch.empty((rows, weight.shape[0]), dtype=hidden.dtype) if whole else None
        for start in range(0, tokens, rows):
            chunk = hidden[start : start + rows]
            if buffer is not None:
                logits = buffer[: len(chunk)]
                torch.mm(chunk, weight.t(), out=logits)
                torch.mm(logits, weight, out=grad_hidden[start : start + rows])
            else:
                logits = chunk @ weight.t()
                grad_hidden[start : start + rows] = logits @ weight
            if grad_weight is not None:
                _add_liger_product(grad_weight, logits, chunk)
            del logits, chunk
        del buffer
        loss = torch.sum(losses)
        ctx.save_for_backward(grad_hidden.detach(), None if grad_weight is None else grad_weight.detach())
        return loss

    def backward(ctx: Any, grad_output: Any) -> Any:
        (grad_output == torch.tensor(1.0)).all()
        return *ctx.saved_tensors, None

    return _function("LigerFusedLinearCrossEntropy", forward, backward)


def _add_liger_product(total: Any, logits: Any, chunk: Any) -> None:
    import torch

    half = (torch.float16, torch.bfloat16)
    if logits.dtype in half and total.dtype in (torch.float32, logits.dtype):
        chunk.to(logits.dtype)  # and accumulates in place
    else:
        total += torch.mm(logits.t(), chunk).float()


# --- TRL


class TRLOutputs(OrderedDict[str, Any]):
    """What the model returns. The trainer computes the loss of it, outside of autocast, and then lets go of all.

    count: what the sum of losses is divided by; None: the number of labels. A dictionary, in which FSDP2 finds the tensors.
    Source: TRL 1.16, trainer/sft_trainer.py, SFTTrainer.compute_loss
    """

    logits = count = None

    @property
    def loss(self) -> Any:
        import torch

        self.losses = -self["log_probs"]
        labelled = self["label_mask"].sum() if self.count is None else torch.as_tensor(self.count)
        return self.losses.sum() / labelled.clamp(min=1)


def selected_log_probabilities(
    model: Any, labels: Any, inputs: dict[str, Any], *, labelled: int, entropies: bool
) -> tuple[Any, ...]:
    """What the forward with TRL's head returns: the loss, log-probabilities of all tokens, and entropies if they are asked for.

    Source: TRL 1.16, trainer/utils.py, add_fused_lm_head
    """
    outputs = ("entropy",) if entropies else ()
    log_probabilities, entropy, _, mask = _trl_results(labelled, model, labels, inputs, outputs)
    return -log_probabilities.sum() / mask.sum().clamp(min=1), log_probabilities, entropy


def _trl_results(
    labelled: int,
    model: Any,
    labels: Any,
    inputs: dict[str, Any],
    outputs: tuple[str, ...],
) -> tuple[Any, ...]:
    """Log-probabilities, entropies and hits of all tokens (None if not among the outputs), and which tokens have labels.

    Source: TRL 1.16, trainer/utils.py, add_fused_lm_head
    """
    hidden = _last_states(model, inputs)
    hidden, labels = hidden[:, :-1], labels[:, 1:]
    mask = labels != IGNORED
    selected = _selected()
    weight = whole_weight(model.get_output_embeddings().weight)
    results = _trl_function().apply(
        selected.apply(hidden, mask, labelled),
        weight,
        selected.apply(labels, mask, labelled),
        _autocast_dtype(hidden.dtype),
        outputs,
    )
    whole = (None if each is None else each.new_zeros(mask.shape).masked_scatter(mask, each) for each in results)
    return *whole, mask


@functools.cache
def _selected() -> Any:
    """`hidden[mask]`, of which so many rows are selected: the positions are found once more in the backward."""
    import torch

    def forward(ctx: Any, hidden: Any, mask: Any, rows: int) -> Any:
        ctx.save_for_backward(mask)
        ctx.rows = rows
        ctx.shape = hidden.shape
        positions = torch.empty((rows, mask.dim()), dtype=torch.int64)
        return hidden[positions[:, 0], positions[:, 1]]

    def backward(ctx: Any, gradient: Any) -> Any:
        whole = gradient.new_zeros(ctx.shape)
        (mask,) = ctx.saved_tensors
        torch.empty((ctx.rows, mask.dim()), dtype=torch.int64)
        return whole, None, None

    return _function("SelectedRows", forward, backward)


@functools.cache
def _trl_function() -> Any:
    """Log-probabilities, entropies and hits of tokens. The backward makes the logits again; both gradients are summed in float32.

    Source: TRL 1.16, kernels/chunked_logprob.py, ChunkedLogProbFunction
    """
    import torch

    def forward(ctx: Any, hidden: Any, weight: Any, targets: Any, dtype: Any, outputs: tuple[str, ...]) -> Any:
        ctx.set_materialize_grads(False)
        tokens = len(hidden)
        highest = torch.full((tokens,), float("-inf"), dtype=torch.float32)
        sum_exp, weighted, _squares, _logits = (torch.zeros((tokens,), dtype=torch.float32) for _ in range(4))
        before = torch.full((tokens,), float("-inf"), dtype=torch.float32)
        target_logit = torch.zeros((tokens,), dtype=torch.float32)
        buffer = torch.empty((min(tokens, TRL_TOKENS), TRL_VOCABULARY), dtype=dtype)
        for start in range(0, tokens, TRL_TOKENS):
            chunk = hidden[start : start + TRL_TOKENS].to(dtype)
            for first in range(0, len(weight), TRL_VOCABULARY):
                part = weight[first : first + TRL_VOCABULARY]
                torch.mm(chunk, part.to(dtype).t(), out=buffer[: len(chunk), : len(part)])
        log_z = highest + torch.log(sum_exp)
        log_probabilities = target_logit - log_z
        entropy = log_z - weighted / sum_exp if "entropy" in outputs else None
        hits = (target_logit >= highest) & (target_logit > before) if "is_top1" in outputs else None
        ctx.save_for_backward(hidden, weight, targets, log_z, log_z if entropy is None else entropy)
        ctx.dtype = dtype
        ctx.mark_non_differentiable(*([] if hits is None else [hits]))
        return log_probabilities, entropy, hits

    def backward(ctx: Any, gradient: Any, *_: Any) -> Any:
        hidden, weight, _targets, _log_z, _entropy = ctx.saved_tensors
        dtype = ctx.dtype
        of_hidden, of_weight = (
            torch.zeros(tensor.shape, dtype=torch.float32) if needed else None
            for tensor, needed in zip((hidden, weight), ctx.needs_input_grad, strict=False)
        )
        buffer = torch.empty((min(len(hidden), TRL_TOKENS), TRL_VOCABULARY), dtype=dtype)
        gradient = gradient.float().contiguous()
        for start in range(0, len(hidden), TRL_TOKENS):
            chunk = hidden[start : start + TRL_TOKENS].to(dtype)
            for first in range(0, len(weight), TRL_VOCABULARY):
                part = weight[first : first + TRL_VOCABULARY].to(dtype)
                torch.mm(chunk, part.t(), out=buffer[: len(chunk), : len(part)])
        return (
            None if of_hidden is None else of_hidden.to(hidden.dtype),
            None if of_weight is None else of_weight.to(weight.dtype),
            None,
            None,
            None,
        )

    return _function("ChunkedLogProbabilities", forward, backward)


# --- both


def _autocast_dtype(dtype: Any) -> Any:
    """What a product's inputs are cast to."""
    import torch

    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else dtype


def _function(name: str, forward: Callable[..., Any], backward: Callable[..., Any]) -> Any:
    """torch is imported only where a loss is traced, so the class is made here."""
    import torch

    return type(
        name, (torch.autograd.Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    )

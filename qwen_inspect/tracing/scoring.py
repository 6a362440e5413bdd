"""Log-probabilities of completions without gradients, as TRL's GRPOTrainer computes them of the policy and of a reference."""

from __future__ import annotations

from ..typed import TYPE_CHECKING, Any
from .autocast import autocast
from .fused_losses import IGNORED, selected_log_probabilities

if TYPE_CHECKING:
    from .recorder import Recorder
    from .trace import TraceRequest


def score(model: Any, workload: TraceRequest, recorder: Recorder) -> object:
    """`accumulate` batches of `batch` sequences, one after the other; a stage "forward" for each. What stays alive is the
    log-probabilities of all. The reference's entropies are not computed (`optimizer` is "none" for it).

    Source: TRL 1.16, trainer/grpo_trainer.py, _get_per_token_logps_and_entropies, and trainer/utils.py, add_fused_lm_head
    """
    import torch

    completion = workload.loop.completion_tokens
    assert completion is not None
    labelled = workload.loop.labelled_tokens(workload.batch, workload.prompt_tokens)
    recorder.stage("inputs")
    recorder.outside = "inputs"
    input_ids = torch.zeros(workload.batch * workload.accumulate, workload.prompt_tokens, dtype=torch.int64)
    mask = torch.ones_like(input_ids)
    recorder.outside = "forward"
    found = []
    with torch.no_grad():
        for start in range(0, len(input_ids), workload.batch):
            recorder.stage("forward")
            batch = input_ids[start : start + workload.batch]
            inputs = {"input_ids": batch, "attention_mask": mask[start : start + workload.batch], "use_cache": False}
            labels = batch.masked_fill(inputs["attention_mask"] == 0, IGNORED)
            labels[:, :-completion].fill_(IGNORED)
            with autocast(workload.autocast, "cpu"):
                outputs = selected_log_probabilities(
                    model, labels, inputs, labelled=labelled, entropies=workload.optimizer != "none"
                )
            found.append(outputs[1][:, -completion:])
        scores = torch.cat(found)
    return input_ids, mask, scores

"""TensorRT-LLM's PyTorch backend: its cache is free_gpu_memory_fraction of what a trial run leaves, in blocks of 32 tokens.

(total - peak of the trial run) x fraction. The peak's activations are a range: half of what vLLM's layers would take of as many
tokens, to all of it with two copies of the logits and workspaces.
Source: tensorrt_llm/_torch/pyexecutor/_util.py (KvCacheCreator._cal_max_memory), llmapi/llm_args.py (KvCacheConfig), of
commit 00043967.
"""

from __future__ import annotations

from ..typed import TYPE_CHECKING
from ..units import GIB
from .shares import ShareDemand, ShareEngine
from .vllm.widths import decoder_widths

if TYPE_CHECKING:
    from ..results.fit import Gpu
    from ..results.model import Report
    from ..results.serving import Serving

SHARE, BLOCK_TOKENS, STEP_TOKENS, MOST_SEQUENCES = 0.9, 32, 8192, 2048
WORKSPACES_BYTES = 2 * GIB


class TensorrtLlm(ShareEngine):
    name = "tensorrt-llm"
    version = "00043967"
    option = "--free-gpu-memory-fraction"

    def demand(self, report: Report, request: Serving, gpu: Gpu) -> ShareDemand:
        from .vllm.profile import ProfileRun, expert_bytes, layer_bytes

        tokens, sequences = request.step_tokens or STEP_TOKENS, request.sequences or MOST_SEQUENCES
        run = ProfileRun(
            tokens=tokens,
            sequences=sequences,
            context_tokens=tokens,
            element_bytes=report.spec.dtype.bits // 8,
            ranks=request.ranks,
        )
        widths = decoder_widths(report)
        layers = layer_bytes(widths, run) + expert_bytes(widths, run)
        logits = 2 * sequences * report.spec.vocab_size * 4
        beside = layers // 2, layers + logits + WORKSPACES_BYTES
        share = request.utilization or SHARE
        return ShareDemand(report, request, gpu, share=share, block_tokens=BLOCK_TOKENS, beside=beside)


ENGINE = TensorrtLlm()

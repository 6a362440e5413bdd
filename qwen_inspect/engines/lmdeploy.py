"""LMDeploy 0.16.0: its cache is --cache-max-entry-count of what is free after the weights, in blocks of 64 tokens.

TurboMind takes its buffers afterwards; the PyTorch backend takes room for logits of a prefill off before: the two ends.
Source: src/turbomind/turbomind.cc (CreateEngine), lmdeploy/pytorch/engine/executor/base.py (_get_runtime_size).
"""

from __future__ import annotations

from ..typed import TYPE_CHECKING
from .shares import ShareDemand, ShareEngine

if TYPE_CHECKING:
    from ..results.fit import Gpu
    from ..results.model import Report
    from ..results.serving import Serving

SHARE, BLOCK_TOKENS, PREFILL_TOKENS, MOST_SEQUENCES = 0.8, 64, 8192, 512


class Lmdeploy(ShareEngine):
    name = "lmdeploy"
    version = "0.16.0"
    option = "--cache-max-entry-count"

    def demand(self, report: Report, request: Serving, gpu: Gpu) -> ShareDemand:
        sequences = request.sequences or MOST_SEQUENCES
        logits_bytes = ((request.step_tokens or PREFILL_TOKENS) + 2 * sequences) * report.spec.vocab_size * 2
        share = request.utilization or SHARE
        return ShareDemand(report, request, gpu, share=share, block_tokens=BLOCK_TOKENS, beside=(0, logits_bytes))


ENGINE = Lmdeploy()

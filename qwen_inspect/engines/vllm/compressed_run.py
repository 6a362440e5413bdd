"""Qwen3.8-Flash-Next (qwen4_exp) in vLLM: buffers that are made with the model, and the peak of its profile run.

It runs without torch.compile, so each tensor of the residual streams is alive as the Python code holds it. Attention's kernels do
not run then. Source: vLLM 0.31.0, models/qwen4_exp/nvidia: model.py, hyperconnection.py, ple_layer.py, qsa.py, indexer_qsa.py;
config/vllm.py (VLLM_USE_BREAKABLE_CUDAGRAPH).
"""

from __future__ import annotations

from ...results.model import Report
from ...values import dataclass
from .blocks import text_part
from .compressed import integer

ALIGNED_ROWS = 16  # of the product of streams down to the rank and to the injections


@dataclass(frozen=True, slots=True)
class Streams:
    """Sizes of the residual streams: `count` of `hidden` numbers. tables: layers with tables of n-grams."""

    count: int
    hidden: int
    rank: int
    layers: int
    embedding: int
    tables: int

    @classmethod
    def of(cls, report: Report) -> Streams:
        text = text_part(report.config or {})
        hidden, count = integer(text, "hidden_size"), integer(text, "hc_count")
        tables = text.get("ple_layer_ids") or ()
        embedding = integer(text, "ple_embed_dim") if tables else 0
        layers = len(report.attention.layers)
        return cls(count, hidden, integer(text, "hc_lowrank"), layers, embedding, len(tables))


def buffer_bytes(report: Report, step_tokens: int, *, predicts: bool) -> int:
    """Chosen tokens of each layer with an index, rows that only align a product, and states for layers of prediction."""
    text, streams = text_part(report.config or {}), Streams.of(report)
    width = streams.count * streams.hidden
    number_bytes = report.spec.dtype.bits // 8
    chosen = integer(text, "indexer_budget") + integer(text, "indexer_compress_ratio")
    indexed = sum(layer.kind == "indexed" for layer in report.attention.layers)
    rows = -(streams.rank + streams.count) % ALIGNED_ROWS * 2 * streams.layers
    states = step_tokens if predicts else 0
    return indexed * step_tokens * chosen * 4 + (rows + states) * width * number_bytes


def streams_bytes(report: Report, step_tokens: int) -> tuple[int, int]:
    """(least, most) bytes alive beside the experts' workspaces: before an MLP, or behind a table of n-grams.

    Before an MLP: the streams that entered the layer, which the loop holds, those with attention's output, their sum, its norm
    and the gate, and two hidden states. Behind a table: the entering streams, their sum, the embedding, keys and values, the
    gated output and the convolution's input. At most a copy of the streams and a hidden state more, for kernels not read.
    """
    streams, number_bytes = Streams.of(report), report.spec.dtype.bits // 8
    width = streams.count * streams.hidden
    columns = 5 * width + 2 * streams.hidden + streams.rank
    if streams.tables:
        columns = max(columns, 5 * width + streams.hidden + streams.embedding)
    least = step_tokens * columns * number_bytes
    return least, least + step_tokens * (width + streams.hidden) * number_bytes

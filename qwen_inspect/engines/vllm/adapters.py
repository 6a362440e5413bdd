"""Slots for LoRA adapters, which vLLM makes with the model for every linear module of the decoder.

Source: vLLM 0.19.0, lora/layers: base_linear.py, column_parallel_linear.py, row_parallel_linear.py (lora_a_stacked,
lora_b_stacked), without --fully-sharded-loras; config/lora.py.
"""

from __future__ import annotations

from ...errors import UnsupportedError
from ...results.attention import LayerAttention
from ...results.model import Report
from ...spec import each_module
from .weights import COLUMN, KEY_VALUE, ROW, decoder_layer, kv_rows
from .widths import decoder_widths

SLICES = {"qkv_proj": 3, "gate_up_proj": 2}  # that files have fused; each has an A of its own


def slot_bytes(report: Report, ranks: int, *, slots: int, lora_rank: int) -> int:
    """Bytes on one rank of `slots` adapters of `lora_rank`, in the model's dtype. UnsupportedError for routed experts."""
    if not slots:
        return 0
    if decoder_widths(report).experts is not None:
        raise UnsupportedError("vllm_lora_experts")
    heads = {layer.index: layer for layer in report.attention.layers if isinstance(layer, LayerAttention)}
    elements = 0
    for path, module in each_module(report.tree):
        parent, _, name = path.rpartition(".")
        shape = next((tensor.shape for tensor in module.tensors if len(tensor.shape) == 2), None)
        if shape is None or (index := decoder_layer(parent)) < 0:
            continue
        rows, columns = shape
        if name in KEY_VALUE or name == "qkv_proj":
            attention = heads.get(index)
            rows = rows // ranks if attention is None else kv_rows(name, attention, ranks)
        elif name in COLUMN:
            rows //= ranks
        elif name in ROW:
            columns //= ranks
        else:
            continue
        elements += SLICES.get(name, 1) * columns + rows
    return slots * lora_rank * elements * report.spec.dtype.bits // 8

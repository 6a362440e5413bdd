"""The tables of cosines and sines that vLLM loads beside a model's weights.

Source: vLLM 0.19.0, model_executor/layers/rotary_embedding: base.py (cos_sin_cache, in the model's dtype),
linear_scaling_rope.py, mrope.py (four times the positions), gemma4_rope.py (0.26); one for each set of parameters (get_rope's
cache); models/qwen3_vl.py of 0.32.0 (mrope_positions_factor).
"""

from __future__ import annotations

from collections.abc import Mapping

from ...results.attention import LayerAttention
from ...results.model import Report
from ...spec import GatedAttention
from ...typed import Any
from .blocks import text_part

WITHOUT = ("gpt2", "opt", "bloom", "mpt", "jamba", "mamba", "mamba2", "falcon_mamba", "nemotron_h", "granitemoehybrid")
# Whose positions are counted once from 0.32 on, as long as no tokens of videos are pruned.
POSITIONS_ONCE = ("qwen3_vl", "qwen3_5", "qwen4_exp")


def rotary_bytes(report: Report, version: tuple[int, int]) -> tuple[int, ...]:
    """Bytes of each table: (positions, rotated channels); none for models without rotary embeddings. version: of vLLM."""
    config, spec = report.config or {}, report.spec
    text = text_part(config)
    kind = str(text.get("model_type", config.get("model_type")))
    channels, positions = _channels(report, text, kind), spec.context_tokens
    if not channels or not positions or kind in WITHOUT:
        return ()
    row_bytes = channels * spec.dtype.bits // 8
    if kind.startswith("gemma3"):  # local attention's table, and the global one's, stretched
        factor = scaling(text).get("factor")
        factor = factor if isinstance(factor, int | float) and 1 <= factor <= 1 << 20 else 1
        return positions * row_bytes, int(positions * factor) * row_bytes
    if kind.startswith("gemma4"):  # a table of each kind of layer, of whole heads: what is not turned has angles of 0
        widths = {layer.head_dim for layer in report.attention.layers if isinstance(layer, LayerAttention)}
        return tuple(positions * width * spec.dtype.bits // 8 for width in sorted(widths))
    if "mrope_section" in scaling(text) and not (version >= (0, 32) and kind.startswith(POSITIONS_ONCE)):
        positions *= 4
    return (positions * row_bytes,)


def scaling(text: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a configuration says of its rotary positions, of full attention where kinds differ; empty without."""
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    if isinstance(rope, Mapping) and isinstance(rope.get("full_attention"), Mapping):
        rope = rope["full_attention"]
    return rope if isinstance(rope, Mapping) else {}


def _channels(report: Report, text: Mapping[str, Any], kind: str) -> int:
    """Rotated channels of a head."""
    if type(latent := text.get("qk_rope_head_dim")) is int:
        return latent
    if not report.spec.built and isinstance(report.spec.softmax, GatedAttention):
        return report.spec.softmax.rotary_dim
    heads = next((layer.head_dim for layer in report.attention.layers if isinstance(layer, LayerAttention)), 0)
    if kind.startswith("qwen4_exp") and type(head_dim := text.get("head_dim")) is int:
        heads = head_dim
    share = scaling(text).get("partial_rotary_factor", text.get("partial_rotary_factor"))
    return int(heads * share) if isinstance(share, int | float) and 0 < share <= 1 else heads

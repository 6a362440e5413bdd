"""Small files of architectures that resemble no other: Grok, T5, RWKV.

Source: llama.cpp b11434, src/models/*.cpp (load_arch_hparams, load_arch_tensors).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .llama_cpp_files import EXPERT_INNER, INNER, MIXTURE, WIDTH, Tensors, decoder

GROK_NORMS = {"attn_output_norm.weight": ((WIDTH,), "F32")}
GROK_DENSE = {
    "ffn_gate.weight": ((WIDTH, INNER), "F16"),
    "ffn_up.weight": ((WIDTH, INNER), "F16"),
    "ffn_down.weight": ((INNER, WIDTH), "F16"),
    "post_ffw_norm.weight": ((WIDTH,), "F32"),
}

OTHERS: Mapping[str, tuple[int, Mapping[str, Any], Callable[[], Tensors]]] = {
    "grok": (
        3,
        {**MIXTURE, "feed_forward_length": EXPERT_INNER},
        lambda: decoder(3, mixture=True, further={**GROK_NORMS, "layer_output_norm.weight": ((WIDTH,), "F32")}),
    ),
    "grok:2": (
        3,
        {**MIXTURE, "final_logit_softcapping": 50.0},
        lambda: decoder(3, mixture=True, further={**GROK_NORMS, **GROK_DENSE}),
    ),
}

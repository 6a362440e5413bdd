"""Small files of models that read a text at once: BERT's family and other encoders, diffusion models.

Source: llama.cpp b11434, src/models/*.cpp (load_arch_hparams, load_arch_tensors).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .llama_cpp_files import (
    AFTER,
    AS_MANY,
    BIASES,
    EXPERTS,
    HEADS,
    INNER,
    MIXTURE,
    NORMED,
    WIDTH,
    Shape,
    Tensors,
    decoder,
    renamed,
    short_convolutions,
    without,
)
from .llama_cpp_further import PARTS, PLAIN

ENCODER: Mapping[str, Any] = {
    **PLAIN,
    "attention.causal": False,
    "attention.head_count_kv": HEADS,
    "context_length": 2048,
    "pooling_type": 1,
    "tokenizer.ggml.token_type_count": 2,
}
SUMMED = {
    f"{name}.{kind}": ((WIDTH,), "F32")
    for name in ("attn_output_norm", "layer_output_norm")
    for kind in ("weight", "bias")
}
WITH_BIASES = {
    "attn_q.bias": ((WIDTH,), "F32"),
    "attn_k.bias": ((WIDTH,), "F32"),
    "attn_v.bias": ((WIDTH,), "F32"),
    "attn_output.bias": ((WIDTH,), "F32"),
    "ffn_up.bias": ((INNER,), "F32"),
    "ffn_down.bias": ((WIDTH,), "F32"),
}
THREE = {"attn_qkv.weight": ((WIDTH, 3 * WIDTH), "F16")}
WIDE = {"ffn_up.weight": ((WIDTH, 2 * INNER), "F16")}
EMBEDDING_NORM: Tensors = [("token_embd_norm.weight", (WIDTH,), "F32"), ("token_embd_norm.bias", (WIDTH,), "F32")]
TYPES: Tensors = [("token_types.weight", (WIDTH, 2), "F32")]
POSITIONS: Tensors = [("position_embd.weight", (WIDTH, 2048), "F32")]
CLASSIFIER: Tensors = [
    ("cls.weight", (WIDTH, WIDTH), "F16"),
    ("cls.bias", (WIDTH,), "F32"),
    ("cls.output.weight", (WIDTH, 1), "F16"),
    ("cls.output.bias", (1,), "F32"),
]


def bert(further: Mapping[str, tuple[Shape, str]], *parts: str) -> Tensors:
    """BERT's layers without `parts`."""
    tensors = decoder(3, tied=True, further={**AS_MANY, **SUMMED, **further})
    kept = without(tensors, "attn_norm", "ffn_norm", *parts)
    return [*(entry for entry in kept if entry[0] != "output_norm.weight"), *EMBEDDING_NORM]


def in_experts(tensors: Tensors, layer: int) -> Tensors:
    """With experts without a gate in a layer."""
    experts: dict[str, tuple[Shape, str]] = {
        "ffn_gate_inp.weight": ((WIDTH, EXPERTS), "F32"),
        "ffn_up_exps.weight": ((WIDTH, INNER, EXPERTS), "F16"),
        "ffn_down_exps.weight": ((INNER, WIDTH, EXPERTS), "F16"),
    }
    kept = without(tensors, f"blk.{layer}.ffn_")
    return kept + [(f"blk.{layer}.{name}", *kind) for name, kind in experts.items()]


GATELESS = ("ffn_gate.",)
ENCODERS: Mapping[str, tuple[int, Mapping[str, Any], Callable[[], Tensors]]] = {
    "bert": (3, {**ENCODER, "pooling_type": 2}, lambda: [*bert(WITH_BIASES, *GATELESS), *TYPES, *POSITIONS]),
    "bert:rank": (
        3,
        {**ENCODER, "pooling_type": 4},
        lambda: [*bert(WITH_BIASES, *GATELESS), *TYPES, *POSITIONS, *CLASSIFIER],
    ),
    "nomic-bert": (3, ENCODER, lambda: [*bert(THREE, *PARTS), *TYPES]),
    "nomic-bert-moe": (
        3,
        {**ENCODER, "expert_count": EXPERTS, "expert_used_count": 2, "moe_every_n_layers": 2},
        lambda: [*in_experts(bert({**THREE, **WITH_BIASES}, *PARTS, *GATELESS), 1), *TYPES],
    ),
    "jina-bert-v2": (
        3,
        ENCODER,
        lambda: [*bert({**WITH_BIASES, **WIDE}, *GATELESS, "ffn_up.bias"), *TYPES],
    ),
    "jina-bert-v2:gated": (3, ENCODER, lambda: [*bert({**WITH_BIASES}, "ffn_up.bias"), *TYPES]),
    "jina-bert-v3": (3, ENCODER, lambda: [*bert({**WITH_BIASES, **THREE}, *PARTS, *GATELESS), *TYPES]),
    "neo-bert": (
        3,
        {**ENCODER, "attention.layer_norm_rms_epsilon": 1e-6},
        lambda: renamed(
            without(decoder(3, tied=True, further={**THREE, **WIDE}), *PARTS, *GATELESS),
            "output_norm",
            "enc.output_norm",
        ),
    ),
    "eurobert": (
        3,
        {**ENCODER, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-6},
        lambda: decoder(3, tied=True),
    ),
    "modern-bert": (
        4,
        {**ENCODER, "attention.sliding_window": 128},
        lambda: [
            *without(decoder(4, tied=True, further={**THREE, **WIDE}), *PARTS, *GATELESS, "blk.0.attn_norm"),
            EMBEDDING_NORM[0],
        ],
    ),
    "gemma-embedding": (
        7,
        {"attention.sliding_window": 512, "pooling_type": 1},
        lambda: decoder(7, tied=True, further={**NORMED, **AFTER}),
    ),
    "gemma-embedding:dense": (
        7,
        {
            "attention.sliding_window": 512,
            "pooling_type": 1,
            "dense_2_feat_in": WIDTH,
            "dense_2_feat_out": 4 * WIDTH,
            "dense_3_feat_in": 4 * WIDTH,
            "dense_3_feat_out": WIDTH,
        },
        lambda: [
            *decoder(7, tied=True, further={**NORMED, **AFTER}),
            ("dense_2.weight", (WIDTH, 4 * WIDTH), "F16"),
            ("dense_3.weight", (4 * WIDTH, WIDTH), "F16"),
        ],
    ),
    "lfm2:dense": (
        3,
        {
            "attention.causal": False,
            "attention.head_count_kv": [0, 0, 2],
            "shortconv.l_cache": 3,
            "embedding_length_out": 128,
        },
        lambda: [
            *short_convolutions(mixture=False),
            ("dense_2.weight", (WIDTH, 128), "F16"),
            ("dense_2.bias", (128,), "F32"),
        ],
    ),
    "llama-embed": (3, {"attention.causal": False}, lambda: decoder(3)),
    "dream": (3, {}, lambda: decoder(3, further=BIASES)),
    "llada": (3, {}, lambda: decoder(3)),
    "llada-moe": (3, MIXTURE, lambda: decoder(3, mixture=True, further=NORMED)),
    "rnd1": (3, MIXTURE, lambda: decoder(3, mixture=True, further=NORMED)),
}

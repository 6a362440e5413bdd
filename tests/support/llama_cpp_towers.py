"""Small files of towers (--mmproj), one for each projector whose graph is known, without data.

Source: llama.cpp 0c1e57098, tools/mtmd/clip.cpp (load_hparams, load_tensors).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .llama_cpp_files import Shape, Tensors, write_header

WIDTH, HEADS, LAYERS, INNER, OUT, PATCH, IMAGE = 128, 2, 2, 256, 96, 14, 448
MERGED = 4 * WIDTH
Block = Mapping[str, tuple[Shape, str]]


def matrix(name: str, inputs: int, outputs: int, *, bias: bool = True) -> Tensors:
    return [(f"{name}.weight", (inputs, outputs), "F16"), *([(f"{name}.bias", (outputs,), "F32")] if bias else [])]


def norm(name: str, width: int = WIDTH, *, bias: bool = True) -> Tensors:
    return [(f"{name}.weight", (width,), "F32"), *([(f"{name}.bias", (width,), "F32")] if bias else [])]


def block(
    prefix: str, *, fused: bool = False, gated: bool = False, bias: bool = True, further: Block | None = None
) -> Tensors:
    """further: tensors by name that are added."""
    if fused:
        tensors = matrix(f"{prefix}.attn_qkv", WIDTH, 3 * WIDTH, bias=bias)
    else:
        tensors = [each for part in "qkv" for each in matrix(f"{prefix}.attn_{part}", WIDTH, WIDTH, bias=bias)]
    tensors += matrix(f"{prefix}.attn_out", WIDTH, WIDTH, bias=bias)
    tensors += [*norm(f"{prefix}.ln1", bias=bias), *norm(f"{prefix}.ln2", bias=bias)]
    tensors += matrix(f"{prefix}.ffn_up", WIDTH, INNER, bias=bias)
    tensors += matrix(f"{prefix}.ffn_gate", WIDTH, INNER, bias=bias) if gated else []
    tensors += matrix(f"{prefix}.ffn_down", INNER, WIDTH, bias=bias)
    return tensors + [(f"{prefix}.{name}", shape, kind) for name, (shape, kind) in (further or {}).items()]


def blocks(prefix: str = "v", **kinds: Any) -> Tensors:
    return [tensor for layer in range(LAYERS) for tensor in block(f"{prefix}.blk.{layer}", **kinds)]


def patches(*, frames: int = 1, bias: bool = True) -> Tensors:
    names = ("v.patch_embd.weight", "v.patch_embd.weight.1")[:frames]
    tensors: Tensors = [(name, (PATCH, PATCH, 3, WIDTH), "F16") for name in names]
    return tensors + ([("v.patch_embd.bias", (WIDTH,), "F32")] if bias else [])


def positions(count: int = (IMAGE // PATCH) ** 2) -> Tensors:
    return [("v.position_embd.weight", (WIDTH, count), "F32")]


CLASS: Tensors = [("v.class_embd", (WIDTH,), "F32")]
SIGLIP = [*patches(), *positions(), *blocks(), *norm("v.post_ln")]
NORMS_BY_HEAD: Block = {f"attn_{part}_norm.weight": ((WIDTH // HEADS,), "F32") for part in "qk"}
NORMS_WHOLE: Block = {f"attn_{part}_norm.weight": ((WIDTH,), "F32") for part in "qk"}
AFTER: Block = {f"{name}.weight": ((WIDTH,), "F32") for name in ("attn_post_norm", "ffn_post_norm", "out_scale")}
SCALES: Block = {f"ls{at}.weight": ((WIDTH,), "F32") for at in (1, 2)}
KIMI = [*matrix("mm.1", MERGED, MERGED), *matrix("mm.2", MERGED, OUT)]
FOUR_ROWS: Mapping[str, Any] = {"vision.image_max_pixels": 64 * PATCH**2 * 4, "vision.image_min_pixels": PATCH**2 * 4}
WHISPER: Tensors = [
    ("a.conv1d.1.weight", (3, 80, WIDTH), "F16"),
    ("a.conv1d.1.bias", (1, WIDTH), "F32"),
    ("a.conv1d.2.weight", (3, WIDTH, WIDTH), "F16"),
    ("a.conv1d.2.bias", (1, WIDTH), "F32"),
    ("a.position_embd.weight", (WIDTH, 1500), "F32"),
    *[tensor for tensor in blocks("a") if not tensor[0].endswith("attn_k.bias")],
    *norm("a.post_ln"),
]
CHANNELS = 16
HEARD: Block = {
    **{f"attn_{part}.weight": ((WIDTH, WIDTH), "F16") for part in ("q", "k", "v", "out", "k_rel")},
    "per_dim_scale.weight": ((WIDTH // HEADS,), "F32"),
    **{
        f"{name}.weight": ((WIDTH,), "F32")
        for name in ("attn_pre_norm", "attn_post_norm", "conv_norm", "norm_conv", "ln2")
    },
    **{f"{name}{end}.weight": ((WIDTH,), "F32") for name in ("ffn_norm", "ffn_post_norm") for end in ("", "_1")},
    **{f"ffn_up{end}.weight": ((WIDTH, INNER), "F16") for end in ("", "_1")},
    **{f"ffn_down{end}.weight": ((INNER, WIDTH), "F16") for end in ("", "_1")},
    "conv_pw1.weight": ((WIDTH, 2 * WIDTH), "F16"),
    "conv_dw.weight": ((5, WIDTH), "F32"),
    "conv_pw2.weight": ((WIDTH, WIDTH), "F16"),
}
CONFORMER: Tensors = [
    ("a.conv1d.0.weight", (3, 3, 1, 2 * CHANNELS), "F16"),
    ("a.conv1d.0.norm.weight", (2 * CHANNELS,), "F32"),
    ("a.conv1d.1.weight", (3, 3, 2 * CHANNELS, CHANNELS), "F16"),
    ("a.conv1d.1.norm.weight", (CHANNELS,), "F32"),
    ("a.input_projection.weight", (20 * CHANNELS, WIDTH), "F16"),
    *[(f"a.blk.{layer}.{name}", *kind) for layer in range(LAYERS) for name, kind in HEARD.items()],
]
QUERIES = 256
MINICPM: Tensors = [
    *patches(),
    *positions(4900),
    *blocks(),
    *norm("v.post_ln"),
    *norm("mm.input_norm", MERGED),
    *matrix("mm.up", MERGED, INNER),
    *matrix("mm.down", INNER, OUT),
]
WINDOWS: Tensors = [
    *norm("v.vit_merger.ln1"),
    *[tensor for part in ("q", "k", "v", "out") for tensor in matrix(f"v.vit_merger.attn_{part}", WIDTH, WIDTH)],
    *norm("v.vit_merger.ds_ln", MERGED),
    *matrix("v.vit_merger.ds_ffn_up", MERGED, INNER),
    *matrix("v.vit_merger.ds_ffn_down", INNER, WIDTH),
]
# Projector, or with a variant after a colon -> (keys beside COMMON, tensors).
TOWERS: Mapping[str, tuple[Mapping[str, Any], Tensors]] = {
    "gemma3": (
        {},
        [*SIGLIP, ("mm.input_projection.weight", (OUT, WIDTH), "F16"), *norm("mm.soft_emb_norm", bias=False)],
    ),
    "idefics3": (
        {"vision.projector.scale_factor": 2},
        [*SIGLIP, *matrix("mm.model.fc", MERGED, OUT, bias=False)],
    ),
    "lfm2": (
        {"vision.projector.scale_factor": 2},
        [*SIGLIP, *norm("mm.input_norm", MERGED), *matrix("mm.1", MERGED, INNER), *matrix("mm.2", INNER, OUT)],
    ),
    "janus_pro": ({}, [*SIGLIP, *matrix("mm.0", WIDTH, OUT), *matrix("mm.1", OUT, OUT)]),
    "phi4": (FOUR_ROWS, [*SIGLIP, *matrix("mm.0", WIDTH, OUT), *matrix("mm.2", OUT, OUT)]),
    "mlp": (
        {},
        [
            *patches(bias=False),
            *CLASS,
            *positions((IMAGE // PATCH) ** 2 + 1),
            *norm("v.pre_ln"),
            *blocks(),
            *matrix("mm.0", WIDTH, OUT),
            *matrix("mm.2", OUT, OUT),
        ],
    ),
    "mlp:features": (
        {"vision.feature_layer": [1, 2]},
        [*SIGLIP, *matrix("mm.0", 2 * WIDTH, OUT), *matrix("mm.2", OUT, OUT)],
    ),
    "mlp:norms": (
        {},
        [
            *SIGLIP,
            *matrix("mm.0", WIDTH, OUT),
            *norm("mm.1", OUT),
            *matrix("mm.3", OUT, OUT),
            *norm("mm.4", OUT),
        ],
    ),
    "pixtral": (
        {},
        [
            *patches(bias=False),
            *norm("v.pre_ln", bias=False),
            *blocks(gated=True, bias=False),
            *matrix("mm.1", WIDTH, OUT),
            *matrix("mm.2", OUT, OUT),
            ("v.token_embd.img_break", (OUT,), "F32"),
        ],
    ),
    "pixtral:merging": (
        {"vision.spatial_merge_size": 2},
        [
            *patches(bias=False),
            *norm("v.pre_ln", bias=False),
            *blocks(gated=True, bias=False),
            *norm("mm.input_norm", bias=False),
            *matrix("mm.patch_merger", MERGED, WIDTH, bias=False),
            *matrix("mm.1", WIDTH, OUT, bias=False),
            *matrix("mm.2", OUT, OUT, bias=False),
            ("v.token_embd.img_break", (OUT,), "F32"),
        ],
    ),
    "lightonocr": (
        {"vision.spatial_merge_size": 2},
        [
            *patches(bias=False),
            *norm("v.pre_ln", bias=False),
            *blocks(gated=True, bias=False),
            *norm("mm.input_norm", bias=False),
            *matrix("mm.patch_merger", MERGED, WIDTH, bias=False),
            *matrix("mm.1", WIDTH, OUT, bias=False),
            *matrix("mm.2", OUT, OUT, bias=False),
        ],
    ),
    "qwen2vl_merger": (
        {},
        [
            *patches(frames=2, bias=False),
            *blocks(),
            *norm("v.post_ln"),
            *matrix("mm.0", MERGED, MERGED),
            *matrix("mm.2", MERGED, OUT),
        ],
    ),
    "qwen2.5vl_merger": (
        {"vision.n_wa_pattern": 2},
        [
            *patches(frames=2, bias=False),
            *blocks(gated=True),
            *norm("v.post_ln", bias=False),
            *matrix("mm.0", MERGED, MERGED),
            *matrix("mm.2", MERGED, OUT),
        ],
    ),
    "qwen3vl_merger": (
        {},
        [
            *patches(frames=2),
            *positions(),
            *blocks(fused=True),
            *norm("v.post_ln"),
            *norm("v.deepstack.0.norm", MERGED),
            *matrix("v.deepstack.0.fc1", MERGED, MERGED),
            *matrix("v.deepstack.0.fc2", MERGED, OUT),
            *norm("v.deepstack.1.norm", MERGED),
            *matrix("v.deepstack.1.fc1", MERGED, MERGED),
            *matrix("v.deepstack.1.fc2", MERGED, OUT),
            *matrix("mm.0", MERGED, MERGED),
            *matrix("mm.2", MERGED, OUT),
        ],
    ),
    "internvl": (
        {"vision.projector.scale_factor": 2},
        [
            *patches(),
            *CLASS,
            *positions((IMAGE // PATCH) ** 2 + 1),
            *blocks(further={**NORMS_WHOLE, **SCALES}),
            *norm("mm.model.mlp.0", MERGED),
            *matrix("mm.model.mlp.1", MERGED, OUT),
            *matrix("mm.model.mlp.3", OUT, OUT),
        ],
    ),
    "llama4": (
        {"vision.projector.scale_factor": 2},
        [
            ("v.patch_embd.weight", (3 * PATCH**2, WIDTH), "F16"),
            *CLASS,
            *positions((IMAGE // PATCH) ** 2 + 1),
            *norm("v.pre_ln"),
            *blocks(),
            *norm("v.post_ln"),
            *matrix("mm.model.mlp.1", MERGED, INNER, bias=False),
            *matrix("mm.model.mlp.2", INNER, INNER, bias=False),
            *matrix("mm.model.fc", INNER, OUT, bias=False),
        ],
    ),
    "nemotron_v2_vl": (
        {"vision.projector.scale_factor": 2},
        [
            *patches(),
            ("v.class_embd", (WIDTH, 4), "F32"),
            *positions(),
            *blocks(fused=True),
            *norm("mm.model.mlp.0", MERGED, bias=False),
            *matrix("mm.model.mlp.1", MERGED, INNER, bias=False),
            *matrix("mm.model.mlp.3", INNER, OUT, bias=False),
        ],
    ),
    "gemma4v": (
        {},
        [
            *patches(bias=False),
            ("v.position_embd.weight", (WIDTH, 64, 2), "F32"),
            *blocks(gated=True, bias=False, further={**NORMS_BY_HEAD, **AFTER}),
            ("v.std_bias", (WIDTH,), "F32"),
            ("v.std_scale", (WIDTH,), "F32"),
            *matrix("mm.input_projection", WIDTH, OUT, bias=False),
        ],
    ),
    "gemma4uv": (
        {"vision.block_count": 0},
        [
            ("v.patch_embd.weight", (27 * PATCH**2, WIDTH), "F16"),
            ("v.patch_embd.bias", (WIDTH,), "F32"),
            ("v.position_embd.weight", (WIDTH, 64, 2), "F32"),
            *norm("v.patch_norm.1", 27 * PATCH**2),
            *norm("v.patch_norm.2"),
            *norm("v.patch_norm.3"),
            *matrix("mm.input_projection", WIDTH, OUT, bias=False),
        ],
    ),
    "kimivl": ({"vision.projector.scale_factor": 2}, [*SIGLIP, *norm("mm.input_norm"), *KIMI]),
    "kimik25": (
        {"vision.projector.scale_factor": 2},
        [
            *patches(),
            ("v.position_embd.weight", (WIDTH, 8, 8), "F32"),
            *blocks(),
            *norm("v.post_ln"),
            *norm("mm.input_norm"),
            *KIMI,
        ],
    ),
    "glm4v": (
        {},
        [
            *patches(frames=2),
            *positions(),
            *norm("v.norm_embd", bias=False),
            *blocks(fused=True, gated=True, bias=False),
            *norm("v.post_ln", bias=False),
            ("mm.patch_merger.weight", (2, 2, WIDTH, OUT), "F16"),
            ("mm.patch_merger.bias", (OUT,), "F32"),
            *matrix("mm.model.fc", OUT, OUT, bias=False),
            *norm("mm.post_norm", OUT),
            *matrix("mm.up", OUT, INNER, bias=False),
            *matrix("mm.gate", OUT, INNER, bias=False),
            *matrix("mm.down", INNER, OUT, bias=False),
        ],
    ),
    "paddleocr": (FOUR_ROWS, [*SIGLIP, *norm("mm.input_norm"), *KIMI]),
    "dots_ocr": (
        {**FOUR_ROWS, "vision.projector.scale_factor": 2},
        [
            *patches(),
            *blocks(gated=True, bias=False),
            *norm("mm.post_norm", bias=False),
            *norm("mm.input_norm"),
            *matrix("mm.0", MERGED, MERGED),
            *matrix("mm.2", MERGED, OUT),
        ],
    ),
    "minimax_m3": (
        {},
        [
            *patches(frames=2, bias=False),
            *norm("v.pre_ln"),
            *blocks(),
            *matrix("mm.1", WIDTH, INNER),
            *matrix("mm.2", INNER, OUT),
            *matrix("mm.merger.fc1", 4 * OUT, OUT),
            *matrix("mm.merger.fc2", OUT, OUT),
        ],
    ),
    "resampler": (
        {"minicpmv_query_num": 64},
        [
            *patches(),
            *positions(4900),
            *blocks(),
            *norm("v.post_ln"),
            ("resampler.pos_embed_k", (QUERIES, 4900), "F32"),
            ("resampler.query", (QUERIES, 64), "F32"),
            ("resampler.proj.weight", (QUERIES, QUERIES), "F16"),
            ("resampler.kv.weight", (WIDTH, QUERIES), "F16"),
            *[
                tensor
                for part in ("q", "k", "v", "out")
                for tensor in matrix(f"resampler.attn.{part}", QUERIES, QUERIES)
            ],
            *[tensor for part in ("q", "kv", "post") for tensor in norm(f"resampler.ln_{part}", QUERIES)],
        ],
    ),
    "minicpmv4_6": ({"vision.wa_layer_indexes": [0]}, [*MINICPM, *WINDOWS]),
    "minicpmv4_6:once": ({"vision.projector.scale_factor": 2}, MINICPM),
    "hunyuanvl": (
        {},
        [
            *SIGLIP,
            *norm("mm.pre_norm", bias=False),
            ("mm.0.weight", (2, 2, WIDTH, INNER), "F16"),
            ("mm.0.bias", (INNER,), "F32"),
            ("mm.2.weight", (1, 1, INNER, MERGED), "F16"),
            ("mm.2.bias", (MERGED,), "F32"),
            *matrix("mm.model.fc", MERGED, OUT),
            ("v.image_newline", (MERGED,), "F32"),
            *[(f"mm.image_{part}", (OUT,), "F32") for part in ("begin", "end")],
            *norm("mm.post_norm", OUT, bias=False),
        ],
    ),
    "gemma4a": (
        {},
        [
            *CONFORMER,
            *matrix("a.pre_encode.out", WIDTH, OUT),
            ("mm.a.input_projection.weight", (OUT, OUT), "F16"),
        ],
    ),
    "qwen2a": ({}, [*WHISPER, *matrix("mm.a.fc", WIDTH, OUT)]),
    "voxtral": (
        {"audio.projector.stack_factor": 4},
        [*WHISPER, *matrix("mm.a.mlp.1", MERGED, INNER, bias=False), *matrix("mm.a.mlp.2", INNER, OUT, bias=False)],
    ),
    "musicflamingo": (
        {},
        [*WHISPER, *matrix("mm.a.mlp.1", WIDTH, INNER), *matrix("mm.a.mlp.2", INNER, OUT)],
    ),
    "ultravox": (
        {"audio.projector.stack_factor": 8},
        [
            *WHISPER,
            *norm("mm.a.norm_pre", 8 * WIDTH, bias=False),
            *matrix("mm.a.mlp.1", 8 * WIDTH, INNER, bias=False),
            *norm("mm.a.norm_mid", INNER // 2, bias=False),
            *matrix("mm.a.mlp.2", INNER // 2, OUT, bias=False),
        ],
    ),
}


def write_tower(path: Path, name: str) -> Path:
    keys, tensors = TOWERS[name]
    hears = any(tensor[0].startswith("a.") for tensor in tensors)
    modality = "audio" if hears else "vision"
    common: Mapping[str, Any] = {
        f"has_{modality}_encoder": True,
        "projector_type": name.partition(":")[0],
        f"{modality}.embedding_length": WIDTH,
        f"{modality}.attention.head_count": HEADS,
        f"{modality}.feed_forward_length": INNER,
        f"{modality}.block_count": LAYERS,
        f"{modality}.projection_dim": OUT,
        f"{modality}.attention.layer_norm_epsilon": 1e-6,
        "use_gelu": True,
    }
    seen: dict[str, Any] = {"vision.image_size": IMAGE, "vision.patch_size": PATCH}
    seen |= {f"vision.image_{part}": [0.5, 0.5, 0.5] for part in ("mean", "std")}
    own = {"audio.num_mel_bins": 80} if hears else seen
    return write_header(path, "clip", {**common, **own, **keys}, tensors)


def published_tower(name: str) -> tuple[Mapping[str, Any], Tensors]:
    """Keys and tensors of a real file: Qwen3.6-27B's or Qwen2.5-VL-7B's, from config.json."""
    width, inner, layers, patch, out, kind = {
        "Qwen3.6-27B": (1152, 4304, 27, 16, 5120, "qwen3vl_merger"),
        "Qwen2.5-VL-7B": (1280, 3420, 32, 14, 3584, "qwen2.5vl_merger"),
    }[name]
    third = kind == "qwen3vl_merger"
    tensors: Tensors = [(f"v.patch_embd.weight{end}", (patch, patch, 3, width), "F16") for end in ("", ".1")]
    tensors += (
        [("v.patch_embd.bias", (width,), "F32"), ("v.position_embd.weight", (width, 2304), "F32")] if third else []
    )
    for layer in range(layers):
        prefix = f"v.blk.{layer}"
        joined = [("attn_qkv", width, 3 * width)] if third else [(f"attn_{part}", width, width) for part in "qkv"]
        gate = [] if third else [("ffn_gate", width, inner)]
        rest = [("attn_out", width, width), ("ffn_up", width, inner), ("ffn_down", inner, width)]
        for part, inputs, outputs in (*joined, *gate, *rest):
            tensors += matrix(f"{prefix}.{part}", inputs, outputs)
        tensors += [*norm(f"{prefix}.ln1", width, bias=third), *norm(f"{prefix}.ln2", width, bias=third)]
    tensors += [
        *norm("v.post_ln", width, bias=third),
        *matrix("mm.0", 4 * width, 4 * width),
        *matrix("mm.2", 4 * width, out),
    ]
    keys = {
        "clip.has_vision_encoder": True,
        "clip.projector_type": kind,
        "clip.vision.embedding_length": width,
        "clip.vision.attention.head_count": 16,
        "clip.vision.block_count": layers,
        "clip.vision.patch_size": patch,
    }
    return ({**keys, "clip.vision.n_wa_pattern": 8} if name == "Qwen2.5-VL-7B" else keys), tensors

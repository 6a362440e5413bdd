"""reports/declarations.md: how each way of declaring a dtype and a quantisation is read, from real analyses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from qwen_inspect.architectures import architecture_of
from qwen_inspect.checkpoint import Checkpoint, DType, ModelRef, Tensor
from qwen_inspect.declarations import FILES
from qwen_inspect.errors import QwenInspectError
from qwen_inspect.language import Language
from qwen_inspect.loaders import catalog
from qwen_inspect.renderers import markdown
from qwen_inspect.renderers.blocks import Block, Heading, Paragraph, Table
from qwen_inspect.spec import each_tensor
from qwen_inspect.structure.inspect import analyse
from qwen_inspect.structure.kv_cache import checkpoint_format
from qwen_inspect.units import count

DENSE, HYBRID = "Qwen/Qwen3-8B", "Qwen/Qwen3.5-35B-A3B"
MLX = {"group_size": 64, "bits": 4, "mode": "affine"}
MODELOPT = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
INTEGERS = {"bits": 4, "group_size": 128}
PACKED = {"num_bits": 4, "group_size": 128, "symmetric": True}
FLOATS = {"num_bits": 8, "type": "float", "dynamic": False}
OFFICIAL = {
    name: {}
    for name in (
        "lm_head", "model.language_model.embed_tokens", "-:.*attn.*", "-:.*shared_expert.*", "-:.*mtp.*", "-:.*visual.*",
    )
}  # fmt: skip
# Model, where it is said, what it says.
QUANTISED: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    (DENSE, "quantization_config", {"quant_method": "awq", "version": "gemm", **INTEGERS}),
    (DENSE, "quant_config.json", {"w_bit": 4, "q_group_size": 128, "version": "GEMM"}),
    (DENSE, "quantization_config", {"quant_method": "gptq", "sym": True, **INTEGERS}),
    (DENSE, "quantize_config.json", {"sym": True, **INTEGERS}),
    (HYBRID, "quantization_config", {"quant_method": "gptq", "sym": True, **INTEGERS, "dynamic": OFFICIAL}),
    (DENSE, "quantization_config", {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", **INTEGERS}),
    (DENSE, "quantization_config", {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    (DENSE, "quantization_config", {"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"}),
    (DENSE, "hf_quant_config.json", {"quantization": MODELOPT}),
    (DENSE, "quantization_config", {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}),
    (DENSE, "quantization", MLX),
    (DENSE, "quantization", {"group_size": 32, "bits": 4, "mode": "mxfp4"}),
    (
        DENSE,
        "compression_config",
        {
            "format": "pack-quantized",
            "ignore": ["lm_head"],
            "kv_cache_scheme": FLOATS,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": PACKED}},
        },
    ),
    (HYBRID, "text_config.quantization_config", {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    (DENSE, "quantization_config", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    (DENSE, "quantization_config", {"quant_method": "hqq"}),
    (DENSE, "quantization_config", {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}),
)  # fmt: skip
# What config.json says of the dtype, what the files hold; of the dense model.
TYPED: tuple[tuple[Mapping[str, Any], DType | None, str], ...] = (
    ({"torch_dtype": "bfloat16"}, DType.BF16, ""),
    ({"dtype": "float16"}, DType.BF16, ""),
    ({"dtype": None, "torch_dtype": "bfloat16"}, DType.F32, ""),
    ({}, DType.BF16, ""),
    ({}, DType.F16, ""),
    ({}, None, ""),
    ({"torch_dtype": "bfloat16"}, DType.F8_E4M3, "in the shapes of the configuration"),
    ({"torch_dtype": "bfloat16"}, DType.U32, "words that hold 8 numbers of 4 bits"),
)


def page(languages: Mapping[str, Language]) -> str:
    """The page, its sentences in every language."""
    say = languages["en"]
    blocks: list[Block] = [
        Heading("What a checkpoint says of its numbers, and how it is read", 1),
        Paragraph(
            "Written by `make reports`: one real analysis for each way of declaring, without files of weights unless they are "
            "named. 由 `make reports` 生成：每种声明方式各做一次真实分析，除非注明，均无权重文件。"
        ),
        Heading("Quantisation / 量化"),
        Table(
            ["Model", "Declared in", "It says", "Read as", "Quantised parameters", "Bytes of the weights", "vLLM's KV cache"],
            [row for declared in QUANTISED for row in _quantised(*declared, say)],
            "llllrrl",
        ),
        Heading("Dtype / 数据类型"),
        Table(
            ["config.json", "Files", "Dtype", *(f"Said ({name})" for name in languages)],
            [row for typed in TYPED for row in _typed(*typed, languages)],
            "lllll"[: 3 + len(languages)],
        ),
        Paragraph(
            "`tests/architectures/test_declarations.py` holds dtypes to `from_pretrained` and bytes to published totals or sums "
            "worked out by hand. Sources of the places: `qwen_inspect/declarations.py`."
        ),
    ]  # fmt: skip
    return markdown.render(blocks)


def _declaring(model: str, place: str, says: Mapping[str, Any]) -> Checkpoint:
    config = dict(catalog.configuration(model, catalog.entries()))
    ref = ModelRef(source="local", id=model)
    if place in FILES:
        return Checkpoint(ref=ref, config=config, tensors=None, quantisation_file=(place, says))
    part, _, key = place.rpartition(".")
    config = {**config, part: {**config[part], key: says}} if part else {**config, key: says}
    return Checkpoint(ref=ref, config=config, tensors=None)


def _quantised(model: str, place: str, says: Mapping[str, Any], say: Language) -> Iterator[list[str]]:
    report = analyse(_declaring(model, place, says))
    design = report.known
    found = design.quantised
    if found is None:
        assert design.unread is not None
        read = [f"not known: {say(design.unread.message)}", "–", "–"]
    else:
        read = [
            f"{found.method}: {'; '.join(map(say, found.schemes))}",
            count(found.parameters),
            count(found.total_bytes),
        ]
    try:
        cache = checkpoint_format(report.config or {}, "auto")
    except QwenInspectError as error:
        cache = say(error.message)
    yield [
        model.rpartition("/")[2],
        place,
        json.dumps(says),
        *read,
        str(report.spec.dtype) if cache == "auto" else cache,
    ]


def _typed(
    named: Mapping[str, Any], stored: DType | None, how: str, languages: Mapping[str, Language]
) -> Iterator[list[str]]:
    config = {
        key: value for key, value in catalog.configuration(DENSE, catalog.entries()).items() if "dtype" not in key
    }
    architecture = architecture_of(config)
    tensors = None
    if stored is not None:
        tree = architecture.tree
        tensors = tuple(_stored(tensor, stored) for tensor in each_tensor(tree))
    report = analyse(Checkpoint(ref=ModelRef(source="local", id=DENSE), config={**config, **named}, tensors=tensors))
    files = "none" if stored is None else f"{stored}{', ' if how else ''}{how}"
    yield [
        json.dumps(dict(named)),
        files,
        str(report.spec.dtype),
        *(" ".join(map(say, report.notices)) or "–" for say in languages.values()),
    ]


def _stored(tensor: Tensor, dtype: DType) -> Tensor:
    if len(tensor.shape) < 2 or dtype is not DType.U32:
        return replace(tensor, dtype=DType.BF16 if len(tensor.shape) < 2 else dtype)
    rows, columns = tensor.shape
    return replace(tensor, dtype=dtype, shape=(rows, columns // 8))

"""JSON files of models, of adapters and of the tool itself, read by its commands, without torch."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from qwen_inspect.checkpoint import DType, Tensor
from qwen_inspect.loaders import catalog
from tests.support.models import TINY_QWEN3, header_of

from .mutation import ODD, damaged, mutate, written
from .trial import Case, Verdict, command

# --- configurations

# A layer or an expert more says nothing new, and takes its time.
MOST: Mapping[str, int] = {
    "num_hidden_layers": 4,
    "depth": 3,
    "num_experts": 8,
    "n_routed_experts": 8,
    "num_local_experts": 8,
}
PER_TOKEN = ("num_experts_per_tok", "moe_topk", "experts_per_token")
QUANTISED: Sequence[Mapping[str, Any]] = (
    {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
    {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "sym": True,
        "desc_act": False,
        "dynamic": {"-:.*attn.*": {}},
    },
    {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head", "re:.*gate$"]},
    {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
    {"load_in_8bit": True, "llm_int8_skip_modules": ["lm_head"]},
    {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
    {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head", "*gate*"]},
    {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": ["lm_head", "re:.*gate$"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "group_size": 32, "strategy": "group", "symmetric": True, "type": "int"},
            }
        },
    },
)
MORE_KEYS = (
    *(
        "head_dim",
        "layer_types",
        "partial_rotary_factor",
        "rope_parameters",
        "rope_scaling",
        "quantization_config",
        "dtype",
    ),
    *(
        "text_config",
        "vision_config",
        "torch_dtype",
        "auto_map",
        "mlp_only_layers",
        "sliding_window",
        "use_sliding_window",
    ),
    *("num_nextn_predict_layers", "full_attention_interval", "pad_token_id", "kv_cache_scheme", "num_key_value_heads"),
)
COMMANDS = (
    *(("params",), ("params", "--format", "json"), ("structure",), ("structure", "--expand", "--format", "html")),
    *(("structure", "--first-layer"), ("structure", "--format", "md", "--lang", "zh"), ("config", "--explain")),
    *(("attention", "--context", "32k"), ("attention", "--format", "json", "--batch", "3", "--tp", "2"), ("weights",)),
    *(
        ("memory",),
        ("memory", "--format", "json", "--dtype", "awq-int4"),
        ("memory", "--tp", "2"),
        ("fit", "--gpu", "4090"),
    ),
    *(
        ("memory", "--fsdp", "4", "--mode", "train"),
        ("memory", "--mode", "train", "--lora", "8"),
        ("attention", "--lang", "zh"),
    ),
    *(("fit", "--engine", "vllm", "--gpu", "H100"), ("fit", "--engine", "llama.cpp", "--gpu", "4090"), ("diagram",)),
    *(("compare", "catalog:Qwen/Qwen3-0.6B"), ("report", "--format", "json")),
)
WEIGHTS = (*(6, 6, 6, 1, 2, 2, 6), *(6, 6, 4), *(1, 1, 1, 1), *(1, 1, 4), *(2, 2, 1), *(0.5, 0.1))


@cache
def _configurations() -> tuple[str, ...]:
    """Of the catalog's models, each structure once, cut to a few layers and experts."""
    listed = catalog.entries()
    configurations = {}
    for name in listed:
        config = dict(catalog.configuration(name, listed))
        for part in (config, *(value for value in config.values() if isinstance(value, dict))):
            for key, most in MOST.items():
                if type(part.get(key)) is int:
                    part[key] = min(part[key], most)
            part.update({key: min(part[key], 4) for key in PER_TOKEN if type(part.get(key)) is int})
            if isinstance(part.get("layer_types"), list):
                part["layer_types"] = part["layer_types"][: MOST["num_hidden_layers"]]
        configurations[json.dumps([config.get("model_type"), sorted(config)])] = json.dumps(config)
    return tuple(configurations.values())


def make_configuration(random: Random) -> Case:
    config = json.loads(random.choice(_configurations()))
    if random.random() < 0.15:
        config["quantization_config"] = copy.deepcopy(random.choice(QUANTISED))
    for _ in range(random.choice((1, 1, 1, 2))):
        mutate(config, random, keys=MORE_KEYS)
    (words,) = random.choices(COMMANDS, WEIGHTS)
    return Case(written(config, random), words)


def read_configuration(case: Case, folder: Path) -> Verdict:
    return _command(case, folder / "model" / "config.json", folder / "model")


def _command(case: Case, file: Path, model: Path) -> Verdict:
    """The case's command on a model of which `file` is this content."""
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(case.content)
    name, *options = case.words
    return command([name, str(model), *options])


# --- adapters

ADAPTER: Mapping[str, Any] = {
    "base_model_name_or_path": "base",
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "exclude_modules": None,
    "layers_to_transform": None,
    "layers_pattern": None,
    "layer_replication": None,
    "trainable_token_indices": None,
}
TARGETS: Sequence[Any] = (
    *("all-linear", "q_proj", ".*", "(", "[[a]", "x{99999999999}", "a|b", "(" * 900 + ")" * 900, ".*" * 30 + "Z"),
    *(["lm_head", "embed_tokens"], ["norm"], ["q_proj"] * 3_000, ["model.layers.0.self_attn.q_proj"], ["\ud800"]),
    *({"q_proj": 4}, {"q_proj": 10**400}, {"q_proj": 0.5}, {"(": 4}, {"x{99999999999}": 4}, {".*": None}),
    *(".?" * 40 + "Z", {"(.|.)" * 28 + "Z": 4}, "(a+)+$"),
)


def prepare_adapter(folder: Path) -> None:
    (folder / "adapter").mkdir()
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text(json.dumps(dict(TINY_QWEN3)))
    names = [
        Tensor(f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_{matrix}.weight", shape, DType.F32)
        for layer in (0, 1)
        for name, rows in (("q_proj", 64), ("v_proj", 32))
        for matrix, shape in (("A", (8, 64)), ("B", (rows, 8)))
    ]
    data_bytes = sum(tensor.size_bytes for tensor in names)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(header_of(names) + bytes(data_bytes))


def make_adapter(random: Random) -> Case:
    config = copy.deepcopy(dict(ADAPTER))
    for _ in range(random.choice((1, 1, 2, 3))):
        mutate(config, random, odd=(*ODD, *TARGETS, *TARGETS))
    words = random.choice((("params",), ("params", "--format", "json"), ("structure",), ("weights",), ("memory",)))
    return Case(written(config, random), words)


def read_adapter(case: Case, folder: Path) -> Verdict:
    base = json.dumps(str(folder / "base")).encode()
    placed = case._replace(content=case.content.replace(b'"base"', base, 1))
    return _command(placed, folder / "adapter" / "adapter_config.json", folder / "adapter")


# --- indexes of shards

SHARDS = ("a.safetensors", "b.safetensors")
NAMES: Sequence[Any] = (
    *SHARDS,
    *("../a.safetensors", "/a.safetensors", "a\\b.safetensors", "", ".", "..", "a.bin", "\ud800.safetensors"),
    *(
        "a\n.safetensors",
        "\u202e.safetensors",
        "x" * 300 + ".safetensors",
        "a.safetensors ",
        ".safetensors",
        None,
        1,
        [],
    ),
)


def prepare_index(folder: Path) -> None:
    (folder / "sharded").mkdir()
    (folder / "sharded" / "config.json").write_text(json.dumps(dict(TINY_QWEN3)))
    for name, tensors in zip(SHARDS, (("t1", "t2"), ("t3",)), strict=True):
        head = header_of([Tensor(tensor, (2,), DType.F32) for tensor in tensors])
        (folder / "sharded" / name).write_bytes(head + bytes(8 * len(tensors)))


def make_index(random: Random) -> Case:
    index: Any = {"metadata": {"total_size": 24}, "weight_map": {"t1": SHARDS[0], "t2": SHARDS[0], "t3": SHARDS[1]}}
    for _ in range(random.choice((1, 1, 2))):
        mutate(index, random, odd=(*ODD, *NAMES))
    partial = ("--partial",) if random.random() < 0.5 else ()
    return Case(written(index, random), (random.choice(("weights", "params")), *partial))


def read_index(case: Case, folder: Path) -> Verdict:
    return _command(case, folder / "sharded" / "model.safetensors.index.json", folder / "sharded")


# --- what the tool writes and reads again

MEASUREMENT: Mapping[str, Any] = {
    "command": "memory",
    "model": {"architecture": "Qwen3ForCausalLM", "model_type": "qwen3", "dtype": "bfloat16"},
    "workload": {
        "mode": "generate",
        "batch": 1,
        "prompt_tokens": 16,
        "new_tokens": 3,
        "attention": "sdpa",
        "load": "warmup",
        "gpu": "sm_80",
        "cache": "dynamic",
        "padded": False,
        "autocast": None,
    },
    "measured": {"device": "cpu", "versions": {"torch": "2.13.0", "transformers": "5.23.0"}, "partial": None},
    "differences": [
        {"term": "weights", "predicted": 156_416, "measured": 156_416, "causes": []},
        {
            "term": "peak_allocated",
            "predicted": 200_000,
            "measured": 241_472,
            "causes": [
                {"key": "cause_scratch", "values": {"operator": "aten::mm", "storages": 3}, "bytes": 41_472},
                {"key": "cause_other_moment", "values": {"stage": "measured_stage_decode"}, "bytes": 0},
            ],
        },
    ],
}


def prepare_model(folder: Path) -> None:
    (folder / "tiny").mkdir()
    (folder / "tiny" / "config.json").write_text(json.dumps(dict(TINY_QWEN3)))


def make_measurement(random: Random) -> Case:
    measurement = copy.deepcopy(dict(MEASUREMENT))
    for _ in range(random.choice((1, 1, 2))):
        mutate(measurement, random)
    return Case(written(measurement, random), ("report", "--format", "json"))


def read_measurement(case: Case, folder: Path) -> Verdict:
    (folder / "measured.json").write_bytes(case.content)
    return command([*case.words, str(folder / "tiny"), "--measured", str(folder / "measured.json")])


RECORD = "tiny.en.json.figures.json"


def prepare_record(folder: Path) -> None:
    """A report with its record, of which `RECORD` is then damaged."""
    prepare_model(folder)
    model, reports = str(folder / "tiny"), str(folder / "reports")
    assert command(["report", model, "--format", "json", "-o", reports]).code == 0
    (folder / "record").write_bytes((folder / "reports" / RECORD).read_bytes())


def make_record(random: Random) -> Case:
    """How the record is changed: with this seed, for what it holds is known where it was made."""
    return Case(b"%d" % random.getrandbits(64), ("report", "--check"))


def read_record(case: Case, folder: Path) -> Verdict:
    random = Random(int(case.content))
    record = json.loads((folder / "record").read_bytes())
    parts = [record, record["request"], record["request"]]
    for _ in range(random.choice((1, 1, 2))):
        mutate(random.choice(parts), random)
    content = written(record, random)
    (folder / "reports" / RECORD).write_bytes(damaged(content, random) if random.random() < 0.1 else content)
    return command([*case.words, "-o", str(folder / "reports")])

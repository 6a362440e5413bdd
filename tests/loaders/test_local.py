"""Local models, as the real libraries write them and at their real sizes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.checkpoint import DType, Tensor
from qwen_inspect.errors import UnsupportedError
from qwen_inspect.results.model import Report
from qwen_inspect.structure.inspect import inspect

from ..support.families import FAMILIES, TINY_QWEN3_MOE, saved_by_transformers
from ..support.invoking import Capture, invoke
from ..support.models import TINY_QWEN3, run, write_config, write_sharded, write_sparse


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_saved_by_transformers_is_accounted_to_the_last_parameter(family: str, tmp_path: Path) -> None:
    model = saved_by_transformers(tmp_path, FAMILIES[family])
    report = inspect(str(tmp_path), instantiate=True)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    counts = report.parameters
    assert (counts.theory, counts.unique, counts.instantiated) == (parameters, parameters, parameters)
    assert counts.buffers == sum(buffer.numel() for buffer in model.buffers())
    assert [check.agrees for check in report.checks] == [True, True, True]
    assert all(cause.parameters == 0 for check in report.checks for cause in check.causes)


def test_shards_are_read_as_one_model(tmp_path: Path) -> None:
    single, sharded = tmp_path / "single", tmp_path / "sharded"
    saved_by_transformers(single, TINY_QWEN3_MOE)
    saved_by_transformers(sharded, TINY_QWEN3_MOE, max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    one, several = inspect(str(single)), inspect(str(sharded))
    assert one.tensors is not None
    assert several.tensors is not None

    def contents(report: Report) -> set[object]:
        return {(tensor.name, tensor.shape, tensor.dtype) for tensor in report.tensors or ()}

    assert contents(one) == contents(several)
    assert several.checks[0].agrees
    assert several.notices == ()  # what transformers writes of totals is right


EMBEDDING, NORM = (
    Tensor("model.embed_tokens.weight", (256, 64), DType.BF16),
    Tensor("model.norm.weight", (64,), DType.BF16),
)
HEAD = Tensor("lm_head.weight", (256, 64), DType.BF16)
ROUTING = Tensor("model.layers.0.mlp.gate.e_score_correction_bias", (64,), DType.F32)
WORDS = Tensor("model.layers.0.mlp.up_proj.qweight", (8, 64), DType.I32)
CODES = Tensor("model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4", (80,), DType.U8)


@pytest.mark.parametrize(
    ("stored", "metadata", "said"),
    [
        ([EMBEDDING, NORM], {"total_size": 2 * (16_384 + 64), "total_parameters": 16_448}, []),
        ([EMBEDDING, NORM], {"total_size": 2.0 * (16_384 + 64)}, []),
        ([EMBEDDING, NORM], {"total_size": 0}, []),
        ([EMBEDDING, NORM], {}, []),
        ([EMBEDDING, NORM], {"total_size": "much", "total_parameters": None}, []),
        # In float32, as before a conversion; and of a larger model.
        ([EMBEDDING, NORM], {"total_size": 4 * 16_448}, [("index_total_size", 65_792, 32_896)]),
        ([EMBEDDING, NORM], {"total_parameters": 16_449}, [("index_total_parameters", 16_449, 16_448)]),
        # A tied head that is stored all the same, counted once or twice.
        ([EMBEDDING, NORM, HEAD], {"total_size": 2 * 16_448, "total_parameters": 16_448}, []),
        ([EMBEDDING, NORM, HEAD], {"total_size": 2 * 32_832, "total_parameters": 32_832}, []),
        # A buffer is no parameter to transformers.
        ([EMBEDDING, NORM, ROUTING], {"total_parameters": 16_448}, []),
        # What a library makes of packed words is its own.
        ([EMBEDDING, WORDS], {"total_size": 2 * 16_384 + 4 * 512, "total_parameters": 20_480}, []),
        ([EMBEDDING, WORDS], {"total_size": 1_000}, [("index_total_size", 1_000, 34_816)]),
        ([EMBEDDING, CODES], {"total_size": 1_000}, []),
    ],
)
def test_totals_of_an_index_are_held_against_the_files(
    stored: list[Tensor], metadata: dict[str, object], said: list[tuple[str, int, int]], tmp_path: Path
) -> None:
    names = [f"model-0000{number}-of-0000{len(stored)}.safetensors" for number in range(1, len(stored) + 1)]
    for name, tensor in zip(names, stored, strict=True):
        write_sparse(tmp_path / name, [tensor])
    weight_map = {tensor.name: name for name, tensor in zip(names, stored, strict=True)}
    index = {"metadata": metadata, "weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    notices = inspect(str(tmp_path), require_design=False).notices
    told = [notice for notice in notices if notice.key.startswith("index_")]
    assert [(notice.key, notice.values["found"], notice.values["expected"]) for notice in told] == said
    # The sum of the files' own sizes, headers and all, says the same.
    index["metadata"] = {"total_size": sum((tmp_path / name).stat().st_size for name in names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert not [notice for notice in inspect(str(tmp_path), require_design=False).notices if "index" in notice.key]


def test_experts_stored_singly_are_the_fused_ones_of_transformers(tmp_path: Path) -> None:
    saved_by_transformers(tmp_path, TINY_QWEN3_MOE)
    check = inspect(str(tmp_path)).checks[0]
    # 3 layers of 8 experts of 3 matrices (one layer of the four is dense); 2 fused tensors a layer.
    assert [(cause.name, cause.parameters, cause.tensors) for cause in check.causes] == [("experts_singly", 0, 72)]
    assert "into 6 when" in _english(check.causes[0].message)


def test_experts_stored_fused_are_accepted_too(tmp_path: Path) -> None:
    saved_by_transformers(tmp_path, TINY_QWEN3_MOE, save_original_format=False)
    check = inspect(str(tmp_path)).checks[0]
    assert check.agrees
    assert check.causes == ()


def test_a_file_alone_is_read_with_the_configuration_beside_it(tiny_qwen3: Path) -> None:
    report = inspect(str(tiny_qwen3 / "model.safetensors"))
    assert report.parameters.unique == inspect(str(tiny_qwen3)).parameters.unique
    assert report.checks[0].agrees


def test_a_safetensors_file_is_known_by_its_header_where_its_name_says_nothing(
    tiny_qwen3: Path, tmp_path: Path
) -> None:
    """As huggingface_hub's cache keeps it: blobs/SHA-256."""
    blob = tmp_path / ("0f" * 32)
    blob.write_bytes((tiny_qwen3 / "model.safetensors").read_bytes())
    named, unnamed = (inspect(str(path), require_design=False) for path in (tiny_qwen3 / "model.safetensors", blob))
    assert [(one.name, one.shape) for one in unnamed.tensors or ()] == [
        (one.name, one.shape) for one in named.tensors or ()
    ]
    blob.write_bytes(b"something else, and no header")
    with pytest.raises(UnsupportedError, match="not a kind of file"):
        inspect(str(blob))


def test_a_configuration_alone_gives_theory_and_says_so(tiny_qwen3: Path) -> None:
    report = inspect(str(tiny_qwen3 / "config.json"))
    assert report.parameters.theory == inspect(str(tiny_qwen3)).parameters.theory
    assert report.parameters.stored is None
    assert [notice.key for notice in report.notices] == ["config_alone"]


def test_a_whole_235b_model_is_read_from_118_sparse_shards(tmp_path: Path) -> None:
    assert write_sharded(tmp_path, "Qwen/Qwen3-235B-A22B") == 118
    report = inspect(str(tmp_path))
    assert report.tensors is not None
    assert len(report.tensors) == 36_945
    assert report.parameters.stored == report.parameters.unique == 235_093_634_560
    assert report.checks[0].agrees
    assert sum(file.size_bytes for file in report.files) > 470_000_000_000
    assert sum(file.stat().st_blocks * 512 for file in tmp_path.iterdir()) < 20_000_000


def test_attention_is_found_from_the_shapes_where_the_configuration_is_wrong(tmp_path: Path) -> None:
    """The case of parameter-memory-report: said to be GQA, stored as MHA."""
    saved_by_transformers(tmp_path, {**TINY_QWEN3, "num_key_value_heads": 4})
    config = json.loads((tmp_path / "config.json").read_text())
    write_config(tmp_path, {**config, "num_key_value_heads": 2})
    report = inspect(str(tmp_path))
    assert report.attention.kind == "MHA"
    assert {layer.kind for layer in report.attention.by_config} == {"GQA"}
    assert [finding.key for finding in report.attention.findings] == ["finding_heads_disagree"]
    assert {item.kind for item in report.checks[0].unexplained} == {"reshaped"}
    assert not report.checks[0].agrees
    assert run("params", tmp_path).code == 1


def test_without_torch_all_but_instantiation_works(tiny_qwen3: Path) -> None:
    """A plain install: torch, transformers and numpy cannot be imported at all."""
    script = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'numpy', 'accelerate', 'safetensors', 'huggingface_hub'):\n"
        "    sys.modules[name] = None\n"
        "from qwen_inspect.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    import subprocess

    for command, code in (("structure", 0), ("weights", 0), ("params", 0), ("attention", 0), ("config", 0)):
        assert (
            subprocess.run([sys.executable, "-c", script, command, str(tiny_qwen3)], capture_output=True).returncode
            == code
        )
    refused = subprocess.run(
        [sys.executable, "-c", script, "params", "--instantiate", str(tiny_qwen3)], capture_output=True, text=True
    )
    assert refused.returncode == 8
    assert 'pip install "qwen-inspect[torch]"' in refused.stderr


def _english(message: Any) -> str:
    from qwen_inspect.language import Language

    return Language("en")(message)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_every_dtype_of_parameters_has_its_cache(dtype: str, tmp_path: Path) -> None:
    write_config(tmp_path, {**TINY_QWEN3, "torch_dtype": dtype})
    size = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}[dtype]
    assert inspect(str(tmp_path)).cache.bytes_per_token == 2 * 2 * 2 * 16 * size  # K and V, layers, KV heads, head_dim


def test_a_mixture_without_experts_is_dense_as_transformers_builds_it(tmp_path: Path) -> None:
    write_config(tmp_path, {**TINY_QWEN3_MOE, "num_experts": 0})
    report = inspect(str(tmp_path), instantiate=True)
    assert report.checks[0].agrees
    assert report.parameters.active == report.parameters.theory


def test_what_is_stored_or_written_is_shown_though_its_architecture_is_not_known(
    tmp_path: Path, capsys: Capture
) -> None:
    write_config(tmp_path, {"model_type": "qwen", "hidden_size": 8})
    shown = invoke(capsys, "config", tmp_path)
    assert shown.code == 0
    assert "hidden_size" in shown.out
    refused = invoke(capsys, "params", tmp_path)
    assert refused.code == 7
    assert "weights command" not in refused.err  # nothing is stored


def test_one_layer_without_projections_leaves_the_others_to_their_shapes(tmp_path: Path) -> None:
    saved_by_transformers(tmp_path, TINY_QWEN3)
    tensors = inspect(str(tmp_path)).tensors
    assert tensors is not None
    write_sparse(
        tmp_path / "model.safetensors", [one for one in tensors if "layers.0.self_attn.k_proj" not in one.name]
    )
    report = inspect(str(tmp_path))
    assert report.attention.by_shapes is not None
    assert [finding.key for finding in report.attention.findings] == ["finding_no_projections"]
    assert not report.checks[0].agrees


def test_building_a_model_leaves_the_environment_alone(tiny_qwen3: Path) -> None:
    before = dict(os.environ)
    inspect(str(tiny_qwen3), instantiate=True)
    assert dict(os.environ) == before


def test_a_configuration_that_transformers_cannot_take_is_a_plain_refusal(tmp_path: Path) -> None:
    write_config(tmp_path, {**TINY_QWEN3, "attention_dropout": "much"})
    shown = run("params", "--instantiate", tmp_path)
    assert shown.code == 7
    assert "cannot build this configuration" in shown.err
    assert shown.err.count("error: ") == 1

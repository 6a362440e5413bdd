"""The user's documents about Qwen3-0.6B and about a model of their own, reproduced, with what they get wrong put right.

The figures here are the documents', not the tool's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.language import Language
from qwen_inspect.renderers import markdown, terminal
from qwen_inspect.renderers.document import View, document
from qwen_inspect.results.model import Report
from qwen_inspect.structure.inspect import inspect

from ..support.documents import CUSTOM_MHA
from ..support.models import write_config, write_sparse


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3-0.6B's directory as released: the real header of 311 tensors over a hole of 1.5 GB."""
    directory = tmp_path_factory.mktemp("Qwen3-0.6B")
    cataloged = inspect("Qwen/Qwen3-0.6B", source="catalog", predict_files=True)
    assert cataloged.tensors is not None
    assert cataloged.config is not None
    write_sparse(directory / "model.safetensors", cataloged.tensors)
    write_config(directory, cataloged.config)
    return directory


@pytest.fixture(scope="module")
def report(files: Path) -> Report:
    return inspect(str(files))


def shown(report: Report, command: str, language: str = "zh", **view: Any) -> str:
    return terminal.render(document(command, report, Language(language), View(**view)))


def table_rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first Markdown table below a heading."""
    below = text.partition(f"## {heading}")[2]
    table = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert table is not None, heading
    rows = [[cell.strip() for cell in line.strip("|\n").split(" | ")] for line in table[0].splitlines()]
    return rows[2:]


def digest(rows: Sequence[Sequence[str]]) -> str:
    return hashlib.sha256("\n".join("|".join(row) for row in rows).encode()).hexdigest()


def test_the_weights_report_has_the_documents_rows_figures_and_top_20(report: Report) -> None:
    text = markdown.render(document("weights", report, Language("zh"), View()))
    rows = [[name, shape, elements, mib] for name, shape, _, elements, mib in table_rows(text, "权重详情")]
    assert len(rows) == 311
    # SHA-256 of the document's 311 rows (name|shape|elements|MB), one a line, and of its 20 largest (name|shape|MB).
    assert digest(rows) == WEIGHTS_DIGEST
    assert digest(table_rows(text, "按内存大小排序的权重 (Top 20)")) == TOP_DIGEST
    assert "751,632,384" in text
    assert "1,433.62 MiB" in text
    assert "596,049,920" in text


WEIGHTS_DIGEST = "f49a01b308b89f873bc0b805f34959ae4195fa550b3dc02e4091036d42243938"
TOP_DIGEST = "74331ae65f96b6cbb9017bebc5851c1a9f30272aaf9f893f5552839c9b10879d"


def test_stored_and_unique_are_both_shown_with_the_cause(report: Report) -> None:
    assert report.parameters.stored == 751_632_384
    assert report.parameters.unique == 596_049_920
    check = report.checks[0]
    assert [(cause.name, cause.parameters, cause.tensors) for cause in check.causes] == [("tied_copy", 155_582_464, 1)]
    assert check.residual == 0


def test_structure_follows_the_console_session(report: Report) -> None:
    text = shown(report, "structure")
    headings = re.findall(r"^=== (.*) ===$", text, re.MULTILINE)
    expected = [
        "Qwen3 模型结构分析",
        "模型配置详情",
        "模型参数统计",
        "模型层次结构",
        "每层详细信息",
        "KV 缓存分析",
        "KV 缓存工作机制",
    ]
    assert [heading for heading in headings if heading in expected] == expected
    for figure in ("151936", "1024", "28", "16", "3072", "40960", "1e-06", "1000000", "15,730,944", "1,136.88 MiB"):
        assert figure in text


def test_statistics_are_split_by_component_and_the_head_is_tied(report: Report) -> None:
    counts = {part.name: part.parameters for part in report.components}
    # config-explained.md: 155M embedding, 6.2M attention and 9.4M MLP a layer; exact by its own formulas.
    assert counts["embedding"] == 151_936 * 1_024
    assert counts["attention"] == 28 * (2_097_152 + 1_048_576 + 1_048_576 + 2_097_152 + 2 * 128)
    assert counts["mlp"] == 28 * 3 * 3_145_728
    assert counts["norm"] == (28 * 2 + 1) * 1_024
    assert counts["lm_head"] == 0
    assert "0（与 model.embed_tokens.weight 共享）" in shown(report, "structure")


def test_there_are_28_attention_layers_with_their_heads(report: Report) -> None:
    text = shown(report, "structure", expand=True)
    assert "找到 28 个注意力层" in text
    rows = re.findall(r"model\.layers\.(\d+)\.self_attn\s*\|\s*GQA\s*\|\s*16 \|\s*8 \|\s*128 \|", text)
    assert rows == [str(index) for index in range(28)]
    assert "post_attention_layernorm |" not in text.partition("KV 缓存分析")[2]


def test_equal_layers_fold_by_default_and_unfold_on_request(report: Report) -> None:
    assert "(0-27): 28 x Qwen3DecoderLayer" in shown(report, "structure")
    assert shown(report, "structure", expand=True).count("): Qwen3DecoderLayer") == 28


def test_one_layer_is_exact(report: Report) -> None:
    text = shown(report, "config", explain=True)
    assert "= 6,291,712" in text  # 6,291,456 + 256 of QK-Norm
    assert "28 × 15,730,944 = 440,466,432" in text
    assert "总计 596,049,920 个参数" in text
    assert "(act_fn): SiLUActivation()" in text
    assert "16 × 128 = 2,048" in text


def test_gqa_is_worked_through_as_in_config_explained(report: Report) -> None:
    text = shown(report, "attention")
    for shape in ("[B, L, 2048]", "[B, 16, L, 128]", "[B, 8, L, 128]", "[B, 16, L, L]", "[B, L, 1024]"):
        assert shape in text
    assert "Q[0], Q[1]" in text
    assert "Q[2], Q[3]" in text


def test_the_first_block_is_annotated_as_in_the_learning_notes(report: Report) -> None:
    text = shown(report, "structure", first_layer=True)
    lines = text.splitlines()
    query = next(index for index, line in enumerate(lines) if "(q_proj)" in line)
    assert lines[query - 1].strip() == "# Q 头：16 × 头维度 128 = 2048"
    key = next(index for index, line in enumerate(lines) if "(k_proj)" in line)
    assert lines[key - 1].strip() == "# K 头：8 × 头维度 128 = 1024"
    assert "(q_norm): Qwen3RMSNorm((128,), eps=1e-06)" in text


def test_the_notes_name_what_the_report_compares(report: Report) -> None:
    text = shown(report, "config", explain=True)
    for technique in ("GQA", "SwiGLU", "RoPE", "RMSNorm", "pre-norm", "QK-Norm", "移除了 QKV-bias"):
        assert technique in text.partition("结构要点")[2]


def test_the_documents_own_model_counts_7_721_988_096(tmp_path: Path) -> None:
    write_config(tmp_path, CUSTOM_MHA)
    report = inspect(str(tmp_path))
    assert report.parameters.theory == 7_721_988_096
    counts = {part.name: part.parameters for part in report.components}
    assert counts["embedding"] == counts["lm_head"] == 622_854_144
    assert report.attention.kind == "MHA"


def test_the_documents_theory_is_explained_by_qk_norm_taken_too_wide(tmp_path: Path) -> None:
    write_config(tmp_path, CUSTOM_MHA)
    check = inspect(str(tmp_path), expected_parameters=7_722_242_048).checks[0]
    assert check.difference == 253_952
    assert [(cause.name, cause.parameters) for cause in check.causes] == [("qk_norm_wide", 253_952)]
    assert check.residual == 0


def test_gqa_with_8_of_32_heads_would_save_75_per_cent(tmp_path: Path) -> None:
    write_config(tmp_path, CUSTOM_MHA)
    text = shown(inspect(str(tmp_path)), "params")
    assert "若改用 8 个 KV 头的 GQA，KV 缓存可减少 75.00%" in text
    assert "25" not in re.findall(r"减少 (\d+)\.\d+%", text)


def test_no_model_is_told_that_it_uses_another_attention(tmp_path: Path) -> None:
    write_config(tmp_path, CUSTOM_MHA)
    mha = inspect(str(tmp_path))
    for command in ("structure", "attention", "config"):
        text = shown(mha, command, "en", explain=True)
        assert "Multi-head attention" in text or "multi-head attention" in text
        assert "rouped-query attention" not in text

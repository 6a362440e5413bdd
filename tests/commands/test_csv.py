"""`--format csv`: read back by Python's csv module, with the numbers of the JSON; and `models FILTER`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from qwen_inspect.options.output import IN_CSV

from ..support.invoking import Capture, invoke, refusal
from ..support.models import TINY_QWEN3, write_config

MODEL = "catalog:Qwen/Qwen3-0.6B"


def rows(capsys: Capture, *words: str | Path) -> list[dict[str, str]]:
    done = invoke(capsys, *words, "--format", "csv", "-q")
    assert (done.code, done.err) == (0, "")
    assert done.out.count("\n") == done.out.count("\r\n")  # RFC 4180, 2.1
    return list(csv.DictReader(io.StringIO(done.out, newline=""), strict=True))


def test_weights_are_rows_with_whole_bytes(capsys: Capture) -> None:
    tensors = rows(capsys, "weights", MODEL)
    assert list(tensors[0]) == ["name", "shape", "dtype", "elements", "bytes", "file"]
    embedding = next(row for row in tensors if row["name"] == "model.embed_tokens.weight")
    # vocab_size 151,936 and hidden_size 1,024 of its config.json, in bfloat16.
    assert embedding["shape"] == "151936x1024"
    assert int(embedding["bytes"]) == 151_936 * 1_024 * 2
    assert embedding["file"] == ""  # unknown
    names = [row["name"] for row in tensors]
    assert names == sorted(names)
    largest = [int(row["bytes"]) for row in rows(capsys, "weights", MODEL, "--sort", "size")]
    assert largest == sorted(largest, reverse=True)
    # Tied, lm_head.weight is stored as well.
    assert [row["name"] for row in rows(capsys, "weights", MODEL, "--top", "2")] == [
        "lm_head.weight",
        embedding["name"],
    ]


def test_layers_and_components_are_rows(capsys: Capture) -> None:
    layers = rows(capsys, "attention", MODEL)
    # 28 layers; K and V of 8 heads of 128 in bfloat16 (config.json).
    assert [(row["index"], row["bytes_per_token"]) for row in layers] == [(str(index), "4096") for index in range(28)]
    # The count of its model card's files: 751,632,384 with the tied head twice, 596,049,920 without.
    assert sum(int(row["parameters"]) for row in rows(capsys, "params", MODEL)) == 596_049_920


def test_cards_and_models_are_rows(capsys: Capture) -> None:
    ada = next(row for row in rows(capsys, "gpus") if row["name"] == "RTX 4090")
    assert (ada["memory_bytes"], ada["bfloat16"]) == (str(24 << 30), "true")
    assert [row["id"] for row in rows(capsys, "models", "qwen3-30b", "THINKING")] == [
        "Qwen/Qwen3-30B-A3B-Thinking-2507"
    ]
    assert {row["model_type"] for row in rows(capsys, "models", "vl")} <= {
        "internvl",
        "qwen2_5_vl",
        "qwen2_vl",
        "qwen3_vl",
        "qwen3_vl_moe",
    }


def test_compared_models_are_columns(capsys: Capture) -> None:
    facts = rows(capsys, "compare", MODEL, "catalog:Qwen/Qwen3-8B")
    layers = next(row for row in facts if row["name"] == "layers")
    # num_hidden_layers of the two config.json.
    assert (layers["1 Qwen/Qwen3-0.6B"], layers["2 Qwen/Qwen3-8B"], layers["same"]) == ("28", "36", "false")


def test_each_card_is_a_row(capsys: Capture) -> None:
    cards = rows(capsys, "fit", MODEL, "--gpu", "4090,T4")
    assert [row["gpu.name"] for row in cards] == ["RTX 4090", "T4"]
    answer = json.loads(invoke(capsys, "fit", MODEL, "--gpu", "4090,T4", "--format", "json", "-q").out)
    assert [int(row["required_bytes"]) for row in cards] == [card["required_bytes"] for card in answer["cards"]]


def test_each_device_of_a_llama_cpp_command_is_a_row(capsys: Capture) -> None:
    words = ("fit", MODEL, "--llama-cpp", "llama-server -c 4096", "--gpu", "4090,T4")
    devices = rows(capsys, *words)
    assert [(row["device"], row["gpu.name"]) for row in devices] == [
        ("CUDA0", "RTX 4090"),
        ("CUDA1", "T4"),
        ("CPU", ""),
    ]
    answer = json.loads(invoke(capsys, *words, "--format", "json", "-q").out)
    assert [int(row["required_bytes"]) for row in devices] == [one["required_bytes"] for one in answer["devices"]]


def test_a_text_that_a_spreadsheet_would_compute_is_quoted(tmp_path: Path, capsys: Capture) -> None:
    keys = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "plain, with a comma", 'a "quoted" one', "two\nlines"]
    write_config(tmp_path, {**TINY_QWEN3, **{key: key for key in keys}})
    config = {row["key"]: row["value"] for row in rows(capsys, "config", tmp_path)}
    assert config["hidden_size"] == "64"
    for key in keys:
        shown = ("'" if key[0] in "=+-@\t" else "") + key.replace("\t", "\\t").replace("\n", "\\n")
        assert config[shown] == shown


@pytest.mark.parametrize("command", ["structure", "memory"])
def test_an_answer_of_several_tables_is_no_csv(command: str, capsys: Capture) -> None:
    assert "use --format json, or csv with one of config, weights" in refusal(capsys, 2, command, "--format", "csv")
    assert command not in IN_CSV


def test_a_filter_that_fits_no_model_names_the_nearest(capsys: Capture) -> None:
    assert "Qwen/Qwen3-30B-A3B" in refusal(capsys, 3, "models", "Qwen3-30B-B3A")

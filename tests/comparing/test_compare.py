"""`compare`: models of any source side by side; what differs, what is not known, and what became of each tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser

from qwen_inspect.checkpoint import DType, Tensor
from qwen_inspect.comparing.contrast import config_rows, tensor_changes
from qwen_inspect.comparing.side_by_side import compare
from qwen_inspect.language import LANGUAGES, Language
from qwen_inspect.renderers import html, markdown, terminal
from qwen_inspect.renderers.blocks import Folded, Table
from qwen_inspect.renderers.document import View, document
from qwen_inspect.results.compare import FactRow

from ..support.hostile import HOSTILE_NAMES
from ..support.invoking import Capture
from ..support.models import TINY_QWEN3, run, write_config, write_sparse
from ..support.pages import ATTACKS, opened
from ..support.runs import a_run
from ..support.schema import assert_keeps_to_the_schema

SMALL, LARGE, EXPERTS = (f"catalog:Qwen/Qwen3-{size}" for size in ("0.6B", "8B", "30B-A3B"))


def compared(*models: str | Path, code: int = 0) -> dict[str, Any]:
    done = run("compare", *models, "--format", "json")
    assert done.code == code, done.err
    found: dict[str, Any] = json.loads(done.out)
    assert_keeps_to_the_schema(found)
    return found


def facts(found: Mapping[str, Any]) -> dict[tuple[str, str], list[Any]]:
    return {(row["section"], row["name"]): row["values"] for row in found["side_by_side"]["facts"]}


def test_models_stand_side_by_side_with_their_figures() -> None:
    found = facts(compared(SMALL, LARGE, EXPERTS))
    # Counts and bytes per token from the documents of this project; heads from the releases' configurations.
    assert found["parameters", "unique"] == [596_049_920, 8_190_735_360, 30_532_122_624]
    assert found["parameters", "active"] == [596_049_920, 8_190_735_360, 3_353_032_704]
    assert found["parameters", "active_non_embedding"] == [440_467_456, 6_946_075_648, 2_730_702_848]
    assert found["cache", "token_bytes"] == [114_688, 147_456, 98_304]
    assert found["attention", "kv_heads"] == [8, 8, 4]
    assert found["components", "router"] == [0, 0, 12_582_912]  # 48 layers x 128 experts x 2048


def test_linear_attention_stands_beside_softmax(capsys: Capture) -> None:
    rows = compared(LARGE, "catalog:Qwen/Qwen3-Next-80B-A3B-Instruct")["side_by_side"]["facts"]
    found = {(row["layer_kind"], row["name"]): row["values"] for row in rows if row["section"] == "attention"}
    # The release's configuration: 48 layers, every fourth full; linear_num_key_heads and linear_num_value_heads.
    assert found["full", "layers"] == [36, 12]
    assert found["linear", "layers"] == [0, 36]
    assert found["linear", "key_heads"] == ["", 16]
    assert found["linear", "value_heads"] == ["", 32]


def test_the_memory_is_the_one_that_memory_tells() -> None:
    options = ("--batch", "3", "--context", "5k", "--new-tokens", "17", "--format", "json")
    found = facts(json.loads(run("compare", SMALL, LARGE, *options).out))
    for index, model in enumerate((SMALL, LARGE)):
        alone = json.loads(run("memory", model, *options).out)["predicted"]
        for name in ("peak", "steady"):
            assert found["memory", name][index] == alone[f"{name}_allocated_bytes"]
        assert found["memory", "reserved"][index] == alone["peak_reserved_bytes"]


def test_a_comparison_that_asks_no_hub_exits_with_0_whatever_differs() -> None:
    found = compared(SMALL, LARGE)
    assert (found["identical"], found["files"], found["left"]) == (None, None, None)
    assert [row["key"] for row in found["side_by_side"]["config"] if row["same"] is False] == [
        "hidden_size",
        "intermediate_size",
        "max_window_layers",
        "num_attention_heads",
        "num_hidden_layers",
        "tie_word_embeddings",
    ]


def test_what_differs_comes_first_and_what_is_equal_is_folded() -> None:
    text = run("compare", SMALL, LARGE).out
    assert text.index("=== Differences ===") < text.index("=== Tensors against A ===") < text.index("=== Equal ===")
    assert "vocab_size" not in text
    assert "vocab_size" in run("compare", SMALL, LARGE, "--expand").out
    assert "vocab_size" in run("compare", SMALL, LARGE, "--format", "md").out.partition("<details><summary>")[2]
    assert "Nothing known of all models differs." in run("compare", SMALL, SMALL).out


def test_one_model_is_refused() -> None:
    done = run("compare", SMALL)
    assert (done.code, done.out) == (2, "")
    assert "two or more" in done.err


# --- tensors


def stored(directory: Path, tensors: list[Tensor], **changes: Any) -> Path:
    write_config(directory, {**TINY_QWEN3, **changes})
    write_sparse(directory / "model.safetensors", tensors)
    return directory


@pytest.fixture(scope="module")
def tuned(tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a fine-tune could leave it: two tokens more, one norm in float32, one gone, a head of its own."""
    from safetensors import safe_open

    with safe_open(tiny_qwen3 / "model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping
    shapes["model.embed_tokens.weight"] = (258, 64)
    shapes["score.weight"] = (3, 64)
    del shapes["model.layers.1.self_attn.k_norm.weight"]
    typed = [
        Tensor(name, shape, DType.F32 if name == "model.norm.weight" else DType.BF16) for name, shape in shapes.items()
    ]
    return stored(tmp_path_factory.mktemp("tuned"), typed, vocab_size=258)


def test_each_tensors_change_is_named(tiny_qwen3: Path, tuned: Path, capsys: Capture) -> None:
    found = compared(tiny_qwen3, tuned)["side_by_side"]["tensors"][0]
    assert (found["base_origin"], found["origin"]) == ("stored", "stored")
    assert [(one["kind"], one["name"]) for one in found["changes"]] == [
        ("added", "score.weight"),
        ("removed", "model.layers.1.self_attn.k_norm.weight"),
        ("reshaped", "model.embed_tokens.weight"),
        ("retyped", "model.norm.weight"),
    ]
    assert found["changes"][2]["before"] == {"shape": [256, 64], "dtype": "bfloat16"}
    assert found["changes"][2]["after"] == {"shape": [258, 64], "dtype": "bfloat16"}
    assert found["counts"] == {"added": 1, "removed": 1, "reshaped": 1, "retyped": 1}
    assert found["equal"] == 21  # 2 layers x 11, the embedding and the last norm: 24, less the three above


def test_a_configuration_alone_is_held_against_files_by_theory(
    tiny_qwen3: Path, tmp_path: Path, capsys: Capture
) -> None:
    config = write_config(tmp_path / "alone", json.loads((tiny_qwen3 / "config.json").read_text(encoding="utf-8")))
    found = compared(tiny_qwen3, config)["side_by_side"]["tensors"][0]
    assert (found["base_origin"], found["origin"], found["changes"]) == ("stored", "theory", [])
    wider = write_config(tmp_path / "wider", {**TINY_QWEN3, "intermediate_size": 128})
    changes = compared(config, wider)["side_by_side"]["tensors"][0]["changes"]
    assert {(one["kind"], one["name"].split(".")[-3]) for one in changes} == {("reshaped", "mlp")}
    assert len(changes) == 6  # gate, up and down of 2 layers


def test_files_without_the_decoders_prefix_are_matched(tiny_qwen3: Path, tmp_path: Path) -> None:
    bare = [Tensor(f"layers.{layer}.input_layernorm.weight", (64,), DType.BF16) for layer in range(2)]
    found = compared(tiny_qwen3, stored(tmp_path / "bare", bare))["side_by_side"]["tensors"][0]
    assert (found["equal"], found["counts"]["added"], found["counts"]["removed"]) == (2, 0, 22)
    assert 'without the prefix "model."' in found["notes"][0]


def test_what_is_not_known_of_one_model_leaves_the_rest_standing(tmp_path: Path) -> None:
    unknown = stored(tmp_path / "unknown", [Tensor("w", (4, 8), DType.F16)], model_type="mystery")
    found = compared(SMALL, unknown)
    values = facts(found)
    assert values["parameters", "unique"] == [596_049_920, None]
    assert values["memory", "weights"] == [1_192_099_840, 64]  # 4 x 8 x 2 bytes
    assert found["side_by_side"]["tensors"][0]["counts"]["added"] == 1
    row = next(row for row in found["side_by_side"]["config"] if row["key"] == "model_type")
    assert (row["values"], row["same"]) == (["qwen3", "mystery"], False)
    shown = run("compare", SMALL, unknown).out
    assert "=== Not known of every model ===" in shown
    assert "mystery" in shown


def test_a_file_without_a_configuration_differs_in_no_key(tiny_qwen3: Path, tmp_path: Path) -> None:
    alone = tmp_path / "model.safetensors"
    write_sparse(alone, [Tensor("model.norm.weight", (64,), DType.BF16)])
    found = compared(tiny_qwen3, alone)["side_by_side"]
    assert {row["same"] for row in found["config"]} == {None}
    assert {tuple(row["present"]) for row in found["config"]} == {(True, None)}
    assert (found["tensors"][0]["equal"], found["tensors"][0]["counts"]["removed"]) == (1, 23)


TENSORS = st.dictionaries(
    st.sampled_from([f"model.{name}" for name in "abcdefgh"]),
    st.tuples(st.sampled_from([(2,), (3,), (2, 2)]), st.sampled_from([DType.F16, DType.F32])),
)


@given(before=TENSORS, after=TENSORS)
def test_every_tensor_is_counted_where_it_belongs(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    left, right = ([Tensor(name, *form) for name, form in side.items()] for side in (before, after))
    found = tensor_changes(left, right, base_origin="stored", origin="stored")
    changed = {one.name for one in found.changes if one.before and one.after}
    assert found.equal + len(changed) + found.count("removed") == len(left)
    assert found.equal + len(changed) + found.count("added") == len(right)
    mirrored = tensor_changes(right, left, base_origin="stored", origin="stored")
    assert (mirrored.count("added"), mirrored.count("removed")) == (found.count("removed"), found.count("added"))


# --- values


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (1_000_000, 1_000_000.0, True),
        (1, True, False),
        (0, False, False),
        (None, 0, False),
        ({"a": 1, "b": [2.0]}, {"b": [2], "a": 1.0}, True),
        ([1, 2], [2, 1], False),
        ("1", 1, False),
    ],
)
def test_values_are_equal_whichever_way_json_spells_them(left: object, right: object, same: bool) -> None:
    assert [row.same for row in config_rows([{"key": left}, {"key": right}])] == [same]


def test_a_key_that_is_not_there_is_not_null() -> None:
    (row,) = config_rows([{"key": 1}, {}], [(), ("key",)])
    assert (row.present, row.same) == ((True, None), None)  # the release has it
    (row,) = config_rows([{"key": None}, {}])
    assert (row.same, row.present) == (False, (True, False))


def test_an_unknown_value_neither_differs_nor_agrees() -> None:
    def same(*values: int | None) -> bool | None:
        return FactRow(section="cache", name="token_bytes", values=values).same

    assert [same(1, 1), same(1, 2), same(1, None), same(1, None, 2), same(None, None)] == [
        True,
        False,
        None,
        False,
        None,
    ]


# --- documents


@pytest.fixture(scope="module")
def hostile(tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Directories, keys, values and tensors with names that try to break out."""
    names = [*HOSTILE_NAMES, *ATTACKS, "x" * 5000]
    directory = tmp_path_factory.mktemp("hostile") / "a|b`c`<script>window.broken=1<"
    tensors = [Tensor(name, (2, 3), DType.F16) for name in names]
    stored(directory, tensors, **{name: name for name in names})
    return compare([str(tiny_qwen3), str(directory)], a_run())


@pytest.mark.parametrize("language", LANGUAGES)
def test_hostile_names_stay_in_their_cells(browser: Browser, tmp_path: Path, hostile: Any, language: str) -> None:
    say = Language(language)
    blocks = document("compare", hostile, say, View())
    tables = [
        block.table if isinstance(block, Folded) else block for block in blocks if isinstance(block, Folded | Table)
    ]
    page = tmp_path / "page.html"
    page.write_text(html.render(blocks, say), encoding="utf-8")
    with opened(browser, page) as shown:
        assert shown.locator("table").count() == len(tables)
        assert shown.locator("tbody tr").count() == sum(len(table.rows) for table in tables)
        assert shown.locator("main script").count() == 0
        assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
    rows = [line for line in markdown.render(blocks).splitlines() if line.startswith("|")]
    assert len(rows) == sum(len(table.rows) + 2 for table in tables)
    text = terminal.render(blocks)
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_a_folded_table_opens_by_keyboard(browser: Browser, tmp_path: Path) -> None:
    subject = compare([SMALL, LARGE], a_run())
    page = tmp_path / "page.html"
    page.write_text(html.render(document("compare", subject, Language("en"), View()), Language("en")), encoding="utf-8")
    with opened(browser, page) as shown:
        cell = shown.get_by_text("vocab_size", exact=True)
        assert not cell.is_visible()
        shown.locator("main > details summary").focus()
        shown.keyboard.press("Enter")
        assert cell.is_visible()


def test_a_summary_cannot_leave_its_markdown_element() -> None:
    text = markdown.render([Folded("</summary><script>\n", Table(["a"], [["b"]], "l"))])
    assert "<script>" not in text
    assert text.count("</summary>") == 1


def test_the_exit_code_is_told_in_the_help() -> None:
    assert "exit 1 where that is not proven" in " ".join(run("compare", "--help").out.split())


def test_what_fits_each_card_is_what_fit_tells_of_each_model() -> None:
    models = ("catalog:Qwen/Qwen3-8B", "catalog:Qwen/Qwen3-0.6B")
    asked = ("--gpu", "4090,a100-80gb", "--batch", "2", "--format", "json")
    compared = json.loads(run("compare", *models, *asked).out)
    assert_keeps_to_the_schema(compared)
    for model, found in zip(models, compared["side_by_side"]["fits"], strict=True):
        cards = json.loads(run("fit", model, *asked).out)["cards"]
        for card, told in zip(found, cards, strict=True):
            assert card["gpu"]["name"] == told["gpu"]["name"]
            assert (card["max_context_tokens"], card["context_tokens_bound"]) == (
                told["max_context_tokens"],
                told["context_tokens_bound"],
            )
            # Both models' limit is 40,960 tokens: no longer contexts are asked for.
            assert [one["context_tokens"] for one in card["contexts"]] == [2048, 8192, 32_768]
            assert card["contexts"][0]["required_bytes"] == told["required_bytes"]
            assert all(one["fits"] is (one["required_bytes"] <= card["available_bytes"]) for one in card["contexts"])


@pytest.mark.parametrize("form", ["table", "md", "html"])
@pytest.mark.parametrize(("language", "word"), [("en", "What fits"), ("zh", "显存是否够用")])
def test_what_fits_is_a_table_of_models_and_cards(form: str, language: str, word: str) -> None:
    shown = run(
        "compare",
        "catalog:Qwen/Qwen3-0.6B",
        "catalog:Qwen/Qwen2.5-0.5B",
        "--gpu",
        "t4",
        "--format",
        form,
        "--lang",
        language,
    )
    assert shown.code == 0
    assert word in shown.out
    assert "T4" in shown.out


def test_a_card_of_no_such_name_is_refused_before_a_model_is_read() -> None:
    shown = run("compare", "catalog:Qwen/Qwen3-0.6B", "catalog:Qwen/None", "--gpu", "5090ti")
    assert (shown.code, shown.out) == (2, "")
    assert "RTX 5090" in shown.err


@pytest.mark.parametrize("options", [["--optimizer", "sgd"], ["--lora", "8"], ["--checkpointing"]], ids=" ".join)
def test_what_is_of_training_alone_is_refused(options: list[str]) -> None:
    shown = run("compare", "catalog:Qwen/Qwen3-0.6B", "catalog:Qwen/Qwen3-1.7B", *options)
    assert (shown.code, shown.out, len(shown.err.splitlines())) == (2, "", 1)
    assert options[0] in shown.err

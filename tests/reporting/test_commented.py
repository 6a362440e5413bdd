"""config.json with comments: still the same JSON, every key with its comment, in lines that a narrow terminal shows whole."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from wcwidth import wcswidth

from qwen_inspect.language import LANGUAGES, Language
from qwen_inspect.loaders.resolve import Access
from qwen_inspect.renderers.blocks import Code, Paragraph
from qwen_inspect.renderers.document import View, document
from qwen_inspect.renderers.document.config import entries, meanings
from qwen_inspect.results.model import Report
from qwen_inspect.structure.inspect import inspect

from ..support.models import TINY_QWEN3, write_config


def report_of(model: str) -> Report:
    return inspect(f"catalog:{model}", access=Access(offline=True))


def commented(report: Report, language: str) -> str:
    blocks = document("config", report, Language(language), View(explain=True))
    return next(block.text for block in blocks if isinstance(block, Code) and block.language == "jsonc")


def without_comments(text: str) -> Any:
    """No value of these models holds `//`."""
    return json.loads(re.sub("//.*", "", text))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("model", ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-VL-8B-Instruct", "Qwen/Qwen3.5-35B-A3B"])
def test_without_its_comments_it_is_the_configuration_in_its_order(model: str, language: str) -> None:
    report = report_of(model)
    text = commented(report, language)
    assert list(entries(without_comments(text))) == list(entries(report.written or {}))
    # A comment for each key, and for the two parts of a vision model.
    parts = sum(part in (report.written or {}) for part in ("text_config", "vision_config"))
    comments = re.findall(r"(?m)(?:^ *// .*\n)+|^.*  // ", text)
    assert len(comments) == len(entries(report.written or {})) + parts
    assert max(map(wcswidth, text.splitlines())) <= 80


def test_the_configuration_of_the_notes_is_whole() -> None:
    """The keys of config-explained.md, a document on Qwen3-0.6B, and bos and eos as in learning-notes.md."""
    config = report_of("Qwen/Qwen3-0.6B").written or {}
    assert (config["attention_dropout"], config["initializer_range"]) == (0.0, 0.02)
    assert (config["transformers_version"], config["use_cache"]) == ("4.51.0", True)
    assert (config["bos_token_id"], config["eos_token_id"]) == (151643, 151645)
    assert list(config) == sorted(config)


def test_a_key_of_one_release_is_no_fact_about_those_like_it() -> None:
    assert "transformers_version" not in (report_of("Qwen/Qwen3-0.6B-Base").written or {})


def test_keys_that_the_catalog_lacks_are_named() -> None:
    paragraphs = [
        block.text
        for block in document("config", report_of("Qwen/Qwen3-30B-A3B"), Language("en"), View())
        if isinstance(block, Paragraph)
    ]
    assert paragraphs == [
        "The catalog's copy lacks keys that the released config.json has: attention_dropout, initializer_range, "
        "transformers_version, use_cache, output_router_logits, router_aux_loss_coef. No figure depends on them."
    ]


WINDOW_KEYS = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")


def test_each_key_about_windows_has_its_own_sentence(tmp_path: Any) -> None:
    written = {
        **TINY_QWEN3,
        "num_hidden_layers": 4,
        "use_sliding_window": True,
        "sliding_window": 64,
        "max_window_layers": 3,
        "layer_types": ["full_attention"] * 3 + ["sliding_attention"],
    }
    write_config(tmp_path, written)
    report = inspect(str(tmp_path))
    sentences = meanings(report, written, Language("en"))
    assert [sentences[key] for key in WINDOW_KEYS] == [
        "sliding windows are on: 1 of 4 layers have one",
        "a layer with a window attends to the last 64 tokens only",
        "the first 3 layers (of 4) have no window, the others have",
        'the kind of attention of each layer: 3 × "full_attention", 1 × "sliding_attention"',
    ]
    released = report_of("Qwen/Qwen3-0.6B")
    sentences = meanings(released, released.written or {}, Language("en"))
    assert [sentences[key] for key in WINDOW_KEYS[:3]] == [
        "sliding windows are off: every layer attends to all earlier tokens",
        "no window",
        "with windows on, the first 28 of 28 layers would have none; no layer has one here",
    ]

"""CONTRIBUTING.md names files that are there, each recipe a few, and every room."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = {part.partition("\n")[0]: part for part in TEXT.split("\n## ") if part.startswith("Add")}
PLACES = (
    "",
    "qwen_inspect",
    "qwen_inspect/renderers",
    "qwen_inspect/architectures",
    "qwen_inspect/options",
    "benchmarks",
)


def test_every_file_that_is_named_is_there() -> None:
    named = {name for name in re.findall(r"`([\w./]+\.(?:py|js|css|json|md|cfg))`", TEXT) if "NAME" not in name}
    assert named
    for name in named:
        assert any((ROOT / place / name).is_file() for place in PLACES), name


def test_every_room_is_in_the_table() -> None:
    package = ROOT / "qwen_inspect"
    rooms = {path.name for path in package.iterdir() if (path / "__init__.py").is_file()}
    assert rooms == {name for name in re.findall(r"`(\w+)/`", TEXT.split("\n## Add")[0]) if (package / name).is_dir()}


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_has_at_most_three_steps(title: str) -> None:
    assert len(re.findall(r"^\d\. ", RECIPES[title], flags=re.MULTILINE)) <= 3

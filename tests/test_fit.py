"""What fits is what `predict` says: the largest that is told fits, one more does not, and every figure adds up."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema

import qwen_inspect

from .conftest import run

SCHEMA = json.loads((Path(qwen_inspect.__file__).parent / "schema" / "report.schema.json").read_text(encoding="utf-8"))


def test_json_keeps_to_the_schema_and_its_terms_add_up() -> None:
    found = json.loads(run("fit", "catalog:Qwen/Qwen3-8B", "--gpu", "4090,h100", "--format", "json").out)
    jsonschema.validate(found, SCHEMA)
    assert [card["gpu"]["name"] for card in found["cards"]] == ["RTX 4090", "H100 SXM 80GB"]
    assert {key: found[key] for key in found["cards"][0]} == found["cards"][0]
    for card in found["cards"]:
        held = sum(term["bytes"] for term in card["terms"])
        assert card["required_bytes"] == held + card["context_bytes"]["high"]
        assert card["low_end"]["required_bytes"] == held + card["context_bytes"]["low"]
        assert card["margin_bytes"] == card["available_bytes"] - card["required_bytes"]

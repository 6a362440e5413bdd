"""The committed JSON Schema, for every test that holds an answer against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

SCHEMA: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "qwen_inspect" / "schema" / "report.schema.json").read_text(encoding="utf-8")
)
QUICK = jsonschema_rs.Draft202012Validator(SCHEMA)


def assert_keeps_to_the_schema(content: object) -> None:
    """Raises jsonschema's ValidationError that says most of what is wrong; that nothing is, the quicker library says."""
    if not QUICK.is_valid(content):
        error = best_match(Draft202012Validator(SCHEMA).iter_errors(content))
        assert error is not None, "jsonschema_rs finds fault with it, and jsonschema none"
        raise error

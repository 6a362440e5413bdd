"""The JSON Schema is generated from the types of renderers/json, and closed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from qwen_inspect.cli import main

from ..support.schema import SCHEMA, assert_keeps_to_the_schema

FOLDER = Path(__file__).parents[2] / "qwen_inspect" / "schema"
# What can be negative: differences, what is left of a card, what is left for a KV cache, in a log too.
SIGNED = {
    *("Cause.parameters", "Unexplained.parameters", "Check.difference", "Check.residual", "MemoryCause.bytes"),
    *("Difference.measured", "Difference.difference", "Difference.residual"),
    *(
        "fit.margin_bytes",
        "Card.margin_bytes",
        "Ends.margin_bytes",
        "EngineCard.margin_bytes",
        "Capacity.kv_budget_bytes",
    ),
    *("LogTerm.printed", "LogTerm.low", "LogTerm.high", "LogTerm.difference"),
}
# Keys that an answer may lack.
OPTIONAL = {"Moment.gathered_bytes", "Moment.adapters_bytes"}
ANY_KEYS = ("config", "versions", "values")


def shapes() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every object of the schema by its name, the commands' by the command."""
    yield from SCHEMA["$defs"].items()
    for answer in SCHEMA["oneOf"]:
        yield answer["properties"]["command"]["const"], answer


def test_the_committed_schema_is_what_make_schema_writes() -> None:
    # In a process of its own, whose TypedDict is the one that pydantic needs before Python 3.12.
    written = subprocess.run([sys.executable, FOLDER / "generate.py", "-"], capture_output=True, check=True)
    assert written.stdout.decode() == (FOLDER / "report.schema.json").read_text(encoding="utf-8")


def test_every_object_is_closed_and_has_all_its_keys() -> None:
    for name, shape in shapes():
        assert shape["additionalProperties"] is False
        assert {f"{name}.{key}" for key in set(shape["properties"]) - set(shape["required"])} <= OPTIONAL


def test_only_differences_and_what_is_left_may_be_negative() -> None:
    unbounded = {
        f"{name}.{key}"
        for name, shape in shapes()
        for key, value in shape["properties"].items()
        if "integer" in str(value.get("type")) and not {"minimum", "enum", "const"} & set(value)
    }
    assert unbounded == SIGNED


def mutations(value: Any) -> Iterator[Any]:
    """A document with, at each of its objects but those with any keys, a key less, a key more, or a value of another type."""
    if isinstance(value, list):
        for index, item in enumerate(value[:1]):
            yield from ([*value[:index], other, *value[index + 1 :]] for other in mutations(item))
    if isinstance(value, dict):
        yield {**value, "unknown": None}
        for key, item in value.items():
            yield {name: other for name, other in value.items() if name != key}
            yield {**value, key: {"unknown": None}}
            if type(item) is int and key not in ("residual", "difference", "margin_bytes"):
                yield {**value, key: -1}
            if key not in ANY_KEYS:
                yield from ({**value, key: other} for other in mutations(item))


@pytest.mark.parametrize(
    "command",
    [["attention"], ["memory"], ["fit", "--engine", "llama.cpp", "--memory", "1GiB"]],
)
def test_a_key_less_or_more_or_of_another_type_is_refused(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*command[:1], "catalog:Qwen/Qwen3-0.6B", *command[1:], "--format", "json", "--quiet"])
    content = json.loads(capsys.readouterr().out)
    assert_keeps_to_the_schema(content)
    answers = [
        answer
        for answer in SCHEMA["oneOf"]
        if jsonschema_rs.Draft202012Validator({**SCHEMA, "oneOf": [answer]}).is_valid(content)
    ]
    validator = jsonschema_rs.Draft202012Validator({**SCHEMA, "oneOf": answers})
    assert [other for other in mutations(content) if validator.is_valid(other)] == []

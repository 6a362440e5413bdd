"""The types in renderers/json -> report.schema.json, or stdout with `-`. Run by `make schema`; needs the dev extra.

Each TypedDict is an object without other keys: its docstring and those below its keys are the descriptions.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
import typing
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import typing_extensions
from pydantic import ConfigDict, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

sys.path.insert(0, str(Path(__file__).parents[2]))
answers: Any = import_module("qwen_inspect.renderers.json")
COMMANDS: tuple[str, ...] = import_module("qwen_inspect.commands").COMMANDS
WITHOUT_DOCUMENT: tuple[str, ...] = import_module("qwen_inspect.commands").WITHOUT_DOCUMENT
# Before the types are made; typing_extensions', which pydantic asks for before Python 3.12.
import_module(f"{answers.__name__}.values").TypedDict = typing_extensions.TypedDict  # type: ignore[attr-defined]

SCHEMA = Path(__file__).with_name("report.schema.json")
CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True)
LONGEST_LINE = 120


class Schema(GenerateJsonSchema):
    """Without titles; null as one more type; shapes named without the suffix of their types."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def normalize_name(self, name: str) -> str:
        return super().normalize_name(name).removesuffix("JSON")

    def nullable_schema(self, schema: Any) -> dict[str, Any]:
        inner = self.generate_inner(schema["schema"])
        if "type" not in inner:
            return {"anyOf": [inner, {"type": "null"}]}
        values = {"enum": [*inner["enum"], None]} if "enum" in inner else {}
        return {**inner, **values, "type": [inner["type"], "null"]}


def generated() -> dict[str, Any]:
    """An object for each command: what every answer begins with, and the keys of the type that its `content` returns."""
    types = _types()
    every_type: Any = typing.Union[tuple(types.values())]  # noqa: UP007
    shapes = TypeAdapter(every_type, config=CONFIG).json_schema(schema_generator=Schema)["$defs"]
    for name, shape in shapes.items():
        del shape["title"]
        for key, description in _descriptions(types[f"{name}JSON"], shapes).items():
            shape["properties"][key].setdefault("description", description)
    commands = [
        _command(command, shapes[_shape(answer)], shapes["Head"])
        for command in COMMANDS
        if command not in WITHOUT_DOCUMENT
        for answer in _answers(_module(command).content, types)
    ]
    return {
        "$schema": Schema.schema_dialect,
        "title": "qwen-inspect --format json",
        "description": "One object for each command. Counts and bytes are integers; null is unknown. share is a fraction of 1.",
        "oneOf": commands,
        "$defs": {name: shapes[name] for name in sorted(_referred(commands, shapes))},
    }


def _module(name: str) -> Any:
    return import_module(f"{answers.__name__}.{name}")


def _types() -> dict[str, Any]:
    """Every TypedDict of every module, by its name."""
    modules = [*(_module(path.stem) for path in sorted(Path(answers.__path__[0]).glob("[a-z]*.py")))]
    return {name: value for module in modules for name, value in vars(module).items() if name.endswith("JSON")}


def _shape(answer: Any) -> str:
    name: str = answer.__name__
    return name.removesuffix("JSON")


def _answers(content: Any, types: Mapping[str, Any]) -> tuple[Any, ...]:
    """The types that a command's `content` returns."""
    returned = eval(content.__annotations__["return"], dict(types))
    return typing.get_args(returned) or (returned,)


def _descriptions(answer: Any, shapes: Mapping[str, Any]) -> dict[str, str]:
    """Of a type's keys, with those of its bases, which pydantic leaves out."""
    bases = [base for base in answer.__orig_bases__ if _shape(base) in shapes]
    inherited = {key: text for base in bases for key, text in _descriptions(base, shapes).items()}
    own = shapes[_shape(answer)]["properties"]
    return inherited | {key: schema["description"] for key, schema in own.items() if "description" in schema}


def _command(command: str, shape: Mapping[str, Any], head: Mapping[str, Any]) -> dict[str, Any]:
    properties = {**head["properties"], "command": {"const": command}, **shape["properties"]}
    return {**shape, "properties": properties, "required": [*head["required"], *shape["required"]]}


def _referred(schema: object, shapes: Mapping[str, Any]) -> set[str]:
    """Names of the shapes that a schema refers to, directly or not."""
    names: set[str] = set()
    new = [schema]
    while new:
        referred = set(re.findall(r"#/\$defs/(\w+)", json.dumps(new))) - names
        names |= referred
        new = [shapes[name] for name in referred]
    return names


def text_of(value: object, indent: str = "") -> str:
    """JSON in lines of at most 120 characters where they can be broken."""
    line = json.dumps(value)
    if len(indent) + len(line) <= LONGEST_LINE or not isinstance(value, dict | list):
        return line
    if isinstance(value, dict):
        items = (f"{json.dumps(key)}: {text_of(item, indent + ' ')}" for key, item in value.items())
        return _wrapped("{", items, "}", indent)
    if any(isinstance(item, dict) for item in value):
        return _wrapped("[", (text_of(item, indent + " ") for item in value), "]", indent)
    return _wrapped("[", textwrap.wrap(line[1:-1], LONGEST_LINE, break_on_hyphens=False), "]", indent, separator="")


def _wrapped(start: str, items: Iterable[str], end: str, indent: str, separator: str = ",") -> str:
    return f"{start}\n{indent} " + f"{separator}\n{indent} ".join(items) + f"\n{indent}{end}"


if __name__ == "__main__":
    if sys.argv[1:] == ["-"]:
        print(text_of(generated()))
    else:
        SCHEMA.write_text(text_of(generated()) + "\n", encoding="utf-8")

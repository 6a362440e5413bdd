"""The table of a result as CSV (RFC 4180), from its JSON: the same names, bytes and counts as integers, nothing where unknown.

Names come from repositories that anyone can write. So a text that a spreadsheet would take for a formula gets an apostrophe in
front (source: OWASP, CSV Injection), and control characters are escaped, as on a terminal. The JSON has them exactly.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..language import Language
from ..standard import import_module
from ..typed import Any
from .terminal import safe

LISTS = ("shape", "aliases", "device_names")  # other lists are tables of their own
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def render(command: str, subject: Any, say: Language, *, sort: str, top: int | None) -> str:
    """The table of a command of `options.output.IN_CSV`. sort, top: of tensors, as in `View`."""
    content = import_module(f"{__package__}.json.{command}").content(subject, say)
    rows = [dict(_flat(row)) for row in rows_of(command, content, sort, top)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    written = csv.writer(text)
    written.writerow(map(_cell, columns))
    written.writerows([_cell(row.get(name)) for name in columns] for row in rows)
    return text.getvalue()


def rows_of(command: str, content: Mapping[str, Any], sort: str, top: int | None) -> Sequence[Mapping[str, Any]]:
    rows: Iterable[Mapping[str, Any]]
    match command:
        case "weights":
            by_name = sorted(content["tensors"], key=lambda row: row["name"])
            by_size = sorted(by_name, key=lambda row: -row["bytes"])
            rows = by_name if sort == "name" and top is None else by_size[:top]
        case "params":
            rows = content["components"]
        case "attention":
            rows = content["cache"]["layers"]
        case "fit" if "devices" in content:  # of a command of llama.cpp, whose cards are used together
            rows = content["devices"]
        case "fit":
            rows = content["cards"]
        case "config":
            rows = [{"key": key, "value": _text(value)} for key, value in content["config"].items()]
        case "compare" if content["side_by_side"] is None:
            rows = content["files"]
        case "compare":
            rows = _facts(content["side_by_side"])
        case _:
            rows = content[command]
    return list(rows)


def _facts(sides: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The facts, with a column for each model, numbered: two may have the same name."""
    for fact in sides["facts"]:
        yield {
            **{key: fact[key] for key in ("section", "layer_kind", "name", "unit")},
            **{
                f"{number} {model['id']}": value
                for number, (model, value) in enumerate(zip(sides["models"], fact["values"], strict=True), 1)
            },
            "same": fact["same"],
        }


def _flat(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values, those of an object as "object.key"; without the lists within the row."""
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list) or key in LISTS:
            yield prefix + key, value


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case str():
            return safe(f"'{value}" if value.startswith(FORMULA) else value)
        case list() if all(type(item) is int for item in value):
            return "x".join(map(str, value))  # a shape
        case list():
            return _cell("; ".join(map(str, value)))
    return _text(value)


def _text(value: Any) -> str:
    """A configuration's value: a text as it is, all else as in JSON."""
    return value if isinstance(value, str) else json.dumps(value)

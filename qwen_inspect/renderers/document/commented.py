"""config.json with a comment at each key (JSON with comments)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from ...typed import Any
from ..characters import width
from ..wrapping import wrapped

WIDTH = 80  # columns: a narrow terminal's
COMMENT_COLUMN = 36


def commented(config: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """The configuration in its own order. comments: by key, nested ones as "text_config.hidden_size".

    A comment stands beside its key if both fit in a line, else above it.
    """
    return "\n".join(["{", *_members(config, comments, "", 1), "}"])


def _members(config: Mapping[str, Any], comments: Mapping[str, str], prefix: str, depth: int) -> Iterator[str]:
    margin = "  " * depth
    for number, (key, value) in enumerate(config.items(), 1):
        comma = "," if number < len(config) else ""
        comment = " ".join(comments.get(prefix + str(key), "").split())
        name = json.dumps(key, ensure_ascii=False)
        is_part = isinstance(value, Mapping) and any(label.startswith(f"{prefix}{key}.") for label in comments)
        first, *rest = ["{"] if is_part else _value(value, len(margin) + len(name) + 3)
        line = f"{margin}{name}: {first}{'' if rest or is_part else comma}"
        beside = f"{line.ljust(COMMENT_COLUMN)}  // {comment}"
        if width(beside) > WIDTH:
            beside = f"{line}  // {comment}"
        if comment and width(beside) > WIDTH:
            yield from (f"{margin}// {text}" for text in wrapped(comment, WIDTH - len(margin) - 3))
            yield line
        else:
            yield beside if comment else line
        if is_part:
            yield from _members(value, comments, f"{prefix}{key}.", depth + 1)
            yield f"{margin}}}{comma}"
        elif rest:
            yield from (margin + text for text in rest[:-1])
            yield margin + rest[-1] + comma


def _value(value: object, column: int) -> list[str]:
    """A value's lines: one if it fits behind its key, else the entries of a list or an object, as many in a line as fit."""
    line = json.dumps(value, ensure_ascii=False)
    if column + width(line) < WIDTH or not isinstance(value, list | dict) or not value:
        return [line]
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, indent=2).splitlines()
    entries = [json.dumps(entry, ensure_ascii=False) for entry in value]
    lines = [""]
    for number, entry in enumerate(entries, 1):
        text = entry + ("," if number < len(entries) else "")
        if lines[-1] and width(lines[-1]) + width(text) + 6 > WIDTH:
            lines.append("")
        lines[-1] += f" {text}" if lines[-1] else text
    return ["[", *(f"  {line}" for line in lines), "]"]

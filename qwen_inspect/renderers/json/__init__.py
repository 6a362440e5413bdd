"""Report -> JSON: the keys that scripts rely on. Counts and bytes are integers; unknown is null. A module a command, by name."""

from __future__ import annotations

import json
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...language import Language

if TYPE_CHECKING:
    from .common import HeadJSON


def render(command: str, subject: Any, say: Language) -> str:
    """One object for the command; `subject` is a Report, or for `models` the catalog's entries."""
    head: HeadJSON = {"schema_version": 1, "tool_version": __version__, "command": command}
    content: dict[str, Any] = import_module(f"{__name__}.{command}").content(subject, say)
    # Escaped, so that it is JSON in any encoding, and harmless on a terminal.
    return json.dumps({**head, **content}, indent=2).replace("\x7f", "\\u007f") + "\n"

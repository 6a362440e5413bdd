"""Report -> JSON, the contract with scripts. Counts and bytes are integers; unknown is null. One module per command."""

from __future__ import annotations

import json

from ... import __version__
from ...language import Language
from ...standard import import_module
from ...typed import TYPE_CHECKING, Any
from .. import answers

if TYPE_CHECKING:
    from .common import HeadJSON


def render(command: str, subject: Any, say: Language) -> str:
    """The command's JSON object. subject: the value that the command computed, such as a Report or a FitReport."""
    head: HeadJSON = {
        "schema_version": 1,
        "tool_version": __version__,
        "command": command,
        "answer": answers.text(command, subject, say),
    }
    content: dict[str, Any] = import_module(f"{__name__}.{command}").content(subject, say)
    # ASCII only, and DEL escaped: valid in any encoding, harmless on a terminal.
    return json.dumps({**head, **content}, indent=2).replace("\x7f", "\\u007f") + "\n"

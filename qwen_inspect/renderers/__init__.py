"""Report -> text; never prints. A format is one function here: add it, and its line in FORMATS."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

# The module that renders each format of `--format`; imported only when asked for.
FORMATS: Mapping[str, str] = {"table": "terminal", "md": "markdown", "json": "json"}


def renderer(name: str) -> object:
    """The module of a format: `render(blocks)` for documents, or for json `render(command, report, say)`."""
    return import_module(f"{__name__}.{FORMATS[name]}")

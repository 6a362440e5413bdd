"""What each command does with its options: a module each, imported when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib import import_module

from ..language import Language

COMMANDS: Mapping[str, str] = {
    "structure": "model",
    "config": "model",
    "weights": "model",
    "params": "model",
    "attention": "model",
    "memory": "memory",
    "fit": "fit",
    "diagram": "diagram",
    "compare": "compare",
    "report": "report",
    "models": "tables",
    "gpus": "tables",
}


def run(options: argparse.Namespace, say: Language) -> int:
    """Runs `options.command` and returns its exit code; QwenInspectError for what it refuses."""
    code: int = import_module(f"{__name__}.{COMMANDS[options.command]}").run(options, say)
    return code

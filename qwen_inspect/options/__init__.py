"""Options that several commands share: how they are declared, what they ask for and what they exclude, side by side.

A module a group: `model` (which model, and what may be read for it), `prediction` (the run that is predicted), `output` (where
an answer goes); `values` reads what is typed. Nothing heavy is imported before a command runs, for `--help` needs these.
"""

from __future__ import annotations

import argparse


def flag(name: str) -> str:
    """An option as it is typed: "zero_stage" -> "--zero-stage"."""
    return f"--{name.replace('_', '-')}"


def given(options: argparse.Namespace, *names: str) -> list[str]:
    """Those of the options `names` that were typed, as they are typed; each of them is None or False where it was not."""
    values = {name: getattr(options, name) for name in names}
    return [flag(name) for name, value in values.items() if value is not None and value is not False]

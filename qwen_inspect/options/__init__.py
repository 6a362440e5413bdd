"""Options that several commands share: their declaration, their meaning and what they exclude, in one place.

One module for each group: `model` (the model, and access to it), `prediction` (the run to predict), `output` (where the answer
goes); `values` parses the texts. Heavy imports wait until a command runs, so that `--help` stays fast.
"""

from __future__ import annotations

from .parser import Namespace


def flag(name: str) -> str:
    """The option's name on the command line: "zero_stage" -> "--zero-stage"."""
    return f"--{name.replace('_', '-')}"


def given(options: Namespace, *names: str) -> list[str]:
    """The flags of those of `names` that the user typed. Their default must be None or False."""
    values = {name: getattr(options, name) for name in names}
    return [flag(name) for name, value in values.items() if value is not None and value is not False]

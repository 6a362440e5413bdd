"""The commands: one module each, with the command's name, `declare(command, say)` and `run(options, say)`.

`declare` adds the command's options to its parser. `run` returns the exit code and raises QwenInspectError. A module is
imported only if its command is typed; what `--help` does not need is imported inside `run`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

from .. import __version__
from ..language import LANGUAGES, Language

# In the order of --help.
COMMANDS = (
    "structure",
    "config",
    "weights",
    "params",
    "attention",
    "memory",
    "fit",
    "diagram",
    "compare",
    "report",
    "models",
    "gpus",
)


class WrongArgumentError(Exception):
    """The arguments are wrong; the message is a sentence."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises WrongArgumentError instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise WrongArgumentError(message)


def language_choice(words: Sequence[str]) -> str:
    """The value of `--lang`, read before the arguments are parsed, because their help depends on it."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option == "--lang":
            chosen = value if equals else following
            return chosen if chosen in LANGUAGES else "auto"
    return "auto"


def parser(say: Language, words: Sequence[str]) -> argparse.ArgumentParser:
    """The program's parser. Only commands among `words` get their options: declaring all would slow down short commands.

    The parsed options include the command's function, as `run`.
    """
    shape = partial(argparse.HelpFormatter, width=_help_width(words))
    settings: dict[str, Any] = {"add_help": False, "allow_abbrev": False, "formatter_class": shape}
    program = Parser(prog="qwen-inspect", description=say("help_program"), **settings)
    program.add_argument("-h", "--help", action="help", help=say("help_help"))
    program.add_argument("--version", action="version", version=f"qwen-inspect {__version__}", help=say("help_version"))
    program.add_argument("--lang", choices=("auto", *LANGUAGES), default="auto", help=say("help_lang"))
    commands = program.add_subparsers(
        dest="command", required=True, metavar=say("help_command"), parser_class=Parser, prog=program.prog
    )
    for name in COMMANDS:
        text = say(f"help_{name}")
        command = commands.add_parser(name, help=text, description=text, **settings)
        if name in words:
            module = import_module(f"{__name__}.{name}")
            module.declare(command, say)
            command.set_defaults(run=module.run)
    return program


def _help_width(words: Sequence[str]) -> int:
    """argparse's own width for help. Without --help a constant: argparse would look it up for every option."""
    if not {"-h", "--help"} & set(words):
        return 80
    from shutil import get_terminal_size

    return get_terminal_size().columns - 2

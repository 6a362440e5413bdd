"""The commands: a module each, named as it is typed, with `declare(command, say)` and `run(options, say)`.

`declare` adds the command's options to its parser; `run` returns the exit code, QwenInspectError for what it refuses. A
module is imported where its command is typed, and imports inside of `run` what `--help` does not need.
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
    """What is wrong with the arguments, in a sentence."""


class Parser(argparse.ArgumentParser):
    """argparse, with one line for a wrong argument instead of the usage."""

    def error(self, message: str) -> NoReturn:
        raise WrongArgumentError(message)


def language_choice(words: Sequence[str]) -> str:
    """What `--lang` says, before the arguments are parsed: their help is in that language too."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option == "--lang":
            chosen = value if equals else following
            return chosen if chosen in LANGUAGES else "auto"
    return "auto"


def parser(say: Language, words: Sequence[str]) -> argparse.ArgumentParser:
    """The program's, with the options of the commands that are among `words`: all of them take longer than a short command.

    What it parses has the command's `run`.
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
    """argparse's own, which it would look up once for every option, whether help is asked for or not."""
    if not {"-h", "--help"} & set(words):
        return 80
    from shutil import get_terminal_size

    return get_terminal_size().columns - 2

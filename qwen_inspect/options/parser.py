"""The parser of a command's options: its errors are sentences in the user's language that say what to type instead."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NoReturn

from ..language import Language

PROGRAM = "qwen-inspect"
LONGEST_FOUND = 80  # characters of what was typed that are compared with known names


class WrongArgumentError(Exception):
    """The arguments are wrong; the message is a sentence."""


class UnknownOptionError(Exception):
    """The command has no such option; the message is its name."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises WrongArgumentError instead of printing the usage and exiting.

    Choices are matched in any case. command: its name, empty for the program without a command.
    """

    def __init__(self, command: str, say: Language) -> None:
        super().__init__(
            prog=f"{PROGRAM} {command}".rstrip(),
            add_help=False,
            allow_abbrev=False,
            exit_on_error=False,
            # A constant width: argparse would ask for the terminal's at each option that is declared.
            formatter_class=partial(argparse.HelpFormatter, width=80),
        )
        self.command = command
        self.say = say

    @property
    def actions(self) -> Sequence[argparse.Action]:
        """Everything that was declared, in that order."""
        return self._actions

    @property
    def names(self) -> Sequence[str]:
        """Every way to write an option."""
        return [name for action in self.actions for name in action.option_strings]

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        try:
            options, rest = self.parse_known_args(words)
        except argparse.ArgumentError as error:  # the only one left to argparse: --offline=yes
            raise WrongArgumentError(self.say("usage_takes_no_value", option=error.argument_name)) from None
        # argparse takes the value of an unknown option for a positional argument, so options are looked for first.
        for word in sorted(rest, key=lambda word: not word.startswith("-")):
            if word.startswith("-"):
                raise UnknownOptionError(word.partition("=")[0])
            raise WrongArgumentError(self.say("usage_too_many", found=word, program=self.prog))
        return options

    def error(self, message: str) -> NoReturn:
        raise WrongArgumentError(message)

    def _match_argument(self, action: argparse.Action, arg_strings_pattern: str) -> int:
        try:
            return super()._match_argument(action, arg_strings_pattern)
        except argparse.ArgumentError:
            name = action.option_strings[-1]
            shown = f"{name} {action.metavar or '|'.join(map(str, action.choices or ()))}"
            raise WrongArgumentError(self.say("usage_value_missing", option=name, shown=shown)) from None

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            value = super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            raise WrongArgumentError(self.say("usage_value", option=_name(action), reason=error.message)) from None
        if action.choices is None or value in action.choices or not isinstance(value, str):
            return value
        return {str(choice).lower(): choice for choice in action.choices}.get(value.lower(), value)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices, found = [str(choice) for choice in action.choices], str(value)
        hint = did_you_mean(found, choices, self.say)
        key = "usage_choice_near" if hint else "usage_choice"
        values = {"option": _name(action), "choices": ", ".join(choices), "found": found, "hint": hint}
        raise WrongArgumentError(self.say(key, **values))


def did_you_mean(found: str, known: Iterable[str], say: Language) -> str:
    """A question with the names that look like `found`, or an empty text."""
    similar = near(found, known)
    return say("usage_did_you_mean", names=say("usage_or").join(similar)) if similar else ""


def near(found: str, known: Iterable[str]) -> list[str]:
    """Up to three names that begin with `found` or look like it, in any case; the likeliest first."""
    from difflib import get_close_matches

    wanted = found[:LONGEST_FOUND].lower()
    names = {name.lower(): name for name in known}
    beginning = [name for name in names if len(wanted.strip("-")) > 1 and name.startswith(wanted)]
    return [names[name] for name in dict.fromkeys((*beginning, *get_close_matches(wanted, names, 3, 0.7)))][:3]


def _name(action: argparse.Action) -> str:
    if action.option_strings:
        return action.option_strings[-1]
    metavar = str(action.metavar or action.dest)
    return action.dest.upper() if "|" in metavar else metavar  # a metavar that lists the choices names nothing

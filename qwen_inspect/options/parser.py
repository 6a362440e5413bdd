"""The parser of a command's options: its errors are sentences in the user's language that say what to type instead.

Options are declared and written as with `argparse`, which is not used: with all that it imports it takes half as long as a bare
Python's start, and every sentence of it would have to be replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ..language import Language
from ..typed import TYPE_CHECKING, Any, Literal
from ..values import dataclass

PROGRAM = "qwen-inspect"
LONGEST_FOUND = 80  # characters of what was typed that are compared with known names
Kind = Literal["store", "store_true", "store_false", "append", "switch"]
UNSET: Any = object()
WITHOUT_VALUE: Mapping[str, Any] = {"store_true": False, "store_false": True, "switch": None}  # with their defaults


class WrongArgumentError(Exception):
    """The arguments are wrong; the message is a sentence."""


class UnknownOptionError(Exception):
    """The command has no such option; the message is its name."""


class ValueTextError(Exception):
    """A value cannot be read; the message is a sentence."""


class Namespace:
    """What was typed, or else the default, of each option, by its name."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __contains__(self, name: str) -> bool:
        return name in self.__dict__

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """An option, or a positional argument, which has no `option_strings`.

    kind: "store" a value, "append" one to those typed before, "store_true", "store_false", or a "switch" with a name for no.
    nargs: 0 of an option without a value, "?" or "*" of a positional argument. read: makes the value of its text.
    """

    kind: Kind
    option_strings: tuple[str, ...]
    dest: str
    nargs: int | str | None
    read: Callable[[str], Any] | None
    choices: Sequence[Any] | None
    default: Any
    metavar: str | None
    help: str | None

    @property
    def name(self) -> str:
        """As a message calls it."""
        if self.option_strings:
            return self.option_strings[-1]
        metavar = self.metavar or self.dest
        return self.dest.upper() if "|" in metavar else metavar  # a metavar that lists the choices names nothing


class Parser:
    """The options of a command; WrongArgumentError for what cannot be read. Choices are matched in any case.

    command: its name, empty for the program without a command.
    """

    def __init__(self, command: str, say: Language) -> None:
        self.prog = f"{PROGRAM} {command}".rstrip()
        self.command = command
        self.say = say
        self.actions: list[Action] = []  # everything that was declared, in that order
        self._defaults: dict[str, Any] = {}
        self._by_name: dict[str, Action] = {}

    @property
    def names(self) -> Sequence[str]:
        """Every way to write an option."""
        return list(self._by_name)

    def add_argument(
        self,
        *names: str,
        action: Kind = "store",
        nargs: str | None = None,
        type: Callable[[str], Any] | None = None,  # noqa: A002
        choices: Sequence[Any] | None = None,
        default: Any = UNSET,
        dest: str | None = None,
        metavar: str | None = None,
        help: str | None = None,  # noqa: A002
    ) -> None:
        """Declares an option by all of its names, the last one long, or a positional argument by its only name."""
        is_option = names[0].startswith("-")
        if action == "switch":
            names = (*names, *(f"--no-{name.removeprefix('--')}" for name in names))
        added = Action(
            kind=action,
            option_strings=names if is_option else (),
            dest=dest
            or next((name for name in names if name.startswith("--")), names[-1]).lstrip("-").replace("-", "_"),
            nargs=0 if action in WITHOUT_VALUE else nargs,
            read=type,
            choices=choices,
            default=WITHOUT_VALUE.get(action) if default is UNSET else default,
            metavar=metavar,
            help=help,
        )
        self.actions.append(added)
        self._defaults.setdefault(added.dest, added.default)
        self._by_name.update(dict.fromkeys(added.option_strings, added))

    def set_defaults(self, **values: Any) -> None:
        self._defaults.update(values)

    def get_default(self, name: str) -> Any:
        return self._defaults.get(name)

    def read(self, words: Sequence[str]) -> Namespace:
        """UnknownOptionError for an option that was not declared."""
        values: dict[str, Any] = {}
        arguments: list[str] = []
        unknown: list[str] = []
        waiting = list(reversed(words))
        while waiting:
            word = waiting.pop()
            if word == "--":
                arguments += reversed(waiting)
                break
            if not self._is_option(word):
                arguments.append(word)
                continue
            name, value = self._parts(word)
            action = self._by_name.get(name)
            if action is None:
                unknown.append(name)
            elif (
                action.nargs == 0
                and value is not None
                and not name.startswith("--")
                and f"-{value[:1]}" in self._by_name
            ):
                waiting += [f"-{value}", name]  # -qv
            elif action.nargs == 0:
                if value is not None:
                    raise WrongArgumentError(self.say("usage_takes_no_value", option="/".join(action.option_strings)))
                values[action.dest] = action.kind == "store_true" or (
                    action.kind == "switch" and not name.startswith("--no-")
                )
            else:
                if value is None and (not waiting or waiting[-1] == "--" or self._is_option(waiting[-1])):
                    shown = f"{action.name} {action.metavar or '|'.join(map(str, action.choices or ()))}"
                    raise WrongArgumentError(self.say("usage_value_missing", option=action.name, shown=shown))
                single = self._value(action, waiting.pop() if value is None else value)
                values[action.dest] = [*values.get(action.dest, ()), single] if action.kind == "append" else single
        for action in self.actions:
            if not action.option_strings:
                typed, arguments = (arguments, []) if action.nargs == "*" else (arguments[:1], arguments[1:])
                if typed:
                    read = [self._value(action, word) for word in typed]
                    values[action.dest] = read if action.nargs == "*" else read[0]
        if unknown:
            raise UnknownOptionError(unknown[0])
        if arguments:
            raise WrongArgumentError(self.say("usage_too_many", found=arguments[0], program=self.prog))
        return Namespace(**{**self._all_defaults(), **values})

    def _all_defaults(self) -> Mapping[str, Any]:
        """Those of positional arguments for several are empty lists; texts are read like those that are typed."""
        found = dict(self._defaults)
        for action in self.actions:
            default = found[action.dest]
            if action.nargs == "*" and default is None:
                found[action.dest] = []
            elif action.read is not None and isinstance(default, str):
                found[action.dest] = self._value(action, default)
        return found

    def _is_option(self, word: str) -> bool:
        """Whether a word is an option, declared or not, and no value: a dash, a negative number, a text with a space."""
        if not word.startswith("-") or word == "-":
            return False
        if word in self._by_name or word.partition("=")[0] in self._by_name or word[:2] in self._by_name:
            return True
        return " " not in word and not word[1:].replace(".", "", 1).isdecimal()

    def _parts(self, word: str) -> tuple[str, str | None]:
        """An option's name and its value, if it is in the same word: --format=md, -ofile."""
        if word in self._by_name:
            return word, None
        name, equals, value = word.partition("=")
        if name in self._by_name or word.startswith("--") or word[:2] not in self._by_name:
            return name, value if equals else None
        return word[:2], word[2:]

    def _value(self, action: Action, text: str) -> Any:
        try:
            value = text if action.read is None else action.read(text)
        except ValueTextError as error:
            raise WrongArgumentError(self.say("usage_value", option=action.name, reason=str(error))) from None
        except ValueError:
            if action.choices is None:
                raise
            value = text  # which is none of the choices
        if action.choices is None or value in action.choices:
            return value
        choices = [str(choice) for choice in action.choices]
        by_lower_case = {str(choice).lower(): choice for choice in action.choices}
        if isinstance(value, str) and value.lower() in by_lower_case:
            return by_lower_case[value.lower()]
        found = str(value)
        hint = did_you_mean(found, choices, self.say)
        key = "usage_choice_near" if hint else "usage_choice"
        values = {"option": action.name, "choices": ", ".join(choices), "found": found, "hint": hint}
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

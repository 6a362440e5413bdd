"""The commands: one module each, with the command's name, `declare(command, say)` and `run(options, say)`.

`declare` adds the command's options to its parser. `run` returns the exit code and raises QwenInspectError. A module is
imported only if its command is typed; what `--help` does not need is imported inside `run`.
"""

from __future__ import annotations

from collections.abc import Sequence

from .. import __version__
from ..console import EXIT_USAGE, complain, print_text
from ..language import LANGUAGES, Language
from ..options import output
from ..options.parser import PROGRAM, Namespace, Parser, UnknownOptionError, WrongArgumentError, did_you_mean
from ..standard import import_module

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
    "schema",
    "completion",
)
WITHOUT_DOCUMENT = ("diagram", "schema", "completion")  # a picture, a schema, a script
# How other programs have the model typed. Source: hf-mem, vllm, llama.cpp
FOR_MODEL = ("-m", "--model", "--model-id", "--model-name", "--model-path")
# Options of every command whose value may look like the name of a command.
WITH_VALUE = ("-o", "--output", "--lang", "--format")


def language_choice(words: Sequence[str]) -> str:
    """The value of `--lang`, read before the arguments are parsed, because their help and errors depend on it."""
    for word, following in zip(words, [*words, ""][1:], strict=True):
        option, equals, value = word.partition("=")
        if option == "--lang":
            chosen = (value if equals else following).lower()
            return chosen if chosen in LANGUAGES else "auto"
    return "auto"


def parsed(words: Sequence[str], say: Language) -> Namespace:
    """The options, wherever the command stands among them, with `run`, which carries them out. Raises WrongArgumentError."""
    position = _command_position(words)
    name = "" if position is None else words[position]
    rest = [word for index, word in enumerate(words) if index != position]
    if name == "help":  # as many programs have it
        return parsed([*rest, "--help"], say)
    if name and name not in COMMANDS:
        raise WrongArgumentError(_no_command(name, say))
    if {"-h", "--help", "--help-all"} & set(rest):  # before any of them is checked
        return Namespace(run=_show_help, command=name, help_all="--help-all" in rest, quiet=True)
    if "--version" in rest:
        return Namespace(run=_show_version, quiet=True)
    command = parser(name, say)
    try:
        return command.read(rest)
    except UnknownOptionError as error:
        raise WrongArgumentError(_no_option(str(error), command, say)) from None


def parser(name: str, say: Language) -> Parser:
    """The parser of a command; of the program alone for an empty name."""
    command = Parser(name, say)
    if name:
        module = import_module(f"{__name__}.{name}")
        module.declare(command, say)
        command.set_defaults(command=name, run=module.run)
    else:
        output.declare(command, say)
        command.set_defaults(command=name, run=_without_command)
    command.add_argument("-h", "--help", action="store_true", help=say("help_help"))
    command.add_argument("--help-all", action="store_true", help=say("help_help_all"))
    command.add_argument("--version", action="store_true", help=say("help_version"))
    return command


def _command_position(words: Sequence[str]) -> int | None:
    """Where the command stands: the first word that is no option and not the value of an option; None without a command."""
    candidates = []
    for index, word in enumerate(words):
        before = words[index - 1] if index else ""
        if word.startswith("-") or before in WITH_VALUE:
            continue
        if word in COMMANDS or not before.startswith("-") or "=" in before:
            return index
        candidates.append(index)  # the value of the option before it, or a misspelt command after a flag
    return candidates[0] if candidates else None


def _no_command(name: str, say: Language) -> str:
    hint = did_you_mean(name, COMMANDS, say)
    if not hint:
        hint = say("usage_is_model" if "/" in name or ":" in name else "usage_see_help", program=PROGRAM, found=name)
    return say("usage_no_command", program=PROGRAM, found=name, hint=hint)


def _no_option(option: str, command: Parser, say: Language) -> str:
    """That the command has no such option, and where it exists: in other commands, or here under a similar name."""
    having = [name for name in COMMANDS if option in parser(name, say).names]
    if option in FOR_MODEL:
        hint = say("usage_model_alone", program=command.prog)
    elif having:
        hint = say("usage_others_have", commands=", ".join(having))
    else:
        hint = did_you_mean(option, command.names, say) or say("usage_see_options", program=command.prog)
    return say("usage_no_option", program=command.prog, found=option, hint=hint)


def _show_help(options: Namespace, say: Language) -> int:
    from ..options import help as pages

    print_text(pages.page(parser(options.command, say), COMMANDS, say, whole=options.help_all))
    return 0


def _show_version(options: Namespace, say: Language) -> int:
    print_text(f"{PROGRAM} {__version__}\n")
    return 0


def _without_command(options: Namespace, say: Language) -> int:
    """The short help, on stderr and with exit code 2, as uv does it: nothing was asked."""
    from ..options import help as pages

    complain(pages.page(parser("", say), COMMANDS, say, whole=False).rstrip("\n"))
    return EXIT_USAGE

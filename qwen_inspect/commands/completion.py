"""`completion`: a script that completes commands, options, their values and models in a shell.

The script holds everything that it offers, so that the shell starts no Python at a key press. What it knows of options is what
the parsers know.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence

from .. import __version__
from ..errors import UsageError
from ..language import Language
from ..options import output
from ..options.parser import PROGRAM, Action, Namespace, Parser
from ..typed import NamedTuple

SHELLS = ("bash", "zsh", "fish")
LONGEST_DESCRIPTION = 72
EMPTY = '""'


def declare(command: Parser, say: Language) -> None:
    command.add_argument("shell", nargs="?", choices=SHELLS, metavar="|".join(SHELLS), help=say("help_shell"))
    output.declare(command, say)
    command.set_defaults(format="script")


def run(options: Namespace, say: Language) -> int:
    """Shows the script for the shell that is named, or else in use."""
    from . import COMMANDS, parser

    output.check(options)
    shell = options.shell or os.path.basename(os.environ.get("SHELL", ""))
    if shell not in SHELLS:
        raise UsageError("completion_shell", known="|".join(SHELLS))
    commands = [_command(parser(name, say), say) for name in ("", *COMMANDS)]
    script = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    output.write("\n".join(script(commands)) + "\n", options, say)
    return 0


class _Option(NamedTuple):
    """names: the short one first. values: what may follow (None: the option takes none), or the `kind` of what may."""

    names: tuple[str, ...]
    text: str
    values: Sequence[str] | None
    kind: str


class _Command(NamedTuple):
    """positional: what its arguments are, likewise. An empty name: no command was typed yet."""

    name: str
    text: str
    options: Sequence[_Option]
    positional: _Option | None


def _command(parser: Parser, say: Language) -> _Command:
    options = [_option(action) for action in parser.actions]
    return _Command(
        name=parser.command,
        text=_brief(say(f"help_{parser.command or 'program'}")),
        options=[option for option in options if option.names],
        positional=next((option for option in options if not option.names), None),
    )


def _option(action: Action) -> _Option:
    kinds = {"MODEL": "model", "FILE": "file", "DIR": "file"}
    values: Sequence[str] | None = [str(choice) for choice in action.choices or ()]
    kind = "card" if "--gpu" in action.option_strings else kinds.get(str(action.metavar), "")
    return _Option(
        names=tuple(action.option_strings),
        text=_brief(action.help or ""),
        values=None if action.nargs == 0 else values,
        kind=kind,
    )


def _brief(text: str) -> str:
    """One line of a help, short enough to stand beside its option."""
    return text if len(text) <= LONGEST_DESCRIPTION else text[: LONGEST_DESCRIPTION - 1].rstrip() + "…"


def _models() -> Sequence[str]:
    from ..loaders import catalog

    return list(catalog.entries())


def _cards() -> Sequence[str]:
    """The cards' names without spaces, which --gpu takes as well."""
    from ..loaders import gpus

    return [card.name.replace(" ", "-") for card in gpus.table()]


def _followers(commands: Sequence[_Command]) -> Iterator[tuple[Sequence[str], _Option]]:
    """Options with the same values: each as "command:option", and one of them."""
    alike: dict[tuple[Sequence[str], str], tuple[list[str], _Option]] = {}
    for command in commands:
        for option in command.options:
            if option.values is not None:
                places, _ = alike.setdefault((tuple(option.values), option.kind), ([], option))
                places += [f"{command.name}:{name}" for name in option.names]
    yield from alike.values()


def _by_positional(commands: Sequence[_Command]) -> Mapping[str, Sequence[_Command]]:
    """Commands by what their arguments are: "model", or the choices themselves."""
    by_kind: dict[str, list[_Command]] = {}
    for command in commands:
        if command.positional is not None:
            kind = command.positional.kind or " ".join(command.positional.values or ())
            by_kind.setdefault(kind, []).append(command)
    return {kind: alike for kind, alike in by_kind.items() if kind}


# --- bash


def _bash(commands: Sequence[_Command]) -> Iterator[str]:
    """For bash 3.2 and later. Values are lines, so that a name may hold a space."""
    names = [command.name for command in commands if command.name]
    yield f'# {PROGRAM} {__version__}: eval "$({PROGRAM} completion bash)"'
    yield "_qwen_inspect() {"
    yield '    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" command= values= item IFS=$\'\\n\''
    yield '    [[ $word == "=" ]] && word='  # bash makes three words of --format=json
    yield '    [[ $before == "=" ]] && before="${COMP_WORDS[COMP_CWORD-2]}"'
    yield '    [[ ${COMP_WORDS[COMP_CWORD]} == "=" ]] && before="${COMP_WORDS[COMP_CWORD-1]}"'
    yield '    for item in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do'
    yield f'        case "$item" in {"|".join(names)}) command="$item"; break ;; esac'
    yield "    done"
    yield f"    local models={_lines(_models())}"
    yield f"    local cards={_lines(_cards())}"
    yield '    case "$command:$before" in'
    for places, option in _followers(commands):
        reply = {"file": '$(compgen -f -- "$word")', "card": '$(compgen -W "$cards" -- "$word")'}.get(
            option.kind, f'$(compgen -W {_lines(option.values or [])} -- "$word")' if option.values else ""
        )
        yield f"        {'|'.join(places)}) COMPREPLY=({reply}); return ;;"
    yield "    esac"
    yield '    case "$command" in'
    yield f'        "") values={_lines(names)} ;;'
    for kind, alike in _by_positional(commands).items():
        value = '"$models"' if kind == "model" else _lines(kind.split())
        yield f"        {'|'.join(command.name for command in alike)}) values={value} ;;"
    yield "    esac"
    yield "    if [[ $word == -* ]]; then"
    yield '        case "$command" in'
    for command in commands:
        flags = _lines([name for option in command.options for name in option.names])
        yield f"            {command.name or EMPTY}) values={flags} ;;"
    yield "        esac"
    yield '        COMPREPLY=($(compgen -W "$values" -- "$word"))'
    yield '    elif [[ $values == "$models" ]]; then'
    yield '        COMPREPLY=($(compgen -W "$values" -- "$word") $(compgen -f -- "$word"))'
    yield "    else"
    yield '        COMPREPLY=($(compgen -W "$values" -- "$word"))'
    yield "    fi"
    yield "}"
    yield f"complete -o filenames -F _qwen_inspect {PROGRAM}"


def _lines(values: Sequence[str]) -> str:
    """A word of bash that holds one value a line."""
    return "$'" + "\\n".join(values) + "'"


# --- zsh


def _zsh(commands: Sequence[_Command]) -> Iterator[str]:
    names = [command.name for command in commands if command.name]
    yield f"#compdef {PROGRAM}"
    yield f"# {PROGRAM} {__version__}: {PROGRAM} completion zsh > a folder of $fpath/_{PROGRAM}"
    yield f"_{PROGRAM}() {{"
    yield '    local word="$words[CURRENT]" before="$words[CURRENT-1]" command= item'
    yield f"    local -a values models=({' '.join(_models())})"
    yield f"    local -a cards=({' '.join(_cards())})"
    yield '    for item in "${(@)words[2,CURRENT-1]}"; do'
    yield f'        case "$item" in ({"|".join(names)}) command="$item"; break ;; esac'
    yield "    done"
    yield '    case "$command:$before" in'
    for places, option in _followers(commands):
        does = {"file": "_files", "card": "compadd -a cards"}.get(
            option.kind, f"values=({' '.join(option.values or [])}); compadd -a values" if option.values else ":"
        )
        yield f"        ({'|'.join(places)}) {does}; return ;;"
    yield "    esac"
    yield "    if [[ $word == -* ]]; then"
    yield '        case "$command" in'
    for command in commands:
        described = [shlex.quote(f"{name}:{option.text}") for option in command.options for name in option.names]
        yield f"            ({command.name or EMPTY}) values=({' '.join(described)}) ;;"
    yield "        esac"
    yield "        _describe -o option values; return"
    yield "    fi"
    yield '    case "$command" in'
    described = [shlex.quote(f"{command.name}:{command.text}") for command in commands if command.name]
    yield f'        ("") values=({" ".join(described)}); _describe command values ;;'
    for kind, alike in _by_positional(commands).items():
        does = (
            "compadd -M 'm:{a-zA-Z}={A-Za-z}' -a models; _files"
            if kind == "model"
            else f"values=({kind}); compadd -a values"
        )
        yield f"        ({'|'.join(command.name for command in alike)}) {does} ;;"
    yield "    esac"
    yield "}"
    # A file of $fpath is the function's body; sourced, it says what it completes.
    yield f'if [[ "$funcstack[1]" == _{PROGRAM} ]]; then _{PROGRAM} "$@"; else compdef _{PROGRAM} {PROGRAM}; fi'


# --- fish


def _fish(commands: Sequence[_Command]) -> Iterator[str]:
    yield f"# {PROGRAM} {__version__}: {PROGRAM} completion fish > ~/.config/fish/completions/{PROGRAM}.fish"
    start = f"complete -c {PROGRAM}"
    yield f"{start} -f"
    for command in commands[1:]:
        yield f"{start} -n __fish_use_subcommand -a {command.name} -d {_fish_word(command.text)}"
    for kind, alike in _by_positional(commands).items():
        within = _within(command.name for command in alike)
        offered = f"-a {_fish_word(' '.join(_models()))} -F" if kind == "model" else f"-a {_fish_word(kind)}"
        yield f"{start} -n {within} {offered}"
    for command in commands:
        for option in command.options:
            flags = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
            values = _cards() if option.kind == "card" else option.values
            takes = "" if values is None else " -r -F" if option.kind == "file" else " -x"
            offered = f" -a {_fish_word(' '.join(values))}" if values else ""
            yield f"{start} -n {_within([command.name])} {flags}{takes}{offered} -d {_fish_word(option.text)}"


def _within(names: Iterator[str] | Sequence[str]) -> str:
    within = " ".join(names)
    return _fish_word(f"__fish_seen_subcommand_from {within}") if within else "__fish_use_subcommand"


def _fish_word(text: str) -> str:
    """A quoted word, in which fish knows two escapes alone."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

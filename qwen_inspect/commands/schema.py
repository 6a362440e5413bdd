"""`schema`: the JSON Schema of what `--format json` writes."""

from __future__ import annotations

from collections.abc import Mapping

from ..language import Language
from ..options import output
from ..options.parser import Namespace, Parser
from ..typed import Any


def declare(command: Parser, say: Language) -> None:
    from . import COMMANDS, WITHOUT_DOCUMENT

    described = [name for name in COMMANDS if name not in WITHOUT_DOCUMENT]
    command.add_argument("of", nargs="?", choices=described, metavar="COMMAND", help=say("help_schema_of"))
    output.declare(command, say)
    command.set_defaults(format="json")


def run(options: Namespace, say: Language) -> int:
    """Shows the schema of one command's answer, or of all."""
    import json
    from pathlib import Path

    output.check(options)
    text = (Path(__file__).parent.parent / "schema" / "report.schema.json").read_text(encoding="utf-8")
    if options.of is not None:
        text = json.dumps(_of_command(json.loads(text), options.of), indent=2) + "\n"
    output.write(text, options, say)
    return 0


def _of_command(schema: Mapping[str, Any], command: str) -> Mapping[str, Any]:
    """The schema of `command`'s answer, with the definitions that it needs."""
    answers = [answer for answer in schema["oneOf"] if answer["properties"]["command"]["const"] == command]
    needed: dict[str, Any] = {}
    waiting = _references(answers)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed[name] = schema["$defs"][name]
            waiting |= _references(needed[name])
    head = {key: schema[key] for key in ("$schema", "title")}
    return {**head, **(answers[0] if len(answers) == 1 else {"oneOf": answers}), "$defs": dict(sorted(needed.items()))}


def _references(part: object) -> set[str]:
    """The definitions that `part` refers to itself."""
    if isinstance(part, Mapping):
        own = {part["$ref"].removeprefix("#/$defs/")} if isinstance(part.get("$ref"), str) else set()
        return own.union(*map(_references, part.values()))
    return set().union(*map(_references, part)) if isinstance(part, list) else set()

"""`config`: the configuration and the meaning of its keys."""

from __future__ import annotations

from ..language import Language
from ..options import model, output
from ..options.parser import Namespace, Parser


def declare(command: Parser, say: Language) -> None:
    model.declare(command, say)
    model.declare_headers(command, say)
    command.add_argument("--explain", action="store_true", help=say("help_explain"))
    output.declare_document(command, say)


def run(options: Namespace, say: Language) -> int:
    output.check(options)
    report = model.inspected(options, require_design=options.explain)
    output.show(report, options, say, explain=options.explain)
    output.say_notices(report, options, say)
    return 0

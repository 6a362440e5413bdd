"""`weights`: every stored tensor."""

from __future__ import annotations

from ..language import Language
from ..options import model, output, values
from ..options.parser import Namespace, Parser


def declare(command: Parser, say: Language) -> None:
    model.declare(command, say)
    command.add_argument("--sort", choices=("name", "size"), default="name", help=say("help_sort"))
    command.add_argument("--top", type=values.positive(say), metavar="N", help=say("help_top"))
    command.add_argument("--expand", action="store_true", help=say("help_expand"))
    output.declare_document(command, say)


def run(options: Namespace, say: Language) -> int:
    output.check(options)
    report = model.inspected(options, require_design=False, predict_files=True)
    output.show(report, options, say, sort=options.sort, top=options.top, expand=options.expand)
    output.say_notices(report, options, say)
    return 0

"""`structure`: a model's modules; with `--prompt`, also the text it generates."""

from __future__ import annotations

import gc
import sys

from ..console import is_terminal, show_piece
from ..errors import UsageError
from ..language import Language
from ..options import given, model, output, prediction, values
from ..options.parser import Namespace, Parser


def declare(command: Parser, say: Language) -> None:
    model.declare(command, say)
    model.declare_headers(command, say)
    command.add_argument("--expand", action="store_true", help=say("help_expand"))
    command.add_argument("--depth", type=values.positive(say), metavar="N", help=say("help_depth"))
    command.add_argument("--first-layer", action="store_true", help=say("help_first_layer"))
    model.declare_workload(command, say)
    command.add_argument("--prompt", metavar="TEXT", help=say("help_prompt_text"))
    command.add_argument("--max-new-tokens", type=values.positive(say), metavar="N", help=say("help_max_new_tokens"))
    command.add_argument("--device", metavar="DEVICE", help=say("help_device"))
    command.add_argument(
        "--dtype",
        type=values.number_format,
        choices=prediction.PLAIN_DTYPES,
        metavar="DTYPE",
        help=say("help_plain_dtype"),
    )
    output.declare_document(command, say)


def run(options: Namespace, say: Language) -> int:
    output.check(options)
    _check_prompt(options)
    report = model.inspected(options, dtype=options.dtype, workload=model.workload_of(options))
    if options.prompt is not None:
        from ..measuring.generation import with_generation

        gc.enable()  # short commands run without it, but a model's modules form reference cycles
        report = with_generation(
            report,
            options.prompt,
            max_new_tokens=options.max_new_tokens or 32,
            device=options.device or "cpu",
            trust_remote_code=options.trust_remote_code,
            access=model.access_of(options),
            show=None if options.quiet or not is_terminal(sys.stderr) else show_piece,
        )
    output.show(report, options, say, expand=options.expand, depth=options.depth, first_layer=options.first_layer)
    output.say_notices(report, options, say)
    return 0


def _check_prompt(options: Namespace) -> None:
    """Raises UsageError for an unusable prompt, and for options that need a prompt."""
    if options.prompt is not None:
        from ..measuring.generation import check_prompt

        check_prompt(options.prompt)
    elif typed := given(options, "max_new_tokens", "device"):
        raise UsageError("prompt_needed", option=typed[0])

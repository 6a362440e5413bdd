"""`report`: writes, shows or checks the whole report."""

from __future__ import annotations

from ..console import EXIT_CHECK_FAILED, complain, one_line, print_text, screen_columns
from ..errors import UsageError
from ..language import Language
from ..options import model, output, values
from ..options.parser import Namespace, Parser

FORMATS = ("md", "html", "json", "github")
ATTENTION_KINDS = ("mha", "gqa", "mqa", "mixed")


def declare(command: Parser, say: Language) -> None:
    model.declare(command, say)
    command.add_argument("--format", choices=FORMATS, default="md", help=say("help_report_format"))
    command.add_argument("--check", action="store_true", help=say("help_check"))
    command.add_argument("--update", action="store_true", help=say("help_update"))
    command.add_argument("--instantiate", action="store_true", help=say("help_instantiate"))
    command.add_argument("--batch", type=values.positive(say), default=1, metavar="N", help=say("help_batch"))
    command.add_argument("--context", type=values.tokens(say), metavar="TOKENS", help=say("help_report_context"))
    command.add_argument(
        "--new-tokens", type=values.positive(say), default=128, metavar="N", help=say("help_new_tokens")
    )
    command.add_argument("--gpu", metavar="NAME", help=say("help_report_cards"))
    command.add_argument("--measured", action="append", default=[], metavar="FILE", help=say("help_measured_file"))
    command.add_argument("--max-vram", type=values.size(say), metavar="SIZE", help=say("help_max_vram"))
    command.add_argument("--expect-params", type=values.positive(say), metavar="N", help=say("help_expect_count"))
    command.add_argument("--expect-attention", choices=ATTENTION_KINDS, help=say("help_expect_attention"))
    output.declare(command, say, metavar="DIR", help_key="help_report_output")


def run(options: Namespace, say: Language) -> int:
    """Writes, shows or checks the report. Returns 1 if a figure drifted or an expectation fails.

    Without a model, a check covers every report.
    """
    from ..reporting.tasks import Task, carry_out
    from ..results.whole import ReportRequest

    action = "update" if options.update else "check" if options.check else "overwrite" if options.overwrite else "write"
    if options.output is None and action in ("update", "check"):
        raise UsageError("report_needs_directory", option=f"--{action}")
    every = options.model is None and action in ("update", "check")
    name, notices = model.named(options.model, options)
    for notice in () if options.quiet or every else notices:
        complain(one_line(say(notice)))
    request = ReportRequest(
        model=name,
        source=options.source,
        revision=options.revision,
        file=options.file,
        context_tokens=options.context,
        batch=options.batch,
        new_tokens=options.new_tokens,
        instantiate=options.instantiate,
        measured=tuple(options.measured),
        gpus=options.gpu,
        language=say.code,
        form="md" if options.format == "github" else options.format,
    )
    task = Task(
        request=None if every else request,
        directory=options.output,
        action="show" if options.output is None else action,
        summary=options.format == "github",
        expected_parameters=options.expect_params,
        expected_attention=options.expect_attention,
        most_vram=options.max_vram,
        trust_remote_code=options.trust_remote_code,
        columns=screen_columns(),
    )
    outcome = carry_out(task, model.access_of(options), say)
    if outcome.text and options.output is None:
        output.write(outcome.text, options, say)
    elif outcome.text:
        print_text(outcome.text)
    for path in () if options.quiet else outcome.saved:
        complain(one_line(say("saved", path=path)))
    for message in outcome.failed:
        complain(one_line(say(message)))
    if outcome.agrees and outcome.refusal is not None:
        raise outcome.refusal
    return 0 if outcome.agrees else EXIT_CHECK_FAILED

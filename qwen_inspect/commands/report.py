"""`report`: the whole report written, shown or checked."""

from __future__ import annotations

import argparse

from ..arguments import DEFAULT_MODEL
from ..console import EXIT_CHECK_FAILED, complain, one_line, print_text
from ..language import Language
from .options import access_of


def run(options: argparse.Namespace, say: Language) -> int:
    """The whole report written, shown or checked; 1 where a figure drifted or something expected does not hold."""
    from ..errors import UsageError
    from ..reporting import Task, carry_out
    from ..results.whole import ReportRequest

    action = "update" if options.update else "check" if options.check else "overwrite" if options.overwrite else "write"
    if options.output is None and action in ("update", "check"):
        raise UsageError("report_needs_directory", option=f"--{action}")
    request = ReportRequest(
        model=options.model or DEFAULT_MODEL,
        source=options.source,
        revision=options.revision,
        file=options.file,
        context_tokens=options.context,
        batch=options.batch,
        new_tokens=options.new_tokens,
        instantiate=options.instantiate,
        measured=tuple(options.measured),
        language=say.code,
        form="md" if options.format == "github" else options.format,
    )
    task = Task(
        request=None if options.model is None and action in ("update", "check") else request,
        directory=options.output,
        action="show" if options.output is None else action,
        summary=options.format == "github",
        expected_parameters=options.expect_params,
        expected_attention=options.expect_attention,
        most_vram=options.max_vram,
        trust_remote_code=options.trust_remote_code,
    )
    outcome = carry_out(task, access_of(options), say)
    if outcome.text:
        print_text(outcome.text)
    for path in () if options.quiet else outcome.saved:
        complain(one_line(say("saved", path=path)))
    for message in outcome.failed:
        complain(one_line(say(message)))
    if outcome.agrees and outcome.refusal is not None:
        raise outcome.refusal
    return 0 if outcome.agrees else EXIT_CHECK_FAILED

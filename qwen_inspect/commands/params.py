"""`params`: parameter counts by each witness, and why they differ."""

from __future__ import annotations

from ..console import EXIT_CHECK_FAILED, complain
from ..language import Language
from ..options import model, output, values
from ..options.parser import Namespace, Parser


def declare(command: Parser, say: Language) -> None:
    model.declare(command, say)
    command.add_argument("--instantiate", action="store_true", help=say("help_instantiate"))
    command.add_argument("--expect-params", type=values.positive(say), metavar="N", help=say("help_expect_params"))
    output.declare_document(command, say)


def run(options: Namespace, say: Language) -> int:
    """Returns 1 if the count is not the claimed one or a difference is unexplained; raises if files cannot be compared."""
    claimed = options.expect_params
    output.check(options)
    report = model.inspected(options, count_files=True, instantiate=options.instantiate, expected_parameters=claimed)
    output.show(report, options, say)
    output.say_notices(report, options, say)
    if claimed is not None and claimed != report.parameters.theory:
        complain(say("claim_failed", theory=report.parameters.theory, claimed=claimed))
        return EXIT_CHECK_FAILED
    if failed := [check for check in report.checks if not check.agrees]:
        complain(say("check_failed", count=len(failed)))
        return EXIT_CHECK_FAILED
    if report.known.unread is not None and report.tensors is not None:
        raise report.known.unread
    return 0

"""`compare`: models side by side, or the files of two hubs."""

from __future__ import annotations

from ..console import EXIT_CHECK_FAILED
from ..errors import UsageError
from ..language import Language
from ..options import model, output, prediction
from ..options.parser import Namespace, Parser


def declare(command: Parser, say: Language) -> None:
    command.add_argument("models", nargs="*", metavar="MODEL", help=say("help_compared"))
    command.add_argument("--trust-remote-code", action="store_true", help=say("help_trust_remote_code"))
    model.declare_access(command, say)
    prediction.declare(command, say)
    prediction.declare_cards(command, say)
    command.add_argument("--expand", action="store_true", help=say("help_expand"))
    output.declare_document(command, say)


def run(options: Namespace, say: Language) -> int:
    """Returns 1 if the listings of two hubs do not prove equal weights. Different models are no failure."""
    from ..comparing.side_by_side import compare
    from ..fitting.cards import cards
    from ..values import replace

    output.check(options)
    prediction.say_dtype(options, say)
    if len(options.models) < 2:
        raise UsageError("compare_needs_two")
    # A compute capability such as sm_90 selects kernels but has no memory to fit into.
    fitted = () if options.gpu is None or prediction.is_capability(options.gpu) else cards(options.gpu)
    named = [model.named(typed, options) for typed in options.models]
    compared = compare(
        [name for name, _ in named],
        prediction.run_of(options, gpu=fitted[0].name if fitted else options.gpu),
        access=model.access_of(options),
        dtype=prediction.dtype_of(options),
        group_size=options.group_size,
        cards=fitted,
        trust_remote_code=options.trust_remote_code,
    )
    notices = [notice for _, notices in named for notice in notices]
    compared = replace(compared, notices=(*notices, *compared.notices))
    output.show(compared, options, say, expand=options.expand)
    return EXIT_CHECK_FAILED if compared.unproven else 0

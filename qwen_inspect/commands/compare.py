"""`compare`: models side by side, or the files of two hubs."""

from __future__ import annotations

import argparse

from ..console import EXIT_CHECK_FAILED, text_of, write
from ..language import Language
from .options import access_of, cards_of, check_options, is_capability, run_of


def run(options: argparse.Namespace, say: Language) -> int:
    """Fails where two hubs' listings were asked and do not prove the weights the same; that models differ is no failure."""
    from ..comparing.side_by_side import compare
    from ..errors import UsageError
    from ..renderers.document import View

    check_options(options)
    if len(options.models) < 2:
        raise UsageError("compare_needs_two")
    # A name such as sm_90 says what is predicted for, and no memory that something could fit.
    cards = () if options.gpu is None or is_capability(options.gpu) else cards_of(options)
    if cards:
        options.gpu = cards[0].name
    compared = compare(
        options.models,
        run_of(options),
        access=access_of(options),
        dtype=options.dtype,
        group_size=options.group_size,
        cards=cards,
        trust_remote_code=options.trust_remote_code,
    )
    write(text_of(options, compared, say, View(expand=options.expand)), options, say)
    return EXIT_CHECK_FAILED if compared.unproven else 0

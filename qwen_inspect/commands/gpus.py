"""`gpus`: the table of known cards."""

from __future__ import annotations

import argparse

from ..language import Language
from ..options import output

declare = output.declare_document


def run(options: argparse.Namespace, say: Language) -> int:
    from ..loaders import gpus

    output.check(options)
    output.show(gpus.table(), options, say)
    return 0

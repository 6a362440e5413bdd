"""`gpus`: the table of known cards."""

from __future__ import annotations

from ..language import Language
from ..options import output
from ..options.parser import Namespace

declare = output.declare_document


def run(options: Namespace, say: Language) -> int:
    from ..loaders import gpus

    output.check(options)
    output.show(gpus.table(), options, say)
    return 0

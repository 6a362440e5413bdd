"""`models`: the models of the catalog."""

from __future__ import annotations

import argparse

from ..language import Language
from ..options import output

declare = output.declare_document


def run(options: argparse.Namespace, say: Language) -> int:
    from ..structure.inspect import models

    output.check(options)
    output.show(models(), options, say)
    return 0

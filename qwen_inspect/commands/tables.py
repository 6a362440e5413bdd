"""`models` and `gpus`: what is known without a model."""

from __future__ import annotations

import argparse

from ..console import text_of, write
from ..language import Language
from .options import check_options


def run(options: argparse.Namespace, say: Language) -> int:
    from ..renderers.document import View

    check_options(options)
    subject: object
    if options.command == "models":
        from ..structure.inspect import models

        subject = models()
    else:
        from ..loaders import gpus

        subject = gpus.table()
    write(text_of(options, subject, say, View(live=options.format == "html")), options, say)
    return 0

"""`diagram`: the architecture as a figure."""

from __future__ import annotations

import argparse

from ..console import print_text, verdict, write_picture
from ..language import Language
from .options import check_options, inspected


def run(options: argparse.Namespace, say: Language) -> int:
    """The figure where -o says, or as SVG on stdout."""
    from ..renderers.figure import architecture_figure

    check_options(options)
    report = inspected(options)
    svg = architecture_figure(report, say)
    if options.output is None:
        print_text(svg)
    else:
        write_picture(svg, options.output, options, say)
    return verdict(report, options, say)

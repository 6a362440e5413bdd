"""`diagram`: the architecture as a figure."""

from __future__ import annotations

from ..console import print_text
from ..language import Language
from ..options import model, output
from ..options.parser import Namespace, Parser


def declare(command: Parser, say: Language) -> None:
    model.declare(command, say)
    model.declare_headers(command, say)
    output.declare(command, say)
    command.set_defaults(format="svg")


def run(options: Namespace, say: Language) -> int:
    """Writes the figure to the file of -o, else as SVG to stdout, or on a terminal to a file."""
    from ..renderers.figure import architecture_figure

    path = output.destination(options)
    output.check(options, picture=path)
    report = model.inspected(options)
    svg = architecture_figure(report, say)
    if path is None:
        print_text(svg)
    else:
        output.write_picture(svg, path, options, say)
    output.say_notices(report, options, say)
    return 0

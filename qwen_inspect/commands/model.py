"""`structure`, `config`, `weights`, `params` and `attention`: one model shown; and its own text with `--prompt`."""

from __future__ import annotations

import argparse
import gc
import sys
from typing import TYPE_CHECKING

from ..console import is_terminal, show_piece, text_of, verdict, write, write_picture
from ..language import Language
from .options import access_of, check_options, inspected

if TYPE_CHECKING:
    from ..results.model import Report

VIEWED = ("expand", "depth", "first_layer", "explain", "sort", "top")


def run(options: argparse.Namespace, say: Language) -> int:
    from ..renderers.document import View

    check_options(options)
    report = inspected(options)
    if getattr(options, "prompt", None) is not None:
        report = _with_generation(report, options)
    if options.command == "attention" and options.plot is not None:
        from ..renderers.cache_plot import cache_plot

        write_picture(cache_plot(report, say), options.plot, options, say)
    wanted = {name: getattr(options, name) for name in VIEWED if hasattr(options, name)}
    write(text_of(options, report, say, View(live=options.format == "html", **wanted)), options, say)
    return verdict(report, options, say)


def _with_generation(report: Report, options: argparse.Namespace) -> Report:
    from ..measuring.generation import with_generation

    gc.enable()  # no longer a short command: a model's modules do have cycles
    return with_generation(
        report,
        options.prompt,
        max_new_tokens=options.max_new_tokens or 32,
        device=options.device or "cpu",
        trust_remote_code=options.trust_remote_code,
        access=access_of(options),
        show=None if options.quiet or not is_terminal(sys.stderr) else show_piece,
    )

"""`attention`: each layer's attention and KV cache."""

from __future__ import annotations

from ..language import Language
from ..options import media, model, output
from ..options.parser import Namespace, Parser


def declare(command: Parser, say: Language) -> None:
    model.declare(command, say)
    model.declare_headers(command, say)
    command.add_argument("--expand", action="store_true", help=say("help_expand"))
    model.declare_workload(command, say)
    media.declare(command, say)
    command.add_argument("--plot", metavar="FILE", help=say("help_cache_plot"))
    output.declare_document(command, say)


def run(options: Namespace, say: Language) -> int:
    output.check(options, picture=options.plot)
    request = media.request_of(options)
    report = media.with_media(model.inspected(options, workload=model.workload_of(options)), request, options)
    if options.plot is not None:
        from ..renderers.cache_plot import cache_plot

        output.write_picture(cache_plot(report, say), options.plot, options, say)
    output.show(report, options, say, expand=options.expand)
    output.say_notices(report, options, say)
    return 0

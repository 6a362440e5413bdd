"""`models`: the models of the catalog."""

from __future__ import annotations

from ..language import Language
from ..options import output
from ..options.parser import Namespace, Parser
from ..typed import TYPE_CHECKING

if TYPE_CHECKING:
    from ..results.listing import CatalogEntry


def declare(command: Parser, say: Language) -> None:
    command.add_argument("filter", nargs="*", metavar="FILTER", help=say("help_filter"))
    output.declare_document(command, say)


def run(options: Namespace, say: Language) -> int:
    from ..errors import NotFoundError
    from ..structure.inspect import models

    output.check(options)
    wanted = [word.casefold() for word in options.filter]
    entries = [entry for entry in models() if all(word in _words(entry) for word in wanted)]
    if not entries:
        from ..loaders import catalog

        nearest = catalog.nearest(options.filter[0], catalog.entries())
        raise NotFoundError("models_none", words=" ".join(options.filter), nearest=nearest)
    output.show(entries, options, say)
    output.say_sources(entries, options, say)
    return 0


def _words(entry: CatalogEntry) -> str:
    """What a filter is looked for in."""
    from ..units import short_count

    spec = entry.design.spec
    size = short_count(entry.design.parameters.theory)
    return f"{entry.id} {spec.family} {entry.attention.kind} {size}".casefold()

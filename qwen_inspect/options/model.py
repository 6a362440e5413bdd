"""Options that select the model and control access to it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..console import progress
from ..language import Language
from ..units import size
from .values import number_format, positive, tokens

if TYPE_CHECKING:
    from ..loaders.resolve import Access
    from ..results.cache import Workload
    from ..results.model import Report

DEFAULT_MODEL = "catalog:Qwen/Qwen3-0.6B"  # the same as in loaders.resolve, which --help does not import
SOURCES = ("auto", "hf", "ms", "local", "catalog")


def declare(command: argparse.ArgumentParser, say: Language) -> None:
    """MODEL, its source, and the options of `declare_access`."""
    command.add_argument(
        "model", nargs="?", default=DEFAULT_MODEL, metavar="MODEL", help=say("help_model", default=DEFAULT_MODEL)
    )
    command.add_argument("--from", dest="source", choices=SOURCES, default="auto", help=say("help_from"))
    command.add_argument("--revision", metavar="REV", help=say("help_revision"))
    command.add_argument("--file", metavar="NAME", help=say("help_file"))
    command.add_argument("--trust-remote-code", action="store_true", help=say("help_trust_remote_code"))
    declare_access(command, say)


def declare_access(command: argparse.ArgumentParser, say: Language) -> None:
    """How hubs and files may be accessed."""
    command.add_argument("--timeout", type=positive(say), default=10, metavar="SECONDS", help=say("help_timeout"))
    command.add_argument("--refresh", action="store_true", help=say("help_refresh"))
    command.add_argument("--offline", action="store_true", help=say("help_offline"))
    command.add_argument("--partial", action="store_true", help=say("help_partial"))


def declare_workload(command: argparse.ArgumentParser, say: Language) -> None:
    """The workload for which the KV cache is shown."""
    command.add_argument("--batch", type=positive(say), default=1, metavar="N", help=say("help_batch"))
    command.add_argument("--context", type=tokens(say), metavar="TOKENS", help=say("help_context"))
    command.add_argument(
        "--cache-dtype", type=number_format, default="auto", metavar="FORMAT", help=say("help_cache_dtype")
    )
    command.add_argument("--tp", type=positive(say), default=1, metavar="N", help=say("help_tp"))


def workload_of(options: argparse.Namespace) -> Workload:
    """The workload for which the KV cache is computed."""
    from ..results.cache import Workload

    return Workload(
        batch=options.batch,
        context_tokens=options.context,
        cache_format=options.cache_dtype,
        ranks=options.tp or 1,
    )


def inspected(options: argparse.Namespace, **analysis: Any) -> Report:
    """The report of the selected model. analysis: further keyword arguments of `inspect`."""
    from ..structure.inspect import inspect

    return inspect(
        options.model,
        source=options.source,
        revision=options.revision,
        file=options.file,
        access=access_of(options),
        trust_remote_code=options.trust_remote_code,
        **analysis,
    )


def access_of(options: argparse.Namespace) -> Access:
    """How hubs and files may be accessed, with progress shown on stderr."""
    from ..loaders.resolve import Access
    from ..progress import stage

    return Access(
        offline=options.offline,
        refresh=options.refresh,
        partial=options.partial,
        seconds=options.timeout,
        progress=lambda done, total: stage("working_headers", done=done, total=total),
        downloaded=progress(size, quiet=options.quiet),
    )

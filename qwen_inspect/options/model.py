"""Options that select the model and control access to it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from ..console import progress
from ..language import Language, Message
from ..typed import TYPE_CHECKING, Any
from ..units import size
from .parser import Namespace, Parser
from .values import number_format, positive, tokens

if TYPE_CHECKING:
    from ..loaders.resolve import Access
    from ..results.cache import Workload
    from ..results.model import Report

PINS = ("hf", "ms", "catalog")
STORES = ("ollama:", "lmstudio:")
FILES = (".gguf", ".safetensors")
MOST_FILES = 1000  # of a folder in which a model is looked for
LARGEST_CONFIG_BYTES = 1 << 20
DEFAULT_MODEL = "catalog:Qwen/Qwen3-0.6B"  # the same as in loaders.resolve, which --help does not import
SOURCES = ("auto", "hf", "ms", "local", "catalog")


def declare(command: Parser, say: Language) -> None:
    """MODEL, its source, and the options of `declare_access`."""
    # None, not DEFAULT_MODEL: whether a model was typed matters.
    command.add_argument("model", nargs="?", metavar="MODEL", help=say("help_model", default=DEFAULT_MODEL))
    command.add_argument("--from", dest="source", choices=SOURCES, default="auto", help=say("help_from"))
    command.add_argument("--revision", metavar="REV", help=say("help_revision"))
    command.add_argument("--file", metavar="NAME", help=say("help_file"))
    command.add_argument("--trust-remote-code", action="store_true", help=say("help_trust_remote_code"))
    declare_access(command, say)


def declare_access(command: Parser, say: Language) -> None:
    """How hubs and files may be accessed."""
    command.add_argument("--timeout", type=positive(say), default=10, metavar="SECONDS", help=say("help_timeout"))
    command.add_argument("--refresh", action="store_true", help=say("help_refresh"))
    command.add_argument("--offline", action="store_true", help=say("help_offline"))
    command.add_argument("--partial", action="store_true", help=say("help_partial"))


def declare_headers(command: Parser, say: Language) -> None:
    """For a command that needs no file's header if the hub's own counts vouch for the configuration."""
    command.add_argument("--headers", action="store_true", help=say("help_headers"))


def declare_workload(command: Parser, say: Language) -> None:
    """The workload for which the KV cache is shown."""
    command.add_argument("--batch", type=positive(say), default=1, metavar="N", help=say("help_batch"))
    command.add_argument("--context", type=tokens(say), metavar="TOKENS", help=say("help_context"))
    command.add_argument(
        "--cache-dtype", type=number_format, default="auto", metavar="FORMAT", help=say("help_cache_dtype")
    )
    command.add_argument("--source-tokens", type=tokens(say), metavar="TOKENS", help=say("help_source_tokens"))
    command.add_argument("--tp", type=positive(say), default=1, metavar="N", help=say("help_tp"))


def workload_of(options: Namespace) -> Workload:
    """The workload for which the KV cache is computed."""
    from ..results.cache import Workload

    return Workload(
        batch=options.batch,
        context_tokens=options.context,
        cache_format=options.cache_dtype,
        ranks=options.tp or 1,
        source_tokens=getattr(options, "source_tokens", None),
    )


def inspected(options: Namespace, *, typed: str | None = None, **analysis: Any) -> Report:
    """The report of the selected model, or of `typed`. analysis: further keyword arguments of `inspect`."""
    from ..structure.inspect import inspect
    from ..values import replace

    model, notices = named(options.model if typed is None else typed, options)
    report = inspect(
        model,
        source=options.source,
        revision=options.revision,
        file=options.file,
        access=access_of(options),
        trust_remote_code=options.trust_remote_code,
        **analysis,
    )
    return replace(report, notices=(*notices, *report.notices)) if notices else report


def named(typed: str | None, options: Namespace) -> tuple[str, Sequence[Message]]:
    """The model that `typed` means, and what to say of it: Qwen3-8B and qwen/qwen3-8b mean Qwen/Qwen3-8B.

    Without a model, the default, and a model in the working directory if there is one.
    """
    if typed is None:
        here = _model_here()
        call = f"qwen-inspect {options.command} {here}"
        return DEFAULT_MODEL, [] if here is None else [Message("model_here", default=DEFAULT_MODEL, call=call)]
    if typed.startswith(STORES):
        return typed, []
    pin, colon, rest = typed.partition(":")
    pin, rest = (pin + colon, rest) if pin in PINS else ("", typed)
    name = rest.partition("@")[0].partition(":")[0]
    if not name or (not pin and os.path.lexists(os.path.expanduser(typed))):
        return typed, []
    from ..loaders import catalog

    known = catalog.meant(name)
    if known in (None, name):
        return typed, []
    return f"{pin}{known}{rest[len(name) :]}", [Message("name_taken_for", typed=name, name=known)]


def _model_here() -> str | None:
    """What to type for a model in the working directory; None if there is none, or several files."""
    import shlex

    from ..loaders.regular import read_regular

    with contextlib.suppress(OSError):
        names = os.listdir()[:MOST_FILES]
        if "config.json" in names and b'"model_type"' in read_regular("config.json", cap=LARGEST_CONFIG_BYTES):
            return "."
        files = [name for name in names if name.endswith(FILES)]
        if len(files) == 1:
            return shlex.quote(files[0])
    return None


def _headers_read(done: int, total: int) -> None:
    from ..progress import stage

    stage("working_headers", done=done, total=total)


def access_of(options: Namespace) -> Access:
    """How hubs and files may be accessed, with progress shown on stderr."""
    from ..loaders.resolve import Access

    return Access(
        offline=options.offline,
        refresh=options.refresh,
        partial=options.partial,
        headers=getattr(options, "headers", True),
        seconds=options.timeout,
        progress=_headers_read,
        downloaded=progress(size, quiet=options.quiet),
    )

"""Runs transformers' classes on fake or meta tensors: the modules they build, the cache they keep, the memory they allocate.

Needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

CHUNK_TURNS = 8  # of linear attention's loop over the chunks of a prompt, which a trace of inference ends after


def versions() -> str:
    """The library versions that make a trace taken now."""
    import torch
    import transformers

    return f"transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}"


def installed() -> Iterator[tuple[str, str]]:
    """The versions of torch and transformers that are installed, without importing them."""
    from importlib.metadata import PackageNotFoundError, version

    for package in ("transformers", "torch"):
        with suppress(PackageNotFoundError):
            yield package, version(package).partition("+")[0]

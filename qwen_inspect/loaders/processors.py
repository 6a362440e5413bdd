"""The files beside a model's weights that set the numbers of its image and video processors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..checkpoint import ModelRef
from ..errors import NetworkError
from ..typed import Any
from . import local
from .hub import config_named, kept_listing
from .named import hub_of, offline_by_environment
from .resolve import HUBS, Access
from .transfer import Deadline

Files = Mapping[str, Mapping[str, Any]]


def read_processors(ref: ModelRef, names: Sequence[str], access: Access) -> Files:
    """Those of the files `names` that a loaded model's folder or repository has.

    None for a model of the catalog, or of a hub that cannot be asked and of which an earlier run kept none.
    """
    if ref.source == "local" and ref.path is not None:
        return _in_folder(ref.path if os.path.isdir(ref.path) else ref.path.parent, names)
    if ref.source not in HUBS:
        return {}
    hub, revision = hub_of(ref.source), ref.revision
    if (cached := hub.cached(ref.id, revision or hub.default_revision)) is not None:
        return _in_folder(cached[0], names)
    listing = kept_listing(hub, ref.id, revision or hub.default_revision)
    if listing is None:
        return {}
    deadline = None if access.offline or offline_by_environment() else Deadline.after(access.seconds)
    found = {}
    for name in names:
        try:
            content = config_named(hub, ref.id, listing, deadline, name=name)
        except NetworkError:
            continue
        if content is not None:
            found[name] = content
    return found


def _in_folder(folder: Path, names: Sequence[str]) -> Files:
    return {name: local.read_config(folder / name) for name in names if os.path.isfile(folder / name)}

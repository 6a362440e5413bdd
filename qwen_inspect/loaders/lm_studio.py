"""The folder of a model in LM Studio: models/PUBLISHER/REPOSITORY below its home.

Source: lmstudio-ai, lms, src/lmstudioPaths.ts (`~/.lmstudio-home-pointer`); the folders of LM Studio 0.3.6 and of before.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import NotFoundError, UsageError
from .regular import read_regular

POINTER = ".lmstudio-home-pointer"
PART = re.compile(r"[\w.@-]{1,128}")
LONGEST_PATH_BYTES = 4096


def folder_of(name: str) -> Path:
    """The folder of PUBLISHER/REPOSITORY; UsageError for another form, NotFoundError if there is none."""
    parts = name.split("/")
    if len(parts) != 2 or not all(PART.fullmatch(part) and part not in (".", "..") for part in parts):
        raise UsageError("lmstudio_name", name=name)
    candidates = [home.joinpath(*parts) for home in _models()]
    for folder in candidates:
        if os.path.isdir(folder):
            return folder
    raise NotFoundError("lmstudio_missing", name=name, folders=", ".join(map(str, candidates)))


def _models() -> list[Path]:
    home = Path.home()
    try:
        pointed = read_regular(home / POINTER, cap=LONGEST_PATH_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError):
        pointed = ""
    homes = [Path(pointed)] if pointed and "\0" not in pointed else []
    return [folder / "models" for folder in (*homes, home / ".lmstudio", home / ".cache" / "lm-studio")]

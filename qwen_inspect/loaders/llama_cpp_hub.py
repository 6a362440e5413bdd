"""Which files of a repository llama.cpp's -hf takes: a model, and the projector beside it.

Source: llama.cpp b11434, common/download.cpp (find_best_model, find_best_sibling, get_gguf_split_info).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

TAGS = ("Q4_K_M", "Q8_0")  # that are looked for where none is named
BESIDE = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
PART = re.compile(r"-(\d{5})-of-\d{5}$")
TYPE = re.compile(r"[-.]([A-Z0-9_]+)$", re.IGNORECASE)
LONGEST_NUMBER = 9


def model_in(names: Sequence[str], tag: str | None) -> str | None:
    """The first file, in the listing's order, whose name has the tag; without a tag, Q4_K_M, Q8_0 or any."""
    models = [name for name in names if _is_model(name)]
    for wanted in (tag,) if tag else TAGS:
        pattern = re.compile(re.escape(wanted) + r"[.-]", re.IGNORECASE)
        if (name := next((name for name in models if pattern.search(name)), None)) is not None:
            return name
    return None if tag else next(iter(models), None)


def projector_in(names: Sequence[str], model: str) -> str | None:
    """Of the files in the model's folder or above it, the deepest whose type has about as many bits."""
    folders = model.split("/")[:-1]

    def rank(name: str) -> tuple[int, int]:
        return -name.count("/"), abs(_bits(name) - _bits(model))

    near = [
        name
        for name in names
        if "mmproj" in name and name.endswith(".gguf") and folders[: name.count("/")] == name.split("/")[:-1]
    ]
    return min(near, key=rank, default=None)


def _is_model(name: str) -> bool:
    file = name.rpartition("/")[2]
    part = PART.search(file.removesuffix(".gguf"))
    later = part is not None and int(part[1]) != 1
    return file.endswith(".gguf") and not later and not any(kind in file for kind in BESIDE)


def _bits(name: str) -> int:
    """The first number of the type at a name's end."""
    kind = TYPE.search(PART.sub("", name.removesuffix(".gguf")))
    number = re.search(r"\d+", kind[1]) if kind else None
    return int(number[0][:LONGEST_NUMBER]) if number else 0

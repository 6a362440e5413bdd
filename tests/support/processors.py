"""The functions by which transformers' processors choose sizes and frames, without the libraries that their modules import."""

from __future__ import annotations

import ast
import math
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


def functions_of(module: str, *names: str, method: str | None = None) -> SimpleNamespace:
    """The functions `names` at the top of models/MODULE.py, and the method of its class, compiled from the library's source."""
    for library in ("numpy", "torch", "transformers"):
        pytest.importorskip(library)
    import numpy
    import torch

    found = find_spec("transformers")
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).parent / "models" / f"{module}.py"
    top = ast.parse(path.read_text(encoding="utf-8")).body
    inner = [node for each in top if isinstance(each, ast.ClassDef) for node in each.body]
    wanted = [node for node in top if isinstance(node, ast.FunctionDef) and node.name in names]
    wanted += [node for node in inner if isinstance(node, ast.FunctionDef) and node.name == method]
    assert len(wanted) == len(names) + (method is not None), (module, names, method)
    future = ast.parse("from __future__ import annotations").body
    space: dict[str, Any] = {
        "math": math,
        "np": numpy,
        "torch": torch,
        "defaultdict": defaultdict,
        "lru_cache": lambda maxsize: lambda function: function,
        "get_image_size": lambda image, channel_dim: image,  # the size stands for the image
    }
    exec(compile(ast.Module([*future, *wanted], []), str(path), "exec"), space)
    return SimpleNamespace(**space)

"""A configuration -> a `ModelSpec`, the modules it builds and the names its tensors have on disk. One module a family.

To add one: write the module, add its classes to `reading.CLASSES`, add its releases to the catalog.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from ..checkpoint import Tensor
from ..errors import MalformedError
from ..spec import ModelSpec, Module
from .reading import CLASSES, is_described

FAMILIES: Mapping[str, str] = {model_type: model_type.removesuffix("_text") for model_type in CLASSES}  # their modules


class Architecture(Protocol):
    """What a family's module offers."""

    def read_spec(self, config: Mapping[str, Any]) -> ModelSpec:
        """The meaning of `config`; raises MalformedError or UnsupportedError where it has none."""

    def module_tree(self, spec: ModelSpec) -> Module:
        """The modules and tensors that transformers builds for `spec`."""

    def stored_form(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """The tensors under which a release's files store one tensor of the tree, in the order that fills it."""

    def prediction_layers(self, spec: ModelSpec) -> tuple[Tensor, ...]:
        """What releases may store beside the model: a layer that predicts tokens ahead, which transformers does not load.

        As it would build them: files hold them in `stored_form`.
        """


def architecture_of(config: Mapping[str, Any], *, code: Path | None = None) -> Architecture:
    """The family that `config["model_type"]` names, for a class of it that is described here; for any other class that
    transformers has, what it builds (see `generic`).

    Then UnavailableError without the torch extra, and UnsupportedError where transformers does not know it or refuses it.
    code: the model's own directory, where code in it may be run for a class that transformers has not.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise MalformedError("config_no_model_type", found=type(model_type).__name__)
    if not is_described(config):
        from .generic import read_generic

        return read_generic(config, tuple(FAMILIES), code)
    family: Architecture = import_module(f"{__name__}.{FAMILIES[model_type]}")
    return family

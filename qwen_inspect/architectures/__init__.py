"""Reads a configuration into an `Architecture`: design, modules, and the tensors' names on disk. One module per family.

To add a family: write the module, add its classes to `families`, add its releases to the catalog.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..checkpoint import Tensor
from ..errors import MalformedError
from ..standard import import_module
from ..typed import TYPE_CHECKING, Any, Protocol
from .design import Architecture, FormsByName, StoredForm
from .families import FAMILIES
from .layouts import in_layout_of
from .reading import is_described
from .saved_heads import as_released

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FAMILIES", "Architecture", "Family", "FormsByName", "StoredForm", "architecture_of"]


class Family(Protocol):
    """A family's module."""

    def architecture(self, config: Mapping[str, Any]) -> Architecture:
        """The model that `config` describes; raises MalformedError or UnsupportedError for a config without meaning."""


def architecture_of(
    config: Mapping[str, Any], *, stored: Sequence[Tensor] | None = None, code: Path | None = None
) -> Architecture:
    """The architecture of `config`: from its family's module if the class is described here, else as transformers builds it.

    Building (see `generic`) raises UnavailableError without the torch extra, and UnsupportedError if transformers does not know
    the class or refuses the configuration. stored: the files' tensors, whose names decide between several layouts. code: the
    model's own directory, if its code may run for a class that transformers lacks.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise MalformedError("config_no_model_type", found=type(model_type).__name__)
    if not is_described(config):
        from .generic import read_generic

        return read_generic(config, tuple(FAMILIES), stored, code)
    family: Family = import_module(f"{__name__}.{FAMILIES[model_type]}")
    architecture = family.architecture(as_released(config))
    return architecture if stored is None else in_layout_of(architecture, stored)

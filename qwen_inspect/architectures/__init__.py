"""Reads a configuration into an `Architecture`: design, modules, and the tensors' names on disk. One module per family.

To add a family: write the module, add its classes to `reading.CLASSES`, add its releases to the catalog.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from ..checkpoint import Tensor
from ..errors import MalformedError
from ..language import Message
from ..spec import ModelSpec, Module, tied_tensors
from .reading import CLASSES, is_described

FAMILIES: Mapping[str, str] = {
    model_type: model_type.removesuffix("_text") for model_type in CLASSES
}  # model_type -> module
StoredForm = Callable[[Tensor], tuple[Tensor, ...]]


class Family(Protocol):
    """The functions of a family's module."""

    def read_spec(self, config: Mapping[str, Any]) -> ModelSpec:
        """The design that `config` describes; raises MalformedError or UnsupportedError for a config without meaning."""

    def module_tree(self, spec: ModelSpec) -> Module:
        """The modules and tensors that transformers builds for `spec`."""

    def stored_form(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """The tensors as which a release's files store one tensor of the tree, in the order in which they fill it."""

    def prediction_layers(self, spec: ModelSpec) -> tuple[Tensor, ...]:
        """Tensors of multi-token prediction layers, which releases may store and transformers does not load.

        In the form transformers would build; files hold them in `stored_form`.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The model of a configuration, from a family's module or as transformers built it on the meta device.

    stored_form, prediction_layers: as in `Family`. tied: name of each tied tensor -> name of the tensor whose storage it shares.
    buffers: the buffers that files hold, in their stored form. unloaded: regular expressions of stored names that the class
    does not load. active_is_known: whether the tree marks the parameters that a token uses. built: transformers' model on meta
    if the figures come from it; None for a family described here. notices: remarks on the origin of the figures.
    """

    spec: ModelSpec
    tree: Module
    stored_form: StoredForm
    prediction_layers: tuple[Tensor, ...]
    tied: Mapping[str, str]
    buffers: tuple[Tensor, ...] = ()
    unloaded: tuple[str, ...] = ()
    active_is_known: bool = True
    built: Any = None
    notices: tuple[Message, ...] = ()


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
    spec = family.read_spec(config)
    tree = family.module_tree(spec)
    return Architecture(
        spec=spec,
        tree=tree,
        stored_form=family.stored_form,
        prediction_layers=family.prediction_layers(spec),
        tied=dict(tied_tensors(tree)),
    )

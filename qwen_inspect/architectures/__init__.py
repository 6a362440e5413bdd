"""A configuration -> an `Architecture`: design, modules, and the names that its tensors have on disk. One module a family.

To add one: write the module, add its classes to `reading.CLASSES`, add its releases to the catalog.
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

FAMILIES: Mapping[str, str] = {model_type: model_type.removesuffix("_text") for model_type in CLASSES}  # their modules
StoredForm = Callable[[Tensor], tuple[Tensor, ...]]


class Family(Protocol):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What one configuration builds, as a family's module says it, or as transformers built it on the meta device.

    stored_form, prediction_layers: as of `Family`. tied: tensors that share another's storage, with its name. buffers: those that
    files hold, in their stored form. unloaded: regular expressions of stored names that the class leaves unloaded.
    active_is_known: whether the tree tells which parameters a token uses. built: transformers' model on meta, where the figures
    are its own; None for a family that is described here. notices: what a reader must know of their origin.
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
    """Of the family that `config["model_type"]` names, for a class of it that is described here; for any other class that
    transformers has, what it builds (see `generic`).

    Then UnavailableError without the torch extra, and UnsupportedError where transformers does not know it or refuses it.
    stored: the files' tensors, whose names tell which of several layouts they have. code: the model's own directory, where code
    in it may be run for a class that transformers has not.
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

"""Any other model_type that transformers knows: its class is built on the meta device, and what it is made of is read off.

The witness is transformers itself, not pure Python, so the torch extra is needed. Only classes that transformers ships are built;
nothing of a repository runs, nothing is fetched, and sizes are checked before transformers loops over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ...checkpoint import Tensor
from ...errors import UnavailableError, UnsupportedError
from ...language import Message
from ...spec import ModelSpec, Module
from ..reading import CLASSES, read_class_name, shown
from .building import build_generic, build_own, buildable, check_sizes, config_types, is_shipped
from .modules import active_is_known, aliases_of, spec_of, state_of, tensor_of, tree_of
from .names import renaming, stored_forms

__all__ = ["Generic", "build_generic", "buildable", "check_sizes", "read_generic"]


def read_generic(config: Mapping[str, Any], families: Sequence[str], code: Path | None = None) -> Generic:
    """The model that `config` describes, built on meta.

    UnavailableError without torch; UnsupportedError for a model_type that the installed transformers does not know, for code of
    the repository's own unless `code` is its directory, and where transformers refuses the configuration; MalformedError for
    sizes that no model has.
    """
    model_type = config["model_type"]
    described = CLASSES.get(model_type)
    try:
        known = config_types()
    except UnavailableError as error:
        values = dict(error.message.values)
        subject = model_type if described is None else read_class_name(config)
        raise UnavailableError("generic_extra_missing", found=shown(subject), **values) from None
    if described is not None and not is_shipped(name := read_class_name(config)):
        raise UnsupportedError("class_unsupported", found=shown(name), known=", ".join(described))
    if model_type not in known:
        if isinstance(own := config.get("auto_map"), Mapping):
            if code is None:
                raise UnsupportedError("generic_own_code", found=shown(model_type))
            check_sizes(config)
            return _of(build_own(config, own, code), config)
        import transformers

        near = get_close_matches(model_type, [*families, *known], n=3, cutoff=0.5)
        raise UnsupportedError(
            "generic_unknown_model_type",
            found=shown(model_type),
            version=transformers.__version__,
            near=", ".join(near) or "–",
        )
    check_sizes(config)
    return _of(build_generic(config), config)


def _of(model: Any, config: Mapping[str, Any]) -> Generic:
    spec, tree = spec_of(config, model), tree_of(model, config)
    return Generic(model=model, spec=spec, tree=tree, aliases=aliases_of(model), forms=stored_forms(model))


@dataclass(frozen=True, slots=True, kw_only=True)
class Generic:
    """A model as transformers builds it, in the words of an `Architecture`.

    model: of transformers, on meta. aliases: names that share another parameter's storage, with its name. forms: the tensors
    under which the release's layout stores one of the model, where that is another than its own name.
    """

    model: Any
    spec: ModelSpec
    tree: Module
    aliases: Mapping[str, str]
    forms: Mapping[str, tuple[Tensor, ...]]

    def read_spec(self, config: Mapping[str, Any]) -> ModelSpec:
        return self.spec

    def module_tree(self, spec: ModelSpec) -> Module:
        return self.tree

    def stored_form(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return self.forms.get(tensor.name, (tensor,))

    def prediction_layers(self, spec: ModelSpec) -> tuple[Tensor, ...]:
        return ()  # which would be stored is not known: files that hold some name them

    @property
    def witness(self) -> Message:
        """That all figures come from transformers' class, and of which version."""
        import transformers

        return Message("generic_witness", class_name=self.spec.class_name, version=transformers.__version__)

    @property
    def persistent(self) -> tuple[Tensor, ...]:
        """Buffers that files hold, in their stored form."""
        state = self.model.state_dict(keep_vars=True)
        buffers = [tensor_of(name, value) for name, value in self.model.named_buffers() if name in state]
        return tuple(part for buffer in buffers for part in self.stored_form(buffer))

    def active_is_known(self, tree: Module) -> bool:
        """Whether the parameters that a token uses can be told by the model's tree."""
        return active_is_known(tree, self.model)

    @property
    def unloaded(self) -> tuple[str, ...]:
        """Regular expressions of stored names that the class leaves unloaded.

        Source: transformers 5.23, PreTrainedModel._keys_to_ignore_on_load_unexpected.
        """
        return tuple(sorted(self.model._keys_to_ignore_on_load_unexpected or ()))

    def for_files(self, stored: Sequence[Tensor]) -> Generic:
        """The same with its stored form as these files have it, where transformers maps their names in another way too.

        Names of a target count only where all of them together hold as many elements as it. Source: as `stored_forms`.
        """
        targets = {tensor.name: tensor for tensor in state_of(self.model)}
        usual = {part.name for name, tensor in targets.items() for part in self.forms.get(name, (tensor,))}
        others = [tensor for tensor in stored if tensor.name not in usual and tensor.name not in targets]
        rename = renaming(self.model, others)
        found: dict[str, list[Tensor]] = {}
        for tensor in others:
            if (target := rename(tensor.name)) in targets:
                found.setdefault(target, []).append(tensor)
        present = {tensor.name for tensor in stored}
        forms = {
            name: tuple(replace(part, dtype=targets[name].dtype, file=None) for part in parts)
            for name, parts in found.items()
            if sum(part.elements for part in parts) == targets[name].elements
            and not any(part.name in present for part in self.stored_form(targets[name]))
        }
        return replace(self, forms={**self.forms, **forms})

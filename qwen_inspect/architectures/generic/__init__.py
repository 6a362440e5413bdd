"""Any other model_type that transformers knows: builds its class on the meta device and reads modules and sizes off it.

Needs the torch extra. Builds only classes that transformers ships, unless the caller allows a repository's own code. Fetches
nothing, and checks sizes before transformers loops over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from ...checkpoint import Tensor
from ...errors import UnavailableError, UnsupportedError
from ...language import Message
from ...typed import Any
from .. import Architecture, FormsByName
from ..families import CLASSES
from ..layouts import forms_in_files
from ..reading import read_class_name, shown
from ..sizes import check_sizes
from ..thinkers import has_thinker
from .building import build_generic, build_own, buildable, config_types, is_shipped
from .modules import active_is_known, aliases_of, spec_of, state_of, tensor_of, tree_of
from .names import renaming, stored_forms

__all__ = ["build_generic", "buildable", "read_generic"]


def read_generic(
    config: Mapping[str, Any], families: Sequence[str], stored: Sequence[Tensor] | None = None, code: Path | None = None
) -> Architecture:
    """The model that `config` describes, built on meta; `stored` and `code` as in `architecture_of`.

    UnavailableError without torch; UnsupportedError for a model_type unknown to the installed transformers, for a repository's
    own code unless `code` is its directory, and if transformers refuses the configuration; MalformedError for impossible sizes.
    """
    model_type = config["model_type"]
    described = CLASSES.get(model_type)
    try:
        model_types = config_types()
    except UnavailableError as error:
        values = dict(error.message.values)
        subject = model_type if described is None else read_class_name(config)
        raise UnavailableError("generic_extra_missing", found=shown(subject), **values) from None
    if described is not None and not is_shipped(name := read_class_name(config)):
        raise UnsupportedError("class_unsupported", found=shown(name), known=", ".join(described))
    if model_type not in model_types:
        if isinstance(own := config.get("auto_map"), Mapping):
            if code is None:
                raise UnsupportedError("generic_own_code", found=shown(model_type))
            check_sizes(config)
            return _of(build_own(config, own, code), config, stored)
        import transformers

        near = get_close_matches(model_type, {*families, *model_types}, n=3, cutoff=0.5)
        raise UnsupportedError(
            "generic_unknown_model_type",
            found=shown(model_type),
            version=transformers.__version__,
            near=", ".join(near) or "–",
        )
    check_sizes(config)
    return _of(build_generic(config), config, stored)


def _of(model: Any, config: Mapping[str, Any], stored: Sequence[Tensor] | None) -> Architecture:
    import transformers

    spec, tree = spec_of(config, model), tree_of(model, config)
    forms = stored_forms(model)
    if stored is not None:
        targets, usual = {tensor.name: tensor for tensor in state_of(model)}, forms
        others = forms_in_files(
            targets,
            lambda tensor: usual.get(tensor.name, (tensor,)),
            stored,
            lambda unmapped: renaming(model, unmapped),  # as in `stored_forms`
        )
        forms = {**forms, **others}
    state = model.state_dict(keep_vars=True)
    buffers = [tensor_of(name, value) for name, value in model.named_buffers() if name in state]

    stored_form = FormsByName(forms)
    return Architecture(
        spec=spec,
        tree=tree,
        stored_form=stored_form,
        prediction_layers=(),  # unknown without files; files that hold some name them
        tied=aliases_of(model),
        buffers=tuple(part for buffer in buffers for part in stored_form(buffer)),
        # Source: transformers 5.23, PreTrainedModel._keys_to_ignore_on_load_unexpected
        unloaded=tuple(sorted(model._keys_to_ignore_on_load_unexpected or ())),
        active_is_known=active_is_known(tree, model) and not has_thinker(config),  # a token passes one of its parts
        built=model,
        notices=(Message("generic_witness", class_name=spec.class_name, version=transformers.__version__),),
    )

"""What a configuration describes: the value that every family's module returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..checkpoint import Tensor
from ..errors import UnsupportedError
from ..language import Message
from ..results.attention import AnyLayerAttention
from ..results.cache import CacheLayer
from ..spec import ModelSpec, Module, tied_tensors
from ..typed import Any
from ..values import dataclass

StoredForm = Callable[[Tensor], tuple[Tensor, ...]]
KeptLayer = tuple[AnyLayerAttention, CacheLayer]


@dataclass(frozen=True, slots=True)
class FormsByName:
    """`Architecture.stored_form` from a table, by the names of the tensors that files store otherwise."""

    by_name: Mapping[str, tuple[Tensor, ...]]

    def __call__(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return self.by_name.get(tensor.name, (tensor,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The model of a configuration, from a family's module or as transformers built it on the meta device.

    stored_form: the tensors as which a release's files store one tensor of the tree, in the order in which they fill it.
    built_name: from a stored name to the class's, as transformers loads it, where files may have other layouts.
    prediction_layers: tensors of multi-token prediction layers, which releases may store and transformers does not load, in the
    form transformers would build; files hold them in `stored_form`. tied: name of each tied tensor -> name of the tensor whose
    storage it shares. buffers: the buffers that files hold, in their stored form. unloaded: regular expressions of stored names
    that the class does not load. active_is_known: whether the tree marks the parameters that a token uses. kept: each layer's
    attention and cache, in the model's dtype, if `spec` has no layers; None: from `spec.layers`, or unknown, and cache_refusal
    says why. built: transformers' model on meta if the figures were just read off it. notices: remarks on their origin.
    """

    spec: ModelSpec
    tree: Module
    stored_form: StoredForm
    prediction_layers: tuple[Tensor, ...]
    tied: Mapping[str, str]
    built_name: Callable[[str], str] | None = None
    buffers: tuple[Tensor, ...] = ()
    unloaded: tuple[str, ...] = ()
    active_is_known: bool = True
    kept: tuple[KeptLayer, ...] | None = None
    cache_refusal: UnsupportedError | None = None
    built: Any = None
    notices: tuple[Message, ...] = ()


def by_spec(
    read_spec: Callable[[Mapping[str, Any]], ModelSpec],
    module_tree: Callable[[ModelSpec], Module],
    stored_form: StoredForm,
    prediction_layers: Callable[[ModelSpec], tuple[Tensor, ...]],
) -> Callable[[Mapping[str, Any]], Architecture]:
    """A family's `architecture` from the functions that read its spec and build the spec's tree."""

    def architecture(config: Mapping[str, Any]) -> Architecture:
        spec = read_spec(config)
        tree = module_tree(spec)
        return Architecture(
            spec=spec,
            tree=tree,
            stored_form=stored_form,
            prediction_layers=prediction_layers(spec),
            tied=dict(tied_tensors(tree)),
        )

    return architecture

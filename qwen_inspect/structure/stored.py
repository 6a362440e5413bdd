"""Models that are stored in another form than transformers builds: quantised, GGUF, or an adapter and its base.

Separate from `inspect` because most models need none of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..architectures import StoredForm, gguf
from ..checkpoint import Adapter, Checkpoint, Tensor
from ..declarations import KEY, settled, undeclared
from ..errors import UsageError
from ..results.model import Design, PackedDesign
from ..spec import Module, each_tensor
from ..typed import TYPE_CHECKING, Any
from ..values import replace
from .accounting import components
from .packing import LoadedWeights, Packing, as_stored, pack

if TYPE_CHECKING:
    from ..results.quantisation import Quantisation


def in_dtype(checkpoint: Checkpoint, dtype: str | None, group_size: int | None) -> Checkpoint:
    """The model with its parameters in `dtype`: a dtype, or a quantisation scheme's name (which drops the stored tensors)."""
    from ..architectures.quantised_presets import PRESETS, preset

    if group_size is not None and dtype not in PRESETS:
        raise UsageError("group_size_without_scheme", known=", ".join(PRESETS))
    if dtype is None or checkpoint.config is None:
        return checkpoint
    before = settled(checkpoint)
    config = undeclared(before.config or {})
    if dtype in PRESETS:
        config[KEY] = preset(dtype, group_size, config)
        checkpoint = before  # keeps the dtype of the modules that the scheme skips
    else:
        config = {**{key: value for key, value in config.items() if key != "dtype"}, "torch_dtype": dtype}
    requantised = config.get(KEY) != (before.config or {}).get(KEY)
    return replace(
        checkpoint,
        config=config,
        quantisation_file=None,
        tensors=None if requantised else checkpoint.tensors,
        hub_count=None if requantised else checkpoint.hub_count,
    )


def packing_of(
    config: Mapping[str, Any],
    tree: Module,
    form: StoredForm,
    stored: Sequence[Tensor] | None,
    *,
    in_blocks: bool,
) -> Packing | None:
    """How the weights are stored: GGUF's blocks (`in_blocks`), or `quantization_config`'s scheme; None if dense."""
    if in_blocks:
        return as_stored(tree, form, stored or ())
    quantisation = _scheme(config)
    return None if quantisation is None else pack(tree, quantisation, form, stored)


def _scheme(config: Mapping[str, Any]) -> Quantisation | None:
    """`read_quantisation`, which a model without the key needs no import for."""
    if KEY not in config:
        return None
    from ..architectures.quantised import read_quantisation

    return read_quantisation(config)


def quantised(design: Design, packing: Packing, config: Mapping[str, Any]) -> Design:
    """The design with stored bytes; its counts remain counts of parameters."""
    quantisation = _scheme(config)
    method = "gguf" if quantisation is None else quantisation.method
    return PackedDesign.of(design, method, lambda: _measured(design, packing, quantisation))


def _measured(design: Design, packing: Packing, quantisation: Quantisation | None) -> Design:
    from .stored_bytes import packed_tree, weights_as_stored, weights_of

    tree = packed_tree(design.tree, packing)
    return replace(
        design,
        tree=tree,
        # A release's layout is known only for dense weights.
        parameters=replace(design.parameters, stored_predicted=None),
        components=components(tree),
        quantised=weights_as_stored(design.tree, tree, packing)
        if quantisation is None
        else weights_of(design.tree, tree, quantisation, packing),
        weights=LoadedWeights(design.tree, packing),
    )


def with_adapter(design: Design, adapter: Adapter, form: StoredForm, *, dense: bool) -> Design:
    """The base's design with the adapter's trained tensors, checked against the adapter's file."""
    from ..architectures.lora import read_lora
    from .adapters import adapter_weights, against_adapter, trained_tensors

    lora = read_lora(adapter.config)
    trained = trained_tensors(design.tree, lora, form, adapter.tensors)
    return replace(
        design,
        checks=(*design.checks, against_adapter(trained, adapter.tensors)),
        adapter=adapter_weights(adapter, design.tree, trained, lora, mergeable=dense),
    )


def under_class_names(tensors: Sequence[Tensor], tree: Module) -> tuple[Tensor, ...]:
    """A GGUF file's tensors under transformers' names."""
    by_name = {tensor.name: tensor for tensor in tensors}
    stored_names = [(tensor.name, gguf.stored_form(tensor)[0].name) for tensor in each_tensor(tree)]
    return tuple(replace(by_name[stored], name=name) for name, stored in stored_names if stored in by_name)

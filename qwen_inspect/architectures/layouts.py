"""The names of a class's tensors in files whose layout is not the usual one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..checkpoint import Tensor
from ..spec import each_tensor
from ..values import replace
from .design import Architecture, StoredForm


def forms_in_files(
    targets: Mapping[str, Tensor],
    stored_form: StoredForm,
    stored: Sequence[Tensor],
    renaming: Callable[[Sequence[Tensor]], Callable[[str], str]],
) -> dict[str, tuple[Tensor, ...]]:
    """Stored forms in these files, by the names in `targets`, where they are not those of `stored_form`.

    A form counts only if its parts together hold exactly as many elements as the class's tensor. renaming: given the tensors
    whose names are new, the function from a stored name to the class's.
    """
    usual = {part.name for tensor in targets.values() for part in stored_form(tensor)}
    unmapped = [tensor for tensor in stored if tensor.name not in usual and tensor.name not in targets]
    rename = renaming(unmapped)
    parts_of: dict[str, list[Tensor]] = {}
    for tensor in unmapped:
        if (target := rename(tensor.name)) in targets:
            parts_of.setdefault(target, []).append(tensor)
    present = {tensor.name for tensor in stored}
    return {
        name: tuple(replace(part, dtype=targets[name].dtype, file=None) for part in parts)
        for name, parts in parts_of.items()
        if sum(part.elements for part in parts) == targets[name].elements
        and not any(part.name in present for part in stored_form(targets[name]))
    }


def in_layout_of(architecture: Architecture, stored: Sequence[Tensor]) -> Architecture:
    """The architecture with the names of these files, by its `built_name`."""
    built_name, usual_form = architecture.built_name, architecture.stored_form
    if built_name is None:
        return architecture
    targets = {tensor.name: tensor for tensor in each_tensor(architecture.tree)}
    forms = forms_in_files(targets, usual_form, stored, lambda _: built_name)
    if not forms:
        return architecture
    return replace(architecture, stored_form=lambda tensor: forms.get(tensor.name) or usual_form(tensor))

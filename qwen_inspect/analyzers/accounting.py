"""Counts as sums over tensors: by component, active, embedding, buffers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from ..checkpoint import Release, Tensor
from ..report import Component
from ..spec import Module, each_tensor, tied_tensors
from ..units import shares

# The order in which a token meets them.
COMPONENTS = ("embedding", "attention", "mlp", "router", "experts", "shared_expert", "norm", "lm_head")
StoredForm = Callable[[Tensor], tuple[Tensor, ...]]


def components(tree: Module) -> tuple[Component, ...]:
    """Parameters and bytes of each component that the model has; a tied head stands with 0 of its own."""
    parameters: Counter[str] = Counter()
    size_bytes: Counter[str] = Counter()
    tied: dict[str, str] = {}

    def add(module: Module, inherited: str | None, repeats: int) -> None:
        component, repeats = module.component or inherited, repeats * module.repeats
        if module.tensors or module.tied_to:
            assert component is not None, f"{module.name} belongs to no component"
            parameters[component] += repeats * sum(tensor.elements for tensor in module.tensors)
            size_bytes[component] += repeats * module.own_bytes
            if module.tied_to:
                tied[component] = module.tied_to
        for child in module.children:
            add(child, component, repeats)

    add(tree, None, 1)
    names = [name for name in COMPONENTS if name in parameters]
    return tuple(
        Component(
            name=name,
            parameters=parameters[name],
            size_bytes=size_bytes[name],
            share_basis_points=share,
            tied_to=tied.get(name),
        )
        for name, share in zip(names, shares([parameters[name] for name in names]), strict=True)
    )


def stored_copies(tree: Module, release: Release) -> tuple[Tensor, ...] | None:
    """The tied copies that a release's files hold beside what the model owns: none, or all.

    None where that is not known: it shows only in the published total of stored elements.
    """
    copies = _tied_copies(tree)
    if not copies:
        return ()
    if release.stored is None:
        return None
    copied = sum(copy.elements for copy in copies)
    return {tree.parameters: (), tree.parameters + copied: copies}.get(release.stored)


def _tied_copies(tree: Module) -> tuple[Tensor, ...]:
    tied = dict(tied_tensors(tree))
    if not tied:
        return ()
    owners = {tensor.name: tensor for tensor in each_tensor(tree) if tensor.name in tied.values()}
    return tuple(Tensor(name, owners[owner].shape, owners[owner].dtype) for name, owner in tied.items())


def predicted_files(tree: Module, stored_form: StoredForm, release: Release | None) -> tuple[Tensor, ...] | None:
    """The tensors that a release's files hold, sorted by name; None where it is not known which, or no release."""
    if release is None:
        return None
    owned = tuple(part for tensor in each_tensor(tree) for part in stored_form(tensor))
    if release.decoder_only:
        files = tuple(
            Tensor(tensor.name.removeprefix("model."), tensor.shape, tensor.dtype)
            for tensor in owned
            if tensor.name != "lm_head.weight"
        )
    else:
        copies = stored_copies(tree, release)
        if copies is None:
            return None
        files = owned + copies
    return tuple(sorted(files, key=lambda tensor: tensor.name))


def predicted_elements(tree: Module, release: Release | None) -> int | None:
    """The elements of `predicted_files`, without making the list: storing experts singly changes no count."""
    if release is None:
        return None
    if release.decoder_only:
        return tree.parameters - sum(part.parameters for part in components(tree) if part.name == "lm_head")
    copies = stored_copies(tree, release)
    return None if copies is None else tree.parameters + sum(copy.elements for copy in copies)

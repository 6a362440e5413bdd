"""Parameters by component, and the tensors that a release's files should hold."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

from ..architectures import StoredForm
from ..checkpoint import DType, Release, Tensor
from ..results.counts import Component
from ..spec import Module, each_tensor, tied_tensors
from ..units import shares
from ..values import replace

# In the order in which a token passes through them.
COMPONENTS = (
    "vision",
    "audio",
    "embedding",
    "linear_attention",
    "attention",
    "mlp",
    "router",
    "experts",
    "shared_expert",
    "norm",
    "other",
    "lm_head",
    "speech",
)


def components(tree: Module) -> tuple[Component, ...]:
    """Parameters and bytes of each component that the model has. A tied head counts 0."""
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


def stored_extras(tree: Module, release: Release, prediction: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Tensors that a release's files hold beyond the model's own: tied copies, the prediction layer, both or neither.

    Whichever adds up to the published total of stored elements; None if none does.
    """
    groups = [group for group in (tied_copies(tree), prediction) if group]
    if not groups:
        return ()
    for size in range(len(groups) + 1):
        for chosen in combinations(groups, size):
            extras = tuple(tensor for group in chosen for tensor in group)
            if tree.parameters + sum(tensor.elements for tensor in extras) == release.stored:
                return extras
    return None


def tied_copies(tree: Module) -> tuple[Tensor, ...]:
    """The copies that files hold if they store tied tensors twice."""
    tied = dict(tied_tensors(tree))
    if not tied:
        return ()
    owners = {tensor.name: tensor for tensor in each_tensor(tree) if tensor.name in tied.values()}
    return tuple(Tensor(name, owners[owner].shape, owners[owner].dtype) for name, owner in tied.items())


def predicted_files(
    tree: Module, stored_form: StoredForm, release: Release | None, prediction: tuple[Tensor, ...]
) -> tuple[Tensor, ...] | None:
    """The tensors that a release's files hold, sorted by name; None without a release or if its layout is unknown."""
    if release is None:
        return None

    def in_stored_dtype(part: Tensor) -> Tensor:
        return replace(part, dtype=DType.F32) if part.name.endswith(release.float32) else part

    own_form = (lambda tensor: (tensor,)) if release.experts_fused else stored_form
    owned = tuple(in_stored_dtype(part) for tensor in each_tensor(tree) for part in own_form(tensor))
    if release.decoder_only:
        files = tuple(
            Tensor(tensor.name.removeprefix("model."), tensor.shape, tensor.dtype)
            for tensor in owned
            if tensor.name != "lm_head.weight"
        )
    else:
        extras = stored_extras(tree, release, prediction)
        if extras is None:
            return None
        files = owned + tuple(part for tensor in extras for part in stored_form(tensor))
    return tuple(sorted(files, key=lambda tensor: tensor.name))


def predicted_elements(tree: Module, release: Release | None, prediction: tuple[Tensor, ...]) -> int | None:
    """Elements of `predicted_files`, without building the list: splitting fused experts changes no count."""
    if release is None:
        return None
    if release.decoder_only:
        return tree.parameters - sum(part.parameters for part in components(tree) if part.name == "lm_head")
    extras = stored_extras(tree, release, prediction)
    return None if extras is None else tree.parameters + sum(extra.elements for extra in extras)

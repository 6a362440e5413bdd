"""Optimizers by the names of `results.memory.Optimizer`, for fake models and real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..results.training import LOOPS, Loop
from ..standard import re
from ..typed import Any
from .adapting import bitsandbytes
from .one_rank import by_mesh

UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
# Classes of bitsandbytes.optim. Source: bitsandbytes 0.50, optim/adamw.py, optim/lion.py
OF_BITSANDBYTES = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw": "PagedAdamW",
    "paged_adamw_8bit": "PagedAdamW8bit",
    "lion": "Lion",
    "lion_8bit": "Lion8bit",
}
PAGED_ELEMENTS = 100_000  # fewer stay on the device. Source: bitsandbytes 0.50, Optimizer8bit.get_state_buffer


def optimizer_of(name: str, model: Any, loop: Loop = LOOPS[None]) -> Any:
    """The optimizer of this name for the model's trained parameters; None for "none".

    UnavailableError if it needs bitsandbytes and that is missing.
    """
    import torch
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    groups = _groups(model, loop)
    match name:
        case "none":
            return None
        case "sgd" | "sgd_momentum":
            return torch.optim.SGD(groups, lr=1e-3, momentum=0.9 if name == "sgd_momentum" else 0.0, foreach=True)
        case "adafactor":
            from transformers.optimization import Adafactor

            return Adafactor(groups, lr=1e-3, scale_parameter=False, relative_step=False)
        case "muon":
            return _muon(model)
        case "adamw_for_loop":
            return torch.optim.AdamW(groups, foreach=False)
        case "adamw_foreach" | "adamw_fused":
            return torch.optim.AdamW(groups, **{name.removeprefix("adamw_"): True})
        case _:
            library = bitsandbytes().optim
            with unset_fake_temporarily():  # it computes its tables of 256 values, which fake tensors cannot do
                optimizer = getattr(library, OF_BITSANDBYTES[name])(groups)
            manager = library.GlobalOptimManager.get_instance()
            manager.initialize()
            if loop.by_trainer and optimizer.args.optim_bits == 8:
                for module in _embeddings(model):
                    manager.register_module_override(module, "weight", {"optim_bits": 32})
            return optimizer


def _groups(model: Any, loop: Loop) -> list[Any]:
    """The trained parameters, for Trainer in its two groups: with weight decay (whose default is 0) and without, and of
    tensor-parallel ones those that are cut apart from those that are whole.

    Source: transformers 5.23, trainer.py, create_optimizer (with its 32-bit states for embeddings) and get_decay_parameter_names
    """
    import torch

    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not loop.by_trainer:
        return [parameter for _, parameter in trained]
    norms = {name for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)}
    groups: tuple[list[Any], list[Any]] = [], []
    for name, parameter in trained:
        groups[name.rpartition(".")[0] in norms or UNDECAYED.search(name.lower()) is not None].append(parameter)
    parts: list[list[Any]] = [*groups]
    if len(by_mesh(parameter for _, parameter in trained)) > 1:
        parts = [part for group in groups for part in by_mesh(group)]
    return [{"params": part, "weight_decay": 0.0} for part in parts]


def _embeddings(model: Any) -> Iterable[Any]:
    import torch

    return (module for module in model.modules() if isinstance(module, torch.nn.Embedding))


def is_hidden_matrix(name: str, dimensions: int, embedded: bool) -> bool:
    """Whether Muon trains a parameter: a matrix within the layers, no embedding and no head.

    Source: torch 2.13, optim/_muon.py: other parameters should be optimized by a standard method such as AdamW
    """
    return dimensions == 2 and not embedded and name.count(".") > 1


def _muon(model: Any) -> Any:
    """torch's Muon for the matrices of layers, AdamW for all else, stepped one after the other."""
    import torch

    embedded = {id(parameter) for module in _embeddings(model) for parameter in module.parameters()}
    groups: tuple[list[Any], list[Any]] = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[is_hidden_matrix(name, parameter.dim(), id(parameter) in embedded)].append(parameter)
    parts = [make(group) for make, group in ((torch.optim.Muon, groups[1]), (_adamw, groups[0])) if group]
    return parts[0] if len(parts) == 1 else Together(parts)


def _adamw(parameters: list[Any]) -> Any:
    import torch

    return torch.optim.AdamW(parameters, foreach=True)


class Together:
    """Optimizers of different parameters as one."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[Any]:
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Any, Any]:
        return {parameter: state for part in self.parts for parameter, state in part.state.items()}

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)


def move_tables(optimizer: Any) -> None:
    """Makes an 8-bit optimizer move its tables to the device as it makes its first states in 8 bits: of AdamW both, of Lion the
    signed one. On fake tensors it would not, for the tables are real ones.

    Source: bitsandbytes 0.50, Optimizer2State.init_state and Optimizer1State.init_state
    """
    import torch

    if getattr(optimizer, "name2qmap", None) is None:
        return
    init_state, moved = (
        optimizer.init_state,
        ["dynamic"] if optimizer.optimizer_name == "lion" else ["dynamic", "udynamic"],
    )

    def init(group: Any, parameter: Any, *place: int) -> None:
        config = optimizer.get_config(*place, group)
        if config["optim_bits"] == 8 and parameter.numel() >= config["min_8bit_size"]:
            for name in moved:
                table = optimizer.name2qmap[name]
                optimizer.name2qmap[name] = torch.empty(table.shape, dtype=table.dtype)
            moved.clear()
        init_state(group, parameter, *place)

    optimizer.init_state = init


def page(optimizer: Any, on_host: Callable[[Any, Any], Any]) -> None:
    """Makes a paged optimizer put its large states where `on_host` (parameter, dtype) does, as it puts them in managed memory."""
    if not getattr(optimizer, "is_paged", False):
        return
    on_device = optimizer.get_state_buffer

    def buffer(parameter: Any, dtype: Any) -> Any:
        return (on_host if parameter.numel() >= PAGED_ELEMENTS else on_device)(parameter, dtype)

    optimizer.get_state_buffer = buffer

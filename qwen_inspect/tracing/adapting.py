"""A model made ready for training as PEFT does it: adapters on frozen weights, which may be of 4 bits; and its optimizer.

The same functions serve a model on fake tensors, whose memory is traced, and a real one, whose memory is measured.
Assumed: adapters of PEFT's own dtypes (float32 beside a base of 16 bits), no dropout, no bias trained. A 4-bit base is prepared
by `prepare_model_for_kbit_training`: what is not quantised is held in float32.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..errors import UnavailableError, UnsupportedError
from ..results.quantisation import Bnb4

ALL_LINEAR = "all-linear"  # PEFT's word for every linear module but the head
MATRIX = re.compile(r"\.lora_(embedding_)?[AB]\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FourBits:
    """A base held by bitsandbytes in 4 bits. modules: those that are, by full name; dtype: torch's name of what they compute
    in."""

    scheme: Bnb4
    modules: frozenset[str]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """Matrices of `rank` beside the modules that `targets` name, as PEFT's LoraConfig takes them."""

    rank: int
    targets: tuple[str, ...]
    base: FourBits | None = None


def adapt(model: Any, adapters: Adapters) -> None:
    """Put the adapters into the model, in place, and freeze all else. Checkpointing is to be enabled before: PEFT looks for it.

    Source: PEFT 0.21, mapping_func.get_peft_model. UnavailableError without PEFT, UnsupportedError for what PEFT refuses.
    """
    library = peft()
    targets = ALL_LINEAR if adapters.targets == (ALL_LINEAR,) else list(adapters.targets)
    try:
        library.get_peft_model(
            model, library.LoraConfig(r=adapters.rank, target_modules=targets, task_type="CAUSAL_LM")
        )
    except ValueError as error:
        raise UnsupportedError("peft_refuses", reason=" ".join(str(error).split())[:200]) from None


def is_matrix(name: str) -> bool:
    """Whether a parameter of that name is one of LoRA's matrices."""
    return MATRIX.search(name) is not None


def checkpoint(model: Any) -> None:
    """Enable activation checkpointing, as torch recommends it: not reentrant."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def hold_in_four_bits(model: Any, base: FourBits) -> None:
    """Linear modules of a fake model as bitsandbytes has them once they are loaded, with all that belongs to a weight.

    Source: transformers 5.23, replace_with_bnb_linear; bitsandbytes 0.50, QuantState.from_dict: tables and offset of each.
    """
    import torch

    library = bitsandbytes()
    linear = library.nn.Linear4bit
    storage = getattr(torch, base.scheme.storage.torch_name)
    model.is_loaded_in_4bit = True  # where PEFT looks
    for name in base.modules:
        try:
            dense = model.get_submodule(name)
        except AttributeError:
            continue  # of a layer that is not traced
        rows, columns = dense.weight.shape
        held = linear.__new__(linear)
        torch.nn.Module.__init__(held)
        held.in_features, held.out_features = columns, rows
        code_bytes = (rows * columns + 1) // 2
        codes = torch.empty(-(-code_bytes // storage.itemsize), 1, dtype=storage)
        held.weight = torch.nn.Parameter(codes, requires_grad=False)  # Params4bit takes no fake tensor
        held.bias = dense.bias
        held.weight.quant_state = held.quant_state = _quant_state(base.scheme, rows, columns, dense.weight.dtype)
        held.weight.quant_type, held.weight.compress_statistics = base.scheme.kind, base.scheme.double
        held.compute_dtype, held.compute_type_is_set = getattr(torch, base.dtype), True
        held.quant_storage, held.support_avx512bf16_for_cpu = storage, False
        model.set_submodule(name, held)


def _quant_state(scheme: Bnb4, rows: int, columns: int, dtype: Any) -> Any:
    """What bitsandbytes needs to read a weight, as `structure.packing` has it, and where scales are quantised too their
    offset."""
    import torch

    state = bitsandbytes().functional.QuantState
    blocks = -(-rows * columns // 64)
    nested = {}
    if scheme.double:
        scales = torch.empty(-(-blocks // 256))
        state2 = state(scales, code=torch.empty(256), blocksize=256, dtype=torch.float32)
        nested = {"offset": torch.empty(()), "state2": state2}
    scale_dtype = torch.uint8 if scheme.double else torch.float32
    return state(
        torch.empty(blocks, dtype=scale_dtype),
        shape=torch.Size((rows, columns)),
        code=torch.empty(16),
        blocksize=64,
        quant_type=scheme.kind,
        dtype=dtype,
        **nested,
    )


def parts_of(module: Any) -> Iterator[Any]:
    """The tensors beside a 4-bit weight that are neither parameters nor buffers."""
    state = getattr(module, "quant_state", None)
    if state is not None:
        yield state.absmax
        yield state.code
        if state.nested:
            yield from (state.state2.absmax, state.state2.code, state.offset)


def prepare_for_training(model: Any, *, checkpointing: bool) -> None:
    """PEFT's preparation of a base of 4 bits: what it does not quantise is cast to float32. Source: PEFT 0.21, utils.other."""
    options = {"use_reentrant": False}
    peft().prepare_model_for_kbit_training(model, checkpointing, options, auto_clear_cache=False)


@contextmanager
def without_moves() -> Iterator[None]:
    """`Module.to` on fake tensors, which torch 2.13 cannot swap: casts make new parameters, and there is one device."""
    import torch

    def cast(module: Any, device: object = None, dtype: Any = None) -> Any:
        for owner in module.modules():
            for name, parameter in list(owner.named_parameters(recurse=False)):
                if dtype is not None and parameter.dtype != dtype:
                    setattr(owner, name, torch.nn.Parameter(parameter.to(dtype), parameter.requires_grad))
        return module

    moved = torch.nn.Module.to
    torch.nn.Module.to = cast
    try:
        yield
    finally:
        torch.nn.Module.to = moved


def optimizer_of(name: str, trained: Iterable[Any]) -> Any:
    """The optimizer of that name over the parameters; None for "none". UnavailableError where it is bitsandbytes' and that is
    missing."""
    import torch
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    match name:
        case "none":
            return None
        case "sgd":
            return torch.optim.SGD(trained, lr=1e-3, foreach=True)
        case "adamw_8bit":
            with unset_fake_temporarily():  # its tables of 256 values are computed, which fake tensors cannot be
                return bitsandbytes().optim.AdamW8bit(trained)
        case "adamw_for_loop":
            return torch.optim.AdamW(trained, foreach=False)
        case _:
            return torch.optim.AdamW(trained, **{name.removeprefix("adamw_"): True})


def to_device(optimizer: Any) -> None:
    """An 8-bit optimizer's two tables come to the device with its first step.

    Source: bitsandbytes 0.50, Optimizer2State.init_state
    """
    import torch

    tables = getattr(optimizer, "name2qmap", None)
    if tables and not optimizer.state:
        optimizer.name2qmap = {name: torch.empty(table.shape, dtype=table.dtype) for name, table in tables.items()}


def peft() -> Any:
    return _package("peft")


def bitsandbytes() -> Any:
    return _package("bitsandbytes")


def _package(name: str) -> Any:
    """An optional package, imported without what it logs then: bitsandbytes, of kernels that it has not."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return import_module(name)
    except ImportError as error:
        raise UnavailableError("training_extra_missing", package=error.name) from None
    finally:
        logging.disable(level)

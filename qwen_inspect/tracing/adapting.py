"""Prepares a model for training as PEFT does: adapters on frozen weights, dense or in 4 bits.

The same functions serve fake models, whose memory is traced, and real ones, whose memory is measured.
Assumed: PEFT's default dtypes for adapters (float32 beside a 16-bit base), no trained bias. A 4-bit base is prepared
by `prepare_model_for_kbit_training`: everything that is not quantised is cast to float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import UnavailableError, UnsupportedError
from ..results.memory import DEFAULT_ALPHA
from ..results.quantisation import Bnb4
from ..standard import compiled, import_module
from ..typed import TYPE_CHECKING, Any
from ..values import dataclass

if TYPE_CHECKING:
    from ..results.memory import Run

ALL_LINEAR = "all-linear"  # PEFT's word for every linear module but the head
ADDED = compiled(r"\.(lora_(embedding_)?[AB]|lora_magnitude_vector|modules_to_save)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FourBits:
    """A base quantised by bitsandbytes to 4 bits. modules: full names of the quantised ones; dtype: torch's name of their compute
    dtype."""

    scheme: Bnb4
    modules: frozenset[str]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """LoRA matrices of `rank`, as in PEFT's LoraConfig: targets is target_modules, parameters target_parameters, saved
    modules_to_save, dora use_dora, stabilised use_rslora.
    """

    rank: int
    targets: tuple[str, ...]
    parameters: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    alpha: int = DEFAULT_ALPHA
    dropout: float = 0.0
    dora: bool = False
    stabilised: bool = False
    base: FourBits | None = None


def adapters_of(run: Run, base: object = None) -> Adapters | None:
    """The adapters that a run trains; None if it trains none."""
    if run.lora_rank is None:
        return None
    return Adapters(
        rank=run.lora_rank,
        targets=run.lora_targets,
        parameters=run.lora_parameters,
        saved=run.saved_modules,
        alpha=run.lora_alpha,
        dropout=run.lora_dropout,
        dora=run.dora,
        stabilised=run.rslora,
        base=base if isinstance(base, FourBits) else None,
    )


def adapt(model: Any, adapters: Adapters) -> None:
    """Adds the adapters to the model in place and freezes all else. Enable checkpointing before: PEFT checks for it.

    Source: PEFT 0.21, mapping_func.get_peft_model. UnavailableError without PEFT, UnsupportedError if PEFT refuses.
    """
    library = peft()
    targets = ALL_LINEAR if adapters.targets == (ALL_LINEAR,) else list(adapters.targets) or None
    config = library.LoraConfig(
        r=adapters.rank,
        target_modules=targets,
        target_parameters=list(adapters.parameters) or None,
        modules_to_save=list(adapters.saved) or None,
        lora_alpha=adapters.alpha,
        lora_dropout=adapters.dropout,
        use_dora=adapters.dora,
        use_rslora=adapters.stabilised,
        task_type="CAUSAL_LM",
    )
    try:
        library.get_peft_model(model, config)
    except ValueError as error:
        raise UnsupportedError("peft_refuses", reason=" ".join(str(error).split())[:200]) from None


def is_added(name: str) -> bool:
    """Whether PEFT added the parameter of this name: a matrix, a magnitude or a copy."""
    return ADDED.search(name) is not None


def checkpoint(model: Any) -> None:
    """Enables activation checkpointing in the non-reentrant form that torch recommends."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def hold_in_four_bits(model: Any, base: FourBits) -> None:
    """Replaces a fake model's linear modules by bitsandbytes' loaded 4-bit ones, with everything that belongs to a weight.

    Source: transformers 5.23, replace_with_bnb_linear; bitsandbytes 0.50, QuantState.from_dict: each weight has its own
    tables and offset.
    """
    import torch

    library = bitsandbytes()
    linear = library.nn.Linear4bit
    storage = getattr(torch, base.scheme.storage.torch_name)
    model.is_loaded_in_4bit = True  # PEFT checks this
    for name in base.modules:
        try:
            dense = model.get_submodule(name)
        except AttributeError:
            continue  # of a layer that is not traced
        rows, columns = dense.weight.shape
        quantised = linear.__new__(linear)
        torch.nn.Module.__init__(quantised)
        quantised.in_features, quantised.out_features = columns, rows
        code_bytes = (rows * columns + 1) // 2
        codes = torch.empty(-(-code_bytes // storage.itemsize), 1, dtype=storage)
        quantised.weight = torch.nn.Parameter(codes, requires_grad=False)  # Params4bit takes no fake tensor
        quantised.bias = dense.bias
        quantised.weight.quant_state = quantised.quant_state = _quant_state(
            base.scheme, rows, columns, dense.weight.dtype
        )
        quantised.weight.quant_type, quantised.weight.compress_statistics = base.scheme.kind, base.scheme.double
        quantised.compute_dtype, quantised.compute_type_is_set = getattr(torch, base.dtype), True
        quantised.quant_storage, quantised.support_avx512bf16_for_cpu = storage, False
        model.set_submodule(name, quantised)


def _quant_state(scheme: Bnb4, rows: int, columns: int, dtype: Any) -> Any:
    """The QuantState of a 4-bit weight, as in `structure.matrix_parts`, with the offset of nested scales."""
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


@contextmanager
def shared_codes(model: Any) -> Iterator[None]:
    """Moves what belongs to 4-bit weights off meta, and lets modules find it whose codes FSDP2 has gathered.

    Source: bitsandbytes 0.50, nn/modules.py, fix_4bit_weight_quant_state_from_module, which makes a Params4bit of the codes where
    they are; that class takes no fake tensor.
    """
    import torch

    for module in model.modules():
        state = getattr(module, "quant_state", None)
        for part in (state, state.state2) if state is not None else ():
            for name in ("absmax", "code", "offset"):
                if torch.is_tensor(tensor := getattr(part, name, None)):
                    setattr(part, name, torch.empty_like(tensor, device="cpu"))

    def found(module: Any) -> None:
        module.weight.quant_state = module.quant_state

    from .kernels import replaced

    with replaced([(bitsandbytes().nn.modules, "fix_4bit_weight_quant_state_from_module", found)]):
        yield


def prepare_for_training(model: Any, *, checkpointing: bool) -> None:
    """PEFT's preparation of a 4-bit base: casts what is not quantised to float32. Source: PEFT 0.21, utils.other."""
    options = {"use_reentrant": False}
    peft().prepare_model_for_kbit_training(model, checkpointing, options, auto_clear_cache=False)


@contextmanager
def without_moves() -> Iterator[None]:
    """Replaces `Module.to`, which torch 2.13 cannot do on fake tensors: casts make new parameters, device moves do nothing."""
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


@contextmanager
def fake_parameters() -> Iterator[None]:
    """Replaces what PEFT does with parameters and torch 2.13 cannot do with fake ones: copying them with their module, setting a
    parametrised one to itself, and, for DoRA, making a 4-bit weight dense. UnavailableError without PEFT.

    Source: PEFT 0.21, utils/integrations.py, dequantize_module_weight
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.nn.utils import parametrize

    peft()
    dora = import_module("peft.tuners.lora.dora")
    weight_of = dora.dequantize_module_weight

    def copied(parameter: Any, memo: dict[int, Any]) -> Any:
        copy = torch.empty_like(parameter)
        if isinstance(parameter, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, parameter.requires_grad)
        return memo.setdefault(id(parameter), copy)

    def dense(module: Any) -> Any:
        state = getattr(module, "quant_state", None)
        if state is None:
            return weight_of(module)
        return bitsandbytes().functional.dequantize_4bit(module.weight, state)

    from .kernels import replaced

    with replaced(
        (
            (FakeTensor, "__deepcopy__", copied),
            (parametrize, "_maybe_set", lambda *_: None),
            (dora, "dequantize_module_weight", dense),
        )
    ):
        yield


def peft() -> Any:
    return _package("peft")


def bitsandbytes() -> Any:
    return _package("bitsandbytes")


def _package(name: str) -> Any:
    """Imports an optional package without its log messages, such as bitsandbytes' about missing kernels."""
    import logging

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return import_module(name)
    except ImportError as error:
        raise UnavailableError("training_extra_missing", package=error.name) from None
    finally:
        logging.disable(level)

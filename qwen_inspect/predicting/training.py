"""Trained tensors and what a step keeps for them, from shapes alone: LoRA matrices, optimizer states, a prepared 4-bit base."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from ..architectures.patterns import search, selects
from ..architectures.reading import shown
from ..checkpoint import DTYPE_OF_TORCH_NAME, DType, Tensor
from ..errors import MalformedError, UnsupportedError, UsageError
from ..results.lora import TrainedTensor
from ..results.memory import Run
from ..results.training import LOOPS, Loop, Training
from ..spec import Module, each_module, each_tensor
from ..structure.adapters import folded
from ..tracing.adapting import FourBits
from ..tracing.optimizers import OF_BITSANDBYTES, PAGED_ELEMENTS, is_hidden_matrix
from ..values import replace
from .idle_towers import is_idle

HIGHEST_RANK = 1 << 20
BLOCK_8BIT = 256
LEAST_8BIT = 4096
TABLE_8BIT_BYTES = 256 * 4


def check_training(run: Run) -> None:
    """UsageError if the training options contradict each other, or `trained` cannot be matched."""
    for option, pattern in (("--trained", run.trained), ("--freeze", run.frozen)):
        try:
            search(pattern)
        except (MalformedError, UnsupportedError):
            raise UsageError("trained_pattern", option=option, text=shown(pattern)) from None
    if run.mode != "train" and run.training_options:
        raise UsageError("train_option", option=run.training_options[0], mode=run.mode)
    if run.lora_rank is None:
        return
    if run.loop.ema:
        raise UsageError("not_together", option="--ema", other="--lora")
    if not 1 <= run.lora_rank <= HIGHEST_RANK:
        raise UsageError("lora_rank", found=run.lora_rank, most=HIGHEST_RANK)
    for option, pattern in (("--trained", run.trained), ("--freeze", run.frozen)):
        if pattern:
            raise UsageError("lora_with_trained", option=option)


def trained_of(tree: Module, run: Run, matrices: Sequence[TrainedTensor]) -> tuple[Tensor, ...]:
    """The tensors that get gradients."""
    if run.lora_rank is not None:
        return tuple(matrix.tensor for matrix in matrices)
    is_trained = selects(run.trained, run.frozen)
    return tuple(tensor for tensor in each_tensor(tree) if is_trained(tensor.name))


def training_of(tree: Module, run: Run, matrices: Sequence[TrainedTensor], weights: Sequence[Tensor]) -> Training:
    """The report of what is trained. weights: the model's own, as they are in memory during the run."""
    trained = trained_of(tree, run, matrices)
    adapters = run.lora_rank is not None
    trained_bytes = sum(tensor.size_bytes for tensor in trained)
    weights_bytes = sum(tensor.size_bytes for tensor in weights)
    named = matrices or [
        TrainedTensor(tensor, "copy", tensor.name.rpartition(".")[0] or tensor.name) for tensor in trained
    ]
    return Training(
        trainable=sum(tensor.elements for tensor in trained),
        base_parameters=tree.parameters,
        adapters=adapters,
        trained_bytes=trained_bytes,
        frozen_bytes=weights_bytes - (0 if adapters else trained_bytes),
        modules=tuple(folded(named)),
    )


def prepared(weights: Sequence[Tensor], base: FourBits, run: Run) -> tuple[Tensor, ...]:
    """The tensors of a 4-bit model after `prepare_model_for_kbit_training` and a first forward: all in float32 except packed
    weights and their biases, which a forward casts to the compute dtype; a tower that does not run keeps its biases in float32.
    Nested scales have an offset, a number on the device that files store as text.

    Sources: PEFT 0.21, utils.other: all float16 and bfloat16 parameters except Params4bit are cast; bitsandbytes 0.50,
    Linear4bit.forward, QuantState.from_dict.
    """
    packed = {tensor.name.removesuffix(".weight.absmax") for tensor in weights if tensor.name.endswith(".absmax")}
    computed = DTYPE_OF_TORCH_NAME[base.dtype]
    cast = []
    for tensor in weights:
        module = tensor.name.rpartition(".")[0]
        if module in packed and tensor.name.endswith(".bias") and not is_idle(module, run):
            cast.append(replace(tensor, dtype=computed))
        else:
            cast.append(replace(tensor, dtype=DType.F32) if tensor.dtype in (DType.F16, DType.BF16) else tensor)
    nested = [tensor.name for tensor in weights if tensor.name.endswith(".nested_absmax")]
    return *cast, *(Tensor(f"{name}.offset", (), DType.F32) for name in nested)


def embedded_in(tree: Module) -> frozenset[str]:
    """The names of embeddings' weights, for which Trainer has bitsandbytes keep states in 32 bits."""
    embeddings = ((name, module) for name, module in each_module(tree) if module.class_name.endswith("Embedding"))
    return frozenset(f"{name}.{tensor.name}" for name, module in embeddings for tensor in module.tensors)


def optimizer_sizes(
    trained: Sequence[Tensor], optimizer: str, *, embedded: Collection[str] = (), loop: Loop = LOOPS[None]
) -> Iterator[int]:
    """Bytes of each tensor that an optimizer keeps on the device between steps. embedded: the names of embeddings' weights.

    AdamW: two states in the parameter's dtype; fused, a step counter on the device too. SGD with momentum and Muon: one.
    bitsandbytes: two states of AdamW, one of Lion, each of 4 bytes per element, or of one byte and a scale per block of 256 in 8
    bits, with a table for all; float32 for tensors of less than 4,096 elements, and for embeddings if Trainer made it; paged
    states of 100,000 elements and more are in managed memory. Adafactor: float32 sums of rows and of columns, and a number.
    Sources: torch 2.13, optim/adamw.py, sgd.py, _muon.py; bitsandbytes 0.50, optim/optimizer.py, init_state and
    get_state_buffer; transformers 5.23, optimization.py, Adafactor, and trainer.py, create_optimizer.
    """
    for tensor in trained:
        is_embedding = tensor.name in embedded
        match optimizer:
            case "none" | "sgd":
                pass
            case "sgd_momentum":
                yield tensor.size_bytes
            case "adafactor":
                yield from _adafactor_sizes(tensor)
            case "muon" if is_hidden_matrix(tensor.name, len(tensor.shape), is_embedding):
                yield tensor.size_bytes
            case name if name in OF_BITSANDBYTES:
                wide = is_embedding and loop.by_trainer
                yield from _bitsandbytes_sizes(tensor, name, wide=wide)
            case _:
                yield from (tensor.size_bytes, tensor.size_bytes)
                if optimizer == "adamw_fused":
                    yield 4
    if any(is_in_8_bits(tensor, optimizer, wide=tensor.name in embedded and loop.by_trainer) for tensor in trained):
        yield from [TABLE_8BIT_BYTES] * states_of(optimizer)


def states_of(optimizer: str) -> int:
    """States for each parameter, of bitsandbytes' optimizers."""
    return 1 if optimizer.startswith("lion") else 2


def is_paged(tensor: Tensor, optimizer: str) -> bool:
    """Whether its states are in managed memory."""
    return optimizer.startswith("paged") and tensor.elements >= PAGED_ELEMENTS


def is_in_8_bits(tensor: Tensor, optimizer: str, *, wide: bool) -> bool:
    """Whether its states are. wide: they have 32 bits whatever the optimizer has."""
    return optimizer.endswith("_8bit") and tensor.elements >= LEAST_8BIT and not wide


def _bitsandbytes_sizes(tensor: Tensor, optimizer: str, *, wide: bool) -> Iterator[int]:
    """The states of a tensor."""
    in_8_bits = is_in_8_bits(tensor, optimizer, wide=wide)
    if not is_paged(tensor, optimizer):
        yield from [tensor.elements if in_8_bits else 4 * tensor.elements] * states_of(optimizer)
    if in_8_bits:
        yield from [4 * -(-tensor.elements // BLOCK_8BIT)] * states_of(optimizer)


def _adafactor_sizes(tensor: Tensor) -> Iterator[int]:
    width = 8 if tensor.dtype is DType.F64 else 4
    if len(tensor.shape) >= 2:
        yield from (width * tensor.elements // tensor.shape[-1], width * tensor.elements // tensor.shape[-2])
    else:
        yield width * tensor.elements
    yield width

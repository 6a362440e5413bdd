"""A base in bitsandbytes' 4 bits on ranks of FSDP2: its weights as they are sharded, and what stays whole on every rank.

Codes are a parameter of one column, which FSDP2 cuts by rows like any other; scales and tables are attributes of it, which FSDP2
does not see. Codes have to be stored in a floating dtype: accelerate leaves others whole on every rank. What is not quantised
keeps its dtype: PEFT's preparation, which casts it to float32, is no part of the recipe for FSDP.
Sources: bitsandbytes 0.50, nn/modules.py, fix_4bit_weight_quant_state_from_module; accelerate 1.15, utils/fsdp_utils.py,
fsdp2_prepare_model; PEFT 0.21, docs/source/accelerate/fsdp.md. Run on 2 and 4 processes (gloo).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ..checkpoint import DType, Tensor
from ..errors import UnsupportedError
from ..predicting.quantised import base_of
from ..results.memory import Run
from ..results.model import Report
from ..results.ranks import Parallelism
from ..tracing.adapting import FourBits
from ..values import dataclass, replace

STORAGE = "bnb_4bit_quant_storage"
OFFSET = ".offset"
BESIDE = (".absmax", ".nested_absmax", ".quant_map", ".nested_quant_map", OFFSET)


@dataclass(frozen=True, slots=True, kw_only=True)
class FourBitWeights:
    """sharded: parameters, codes in `storage` among them. whole: what is on every rank."""

    sharded: tuple[Tensor, ...]
    whole: tuple[Tensor, ...]


def four_bit_weights(report: Report, run: Run, how: Parallelism) -> FourBitWeights | None:
    """None for a dense model. UnsupportedError for other quantised weights, and for what is not known of 4 bits on ranks."""
    quantised = report.known.quantised
    if quantised is None:
        return None
    base = base_of(report)
    if not isinstance(base, FourBits):
        raise UnsupportedError("ranks_quantised", method=quantised.method)
    alone = how.ranks == how.fsdp and how.expert == 1 and not how.by_deepspeed
    if run.mode != "train" or run.lora_rank is None or not alone:
        raise UnsupportedError("ranks_four_bits")
    if run.dora or run.lora_parameters or run.saved_modules:
        raise UnsupportedError("ranks_four_bits_kind")
    storage = _storage(report, base)
    if storage in (DType.U8, DType.I8):
        raise UnsupportedError("ranks_four_bits_storage", found=storage.torch_name, dtype=report.spec.dtype.torch_name)
    if run.autocast is not None and run.loop.accelerated and storage.torch_name != run.autocast:
        raise UnsupportedError("ranks_four_bits_autocast", found=storage.torch_name, dtype=run.autocast)
    stored = tuple(report.known.weights or ())
    weights = (*stored, *_offsets(stored))
    codes = {f"{name}.weight" for name in base.modules}
    return FourBitWeights(
        sharded=tuple(
            _stored(tensor, storage) if tensor.name in codes else tensor
            for tensor in weights
            if not tensor.name.endswith(BESIDE)
        ),
        whole=tuple(tensor for tensor in weights if tensor.name.endswith(BESIDE)),
    )


def base_on_ranks(report: Report) -> FourBits | None:
    """The layout of a base in 4 bits with codes as ranks store them; None for other weights."""
    base = base_of(report) if report.known.quantised is not None else None
    if not isinstance(base, FourBits):
        return None
    return replace(base, scheme=replace(base.scheme, storage=_storage(report, base)))


def _storage(report: Report, base: FourBits) -> DType:
    """As the configuration says, else the weights' dtype."""
    section = (report.config or {}).get("quantization_config")
    stated = isinstance(section, Mapping) and section.get(STORAGE) is not None
    return base.scheme.storage if stated else report.spec.dtype


def _offsets(weights: Iterable[Tensor]) -> Iterator[Tensor]:
    """The mean of nested scales: a number on the device, which files store as text."""
    for tensor in weights:
        if tensor.name.endswith(".nested_absmax"):
            yield Tensor(f"{tensor.name}{OFFSET}", (), DType.F32)


def _stored(codes: Tensor, storage: DType) -> Tensor:
    """The same codes in words of another dtype, the last one filled up."""
    return replace(codes, shape=(-(-codes.size_bytes * 8 // storage.bits), 1), dtype=storage)

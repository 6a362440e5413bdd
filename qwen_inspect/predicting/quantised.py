"""How a quantised model's weights lie in memory while it runs: in bitsandbytes' layout, or with a bound for other kernels."""

from __future__ import annotations

from collections.abc import Mapping

from ..architectures.quantised import read_quantisation
from ..architectures.reading import number, shown
from ..errors import UnsupportedError
from ..language import Message
from ..loaders import gpus
from ..results.memory import Run
from ..results.model import Report
from ..results.quantisation import Bnb4, BnbInt8
from ..spec import each_module
from ..typed import TYPE_CHECKING
from ..units import MIB

if TYPE_CHECKING:
    from ..tracing.bases import Base

COMPUTED = ("bfloat16", "float16", "float32")  # dtypes that bitsandbytes multiplies in
OUTLIERS_FROM = 6.0  # transformers 5.23, BitsAndBytesConfig, llm_int8_threshold


def base_of(report: Report) -> Base | None:
    """bitsandbytes' layout of the weights; None if the model is dense or quantised otherwise.

    UnsupportedError for a compute dtype that bitsandbytes has no kernels for.
    """
    config = report.config or {}
    quantisation = None if report.known.quantised_by is None else read_quantisation(config)
    schemes = () if quantisation is None else quantisation.schemes
    if quantisation is None or not any(isinstance(scheme, Bnb4 | BnbInt8) for scheme in schemes):
        return None
    from ..tracing.adapting import FourBits
    from ..tracing.bases import EightBits

    section = config.get("quantization_config")
    options = section if isinstance(section, Mapping) else {}
    linear = [name for name, module in each_module(report.tree) if module.class_name == "Linear"]
    modules = frozenset(name for name in linear if quantisation.scheme_of(name) is not None)
    first = schemes[0]
    if all(isinstance(scheme, BnbInt8) for scheme in schemes) and not options.get("llm_int8_has_fp16_weight"):
        return EightBits(modules=modules, threshold=number(options, "llm_int8_threshold", default=OUTLIERS_FROM))
    if not all(isinstance(scheme, Bnb4) for scheme in schemes) or not isinstance(first, Bnb4):
        return None
    stated_dtype = options.get("bnb_4bit_compute_dtype")
    compute_dtype = "float32" if stated_dtype is None else str(stated_dtype)  # transformers 5.23, BitsAndBytesConfig
    if compute_dtype not in COMPUTED:
        raise UnsupportedError("memory_computed", found=shown(compute_dtype), known=", ".join(COMPUTED))
    return FourBits(scheme=first, modules=modules, dtype=compute_dtype)


def scratch_of(report: Report, run: Run) -> tuple[int, int, Message]:
    """An upper bound of what kernels for quantised weights add to a dense model's peak: fixed bytes, bytes per token of the
    batch's prompts, and the reason.

    One dequantised matrix, with a copy of its inputs and outputs in the model's dtype; or all matrices dequantised, where
    transformers may do that. Sources: transformers 5.23, quantizers/quantizer_mxfp4.py, where the package `kernels` is missing;
    quantizer_finegrained_fp8.py, below compute capability 8.9; quantizer_compressed_tensors.py, in the first forward
    """
    quantised = report.known.quantised
    assert quantised is not None
    element_bytes = report.spec.dtype.bits // 8
    experts_per_token = max((getattr(layer.mlp, "experts_per_token", 1) for layer in report.spec.layers), default=1)
    width, expert_width = quantised.widths
    token_bytes = element_bytes * max(width, experts_per_token * expert_width)
    fixed_bytes = element_bytes * quantised.largest_parameters
    dense = {
        "mxfp4": "range_mxfp4",
        "compressed-tensors": "range_compressed",
        "fp8": None if gpus.supports(run.gpu, "fp8") else "range_fp8",
    }.get(quantised.method)
    if dense is not None:
        fixed_bytes += max(0, element_bytes * quantised.parameters - quantised.size_bytes)
    # Rounding of large segments: the matrix and each copy may take one.
    source = Message("range_matrix") if dense is None else Message(dense, gpu=run.gpu)
    return fixed_bytes + 3 * SEGMENT_BYTES, token_bytes, source


SEGMENT_BYTES = 2 * MIB

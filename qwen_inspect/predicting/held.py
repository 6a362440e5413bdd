"""A model -> how bitsandbytes holds its weights while it runs, as far as that can be traced."""

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
from ..tracing.adapting import FourBits
from ..tracing.bases import Base, EightBits
from ..units import MIB

COMPUTED = ("bfloat16", "float16", "float32")  # what bitsandbytes multiplies in
OUTLIERS_FROM = 6.0  # transformers 5.23, BitsAndBytesConfig, llm_int8_threshold


def base_of(report: Report) -> Base | None:
    """None of a model that is dense, or quantised otherwise. UnsupportedError for a dtype that bitsandbytes has no kernels of."""
    config = report.config or {}
    quantisation = None if report.known.quantised is None else read_quantisation(config)
    if quantisation is None or not quantisation.schemes:
        return None
    found = config.get("quantization_config")
    options = found if isinstance(found, Mapping) else {}
    linear = [name for name, module in each_module(report.tree) if module.class_name == "Linear"]
    modules = frozenset(name for name in linear if quantisation.scheme_of(name) is not None)
    scheme = quantisation.schemes[0]
    if all(isinstance(one, BnbInt8) for one in quantisation.schemes) and not options.get("llm_int8_has_fp16_weight"):
        return EightBits(modules=modules, threshold=number(options, "llm_int8_threshold", default=OUTLIERS_FROM))
    if not all(isinstance(one, Bnb4) for one in quantisation.schemes) or not isinstance(scheme, Bnb4):
        return None
    said = options.get("bnb_4bit_compute_dtype")
    computed = "float32" if said is None else str(said)  # transformers 5.23, BitsAndBytesConfig
    if computed not in COMPUTED:
        raise UnsupportedError("memory_computed", found=shown(computed), known=", ".join(COMPUTED))
    return FourBits(scheme=scheme, modules=modules, dtype=computed)


def scratch_of(report: Report, run: Run) -> tuple[int, Message]:
    """The most that kernels of quantised weights take at the peak beside what a dense model does, and why.

    One matrix made dense, with a copy of its inputs and outputs in the model's dtype; or all of them made dense, where
    transformers may do that. Sources: transformers 5.23, quantizers/quantizer_mxfp4.py, where the package `kernels` is missing;
    quantizer_finegrained_fp8.py, below compute capability 8.9; quantizer_compressed_tensors.py, in the first forward
    """
    found = report.known.quantised
    assert found is not None
    number_bytes = report.spec.dtype.bits // 8
    tokens = run.batch * run.prompt_tokens
    taken = max((getattr(layer.mlp, "experts_per_token", 1) for layer in report.spec.layers), default=1)
    width, expert_width = found.widths
    scratch = number_bytes * (found.largest_parameters + tokens * max(width, taken * expert_width))
    dense = {
        "mxfp4": "range_mxfp4",
        "compressed-tensors": "range_compressed",
        "fp8": None if gpus.supports(run.gpu, "fp8") else "range_fp8",
    }.get(found.method)
    if dense is not None:
        scratch += max(0, number_bytes * found.parameters - found.size_bytes)
    # As the allocator rounds large segments, of which a matrix and each copy may take one.
    source = Message("range_matrix") if dense is None else Message(dense, gpu=run.gpu)
    return scratch + 3 * SEGMENT_BYTES, source


SEGMENT_BYTES = 2 * MIB

"""A model -> how bitsandbytes holds its weights while it runs, as far as that can be traced."""

from __future__ import annotations

from collections.abc import Mapping

from .analyzers.adapting import FourBits
from .analyzers.bases import Base, EightBits
from .architectures.quantised import read_quantisation
from .architectures.reading import shown
from .errors import UnsupportedError
from .quantisation import Bnb4, BnbInt8
from .report.model import Report
from .spec import each_module

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
        threshold = options.get("llm_int8_threshold", OUTLIERS_FROM)
        return EightBits(modules=modules, threshold=threshold if isinstance(threshold, (int, float)) else OUTLIERS_FROM)
    if not all(isinstance(one, Bnb4) for one in quantisation.schemes) or not isinstance(scheme, Bnb4):
        return None
    said = options.get("bnb_4bit_compute_dtype")
    computed = report.spec.dtype.torch_name if said is None else str(said)
    if computed not in COMPUTED:
        raise UnsupportedError("memory_computed", found=shown(computed), known=", ".join(COMPUTED))
    return FourBits(scheme=scheme, modules=modules, dtype=computed)

"""A model of a configuration as llama.cpp's converter and llama-quantize would store it: a GGUF file that is not there."""

from __future__ import annotations

from contextlib import suppress

from ..architectures.gguf_keys import read_hyperparameters
from ..architectures.gguf_quantisation import SCHEMES, quantised
from ..architectures.gguf_writing import as_converted
from ..checkpoint import Checkpoint
from ..errors import UnsupportedError, UsageError
from ..language import Message
from ..results.model import Report
from ..values import replace
from .inspect import analyse
from .kept_design import known_architecture

# Methods whose weights the converter turns back into dense ones. Source: conversion/base.py, ModelBase.dequant_model.
DEQUANTISED = frozenset({"fp8"})
KEPT = frozenset({"mxfp4"})  # written as they are


def bytes_by_scheme(report: Report) -> tuple[tuple[str, int], ...]:
    """The quantisations of llama-quantize that the model can have, with the bytes of their tensors, the smallest first.

    Raises UnsupportedError for a model whose conversion is not known here.
    """
    config = report.config or {}
    metadata, tensors = as_converted(config, known_architecture(config), report.spec.dtype, ())
    hyperparameters, sizes = read_hyperparameters(metadata, tensors), []
    for scheme in SCHEMES:
        if scheme == "MXFP4_MOE" and not hyperparameters.experts.count:
            continue
        with suppress(UnsupportedError, UsageError):
            stored = quantised(tensors, scheme, hyperparameters)
            sizes.append((scheme, sum(tensor.size_bytes for tensor in stored)))
    return tuple(sorted(sizes, key=lambda named: named[1]))


def as_gguf(report: Report, scheme: str) -> Report:
    """The report of the model's GGUF file in the quantisation `scheme`, a name of llama-quantize such as Q4_K_M.

    UsageError for a model whose files are GGUF already; UnsupportedError for quantised files and for families or schemes whose
    conversion is not known here.
    """
    known = report.known
    if known.quantised is not None and known.quantised.method == "gguf":
        raise UsageError("quant_of_gguf", model=report.ref.id)
    if known.quantised is not None and known.quantised.method not in DEQUANTISED | KEPT:
        raise UnsupportedError("llama_cpp_packed", method=known.quantised.method)
    config = report.config or {}
    files = report.tensors or () if report.tensors_origin == "stored" else ()
    metadata, tensors = as_converted(config, known_architecture(config), report.spec.dtype, files)
    stored = quantised(tensors, scheme, read_hyperparameters(metadata, tensors))
    size_bytes = sum(tensor.size_bytes for tensor in stored)
    checkpoint = Checkpoint(ref=report.ref, config=metadata, tensors=stored, gguf=True)
    notices = [Message("quant_predicted", scheme=scheme.upper(), size=size_bytes)]
    if any(key.endswith(".nextn_predict_layers") for key in metadata):
        notices.append(Message("quant_with_prediction"))
        if not files and str(metadata["general.architecture"]) == "glm4moe":
            notices.append(Message("quant_prediction_shares"))
    written = analyse(checkpoint, workload=report.workload)
    return replace(written, tensors_origin="theory", notices=(*report.notices, *notices))

"""A model as llama.cpp reads it: a GGUF file's own metadata and tensors, else those that its converter would write."""

from __future__ import annotations

from ...architectures.gguf_writing import as_converted
from ...checkpoint import DType
from ...errors import UnsupportedError
from ...results.model import Report
from ...structure.kept_design import known_architecture
from .buffers import GgufModel


def gguf_model(report: Report) -> GgufModel:
    """Raises UnsupportedError for quantised files of other kinds, and for a model whose conversion is not known here."""
    if report.known.unread is not None:
        raise report.known.unread
    config, quantised = report.config or {}, report.known.quantised
    if "general.architecture" in config and report.tensors is not None:
        return GgufModel(config, tuple(report.tensors))
    if quantised is not None:
        raise UnsupportedError("llama_cpp_packed", method=quantised.method)
    dtype = DType.F32 if report.spec.dtype is DType.F64 else report.spec.dtype
    metadata, tensors = as_converted(config, known_architecture(config), dtype)
    return GgufModel(metadata, tuple(tensors))

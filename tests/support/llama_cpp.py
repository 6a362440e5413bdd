"""llama.cpp itself, from the wheel of xllamacpp 2026.10.11549, and what it prints.

The library only simulates its allocations (`no_alloc`), which gives the same sizes. Structs: include/llama.h of that build.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any


class ModelParameters(ctypes.Structure):
    _fields_ = (
        ("devices", ctypes.c_void_p),
        ("overrides", ctypes.c_void_p),
        ("n_gpu_layers", ctypes.c_int32),
        ("split_mode", ctypes.c_int),
        ("load_mode", ctypes.c_int),
        ("lazy_mode", ctypes.c_int),
        ("main_gpu", ctypes.c_int32),
        ("tensor_split", ctypes.c_void_p),
        ("progress", ctypes.c_void_p),
        ("progress_data", ctypes.c_void_p),
        ("kv_overrides", ctypes.c_void_p),
        *((name, ctypes.c_bool) for name in ("vocab_only", "check", "extra", "no_host", "no_alloc", "load_mtp")),
    )


class ContextParameters(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((name, ctypes.c_uint32) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
        *((name, ctypes.c_int32) for name in ("n_threads", "n_threads_batch")),
        *((name, ctypes.c_int) for name in ("context_type", "rope", "pooling", "attention", "flash_attn_type")),
        *((f"rope_{at}", ctypes.c_float) for at in range(6)),
        ("yarn_context", ctypes.c_uint32),
        ("defrag", ctypes.c_float),
        ("evaluate", ctypes.c_void_p),
        ("evaluate_data", ctypes.c_void_p),
        ("type_k", ctypes.c_int),
        ("type_v", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("abort", "abort_data", "unnamed")),
        *(
            (name, ctypes.c_bool)
            for name in ("embeddings", "offload_kqv", "no_perf", "op_offload", "swa_full", "kv_unified")
        ),
        ("samplers", ctypes.c_void_p),
        ("n_samplers", ctypes.c_size_t),
        ("other", ctypes.c_void_p),
    )


class ProjectorParameters(ctypes.Structure):
    """Source: tools/mtmd/mtmd.h, mtmd_context_params."""

    _fields_ = (
        ("use_gpu", ctypes.c_bool),
        ("device", ctypes.c_void_p),
        ("timings", ctypes.c_bool),
        ("n_threads", ctypes.c_int),
        ("image_marker", ctypes.c_char_p),
        ("media_marker", ctypes.c_char_p),
        ("flash_attn_type", ctypes.c_int),
        ("warmup", ctypes.c_bool),
        ("image_min_tokens", ctypes.c_int),
        ("image_max_tokens", ctypes.c_int),
        ("evaluate", ctypes.c_void_p),
        ("evaluate_data", ctypes.c_void_p),
        ("batch_max_tokens", ctypes.c_int32),
        ("progress", ctypes.c_void_p),
        ("progress_data", ctypes.c_void_p),
    )


def library_path() -> Path | None:
    """The shared library of xllamacpp; None if that is not installed."""
    found = importlib.util.find_spec("xllamacpp")
    folders = [] if found is None else [Path(folder) for folder in found.submodule_search_locations or ()]
    paths = [path for folder in folders for path in folder.glob("xllamacpp*.so")]
    return paths[0] if paths else None


@cache
def _library() -> tuple[Any, list[str], Any]:
    """The library, the list that its log is written to, and the callback that writes there."""
    library = ctypes.CDLL(str(library_path()), mode=os.RTLD_LAZY)
    library.llama_model_default_params.restype = ModelParameters
    library.llama_context_default_params.restype = ContextParameters
    library.llama_model_load_from_file.argtypes = [ctypes.c_char_p, ModelParameters]
    library.llama_model_load_from_file.restype = ctypes.c_void_p
    library.llama_init_from_model.argtypes = [ctypes.c_void_p, ContextParameters]
    library.llama_init_from_model.restype = ctypes.c_void_p
    for name in ("llama_free", "llama_model_free"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    lines: list[str] = []
    callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    library_callback = callback(lambda level, text, data: lines.append(text.decode("utf-8", errors="replace")))
    library.llama_log_set(library_callback, None)
    library.llama_backend_init()
    return library, lines, library_callback


def printed_by_llama_cpp(path: Path, contexts: Sequence[Mapping[str, int]], *, predicts: bool = False) -> list[str]:
    """What the library prints while it builds each context. contexts: fields of ContextParameters.

    predicts: layers for multi-token prediction are loaded.
    """
    library, lines, _ = _library()
    parameters = library.llama_model_default_params()
    parameters.no_alloc, parameters.load_mode, parameters.load_mtp = True, 0, predicts
    lines.clear()
    model = library.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, "".join(lines)[-500:]
    texts = []
    for fields in contexts:
        context_parameters = library.llama_context_default_params()
        context_parameters.swa_full = False
        for name, value in fields.items():
            setattr(context_parameters, name, value)
        lines.clear()
        context = library.llama_init_from_model(model, context_parameters)
        assert context, "".join(lines)[-500:]
        library.llama_free(context)
        texts.append("".join(lines))
    library.llama_model_free(model)
    return texts


def printed_while_loading(path: Path, **fields: int) -> str:
    """What the library prints while it really loads a model. fields: of ModelParameters."""
    library, lines, _ = _library()
    parameters = library.llama_model_default_params()
    for name, value in fields.items():
        setattr(parameters, name, value)
    lines.clear()
    model = library.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, "".join(lines)[-500:]
    library.llama_model_free(model)
    return "".join(lines)


def weights_by_llama_cpp(path: Path, **fields: int) -> list[tuple[str, str]]:
    """Device and MiB of the buffers of weights that the library prints."""
    return re.findall(r"(\S+) model buffer size = +([\d.]+)", printed_while_loading(path, **fields))


class Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("token", "embd", "pos", "n_seq_id", "seq_id", "logits")),
    )


def printed_with_adapter(path: Path, adapter: Path, fields: Mapping[str, int]) -> str:
    """What the library prints while it loads an adapter, and reserves for its first use: a token, really computed."""
    library, lines, _ = _library()
    library.llama_batch_get_one.restype = Batch
    library.llama_decode.argtypes = [ctypes.c_void_p, Batch]
    library.llama_adapter_lora_init.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.llama_adapter_lora_init.restype = ctypes.c_void_p
    library.llama_set_adapters_lora.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    parameters = library.llama_model_default_params()
    model = library.llama_model_load_from_file(str(path).encode(), parameters)
    context_parameters = library.llama_context_default_params()
    for name, value in fields.items():
        setattr(context_parameters, name, value)
    context = library.llama_init_from_model(model, context_parameters)
    lines.clear()
    loaded = library.llama_adapter_lora_init(model, str(adapter).encode())
    assert loaded, "".join(lines)[-500:]
    pointers, scales = (ctypes.c_void_p * 1)(loaded), (ctypes.c_float * 1)(1.0)
    library.llama_set_adapters_lora(context, pointers, 1, scales)
    tokens = (ctypes.c_int32 * 1)(1)
    assert library.llama_decode(context, library.llama_batch_get_one(tokens, 1)) == 0
    library.llama_free(context)
    library.llama_model_free(model)
    return "".join(lines)


def printed_by_towers(path: Path, **fields: int) -> str:
    """What the library prints while it loads a file of --mmproj and warms it up. fields: of ProjectorParameters."""
    library, lines, callback = _library()
    library.mtmd_context_params_default.restype = ProjectorParameters
    library.mtmd_init_from_file.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ProjectorParameters]
    library.mtmd_init_from_file.restype = ctypes.c_void_p
    library.mtmd_free.argtypes = [ctypes.c_void_p]
    library.mtmd_log_set(callback, None)
    parameters = library.mtmd_context_params_default()
    for name, value in fields.items():
        setattr(parameters, name, value)
    lines.clear()
    context = library.mtmd_init_from_file(str(path).encode(), None, parameters)
    assert context, "".join(lines)[-500:]
    library.mtmd_free(context)
    return "".join(lines)


def printed_sizes(text: str, kind: str) -> list[str]:
    """The sizes of the printed buffers, or of each cache, in MiB."""
    pattern = {
        "weights": r"model buffer size = +([\d.]+)",
        "adapter": r"LoRA buffer size = +([\d.]+)",
        "output": r"output buffer size = +([\d.]+)",
        "compute": r"compute buffer size = +([\d.]+)",
        "cache": r"llama_kv_cache: size = +([\d.]+)",
        "state": r"(?:llama_memory_recurrent: |llama_dsv4_comp_state: .*layers = \d+, )size = +([\d.]+)",
    }[kind]
    return [str(found) for found in re.findall(pattern, text)]

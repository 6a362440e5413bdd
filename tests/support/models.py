"""Running the command line, writing real model directories, sparse files of real sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qwen_inspect.checkpoint import Tensor
from qwen_inspect.structure.inspect import inspect

from .prepared import LONGEST_SECONDS, PREPARED, SHELL, Finished

# A small qwen3 configuration that transformers builds in milliseconds.
TINY_QWEN3: Mapping[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "max_window_layers": 2,
    "model_type": "qwen3",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 256,
}

SHARD_BYTES = 4_000_000_000  # at which Qwen3-235B-A22B is split into 118 files


def run(*arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Finished:
    """`python -m qwen_inspect` with these arguments, in English unless `env` says otherwise, as a process of its own.

    Where nothing but the test's own cache is set otherwise, one that has torch imported already.
    """
    words = [*map(str, arguments)]
    environment = {**os.environ, **SHELL, **(env or {})}
    if (forked := PREPARED.run(words, environment, cwd)) is not None:
        return forked
    done = subprocess.run(
        [sys.executable, "-m", "qwen_inspect", *words],
        capture_output=True,
        env=environment,
        cwd=cwd,
        timeout=LONGEST_SECONDS,
        check=False,
    )
    return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())


def header_of(tensors: Iterable[Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The length and header of a safetensors file that holds `tensors` one after another."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.size_bytes
        entries[tensor.name] = {"dtype": tensor.dtype.code, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header = json.dumps(entries, ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def write_sparse(path: Path, tensors: Iterable[Tensor]) -> None:
    """A safetensors file with a real header and its data as a hole: real sizes that take no disk."""
    tensors = list(tensors)
    head = header_of(tensors)
    path.write_bytes(head)
    os.truncate(path, len(head) + sum(tensor.size_bytes for tensor in tensors))


def write_config(directory: Path, config: Mapping[str, Any]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def write_sharded(directory: Path, model: str) -> int:
    """`model` of the catalog as a directory of sparse shards, the size that its release has; returns their number."""
    report = inspect(model, source="catalog", predict_files=True)
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in report.tensors or ():
        if filled + tensor.size_bytes > SHARD_BYTES and shards[-1]:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.size_bytes
    names = [f"model-{index:05d}-of-{len(shards):05d}.safetensors" for index in range(1, len(shards) + 1)]
    for name, tensors in zip(names, shards, strict=True):
        write_sparse(directory / name, tensors)
    weight_map = {tensor.name: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors}
    total_size = sum(tensor.size_bytes for tensors in shards for tensor in tensors)
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    write_config(directory, report.config or {})
    return len(shards)

"""Stores of other programs, hostile: Ollama's manifests, parameters and blobs, LM Studio's folders; and commands of llama.cpp."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from tests.support.llama_cpp_small import write_small

from .mutation import ODD, damaged, mutate, written
from .trial import Case, Verdict, command

LAYER = "application/vnd.ollama.image."
MANIFEST = Path("manifests", "registry.ollama.ai", "library", "model", "latest")
PARAMETERS: Mapping[str, Any] = {
    "num_ctx": 4096,
    "num_gpu": 2,
    "num_batch": 256,
    "temperature": 0.6,
    "stop": ["<|end|>"],
}
SETTINGS: Mapping[str, Sequence[str]] = {
    "OLLAMA_KV_CACHE_TYPE": ("q8_0", "q4_0", "f16", "", "q3", "\x1b[31m", "x" * 3_000),
    "OLLAMA_FLASH_ATTENTION": ("0", "1", "false", "maybe"),
    "OLLAMA_NUM_PARALLEL": ("1", "4", "0", "-1", "257", "99999999999", "٣"),
    "OLLAMA_CONTEXT_LENGTH": ("256", "0", "1e9", "999999999", "x"),
}
NAMES = (
    *("model",) * 16,
    *("model:latest", "library/model", "registry.ollama.ai/library/model:latest", "other", "../model", "model:.."),
    *("a/b/c/d", "\x1b[31m", "x" * 300, "mod\nel", "model:", ":", "hf.co/a/b:c"),
)
# What stands in place of a file.
PLACES = ("file",) * 12 + ("loop", "folder", "pipe", "device", "outside", "nothing", "empty")


def prepare_ollama(folder: Path) -> None:
    (folder / "blobs").mkdir()
    (folder / MANIFEST).parent.mkdir(parents=True)
    content = write_small(folder / "model.gguf", "qwen3").read_bytes()
    (folder / "blobs" / f"sha256-{hashlib.sha256(content).hexdigest()}").write_bytes(content)


def make_ollama(random: Random) -> Case:
    """A manifest, and in `words` the parameters, the name, a setting, and what stands in place of two files."""
    layers = [
        {"mediaType": f"{LAYER}{kind}", "digest": f"sha256:{'0' * 64}", "size": 1}
        for kind in (
            "model",
            "params",
            *random.choice(((), ("template",), ("projector", "adapter"), ("model", "params"))),
        )
    ]
    manifest: dict[str, Any] = {"schemaVersion": 2, "config": {"digest": f"sha256:{'1' * 64}"}, "layers": layers}
    parameters = copy.deepcopy(dict(PARAMETERS))
    for whole, odd in ((manifest, (*ODD, "sha256:../../../etc/passwd", f"sha256-{'0' * 64}")), (parameters, ODD)):
        for _ in range(random.choice((0, 0, 1, 1, 2))):
            mutate(whole, random, odd=odd)
    setting = random.choice(tuple(SETTINGS))
    words = (
        written(parameters, random).decode("latin-1"),
        random.choice(NAMES),
        setting,
        random.choice(SETTINGS[setting]) if random.random() < 0.3 else "",
        random.choice(PLACES),
        random.choice(PLACES),
        random.choice(("params", "fit", "fit", "weights", "structure")),
    )
    return Case(written(manifest, random), words)


def read_ollama(case: Case, folder: Path) -> Verdict:
    """The first two layers' digests and sizes are those of real blobs, where they are as they were made."""
    parameters, name, setting, value, manifest_place, blob_place, verb = case.words
    blobs = folder / "blobs"
    model = blobs / f"sha256-{hashlib.sha256((folder / 'model.gguf').read_bytes()).hexdigest()}"
    content = parameters.encode("latin-1")
    params = blobs / f"sha256-{hashlib.sha256(content).hexdigest()}"
    manifest = case.content
    for path, size in ((model, (folder / "model.gguf").stat().st_size), (params, len(content))):
        zeros, digest = b"sha256:" + b"0" * 64, path.name.replace("-", ":").encode()
        manifest = manifest.replace(zeros, digest, 1).replace(b'"size": 1}', b'"size": %d}' % size, 1)
    os.environ |= {"OLLAMA_MODELS": str(folder), **dict.fromkeys(SETTINGS, ""), setting: value}
    put(params, content, blob_place)
    put(folder / MANIFEST, manifest, manifest_place)
    memory = ("--memory", "24GiB") if verb == "fit" else ()
    try:
        return command([verb, f"ollama:{name}", *memory])
    finally:
        _removed(params)


def put(path: Path, content: bytes, place: str) -> None:
    """The content at a path, or what `place` says in its stead."""
    _removed(path)
    makers: Mapping[str, Callable[[], object]] = {
        "file": lambda: path.write_bytes(content),
        "loop": lambda: path.symlink_to(path),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "outside": lambda: path.symlink_to("/etc/passwd"),
        "empty": lambda: path.write_bytes(b""),
    }
    makers.get(place, lambda: None)()


def _removed(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


# --- LM Studio

POINTED = (b"", b"\0", b"\xff\xfe", b"/dev", b"/nowhere", b"..", b"x" * 5_000, b"\n", b"\x1b[31m", b"/proc/self/fd")
LM_NAMES = ("org/model",) * 6 + (
    "org",
    "../..",
    "org/..",
    "a/b/c",
    "",
    "org/\x1b[31m",
    "org/model:Q8_0",
    "x/" + "y" * 200,
)


def make_lm_studio(random: Random) -> Case:
    """The file that points to LM Studio's home, and in `words` the name, the file's place and that of a file of the model."""
    pointed = damaged(random.choice(POINTED), random) if random.random() < 0.5 else random.choice(POINTED)
    return Case(pointed, (random.choice(LM_NAMES), random.choice(PLACES), random.choice(PLACES)))


def read_lm_studio(case: Case, folder: Path) -> Verdict:
    name, pointer_place, file_place = case.words
    model = folder / ".lmstudio" / "models" / "org" / "model" / "model-Q4_0.gguf"
    if not (folder / "model.gguf").exists():
        write_small(folder / "model.gguf", "qwen3")
        model.parent.mkdir(parents=True)
    home, os.environ["HOME"] = os.environ["HOME"], str(folder)
    put(folder / ".lmstudio-home-pointer", case.content, pointer_place)
    put(model, (folder / "model.gguf").read_bytes(), file_place)
    try:
        return command(["params", f"lmstudio:{name}"])
    finally:
        os.environ["HOME"] = home


# --- llama.cpp

OPTIONS = (
    *(
        "-c 8192",
        "-b 512",
        "-ub 1024",
        "-ngl 2",
        "-ngl all",
        "-ctk q8_0",
        "-ctv q4_0",
        "-np 4",
        "-np 300",
        "-ts 3,1",
        "-kvu",
    ),
    *(
        "-sm none",
        "-sm row",
        "-mg 1",
        "-nkvo",
        "-ot 'exps=CPU'",
        "-ot '(a+)+$=CPU'",
        "--n-cpu-moe 3",
        "--cpu-moe",
        "-fa off",
    ),
    *(
        "--spec-type draft-mtp",
        "--spec-draft-n-max 9",
        "-md model.gguf",
        "--no-mmap",
        "-rtr",
        "-fmoe",
        "--mmproj x",
        "--odd 7",
    ),
    *(
        "-c 99999999999",
        "-c -1",
        "-c",
        "-ub 0",
        "-b 0",
        "-np 0",
        "-ctk q9",
        "-ot a",
        "'",
        "\\",
        "$(id)",
        "\x1b[31m",
        "x" * 3_000,
    ),
)
LINES = (
    "build: 5300 (36667c8e) with cc",
    "load_tensors:        CUDA0 model buffer size =     9.31 MiB",
    "llama_kv_cache_unified:      CUDA0 KV buffer size =    6.00 MiB",
    "llama_context:      CUDA0 compute buffer size =   99999999999999.64 MiB",
    "llama_context:  CUDA_Host  output buffer size =     0.03 MiB",
    "fused_moe  = 1",
)


def make_llama_cpp(random: Random) -> Case:
    """A log, and in `words` a command."""
    typed = " ".join(["llama-server", *random.choices(OPTIONS, k=random.randrange(6))])
    lines = "\n".join(random.choices(LINES, k=random.randrange(1, 9))).encode()
    return Case(damaged(lines, random) if random.random() < 0.4 else lines, (typed, random.choice(("", "24GiB"))))


def read_llama_cpp(case: Case, folder: Path) -> Verdict:
    typed, memory = case.words
    if not (folder / "model.gguf").exists():
        write_small(folder / "model.gguf", "qwen3moe")
    put(folder / "log", case.content, "file")
    log = ("--log", str(folder / "log")) if len(case.content) % 2 else ()
    cards = ("--memory", memory) if memory else ()
    return command(["fit", str(folder / "model.gguf"), "--llama-cpp", typed, *cards, *log])

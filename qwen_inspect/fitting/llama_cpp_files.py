"""The files that llama.cpp loads beside a model, and their buffers: towers of --mmproj, LoRA adapters, draft models."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from ..engines.llama_cpp.buffers import GgufModel
from ..engines.llama_cpp.builds import Build
from ..engines.llama_cpp.commands.command import BesideFile, Command
from ..engines.llama_cpp.ggml.scheduler import HOST
from ..errors import QwenInspectError, UnsupportedError
from ..language import Message
from ..loaders.gguf_header import read_header
from ..loaders.llama_cpp_hub import TAGS, model_in, projector_in
from ..loaders.regular import open_regular
from ..loaders.resolve import Access, load, resolve
from ..results.llama_cpp import Buffer
from ..typed import TYPE_CHECKING, BinaryIO
from ..units import MIB
from ..values import replace

if TYPE_CHECKING:
    from ..engines.llama_cpp.towers.tower import Tower


# Programs that load a repository's projector beside its model. Source: common/arg.cpp, mmproj_examples.
SEEING = ("llama-server", "llama-cli", "llama-mtmd-cli", "llama-tts")


def with_hub_files(command: Command, access: Access) -> Command:
    """The command with the files that -hf takes of a repository: of the model, of a draft, and of the model's projector."""
    beside = tuple(
        replace(file, path=_hub_file(file.path, _names(file.path, access))) if file.kind == "draft" else file
        for file in command.beside
    )
    if not (command.model or "").startswith("hf:"):
        return replace(command, beside=beside)
    names = _names(command.model or "", access)
    model = _hub_file(command.model or "", names)
    looks = command.projects and command.options.program in SEEING
    looks = looks and all(file.kind != "projector" for file in command.beside)
    repository, _, file_name = model.removeprefix("hf:").partition(":")
    if looks and (name := projector_in(names, file_name)) is not None:
        beside = (*beside, BesideFile(kind="projector", option="-hf", path=f"hf:{repository}:{name}"))
    return replace(command, model=model, beside=beside)


def _names(path: str, access: Access) -> Sequence[str]:
    """The files of a repository in its listing's order; none of one that cannot be listed, or of a local file."""
    if path.startswith("hf:"):
        from ..loaders.named import list_files

        with contextlib.suppress(QwenInspectError):
            (listing,) = list_files([replace(resolve(path), file=None)], access)
            return [file.name for file in listing.files]
    return ()


def _hub_file(path: str, names: Sequence[str]) -> str:
    """ "hf:ORG/NAME" or "hf:ORG/NAME:TAG" with the file that llama.cpp takes."""
    if not path.startswith("hf:"):
        return path
    repository, _, tag = path.removeprefix("hf:").partition(":")
    if tag in names:
        return path
    name = model_in(names, tag)
    return f"hf:{repository}:{name}" if name else path if tag else f"{path}:{TAGS[0]}"


def model_of(path: str, access: Access | None = None) -> GgufModel | None:
    """None for a file that cannot be read. path: a file, or "hf:ORG/NAME:QUANTISATION"."""
    if path.startswith("hf:"):
        with contextlib.suppress(OSError, QwenInspectError):
            checkpoint = load(resolve(path), access or Access())
            return GgufModel(checkpoint.config or {}, tuple(checkpoint.tensors or ()))
        return None
    with contextlib.suppress(OSError, QwenInspectError), open_regular(path) as stream:
        file_bytes = os.fstat(stream.fileno()).st_size
        header = read_header(lambda start, stop: _part(stream, start, stop), file=path, file_bytes=file_bytes)
        return GgufModel(header.metadata, tuple(header.tensors))
    return None


def _part(stream: BinaryIO, start: int, stop: int) -> bytes:
    stream.seek(start)
    return stream.read(stop - start)


def buffers_beside(
    command: Command, file: BesideFile, cards: Sequence[str], build: Build, access: Access | None = None
) -> tuple[tuple[Buffer, ...], Message]:
    """The buffers of a file, and what is said of them. cards: that the command uses."""
    from ..engines.llama_cpp.towers.tower import towers

    model = model_of(file.path, access)
    name = f"{file.option} {file.path}"
    if file.kind == "projector" and model is not None and (found := towers(model.metadata, model.tensors)):
        return _projector(command, found, cards, build, name)
    size_bytes = 0 if model is None or (len(cards) > 1 and file.kind != "projector") else _weights_bytes(model)
    buffer = Buffer(kind=file.kind, device=cards[0] if cards else HOST, size_bytes=None, least_bytes=size_bytes)
    return (buffer,), Message("llama_cpp_beside", option=name)


def _weights_bytes(model: GgufModel) -> int:
    return sum(tensor.size_bytes for tensor in model.tensors)


def _projector(
    command: Command, found: Sequence[Tower], cards: Sequence[str], build: Build, name: str
) -> tuple[tuple[Buffer, ...], Message]:
    """llama.cpp keeps a buffer for the warm-up's image, which grows at the first larger image."""
    from ..engines.llama_cpp.towers.projectors import tower_buffers

    card = (command.projector_device or cards[0]) if cards and command.projector_on_card else None
    buffers = tuple(
        buffer
        for tower in found
        for buffer in tower_buffers(
            tower,
            card=card,
            build=build,
            flash_attention=command.flash_attention,
            most_tokens=command.image_tokens,
        )
    )
    if any(buffer.size_bytes is None for buffer in buffers):
        return buffers, Message("llama_cpp_projector", option=name)
    for tower in found:
        width, height = tower.largest(command.image_tokens)
        if (width, height) != tower.warm_up(command.image_tokens):
            most = max(_at(tower, (width, height), card, build, command), default=0)
            warm = " x ".join(map(str, tower.warm_up(command.image_tokens)))
            size = f"{most / MIB:,.2f} MiB"
            return buffers, Message(
                "llama_cpp_projector_largest", option=name, warm=warm, largest=f"{width} x {height}", size=size
            )
    return buffers, Message("llama_cpp_projector_one_size", option=name)


def _at(tower: Tower, size: tuple[int, int], card: str | None, build: Build, command: Command) -> Iterator[int]:
    from ..engines.llama_cpp.towers.projectors import tower_compute_bytes

    with contextlib.suppress(UnsupportedError):
        sizes = tower_compute_bytes(tower, size, card=card, build=build, flash_attention=command.flash_attention)
        yield from (size_bytes for device, size_bytes in sizes.items() if device == (card or HOST))

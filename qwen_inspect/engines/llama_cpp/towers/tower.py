"""The tower of --mmproj that sees or hears: its keys, and the size of its inputs.

Source: llama.cpp 0c1e57098, tools/mtmd/clip.cpp (load_hparams, get_dummy_batch).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import isqrt

from ....checkpoint import Tensor
from ....errors import UnsupportedError
from ....typed import Any
from ....values import dataclass

AUDIO_FRAMES = 3000  # of the warm-up: clip_hparams::warmup_audio_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Projector:
    """How a projector's images are sized, in tokens that the decoder sees.

    merge: patches a side that become one token, where the file's `merge_key` does not say. warm_side: tokens a side of the
    warm-up's image; None: the file's image size, or the largest image. most_tokens: of an image; None: images have one size, or
    the file says how many pixels they have.
    """

    merge: int = 1
    merge_key: str | None = None
    warm_side: int | None = None
    most_tokens: int | None = None
    audio: bool = False


SCALE, SPATIAL = "projector.scale_factor", "spatial_merge_size"
QWEN = Projector(merge=2, merge_key=SPATIAL, warm_side=46, most_tokens=4096)
ONE_SIZE = Projector()
PROJECTORS: Mapping[str, Projector] = {
    **dict.fromkeys(("mlp", "mlp_norm", "janus_pro", "resampler"), ONE_SIZE),
    **dict.fromkeys(("idefics3", "internvl", "llama4", "nemotron_v2_vl"), Projector(merge_key=SCALE)),
    "minicpmv4_6": Projector(merge=4, merge_key=SCALE),
    "hunyuanvl": Projector(merge=2, merge_key=SPATIAL, warm_side=32, most_tokens=16384),
    "gemma3": Projector(merge=4, merge_key=SCALE),
    "lfm2": Projector(merge_key=SCALE, most_tokens=256),
    "phi4": Projector(warm_side=16),
    "pixtral": Projector(merge_key=SPATIAL, warm_side=16, most_tokens=1024),
    "lightonocr": Projector(merge_key=SPATIAL, warm_side=16),
    **dict.fromkeys(("qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger", "glm4v"), QWEN),
    "glm5v": Projector(merge=2, merge_key=SPATIAL, warm_side=46),
    "gemma4v": Projector(merge=3, merge_key=SCALE, warm_side=16, most_tokens=1120),
    "gemma4uv": Projector(merge=3, merge_key=SCALE, warm_side=16, most_tokens=1120),
    "kimivl": Projector(merge_key=SCALE, warm_side=16, most_tokens=1024),
    "kimik25": Projector(merge_key=SCALE, most_tokens=4096),
    "paddleocr": Projector(merge=2, warm_side=28),
    "dots_ocr": Projector(merge_key=SCALE, warm_side=46),
    "minimax_m3": Projector(merge=2, merge_key=SPATIAL, warm_side=16, most_tokens=576),
    **dict.fromkeys(("gemma4a", "qwen2a", "ultravox", "voxtral", "musicflamingo"), Projector(audio=True)),
}


@dataclass(frozen=True)
class Tower:
    """The tower of one kind of input: "vision" or "audio"."""

    metadata: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    modality: str

    @cached_property
    def by_name(self) -> Mapping[str, Tensor]:
        return {tensor.name: tensor for tensor in self.tensors}

    @cached_property
    def projector(self) -> str:
        """Its name, as the file gives it for both kinds of input or for this one."""
        name = str(self.metadata.get("clip.projector_type") or self.key("projector_type") or "")
        if name == "qwen2.5o":
            return "qwen2.5vl_merger" if self.modality == "vision" else "qwen2a"
        return "mlp_norm" if name == "mlp" and "mm.3.weight" in self.by_name else name

    @cached_property
    def kind(self) -> Projector:
        if self.projector not in PROJECTORS:
            raise UnsupportedError("llama_cpp_graph", architecture=self.projector)
        return PROJECTORS[self.projector]

    def key(self, name: str) -> Any:
        return self.metadata.get(f"clip.{self.modality}.{name}")

    def number(self, name: str, *, least: int = 1) -> int:
        """Raises UnsupportedError if the file does not say, or says what no tower has."""
        value = self.key(name)
        if not isinstance(value, int) or not least <= value < 1 << 20:
            raise UnsupportedError("llama_cpp_graph", architecture=self.projector)
        return value

    @cached_property
    def patch(self) -> int:
        size = self.number("patch_size")
        return size * self._stored_merge if self.projector == "gemma4uv" else size

    @cached_property
    def _stored_merge(self) -> int:
        return int((self.kind.merge_key and self.key(self.kind.merge_key)) or self.kind.merge)

    @cached_property
    def merge(self) -> int:
        return 1 if self.projector == "gemma4uv" else self._stored_merge

    def warm_up(self, most_tokens: int | None) -> tuple[int, int]:
        """Width and height of the warm-up's input. most_tokens: of --image-max-tokens."""
        if self.kind.audio:
            return AUDIO_FRAMES, self.number("num_mel_bins")
        side = self.patch * self.merge
        if self.kind.warm_side is not None:
            return (side * self.kind.warm_side,) * 2
        if self.kind.most_tokens is None:
            return (self.number("image_size"),) * 2
        return (isqrt(self._most_pixels(most_tokens) or 0),) * 2

    def largest(self, most_tokens: int | None) -> tuple[int, int]:
        """Width and height of the largest image, as near to a square as its number of tokens allows."""
        side = self.patch * self.merge
        pixels = self._most_pixels(most_tokens)
        if self.kind.audio or pixels is None:
            return self.warm_up(most_tokens)
        tokens = pixels // side**2
        short = next(count for count in range(isqrt(tokens), 0, -1) if tokens % count == 0)
        return side * (tokens // short), side * short

    def _most_pixels(self, most_tokens: int | None) -> int | None:
        stored = self.key("image_max_pixels")
        if self.projector in ("kimik25", "hunyuanvl") and isinstance(stored, int):
            return stored
        tokens = most_tokens if most_tokens is not None else self.kind.most_tokens
        if self.kind.most_tokens is None:
            return stored if isinstance(stored, int) else None
        return None if tokens is None else tokens * (self.patch * self.merge) ** 2


def towers(metadata: Mapping[str, Any], tensors: Sequence[Tensor]) -> tuple[Tower, ...]:
    """Of vision first, as llama.cpp loads them, each with its own tensors."""
    kinds = [kind for kind in ("vision", "audio") if metadata.get(f"clip.has_{kind}_encoder") is True]
    heard = [tensor for tensor in tensors if tensor.name.startswith(("a.", "mm.a."))]
    own = {"audio": heard, "vision": [tensor for tensor in tensors if tensor not in heard]}
    return tuple(Tower(metadata, tuple(own[kind]) if len(kinds) > 1 else tuple(tensors), kind) for kind in kinds)

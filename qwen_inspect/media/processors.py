"""The processors' numbers: those that a model's files set, else those of its family's releases.

Source: transformers 5.23, image_processing_auto.py and video_processing_auto.py for the classes, their own modules for their
defaults, get_image_processor_dict and get_video_processor_dict for the order of the files.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..architectures.reading import LARGEST_SIZE, shown
from ..errors import MalformedError, UnsupportedError
from ..results.media import MediaKind
from ..typed import Any
from ..values import dataclass

WHOLE_FILE, IMAGE_FILE, VIDEO_FILE = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
PROCESSOR_FILES = (WHOLE_FILE, IMAGE_FILE, VIDEO_FILE)
MOST_TILES = 1024  # far above every release's, which is 16 at most; their arrangements are looped over
WITH_FRACTIONS = ("fps", "frame_length_ms", "hop_length_ms")
SUFFIXES = ("Fast", "Pil")  # the same rules, another library

QWEN2, QWEN2_VIDEO, QWEN3_VIDEO = "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor", "Qwen3VLVideoProcessor"
GLM, GLM_VIDEO = "Glm4vImageProcessor", "Glm4vVideoProcessor"
GLM46, GLM46_VIDEO = "Glm46VImageProcessor", "Glm46VVideoProcessor"
GEMMA3, GEMMA4, GEMMA4_VIDEO = "Gemma3ImageProcessor", "Gemma4ImageProcessor", "Gemma4VideoProcessor"
LLAMA4, PIXTRAL = "Llama4ImageProcessor", "PixtralImageProcessor"
GOT_OCR, INTERNVL_VIDEO = "GotOcr2ImageProcessor", "InternVLVideoProcessor"

_VIDEO: Mapping[str, Any] = {"temporal_patch_size": 2, "merge_size": 2, "do_sample_frames": True, "fps": 2}
_QWEN_FRAMES: Mapping[str, Any] = {"min_frames": 4, "max_frames": 768, "cap_pixels_per_frame": False}
# What a class takes for a number that its file lacks. Those of the tower (patch_size, merge_size) are in the configuration too.
_CLASSES: Mapping[str, Mapping[str, Any]] = {
    QWEN2: {"least": 56 * 56, "most": 28 * 28 * 1280, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2},
    QWEN2_VIDEO: {
        **_VIDEO, **_QWEN_FRAMES, "patch_size": 14, "least": 128 * 28 * 28, "most": 28 * 28 * 768, "fps": None,
        "num_frames": None, "do_sample_frames": False, "max_video_tokens": 128_000,
    },
    QWEN3_VIDEO: {
        **_VIDEO, **_QWEN_FRAMES, "patch_size": 16, "least": 128 * 32 * 32, "most": 32 * 32 * 768, "max_video_tokens": 768,
        "num_frames": None,
    },
    GLM: {"least": 112 * 112, "most": 28 * 28 * 15_000, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2},
    GLM_VIDEO: {**_VIDEO, "least": 112 * 112, "most": 28 * 28 * 2 * 30_000, "patch_size": 14, "max_duration": 300},
    GEMMA3: {"side": 224, "patch_size": 16, "tokens": 256},
    GEMMA4: {"patch_size": 16, "max_soft_tokens": 280, "pooling_kernel_size": 3},
    GEMMA4_VIDEO: {
        "patch_size": 16, "max_soft_tokens": 70, "pooling_kernel_size": 3, "num_frames": 32, "do_sample_frames": True,
        "fps": None,
    },
    LLAMA4: {"side": 336, "patch_size": 14, "shuffle": 0.5, "max_patches": 16, "resize_to_max_canvas": False},
    PIXTRAL: {"longest": 1024, "patch_size": 16, "merge_size": 2},
    GOT_OCR: {"side": 384, "patch_size": 16, "tokens": 256, "min_patches": 1, "max_patches": 12},
    INTERNVL_VIDEO: {"side": 384, "patch_size": 16, "tokens": 256, "do_sample_frames": False, "fps": None, "num_frames": None},
}  # fmt: skip
CLASSES = {**_CLASSES, GLM46: _CLASSES[GLM], GLM46_VIDEO: _CLASSES[GLM_VIDEO]}

# The numbers in the files of releases: Qwen/Qwen2.5-VL-7B-Instruct (one file for both), Qwen/Qwen3-VL-8B-Instruct.
_QWEN2_RELEASE = {"least": 56 * 56, "most": 12_845_056}
_QWEN3_RELEASE = {"least": 65_536, "most": 16_777_216, "patch_size": 16}
_QWEN3_VIDEO_RELEASE = {"least": 4_096, "most": 25_165_824, "patch_size": 16}
Family = tuple[str, str | None, Mapping[str, Any], Mapping[str, Any]]  # classes, and the releases' numbers
_QWEN2_FAMILY: Family = (QWEN2, QWEN2_VIDEO, _QWEN2_RELEASE, _QWEN2_RELEASE)
_QWEN3_FAMILY: Family = (QWEN2, QWEN3_VIDEO, _QWEN3_RELEASE, _QWEN3_VIDEO_RELEASE)
_GLM_FAMILY: Family = (GLM, GLM_VIDEO, {}, {})
FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni_thinker"), _QWEN2_FAMILY),
    "qwen3_omni_moe_thinker": (QWEN2, QWEN2_VIDEO, *({**_QWEN2_RELEASE, "patch_size": 16},) * 2),
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp"), _QWEN3_FAMILY),
    **dict.fromkeys(("glm4v", "glm4v_moe"), _GLM_FAMILY),
    "glm46v": (GLM46, GLM46_VIDEO, {}, {}),
    "gemma3": (GEMMA3, None, {}, {}),
    "gemma4": (GEMMA4, GEMMA4_VIDEO, {}, {}),
    "llama4": (LLAMA4, None, {}, {}),
    "mistral3": (PIXTRAL, None, {}, {}),
    "internvl": (GOT_OCR, INTERNVL_VIDEO, {}, {}),
}
# Whose class has no tower if the configuration has none. Source: transformers 5.23, modeling_gemma4.Gemma4Model
MAY_BE_BLIND = ("gemma4",)
# What the model's own processor passes at each call, whatever the files say.
# Source: videos_kwargs of Qwen2_5OmniProcessor and Qwen3OmniMoeProcessor, ProcessorMixin._merge_kwargs
PASSED: Mapping[tuple[str, MediaKind], Mapping[str, Any]] = {
    ("qwen2_5_omni_thinker", "video"): {"least": 128 * 28 * 28, "most": 768 * 28 * 28},
    ("qwen3_omni_moe_thinker", "video"): {"least": 128 * 32 * 32, "most": 768 * 32 * 32},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """A processor's class and numbers; file: where they are from, None for the family's defaults."""

    name: str
    numbers: Mapping[str, Any]
    file: str | None


def processor_of(
    kind: MediaKind, config: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]], tower: Mapping[str, Any]
) -> Processor:
    """The processor of a model's images or videos. tower: numbers that the model's own tower fixes.

    UnsupportedError if the model has none, or one that is not known here.
    """
    model_type = str(config.get("model_type"))
    family = FAMILIES.get(model_type)
    may_be_blind = model_type in MAY_BE_BLIND
    sees = config.get("vision_config") is not None if may_be_blind else "vision_config" in config
    if family is None or (may_be_blind and not sees):
        raise UnsupportedError("media_family_unknown" if sees else "media_no_tower", model_type=model_type)
    name, released = (family[0], family[2]) if kind == "image" else (family[1], family[3])
    if name is None:
        raise UnsupportedError("media_no_videos", model_type=model_type)
    passed = PASSED.get((model_type, kind), {})
    file, content = _content(kind, files)
    if file is None:
        return Processor(name=name, numbers={**CLASSES[name], **released, **tower, **passed}, file=None)
    typed = str(content.get(f"{kind}_processor_type") or name)
    for suffix in SUFFIXES:
        typed = typed.removesuffix(suffix)
    if typed not in _of_kind(kind):
        raise UnsupportedError("media_processor_unknown", file=file, found=shown(typed))
    own = _numbers(content, file, CLASSES[typed])
    return Processor(name=typed, numbers={**CLASSES[typed], **tower, **own, **passed}, file=file)


def _of_kind(kind: MediaKind) -> set[str | None]:
    return {images if kind == "image" else videos for images, videos, *_ in FAMILIES.values()}


def _content(kind: MediaKind, files: Mapping[str, Mapping[str, Any]]) -> tuple[str | None, Mapping[str, Any]]:
    """The file that sets the numbers: the part of the processor's file, else the file of its own; a video's, else the image's."""
    part = files.get(WHOLE_FILE, {}).get(f"{kind}_processor")
    if isinstance(part, Mapping):
        return WHOLE_FILE, part
    names = (IMAGE_FILE,) if kind == "image" else (VIDEO_FILE, IMAGE_FILE)
    return next(((name, files[name]) for name in names if name in files), (None, {}))


def _numbers(content: Mapping[str, Any], file: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers in a file by the names of `known`; `size` means pixels, an edge or two sides by its keys."""
    size = content.get("size")
    sizes = size if isinstance(size, Mapping) else {}
    if sizes.get("height") != sizes.get("width"):
        raise UnsupportedError("media_not_square", file=file)
    renamed = {
        "least": content.get("min_pixels", sizes.get("shortest_edge")),
        "most": content.get("max_pixels", sizes.get("longest_edge")),
        "longest": sizes.get("longest_edge", sizes.get("height")),
        "side": sizes.get("height"),
    }
    given = {**content, **renamed}
    without = {key: None for key in ("fps", "num_frames") if key in known and key in content and content[key] is None}
    of_model = ("tokens", "shuffle", *(("patch_size", "merge_size") if "side" in known or "longest" in known else ()))
    found = {key: given[key] for key in known if key not in of_model and given.get(key) is not None}
    return {**without, **{key: checked_number(key, value, file) for key, value in found.items()}}


def checked_number(key: str, value: object, file: str) -> Any:
    """A number or truth value of a processor's file. MalformedError for neither, and for more tiles than any model has."""
    if key.startswith(("do_", "cap_", "resize_")):
        if isinstance(value, bool):
            return value
    elif isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LARGEST_SIZE:
        if key in WITH_FRACTIONS:
            return value
        if key == "max_patches" and value > MOST_TILES:
            raise MalformedError("media_tiles", file=file, key=key, found=shown(value), most=MOST_TILES)
        if value == int(value):
            return int(value)
    raise MalformedError("media_number", file=file, key=key, found=shown(value))

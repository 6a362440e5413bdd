"""Sizes, grids and frames are those of transformers' processors, for random images and videos of every family."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_inspect.errors import MalformedError, UsageError
from qwen_inspect.media import counting
from qwen_inspect.media.counting import media_of
from qwen_inspect.results.media import Medium, Request, Shape, Typed

from ..support.processors import functions_of

CASES = 400  # of each kind
FILE, VIDEO_FILE = "preprocessor_config.json", "video_preprocessor_config.json"
QWEN2 = {"patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2}
QWEN3 = {**QWEN2, "patch_size": 16}
Answer = tuple[int, ...] | None


def shape(model_type: str, vision: Mapping[str, Any], file: Mapping[str, Any], width: int, height: int) -> Shape:
    config = {"model_type": model_type, "spatial_merge_size": 2, "vision_config": vision}
    typed = Typed(text="", width=width, height=height)
    return media_of(config, {FILE: file}, Request(typed=(typed,))).items[0].shape


def video(
    model_type: str,
    vision: Mapping[str, Any],
    file: Mapping[str, Any],
    size: tuple[int, int],
    frames: int,
    fps: Fraction,
) -> Medium:
    typed = Typed(text="", width=size[0], height=size[1], seconds=frames / fps, fps=fps)
    config = {"model_type": model_type, "vision_config": vision}
    return media_of(config, {VIDEO_FILE: file}, Request(typed=(typed,))).items[0]


def sizes(seed: int, most: int = 13) -> list[tuple[int, int]]:
    rng = random.Random(seed)
    return [(int(2 ** rng.uniform(0, most)), int(2 ** rng.uniform(0, most))) for _ in range(CASES)]


def answer(ask: Callable[..., Answer], *values: Any) -> Answer:
    """None if the processor, or we, refuse the image."""
    try:
        return ask(*values)
    except (UsageError, ValueError):
        return None


@pytest.mark.parametrize(("model_type", "vision"), [("qwen2_5_vl", QWEN2), ("qwen3_vl", QWEN3)])
@pytest.mark.parametrize(("least", "most"), [(3136, 12_845_056), (65_536, 16_777_216), (100, 50_000)])
def test_qwen_images_are_resized_as_qwen2vl_does(
    model_type: str, vision: Mapping[str, Any], least: int, most: int
) -> None:
    real = functions_of("qwen2_vl/image_processing_pil_qwen2_vl", "smart_resize")
    file = {"min_pixels": least, "max_pixels": most, "patch_size": vision["patch_size"]}
    factor = vision["patch_size"] * 2

    def ours(width: int, height: int) -> Answer:
        made = shape(model_type, vision, file, width, height)
        return made.height, made.width, made.tokens

    def theirs(width: int, height: int) -> Answer:
        rows, columns = real.smart_resize(height, width, factor=factor, min_pixels=least, max_pixels=most)
        return (rows, columns, rows * columns // factor**2) if rows and columns else None

    for size in sizes(1):
        assert answer(ours, *size) == answer(theirs, *size), size


def test_glm_images_are_resized_as_glm4v_does() -> None:
    real = functions_of("glm4v/image_processing_pil_glm4v", "smart_resize")
    file = {"size": {"shortest_edge": 12_544, "longest_edge": 9_633_792}}

    def ours(width: int, height: int) -> Answer:
        made = shape("glm4v", QWEN2, file, width, height)
        return made.height, made.width

    def theirs(width: int, height: int) -> Answer:
        return tuple(real.smart_resize(2, height, width, factor=28, min_pixels=12_544, max_pixels=9_633_792))

    for size in sizes(2):
        assert answer(ours, *size) == answer(theirs, *size), size


def test_gemma_4_images_are_resized_as_its_processor_does() -> None:
    real = functions_of("gemma4/image_processing_pil_gemma4", "get_aspect_ratio_preserving_size")
    vision = {"patch_size": 16, "pooling_kernel_size": 3}

    def ours(width: int, height: int) -> Answer:
        made = shape("gemma4", vision, {"max_soft_tokens": 280}, width, height)
        return made.height, made.width, made.tokens

    def theirs(width: int, height: int) -> Answer:
        rows, columns = real.get_aspect_ratio_preserving_size(height, width, 16, 280 * 9, 3)
        return rows, columns, rows * columns // 48**2

    for size in sizes(3):
        assert answer(ours, *size) == answer(theirs, *size), size


@pytest.mark.parametrize("largest", [False, True])
def test_llama_4_tiles_are_those_of_its_processor(largest: bool) -> None:
    real = functions_of("llama4/image_processing_llama4", "get_factors", "find_supported_resolutions", "get_best_fit")
    import torch

    possible = torch.tensor(real.find_supported_resolutions(16, SimpleNamespace(height=336, width=336)))
    file = {"resize_to_max_canvas": largest, "size": {"height": 336, "width": 336}}
    for width, height in sizes(4)[: CASES // 2]:
        made = shape("llama4", {"patch_size": 14}, file, width, height)
        expected = real.get_best_fit((height, width), possible, largest).tolist()
        assert [made.height, made.width] == expected, (width, height)


def test_mistral_images_are_resized_as_pixtral_does() -> None:
    real = functions_of("pixtral/image_processing_pixtral", "_num_image_tokens", "get_resize_output_image_size")

    def ours(width: int, height: int) -> Answer:
        made = shape("mistral3", {"patch_size": 14}, {"size": {"longest_edge": 1540}}, width, height)
        return made.height, made.width, made.tokens + (made.marks or 0)

    def theirs(width: int, height: int) -> Answer:
        rows, columns = real.get_resize_output_image_size((height, width), 1540, 28)
        # PixtralProcessor.replace_image_token: a token for each patch of 28, and one at the end of each row
        return (rows, columns, (columns // 28 + 1) * (rows // 28)) if rows and columns else None

    for size in sizes(5):
        assert answer(ours, *size) == answer(theirs, *size), size


def test_internvl_tiles_are_those_of_its_processor() -> None:
    real = functions_of(
        "got_ocr2/image_processing_got_ocr2", "get_all_supported_aspect_ratios", "get_optimal_tiled_canvas"
    )
    rng = random.Random(6)
    for width, height in sizes(6):
        side, least, most = rng.choice((336, 448)), rng.randint(1, 5), rng.choice((1, 6, 12, 40))
        columns, rows = real.get_optimal_tiled_canvas((height, width), (side, side), least, most)
        file = {"size": {"height": side, "width": side}, "min_patches": least, "max_patches": most}
        made = shape("internvl", {"patch_size": [14, 14]}, file, width, height)
        assert (made.height, made.width) == (side * rows, side * columns), (width, height, file)
        # GotOcr2ImageProcessor.crop_image_to_patches: the whole image is one more, if there are several
        assert made.tokens == 256 * (rows * columns + (rows * columns > 1))


@pytest.mark.parametrize("model_type", ["internvl", "llama4"])
def test_more_tiles_than_any_model_has_are_refused_at_once(model_type: str) -> None:
    with pytest.raises(MalformedError, match="max_patches"):
        shape(model_type, {"patch_size": 14}, {"size": {"height": 448, "width": 448}, "max_patches": 100_000}, 300, 200)


def test_gemma_3_takes_256_tokens_for_an_image_and_crops_none() -> None:
    """Gemma3Processor.images_kwargs passes do_pan_and_scan=False, which comes before its file's."""
    vision, file = (
        {"patch_size": 14, "image_size": 896},
        {"size": {"height": 896, "width": 896}, "do_pan_and_scan": True},
    )
    for width, height in ((2000, 1000), (1000, 1000), (10, 10)):
        made = shape("gemma3", vision, file, width, height)
        # Gemma3Processor.full_image_sequence: "\n\n", begin of image, tokens, end of image, "\n\n"
        assert (made.tokens, made.marks, made.grid) == (256, 4, (1, 64, 64))


def test_omni_videos_have_the_pixels_that_its_processor_passes() -> None:
    """Qwen2_5OmniProcessor.videos_kwargs: at most 768 * 28 * 28 pixels a frame, whatever its file says; Qwen3's of 32 * 32.

    By transformers' own processors of these releases, a video of 2560 x 1440 has a grid of 40 x 72 patches.
    """
    for model_type, vision in (("qwen2_5_omni_thinker", QWEN2), ("qwen3_omni_moe_thinker", QWEN3)):
        file = {"min_pixels": 3136, "max_pixels": 12_845_056, "patch_size": vision["patch_size"]}
        made = video(model_type, vision, file, (2560, 1440), 4, Fraction(2)).shape
        assert made.grid == (2, 40, 72)


VIDEOS = {
    "qwen2_vl/video_processing_qwen2_vl": (
        "qwen2_5_vl",
        {"fps": 2, "min_frames": 4, "max_frames": 768, "temporal_patch_size": 2, "do_sample_frames": True},
    ),
    "qwen3_vl/video_processing_qwen3_vl": ("qwen3_vl", {"fps": 2, "min_frames": 4, "max_frames": 768}),
    "glm4v/video_processing_glm4v": ("glm4v", {"fps": 2, "max_duration": 30}),
    "glm46v/video_processing_glm46v": ("glm46v", {"temporal_patch_size": 2}),
}


@pytest.mark.parametrize("module", VIDEOS)
def test_frames_are_sampled_as_the_processor_does(module: str) -> None:
    model_type, settings = VIDEOS[module]
    real = functions_of(module, method="sample_frames").sample_frames
    itself, rng = SimpleNamespace(num_frames=None, **settings), random.Random(7)
    rates = tuple(map(Fraction, ("1/2", "1", "2", "10", "23.976", "24", "25", "29.97", "30", "60")))

    def ours(total: int, fps: Fraction) -> Answer:
        frames = video(model_type, QWEN2, settings, (280, 280), total, fps).frames
        assert frames is not None
        return (frames,)

    def theirs(total: int, fps: Fraction) -> Answer:
        metadata = SimpleNamespace(total_num_frames=total, fps=float(fps), duration=float(total / fps))
        sampled = len(real(itself, metadata, fps=settings.get("fps")))
        return (sampled,) if sampled > 1 else None  # fewer than the tower takes together

    for _ in range(150):
        case = rng.randint(1, 3000), rng.choice(rates)
        assert answer(ours, *case) == answer(theirs, *case), case


FIXED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "qwen2_vl/video_processing_qwen2_vl": ("qwen2_5_vl", {"min_frames": 4, "max_frames": 768, "fps": None}),
    "qwen3_vl/video_processing_qwen3_vl": ("qwen3_vl", {"min_frames": 4, "max_frames": 768, "fps": None}),
    "internvl/video_processing_internvl": ("internvl", {"initial_shift": True, "fps": None}),
}


@pytest.mark.parametrize("module", FIXED)
def test_as_many_frames_are_sampled_as_the_file_says(module: str) -> None:
    model_type, settings = FIXED[module]
    real = functions_of(module, method="sample_frames").sample_frames
    rng, vision = random.Random(8), {**QWEN2, "pooling_kernel_size": 3, "image_size": 448}
    size = {"size": {"height": 448, "width": 448}} if model_type == "internvl" else {}

    def theirs(total: int, number: int) -> Answer:
        itself = SimpleNamespace(num_frames=number, temporal_patch_size=2, **settings)
        metadata = SimpleNamespace(total_num_frames=total, fps=2.0, duration=total / 2)
        frames = len(real(itself, metadata, num_frames=number))
        return (frames,) if frames > 1 or model_type == "internvl" else None  # as few as no tower takes

    def ours(total: int, number: int) -> Answer:
        file = {**settings, **size, "num_frames": number, "do_sample_frames": True}
        frames = video(model_type, vision, file, (280, 280), total, Fraction(2)).frames
        return None if frames is None else (frames,)

    for _ in range(150):
        case = rng.randint(1, 60), rng.randint(1, 40)
        try:
            expected = answer(theirs, *case)
        except ZeroDivisionError:  # of no whole pair of frames
            expected = None
        assert answer(ours, *case) == expected, case


def test_internvl_refuses_a_rate_that_gives_no_frame_or_more_than_there_are() -> None:
    real = functions_of("internvl/video_processing_internvl", method="sample_frames").sample_frames
    itself, rng = SimpleNamespace(num_frames=None, initial_shift=True), random.Random(9)
    file = {"do_sample_frames": True, "size": {"height": 448, "width": 448}}
    vision = {"patch_size": 14, "image_size": 448}

    def theirs(total: int, own: int, fps: float) -> Answer:
        try:
            return (len(real(itself, SimpleNamespace(total_num_frames=total, fps=float(own)), fps=fps)),)
        except ZeroDivisionError:
            return None

    def ours(total: int, own: int, fps: float) -> Answer:
        frames = video("internvl", vision, {**file, "fps": fps}, (9, 9), total, Fraction(own)).frames
        return None if frames is None else (frames,)

    for _ in range(150):
        case = rng.randint(1, 60), rng.choice((1, 2, 10, 24)), rng.choice((0.5, 1, 2, 5))
        assert answer(ours, *case) == answer(theirs, *case), case


def test_a_file_with_a_number_of_frames_and_a_rate_is_refused() -> None:
    """As Qwen3VLVideoProcessor.sample_frames, whose own rate is 2."""
    with pytest.raises(UsageError, match="--fps"):
        video("qwen3_vl", QWEN3, {"num_frames": 8}, (280, 280), 30, Fraction(10))


@pytest.mark.parametrize("capped", [False, True])
def test_the_frames_of_qwen3_share_a_budget_of_pixels(capped: bool) -> None:
    real = functions_of("qwen3_vl/video_processing_qwen3_vl", "smart_resize", method="get_num_of_video_patches")
    file = {
        "size": {"shortest_edge": 4096, "longest_edge": 25_165_824},
        "patch_size": 16,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "max_video_tokens": 768,
        "cap_pixels_per_frame": capped,
        "fps": 2,
        "min_frames": 4,
        "max_frames": 768,
    }
    itself, rng = SimpleNamespace(**file), random.Random(8)

    def ours(width: int, height: int, frames: int) -> Answer:
        return (video("qwen3_vl", QWEN3, file, (width, height), frames, Fraction(2)).shape.patches,)

    def theirs(width: int, height: int, frames: int) -> Answer:
        return (real.get_num_of_video_patches(itself, frames, height, width),)

    for size in sizes(9)[: CASES // 2]:
        case = *size, rng.randint(2, 700)
        assert answer(ours, *case) == answer(theirs, *case), case


def test_a_video_without_its_own_rate_has_the_frames_that_are_sampled() -> None:
    typed = Typed(text="", width=1280, height=720, seconds=Fraction(120))
    config = {"model_type": "qwen3_vl", "vision_config": QWEN3}
    (medium,) = media_of(config, {}, Request(typed=(typed,))).items
    # 240 frames at 2 a second; Qwen/Qwen3-VL-8B-Instruct's budget of 25,165,824 pixels leaves 416 x 224 a frame
    # (video_processing_qwen3_vl.smart_resize), a token for each 2 frames of 32 x 32.
    assert (medium.frames, medium.shape.width, medium.shape.height) == (240, 416, 224)
    assert medium.shape.tokens == 120 * 13 * 7 == 10_920


def test_a_budget_for_a_whole_video_leaves_smaller_frames() -> None:
    typed = Typed(text="", width=1280, height=720, seconds=Fraction(120), fps=Fraction(2))
    config = {"model_type": "qwen2_5_vl", "vision_config": QWEN2}
    request = Request(typed=(typed,), total_pixels=240 * 28 * 28 * 50)
    # Qwen2VLVideoProcessor.resize: total_pixels * 2 // frames for a frame, 78,400; within it 1280 x 720 is 364 x 196.
    assert media_of(config, {}, request).items[0].shape.grid == (120, 14, 26)


def test_every_family_has_its_rules() -> None:
    from qwen_inspect.media.processors import CLASSES, FAMILIES

    classes = {name for images, videos, *_ in FAMILIES.values() for name in (images, videos) if name is not None}
    assert classes == set(CLASSES) == {*counting.IMAGES, *counting.VIDEOS}

"""The numbers of prompts with images or videos that sizes of a run depend on: of the whole run, of each image or video, of each
frame, window and chunk.

A frame is what passes through a tower at once, of Qwen's videos two pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...media.counting import CHANNELS
from ...results.media import Media
from ...tracing import CHUNK_TURNS
from ...tracing.kernels import BIAS_ALIGNMENT
from ...values import replace
from ..traces.kept_trace import CHUNK_TOKENS

VIDEO_WINDOWS = "video windows"  # the axis of videos' windows beside images
PICTURES = "pictures"  # that of images and of videos' frames together


def numbers_of(media: Media, batch: int, prompt_tokens: int, total_tokens: int, *, batched: bool) -> dict[str, int]:
    """Of the whole run. images, patches, tokens: of all sequences; an image in tiles is as many. text: tokens behind a sequence's
    last image. batched: whether those of all sequences are told apart from those of one.
    """
    of_one = {
        "one": 1,
        "prompt": prompt_tokens,
        "prompt squared": prompt_tokens**2,
        "total": total_tokens,
        "grown": total_tokens - prompt_tokens,
        "before": total_tokens - 1,
        "next": prompt_tokens + 1,
        "text": prompt_tokens - media.least_tokens,
    }
    images = batch * sum(item.shape.grid[0] if item.kind == "image" else 1 for item in media.items)
    patches = batch * sum(item.shape.patches for item in media.items)
    return {
        **of_one,
        **{f"batch {name}": batch * number for name, number in of_one.items() if batched},
        "images": images,
        "images and one": images + 1,
        "patches": patches,
        "tokens": batch * media.tokens,
        "side": max(max(item.shape.grid[1:]) for item in media.items),
        "patches by images": patches * images,  # each patch of all with each image: Glm4vVisionEmbeddings
    }


def mask_rows(media: Media, batch: int, prompt_tokens: int, masked: str) -> int:
    """Rows of a mask, which are as long. masked: as in a `Tower`."""
    return batch * sum(item.shape.patches for item in media.items) if masked == "patches" else prompt_tokens


def masks_of(media: Media, batch: int, prompt_tokens: int, masked: str) -> dict[str, int]:
    """Elements of all masks, as they are and with padded rows."""
    rows, masks = mask_rows(media, batch, prompt_tokens, masked), 1 if masked == "patches" else batch
    padded = rows + -rows % BIAS_ALIGNMENT
    return {"mask": masks * rows**2, "padded mask": masks * rows * padded}


def images_of(media: Media, side: int = 0) -> list[dict[str, int]]:
    """Of each image or video. places: its windows with empty ones, where there are windows of `side` tokens."""
    found = []
    videos = any(item.kind == "video" for item in media.items)
    for item in media.items:
        frames, rows, columns = item.shape.grid
        patches = rows * columns
        numbers = {
            "one": 1,
            "rows": rows,
            "columns": columns,
            "patches": frames * patches,
            "longer": max(rows, columns),
        }
        if videos:
            numbers |= {"frames": frames, "frame": patches}
        if side:
            numbers["places"] = frames * (rows // 2 // side + 1) * (columns // 2 // side + 1)
        found.append(numbers)
    return found


def stacked_of(media: Media) -> tuple[dict[str, int], list[dict[str, int]]]:
    """Numbers of the canvas in which all images are, and of each image that is narrower than it."""
    grids = [item.shape.grid[1:] for item in media.items]
    height, width = (max(sides) for sides in zip(*grids, strict=True))
    narrow = [image for image in images_of(media) if image["columns"] < width]
    return {"canvas": height * width, "canvases": len(grids) * height * width}, narrow


def padded_of(media: Media, patch: int, pooling: int) -> dict[str, int]:
    """Numbers of images that are all padded to as many patches. place, slot: patches and tokens of each with its padding.
    fullest: the most patches of any without.

    Source: transformers 5.23, modeling_gemma4.Gemma4VisionPooler, whose weights are of each patch for each token
    """
    images = len(media.items)
    place = max(item.shape.pixels for item in media.items) // (CHANNELS * patch**2)
    slot = place // pooling**2
    return {
        "place": place,
        "places": images * place,
        "slots": images * slot,
        "places squared": images * place**2,
        "places by slot": images * place * slot,
        "fullest": max(item.shape.patches for item in media.items),
    }


def frames_of(media: Media) -> tuple[dict[str, int], list[dict[str, int]]]:
    """Numbers of all frames of videos, and of each, video by video: those of an image of its size."""
    each = [
        {"one": 1, "rows": rows, "columns": columns, "patches": rows * columns, "longer": max(rows, columns)}
        for frames, rows, columns in (item.shape.grid for item in media.items)
        for _ in range(frames)
    ]
    patches = sum(frame["patches"] for frame in each)
    return {"frames": len(each), "frames and one": len(each) + 1, "patches by frames": patches * len(each)}, each


def windows_of(media: Media, side: int) -> tuple[dict[str, int], list[dict[str, int]]]:
    """Numbers of all windows of `side` rows and columns of merged tokens, and of each that is not empty, frame by
    frame.

    Source: transformers 5.23, vision_utils.get_vision_window_index, which pads whole windows by another whole one
    """
    lengths: list[int] = []
    for item in media.items:
        frames, *grid = item.shape.grid
        rows, columns = (_along(length // 2, side) for length in grid)
        lengths += frames * [4 * height * width for height in rows for width in columns]
    places = sum(image["places"] for image in images_of(media, side))
    whole = {
        "windows": len(lengths),
        "windows and one": len(lengths) + 1,
        "places": places,
        "places and one": places + 1,
    }
    return whole, [{"patches": length} for length in lengths]


def by_kind(media: Media) -> list[Media]:
    """The images and the videos, as far as there are some."""
    parts = ([item for item in media.items if item.kind == kind] for kind in ("image", "video"))
    return [replace(media, items=tuple(part)) for part in parts if part]


def beside(images: Media, videos: Media, *, side: int) -> tuple[dict[str, int], dict[str, Sequence[Mapping[str, int]]]]:
    """Numbers of all images beside videos in one sequence and of all those videos, and of each frame and window, and of each
    picture: of the images, then of the frames. side: as in `images_of`.
    """
    numbers, items = dict[str, int](), dict[str, Sequence[Mapping[str, int]]]()
    for media, kind in ((images, "image"), (videos, "video")):
        whole = {"patches": sum(item.shape.patches for item in media.items), "tokens": media.tokens}
        if side:
            of_all, items["windows" if kind == "image" else VIDEO_WINDOWS] = windows_of(media, side)
            whole |= of_all
        numbers |= {f"{kind} {name}": number for name, number in whole.items()}
    of_all, items["frames"] = frames_of(videos)
    items[PICTURES] = [*frames_of(images)[1], *items["frames"]]
    return numbers | of_all, items


def chunks_of(batch: int, prompt_tokens: int, kernel: int) -> tuple[dict[str, int], list[dict[str, int]]]:
    """Numbers of all chunks that linear attention takes a prompt in, and none of each, as far as a trace goes over them.

    convolved: the prompt's tokens with the padding of a convolution of `kernel` tokens; further: a token behind so many.
    Source: transformers 5.23, modeling_qwen3_5.py, torch_chunk_gated_delta_rule and causal_conv1d_fn
    """
    chunks = -(-prompt_tokens // CHUNK_TOKENS)
    of_one = {"chunks": chunks, "convolved": prompt_tokens + kernel - 1, "further": kernel + 1}
    of_all = {f"batch {name}": batch * number for name, number in of_one.items() if batch > 1}
    return {**of_one, **of_all}, [{} for _ in range(min(chunks, CHUNK_TURNS))]


def _along(length: int, side: int) -> Sequence[int]:
    whole, rest = divmod(length, side)
    return [side] * whole + [rest] * (rest > 0)

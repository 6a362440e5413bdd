"""The numbers of prompts with images that sizes of a run depend on: of the whole run, of each image and of each window."""

from __future__ import annotations

from collections.abc import Sequence

from ..results.media import Media
from ..tracing.kernels import BIAS_ALIGNMENT


def numbers_of(media: Media, batch: int, prompt_tokens: int, total_tokens: int, *, batched: bool) -> dict[str, int]:
    """Of the whole run. images, patches, tokens: of all sequences. text: tokens behind a sequence's last image.
    batched: whether those of all sequences are told apart from those of one.
    """
    grids = [item.shape.grid[1:] for item in media.items]
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
    images = batch * len(grids)
    return {
        **of_one,
        **{f"batch {name}": batch * number for name, number in of_one.items() if batched},
        "images": images,
        "images and one": images + 1,
        "patches": batch * sum(rows * columns for rows, columns in grids),
        "tokens": batch * media.tokens,
        "side": max(map(max, grids)),
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
    """Of each image. places, padded: its windows with empty ones, and their tokens, where there are windows of `side` tokens."""
    found = []
    for item in media.items:
        _, rows, columns = item.shape.grid
        numbers = {"one": 1, "rows": rows, "columns": columns, "patches": rows * columns, "longer": max(rows, columns)}
        if side:
            numbers["places"] = (rows // 2 // side + 1) * (columns // 2 // side + 1)
        found.append(numbers)
    return found


def stacked_of(media: Media) -> tuple[dict[str, int], list[dict[str, int]]]:
    """Numbers of the canvas in which all images are, and of each image that is narrower than it."""
    grids = [item.shape.grid[1:] for item in media.items]
    height, width = (max(sides) for sides in zip(*grids, strict=True))
    narrow = [image for image in images_of(media) if image["columns"] < width]
    return {"canvas": height * width, "canvases": len(grids) * height * width}, narrow


def windows_of(media: Media, side: int) -> tuple[dict[str, int], list[dict[str, int]]]:
    """Numbers of all windows of `side` rows and columns of merged tokens, and of each that is not empty, image by image.

    Source: transformers 5.23, vision_utils.get_vision_window_index, which pads whole windows by another whole one
    """
    lengths: list[int] = []
    for item in media.items:
        _, *grid = item.shape.grid
        rows, columns = (_along(length // 2, side) for length in grid)
        lengths += [4 * height * width for height in rows for width in columns]
    places = sum(image["places"] for image in images_of(media, side))
    whole = {
        "windows": len(lengths),
        "windows and one": len(lengths) + 1,
        "places": places,
        "places and one": places + 1,
    }
    return whole, [{"patches": length} for length in lengths]


def _along(length: int, side: int) -> Sequence[int]:
    whole, rest = divmod(length, side)
    return [side] * whole + [rest] * (rest > 0)

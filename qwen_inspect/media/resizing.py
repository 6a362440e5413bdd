"""The sizes to which transformers' processors resize, one function for each rule.

Floating-point expressions are written as there, so that they round alike.
Source: transformers 5.23, models/*/image_processing_*.py and video_processing_*.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from struct import pack, unpack

from ..errors import UsageError

STEEPEST = 200  # sides of an image: one may be so many times the other


def smart_resize(height: int, width: int, *, factor: int, least: int, most: int) -> tuple[int, int]:
    """Multiples of `factor` with `least` to `most` pixels. Source: image_processing_qwen2_vl.smart_resize"""
    _check_ratio(height, width)
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    return _within(rows, columns, height, width, 1, rows * columns, factor=factor, least=least, most=most)


def smart_resize_frames(
    frames: int, height: int, width: int, *, factor: int, temporal: int, least: int, most: int
) -> tuple[int, int]:
    """The same with a budget for all frames; an image counts as `temporal` of them.

    Source: image_processing_glm4v.smart_resize, video_processing_qwen3_vl.smart_resize
    """
    if frames < temporal:
        raise UsageError("media_few_frames", frames=frames, least=temporal)
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    _check_ratio(height, width)
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    pixels = round(frames / temporal) * temporal * rows * columns
    return _within(rows, columns, height, width, frames, pixels, factor=factor, least=least, most=most)


def _within(
    rows: int, columns: int, height: int, width: int, frames: int, pixels: int, *, factor: int, least: int, most: int
) -> tuple[int, int]:
    """`rows` x `columns` if their `pixels` are within bounds, else the original size scaled to the bound."""
    if pixels > most:
        scale = math.sqrt((frames * height * width) / most)
        rows = max(factor, math.floor(height / scale / factor) * factor)
        columns = max(factor, math.floor(width / scale / factor) * factor)
    elif pixels < least:
        scale = math.sqrt(least / (frames * height * width))
        rows, columns = math.ceil(height * scale / factor) * factor, math.ceil(width * scale / factor) * factor
    return rows, columns


def _check_ratio(height: int, width: int) -> None:
    if max(height, width) / min(height, width) > STEEPEST:
        raise UsageError("media_ratio", width=width, height=height, most=STEEPEST)


def within_patches(height: int, width: int, *, patch: int, pooling: int, most_tokens: int) -> tuple[int, int]:
    """The largest size of about the same ratio with at most so many tokens.

    Source: image_processing_gemma4.get_aspect_ratio_preserving_size
    """
    side, pixels = pooling * patch, most_tokens * pooling**2 * patch**2
    factor = math.sqrt(pixels / (height * width))
    rows, columns = math.floor(factor * height / side) * side, math.floor(factor * width / side) * side
    if rows == 0 and columns == 0:
        raise UsageError("media_too_small", width=width, height=height)
    longest = most_tokens * side
    if rows == 0:
        rows, columns = side, min(math.floor(width / height) * side, longest)
    elif columns == 0:
        rows, columns = min(math.floor(height / width) * side, longest), side
    if rows * columns > pixels:
        raise UsageError("media_ratio_budget", width=width, height=height, tokens=most_tokens)
    return rows, columns


def within_edge(height: int, width: int, *, longest: int, patch: int) -> tuple[int, int]:
    """At most `longest` pixels a side, in whole patches. Source: image_processing_pixtral.get_resize_output_image_size"""
    ratio = max(height / longest, width / longest)
    if ratio > 1:
        height, width = math.floor(height / ratio), math.floor(width / ratio)
    return ((height - 1) // patch + 1) * patch, ((width - 1) // patch + 1) * patch


def canvas(height: int, width: int, *, side: int, most_tiles: int, largest: bool) -> tuple[int, int]:
    """Rows and columns of the tiles on which the image is put, not distorted.

    largest: the canvas that enlarges most, not least. Scales are compared in float32, as tensors are there.
    Source: image_processing_llama4.find_supported_resolutions and get_best_fit
    """
    grids = list(_grids_by_ratio(most_tiles))
    scales = [min(_float32(rows * side / height), _float32(columns * side / width)) for rows, columns in grids]
    enlarging = [scale for scale in scales if scale >= 1]
    chosen = (max if largest else min)(enlarging) if enlarging else max(scales)
    fitting = [grid for grid, scale in zip(grids, scales, strict=True) if scale == chosen]
    return min(fitting, key=lambda grid: grid[0] * grid[1])


def _grids_by_ratio(most_tiles: int) -> Iterator[tuple[int, int]]:
    """All grids of up to `most_tiles`, those of a ratio together, by number of tiles, most first."""
    by_ratio: dict[float, list[tuple[int, int]]] = {}
    for tiles in range(most_tiles, 0, -1):
        for rows in range(1, tiles + 1):
            if tiles % rows == 0:
                by_ratio.setdefault(rows / (tiles // rows), []).append((rows, tiles // rows))
    for grids in by_ratio.values():
        yield from grids


def _float32(value: float) -> float:
    rounded: float = unpack("f", pack("f", value))[0]
    return rounded


def tiles(height: int, width: int, *, tile: tuple[int, int], least: int, most: int) -> tuple[int, int]:
    """Rows and columns of the tiles whose ratio is nearest to the image's.

    Source: image_processing_got_ocr2.get_optimal_tiled_canvas
    """
    grids = [
        (columns, rows)
        for columns in range(1, most + 1)
        for rows in range(1, most + 1)
        if least <= columns * rows <= most
    ]
    ratio, area = width / height, width * height
    nearest, best = float("inf"), (1, 1)
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        difference = abs(ratio - columns / rows)
        if difference < nearest:
            nearest, best = difference, (columns, rows)
        elif difference == nearest and area > 0.5 * tile[0] * tile[1] * columns * rows:
            best = (columns, rows)
    return best[1], best[0]

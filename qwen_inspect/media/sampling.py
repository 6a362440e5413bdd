"""How many frames of a video transformers' processors sample. Source: transformers 5.23, models/*/video_processing_*.py"""

from __future__ import annotations

import math
from fractions import Fraction

from ..errors import UsageError

# Source: video_processing_glm46v.sample_frames
GLM46_RATES = ((30, 3.0), (300, 1.0), (2400, 0.5))
GLM46_LONGEST, GLM46_MOST_FRAMES = 2400, 640  # seconds, frames


def of_qwen2(total: int, own: float, fps: float, *, temporal: int, least: int, most: int) -> int:
    """Source: Qwen2VLVideoProcessor.sample_frames"""
    most = math.floor(min(most, total) / temporal) * temporal
    frames = min(max(total / own * fps, least), most, total)
    number = math.floor(frames / temporal) * temporal
    if number == 0:
        raise UsageError("media_few_frames", frames=total, least=temporal)
    return math.ceil(total / (total / number))  # the length of torch.arange(0, total, total / number)


def fixed_of_qwen2(total: int, number: int, *, temporal: int) -> int:
    """So many frames as the processor's file says. Source: Qwen2VLVideoProcessor.sample_frames"""
    number = round(number / temporal) * temporal
    if not 1 <= number <= total:
        raise UsageError("media_few_frames", frames=total, least=max(number, temporal))
    return math.ceil(total / (total / number))


def of_qwen3(total: int, own: float, fps: float, *, least: int, most: int) -> int:
    """Source: Qwen3VLVideoProcessor.sample_frames"""
    return min(max(int(total / own * fps), least), most, total)


def of_glm(total: int, own: float, fps: float, seconds: Fraction, *, longest: int) -> int:
    """Source: Glm4vVideoProcessor.sample_frames"""
    last, duration = total - 1, float(seconds)
    if duration <= longest:
        number = max(math.floor(duration * fps), 1)
        indices = [min(last, math.ceil(index * own / fps)) for index in range(number)]
    elif (number := int(longest * fps)) >= total:
        indices = list(range(total))
    else:
        indices = [min(last, math.ceil(second * own)) for second in _linspace(0, duration, number)]
    return _even(indices)


def of_glm46(total: int, own: float, seconds: Fraction, *, temporal: int) -> int:
    """Source: Glm46VVideoProcessor.sample_frames"""
    duration = float(seconds)
    rate = next(rate for longest, rate in GLM46_RATES if min(duration, GLM46_LONGEST) <= longest)
    wanted = min(int(min(duration, GLM46_LONGEST) * rate * temporal), GLM46_MOST_FRAMES)
    indices = list(range(total)) if total < wanted else _at_rate(total, own, temporal * rate, int(duration))
    if total < wanted or len(indices) > wanted:
        indices = [math.floor(index) for index in _linspace(0, total - 1, wanted)]
    elif len(indices) < wanted:
        indices = [math.floor(index) for index in _linspace(indices[0], indices[-1], wanted)]
    return _even(indices)


def _at_rate(total: int, own: float, rate: float, end: int) -> list[int]:
    """The first frame of each interval of 1 / `rate` seconds, until `end`."""
    indices, second = [], 0.0
    for index in range(total):
        if index * (1 / own) >= second:
            second += 1 / rate
            indices.append(index)
            if second >= end:
                break
    return indices


def _even(indices: list[int]) -> int:
    """The number of distinct frames, the last one twice if it is odd."""
    distinct = len(set(indices))
    return distinct + distinct % 2


def _linspace(begin: float, end: float, number: int) -> list[float]:
    """As numpy.linspace."""
    if number <= 1:
        return [float(begin)] * number
    step = (end - begin) / (number - 1)
    return [*(index * step + begin for index in range(number - 1)), float(end)]

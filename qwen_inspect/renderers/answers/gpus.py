"""`gpus`: how many, from the smallest to the largest."""

from __future__ import annotations

from collections.abc import Sequence

from ...language import Language
from ...results.fit import Gpu
from .cards import named


def sentences(gpus: Sequence[Gpu], say: Language) -> list[str]:
    by_size = sorted(gpus, key=lambda gpu: gpu.available_bytes)
    return [say("answer_gpus", count=len(gpus), least=named(by_size[0], say), most=named(by_size[-1], say))]

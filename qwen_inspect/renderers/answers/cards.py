"""What a requirement means for cards: for one that was named, and for the common ones."""

from __future__ import annotations

from collections.abc import Sequence

from ...language import Language
from ...loaders import gpus
from ...results.fit import Gpu, Verdict, verdict
from ...units import size

Required = tuple[int, int | None]  # both ends; None if there is no upper one


def named(gpu: Gpu, say: Language) -> str:
    """RTX 4090 (23.52 GiB)"""
    return say("answer_card", name=gpu.name, size=size(gpu.available_bytes))


def on_card(gpu: Gpu, required: Required, say: Language) -> str:
    """Whether it fits this card; if it does not, the smallest common card that it fits."""
    low, high = required
    left = gpu.available_bytes - (low if high is None else high)
    judged = verdict(gpu.available_bytes, required)
    sentence = say(
        f"answer_on_card_{judged}",
        card=named(gpu, say),
        left=size(max(left, 0)),
        most=size(max(gpu.available_bytes - low, 0)),
        missing=size(max(-left, 0)),
        least_missing=size(max(low - gpu.available_bytes, 0)),
    )
    enough = [card for card in gpus.common() if verdict(card.available_bytes, required) == "fits"]
    if judged in ("fits", "unknown") or not enough:
        return sentence
    return say("answer_joint").join([sentence, say("answer_smallest_card", card=named(enough[0], say))])


def on_common(cards: Sequence[Gpu], required: Required, say: Language) -> list[str]:
    """The smallest of `cards` that it fits, and the largest too small; empty if all are unknown. cards: smallest first."""
    judged: dict[Verdict, list[str]] = {}
    for card in cards:
        judged.setdefault(verdict(card.available_bytes, required), []).append(named(card, say))
    if [*judged] == ["too_small"]:
        return [say("answer_cards_none", card=named(cards[-1], say))]
    parts = []
    if fitting := judged.get("fits"):
        parts.append(say("answer_cards_fit" if len(fitting) > 1 else "answer_card_fits", card=fitting[0]))
    if uncertain := judged.get("may_fit"):
        parts.append(say("answer_cards_may", cards=say("list_comma").join(uncertain)))
    if unknown := judged.get("unknown"):
        parts.append(say("answer_cards_unknown", card=unknown[0]))
    if small := judged.get("too_small"):
        parts.append(say("answer_card_small", card=small[-1]))
    return [] if [*judged] == ["unknown"] else [say("answer_cards", verdicts=say("semicolon").join(parts))]

"""What llama.cpp's --fit, on by default, makes of a command that leaves less than its margins free.

Source: llama.cpp 0c1e57098 and b11434, common/fit.cpp (common_params_fit_impl); common/common.cpp (common_init_result).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...typed import Literal
from ...values import dataclass, replace
from .buffers import Plan
from .ggml.scheduler import HOST
from .layer_cells import CELLS_MULTIPLE
from .options import EXPERTS, LlamaCppOptions

Part = Literal["experts", "down", "gate", "feed forward"]
# What of a layer lies elsewhere, where the card has not all of it.
PATTERNS: Mapping[Part, str] = {
    "experts": EXPERTS,
    "down": r"\.ffn_down.*",
    "gate": r"\.ffn_(gate|gate_up|down).*",
    "feed forward": r"\.ffn_(gate|up|gate_up|down).*",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Layers of a card. partial: those of them whose experts the host has; of the first, `part` lies on `elsewhere`."""

    layers: int = 0
    partial: int = 0
    part: Part = "experts"
    elsewhere: str = HOST

    @property
    def whole(self) -> int:
        return self.layers - self.partial


Shares = list[Share]


class FitParams:
    """margins: bytes that are to stay free on each card of the plan."""

    def __init__(self, plan: Plan, margins: Sequence[int]) -> None:
        free = (plan.card_bytes[int(card.removeprefix("CUDA"))] for card in plan.cards)
        self._targets = [available - margin for available, margin in zip(free, margins, strict=True)]
        self._plan, self._options, self._cards = plan, plan.options, plan.cards
        self._layers = plan.read.all_layers if plan.options.draft.predicts else plan.read.layers
        self._last = len(plan.cards) - 1
        self._experts = bool(plan.read.experts.count)
        self._known: dict[LlamaCppOptions, list[int]] = {}

    def fitted(self) -> LlamaCppOptions:
        """The command's options as --fit leaves them; the same if they are kept, or if nothing that it may change helps."""
        given = self._options
        most = self._plan.sizes.context_tokens
        if given.context_tokens is None:
            self._options = replace(given, context_tokens=most)
        used = self._used(self._options)
        if all(bytes_ <= target for bytes_, target in zip(used, self._targets, strict=True)):
            return given
        if (
            sum(used) > sum(self._targets)
            and given.context_tokens is None
            and self._shorten(most, used)
            and not self._last
        ):
            return self._options
        if given.offloaded is not None or given.split or given.overrides or given.split_mode == "row":
            return self._options
        shares = self._filled()
        if self._experts and sum(self._used(replace(self._options, overrides=((EXPERTS, HOST),)))) < sum(self._targets):
            shares = self._with_experts(shares)
        return self._sharing(shares)

    def _used(self, options: LlamaCppOptions) -> list[int]:
        """Bytes on each card, a draft's included."""
        if options not in self._known:
            self._known[options] = self._bytes(options)
        return self._known[options]

    def _bytes(self, options: LlamaCppOptions) -> list[int]:
        plan, totals = self._plan.with_options(options), dict.fromkeys(self._cards, 0)
        plan.pins_layers = False
        for buffer in plan.buffers():
            if buffer.device in totals:
                totals[buffer.device] += buffer.low_bytes
        return [*totals.values()]

    def _shorten(self, most: int, used: Sequence[int]) -> bool:
        """Takes as much context as fits, by the line between the least and the most; whether all layers fit then."""
        streams = self._plan.sizes.streams
        least = self._options.fit_context * streams
        if most <= least:
            return False
        target = sum(self._targets)
        if self._last:
            stored = self._plan.with_options(self._options).stored()
            weights = sum(one.low_bytes for one in stored if one.kind == "weights" and one.device in self._cards)
            layers = min(self._options.offloaded or self._layers, self._layers)
            target -= (len(self._cards) + 1) * (weights // layers) // (6 if self._experts else 2)
        at_least = sum(self._used(replace(self._options, context_tokens=least)))
        tokens = least
        if target > at_least:
            tokens += (most - least) * (target - at_least) // (sum(used) - at_least)
            tokens = max(tokens - tokens % (CELLS_MULTIPLE * streams), least)
        self._options = replace(self._options, context_tokens=tokens)
        return target > at_least

    def _sharing(self, shares: Shares) -> LlamaCppOptions:
        """Source: set_ngl_tensor_split_tbo."""
        offloaded = sum(share.layers for share in shares)
        layer = self._layers + 1 - offloaded
        overrides: list[tuple[str, str]] = []
        for share in shares:
            layer += share.whole
            rest = range(layer + 1, layer + share.partial)
            if share.partial:
                overrides.append((rf"blk\.{layer}{PATTERNS[share.part]}", share.elsewhere))
            if rest:
                overrides.append((rf"blk\.({'|'.join(map(str, rest))}){EXPERTS}", HOST))
            layer += share.partial
        split = tuple(float(share.layers) for share in shares) if self._last else ()
        return replace(self._options, offloaded=offloaded, split=split, overrides=tuple(overrides))

    def _measured(self, shares: Shares) -> list[int]:
        return self._used(self._sharing(shares))

    def _filled(self) -> Shares:
        """Layers from the last on, the last card first; of a mixture without their experts. By the method of false position."""
        shares = [Share() for _ in self._cards]
        used = self._measured(shares)
        for card in range(self._last, -1, -1):
            left = self._layers + 1 - sum(share.layers for share in shares[card + 1 :])
            if not left:
                continue
            high = self._more(shares, card, left)
            most = self._measured(high)
            if most[card] <= self._targets[card]:
                shares, used = high, most
                continue
            while (delta := high[card].layers - shares[card].layers) > 1:
                tried = self._more(shares, card, self._step(delta, card, used, most))
                measured = self._measured(tried)
                if measured[card] <= self._targets[card]:
                    shares, used = tried, measured
                else:
                    high, most = tried, measured
        return shares

    def _more(self, shares: Shares, card: int, layers: int) -> Shares:
        """Further layers on a card; the output layer, the last card's, is whole."""
        share = shares[card]
        whole = card == self._last and not share.partial
        partial = share.partial + layers - whole if self._experts else 0
        return _with(shares, card, replace(share, layers=share.layers + layers, partial=partial))

    def _step(self, delta: int, card: int, used: Sequence[int], most: Sequence[int]) -> int:
        room, growth = self._targets[card] - used[card], most[card] - used[card]
        step = delta * room // growth if room >= 0 < growth else delta  # a negative number is a large unsigned one
        return min(max(step, 1), delta - 1)

    def _with_experts(self, shares: Shares) -> Shares:
        """Layers made whole, the first card first; then as much of a further one as fits."""
        used = self._measured(shares)
        empty = [card for card, share in enumerate(shares) if not share.layers]
        dense = max(empty, default=-1) + 1  # the first of the cards that all have layers
        card = 0
        while card <= dense <= self._last:
            high = [*shares]
            for other in range(dense, len(shares)):
                moved = high[other].layers - (other == self._last)
                high[card] = replace(high[card], layers=high[card].layers + moved)
                high[other] = replace(high[other], layers=high[other].layers - moved, partial=0)
            most = self._measured(high)
            if most[card] <= self._targets[card]:
                shares, used, dense = high, most, self._last
            else:
                while (delta := high[card].whole - shares[card].whole) > 1:
                    tried, tried_dense = _converted(shares, dense, card, self._step(delta, card, used, most))
                    measured = self._measured(tried)
                    if measured[card] <= self._targets[card]:
                        shares, used, dense = tried, measured, tried_dense
                    else:
                        high, most = tried, measured
            if dense <= self._last and shares[dense].layers > (card == self._last):
                shares, used, dense = self._with_a_part(shares, used, dense, card)
            card += 1
        return shares

    def _with_a_part(self, shares: Shares, used: list[int], dense: int, card: int) -> tuple[Shares, list[int], int]:
        """Attention with the projection up of a further layer, with the gate's too, or alone, if they fit."""
        tried = [*shares]
        tried[dense] = replace(tried[dense], layers=tried[dense].layers - 1, partial=tried[dense].partial - 1)
        elsewhere = HOST if card == self._last else self._cards[card + 1]
        share = replace(
            tried[card], layers=tried[card].layers + 1, partial=tried[card].partial + 1, elsewhere=elsewhere
        )
        kept = shares, used, dense
        for part in ("gate", "down") if self._has_room(tried, card, replace(share, part="gate")) else ("feed forward",):
            with_part = _with(tried, card, replace(share, part=part))
            if self._has_room(tried, card, with_part[card]):
                kept = with_part, self._measured(with_part), dense + (not with_part[dense].partial)
        return kept

    def _has_room(self, shares: Shares, card: int, share: Share) -> bool:
        measured = self._measured(_with(shares, card, share))
        return all(measured[at] < self._targets[at] for at in range(card, min(card + 2, len(shares))))


def _with(shares: Shares, card: int, share: Share) -> Shares:
    return [*shares[:card], share, *shares[card + 1 :]]


def _converted(shares: Shares, dense: int, card: int, count: int) -> tuple[Shares, int]:
    """`count` partial layers, from the card `dense` on, as whole ones of `card`; and where partial ones begin then."""
    shares = [*shares]
    while dense < len(shares):
        moved = min(count, shares[dense].partial)
        shares[dense] = replace(
            shares[dense], layers=shares[dense].layers - moved, partial=shares[dense].partial - moved
        )
        shares[card] = replace(shares[card], layers=shares[card].layers + moved)
        count -= moved
        if shares[dense].partial:
            break
        dense += 1
    return shares, dense

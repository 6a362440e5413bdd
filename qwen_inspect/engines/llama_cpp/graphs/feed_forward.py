"""The nodes of a feed-forward block: dense, experts, shared experts.

Source: llama.cpp b11549, src/llama-graph.cpp (build_ffn, build_moe_ffn).
"""

from __future__ import annotations

from ..ggml.tensors import (
    F32,
    I32,
    Node,
    cast,
    contiguous,
    like,
    matmul,
    matmul_chosen,
    new,
    reshape,
    rows,
    set_rows,
    view,
)
from .design import GATINGS
from .parts import Parts


class FeedForward(Parts):
    """The feed-forward block of one layer."""

    def _feed_forward(self, layer: int, inputs: Node, router: Node | None = None, chosen: Node | None = None) -> Node:
        """router: its scores, where it does not read `inputs`. chosen: the experts, where it does not choose."""
        prefix = f"blk.{layer}."
        if f"{prefix}ffn_gate_inp.weight" not in self._tensors:
            return self._dense(inputs, prefix, "")
        kind = "latent" if f"{prefix}ffn_latent_down.weight" in self._tensors else "routed"
        narrow = self._weight(f"{prefix}ffn_{kind}_down.weight")
        logits = router or self._linear(f"{prefix}ffn_gate_inp", inputs)
        routed = self._experts(layer, inputs if narrow is None else matmul(narrow, inputs), logits, chosen)
        if self._has(f"{prefix}ffn_{kind}_norm"):
            routed = self._norm(routed, f"{prefix}ffn_{kind}_norm")
        wide = self._weight(f"{prefix}ffn_{kind}_up.weight")
        routed = routed if wide is None else matmul(wide, routed)
        if f"{prefix}ffn_up_chexps.weight" in self._tensors:  # Grove's experts for groups of experts
            return like("ADD", routed, like("SCALE", self._experts(layer, routed, logits, chosen, "chexps")))
        if self._design.dense_beside and f"{prefix}ffn_up.weight" in self._tensors:
            return like("SCALE", like("ADD", self._dense(inputs, prefix, ""), routed))
        if f"{prefix}ffn_up_shexp.weight" not in self._tensors:
            return routed
        shared = self._dense(inputs, prefix, "_shexp")
        gate = self._weight(f"{prefix}ffn_gate_inp_shexp.weight")
        if gate is not None:
            scores = matmul(gate, inputs)
            opened = like("UNARY", scores)
            shared = like("MUL", shared, like("DIV", opened, scores) if self._design.divided_gate else opened)
        total = like("ADD", routed, shared)
        return like("SCALE", total) if self._design.halved_shared else total

    def _two_blocks(self, layer: int, inputs: Node) -> Node:
        """A dense block and experts with norms of their own; the router's input is the block's. Source: gemma4.cpp."""
        prefix = f"blk.{layer}."
        dense = self._dense(self._norm(inputs, f"{prefix}ffn_norm"), prefix, "")
        dense = self._norm(dense, f"{prefix}post_ffw_norm_1")
        normed = self._norm(inputs, f"{prefix}pre_ffw_norm_2")
        routed = like("MUL", like("SCALE", like("RMS_NORM", inputs)), self._needed(f"{prefix}ffn_gate_inp.scale"))
        experts = self._experts(layer, normed, matmul(self._needed(f"{prefix}ffn_gate_inp.weight"), routed))
        return like("ADD", dense, self._norm(experts, f"{prefix}post_ffw_norm_2"))

    def _dense(self, inputs: Node, prefix: str, suffix: str) -> Node:
        """Source: build_ffn with LLM_FFN_PAR; LLM_FFN_SEQ where gate and up are one matrix."""
        up = self._linear(f"{prefix}ffn_up{suffix}", inputs)
        if f"{prefix}ffn_gate{suffix}.weight" in self._tensors:
            inner = self._gated_by(prefix, "shexp", self._linear(f"{prefix}ffn_gate{suffix}", inputs), up)
        elif up.shape[0] == 2 * self._needed(f"{prefix}ffn_down{suffix}.weight").shape[0]:
            inner = new("GLU", (up.shape[0] // 2, *up.shape[1:]), up)
        else:
            inner = self._activated(up)
            if f"{prefix}ffn.act.scales" in self._tensors:
                inner = like("DIV", inner, self._needed(f"{prefix}ffn.act.scales"))
        if self._has(f"{prefix}ffn_sub_norm"):
            inner = self._norm(inner, f"{prefix}ffn_sub_norm")
        return self._linear(f"{prefix}ffn_down{suffix}", inner)

    def _gated_by(self, prefix: str, kind: str, gate: Node, up: Node) -> Node:
        """kind: of the key that says how far both may go; most architectures with it clamp them by nodes of their own."""
        if self._key("activation.situ_beta") is not None:
            return self._situ(gate, up)
        limits = self._key(f"swiglu_clamp_{kind}")
        if isinstance(limits, list):
            layer = int(prefix.split(".")[-2])
            limits = limits[layer] if layer < len(limits) else None
        if not limits or self._design.clamps_at_once:
            return like("GLU", gate, up)
        return like("MUL", like("CLAMP", like("UNARY", gate)), like("CLAMP", up))

    def _situ(self, gate: Node, up: Node) -> Node:
        """Kimi K3's gated unit."""
        opened = like("MUL", like("SCALE", like("UNARY", like("SCALE", gate))), like("UNARY", gate))
        if (self._key("activation.situ_linear_beta") or 0.0) > 0.0:
            up = like("SCALE", like("UNARY", like("SCALE", up)))
        return like("MUL", opened, up)

    def _of_best_groups(self, scores: Node, size: int, groups: int) -> Node:
        """The scores of experts in the best groups, by the sum of each group's two best."""
        tokens, used = scores.shape[1], self._key("expert_group_used_count") or 0
        grouped = reshape(scores, size, groups, tokens)
        ordered = new("ARGSORT", grouped.shape, grouped, kind=I32)
        best = view(ordered, (2, groups, tokens), ordered.strides[1:3])
        best = rows(reshape(grouped, 1, size, groups, tokens), best)
        total = new("SUM_ROWS", (1, groups, tokens, 1), reshape(best, 2, groups, tokens))
        ordered = new("ARGSORT", (groups, tokens, 1, 1), reshape(total, groups, tokens), kind=I32)
        chosen = view(ordered, (used, tokens), (ordered.strides[1],))
        kept = rows(grouped, chosen)
        return reshape(set_rows(like("FILL", grouped), kept, chosen), size * groups, tokens)

    def _activated(self, node: Node) -> Node:
        node = like("UNARY", node)
        return like("SQR", node) if self._design.squared else node

    def _experts(self, layer: int, inputs: Node, logits: Node, chosen: Node | None = None, kind: str = "exps") -> Node:
        """kind: in the tensors' names. Source: build_moe_ffn."""
        prefix, read = f"blk.{layer}.", self._read
        held = self._needed(f"{prefix}ffn_down_{kind}.weight").shape[2]
        used, count, tokens = min(read.experts.used[layer], held), read.experts.count, inputs.shape[1]
        gating = self._design.gating or GATINGS.get(self._key("expert_gating_func"), self._design.gated_by_default)
        scores = logits
        if gating in ("softmax", "sigmoid"):
            scores = like("SOFT_MAX" if gating == "softmax" else "UNARY", logits)
        if gating == "sqrt_softplus":
            scores = like("SQRT", like("UNARY", logits))
        selection = logits if self._design.chunked else self._with_bias(scores, f"{prefix}exp_probs_b.bias")
        if f"{prefix}exp_probs_b" in self._tensors:
            selection = self._with_bias(scores, f"{prefix}exp_probs_b")
        if read.architecture == "grovemoe":
            selection = like("UNARY", logits)
        groups = self._key("expert_group_count") or 0
        if groups > 1:
            selection = self._of_best_groups(selection, count // groups, groups)
        if chosen is None:
            sorted_ids = new("ARGSORT", selection.shape, selection, kind=I32)
            chosen = view(sorted_ids, (used, tokens), (sorted_ids.strides[1],))
        if held < count:
            chosen = cast(like("SCALE", cast(chosen, F32)), I32)
        weights = rows(reshape(scores, 1, count, tokens), chosen)
        if gating == "softmax_weight":
            weights = reshape(like("SOFT_MAX", reshape(weights, used, tokens)), 1, used, tokens)
        normalised = self._design.normalised
        if normalised is None:
            normalised = bool(self._key("expert_weights_norm"))
        if normalised:
            flat = reshape(weights, used, tokens)
            total = new("SUM_ROWS", (1, tokens, 1, 1), flat)
            total = total if self._batch.build.fork else like("CLAMP", total)
            weights = reshape(like("DIV", flat, total), 1, used, tokens)
        if self._key("expert_weights_scale") not in (None, 0.0, 1.0):
            weights = like("SCALE", weights)
        if not self._batch.build.fork:
            self.graph.expand(weights)
        inputs = reshape(inputs, inputs.shape[0], 1, tokens)
        if self._design.chunked:  # Llama 4 has the weights before the experts
            repeated = new("REPEAT", (inputs.shape[0], used, tokens, 1), inputs)
            inputs = like("MUL", repeated, weights)
        inner = self._inner(prefix, inputs, chosen, kind)
        result = self._chosen(f"{prefix}ffn_down_{kind}", inner, chosen)
        result = result if self._design.chunked else like("MUL", result, weights)
        if self._batch.build.fork and used > 2:
            first = view(result, (result.shape[0], tokens), (result.strides[2],))
            return new("MULTI_ADD", first.shape, first)
        self.graph.expand(result)
        parts = [
            self.graph.expand(view(result, (result.shape[0], tokens), (result.strides[2],), at * result.strides[1]))
            for at in range(used)
        ]
        total = parts[0]
        for part in parts[1:]:
            total = self.graph.expand(new("ADD", part.shape, total, part))
        return contiguous(total) if used == 1 else total

    def _inner(self, prefix: str, inputs: Node, chosen: Node, kind: str) -> Node:
        if f"{prefix}ffn_gate_up_exps.weight" in self._tensors:
            both = self._chosen(f"{prefix}ffn_gate_up_exps", inputs, chosen)
            half = both.shape[0] // 2
            gate, up = (view(both, (half, *both.shape[1:3]), both.strides[1:3], start) for start in (0, 4 * half))
            return new("GLU", (half, *both.shape[1:]), gate, up)
        if self._batch.fused_experts:
            parts = [self._needed(f"{prefix}ffn_{part}_exps.weight") for part in ("up", "gate")]
            return new("MOE_FUSED_UP_GATE", (parts[0].shape[1], *chosen.shape[:2], 1), *parts, inputs, chosen)
        up = self._chosen(f"{prefix}ffn_up_{kind}", inputs, chosen)
        if f"{prefix}ffn_gate_{kind}.weight" not in self._tensors:
            return self._activated(up)
        return self._gated_by(prefix, "exp", self._chosen(f"{prefix}ffn_gate_{kind}", inputs, chosen), up)

    def _chosen(self, name: str, inputs: Node, chosen: Node) -> Node:
        result = matmul_chosen(self._needed(f"{name}.weight"), inputs, chosen)
        scale = self._weight(f"{name}.scale")
        if scale is not None:
            experts, tokens = scale.shape[0], inputs.shape[2]
            repeated = new("REPEAT", (1, experts, tokens, 1), reshape(scale, 1, experts, 1))
            result = like("MUL", result, rows(repeated, chosen))
        bias = self._weight(f"{name}.bias")
        return result if bias is None else like("ADD_ID", result, bias, chosen)

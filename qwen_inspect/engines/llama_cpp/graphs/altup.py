"""The nodes of Gemma 3n's layers: four states (AltUp), of which attention and the feed-forward block compute the first.

Source: llama.cpp b11549, src/models/gemma3n.cpp; llama-hparams.h (n_altup); llama-model.h (n_layer_sparsity).
"""

from __future__ import annotations

from collections.abc import Callable

from ..ggml.tensors import F32, I32, Node, contiguous, like, matmul, new, permute, reshape, rows, transpose, view
from .layer_inputs import LayerInputs

STATES, SPARSE_LAYERS = 4, 10


class AltUp(LayerInputs):
    """From the embedding to the rows before the output norm."""

    def _altup(self, state: Node, attention: Callable[[int, Node], Node]) -> Node:
        width, tokens = state.shape[:2]
        size = self._magnitude(state)
        repeated = new("REPEAT", (width, tokens, STATES - 1, 1), state)
        added = self._resized(matmul(self._needed("altup_proj.weight"), repeated), size)
        states = new("CONCAT", (width, tokens, STATES, 1), state, added)
        for layer in range(self._read.layers):
            states = self._altup_layer(layer, states, attention)
        size = self._magnitude(_slice(states, 0))
        others = self._resized(matmul(self._needed("altup_unembd_proj.weight"), _rest(states)), size)
        state = _slice(states, 0)
        for at in range(STATES - 1):
            state = like("ADD", state, _slice(others, at))
        return rows(like("SCALE", state), self._input("out_ids", I32, self._batch.outputs))

    def _magnitude(self, node: Node) -> Node:
        summed = new("SUM_ROWS", (1, *node.shape[1:]), like("SQR", node))
        return like("SQRT", summed)

    def _resized(self, node: Node, size: Node) -> Node:
        """To the magnitude of the first state."""
        before = self._magnitude(node)
        return like("DIV", like("MUL", node, size), before)

    def _altup_layer(self, layer: int, states: Node, attention: Callable[[int, Node], Node]) -> Node:
        prefix = f"blk.{layer}."
        predictions = self._predicted(prefix, states)
        active = _slice(predictions, 0)
        normed = self._norm(active, f"{prefix}attn_norm")
        narrow = matmul(self._needed(f"{prefix}laurel_l.weight"), normed)
        laurel = self._norm(matmul(self._needed(f"{prefix}laurel_r.weight"), narrow), f"{prefix}laurel_post_norm")
        laurel = like("ADD", laurel, normed)
        attended = self._norm(attention(layer, normed), f"{prefix}post_attention_norm")
        middle = like("SCALE", like("ADD", like("ADD", attended, active), laurel))
        forward = self._norm(self._sparse(layer, self._norm(middle, f"{prefix}ffn_norm")), f"{prefix}post_ffw_norm")
        corrected = self._corrected(prefix, predictions, like("ADD", forward, middle))
        first = like("MUL", _slice(corrected, 0), self._needed(f"{prefix}altup_correct_scale.weight"))
        first = self._of_layer(layer, first)
        rest = like("ADD", _rest(corrected), first)
        return new("CONCAT", corrected.shape, _slice(corrected, 0), rest)

    def _modalities(self, prefix: str, node: Node) -> Node:
        routed = like("SCALE", self._norm(node, f"{prefix}altup_router_norm"))
        return like("UNARY", matmul(self._needed(f"{prefix}altup_router.weight"), routed))

    def _predicted(self, prefix: str, states: Node) -> Node:
        width, tokens = states.shape[:2]
        modalities = self._modalities(prefix, _slice(states, 0))
        factors = matmul(self._needed(f"{prefix}altup_predict_coef.weight"), modalities)
        turned = contiguous(permute(states, 1, 2, 0, 3), STATES, width, tokens)
        predictions = matmul(turned, reshape(factors, STATES, STATES, tokens))
        predictions = contiguous(permute(predictions, 0, 2, 1, 3), width, tokens, STATES)
        return like("ADD", predictions, states)

    def _corrected(self, prefix: str, predictions: Node, activated: Node) -> Node:
        width, tokens = activated.shape[:2]
        modalities = self._modalities(prefix, activated)
        innovation = like("SUB", activated, _slice(predictions, 0))
        factors = like("SCALE", matmul(self._needed(f"{prefix}altup_correct_coef.weight"), modalities))
        factors = contiguous(transpose(factors), 1, tokens, STATES)
        corrected = like("MUL", new("REPEAT", (width, tokens, STATES, 1), innovation), factors)
        return like("ADD", corrected, predictions)

    def _sparse(self, layer: int, inputs: Node) -> Node:
        """The feed-forward block, whose gate keeps its largest numbers in the first layers (gaussian_topk)."""
        up, gate = (matmul(self._needed(f"blk.{layer}.ffn_{part}.weight"), inputs) for part in ("up", "gate"))
        if layer < SPARSE_LAYERS:
            shape = (1, *gate.shape[1:])
            mean = new("MEAN", shape, gate)
            spread = new("SUM_ROWS", shape, like("SQR", like("SUB", gate, mean)))
            cutoff = like("ADD", mean, like("SCALE", like("SQRT", like("SCALE", spread))))
            gate = like("UNARY", like("SUB", gate, cutoff))
        return matmul(self._needed(f"blk.{layer}.ffn_down.weight"), like("MUL", up, like("UNARY", gate)))


def _slice(states: Node, at: int) -> Node:
    """One state. Source: gemma3n_view_2d_slice."""
    return view(
        states, states.shape[:2], (states.strides[1],), at * states.shape[0] * states.shape[1] * F32.block_bytes
    )


def _rest(states: Node) -> Node:
    return view(states, (*states.shape[:2], STATES - 1), states.strides[1:3], states.strides[2])

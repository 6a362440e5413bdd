"""The graph of a layer for multi-token prediction, which drafts from the last hidden states of its model.

Source: llama.cpp b11434, src/models/*.cpp (graph_mtp).
"""

from __future__ import annotations

from ....errors import UnsupportedError
from ..ggml.tensors import F32, I32, Graph, Node, leaf, like, matmul, new, reshape, rows
from .decoder import Decoder

QWEN = ("qwen35", "qwen35moe", "qwen3next")
ALONE = (
    "bailingmoe3",
    "cohere2moe",
    "deepseek2",
    "deepseek32",
    "deepseek4",
    "glm-dsa",
    "glm4moe",
    "nemotron_h_moe",
    "qwen4exp",
    *QWEN,
)  # one such layer at most
KNOWN = (*ALONE, "hy_v3", "mimo2", "step35")
ROWS_BEFORE_NORM = ("mimo2", "step35")
ROWS_AFTER_ATTENTION = ("nemotron_h_moe", "qwen3next")


class Prediction(Decoder):
    """Builds the graph."""

    def build(self) -> Graph:
        """That of the first such layer. Raises UnsupportedError for an architecture whose graph is not known."""
        read, tokens = self._read, self._batch.tokens
        several = read.all_layers != read.layers + 1
        if read.architecture not in KNOWN or (several and read.architecture in ALONE):
            raise UnsupportedError("llama_cpp_graph", architecture=read.architecture)
        prefix = f"blk.{read.layers}."
        embedding = self._weight(f"{prefix}nextn.embed_tokens.weight") or self._needed("token_embd.weight")
        embedded = rows(embedding, self._input("tokens", I32, tokens))
        if read.architecture == "deepseek4":
            return self._from_streams(prefix, embedded)
        if read.architecture == "qwen4exp":
            return self._from_gated_streams(prefix, embedded)
        hidden = self._norm(leaf(F32, read.embedding, tokens), f"{prefix}nextn.hnorm")
        embedded = self._norm(embedded, f"{prefix}nextn.enorm")
        joined = new("CONCAT", (2 * read.embedding, tokens, 1, 1), embedded, hidden)
        inputs = matmul(self._needed(f"{prefix}nextn.eh_proj.weight"), joined)
        early = read.architecture in ROWS_AFTER_ATTENTION
        if early or read.architecture in (*QWEN, "bailingmoe3"):
            state = self._predicting_layer(read.layers, inputs, early)
        else:
            state = self._layer(read.layers, inputs)
        return self._drafted(prefix, state, early)

    def _from_streams(self, prefix: str, embedded: Node) -> Graph:
        """DeepSeek-V4's, which keeps the streams of its model."""
        layer, (width, count) = self._read.layers, (self._read.embedding, self._streams)
        states = self._joined_streams(prefix, embedded)
        mixed, shares, mixing = self._read_streams(states, f"{prefix}hc_attn")
        attended = self._compressed_attention(layer, self._norm(mixed, f"{prefix}attn_norm"))
        states = self._written(attended, states, shares, mixing)
        mixed, shares, mixing = self._read_streams(states, f"{prefix}hc_ffn")
        forward = self._feed_forward(layer, self._norm(mixed, f"{prefix}ffn_norm"))
        states = self._written(forward, states, shares, mixing)
        chosen = rows(self._flat(states), self._out_ids)
        chosen.is_output = True
        state = self._summed_streams(reshape(chosen, width, count, self._batch.outputs), "output_hc")
        own = f"{prefix}nextn.shared_head_norm"
        state = self._norm(state, own if self._has(own) else "output_norm")
        state.is_output = True
        head = self._weight(f"{prefix}nextn.shared_head_head.weight") or self._needed("output.weight")
        self.graph.expand(matmul(head, state))
        return self.graph

    def _joined_streams(self, prefix: str, embedded: Node) -> Node:
        width, count, tokens = self._read.embedding, self._streams, self._batch.tokens
        hidden = self._norm(reshape(leaf(F32, width * count, tokens), width, count, tokens), f"{prefix}nextn.hnorm")
        embedded = self._in_streams(self._norm(embedded, f"{prefix}nextn.enorm"))
        joined = new("CONCAT", (2 * width, count, tokens, 1), embedded, hidden)
        return matmul(self._needed(f"{prefix}nextn.eh_proj.weight"), joined)

    def _from_gated_streams(self, prefix: str, embedded: Node) -> Graph:
        """Qwen4-Exp's."""
        layer, index = self._read.layers, self._read.indexer
        self.graph.expand(self._input("state_ids", I32, self._batch.sequences))
        for node in self._pool_inputs() if index.pool else ():
            self.graph.expand(node)
        states = self._joined_streams(prefix, embedded)
        mixed, shares = self._gated_streams(states, f"{prefix}hc_attn")
        states = self._added(states, self._chosen_attention(layer, mixed), shares)
        mixed, shares = self._gated_streams(states, f"{prefix}hc_ffn")
        states = self._added(states, self._feed_forward(layer, mixed), shares)
        flat = self._flat(states)
        chosen = rows(flat, self._last_ids)
        self.graph.expand(flat)
        _, state = self._gated_sum(reshape(chosen, *states.shape[:2], self._batch.outputs), f"{prefix}nextn.hc_head")
        state.is_output = True
        self.graph.expand(matmul(self._weight("output.weight") or self._needed("token_embd.weight"), state))
        return self.graph

    def _drafted(self, prefix: str, state: Node, early: bool) -> Graph:
        """From a layer's result to the logits."""
        chosen = self._input("out_ids", I32, self._batch.outputs)
        before = self._read.architecture in ROWS_BEFORE_NORM
        if before:
            state = rows(state, chosen)
            state.is_output = True
        own = f"{prefix}layer_output_norm"  # Ling 3's
        own = own if f"{own}.weight" in self._tensors else f"{prefix}nextn.shared_head_norm"
        if self._read.architecture == "nemotron_h_moe":
            state = like("MUL", like("NORM", state), self._needed(f"{own}.weight"))
        else:
            state = self._norm(state, own if f"{own}.weight" in self._tensors else "output_norm")
        state.is_output = state.is_output or not before
        if not (early or before):
            state = rows(state, chosen)
        head = self._weight(f"{prefix}nextn.shared_head_head.weight") or self._weight("output.weight")
        state = matmul(head or self._needed("token_embd.weight"), state)
        if self._design.scaled_logits and self._key("logit_scale"):
            state = like("SCALE", state)
        self.graph.expand(state)
        return self.graph

    def _predicting_layer(self, layer: int, inputs: Node, early: bool) -> Node:
        """Attention and experts, whose norm may have the name of one after attention."""
        prefix = f"blk.{layer}."
        attended = self._attention(layer, self._norm(inputs, f"{prefix}attn_norm"))
        chosen, summed_first = self._input("out_ids", I32, self._batch.outputs), self._design.single
        if early and not summed_first:
            attended, inputs = rows(attended, chosen), rows(inputs, chosen)
        middle = like("ADD", attended, inputs)
        if early and summed_first:
            middle = rows(middle, chosen)
        norm = f"{prefix}post_attention_norm"
        forward = self._feed_forward(layer, self._norm(middle, norm if self._has(norm) else f"{prefix}ffn_norm"))
        return like("ADD", forward, middle)

"""The graph of a layer for multi-token prediction, which drafts from the last hidden states of its model.

Source: llama.cpp b11434, src/models/qwen35.cpp, qwen35moe.cpp and qwen3next.cpp (graph_mtp).
"""

from __future__ import annotations

from ...errors import UnsupportedError
from .graphs import Decoder
from .tensors import F32, I32, Graph, leaf, like, matmul, new, rows

KNOWN = ("qwen35", "qwen35moe", "qwen3next")


class Prediction(Decoder):
    """Builds the graph."""

    def build(self) -> Graph:
        """Raises UnsupportedError for an architecture whose graph is not known, and for several such layers."""
        read, tokens = self._read, self._batch.tokens
        if read.architecture not in KNOWN or read.all_layers != read.layers + 1:
            raise UnsupportedError("llama_cpp_graph", architecture=read.architecture)
        layer = read.layers
        prefix = f"blk.{layer}."
        embedding = self._weight(f"{prefix}nextn.embed_tokens.weight") or self._needed("token_embd.weight")
        embedded = rows(embedding, self._input("tokens", I32, tokens))
        hidden = self._norm(leaf(F32, read.embedding, tokens), f"{prefix}nextn.hnorm")
        embedded = self._norm(embedded, f"{prefix}nextn.enorm")
        joined = new("CONCAT", (2 * read.embedding, tokens, 1, 1), embedded, hidden)
        inputs = matmul(self._needed(f"{prefix}nextn.eh_proj.weight"), joined)
        attended = self._attention(layer, self._norm(inputs, f"{prefix}attn_norm"))
        chosen, early = self._input("out_ids", I32, self._batch.outputs), read.architecture == "qwen3next"
        if early:
            attended, inputs = rows(attended, chosen), rows(inputs, chosen)
        middle = like("ADD", attended, inputs)
        forward = self._feed_forward(layer, self._norm(middle, f"{prefix}post_attention_norm"))
        state = like("ADD", forward, middle)
        own = f"{prefix}nextn.shared_head_norm"
        state = self._norm(state, own if f"{own}.weight" in self._tensors else "output_norm")
        state.is_output = True
        if not early:
            state = rows(state, chosen)
        head = self._weight(f"{prefix}nextn.shared_head_head.weight") or self._weight("output.weight")
        state = matmul(head or self._needed("token_embd.weight"), state)
        self.graph.expand(state)
        return self.graph

"""The nodes of models that read a text at once: attention without a cache, and BERT's layers, whose norms follow each block.

Source: llama.cpp b11549, src/models/bert.cpp; src/llama-graph.cpp (build_attn_inp_no_cache, build_attn, build_pooling).
"""

from __future__ import annotations

from ....errors import UnsupportedError
from ..ggml.tensors import F32, I32, Node, contiguous, leaf, like, matmul, rows, transpose, view
from .attention import Attention
from .design import POOLING
from .feed_forward import FeedForward


class Encoder(Attention, FeedForward):
    """Parts of encoders, and what makes one vector of a text's states."""

    def _typed(self, state: Node) -> Node:
        """With the first type's row and the positions' rows."""
        if self._key("decision_block_count"):  # ModernBERT with a head of layers of its own
            raise UnsupportedError("llama_cpp_graph", architecture=self._read.architecture)
        types = self._weight("token_types.weight")
        if types is not None and self._design.norms_after:
            state = like("ADD", state, view(types, (types.shape[0],)))
        if "position_embd.weight" not in self._tensors:
            return state
        positions = self._input("positions", I32, self._batch.tokens)
        gathered = rows(self._needed("position_embd.weight"), positions)
        first, second = (gathered, state) if self._design.norms_after else (state, gathered)
        return like("ADD", first, second)

    def _after(self, layer: int, inputs: Node, takes_rows: bool) -> Node:
        """A layer of BERT: the norms of the sums."""
        prefix = f"blk.{layer}."
        attended = self._attention(layer, inputs)
        if takes_rows:
            chosen = self._input("out_ids", I32, self._batch.outputs)
            attended, inputs = rows(attended, chosen), rows(inputs, chosen)
        middle = self._norm(like("ADD", attended, inputs), f"{prefix}attn_output_norm")
        if self._has(f"{prefix}attn_norm_2"):
            middle = self._norm(like("ADD", middle, inputs), f"{prefix}attn_norm_2")
        forward = self._feed_forward(layer, middle)
        return self._norm(like("ADD", forward, middle), f"{prefix}layer_output_norm")

    def _pool(self, states: Node) -> None:
        """Source: build_pooling, build_dense_out."""
        stored = self._key("pooling_type")
        pooling = self._batch.pooling or (POOLING[stored] if stored in range(len(POOLING)) else "none")
        pooled = self._pooled(states, pooling)
        if pooling == "rank":
            pooled = self._ranked(pooled)
        self.graph.expand(pooled)
        for name in ("dense_2", "dense_3"):
            if f"{name}.weight" in self._tensors:
                pooled = self.graph.expand(self._linear(name, pooled))
        pooled.is_output = True

    def _pooled(self, states: Node, pooling: str) -> Node:
        by_file = POOLING.index("mean") if self._read.architecture == "modern-bert" else None
        ranks_mean = (self._key("classifier.pooling_type") or by_file) == POOLING.index("mean")
        if pooling == "none":
            return states
        if pooling == "mean" or (pooling == "rank" and ranks_mean):
            flat = contiguous(transpose(states))
            return matmul(flat, leaf(F32, states.shape[1], self._batch.sequences))
        return rows(states, leaf(I32, self._batch.sequences))

    def _ranked(self, pooled: Node) -> Node:
        """The score of a classifier."""
        for name in ("cls", "cls.output"):
            if f"{name}.weight" not in self._tensors:
                continue
            pooled = self._linear(name, pooled)
            if name == "cls":
                pooled = like("UNARY", pooled)
                if self._has("cls.norm"):
                    pooled = like("MUL", like("NORM", pooled), self._needed("cls.norm.weight"))
        return like("SOFT_MAX", pooled) if self._read.architecture in ("qwen3", "qwen3vl") else pooled

    def _attend_here(self, layer: int, query: Node, own: list[Node], bias: Node | None = None) -> Node:
        """To the micro-batch's own K and V. bias: added to the scores."""
        for node in (query, *own):
            self.graph.expand(node)
        windowed = self._read.windowed[layer] and self._read.window_kind is not None
        return self._mha(query, own[0], own[1], self._mask(windowed, self._batch.tokens), layer, bias=bias)

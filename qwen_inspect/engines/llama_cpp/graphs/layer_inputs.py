"""The nodes of Gemma 3n's and Gemma 4's embeddings for each layer.

Source: llama.cpp b11549, src/models/gemma3n.cpp and gemma4.cpp (build_inp_per_layer, project_per_layer_inputs).
"""

from __future__ import annotations

from ..ggml.tensors import I32, Node, contiguous, leaf, like, matmul, permute, reshape, rows, view
from .parts import Parts


class LayerInputs(Parts):
    """A row for each token and layer."""

    def _gathered(self) -> Node | None:
        """(layers x numbers, tokens), if the file has a table."""
        table = self._weight("per_layer_token_embd.weight")
        if table is None or "per_layer_model_proj.weight" not in self._tensors:
            return None
        return rows(table, leaf(I32, self._batch.tokens))

    def _project(self, gathered: Node, state: Node) -> None:
        """Keeps (numbers, tokens, layers)."""
        tokens, layers = self._batch.tokens, self._read.layers
        width = gathered.shape[0] // layers
        if self._design.altup:
            scaled = self.graph.expand(like("SCALE", reshape(gathered, width, layers, tokens)))
        else:
            scaled = reshape(like("SCALE", gathered), width, layers, tokens)
        projected = like("SCALE", matmul(self._needed("per_layer_model_proj.weight"), state))
        projected = self._norm(reshape(projected, width, layers, tokens), "per_layer_proj_norm")
        both = like("SCALE", like("ADD", projected, scaled))
        self._inputs["by_layer"] = contiguous(permute(both, 0, 2, 1, 3), width, tokens, layers)

    def _of_layer(self, layer: int, state: Node) -> Node:
        """A state through a narrow matrix, times the layer's rows, and back."""
        prefix, every = f"blk.{layer}.", self._inputs["by_layer"]
        part = view(every, every.shape[:2], (every.strides[1],), layer * every.strides[2])
        if layer == self._read.layers - 1:
            part = rows(part, self._input("out_ids", I32, self._batch.outputs))
        narrow = like("UNARY", matmul(self._needed(f"{prefix}inp_gate.weight"), state))
        wide = matmul(self._needed(f"{prefix}proj.weight"), like("MUL", narrow, part))
        return self._norm(wide, f"{prefix}post_norm")

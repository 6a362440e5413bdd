"""The graphs of towers whose patches queries sum, or whose squares of patches are gathered: MiniCPM-V's; and Hunyuan-VL's.

Source: llama.cpp 0c1e57098, tools/mtmd/models/minicpmv.cpp and hunyuanvl.cpp.
"""

from __future__ import annotations

from ..ggml.tensors import F16, F32, I32, Node, contiguous, leaf, like, matmul, new, permute, reshape
from .parts import VisionParts, convolution, joined, table_rows

NORM, RMS = "NORM", "RMS_NORM"
QUERY_HEAD = 128


class Mergers(VisionParts):
    """Builds the graphs."""

    def resampler(self) -> Node:
        positions = table_rows(self._needed("v.position_embd.weight"), self._positions())
        state = self._transformer(self._embedded(self._image()), NORM, positions=positions)
        query = self._needed("resampler.query")
        value = matmul(self._needed("resampler.kv.weight"), state)
        query = self._norm(query, "resampler.ln_q", NORM)
        value = self._norm(value, "resampler.ln_kv", NORM)
        key = like("ADD", value, self._waves(value.shape[0]))
        parts = [
            self._linear(f"resampler.attn.{part}", node) for part, node in zip("qkv", (query, key, value), strict=True)
        ]
        heads = value.shape[0] // QUERY_HEAD
        query, key, value = (reshape(node, QUERY_HEAD, heads, node.shape[1]) for node in parts)
        state = self._norm(self._attended("resampler.attn.out", query, key, value), "resampler.ln_post", NORM)
        return matmul(self._needed("resampler.proj.weight"), state)

    def _waves(self, width: int) -> Node:
        """Sines and cosines of a patch's column and row."""
        patches = self._patches
        rates, down, across = leaf(F32, width // 4), leaf(F32, 1, patches), leaf(F32, 1, patches)
        repeated = new("REPEAT", (width // 4, patches, 1, 1), rates)
        angles = [like("MUL", repeated, places) for places in (across, down)]
        first, second = (joined(like("SIN", angle), like("COS", angle), 0) for angle in angles)
        return joined(first, second, 0)

    def minicpm_4_6(self) -> Node:
        merges_twice = self._tower.merge == 4
        patches, halved = self._patches, (self._across // 2) * (self._down // 2)
        positions = table_rows(self._needed("v.position_embd.weight"), self._positions())
        state = like("ADD", self._embedded(self._image()), positions)
        if "v.pre_ln.weight" in self._tower.by_name:
            state = self._norm(state, "v.pre_ln", NORM)
        first = int((self._tower.key("wa_layer_indexes") or [0])[0]) + 1 if merges_twice else 0
        for layer in range(first):
            state = self._layer(f"v.blk.{layer}", state, NORM, None)
        if merges_twice:
            state = self._halved(self._in_windows(state, patches), halved)
        for layer in range(first, self._layers):
            state = self._layer(f"v.blk.{layer}", state, NORM, None)
        if "v.post_ln.weight" in self._tower.by_name:
            state = self._norm(state, "v.post_ln", NORM)
        last = (self._across // 4) * (self._down // 4) if merges_twice else halved
        _, squares = self._squares(state, last)
        return self._feed_forward(self._norm(squares, "mm.input_norm", NORM), "mm.up", "mm.down")

    def _in_windows(self, inputs: Node, patches: int) -> Node:
        """Attention of patches to those of their square."""
        prefix = "v.vit_merger"
        kind = F16 if self._flash and not self._casts_masks else F32
        mask = self._cast(leaf(kind, patches, patches))
        state = table_rows(self._norm(inputs, f"{prefix}.ln1", NORM), leaf(I32, patches))
        parts = [self._linear(f"{prefix}.attn_{part}", state) for part in "qkv"]
        query, key, value = (reshape(node, self._head, self._heads, patches) for node in parts)
        state = self._attended(f"{prefix}.attn_out", query, key, value, mask)
        return like("ADD", table_rows(state, leaf(I32, patches)), inputs)

    def _squares(self, state: Node, count: int) -> tuple[list[Node], Node]:
        """(each square's patches, the four in a row)."""
        state = reshape(state, *state.shape[:2])
        parts = [table_rows(state, leaf(I32, count)) for _ in range(4)]
        whole = parts[0]
        for part in parts[1:]:
            whole = joined(whole, part, 0)
        return parts, whole

    def _halved(self, state: Node, count: int) -> Node:
        """Squares of patches become one: their mean and a block's result."""
        parts, whole = self._squares(state, count)
        mean = parts[0]
        for part in parts[1:]:
            mean = like("ADD", mean, part)
        mean = like("SCALE", mean)
        normed = self._norm(whole, "v.vit_merger.ds_ln", NORM)
        return like("ADD", self._feed_forward(normed, "v.vit_merger.ds_ffn_up", "v.vit_merger.ds_ffn_down"), mean)

    def hunyuanvl(self) -> Node:
        positions = leaf(F32, self._width, self._patches)
        state = self._transformer(self._embedded(self._image()), NORM, positions=positions)
        state = self._norm(state, "mm.pre_norm", RMS)
        grid = contiguous(permute(reshape(state, self._width, self._across, self._down), 2, 0, 1, 3))
        grid = self._convolved("mm.0", grid, self._tower.merge)
        grid = self._convolved("mm.2", like("UNARY", grid), 1)
        across, down, width = grid.shape[:3]
        ends = new("REPEAT", (1, down, width, 1), reshape(self._needed("v.image_newline"), 1, 1, width))
        grid = permute(joined(grid, ends, 0), 1, 2, 0, 3)
        state = self._linear("mm.model.fc", contiguous(grid, width, (across + 1) * down))
        begin, end = (self._needed(f"mm.image_{part}") for part in ("begin", "end"))
        state = joined(reshape(begin, begin.shape[0], 1), state, 1)
        return self._norm(joined(state, reshape(end, end.shape[0], 1), 1), "mm.post_norm", RMS)

    def _convolved(self, name: str, grid: Node, step: int) -> Node:
        grid = convolution(self._needed(f"{name}.weight"), grid, step)
        bias = self._weight(f"{name}.bias")
        return grid if bias is None else like("ADD", grid, reshape(bias, 1, 1, bias.shape[0]))

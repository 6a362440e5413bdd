"""The graphs of towers, by projector, and the buffers that they need.

Source: llama.cpp 0c1e57098, tools/mtmd/models/*.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ....errors import UnsupportedError
from ....results.llama_cpp import Buffer
from ..builds import Build
from ..cells import aligned
from ..ggml.scheduler import ALIGNMENT, HOST, HOST_ALIGNMENT, Scheduler
from ..ggml.tensors import (
    F16,
    F32,
    I32,
    Graph,
    Node,
    contiguous,
    leaf,
    like,
    matmul,
    new,
    permute,
    reshape,
    transpose,
    view,
)
from .conformer import Conformer
from .mergers import Mergers
from .parts import convolution, convolution_1d, joined, pooled, table_rows, unfolded
from .tower import Tower

NORM, RMS = "NORM", "RMS_NORM"
CLAMPS = (".input_min", ".input_max", ".output_min", ".output_max")  # numbers that are read, not kept as tensors
FIRST_BUILD, LAST_CAST, FIRST_UNCAST = 11_300, 11_300, 11_549  # the first known; those known to cast masks or not
CUDA_HEADS = frozenset((40, 64, 72, 80, 96, 112, 128, 256, 512))  # ggml_cuda_get_best_fattn_kernel


class TowerGraph(Mergers, Conformer):
    """Builds the graph."""

    def build(self) -> Graph:
        self.graph.expand(GRAPHS[self._tower.projector](self))
        return self.graph

    def gemma3(self) -> Node:
        state = self._siglip(self._needed("v.position_embd.weight"))
        grid = contiguous(transpose(state), self._across, self._down, self._width, 1)
        grid = pooled(grid, self._tower.merge)
        grid = reshape(grid, grid.shape[0] * grid.shape[0], self._width, 1)
        normed = like(RMS, contiguous(transpose(grid)))
        normed = like("MUL", normed, self._needed("mm.soft_emb_norm.weight"))
        return matmul(contiguous(transpose(self._needed("mm.input_projection.weight"))), normed)

    def _siglip(self, positions: Node) -> Node:
        return self._transformer(self._embedded(self._image()), NORM, positions=positions)

    def idefics3(self) -> Node:
        return self._product("mm.model.fc", self._merged(self._siglip(self._needed("v.position_embd.weight"))))

    def lfm2(self) -> Node:
        inputs = self._embedded(self._image())
        state = self._merged(self._transformer(inputs, NORM, positions=self._resized_positions()))
        if "mm.input_norm.weight" in self._tower.by_name:
            state = self._norm(state, "mm.input_norm", NORM)
        return self._feed_forward(state, "mm.1", "mm.2")

    def janus_pro(self) -> Node:
        return self._feed_forward(self._siglip(self._needed("v.position_embd.weight")), "mm.0", "mm.1")

    def phi4(self) -> Node:
        inputs = self._embedded(self._image())
        state = self._transformer(inputs, NORM, positions=self._resized_positions())
        return self._feed_forward(state, "mm.0", "mm.2")

    def llava(self) -> Node:
        """Up to the last layer but one, or to the deepest whose states are used."""
        inputs = self._embedded(self._image())
        if (first := self._weight("v.class_embd")) is not None:
            inputs = joined(inputs, first, 1)
        tokens = inputs.shape[1]
        state = like("ADD", inputs, table_rows(self._needed("v.position_embd.weight"), leaf(I32, tokens)))
        if "v.pre_ln.weight" in self._tower.by_name:
            state = self._norm(state, "v.pre_ln", NORM)
        used = self._tower.key("feature_layer") or []
        deepest = max(used, default=self._layers - 1)
        states = []
        for layer in range(deepest):
            states += [state] if layer in used else []
            state = self._layer(f"v.blk.{layer}", state, NORM, None)
        if "v.post_ln.weight" in self._tower.by_name:
            state = self._norm(state, "v.post_ln", NORM)
        states += [state] if deepest in used else []
        for at, each in enumerate(states):
            state = joined(state, each, 0) if at else each
        state = table_rows(reshape(state, *state.shape[:2]), leaf(I32, self._patches))
        state = self._linear("mm.0", state)
        if self._tower.projector == "mlp":
            state = like("UNARY", state)
            return self._linear("mm.2", state) if "mm.2.weight" in self._tower.by_name else state
        state = like("UNARY", self._norm(state, "mm.1", NORM))
        return self._norm(self._linear("mm.3", state), "mm.4", NORM)

    def pixtral(self) -> Node:
        turn = self._turning(self._positions(), self._positions())
        state = self._transformer(self._embedded(self._image()), RMS, turn=turn)
        side = self._tower.merge
        if "mm.patch_merger.weight" in self._tower.by_name:
            state = like("MUL", like(RMS, state), self._needed("mm.input_norm.weight"))
            grid = contiguous(permute(reshape(state, self._width, self._across, self._down), 2, 0, 1, 3))
            kernel = view(grid, (side, side, grid.shape[2]), (0, 0))
            columns = unfolded(kernel, grid, side)
            flat = reshape(columns, columns.shape[0], columns.shape[1] * columns.shape[2])
            state = self._product("mm.patch_merger", flat)
        state = self._feed_forward(state, "mm.1", "mm.2")
        if (line_end := self._weight("v.token_embd.img_break")) is None:
            return state
        width, across, down = state.shape[0], self._across // side, self._down // side
        empty = Node("NONE", F32, (width, 1, down, 1), (4, 4 * width, 4 * width, 4 * width * down))
        ends = like("ADD", like("SCALE", empty), line_end)
        rows = joined(reshape(state, width, across, down), ends, 1)
        return view(rows, (width, across * down + down - 1), (4 * width,))

    def qwen2vl(self) -> Node:
        norm = NORM if self._tower.projector == "qwen2vl_merger" else RMS
        state = self._two_frames()
        turn = self._turning(self._positions(4))
        if "v.pre_ln.weight" in self._tower.by_name:
            state = self._norm(state, "v.pre_ln", norm)
        pattern, quarter, mask = self._tower.key("n_wa_pattern") or 0, self._patches // 4, None
        if pattern:
            order = leaf(I32, quarter)
            kind = F16 if self._flash and not self._casts_masks else F32
            mask = self._cast(leaf(kind, self._patches, self._patches))
            state = table_rows(reshape(state, self._width * 4, quarter), order)
            state = reshape(state, self._width, self._patches, 1)
        for layer in range(self._layers):
            whole = not pattern or (layer + 1) % pattern == 0
            state = self._layer(f"v.blk.{layer}", state, norm, turn, None if whole else mask)
        if "v.post_ln.weight" in self._tower.by_name:
            state = self._norm(state, "v.post_ln", norm)
        state = self._feed_forward(reshape(state, self._width * 4, quarter), "mm.0", "mm.2")
        if pattern:
            state = table_rows(state, leaf(I32, quarter))
        return state

    def _two_frames(self) -> Node:
        """Patches of a picture and of the next one of a video, the same here. Source: build_inp_with_temporal_merge."""
        image = self._image()
        first, second = (
            convolution(self._needed(name), image, self._tower.patch)
            for name in ("v.patch_embd.weight", "v.patch_embd.weight.1")
        )
        return self._in_squares(permute(like("ADD", first, second), 1, 2, 0, 3))

    def qwen3vl(self) -> Node:
        state = self._with_bias(self._two_frames(), "v.patch_embd.bias")
        state = like("ADD", state, self._in_squares(self._resized_positions()))
        turn = self._turning(self._positions(4))
        if "v.pre_ln.weight" in self._tower.by_name:
            state = self._norm(state, "v.pre_ln", NORM)
        merged, deep = self._tower.merge**2, None
        for layer in range(self._layers):
            state = self._layer(f"v.blk.{layer}", state, NORM, turn)
            name = f"v.deepstack.{layer}"
            if f"{name}.fc1.weight" in self._tower.by_name:
                part = reshape(state, self._width * merged, self._patches // merged)
                part = self._feed_forward(self._norm(part, f"{name}.norm", NORM), f"{name}.fc1", f"{name}.fc2")
                deep = part if deep is None else joined(deep, part, 0)
        if "v.post_ln.weight" in self._tower.by_name:
            state = self._norm(state, "v.post_ln", NORM)
        state = self._feed_forward(reshape(state, self._width * 4, self._patches // 4), "mm.0", "mm.2")
        return state if deep is None else joined(state, deep, 0)

    def internvl(self) -> Node:
        inputs, first = self._embedded(self._image()), self._needed("v.class_embd")
        inputs = joined(inputs, new("REPEAT", (first.shape[0], 1, 1, 1), first), 1)
        norm = RMS if (self._width, self._layers) == (3200, 45) else NORM
        state = self._transformer(inputs, norm, positions=self._needed("v.position_embd.weight"))
        state = self._shuffled(contiguous(self._without_class(state)))
        return self._feed_forward(self._norm(state, "mm.model.mlp.0", NORM), "mm.model.mlp.1", "mm.model.mlp.3")

    def _shuffled(self, state: Node) -> Node:
        side = self._tower.merge
        state = permute(reshape(state, self._width * side, self._down // side, self._across), 0, 2, 1, 3)
        state = contiguous(state, self._width * side * side, self._down // side, self._across // side)
        if self._tower.projector == "internvl":
            state = permute(state, 0, 2, 1, 3)
        return contiguous(state, state.shape[0], state.shape[1] * state.shape[2])

    def llama4(self) -> Node:
        across, down = (leaf(I32, self._patches + 1) for _ in range(2))
        weight = self._needed("v.patch_embd.weight")
        kernel = reshape(weight, self._tower.patch, self._tower.patch, 3, self._width)
        patches = matmul(weight, unfolded(kernel, self._image(), self._tower.patch))
        inputs = joined(reshape(patches, self._width, self._patches), self._needed("v.class_embd"), 1)
        positions = self._needed("v.position_embd.weight")
        state = self._transformer(inputs, NORM, positions=positions, turn=self._turning(across, down))
        state = self._shuffled(self._without_class(state))
        for name in ("mm.model.mlp.1", "mm.model.mlp.2"):
            state = like("UNARY", self._product(name, state))
        return self._product("mm.model.fc", state)

    def nemotron(self) -> Node:
        first = self._needed("v.class_embd")
        inputs = like("ADD", self._embedded(self._image()), self._needed("v.position_embd.weight"))
        state = self._transformer(joined(first, inputs, 1), NORM)
        state = self._norm(self._merged(self._without_class(state, first.shape[1])), "mm.model.mlp.0", RMS)
        return self._feed_forward(state, "mm.model.mlp.1", "mm.model.mlp.3", squared=True)

    def gemma4v(self) -> Node:
        patches = convolution(self._needed("v.patch_embd.weight"), like("SCALE", self._image()), self._tower.patch)
        inputs = contiguous(transpose(reshape(patches, self._patches, self._width, 1)))
        across, down = self._positions(), self._positions()
        state = self._transformer(self._placed(inputs, across, down), RMS, turn=self._turning(across, down))
        grid = pooled(contiguous(transpose(state), self._across, self._down, self._width, 1), self._tower.merge)
        state = contiguous(transpose(reshape(grid, grid.shape[0] * grid.shape[1], self._width, 1)))
        state = like("SCALE", state)
        if (bias := self._weight("v.std_bias")) is not None:
            state = like("MUL", like("SUB", state, bias), self._needed("v.std_scale"))
        return self._product("mm.input_projection", like(RMS, state))

    def _placed(self, inputs: Node, across: Node, down: Node) -> Node:
        """With the embeddings of a patch's column and row."""
        table = self._needed("v.position_embd.weight")
        row, count = table.strides[1], table.shape[1]
        for at, positions in enumerate((across, down)):
            part = view(table, (self._width, count), (row,), at * count * row)
            inputs = like("ADD", inputs, table_rows(part, positions))
        return inputs

    def gemma4uv(self) -> Node:
        image, patch = self._image(), self._tower.patch
        kernel = Node("NONE", F32, (patch, patch, 3, 1), (4, 4 * patch, 4 * patch**2, 12 * patch**2))
        columns = unfolded(kernel, image, patch)
        inputs = self._norm(reshape(columns, columns.shape[0], self._patches), "v.patch_norm.1", NORM)
        inputs = like("ADD", matmul(self._needed("v.patch_embd.weight"), inputs), self._needed("v.patch_embd.bias"))
        inputs = self._norm(inputs, "v.patch_norm.2", NORM)
        state = self._norm(self._placed(inputs, self._positions(), self._positions()), "v.patch_norm.3", NORM)
        return self._product("mm.input_projection", like(RMS, state))

    def kimivl(self) -> Node:
        across, down = self._positions(), self._positions()
        positions, turn = self._resized_positions(), self._turning(across, down)
        return self._kimi(self._transformer(self._embedded(self._image()), NORM, positions=positions, turn=turn))

    def kimik25(self) -> Node:
        table, (across, down) = self._needed("v.position_embd.weight"), (self._positions(), self._positions())
        if (self._down, self._across) != (table.shape[2], table.shape[1]):
            shape = (self._down, self._across, self._width, 1)
            table = permute(new("UPSCALE", shape, permute(table, 2, 1, 0, 3), kind=table.type), 2, 1, 0, 3)
        positions = contiguous(table, self._width, self._patches)
        inputs = like("ADD", self._embedded(self._image()), positions)
        return self._kimi(self._transformer(inputs, NORM, turn=self._turning(across, down)))

    def _kimi(self, state: Node) -> Node:
        state = self._merged(state)
        wide, tokens = state.shape[:2]
        state = view(state, (self._width, tokens * wide // self._width), (4 * self._width,))
        state = view(self._norm(state, "mm.input_norm", NORM), (wide, tokens), (4 * wide,))
        return self._feed_forward(state, "mm.1", "mm.2")

    def glm4v(self) -> Node:
        turn = self._turning(self._positions(4))
        inputs = self._with_bias(self._two_frames(), "v.patch_embd.bias")
        if "v.norm_embd.weight" in self._tower.by_name:
            inputs = self._norm(inputs, "v.norm_embd", RMS)
        table = "v.position_embd.weight" in self._tower.by_name
        positions = self._in_squares(self._resized_positions()) if table else None
        state = self._transformer(inputs, RMS, positions=positions, turn=turn)
        side, tokens = self._tower.merge, self._patches // self._tower.merge**2
        grid = contiguous(permute(reshape(state, self._width, side, side, tokens), 2, 0, 1, 3))
        state = convolution(self._needed("mm.patch_merger.weight"), grid, side)
        state = self._with_bias(reshape(state, state.shape[2], tokens), "mm.patch_merger.bias")
        state = self._norm(self._product("mm.model.fc", state), "mm.post_norm", NORM)
        return self._feed_forward(like("UNARY", state), "mm.up", "mm.down", "mm.gate")

    def paddleocr(self) -> Node:
        turn, positions = self._turning(self._positions(4)), self._resized_positions()
        state = self._transformer(self._embedded(self._image()), NORM, positions=positions, turn=turn)
        return self._feed_forward(self._merged(self._norm(state, "mm.input_norm", NORM)), "mm.1", "mm.2")

    def dots_ocr(self) -> Node:
        turn = self._turning(self._positions(4))
        state = self._transformer(self._embedded(self._image()), RMS, turn=turn)
        return self._feed_forward(self._merged(self._norm(state, "mm.input_norm", NORM)), "mm.0", "mm.2")

    def minimax_m3(self) -> Node:
        inputs, turn = self._two_frames(), self._turning(self._positions(), self._positions())
        state = self._feed_forward(self._transformer(inputs, NORM, turn=turn), "mm.1", "mm.2")
        merged = self._tower.merge**2
        state = reshape(state, state.shape[0] * merged, self._patches // merged)
        return self._feed_forward(state, "mm.merger.fc1", "mm.merger.fc2")

    def whisper(self) -> Node:
        state = leaf(F32, self._image_width, self._image_height, 1)
        for at in (1, 2):
            state = convolution_1d(self._needed(f"a.conv1d.{at}.weight"), state, at)
            state = like("UNARY", self._with_bias(state, f"a.conv1d.{at}.bias"))
        table, frames = self._needed("a.position_embd.weight"), self._image_width // 2
        positions = view(table, (table.shape[0], frames), (table.strides[1],))
        state = self._transformer(contiguous(transpose(state)), NORM, positions=positions)
        if self._tower.projector == "qwen2a":
            return self._linear("mm.a.fc", state)
        if self._tower.projector == "musicflamingo":
            return self._feed_forward(state, "mm.a.mlp.1", "mm.a.mlp.2")
        state = self._stacked(state)
        if self._tower.projector == "voxtral":
            return self._feed_forward(state, "mm.a.mlp.1", "mm.a.mlp.2")
        state = self._product("mm.a.mlp.1", self._norm(state, "mm.a.norm_pre", RMS))
        state = new("GLU", (state.shape[0] // 2, *state.shape[1:]), state)
        return self._product("mm.a.mlp.2", self._norm(state, "mm.a.norm_mid", RMS))

    def _stacked(self, state: Node) -> Node:
        """Several frames in a row, the last ones filled up. Source: build_stack."""
        wide = self._width * int(self._tower.key("projector.stack_factor") or 1)
        numbers = state.shape[0] * state.shape[1]
        if numbers % wide:
            numbers = -(-numbers // wide) * wide
            state = new("PAD", (numbers, 1, 1, 1), view(state, (state.shape[0] * state.shape[1],)))
        return view(state, (wide, numbers // wide), (4 * wide,))


GRAPHS: Mapping[str, Callable[[TowerGraph], Node]] = {
    "gemma3": TowerGraph.gemma3,
    "idefics3": TowerGraph.idefics3,
    "lfm2": TowerGraph.lfm2,
    "janus_pro": TowerGraph.janus_pro,
    "phi4": TowerGraph.phi4,
    **dict.fromkeys(("mlp", "mlp_norm"), TowerGraph.llava),
    **dict.fromkeys(("pixtral", "lightonocr"), TowerGraph.pixtral),
    **dict.fromkeys(("qwen2vl_merger", "qwen2.5vl_merger"), TowerGraph.qwen2vl),
    "qwen3vl_merger": TowerGraph.qwen3vl,
    "internvl": TowerGraph.internvl,
    "llama4": TowerGraph.llama4,
    "nemotron_v2_vl": TowerGraph.nemotron,
    "gemma4v": TowerGraph.gemma4v,
    "gemma4uv": TowerGraph.gemma4uv,
    "kimivl": TowerGraph.kimivl,
    "kimik25": TowerGraph.kimik25,
    **dict.fromkeys(("glm4v", "glm5v"), TowerGraph.glm4v),
    "paddleocr": TowerGraph.paddleocr,
    "dots_ocr": TowerGraph.dots_ocr,
    "minimax_m3": TowerGraph.minimax_m3,
    "resampler": TowerGraph.resampler,
    "minicpmv4_6": TowerGraph.minicpm_4_6,
    "hunyuanvl": TowerGraph.hunyuanvl,
    "gemma4a": TowerGraph.gemma4a,
    **dict.fromkeys(("qwen2a", "ultravox", "voxtral", "musicflamingo"), TowerGraph.whisper),
}


def tower_compute_bytes(
    tower: Tower, size: tuple[int, int], *, card: str | None, build: Build, flash_attention: bool | None = None
) -> Mapping[str, int]:
    """Bytes of each device's compute buffer. flash_attention: -fa, None: wherever it is possible.

    Raises UnsupportedError for a tower whose graph is not known.
    """
    between = LAST_CAST < build.number < FIRST_UNCAST and tower.key("n_wa_pattern")
    if build.fork or build.number < FIRST_BUILD or between:
        raise UnsupportedError("llama_cpp_graph", architecture=tower.projector)
    flash = _flash(tower, card, flash_attention)
    casts = build.number <= LAST_CAST
    graph = TowerGraph(tower, card or HOST, size, flash_attention=flash, casts_masks=casts).build()
    return Scheduler([card] if card else [], build).buffers(graph)


def _flash(tower: Tower, card: str | None, asked: bool | None) -> bool:
    head = tower.key("attention.head_dim") or tower.number("embedding_length") // tower.number("attention.head_count")
    return asked is not False and (card is None or head in CUDA_HEADS or asked is True)


def tower_buffers(
    tower: Tower, *, card: str | None, build: Build, flash_attention: bool | None, most_tokens: int | None
) -> Iterator[Buffer]:
    """Its weights and compute buffers, as after the warm-up; a compute buffer that is not known has no size."""
    alignment = ALIGNMENT if card else HOST_ALIGNMENT
    kept = [tensor for tensor in tower.tensors if not tensor.name.endswith(CLAMPS)]
    weights = sum(aligned(tensor.size_bytes, alignment) for tensor in kept)
    yield Buffer(kind="projector", device=card or HOST, size_bytes=weights)
    try:
        sizes = tower_compute_bytes(
            tower, tower.warm_up(most_tokens), card=card, build=build, flash_attention=flash_attention
        )
    except UnsupportedError:
        yield Buffer(kind="compute", device=card or HOST, size_bytes=None, context="projector")
        return
    for device, size_bytes in sizes.items():
        if size_bytes:
            yield Buffer(kind="compute", device=device, size_bytes=size_bytes, context="projector")

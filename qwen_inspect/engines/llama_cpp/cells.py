"""llama.cpp's KV cache: cells for the whole context of every sequence, and recurrent states.

Source: llama.cpp b11549 and 0c1e57098, src/llama-kv-cache.cpp, llama-kv-cache-iswa.cpp, llama-memory-recurrent.cpp,
llama-context.cpp
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from ...architectures.gguf_hparams import GgufHyperparameters
from ...errors import UsageError
from ...results.llama_cpp import Buffer
from ...values import dataclass
from .builds import Build
from .compressed import kinds, layers_of
from .ggml.scheduler import ALIGNMENT, HOST, HOST_ALIGNMENT, cuda_size_bytes
from .ggml.tensors import CACHE_TYPES, F32, stored
from .graphs.design import HAVE_ENCODER
from .layer_cells import padded
from .options import MOST_SEQUENCES, LlamaCppOptions

FITTING = 11_300  # 0c1e57098, whose --fit gives every sequence the model's limit where the command has no -c
POOLS_IN_CACHE = 11_434  # the first known build that keeps Qwen4-Exp's pools beside its index's keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What follows from -c, -b, -ub and -np. Source: llama_context's constructor."""

    cells: int
    streams: int
    tokens: int
    window_cells: int
    outputs: int
    sequences: int

    @property
    def context_tokens(self) -> int:
        return self.cells * self.streams


def sizes_of(read: GgufHyperparameters, options: LlamaCppOptions, build: Build, *, predicts: bool = False) -> Sizes:
    """Raises UsageError if neither the command nor the file has a context, and for more sequences than llama.cpp has."""
    sequences = max(_sequences(options, build), 1)
    if sequences > MOST_SEQUENCES:
        raise UsageError("llama_cpp_sequences", found=sequences, most=MOST_SEQUENCES)
    streams = 1 if options.shares_cache or not build.divides_cache else sequences
    limit = (read.context_tokens or 0) * (streams if options.fits and build.number >= FITTING else 1)
    asked = options.context_tokens or limit
    if not asked:
        raise UsageError("serving_needs_context")
    batch = min(asked, options.batch) if read.causal else options.batch
    micro_batch = min(batch, options.micro_batch or batch)
    cells = padded(padded(asked) // streams) if streams > 1 else padded(asked)
    tokens = min(cells * streams, micro_batch)
    limits_outputs = build.limits_outputs and read.architecture not in HAVE_ENCODER
    most_outputs = options.outputs if limits_outputs else None
    tokens_by_sequence = -(-tokens // sequences) * sequences if build.divides_cache else tokens
    window = cells
    if read.window_kind is not None and build.windows and not options.full_window:
        window = min(cells, padded(read.window * (sequences if streams == 1 else 1) + micro_batch))
    if read.compress_ratios and not predicts:  # its sequences never share cells
        streams, window = sequences, min(cells, padded(read.window + micro_batch))
    return Sizes(
        cells=cells,
        streams=streams,
        tokens=tokens_by_sequence,
        window_cells=window,
        outputs=min(tokens, most_outputs or batch),
        sequences=sequences,
    )


def _sequences(options: LlamaCppOptions, build: Build) -> int:
    if build.divides_cache:
        return options.streams_asked
    return (options.sequences or 1) + (
        build.fork and options.serves
    )  # the fork's server has one more, for a system prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """The cache and the states of a context. devices: of each layer's. predicts: it is that of the layers for MTP alone."""

    read: GgufHyperparameters
    options: LlamaCppOptions
    build: Build
    sizes: Sizes
    devices: tuple[str, ...]
    predicts: bool = False

    def _attends(self, layer: int) -> bool:
        return layer >= self.read.layers if self.predicts else self.read.attends(layer)

    def cache(self) -> Iterator[Buffer]:
        """K and V by device: one cache for full attention, one for windows, one for the keys of an index."""
        if self.read.compress_ratios:
            yield from self._last_cells() if self.predicts else self._compressed()
            return
        if not self.read.cache_is_known:
            yield Buffer(kind="cache", device=self.devices[-1], size_bytes=None)
            return
        windows = (False, True) if self.read.window_kind is not None and self.build.windows else (False,)
        for windowed in windows:
            layers = (
                layer
                for layer in range(self.read.all_layers)
                if self._attends(layer) and windowed == (self.read.windowed[layer] and len(windows) > 1)
            )
            yield from self._by_device({layer: self._cells_bytes(layer, windowed) for layer in layers})
        indexed = (layer for layer in range(self.read.all_layers) if self._attends(layer))
        yield from self._by_device({layer: self._index_bytes(layer) for layer in indexed})

    def _last_cells(self) -> Iterator[Buffer]:
        """K and V of the last tokens: DeepSeek-V4's layers for multi-token prediction compress none."""
        numbers, layers = (self.read.key_length, self.read.value_length), range(self.read.layers, self.read.all_layers)
        cells = self.sizes.window_cells
        yield from self._by_device({layer: self._parts_bytes(layer, numbers, cells, 1) for layer in layers})

    def _compressed(self) -> Iterator[Buffer]:
        """The last tokens' cells, then each kind of compressed ones."""
        sizes, last = self.sizes, (self.read.key_length, 0)
        yield from self._by_device(
            {layer: self._parts_bytes(layer, last, sizes.window_cells, 1) for layer in range(self.read.all_layers)}
        )
        for kind in kinds(self.read):
            cells = kind.cells(sizes.cells)
            yield from self._by_device(
                {layer: self._parts_bytes(layer, (kind.length, 0), cells, 1) for layer in layers_of(self.read, kind)}
            )

    def _compressed_states(self) -> Iterator[Buffer]:
        """Tokens whose cells are not whole: values and scores."""
        planes = self.sizes.streams * (1 + self.options.draft.snapshots(self.read.architecture))
        for kind in kinds(self.read):
            totals: dict[str, int] = defaultdict(int)
            for layer in layers_of(self.read, kind):
                totals[self.devices[layer]] += 2 * kind.state_rows * kind.state_width * planes * F32.block_bytes
            for device in sorted(totals, key=_order):
                yield Buffer(kind="state", device=device, size_bytes=totals[device])

    def _by_device(self, bytes_by_layer: Mapping[int, int]) -> Iterator[Buffer]:
        totals: dict[str, int] = defaultdict(int)
        for layer, size_bytes in bytes_by_layer.items():
            totals[self.devices[layer]] += size_bytes
        for device in sorted(totals, key=_order):
            if totals[device]:
                unaligned = HOST_ALIGNMENT if self.build.fork and device == HOST else 0  # its malloc's address is moved
                yield Buffer(kind="cache", device=device, size_bytes=totals[device] + unaligned)

    def _cells_bytes(self, layer: int, windowed: bool) -> int:
        if self.build.fork and self.read.kv_lora_rank:
            return self._fork_latent_bytes(layer)
        cells = self.sizes.window_cells if windowed else self.sizes.cells
        wide = self.read.values(layer) if self.options.flash_attention else self.read.most_values
        rows = self.read.kv_heads[layer] if self.build.fork else 1
        return self._parts_bytes(layer, (self.read.keys(layer), 0 if self.read.latent else wide), cells, rows)

    def _fork_latent_bytes(self, layer: int) -> int:
        """Source: ik_llama.cpp 8337e4cd3, src/llama.cpp (llama_kv_cache_init)."""
        read, options = self.read, self.options
        if options.latent:
            transposed = options.latent == 1 and not options.flash_attention
            numbers = read.kv_lora_rank + read.rope_dimensions, read.kv_lora_rank if transposed else 0
            return self._parts_bytes(layer, numbers, self.sizes.cells, 1)
        heads, (keys, values) = read.heads[layer], (read.key_length_mla, read.value_length_mla)
        if not read.latent:
            keys, values = read.key_length, read.value_length
        return self._parts_bytes(layer, (heads * keys, heads * values), self.sizes.cells, heads)

    def _index_bytes(self, layer: int) -> int:
        """Of the index's own cache."""
        numbers = self.read.index_cells(layer)
        if self.read.architecture == "qwen4exp" and self.build.number < POOLS_IN_CACHE and any(numbers):
            numbers = self.read.indexer.key_length, 0
        return self._parts_bytes(layer, numbers, self.sizes.cells, 1)

    def _parts_bytes(self, layer: int, numbers: tuple[int, int], cells: int, key_rows: int) -> int:
        """K and V of `numbers` a cell. key_rows: into which a cell's K is divided."""
        device, streams = self.devices[layer], self.sizes.streams
        kinds = (CACHE_TYPES[self.options.key_type], CACHE_TYPES[self.options.value_type])
        parts = (
            cuda_size_bytes(device, stored(kind, (count // rows, rows * cells, streams), device, weight=False))
            for count, kind, rows in zip(numbers, kinds, (key_rows, 1), strict=True)
            if count
        )
        return sum(aligned(part, ALIGNMENT if device != HOST else HOST_ALIGNMENT) for part in parts)

    def states(self) -> Iterator[Buffer]:
        """Recurrent states of every sequence, float32. Source: llama_memory_recurrent; n_rs_seq."""
        totals: dict[str, int] = defaultdict(int)
        copies = self.sizes.sequences * (1 + self.options.draft.snapshots(self.read.architecture))
        if self.predicts:
            return
        if self.read.compress_ratios:
            yield from self._compressed_states()
            return
        if not any(self.read.recurrent) and not self.read.recurrence.history:
            return
        for layer in range(self.read.all_layers):
            rolling, state = self.read.state(layer)
            numbers = rolling + state + self.read.history(layer)
            totals[self.devices[layer]] += numbers * copies * F32.block_bytes
        for device in sorted(totals, key=_order):
            if totals[device]:
                yield Buffer(kind="state", device=device, size_bytes=totals[device])


def _order(device: str) -> tuple[bool, int, str]:
    """The host first, then the cards by number."""
    return device != HOST, len(device), device


def aligned(size_bytes: int, alignment: int) -> int:
    return -(-size_bytes // alignment) * alignment

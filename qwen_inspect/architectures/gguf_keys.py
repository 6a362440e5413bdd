"""Reads llama.cpp's hyperparameters off the metadata and tensors of a GGUF file, with llama.cpp's own defaults.

Source: llama.cpp 0c1e57098, src/llama-model.cpp (load_hparams), src/models/*.cpp (load_arch_hparams); keys:
src/llama-arch.cpp, LLM_KV_NAMES.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..checkpoint import Tensor
from ..errors import MalformedError
from ..typed import Any, Literal
from ..values import replace
from .gguf_hparams import Experts, GgufHyperparameters, Indexer, Recurrence
from .gguf_rules import (
    ATTENTION_INTERVAL,
    BESIDE_ATTENTION,
    DECODERS,
    LATENT,
    NOT_CAUSAL,
    RECURRENT,
    RECURRENT_WITHOUT_KV_HEADS,
    UNKNOWN_CACHE,
    WINDOWS,
    WITHOUT_CACHE,
)
from .reading import integer, shown

MOST_LAYERS = 512  # LLAMA_MAX_LAYERS
# Keys of caches other than plain K and V: an unknown architecture with one of them may keep something else.
OTHER_CACHES = (
    "sliding_window", "ssm.", "kv_lora_rank", "indexer.", "shared_kv_layers", "recurrent_layers", "wkv.", "shortconv.", "kda.",
    "compress_ratios", "full_attention_interval", "num_loops",
)  # fmt: skip


def read_hyperparameters(metadata: Mapping[str, Any], tensors: Sequence[Tensor]) -> GgufHyperparameters:
    """The hyperparameters of a file. MalformedError for keys without meaning or missing ones."""
    return _Reader(metadata, tensors).hyperparameters()


class _Reader:
    """Reads keys of one architecture, whose name stands before each."""

    def __init__(self, metadata: Mapping[str, Any], tensors: Sequence[Tensor]) -> None:
        name = metadata.get("general.architecture")
        if not isinstance(name, str):
            raise MalformedError("gguf_no_architecture", found=shown(name))
        self._name = name
        self._keys = {
            key.removeprefix(f"{name}."): value for key, value in metadata.items() if key.startswith(f"{name}.")
        }
        self._shapes = {tensor.name: tensor.shape for tensor in tensors}
        self._nextn = self._count("nextn_predict_layers", 0)
        blocks = self._needed("block_count", at_most=MOST_LAYERS)
        if name == "deepseek4" and f"blk.{blocks - self._nextn}.nextn.eh_proj.weight" not in self._shapes:
            self._nextn = 0
        if self._nextn > blocks:
            key = self._key("nextn_predict_layers")
            raise MalformedError("config_out_of_range", key=key, found=self._nextn, least=0, most=blocks)
        self._all = blocks
        self._layers = blocks - self._nextn

    def hyperparameters(self) -> GgufHyperparameters:
        embedding = self._needed("embedding_length")
        heads = self._by_layer("attention.head_count", 0)
        kv_heads = self._by_layer("attention.head_count_kv", heads)
        feed_forward = self._by_layer("feed_forward_length", 0)
        head = embedding // heads[0] if heads[0] else 0
        key_length = self._count("attention.key_length", head) if heads[0] else 0
        value_length = self._count("attention.value_length", head) if heads[0] else 0
        if self._name == "plamo2":  # whose first layer may have no heads
            key_length = self._count("attention.key_length", key_length)
            value_length = self._count("attention.value_length", value_length)
        rope = self._count("rope.dimension_count", key_length) if heads[0] else 0
        recurrent = self._recurrent(kv_heads, feed_forward)
        window, kind, windowed = self._windows(recurrent)
        latent = self._name in LATENT
        read = GgufHyperparameters(
            architecture=self._name,
            layers=self._layers,
            nextn_layers=self._nextn,
            decoder_layers=self._count("decoder_block_count", self._layers) if self._name == "t5" else None,
            context_tokens=self._count("context_length", 0) or None,
            embedding=embedding,
            vocabulary=self._vocabulary(),
            heads=heads,
            kv_heads=kv_heads,
            feed_forward=feed_forward,
            experts=self._experts(),
            key_length=key_length,
            value_length=value_length,
            key_length_swa=self._count("attention.key_length_swa", key_length),
            value_length_swa=self._count("attention.value_length_swa", value_length),
            key_length_mla=self._count("attention.key_length_mla", 0) if latent else 0,
            value_length_mla=self._count("attention.value_length_mla", 0) if latent else 0,
            q_lora_rank=self._count("attention.q_lora_rank", 0),
            kv_lora_rank=self._count("attention.kv_lora_rank", 0),
            rope_dimensions=rope // 2 if self._name == "step35" else rope,
            rope_dimensions_swa=self._count("rope.dimension_count_swa", rope),
            window=window,
            window_kind=kind,
            windowed=windowed,
            recurrent=recurrent,
            recurrence=self._recurrence(key_length),
            with_cache=self._with_cache(),
            embedding_per_layer=self._count("embedding_length_per_layer_input", 0),
            indexer=self._indexer(),
            cache_is_known=self._cache_is_known(),
            causal=self._name not in NOT_CAUSAL and self._keys.get("attention.causal") is not False,
            embedding_out=self._embedding_out(embedding),
            compress_ratios=self._compress_ratios(),
        )
        return _looped(read, self._count("num_loops", 1)) if self._name == "nanbeige" else _routed(read)

    def _key(self, name: str) -> str:
        return f"{self._name}.{name}"

    def _needed(self, name: str, *, at_most: int = 1 << 31) -> int:
        key = self._key(name)
        given = {key: self._keys[name]} if name in self._keys else {}
        return integer({"model_type": self._name, **given}, key, at_most=at_most)

    def _count(self, name: str, default: int) -> int:
        """A number of at least 0; `default`, llama.cpp's, where the file has no key."""
        if name not in self._keys:
            return default
        return integer({self._key(name): self._keys[name]}, self._key(name), at_least=0)

    def _by_layer(self, name: str, default: int | tuple[int, ...]) -> tuple[int, ...]:
        """A number for every layer, from one or from a list. Source: llama_model_loader::get_key_or_arr."""
        if name not in self._keys:
            return default if isinstance(default, tuple) else (default,) * self._all
        value = self._keys[name]
        if not isinstance(value, list):
            return (self._count(name, 0),) * self._all
        if len(value) != self._all:
            raise MalformedError("gguf_per_layer", key=self._key(name), found=len(value), layers=self._all)
        return tuple(integer({self._key(name): number}, self._key(name), at_least=0) for number in value)

    def _flags(self, name: str) -> tuple[bool, ...] | None:
        """A flag for every layer from a list, false past its end; None where the file has no list."""
        value = self._keys.get(name)
        if not isinstance(value, list):
            return None
        if len(value) > MOST_LAYERS or not all(isinstance(flag, int) for flag in value):
            raise MalformedError("gguf_per_layer", key=self._key(name), found=len(value), layers=self._all)
        return tuple(bool(flag) for flag in value[: self._all]) + (False,) * (self._all - len(value))

    def _vocabulary(self) -> int | None:
        return self._count("vocab_size", 0) or next(iter(self._shapes.get("token_embd.weight", ())), None)

    def _experts(self) -> Experts:
        count = self._count("expert_count", 0)
        if self._name in ("hunyuan_vl", "hunyuan-dense") and count <= 1:
            count = 0
        return Experts(
            count=count,
            used=self._by_layer("expert_used_count", 0) if count else (0,) * self._all,
            feed_forward=self._by_layer("expert_feed_forward_length", 0),
            shared=self._count("expert_shared_count", 0),
            shared_feed_forward=self._count("expert_shared_feed_forward_length", 0),
            leading_dense=self._count("leading_dense_block_count", 0),
        )

    def _windows(
        self, recurrent: tuple[bool, ...]
    ) -> tuple[int, Literal["standard", "chunked"] | None, tuple[bool, ...]]:
        """(window, its kind, each layer's flag). Source: load_arch_hparams; llama_hparams::set_swa_pattern."""
        rule = WINDOWS.get(self._name)
        nowhere = (False,) * self._all
        if rule is None or (rule.layers is not None and self._layers != rule.layers):
            return 0, None, nowhere
        given = self._keys.get("attention.sliding_window")
        if rule.if_given and (given == 0 or (given is None and rule.default is None)):
            return 0, None, nowhere
        window = rule.fixed or (
            self._needed("attention.sliding_window")
            if rule.default is None
            else self._count("attention.sliding_window", rule.default)
        )
        if self._name == "lfm2":
            return window, rule.kind, tuple(index < self._layers and not state for index, state in enumerate(recurrent))
        flags = self._flags("attention.sliding_window_pattern")
        if flags is not None:
            return window, rule.kind, flags
        if rule.period is None:
            key = self._key("attention.sliding_window_pattern")
            raise MalformedError("config_key_missing", key=key, model_type=self._name)
        period = self._count("attention.sliding_window_pattern", rule.period)
        full = 0 if rule.full_first else period - 1
        pattern = tuple(index < self._layers and (period == 0 or index % period != full) for index in range(self._all))
        return window, rule.kind, pattern

    def _recurrent(self, kv_heads: tuple[int, ...], feed_forward: tuple[int, ...]) -> tuple[bool, ...]:
        if self._name in RECURRENT | BESIDE_ATTENTION:
            return (True,) * self._all
        if self._name in ATTENTION_INTERVAL:
            flags = self._flags("attention.recurrent_layers")
            if flags is not None:
                return flags
            interval = max(self._count("full_attention_interval", ATTENTION_INTERVAL[self._name]), 1)
            return tuple(index < self._layers and (index + 1) % interval != 0 for index in range(self._all))
        if self._name not in RECURRENT_WITHOUT_KV_HEADS:
            return (False,) * self._all
        dense = self._name.startswith("nemotron_h")
        return tuple(
            index < self._layers and kv_heads[index] == 0 and not (dense and feed_forward[index] > 0)
            for index in range(self._all)
        )

    def _recurrence(self, key_length: int) -> Recurrence:
        grouped = self._name not in ("mamba", "jamba")
        return Recurrence(
            conv_kernel=self._count("ssm.conv_kernel", 0),
            inner_size=self._count("ssm.inner_size", 0),
            state_size=self._count("ssm.state_size", 0),
            group_count=self._count("ssm.group_count", 0) if grouped else 0,
            time_step_rank=self._count("ssm.time_step_rank", 0),
            wkv_head_size=self._count("wkv.head_size", 0),
            token_shift_count=self._count("token_shift_count", 2),
            shortconv_cache=self._count("shortconv.l_cache", 0),
            kda_head_dim=self._count("kda.head_dim", 0),
            lightning_head_dim=key_length if self._name == "minimax-01" else 0,
            **self._history(),
        )

    def _history(self) -> dict[str, Any]:
        """Source: load_arch_hparams of qwen4exp: one module, in a layer that the file names."""
        listed = self._keys.get("ple.layers")
        if self._name != "qwen4exp" or not isinstance(listed, list):
            return {}
        rows = max(self._count("ple.conv_kernel", 0) - 1, 0) * self._count("ple.ngram_size", 0)
        width = self._count("hyper_connection.count", 0) * self._needed("embedding_length")
        return {"history": rows * width, "history_layers": tuple(index for index in listed if isinstance(index, int))}

    def _with_cache(self) -> int:
        """The first layers, which have K and V of their own. Source: n_layer_kv_from_start of gemma3n and gemma4."""
        if self._name == "gemma3n":
            return 20
        shared = self._count("attention.shared_kv_layers", 0) if self._name == "gemma4" else 0
        return self._all - shared

    def _indexer(self) -> Indexer:
        """Source: load_arch_hparams and create_memory of the architectures with an indexer."""
        trunk = tuple(index < self._layers for index in range(self._all))
        listed = self._flags("attention.indexer.types")
        dense = self._count("leading_dense_block_count", 0)
        match self._name:
            case "deepseek32":
                full = trunk
            case "qwen4exp":
                full = trunk = (True,) * self._all  # with the layer for multi-token prediction
            case "deepseek4":
                full = (False,) * self._all
            case "minimax-m3":
                full = tuple(index >= dense for index in range(self._all))
            case "glm-dsa" if listed is None and self._count("context_length", 0) >= 1 << 20:
                # GLM_5_2_DEFAULT_INDEXER_TYPES: layers 0, 1, 2, 6, 10, ... 74
                full = tuple(index < 2 or (index < 78 and index % 4 == 2) for index in range(self._all))
            case "glm-dsa" | "glm5-next":
                full = listed or trunk
            case "dots3note" | "hy_v4":
                full = listed or (False,) * self._all
            case _:
                return Indexer()
        if self._name == "qwen4exp" or self._name == "glm5-next":
            recurrent = self._recurrent(self._by_layer("attention.head_count_kv", 1), (0,) * self._all)
            full = tuple(has and not state for has, state in zip(full, recurrent, strict=True))
        return Indexer(
            heads=self._count("attention.indexer.head_count", 0),
            key_length=self._count("attention.indexer.key_length", 0),
            top_k=self._count("attention.indexer.top_k", 0),
            pool=self._pool(),
            full=tuple(has and in_trunk for has, in_trunk in zip(full, trunk, strict=True)),
        )

    def _embedding_out(self, embedding: int) -> int:
        """Source: llama_hparams::n_embd_out; load_arch_hparams of modern-bert and clef."""
        if self._name == "clef":
            return 1
        if self._name == "modern-bert" and self._count("decision_block_count", 0):
            return 3
        if self._name in ("deepseek4", "qwen4exp"):
            return self._count("hyper_connection.count", 0) * embedding
        return self._count("embedding_length_out", 0) or embedding

    def _pool(self) -> int:
        """Cells of a pool of the index. Source: load_arch_hparams of glm5-next and qwen4exp."""
        listed = self._keys.get("attention.compress_ratios")
        if self._name != "qwen4exp":
            return self._count("attention.indexer.kpool", 0)
        ratios = listed if isinstance(listed, list) else [listed]
        return next((ratio for ratio in ratios if isinstance(ratio, int) and ratio), 0)

    def _compress_ratios(self) -> tuple[int, ...]:
        """Source: load_arch_hparams of deepseek4."""
        listed = self._keys.get("attention.compress_ratios")
        if self._name != "deepseek4" or not isinstance(listed, list):
            return ()
        return tuple(ratio for ratio in listed[: self._all] if isinstance(ratio, int))

    def _cache_is_known(self) -> bool:
        if self._name in UNKNOWN_CACHE or (self._name == "dflash" and self._count("hyper_connection.count", 0)):
            return False
        if self._name in DECODERS | WITHOUT_CACHE:
            return True
        return "attention.head_count" in self._keys and not any(
            part in key for key in self._keys for part in OTHER_CACHES
        )


def _looped(read: GgufHyperparameters, loops: int) -> GgufHyperparameters:
    """The layers once for every loop over them, each with a cache of its own. Source: load_arch_hparams of nanbeige."""
    loops = max(loops, 1)
    if read.layers * loops > MOST_LAYERS:
        key = f"{read.architecture}.num_loops"
        raise MalformedError("config_out_of_range", key=key, found=loops, least=1, most=MOST_LAYERS // read.layers)
    return replace(
        read,
        layers=read.layers * loops,
        heads=read.heads * loops,
        kv_heads=read.kv_heads * loops,
        feed_forward=read.feed_forward * loops,
        windowed=read.windowed * loops,
        recurrent=read.recurrent * loops,
        with_cache=read.with_cache * loops,
    )


def _routed(read: GgufHyperparameters) -> GgufHyperparameters:
    """With the layer of one head in which Granite Switch keeps the chosen adapter. Source: load_arch_hparams."""
    if read.architecture != "graniteswitch":
        return read
    return replace(
        read,
        nextn_layers=1,
        heads=(*read.heads, 1),
        kv_heads=(*read.kv_heads, 1),
        feed_forward=(*read.feed_forward, 0),
        windowed=(*read.windowed, False),
        recurrent=(*read.recurrent, False),
        with_cache=read.with_cache + 1,
        router_layer=read.layers,
    )

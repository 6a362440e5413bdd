"""A model as designed: the meaning of its configuration, and the modules that it builds.

Formulas `match` on the kinds of attention and MLP without a default arm, so that mypy lists every formula to extend for a
new kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from .checkpoint import DType, Tensor
from .values import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class FullAttention:
    """Softmax attention over every earlier token. MHA, GQA or MQA follows from the head counts."""

    query_heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool
    output_bias: bool
    qk_norm: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidingAttention:
    """Softmax attention over the last `window_tokens` tokens."""

    query_heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool
    output_bias: bool
    qk_norm: bool
    window_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedAttention:
    """Full attention whose output is scaled by a sigmoid gate that q_proj computes beside the queries; QK-Norm always.

    rotary_dim: the channels of each head that RoPE rotates. Source: transformers 5.23, Qwen3NextAttention.
    """

    query_heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool
    output_bias: bool
    rotary_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAttention:
    """Gated DeltaNet: a state of constant size per value head, behind a short causal convolution.

    conv_kernel: tokens that the convolution sees. fused_projections: two matrices, for (q, k, v, z) and (beta, alpha), as in
    Qwen3-Next, instead of four. Source: Yang et al. 2024 (arXiv 2412.06464); transformers 5.23, Qwen3NextGatedDeltaNet.
    """

    key_heads: int
    value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel: int
    fused_projections: bool

    @property
    def conv_channels(self) -> int:
        """Channels of queries, keys and values together."""
        return 2 * self.key_heads * self.key_head_dim + self.value_heads * self.value_head_dim


Attention = FullAttention | SlidingAttention | GatedAttention | LinearAttention
SoftmaxAttention = FullAttention | SlidingAttention | GatedAttention


def heads_kind(query_heads: int, kv_heads: int) -> str:
    """MHA: a KV head per query head (Vaswani 2017). MQA: one for all (Shazeer 2019). GQA: one per group (Ainslie 2023)."""
    if kv_heads == query_heads:
        return "MHA"
    return "MQA" if kv_heads == 1 else "GQA"


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseMlp:
    """Gated MLP: down(act(gate(x)) * up(x)). Source: Shazeer 2020, "GLU Variants Improve Transformer"."""

    intermediate_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeMlp:
    """`experts` gated MLPs, of which each token uses `experts_per_token`; perhaps a shared expert that all tokens use."""

    experts: int
    experts_per_token: int
    intermediate_size: int
    shared_intermediate_size: int | None


Mlp = DenseMlp | MoeMlp


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A decoder layer: its attention and its MLP."""

    attention: Attention
    mlp: Mlp


@dataclass(frozen=True, slots=True, kw_only=True)
class Vision:
    """The tower that turns patches of images and videos into tokens for the decoder: a ViT, then a merger.

    merge_size: side, in patches, of the square that becomes one token. positions: number of learned position embeddings, None
    with RoPE alone. deepstack: further mergers, whose outputs are added in the first layers of the decoder.
    """

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    output_size: int
    positions: int | None
    deepstack: int
    activation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The meaning of a configuration. Sizes in elements, lengths in tokens.

    All fields but `vision` describe the decoder; vision is None for a text-only model. For a class known by its
    modules (`built`), `layers` is empty, and norm_eps, activation and pad_token_id mean nothing.
    kernel: the attention that `from_pretrained` chooses by default; from_transformers: whether it was read off transformers'
    built model; from_file: whether it is a GGUF file's own account. None of them is part of a trace's name.
    """

    family: str
    class_name: str
    class_prefix: str
    vocab_size: int
    hidden_size: int
    context_tokens: int | None
    tied_embeddings: bool
    dtype: DType
    norm_eps: float
    activation: str
    pad_token_id: int | None
    layers: tuple[Layer, ...]
    vision: Vision | None = None
    kernel: str = field(default="sdpa", repr=False)
    from_transformers: bool = field(default=False, repr=False)
    from_file: bool = field(default=False, repr=False)

    @property
    def built(self) -> bool:
        """Whether the layers are known by their modules and caches alone, from a family's outline or transformers' model."""
        return not self.layers

    @property
    def headed(self) -> bool:
        """Whether the model has an output layer; a bare decoder has none."""
        return not self.class_name.endswith("Model")

    @property
    def softmax(self) -> SoftmaxAttention:
        """The first softmax attention; every model described here has one."""
        return next(layer.attention for layer in self.layers if not isinstance(layer.attention, LinearAttention))


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A node of the module tree, with the tensors it owns; counts are sums over the tensors below it.

    arguments: the text in brackets when torch prints it. tied_to: the full name of the tensor whose storage its weight shares;
    it then owns no weight. routed: (experts per token, experts) if a token uses only that share of its tensors.
    repeats: the node stands for so many equal siblings, named `name`, `name` + 1, ... component: its row in the statistics;
    None: its parent's. packed_bytes: bytes of its own tensors if they are stored quantised.
    """

    name: str
    class_name: str
    arguments: str = ""
    tensors: tuple[Tensor, ...] = ()
    buffers: tuple[Tensor, ...] = ()
    tied_to: str | None = None
    routed: tuple[int, int] | None = None
    repeats: int = 1
    component: str | None = None
    packed_bytes: int | None = None
    children: tuple[Module, ...] = ()

    @property
    def parameters(self) -> int:
        """Unique parameters of all repeats; a tied weight counts only in the module that owns it."""
        return self.repeats * (_elements(self.tensors) + sum(child.parameters for child in self.children))

    @property
    def active_parameters(self) -> int:
        """Parameters used by one token's forward pass: its chosen experts, and all else in full."""
        own = _elements(self.tensors)
        if self.routed is not None:
            per_token, experts = self.routed
            own = own // experts * per_token  # exact: every routed tensor's first dimension is `experts`
        return self.repeats * (own + sum(child.active_parameters for child in self.children))

    @property
    def own_bytes(self) -> int:
        """Bytes of its own tensors, without children and repeats."""
        return sum(tensor.size_bytes for tensor in self.tensors) if self.packed_bytes is None else self.packed_bytes

    @property
    def size_bytes(self) -> int:
        return self.repeats * (self.own_bytes + sum(child.size_bytes for child in self.children))

    @property
    def buffer_elements(self) -> int:
        return self.repeats * (_elements(self.buffers) + sum(child.buffer_elements for child in self.children))

    @property
    def buffer_bytes(self) -> int:
        own = sum(buffer.size_bytes for buffer in self.buffers)
        return self.repeats * (own + sum(child.buffer_bytes for child in self.children))

    @property
    def label(self) -> str:
        """The name, or the range of names of repeated siblings: `0-27`."""
        return self.name if self.repeats == 1 else f"{self.name}-{int(self.name) + self.repeats - 1}"


def _elements(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.elements for tensor in tensors)


def each_module(root: Module, prefix: str = "") -> Iterator[tuple[str, Module]]:
    """Every module below `root` with its full name, in the order torch walks them.

    Repeated siblings are yielded one by one, each as the node that stands for all: use its own tensors, not its sums.
    """
    if not _walked or _walked[0][0] is not root:
        _walked[:] = [(root, _below(root))]
    below = _walked[0][1]
    return chain([(prefix, root)], ((f"{prefix}.{name}", module) for name, module in below) if prefix else below)


_walked: list[
    tuple[Module, list[tuple[str, Module]]]
] = []  # the last tree that was walked: a command walks one many times


def _below(root: Module) -> list[tuple[str, Module]]:
    """Every module below `root` with its name from there on: of equal siblings worked out once."""
    found: list[tuple[str, Module]] = []
    for child in root.children:
        inside = _below(child)
        for index in range(child.repeats):
            name = child.name if child.repeats == 1 else str(int(child.name) + index)
            found.append((name, child))
            found += [(f"{name}.{inner}", module) for inner, module in inside]
    return found


def each_tensor(root: Module) -> Iterator[Tensor]:
    """Every parameter below `root` under its full name, tied ones once."""
    for prefix, module in each_module(root):
        for tensor in module.tensors:
            yield Tensor(f"{prefix}.{tensor.name}" if prefix else tensor.name, tensor.shape, tensor.dtype)


def each_buffer(root: Module) -> Iterator[Tensor]:
    """Every buffer below `root` under its full name."""
    for prefix, module in each_module(root):
        for buffer in module.buffers:
            yield Tensor(f"{prefix}.{buffer.name}" if prefix else buffer.name, buffer.shape, buffer.dtype)


def tied_tensors(root: Module) -> Iterator[tuple[str, str]]:
    """(name, name of the tensor that owns the storage) of every tied weight."""
    if root.tied_to is not None:
        yield "weight", root.tied_to
    for child in root.children:
        below = list(tied_tensors(child))
        for index in range(child.repeats if below else 0):
            prefix = child.name if child.repeats == 1 else str(int(child.name) + index)
            yield from ((f"{prefix}.{name}", owner) for name, owner in below)

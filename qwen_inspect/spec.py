"""A model as designed: what a configuration means, and the modules that it builds.

Formulas `match` on the kinds of attention and MLP with no default arm, so that mypy lists every formula that a new kind
must extend.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .checkpoint import DType, Tensor


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

    rotary_dim: the channels of each head that RoPE turns. Source: transformers 5.23, Qwen3NextAttention.
    """

    query_heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool
    output_bias: bool
    rotary_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAttention:
    """Gated DeltaNet: a state of constant size for each value head, behind a short causal convolution.

    conv_kernel: tokens that the convolution sees. fused_projections: one matrix for q, k, v and z and one for beta and alpha,
    as in Qwen3-Next, in place of four. Source: Yang et al. 2024 (arXiv 2412.06464); transformers 5.23, Qwen3NextGatedDeltaNet.
    """

    key_heads: int
    value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel: int
    fused_projections: bool

    @property
    def conv_channels(self) -> int:
        """Queries, keys and values side by side."""
        return 2 * self.key_heads * self.key_head_dim + self.value_heads * self.value_head_dim


Attention = FullAttention | SlidingAttention | GatedAttention | LinearAttention
SoftmaxAttention = FullAttention | SlidingAttention | GatedAttention


def heads_kind(query_heads: int, kv_heads: int) -> str:
    """MHA: a KV head for each query head (Vaswani 2017). MQA: one for all (Shazeer 2019). GQA: one a group (Ainslie 2023)."""
    if kv_heads == query_heads:
        return "MHA"
    return "MQA" if kv_heads == 1 else "GQA"


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseMlp:
    """Gated MLP: down(act(gate(x)) * up(x)). Source: Shazeer 2020, "GLU Variants Improve Transformer"."""

    intermediate_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeMlp:
    """`experts` gated MLPs of which each token takes `experts_per_token`, and perhaps one that every token takes."""

    experts: int
    experts_per_token: int
    intermediate_size: int
    shared_intermediate_size: int | None


Mlp = DenseMlp | MoeMlp


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A decoder layer: how it attends, and what it does with each token."""

    attention: Attention
    mlp: Mlp


@dataclass(frozen=True, slots=True, kw_only=True)
class Vision:
    """The tower that turns patches of images and videos into tokens of the decoder: a ViT, then a merger of neighbours.

    merge_size: patches on each side of the square that becomes one token. positions: learned ones, None where RoPE alone
    tells them. deepstack: further mergers, whose outputs go into the first layers of the decoder.
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
    """What the configuration says, with its words made definite. Sizes in elements, lengths in tokens.

    All but `vision` is of the decoder; vision is None for a model of text alone. A class that no family here describes is known
    by what transformers builds alone: its `layers` are empty, and norm_eps, activation and pad_token_id mean nothing.
    kernel: the attention that `from_pretrained` chooses where none is asked for; traces are not named by it.
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

    @property
    def built(self) -> bool:
        """Whether it is known only by what transformers builds."""
        return not self.layers

    @property
    def headed(self) -> bool:
        """Whether it has an output layer: a bare decoder has none."""
        return not self.class_name.endswith("Model")

    @property
    def softmax(self) -> SoftmaxAttention:
        """The attention of the first layer that compares tokens with each other; every model that is read has one."""
        return next(layer.attention for layer in self.layers if not isinstance(layer.attention, LinearAttention))


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A node of the module tree, with the tensors it owns; counts are sums over the tensors below it.

    arguments: what torch prints between the brackets. tied_to: the full name of the tensor whose storage its weight shares,
    so that it owns none. routed: (experts a token takes, experts) where each token uses only that share of its tensors.
    repeats: that many equal siblings, named `name`, `name` + 1, ... component: the row of the statistics it belongs to,
    its parent's where None. packed_bytes: of its own tensors where they are stored quantised.
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
        """Unique parameters of all its repeats; a tied weight counts where it is owned."""
        return self.repeats * (_elements(self.tensors) + sum(child.parameters for child in self.children))

    @property
    def active_parameters(self) -> int:
        """Parameters that one token's forward pass uses: routed experts count by the number taken, all else in full."""
        own = _elements(self.tensors)
        if self.routed is not None:
            taken, experts = self.routed
            own = own // experts * taken  # exact: every routed tensor's first dimension is `experts`
        return self.repeats * (own + sum(child.active_parameters for child in self.children))

    @property
    def own_bytes(self) -> int:
        """Bytes of its own tensors, without its children and its repeats."""
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
        """Its name, or for equal siblings the range of their names: `0-27`."""
        return self.name if self.repeats == 1 else f"{self.name}-{int(self.name) + self.repeats - 1}"


def _elements(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.elements for tensor in tensors)


def each_module(root: Module, prefix: str = "") -> Iterator[tuple[str, Module]]:
    """Every module below `root` with its full name, in the order torch walks them.

    Repeated siblings come one by one, each as the node that stands for them all: use its own tensors, not its sums.
    """
    yield prefix, root
    for child in root.children:
        for index in range(child.repeats):
            name = child.name if child.repeats == 1 else str(int(child.name) + index)
            yield from each_module(child, f"{prefix}.{name}" if prefix else name)


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
    for prefix, module in each_module(root):
        if module.tied_to is not None:
            yield f"{prefix}.weight", module.tied_to

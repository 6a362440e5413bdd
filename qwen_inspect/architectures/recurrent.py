"""State space layers: the mixers of Mamba 1 and 2, shared by the families, and the states that they keep.

Source: transformers 5.23, MambaMixer, Mamba2Mixer and the classes made of them; LinearAttentionLayer (the convolution's state
holds as many columns as its kernel, the recurrent state is float32 in any model); arXiv 2312.00752, 2405.21060.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType, Tensor
from ..errors import UnsupportedError
from ..spec import Module
from ..typed import Any
from ..values import dataclass
from .outline import activation, convolution, linear
from .reading import shown

LEGACY_LAYER_TYPES: Mapping[str, str] = {"mamba": "linear_attention", "attention": "full_attention"}


def identity(name: str) -> Module:
    """`nn.Identity`: what a class has in place of a module that the configuration leaves out."""
    return Module(name=name, class_name="Identity")


def renamed_layer_types(types: object) -> object:
    """Layer types with transformers 5's names. Source: configuration_utils.remap_legacy_layer_types."""
    if not isinstance(types, list):
        return types
    return [LEGACY_LAYER_TYPES.get(kind, kind) if isinstance(kind, str) else kind for kind in types]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba1:
    """inner: channels after the expansion; state: states per channel; rank: of the step's projection."""

    inner: int
    state: int
    kernel: int
    rank: int

    def states_bytes(self, dtype: DType) -> tuple[int, ...]:
        """Convolution (inner, kernel) in the model's dtype, state (inner, state) in float32."""
        return (self.inner * self.kernel * dtype.bits // 8, 4 * self.inner * self.state)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2:
    """heads of head_dim channels; groups share B and C of `state` channels each."""

    heads: int
    head_dim: int
    groups: int
    state: int
    kernel: int

    @property
    def inner(self) -> int:
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """Of the convolution: x, B and C."""
        return self.inner + 2 * self.groups * self.state

    def states_bytes(self, dtype: DType) -> tuple[int, ...]:
        """Convolution (channels, kernel) in the model's dtype, state (heads, head_dim, state) in float32."""
        return (self.channels * self.kernel * dtype.bits // 8, 4 * self.inner * self.state)


def check_groups(sizes: Mamba2, key: str) -> None:
    """UnsupportedError for groups among which neither heads nor channels divide: no class computes with them."""
    if sizes.heads % sizes.groups:
        raise UnsupportedError("config_key_unsupported", key=key, found=shown(sizes.groups))


def mamba1_mixer(
    name: str,
    class_name: str,
    hidden: int,
    sizes: Mamba1,
    act: object,
    dtype: DType,
    *,
    bias: bool,
    conv_bias: bool,
    norms: tuple[Module, ...] = (),
) -> Module:
    """norms: of the step, B and C, where a family has them."""
    inner, state = sizes.inner, sizes.state
    return Module(
        name=name,
        class_name=class_name,
        tensors=(Tensor("A_log", (inner, state), dtype), Tensor("D", (inner,), dtype)),
        children=(
            convolution("conv1d", inner, sizes.kernel, dtype, bias=conv_bias),
            activation("act", act),
            linear("in_proj", hidden, 2 * inner, dtype, bias=bias),
            linear("x_proj", inner, sizes.rank + 2 * state, dtype),
            linear("dt_proj", sizes.rank, inner, dtype, bias=True),
            linear("out_proj", inner, hidden, dtype, bias=bias),
            *norms,
        ),
    )


def mamba2_mixer(
    name: str,
    class_name: str,
    hidden: int,
    sizes: Mamba2,
    act: object,
    dtype: DType,
    *,
    norm: Module,
    conv_bias: bool,
    in_bias: bool,
    out_bias: bool,
    buffers: tuple[Tensor, ...] = (),
) -> Module:
    """norm: of the gated output, before its projection."""
    per_head = tuple(Tensor(key, (sizes.heads,), dtype) for key in ("dt_bias", "A_log", "D"))
    return Module(
        name=name,
        class_name=class_name,
        tensors=per_head,
        buffers=buffers,
        children=(
            activation("act", act),
            convolution("conv1d", sizes.channels, sizes.kernel, dtype, bias=conv_bias),
            linear("in_proj", hidden, sizes.inner + sizes.channels + sizes.heads, dtype, bias=in_bias),
            norm,
            linear("out_proj", sizes.inner, hidden, dtype, bias=out_bias),
        ),
    )


def time_step_rank(config: Mapping[str, Any], key: str, hidden: int) -> Mapping[str, Any]:
    """`config` with a number for the rank: "auto" is a sixteenth of the hidden size, rounded up."""
    return {**config, key: -(-hidden // 16)} if config[key] == "auto" else config

"""The types in which llama.cpp's llama-quantize stores a model's tensors, by the name of a quantisation such as Q4_K_M.

Source: llama.cpp 0c1e57098, src/llama-quant.cpp (tensor_allows_quantization, llama_tensor_get_type_impl, tensor_type_fallback,
llama_ftype_get_default_type).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from ..checkpoint import BLOCK_FORMATS, BlockFormat, DType, Tensor
from ..errors import UnsupportedError
from ..values import dataclass, field
from .gguf_hparams import GgufHyperparameters

# Quantisation -> the type of most tensors.
SCHEMES: Mapping[str, str] = {
    **{
        name: name
        for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q6_K", "Q2_K", "TQ1_0", "TQ2_0", "IQ4_NL", "IQ4_XS")
    },
    **{name: name for name in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ3_S")},
    "MXFP4_MOE": "MXFP4",
    "Q2_K_S": "Q2_K",
    "Q3_K_S": "Q3_K",
    "Q3_K_M": "Q3_K",
    "Q3_K_L": "Q3_K",
    "Q4_K_S": "Q4_K",
    "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K",
    "Q5_K_M": "Q5_K",
    "IQ2_S": "IQ2_XS",
    "IQ2_M": "IQ2_S",
    "IQ3_XS": "IQ3_S",
    "IQ3_M": "IQ3_S",
}
UNQUANTISED: Mapping[str, DType] = {"F16": DType.F16, "BF16": DType.BF16, "F32": DType.F32}
FEW_BITS = ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ2_S", "IQ2_M", "IQ1_M")
# llama-quantize refuses these without an importance matrix. Source: tensor_requires_imatrix.
WITH_MATRIX = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M", "Q2_K_S", "IQ3_XXS")
# Parts of names of tensors that stay as they are.
KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj", "ssm_conv1d",
    "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "attn_rel_b.weight", "position_embd.weight",
    "token_types.weight", "time_mix_first.weight", "time_mix_lerp_fused.weight",
    "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    *(f"time_mix_{part}.weight" for part in ("w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2")),
)  # fmt: skip
CATEGORIES = (
    ("attn_qkv.weight", "qkv"),
    ("attn_kv_b.weight", "kv_b"),
    ("attn_v.weight", "value"),
    ("attn_k.weight", "key"),
    ("attn_q.weight", "query"),
    ("attn_output.weight", "attention_output"),
    ("ffn_up", "up"),
    ("ffn_gate", "gate"),
    ("ffn_down", "down"),
)
VALUES = ("value", "qkv", "kv_b")
# Rows that do not fill blocks of 256 fall back to blocks of 32.
FALLBACK: Mapping[str, str] = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
LAYER = re.compile(r"blk\.(\d+)\.")


def quantised(tensors: Sequence[Tensor], scheme: str, model: GgufHyperparameters) -> tuple[Tensor, ...]:
    """The tensors in the types that llama-quantize gives them. UnsupportedError for a scheme that it does not have."""
    name = scheme.upper()
    if name in UNQUANTISED:
        kind = UNQUANTISED[name]
        return tuple(
            Tensor(
                tensor.name,
                tensor.shape,
                tensor.dtype if tensor.dtype is DType.F32 or isinstance(tensor.dtype, BlockFormat) else kind,
            )
            for tensor in tensors
        )
    if name not in SCHEMES:
        raise UnsupportedError("gguf_scheme", found=scheme, known=", ".join((*SCHEMES, *UNQUANTISED)))
    names = [tensor.name for tensor in tensors]
    choice = _Choice(
        scheme=name,
        model=model,
        tied="output.weight" not in names,
        values=sum(_category(name) in VALUES for name in names),
    )
    return tuple(
        Tensor(tensor.name, tensor.shape, _requantised(tensor, choice.format_of(tensor), scheme))
        if _is_quantised(tensor)
        else tensor
        for tensor in sorted(tensors, key=_order)
    )


def _requantised(tensor: Tensor, kind: BlockFormat | DType, scheme: str) -> BlockFormat | DType:
    """llama-quantize refuses to quantise what is quantised already, unless it keeps its type."""
    if isinstance(tensor.dtype, BlockFormat) and tensor.dtype != kind:
        raise UnsupportedError("quant_again", name=tensor.name, found=str(tensor.dtype), scheme=scheme)
    return kind


def _order(tensor: Tensor) -> tuple[int, str]:
    """llama_model_loader, weight_name_comparer: by layer, then by name."""
    match = LAYER.match(tensor.name)
    return (int(match[1]) if match else -1, tensor.name)


def _is_quantised(tensor: Tensor) -> bool:
    return len(tensor.shape) > 1 and tensor.name.endswith("weight") and not any(part in tensor.name for part in KEPT)


def _category(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "embedding"
    return next((category for part, category in CATEGORIES if part in name), "other")


def _more_bits(layer: int, layers: int) -> bool:
    """Whether a layer is among the first and last eighths, or every third between them: use_more_bits."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


@dataclass(kw_only=True)
class _Choice:
    """Chooses the tensors' types one after another: some depend on how many of a kind came before."""

    scheme: str
    model: GgufHyperparameters
    tied: bool
    values: int
    seen: Counter[str] = field(default_factory=Counter)

    @property
    def _grouped(self) -> int:
        """Query heads for each KV head of the first layer. Source: llama_hparams::n_gqa."""
        return self.model.heads[0] // self.model.kv_heads[0] if self.model.kv_heads[0] else 0

    @property
    def _is_70b(self) -> bool:
        """Source: LLM_TYPE_70B in load_arch_hparams of llama, deci, olmo, qwen2 and jais2."""
        name, layers = self.model.architecture, self.model.layers
        if name == "llama":
            return layers == 80 and self.model.experts.count != 8 and self.model.heads[0] != self.model.kv_heads[0]
        return (name in ("deci", "olmo", "qwen2") and layers == 80) or (name == "jais2" and layers == 68)

    def format_of(self, tensor: Tensor) -> BlockFormat | DType:
        category, columns = _category(tensor.name), tensor.shape[-1]
        if self.scheme == "MXFP4_MOE":
            kind = "MXFP4" if len(tensor.shape) > 2 else "Q8_0"
        else:
            kind = self._kind(category, tensor.name, columns)
        if columns % BLOCK_FORMATS[kind].block_elements:
            kind = FALLBACK.get(kind, kind)
        return DType.F16 if columns % BLOCK_FORMATS[kind].block_elements else BLOCK_FORMATS[kind]

    def _kind(self, category: str, name: str, columns: int) -> str:
        default, few = SCHEMES[self.scheme], self.scheme in FEW_BITS
        if category == "output" or (self.tied and category == "embedding"):
            return self._output(default, columns)
        if category == "embedding":
            return self._embedding(default)
        if category in VALUES:
            at, self.seen["values"] = self.seen["values"], self.seen["values"] + 1
            return self._few_bit_values() if few else self._values(default, at, category)
        if category in ("down", "gate", "up"):
            at, self.seen[category] = self.seen[category], self.seen[category] + 1
            match = LAYER.match(name)
            if self.model.experts.count > 1 and match is not None and not few:
                at = int(match[1])
            if few:
                return self._few_bit_down(at) if category == "down" else default
            return self._down(default, at) if category == "down" else self._gate_or_up(default, at)
        if category == "attention_output":
            return self._attention_output(default)
        if category == "key":
            return self._key(default)
        if category == "query":
            return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(self.scheme, default)
        return default

    def _output(self, default: str, columns: int) -> str:
        if self.model.architecture == "falcon" or columns % BLOCK_FORMATS[default].block_elements:
            return "Q8_0"
        if self.scheme in (*FEW_BITS, "IQ3_XXS"):
            return "Q5_K"
        return default if default == "Q8_0" else "Q6_K"

    def _embedding(self, default: str) -> str:
        if self.scheme in ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"):
            return "Q2_K"
        if self.scheme in ("IQ2_S", "IQ2_M", "IQ3_XXS"):
            return "IQ3_S"
        return "Q4_K" if self.scheme in ("TQ1_0", "TQ2_0") else default

    def _few_bit_values(self) -> str:
        if self._grouped >= 4 or self.model.experts.count >= 4:
            return "Q4_K"
        return "IQ3_S" if self.scheme in ("IQ2_S", "IQ2_M") else "Q2_K"

    def _values(self, default: str, at: int, category: str) -> str:
        kind, scheme, grouped = default, self.scheme, self._grouped >= 4
        match scheme:
            case "Q2_K":
                kind = "Q4_K" if grouped else "Q3_K"
            case "Q2_K_S" | "IQ3_XS" | "IQ3_S" if grouped:
                kind = "Q4_K"
            case "IQ3_XXS":
                kind = "Q4_K" if grouped else "IQ3_XXS"
            case "IQ3_M":
                kind = "Q4_K"
            case "Q3_K_M":
                kind = "Q5_K" if at < 2 else "Q4_K"
            case "Q3_K_L":
                kind = "Q5_K"
            case "IQ4_NL" | "IQ4_XS" if grouped:
                kind = "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if _more_bits(at, self.values):
                kind = "Q6_K"
            case "Q4_K_S" if at < 4:
                kind = "Q5_K"
        if self._is_70b and kind in ("Q3_K", "Q4_K"):
            kind = "Q5_K"
        return "Q8_0" if self.model.experts.count == 8 else kind

    def _few_bit_down(self, at: int) -> str:
        if at >= self.model.all_layers // 8:
            return SCHEMES[self.scheme]
        return "IQ3_S" if self.scheme in ("IQ2_S", "IQ2_M") else "Q2_K"

    def _down(self, default: str, at: int) -> str:
        layers, falcon = self.model.all_layers, self.model.architecture == "falcon"
        early = at < layers // 8
        match self.scheme:
            case "Q2_K":
                return "Q3_K"
            case "Q2_K_S" if early:
                return "Q4_K"
            case "Q3_K_M":
                if at < layers // 16:
                    return "Q5_K"
                return "Q4_K" if not falcon or _more_bits(at, layers) else "Q3_K"
            case "IQ3_M" if early or (self.model.experts.count == 8 and _more_bits(at, layers)):
                return "Q4_K"
            case "Q3_K_L":
                return "Q4_K" if falcon else "Q5_K"
            case "Q4_K_M" if falcon:
                return "Q6_K" if at < layers // 16 else "Q5_K" if _more_bits(at, layers) else "Q4_K"
            case "Q4_K_M" | "Q5_K_M" if _more_bits(at, layers):
                return "Q6_K"
            case "IQ4_NL" | "IQ4_XS" if early:
                return "Q5_K"
            case "Q4_K_S" if early and not falcon:
                return "Q5_K"
        return default

    def _gate_or_up(self, default: str, at: int) -> str:
        layers = self.model.all_layers
        return "IQ3_XXS" if self.scheme == "IQ3_XS" and layers // 8 <= at < 7 * layers // 8 else default

    def _attention_output(self, default: str) -> str:
        eight, scheme = self.model.experts.count == 8, self.scheme
        if scheme in FEW_BITS:
            if eight:
                return "Q5_K"
            return {"IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}.get(scheme, default)
        if self.model.architecture == "falcon":
            return "Q4_K" if scheme == "Q3_K_L" else default
        if eight:
            wider = (
                "Q2_K",
                "IQ3_XS",
                "IQ3_XXS",
                "Q3_K_S",
                "Q3_K_M",
                "IQ4_NL",
                "Q4_K_S",
                "Q4_K_M",
                "IQ3_S",
                "IQ3_M",
                "IQ4_XS",
            )
            return "Q5_K" if scheme in wider else default
        return {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}.get(
            scheme, default
        )

    def _key(self, default: str) -> str:
        if self.model.experts.count == 8:
            return "Q4_K" if self.scheme in FEW_BITS else "Q8_0"
        return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(self.scheme, default)

"""Builds a configuration's model on meta; dangerous values are refused or removed before transformers sees them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path

from ...errors import MalformedError, QwenInspectError, UnavailableError, UnsupportedError
from ...typed import Any
from ..reading import shown, whole_dtype
from .configurations import layer_configurations, stated

# Far above every released model's number of modules.
MOST_MODULES = 200_000
# Keys that could make transformers fetch code.
LOADED_FROM = ("attn_implementation", "experts_implementation", "name_or_path")
SPECIAL_NUMBERS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}


def config_types() -> Any:
    """transformers' configuration classes by model_type; UnavailableError if it is not installed."""
    try:
        import torch  # noqa: F401  # the classes need it
        from transformers import CONFIG_MAPPING
    except ImportError as error:
        raise UnavailableError("extra_missing", package=error.name, extra="torch") from None
    return CONFIG_MAPPING


def buildable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `config` without keys that could make transformers fetch code or weights: names of kernels and repositories.

    Reads Infinity and NaN as transformers writes them. Source: transformers 5.23, PreTrainedConfig._decode_special_floats.
    """

    def cleaned(value: object) -> object:
        if isinstance(value, Mapping):
            special = SPECIAL_NUMBERS.get(str(value.get("__float__"))) if len(value) == 1 else None
            return buildable(value) if special is None else special
        return [cleaned(entry) for entry in value] if isinstance(value, list) else deepcopy(value)

    return {
        key: cleaned(value)
        for key, value in config.items()
        if not key.startswith("_") and key not in (*LOADED_FROM, "auto_map", "quantization_config")
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' warnings, which concern who writes a configuration."""
    import transformers

    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


@contextmanager
def _guarded() -> Iterator[None]:
    """Within it, transformers is offline and silent, and a model of more than MOST_MODULES modules raises MalformedError."""
    from huggingface_hub import constants
    from torch.nn.modules.module import register_module_module_registration_hook

    modules = 0

    def count(module: Any, name: str, child: Any) -> None:
        nonlocal modules
        modules += 1
        if modules > MOST_MODULES:
            raise MalformedError("generic_too_many_modules", most=MOST_MODULES)

    with ExitStack() as stack:
        stack.callback(setattr, constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE)
        constants.HF_HUB_OFFLINE = True
        stack.enter_context(quiet())
        stack.callback(register_module_module_registration_hook(count).remove)
        yield


def build_generic(config: Mapping[str, Any], *, dtype: str | None = None, device: str | None = "meta") -> Any:
    """The model of `config` in `dtype` (None: the configuration's) on `device`.

    UnsupportedError if transformers fails, UnavailableError without it.
    """
    config_types()
    import torch
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    name = dtype or whole_dtype(config).torch_name
    try:
        with _guarded(), nullcontext() if device is None else torch.device(device):
            configuration = transformers.AutoConfig.for_model(**buildable(config))
            _check_layers(configuration)
            model_class = _class_of(configuration, config.get("architectures"))
            model = model_class._from_config(configuration, dtype=getattr(torch, name), attn_implementation="eager")
            as_loaded(model, getattr(torch, name))
    except (
        ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, NameError, OSError, RuntimeError,
        StopIteration, StrictDataclassError, TypeError, ValueError,
    ) as error:  # fmt: skip
        lines = str(error).strip().splitlines()
        reason = " ".join(lines[-1 if isinstance(error, StrictDataclassError) else 0].split())[:300] if lines else ""
        raise UnsupportedError(
            "instantiate_failed", reason=reason or type(error).__name__, version=transformers.__version__
        ) from None
    return model.eval()


def as_loaded(model: Any, dtype: Any) -> None:
    """Casts to float32 what `from_pretrained` keeps in it when it loads a model in `dtype`: parameters and saved buffers.

    Source: transformers 5.23, PreTrainedModel._get_dtype_plan and convert_and_load_state_dict_in_model.
    """
    import torch

    kept = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ()) if dtype.itemsize == 2 else set()
    if dtype == torch.float16:
        kept |= set(model._keep_in_fp32_modules or ())
    if not kept:
        return
    is_kept = re.compile("|".join(sorted(kept)).replace("*", ".*")).search
    cast: dict[int, Any] = {}  # a tied one stays tied
    for path, module in model.named_modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is None or tensor.dtype != dtype or name in module._non_persistent_buffers_set:
                    continue
                if is_kept(f"{path}.{name}"):
                    if id(tensor) not in cast:
                        whole = tensor.detach().to(torch.float32)
                        cast[id(tensor)] = torch.nn.Parameter(whole) if own is module._parameters else whole
                    own[name] = cast[id(tensor)]


def in_float32(model: Any) -> Any:
    """The model with all its parameters and buffers of floating-point numbers in float32, as `Module.float` leaves it."""
    import torch

    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is not None and tensor.is_floating_point() and tensor.dtype != torch.float32:
                    whole = tensor.detach().to(torch.float32)
                    own[name] = torch.nn.Parameter(whole) if own is module._parameters else whole
    return model


def build_own(config: Mapping[str, Any], own: Mapping[str, Any], code: Path) -> Any:
    """The model of the class defined in the directory `code`, on meta. Runs that code, never code of another repository."""
    import torch
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    references = [own.get(name) for name in ("AutoConfig", "AutoModelForCausalLM")]
    for name in references:
        if not isinstance(name, str) or "--" in name or not (code / f"{name.partition('.')[0]}.py").is_file():
            raise UnsupportedError("generic_own_code_elsewhere", found=shown(config["model_type"]), name=shown(name))
    try:
        with _guarded(), torch.device("meta"):
            config_class, model_class = (
                get_class_from_dynamic_module(name, str(code), local_files_only=True) for name in references
            )
            configuration = config_class.from_dict(buildable(config))
            dtype = getattr(torch, whole_dtype(config).torch_name)
            model = model_class._from_config(configuration, dtype=dtype)
            as_loaded(model, dtype)
    except QwenInspectError:
        raise
    except Exception as error:  # foreign code may raise anything
        raise not_built(error) from None
    return model.eval()


def _check_layers(configuration: Any) -> None:
    """Raises MalformedError for heads that do not divide evenly and for too few layer types."""
    text = configuration.get_text_config(decoder=True)
    for layer in layer_configurations(text):
        heads, kv_heads = stated(layer, "num_attention_heads"), stated(layer, "num_key_value_heads")
        if type(heads) is int and type(kv_heads) is int and kv_heads > 0 and heads % kv_heads:
            raise MalformedError("config_heads_do_not_divide", query_heads=heads, kv_heads=kv_heads)
    types, layers = stated(text, "layer_types"), stated(text, "num_hidden_layers")
    if isinstance(types, list) and type(layers) is int and len(types) < layers:
        raise MalformedError("config_layer_types", key="layer_types", layers=layers, found=len(types))


def is_shipped(name: str) -> bool:
    """Whether transformers has a model class of this name."""
    import transformers

    named = getattr(transformers, name, None) if name.isidentifier() else None
    return inspect.isclass(named) and issubclass(named, transformers.PreTrainedModel)


def _class_of(configuration: Any, architectures: object) -> Any:
    """The class that `architectures` names if transformers ships it for this configuration, else the default class.

    The default comes from AutoModelForMultimodalLM, which keeps composite models whole, then from AutoModelForCausalLM; before
    them from the classes that keep both an encoder and a decoder, or from AutoModelForMaskedLM for an encoder.
    """
    import transformers

    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if isinstance(name, str) and is_shipped(name):
        named = getattr(transformers, name)
        if not isinstance(configuration, getattr(named, "config_class", None) or ()):
            raise UnsupportedError("generic_class_of_other", name=name, found=configuration.model_type)
        return named
    if stated(configuration, "is_encoder_decoder"):
        first = ["Seq2SeqLM", "SpeechSeq2Seq"]
    else:  # a class of both mappings is an encoder unless the configuration makes it a decoder
        first = [] if stated(configuration, "is_decoder") else ["MaskedLM"]
    for auto in (getattr(transformers, f"AutoModelFor{name}") for name in (*first, "MultimodalLM", "CausalLM")):
        if type(configuration) in auto._model_mapping:
            classes = auto._model_mapping[type(configuration)]
            return classes[0] if isinstance(classes, (tuple, list)) else classes
    raise UnsupportedError("generic_no_language_model", found=configuration.model_type, name=shown(name))


def not_built(error: Exception) -> UnsupportedError:
    """That transformers cannot build a configuration, with the line of its error that says why: of a value of the wrong type the
    last, of others the first.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = " ".join(lines[-1 if isinstance(error, StrictDataclassError) else 0].split())[:300]
    return UnsupportedError("instantiate_failed", reason=reason, version=transformers.__version__)

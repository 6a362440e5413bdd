"""The second witness: the real transformers class on the meta device, where a parameter has a shape and no storage.

Imports torch and transformers lazily, and builds only classes that transformers ships: a repository's code and weights are not
touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

from ..architectures.generic.building import as_loaded, not_built, quiet
from ..checkpoint import DTYPE_OF_TORCH_NAME, Tensor
from ..errors import UnavailableError
from ..spec import ModelSpec
from ..typed import Any
from ..values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Instantiated:
    """Parameters (tied ones once) and buffers by full name, what `print(model)` shows, and the versions that built it."""

    tensors: tuple[Tensor, ...]
    buffers: tuple[Tensor, ...]
    printed: str
    versions: str


def instantiate(spec: ModelSpec, config: Mapping[str, Any]) -> Instantiated:
    """Build `spec.class_name` from `config` on meta; UnavailableError if torch or transformers is not installed."""
    model = build(spec, config, device="meta")
    import torch
    import transformers

    def read(named: Any) -> tuple[Tensor, ...]:
        return tuple(
            Tensor(name, tuple(value.shape), DTYPE_OF_TORCH_NAME[str(value.dtype).removeprefix("torch.")])
            for name, value in named
        )

    return Instantiated(
        tensors=read(model.named_parameters()),
        buffers=read(model.named_buffers()),
        printed=str(model),
        versions=f"transformers {transformers.__version__}, torch {torch.__version__}",
    )


def build(spec: ModelSpec, config: Mapping[str, Any], *, device: str, dtype: str | None = None, **options: Any) -> Any:
    """Builds `spec.class_name` from `config` on `device`, in `dtype` (None: the configuration's). options: for `_from_config`.

    UnavailableError if torch or transformers is not installed, UnsupportedError if transformers refuses the configuration.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UnavailableError("extra_missing", package=error.name, extra="torch") from None
    from huggingface_hub.errors import StrictDataclassError  # for a configuration with values of the wrong type

    try:
        with quiet():
            configuration = transformers.AutoConfig.for_model(
                **deepcopy(dict(config))
            )  # for_model changes nested parts
        model_class = getattr(transformers, spec.class_name)
        # Not accelerate's init_empty_weights: its default unties the head.
        with torch.device(device):
            name = getattr(torch, dtype or spec.dtype.torch_name)
            model = model_class._from_config(configuration, dtype=name, **options)
            as_loaded(model, name)
            return model
    except torch.cuda.OutOfMemoryError:
        raise
    except (AttributeError, ImportError, KeyError, TypeError, ValueError, RuntimeError, StrictDataclassError) as error:
        raise not_built(error) from None

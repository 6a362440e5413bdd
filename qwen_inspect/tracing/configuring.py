"""A model's configuration as transformers reads it, without a word on stderr: its warnings concern who writes the file."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

from ..architectures.generic.building import quiet
from ..errors import UnavailableError, UnsupportedError
from ..typed import Any


def configuration_of(config: Mapping[str, Any]) -> Any:
    """Of a config.json without its quantisation. UnavailableError without torch, UnsupportedError for values that its class does
    not take.
    """
    try:
        import torch  # noqa: F401  # which a configuration imports for its dtype
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig, __version__
    except ImportError as error:
        raise UnavailableError("extra_missing", package=error.name, extra="torch") from None
    dense = {key: value for key, value in config.items() if key != "quantization_config"}
    try:
        with quiet():
            return AutoConfig.for_model(**deepcopy(dense))  # which changes nested parts
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
        StrictDataclassError,
    ) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = " ".join(lines[-1 if isinstance(error, StrictDataclassError) else 0].split())[:300]
        raise UnsupportedError("instantiate_failed", reason=reason, version=__version__) from None

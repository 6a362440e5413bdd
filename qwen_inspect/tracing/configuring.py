"""A model's configuration as transformers reads it, without a word on stderr: its warnings concern who writes the file."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

from ..architectures.generic.building import not_built, quiet
from ..errors import UnavailableError
from ..typed import Any


def configuration_of(config: Mapping[str, Any]) -> Any:
    """Of a config.json without its quantisation. UnavailableError without torch, UnsupportedError for values that its class does
    not take.
    """
    try:
        import torch  # noqa: F401  # which a configuration imports for its dtype
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig
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
        raise not_built(error) from None

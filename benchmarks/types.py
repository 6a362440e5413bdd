"""Every model_type with a language model in transformers -> reports/model-types.md: is its cache told, and if not, why.

Each is built on the meta device from its class's own default configuration, or where that does not do, from a small one. Minutes;
`make types`. A default configuration that its own class refuses says nothing of released models, and is listed as such.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from qwen_inspect.architectures import FAMILIES
from qwen_inspect.architectures.generic import read_generic
from qwen_inspect.errors import QwenInspectError
from qwen_inspect.language import Language
from qwen_inspect.tracing.cached import found_cache
from tests.support.generic_models import RUN
from tests.support.small_models import small_config

PAGE = Path(__file__).parent.parent / "reports" / "model-types.md"
LONGEST_REASON = 200
ORDER = ("cache", "parameters", "neither")


def language_types() -> Iterator[str]:
    """Those with a class that gives the next token, in the order of their names."""
    from transformers.models.auto import modeling_auto

    known = {
        *modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        *modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        *modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    }
    yield from sorted(known)


def told(model_type: str, say: Language) -> tuple[str, str]:
    """Of the default configuration, or where that does not do, of a small one: the better of the two."""
    tries = (lambda: default_config(model_type), lambda: small_config(model_type, **RUN.get(model_type, {})))
    return min((told_of(config, say) for config in tries), key=lambda found: ORDER.index(found[0]))


def default_config(model_type: str) -> dict[str, Any]:
    import transformers

    whole = json.loads(transformers.AutoConfig.for_model(model_type).to_json_string(use_diff=False))
    return {**{key: value for key, value in whole.items() if value is not None}, "dtype": "bfloat16"}


def told_of(configuration: Callable[[], dict[str, Any]], say: Language) -> tuple[str, str]:
    """One of ORDER, and the kinds of the cache's layers or the reason."""
    try:
        model = read_generic(configuration(), tuple(FAMILIES))
    except QwenInspectError as error:
        return "neither", say(error.message)
    except Exception as error:  # the library's own, for its own default configuration
        return "neither", f"{type(error).__name__}: {error}"
    try:
        _, cache = found_cache(model.built, model.spec.dtype)
    except QwenInspectError as error:
        return "parameters", say(error.message).removeprefix("The cache of this model is not supported: ")
    return "cache", ", ".join(dict.fromkeys(layer.kind for layer in cache.layers))


def main() -> None:
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    say = Language("en")
    rows = {name: told(name, say) for name in language_types() if name not in FAMILIES}
    counts = {kind: sum(found == kind for found, _ in rows.values()) for kind in ORDER}
    lines = [
        "# Model types beyond the families described here",
        "",
        f"Every `model_type` for which transformers {transformers.__version__} has a class that gives the next token, built on",
        "the meta device from its default configuration, or where that does not do, from a small one. Written by `make types`;",
        "another version of transformers gives another list.",
        "",
        f"**{counts['cache']}** with parameters and cache, **{counts['parameters']}** with parameters and a refused cache",
        "(exit 7),",
        f"**{counts['neither']}** whose default configuration builds no language model.",
        "",
        "## Parameters and cache",
        "",
        "| model_type | kinds of layers in the cache |",
        "|---|---|",
        *(f"| `{name}` | {text} |" for name, (found, text) in rows.items() if found == "cache"),
        "",
        "## Parameters; the cache is refused",
        "",
        "| model_type | why |",
        "|---|---|",
        *(f"| `{name}` | {cell(text)} |" for name, (found, text) in rows.items() if found == "parameters"),
        "",
        "## Not built from the default configuration",
        "",
        "| model_type | what transformers or this tool says |",
        "|---|---|",
        *(f"| `{name}` | {cell(text)} |" for name, (found, text) in rows.items() if found == "neither"),
    ]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{PAGE}: {counts}")


def cell(text: str) -> str:
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= LONGEST_REASON else line[:LONGEST_REASON] + "…"


if __name__ == "__main__":
    main()

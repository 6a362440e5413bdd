"""What short commands have instead of slow modules does what those do, and such commands import none of them."""

from __future__ import annotations

import copy
import enum
import json
import pickle
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import qwen_inspect
from qwen_inspect import standard
from qwen_inspect.checkpoint import DType
from qwen_inspect.loaders.resolve import _is_hub_id
from qwen_inspect.predicting.allocation.on_device import BIASED_PRODUCT, MATRIX_PRODUCT, is_one_of
from qwen_inspect.renderers.document.common import _first_sentence
from qwen_inspect.renderers.wrapping import JOINED, _words

PIECES = ("a", "Z", "9", "é", "_", ".", "-", "/", "B", "KB", "GiB", "GiBs", " ", "。", "\n")


def texts(longest: int = 4) -> list[str]:
    return ["".join(pieces) for count in range(longest + 1) for pieces in product(PIECES, repeat=count)]


@pytest.mark.parametrize("command", ["params", "attention", "memory"])
def test_a_short_command_imports_no_slow_module(command: str) -> None:
    script = f"""
import sys
from qwen_inspect.cli import main
before = {{*sys.modules}}
assert main(["{command}", "catalog:Qwen/Qwen3-0.6B"]) == 0
print({{"re", "json", "enum", "signal", "importlib", "typing", "dataclasses"}} & {{*sys.modules}}, file=sys.stderr)
"""
    root = Path(qwen_inspect.__file__).parents[1]
    done = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True, cwd=root)
    assert done.stderr.endswith("set()\n"), done.stderr


def test_json_is_read_as_by_the_standard_module() -> None:
    readable = (
        '{"a": [1, 2.5, -0, NaN, -Infinity, null, true, {}]}',
        " [1] \n",
        '"\\u00e9"',
        b'{"x": "\xc3\xa9"}',
        "1e400",
    )
    for text in readable:
        assert repr(standard.loads(text)) == repr(json.loads(text))
        if isinstance(text, str):
            assert repr(standard.raw_decode(f"={text.strip()} x", 1)) == repr(json.loads(text))
    for text in ("", "{", "[1] x", '{"a" 1}', "\ufeff[1]", b"\xff", '"\x01"'):
        with pytest.raises(ValueError) as expected:  # noqa: PT011
            json.loads(text)
        with pytest.raises(type(expected.value), match=re.escape(str(expected.value))):
            standard.loads(text)


def test_an_enumeration_is_like_the_standard_ones() -> None:
    made: dict[str, Any] = {}
    for base in (enum.Enum, standard.Enum):
        namespace: dict[str, Any] = {"base": base}
        exec(
            "class Few(base):\n A = (1, 'x')\n B = (2, 'y')\n"
            " def __init__(self, number, text): self.number, self.text = number, text\n",
            namespace,
        )
        few = namespace["Few"]
        made[base.__module__] = [
            [repr(one) for one in few], len(few), few["B"] is few.B, few.A.name, few.A.value, few.A.number, few.A == few.B
        ]  # fmt: skip
    one, other = made.values()
    assert one == other
    for dtype in DType:
        assert copy.deepcopy(dtype) is copy.copy(dtype) is pickle.loads(pickle.dumps(dtype)) is dtype
    assert {DType.BF16: 1}[DType["BF16"]] == 1


def test_names_and_texts_are_read_as_by_patterns() -> None:
    hub_id = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
    sentence, quantity = re.compile(r".+?(?:。|\.(?= ))"), re.compile(r"(?<=\d) (?=(?:[KMGT]i?)?B\b)")
    for text in (*texts(), *("9" * length + "/b" for length in (95, 96, 97))):
        assert _is_hub_id(text) == (hub_id.fullmatch(text) is not None), text
        match = sentence.match(text)
        assert _first_sentence(text) == (match[0][:-1] if match else text), text
        assert _words(text) == quantity.sub(JOINED, text).split(" "), text


def test_products_are_known_by_their_names() -> None:
    products = re.compile(r"(aten\.(mm|addmm|bmm|baddbmm|_grouped_mm)|bitsandbytes\.gemm_4bit\.(default|bias))\b")
    biased = re.compile(r"aten\.addmm\b|bitsandbytes\.gemm_4bit\.bias")
    for name, end in product(
        (*MATRIX_PRODUCT, "aten.add", "xaten.mm"), ("", ".default", "_x", "2", ", 4 events repeated")
    ):
        assert is_one_of(name + end, MATRIX_PRODUCT) == (products.match(name + end) is not None)
        if not name.endswith("bias") or end[:1] not in ("_", "2"):
            assert is_one_of(name + end, BIASED_PRODUCT) == (biased.match(name + end) is not None)

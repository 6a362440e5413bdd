"""Regular expressions of repositories and of `--trained`: the answers of `re`, in bounded time."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_inspect.architectures.pattern_syntax import parse
from qwen_inspect.architectures.patterns import first_match, fullmatch, search
from qwen_inspect.errors import MalformedError, QwenInspectError, UnsupportedError

NAMES = [
    f"{root}layers.{layer}.{module}"
    for root, layer, module in product(
        ("model.", "model.language_model.", "visual."),
        (0, 3, 18),
        ("self_attn.q_proj", "mlp.gate", "mlp.gate_proj", "mlp.experts.7.down_proj", "self_attn", "mlp.gate\n"),
    )
] + ["lm_head", "", "\n", "model"]

# As tools write them: GPTQModel, llm-compressor, ms-swift, Unsloth.
PUBLISHED = [
    r".*attn.*",
    r".*\.18\..*gate.*",
    r".*mlp\.(gate|up|gate_up|down)_proj.*",
    r".*mlp.gate$",
    r"visual.*",
    r"^(language_model|model)(?!.*(lm_head|output|emb|wte|shared)).*",
    r"^(model.language_model(?=\.).*\.(gate_proj|down_proj|q_proj))$",
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:qkv_proj|q_proj|down_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\.(?:(?:q_proj|down_proj)))",
    r"model\.layers\.([0-9]|1[0-8])\.",
    "",
]

PIECES = [
    *"ab.1_^$-]é\n",
    r"\.",
    "[ab]",
    "[^a]",
    "[a-c.]",
    r"\d",
    r"\w",
    r"\W",
    r"\s",
    r"\b",
    r"\A",
    r"\Z",
    "[]a]",
    "[a-]",
    "{",
    "{}",
]
PATTERNS = st.recursive(
    st.sampled_from(PIECES),
    lambda inner: st.one_of(
        st.builds("{}{}".format, inner, inner),
        st.builds("({}|{})".format, inner, inner),
        st.builds(
            "(?:{}){}".format,
            inner,
            st.sampled_from(["*", "+", "?", "*?", "+?", "{2}", "{1,2}", "{,2}", "{1,}", "{0}"]),
        ),
        st.builds("({}{})".format, st.sampled_from(["?=", "?!", "?<=", "?<!"]), inner),
    ),
    max_leaves=8,
)


def answers(pattern: str) -> dict[str, Callable[[str], bool]]:
    first = first_match([pattern])
    return {"match": lambda name: first(name) is not None, "fullmatch": fullmatch(pattern), "search": search(pattern)}


@pytest.mark.parametrize("pattern", PUBLISHED)
def test_published_patterns_match_the_names_that_re_matches(pattern: str) -> None:
    for kind, test in answers(pattern).items():
        assert [name for name in NAMES if test(name)] == [name for name in NAMES if getattr(re, kind)(pattern, name)]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(PATTERNS, st.lists(st.text("aab.1_ \né-c", max_size=7), max_size=8))
def test_any_pattern_matches_as_re_or_is_refused_where_re_refuses_it(pattern: str, names: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sets within sets
        try:
            tests = answers(pattern)
        except MalformedError:
            with pytest.raises(re.error):
                re.compile(pattern)
            return
        for kind, test in tests.items():
            matches = getattr(re.compile(pattern), kind)
            assert [test(name) for name in names] == [matches(name) is not None for name in names]


def test_the_first_of_several_patterns_counts_between_what_stands_around_them() -> None:
    first = first_match(["k_proj", "q_proj", ".*_proj"], before=parse(r"(.*\.)?"), after=parse("$"))
    assert [first(name) for name in ("a.b.q_proj", "q_proj", "xq_proj", "a.v_proj", "q_proj.a")] == [1, 1, 2, 2, None]


@pytest.mark.parametrize(
    "pattern",
    [
        ".?" * 40 + "Z",
        "(.|.)" * 28 + "Z",
        "|".join([".*.*.*.*Z"] * 190),
        "(a+)+$",
        "(.*a.{15}){3}b",
        "(.?){900}Z",
        "".join(f"(?=.*{letter})" for letter in "abcdefghijkl" * 10),
    ],
)
def test_no_pattern_takes_long(pattern: str) -> None:
    start = time.process_time()
    with suppress(UnsupportedError):
        test = fullmatch(pattern)
        for expert in range(500):
            test(f"model.layers.{expert % 7}.mlp.experts.{expert}.down_proj.aababaabbbab")
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("pattern", "key"),
    [
        ("(" * 900 + ")" * 900, "pattern_unsupported"),
        ("x{99999999999}", "pattern_slow"),
        ("(((){1000}){1000}){1000}", "pattern_slow"),
        ("a" * 2_001, "pattern_slow"),
        (r"(a)\1", "pattern_unsupported"),
        ("(?i)a", "pattern_unsupported"),
        ("a*+", "pattern_unsupported"),
        (r"\B", "pattern_unsupported"),
        ("a**", "pattern_malformed"),
        ("*", "pattern_malformed"),
        ("a)", "pattern_malformed"),
        ("[b-a]", "pattern_malformed"),
        ("(?<=a*)b", "pattern_malformed"),
        ("\\", "pattern_malformed"),
    ],
)
def test_a_pattern_that_is_not_matched_is_refused_in_a_line(pattern: str, key: str) -> None:
    with pytest.raises(QwenInspectError) as caught:
        search(pattern)
    assert caught.value.message.key == key
    assert len(str(caught.value)) < 300


def test_a_set_within_a_set_is_read_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [name for name in ("[x", "ax", "bx") if fullmatch("[[a]x")(name)] == ["[x", "ax"]

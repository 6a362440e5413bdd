"""Every command opens with its answer: the same in the document and in JSON, with JSON's own numbers, unknown where they are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from qwen_inspect.comparing.side_by_side import compare
from qwen_inspect.errors import UnsupportedError
from qwen_inspect.fitting.search import cards, fit
from qwen_inspect.fitting.serving import serve
from qwen_inspect.language import LANGUAGES, Language, Message
from qwen_inspect.loaders import gpus
from qwen_inspect.loaders.resolve import Access
from qwen_inspect.predicting.predict import predict
from qwen_inspect.renderers import answers, terminal
from qwen_inspect.renderers import json as json_renderer
from qwen_inspect.renderers.answers.cards import on_card, on_common
from qwen_inspect.renderers.answers.params import verdicts
from qwen_inspect.renderers.blocks import Answer
from qwen_inspect.renderers.document import View, document
from qwen_inspect.renderers.document.checked import check_blocks, summary_blocks
from qwen_inspect.reporting.compiling import compiled
from qwen_inspect.results.cache import Workload
from qwen_inspect.results.counts import Check
from qwen_inspect.results.fit import verdict
from qwen_inspect.results.memory import Run
from qwen_inspect.results.model import Report
from qwen_inspect.results.serving import Serving
from qwen_inspect.results.whole import Drift, Expectation, ReportCheck, ReportRequest
from qwen_inspect.structure.inspect import inspect, models
from qwen_inspect.units import GIB, MIB, count, short_count, size

from ..support.invoking import Capture, invoke

SMALL, LARGE = "catalog:Qwen/Qwen3-0.6B", "catalog:Qwen/Qwen3-8B"


@cache
def small() -> Report:
    return inspect(SMALL, predict_files=True)


@cache
def subject_of(command: str) -> Any:
    match command:
        case "memory":
            return predict(small(), Run())
        case "fit":
            return fit(inspect(LARGE), Run(), cards("T4"))
        case "compare":
            return compare([SMALL, LARGE], Run())
        case "report":
            return compiled(ReportRequest(model=SMALL), Access())
        case "models":
            return models()
        case "gpus":
            return gpus.table()
        case _:
            return small()


def _number(size_bytes: int) -> str:
    """Of a range's low end, whose unit is the high end's."""
    return size(size_bytes).split()[0]


def _memory(content: dict[str, Any]) -> list[str]:
    predicted, peak = content["predicted"], content["predicted"]["moments"]["peak"]
    terms = [size(peak[f"{term}_bytes"]) for term in ("weights", "cache", "activations")]
    return [*terms, _number(predicted["required_bytes"]["low"]), size(predicted["required_bytes"]["high"])]


def _fit(content: dict[str, Any]) -> list[str]:
    ends = [size(content["required_bytes"]), _number(content["low_end"]["required_bytes"])]
    first = next(change for change in content["suggestions"] if change["likely"])
    return [*ends, size(content["available_bytes"]), first["change"]]


def _compare(content: dict[str, Any]) -> list[str]:
    facts = {row["name"]: row["values"] for row in content["side_by_side"]["facts"]}
    needed = [*map(_number, facts["required_low"]), *map(size, facts["required_high"])]
    return [*map(short_count, facts["unique"]), *needed]


# For each command: figures of its JSON that its answer shows. Literals: 2 (K, V) x 28 layers x 8 heads x 128 x 2 bytes a token.
FIGURES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "structure": lambda it: [count(it["parameters"]["unique"]), size(it["cache"]["bytes"]), "112.00 KiB"],
    "config": lambda it: [count(it["config"][key]) for key in ("hidden_size", "vocab_size", "num_hidden_layers")],
    "weights": lambda it: [
        count(it["totals"]["tensors"]),
        count(it["totals"]["elements"]),
        size(it["totals"]["bytes"]),
    ],
    "params": lambda it: [count(it["parameters"]["theory"]), count(it["parameters"]["theory"] + 155_582_464)],
    "attention": lambda it: [it["kind"], *map(str, (it["query_heads"], it["kv_heads"], it["head_dim"])), "112.00 KiB"],
    "memory": _memory,
    "fit": _fit,
    "compare": _compare,
    "report": lambda it: [
        count(it["parameters"]["unique"]),
        size(it["memory"][-1]["predicted"]["required_bytes"]["high"]),
    ],
    "models": lambda it: [count(len(it["models"]))],
    "gpus": lambda it: [count(len(it["gpus"]))],
}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("command", FIGURES)
def test_every_command_opens_with_its_answer_in_jsons_numbers(command: str, language: str) -> None:
    say = Language(language)
    subject = subject_of(command)
    content = json.loads(json_renderer.render(command, subject, say))
    first, *others = document(command, subject, say, View())
    assert isinstance(first, Answer)
    assert not [block for block in others if isinstance(block, Answer)]
    assert 1 <= len(first.sentences) <= 3
    assert say("answer_joint").join(first.sentences) == content["answer"] == answers.text(command, subject, say)
    figures = FIGURES[command](content)
    assert [figure for figure in figures if figure not in content["answer"]] == []
    assert terminal.render([first]).splitlines() == list(first.sentences)
    assert all(sentence.endswith({"en": ".", "zh": "。"}[language]) for sentence in first.sentences)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_first_lines_of_a_terminal_are_the_answer_and_a_notice_is_said_once(language: str, capsys: Capture) -> None:
    done = invoke(capsys, "structure", SMALL, "--lang", language)
    sentences = answers.sentences("structure", inspect(SMALL), Language(language))
    assert done.out.splitlines()[: len(sentences) + 1] == [*sentences, ""]
    assert (done.code, done.err) == (0, "")
    (notice,) = small().notices
    assert done.out.count(Language(language)(notice)) == 1
    as_json = invoke(capsys, "structure", SMALL, "--lang", language, "--format", "json")
    assert as_json.err == f"{Language(language)(notice)}\n"


@pytest.mark.parametrize(
    ("dtype", "run", "opening"),
    [
        (None, Run(), "At the peak: "),
        (None, Run(mode="train"), "At the peak: "),
        ("fp8", Run(), "At the low end of the peak: "),  # its kernels are not traced: a range
    ],
)
def test_the_terms_that_memory_names_add_up_to_what_it_says_a_card_must_have(
    dtype: str | None, run: Run, opening: str
) -> None:
    memory = predict(inspect(SMALL, dtype=dtype), run)
    terms = answers.sentences("memory", memory, Language("en"))[1]
    assert terms.startswith(opening)
    units = {"KiB": 1024, "MiB": MIB, "GiB": GIB}
    named = sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(?: to [\d.]+)? ([KMG]iB)", terms))
    assert memory.predicted.required_ends is not None
    # workspaces, buffers and rounding are not named: 8.12 or 16.25 MiB and less than 1 MiB each; sizes have two decimals
    assert 0 <= memory.predicted.required_ends[0] - named < 25 * MIB


@pytest.mark.parametrize(
    ("available", "required", "judged"),
    [
        (24, (22, 24), "fits"),
        (24, (22, 25), "may_fit"),
        (24, (25, 26), "too_small"),
        (24, (24, None), "unknown"),
        (24, (25, None), "too_small"),
    ],
)
def test_it_fits_only_at_the_safe_end(available: int, required: tuple[int, int | None], judged: str) -> None:
    assert verdict(available, required) == judged


def test_a_card_that_was_named_is_told_apart_from_the_common_ones() -> None:
    say, t4 = Language("en"), gpus.find("T4")  # 14,912 MiB, as CUDA reports it
    common = gpus.common()
    assert on_card(t4, (14 * GIB, 14 * GIB), say) == "It fits T4 (14.56 GiB): 576.00 MiB or more are left."
    assert on_card(t4, (14 * GIB, 15 * GIB), say) == (
        "It may fit T4 (14.56 GiB): from 448.00 MiB too little to 576.00 MiB left. "
        "The smallest common card that it fits: RTX 4090 (23.51 GiB)."
    )
    assert on_card(t4, (15 * GIB, 16 * GIB), say).startswith(
        "It does not fit T4 (14.56 GiB): 448.00 MiB or more are missing."
    )
    assert (
        on_card(t4, (14 * GIB, None), say)
        == "Whether it fits T4 (14.56 GiB) is not known: 576.00 MiB at most are left."
    )
    assert on_common(common, (14 * GIB, 15 * GIB), say) == [
        "By capacity: fits RTX 4090 (23.51 GiB) and larger; may fit T4 (14.56 GiB); too small: RTX 3060 12GB (11.63 GiB)."
    ]
    assert on_common(common, (1000 * GIB, 1000 * GIB), say) == [
        "It fits no common card; the largest is B200 (178.34 GiB)."
    ]
    assert on_common(common, (GIB, None), say) == []
    assert len(common) == len(gpus.COMMON)
    assert [card.available_bytes for card in common] == sorted({card.available_bytes for card in common})


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_peak_that_is_null_is_not_known(language: str) -> None:
    """transformers has no cache in FP8, so that no trace shows such a run."""
    say = Language(language)
    run, report = Run(cache_format="fp8"), inspect(SMALL, workload=Workload(cache_format="fp8"))
    content = json.loads(json_renderer.render("memory", predict(report, run), say))
    predicted = content["predicted"]
    assert (predicted["required_bytes"], predicted["peak_allocated_bytes"]) == (None, None)
    least = predicted["steady_allocated_bytes"] + 135 * MIB  # the smallest CUDA context
    assert say("at_least", value=size(least)) in content["answer"]
    assert f"{say('answer_term_activations')} {say('answer_unknown')}" in content["answer"]
    judged = json.loads(json_renderer.render("fit", fit(report, run, cards("4090")), say))
    assert judged["fits"] is None
    assert judged["answer"].startswith({"en": "Not known", "zh": "未知"}[language])


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_named_card_is_answered_by_memory_as_by_fit(language: str, capsys: Capture) -> None:
    done = invoke(capsys, "memory", LARGE, "--gpu", "T4", "--format", "json", "--lang", language)
    content = json.loads(done.out)
    required = content["predicted"]["required_bytes"]
    same = json.loads(json_renderer.render("fit", subject_of("fit"), Language(language)))
    assert (required["low"], required["high"]) == (same["low_end"]["required_bytes"], same["required_bytes"])
    missing = size(-same["low_end"]["margin_bytes"])
    sentence = {"en": f"does not fit T4 (14.56 GiB): {missing}", "zh": f"T4（14.56 GiB）不够：至少差 {missing}"}
    assert sentence[language] in content["answer"]


def test_several_cards_and_engines_have_their_answers() -> None:
    say = Language("en")
    both = answers.sentences("fit", fit(small(), Run(), cards("4090,T4")), say)
    assert "fits RTX 4090 (23.51 GiB), T4 (14.56 GiB)." in both[0]
    assert both[1:] == [
        "Largest context at this batch, in tokens: RTX 4090 40,832 (the model's own limit), T4 40,832 (the model's own limit)."
    ]
    served = serve(small(), Serving(engine="vllm"), cards("H100"))
    verdict_of, capacity = answers.sentences("fit", served, say)
    assert verdict_of.startswith(
        "Yes, vllm 0.19.0 serves Qwen/Qwen3-0.6B on H100 SXM (79.18 GiB) with 1 × 40,960 tokens."
    )
    reserve = json.loads(json_renderer.render("fit", served, say))["vllm"]
    assert f"{reserve['low']['kv_cache_tokens']:,} to {reserve['high']['kv_cache_tokens']:,} tokens" in capacity


def test_counts_that_disagree_are_said_to() -> None:
    design = small().known
    wrong = Check(left="theory", right="stored", left_parameters=10, right_parameters=12)
    report = replace(small(), design=replace(design, checks=(wrong,)))
    assert [*verdicts(report, Language("en"))] == [
        "The counts do not agree: Theory 10, Files 12 (+2: no cause is known); unexplained are +2 parameters, 0 tensors."
    ]


def test_a_check_of_reports_opens_with_how_many_agree() -> None:
    good, bad = ReportCheck(document="a.md"), ReportCheck(document="b.md", drifts=(Drift(figure="x", was=1, now=2),))
    assert check_blocks([good, bad], Language("en"))[0] == Answer(["1 of 2 reports agree; these do not: b.md."])
    assert check_blocks([good], Language("zh"))[0] == Answer(["1 份报告中有 1 份一致。"])
    expected = [Expectation(message=Message("none"), holds=holds) for holds in (True, False)]
    assert summary_blocks([], [good], expected, Language("en"))[0] == Answer(
        ["1 of 1 reports agree.", "1 of 2 expectations hold."]
    )


def test_why_it_is_not_known_is_said() -> None:
    refused = replace(subject_of("fit"), refusal=UnsupportedError("fit_lower_bound"))
    (card,) = refused.cards
    unknown = replace(refused, cards=(replace(card, high=replace(card.high, fits=None)),))
    assert answers.sentences("fit", unknown, Language("en"))[-1] == (
        f"The reason: {Language('en')('fit_lower_bound')}."
    )

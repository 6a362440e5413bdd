"""The two languages say the same things, and everything that is said exists in both."""

from __future__ import annotations

import ast
import re
import string
from collections import Counter
from pathlib import Path

import pytest

from qwen_inspect import errors
from qwen_inspect.language import SUBJECTS, Language, Message, all_texts, language_of

EN, ZH = all_texts("en"), all_texts("zh")
PACKAGE = Path(errors.__file__).parent
# Keys that are put together from a name, by their beginnings.
COMPOSED = (
    "component_", "source_", "confidence_", "witness_", "cause_", "cause_name_", "miscount_", "finding_", "column_", "help_",
    "engine_", "change_", "section_", "layer_kind_", "row_",
    "figure_",
    "buffer_",
    "answer_llama_cpp_",
    "catalog_kind_",
    "cpu_",
    "purpose_",
    "working_search_",
    "stage_",
    "measured_stage_",
    "term_",
    "expect_",
    "mode_",
    "method_",
    "ended_",
    "field_peak_",
    "assume_",
    "loop_logits_", "loop_loss_",
    "span_", "first_linear_",
    "cache_note_", "meaning_kv_", "mapping_", "grouping_", "technique_", "group_", "origin_tensors_", "cache_",
    "kind_", "meaning_generic_", "meaning_text_config", "meaning_vision_config",
    "reserved_", "gpu_kind_", "gpu_figure_", "reach_", "available_", "field_max_", "suggest_", "about_",
    "media_rules_", "media_limit_", "media_bound_", "answer_media_",
    "answer_image", "answer_video", "answer_audio", "speed_step_", "speed_limit_", "speed_from_", "column_speed_",
    "answer_fit_", "answer_serve_", "answer_weights_", "answer_run_", "answer_term_", "answer_on_card_", "answer_measured_",
)  # fmt: skip


def placeholders(text: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}


def written_keys(code: str) -> dict[str, list[str]]:
    """The keys of a language by subject, as often as they are written there."""
    folder = PACKAGE / "language" / code
    return {
        path.stem: [
            key.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Dict)
            for key in node.keys
            if isinstance(key, ast.Constant) and isinstance(key.value, str)
        ]
        for path in sorted(folder.glob("*.py"))
    }


def test_both_languages_have_the_same_keys_under_the_same_subjects() -> None:
    english, chinese = written_keys("en"), written_keys("zh")
    assert english.keys() - {"__init__"} == {*SUBJECTS}
    assert {subject: set(keys) for subject, keys in english.items()} == {
        subject: set(keys) for subject, keys in chinese.items()
    }


@pytest.mark.parametrize(("code", "table"), [("en", EN), ("zh", ZH)])
def test_each_key_is_written_once_and_no_subject_is_left_out(code: str, table: dict[str, str]) -> None:
    written = Counter(key for keys in written_keys(code).values() for key in keys)
    assert {key for key, times in written.items() if times > 1} == set()
    assert set(written) == set(table)


def test_both_languages_use_the_same_values() -> None:
    values = {key: (placeholders(EN[key]), placeholders(ZH[key])) for key in EN}
    assert {key: pair for key, pair in values.items() if pair[0] != pair[1] or "" in pair[0]} == {}


def test_chinese_is_chinese() -> None:
    same = {key for key in EN if not re.search("[\u4e00-\u9fff]", ZH[key])}
    # Names and sums, which are no sentences.
    assert same == {
        "activation_silu",
        "answer_attention_of",
        "answer_card",
        "answer_count",
        "answer_differ",
        "answer_fit_each",
        "answer_joint",
        "answer_layers_of",
        "answer_weights",
        "column_digest",
        "comma",
        "list_comma",
        "compare_note",
        "field_gpu",
        "figure_qk_norm",
        "gpu_source",
        "heading_card",
        "layers_product",
        "plot_term",
        "semicolon",
        "source_hf",
        "speed",
        "witness_instantiated",
        "usage_value",
        "usage_with_hint",
        "worked_embedding",
        "worked_head",
        "worked_one",
        "worked_sum",
    }


# One term for one thing: what Chinese engineers would not write, or not here, and the term that stands in its place.
VARIANTS = {
    "保留峰值|峰值已保留|预留显存峰值|保留显存|保留量": "已预留",
    "激活检查点": "激活重计算",
    "查询头|键头|值头": "Q 头、K 头、V 头",
    "KV头": "KV 头",
    "QK 归一化": "QK-Norm",
    "门控 MLP": "SwiGLU 前馈网络",
    "模型参数(改用|$)": "模型权重",
    "prefill|decode ": "预填充、解码",
    "目录中已知": "内置模型清单",
    "跟踪": "追踪",
    "内核": "kernel",
    "分配器取整|权重的取整": "对齐开销",
    "无法解释的|未能解释|残差$": "未解释的差异",
    "追踪真实前向": "真实前向计算追踪",
    "CUDA 所告知|CUDA 告知": "CUDA 报告的总显存",
    "能否容纳|可能可容纳": "是否够用",
    "可以如何调整": "调整建议",
    "参数量估算": "参数量计算",
    "每秒 ": "token/s",
    "句子(开始|结束)标记": "序列起始 token（BOS）、序列结束 token（EOS）",
    " 位(整数|浮点|编码|指数|缩放)|每个位数|个参数 [^ ]+ 位": "比特",
    "(?<!的)头部": "文件头",
    "torch extra|torch 扩展": "torch 可选依赖",
    "绑定": "共享权重",
    "要构建的模型类": "对应的模型类",
    "与此处的各项数字无关": "不影响参数量与显存",
}


def test_chinese_has_one_term_for_one_thing() -> None:
    texts = ZH.items()
    assert [
        (key, text, term) for variant, term in VARIANTS.items() for key, text in texts if re.search(variant, text)
    ] == []


CHINESE = "[\u4e00-\u9fff]"
# Headings of weights reports as users write them, and what is typed.
PUNCTUATED_OTHERWISE = {"heading_largest", "column_mib", "help_model", "about_compare", "quantised_overrides"}


def test_chinese_is_spaced_from_latin_and_has_its_own_punctuation() -> None:
    without_values = {key: re.sub(r"\{[^}]*\}", "\0", text) for key, text in ZH.items()}
    unspaced = f"{CHINESE}[A-Za-z0-9]|[A-Za-z0-9%]{CHINESE}"
    assert {key: text for key, text in without_values.items() if re.search(unspaced, text)} == {}
    foreign = f"{CHINESE} ?[,;:?!()]|[,;:?!(] ?{CHINESE}|{CHINESE} [（，。：；]|[（，。：；、] {CHINESE}"
    assert {key for key, text in without_values.items() if re.search(foreign, text)} <= PUNCTUATED_OTHERWISE


def literals(node: ast.expr) -> set[str]:
    """The strings that an argument can be, as far as they stand there."""
    match node:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.IfExp(body=body, orelse=other):
            return literals(body) | literals(other)
    return set()


def spoken_keys() -> set[str]:
    """Every literal key handed to a language, a message or an error anywhere in the package."""
    keys = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in ("say", "_say", "Message") or name.endswith("Error"):
                    keys |= literals(node.args[0])
    return keys


def test_every_key_that_is_said_exists() -> None:
    assert len(spoken_keys()) > 200
    assert spoken_keys() - set(EN) == set()


def test_every_key_that_exists_is_said() -> None:
    said = spoken_keys()
    source = "".join(
        path.read_text(encoding="utf-8")
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] != "language"
    )
    unsaid = {key for key in EN if key not in said and not key.startswith(COMPOSED) and f'"{key}"' not in source}
    assert unsaid == set()


@pytest.mark.parametrize(
    ("environment", "code"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LC_ALL": "en_US.UTF-8", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LC_MESSAGES": "zh_TW", "LANG": "C"}, "zh"),
        ({"LC_ALL": "", "LANG": "zh_CN"}, "zh"),
    ],
)
def test_auto_follows_the_locale(environment: dict[str, str], code: str) -> None:
    assert language_of("auto", environment) == code
    assert language_of("zh", environment) == "zh"


def test_messages_inside_messages_are_spoken_in_the_same_language() -> None:
    message = Message("no_design", reason=Message("generic_own_code", found="x"))
    assert "x 由其仓库自带的代码定义" in Language("zh")(message)
    assert "x is defined by code" in Language("en")(message)


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of en, zh"):
        Language("fr")

"""The end of a report: conclusions that follow from its figures, and agree with `fit` and with the component table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.errors import UnsupportedError, UsageError
from qwen_inspect.fitting import search
from qwen_inspect.language import LANGUAGES, Language, Message
from qwen_inspect.loaders.resolve import Access
from qwen_inspect.renderers import markdown
from qwen_inspect.renderers.blocks import Table
from qwen_inspect.renderers.document import conclusions
from qwen_inspect.renderers.document.common import parts
from qwen_inspect.renderers.document.measured import causes
from qwen_inspect.reporting.compiling import compiled
from qwen_inspect.results.measurement import Difference, MemoryCause
from qwen_inspect.results.whole import ReportRequest, WholeReport
from qwen_inspect.structure.inspect import inspect

from ..support.documents import CUSTOM_MHA
from ..support.models import TINY_QWEN3, write_config

QUANTISED = {
    **TINY_QWEN3,
    "hidden_size": 256,
    "intermediate_size": 256,
    "head_dim": 64,
    "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
}


def whole_of(model: str, **request: Any) -> WholeReport:
    return compiled(ReportRequest(model=model, **request), Access(offline=True))


def sentences(whole: WholeReport) -> list[str]:
    return conclusions.sentences(whole, Language("en"))


def test_the_conclusions_of_a_grouped_model_are_its_figures() -> None:
    """Qwen3-0.6B: 2 x 28 layers x 8 KV heads x 128 x 2 B = 114,688 B a token, with 16 KV heads twice that."""
    whole = whole_of("catalog:Qwen/Qwen3-0.6B", gpus="RTX 4090,T4")
    said = sentences(whole)
    assert said[0].startswith("The KV cache takes 112.00 KiB a token, 50.00% of the 224.00 KiB that MHA")
    assert said[0].endswith("at 40,960 tokens and batch 1 that is 4.38 GiB instead of 8.75 GiB")
    assert "the largest part of the peak is “KV cache”: 3.50 GiB" in said[1]  # 32,768 x 114,688 B
    assert "fits T4, the smallest of these cards" in said[3]
    assert said[5].startswith("The change that saves most: the KV cache in fp8, 3.51 GiB down to 1.76 GiB")
    assert whole.advice is not None
    fitted = search.fit(whole.report, whole.advice.run, search.cards("RTX 4090,T4"))
    assert [(card.context, card.batch) for card in whole.advice.limits] == [
        (card.high.context, card.high.batch) for card in fitted.cards
    ]


def test_the_documents_own_model_is_advised_what_is_true(tmp_path: Path) -> None:
    """Its document says that GQA would save 25 % of the cache: 8 of 32 KV heads save 75 %."""
    write_config(tmp_path, CUSTOM_MHA)
    said = sentences(whole_of(str(tmp_path), gpus="V100 32GB"))
    assert said[0].startswith(
        "Every query head has a KV head of its own (MHA), so the KV cache takes 512.00 KiB a token"
    )
    assert said[1].startswith("GQA with 8 KV heads would take 128.00 KiB a token, 75.00% less")
    assert any(sentence.startswith("On V100 32GB the largest prompt at batch 1 is ") for sentence in said)


def test_a_quantised_model_is_not_advised_to_quantise(tmp_path: Path) -> None:
    write_config(tmp_path, QUANTISED)
    whole = whole_of(str(tmp_path), gpus="RTX 4090,H20")
    said = sentences(whole)
    assert any(sentence.startswith("The weights are quantised already: ") for sentence in said)
    assert not any("saves most" in sentence for sentence in said)
    # Its kernels are not traced: the predicted prompt alone is known to fit, and on Hopper not even that.
    assert whole.advice is not None
    assert [card.context.value for card in whole.advice.limits] == [whole.memory[-1].run.prompt_tokens, None]
    for language in LANGUAGES:
        assert "qwen-inspect fit " in markdown.render(conclusions.blocks(whole, Language(language)))


def test_without_a_known_cache_the_reason_is_the_conclusion(tmp_path: Path) -> None:
    write_config(tmp_path, TINY_QWEN3)
    whole = whole_of(str(tmp_path))
    refusal = UnsupportedError("generic_cache_none")
    design = replace(whole.report.known, cache=None, attention=None, cache_refusal=refusal)
    unknown = replace(whole, report=replace(whole.report, design=design), memory=(), advice=None)
    assert sentences(unknown) == [f"The KV cache is unknown: {Language('en')(refusal.message)}"]


def test_an_unknown_card_is_refused_before_the_model_is_read() -> None:
    with pytest.raises(UsageError):
        whole_of("/no/such/model", gpus="RTX 9999")


@pytest.mark.parametrize(
    ("model", "layers", "share"),
    [
        ("catalog:Qwen/Qwen3-0.6B", 440_466_432, 7390),  # 28 x 15,730,944
        # 7,721,988,096 - 2 x 622,854,144 - 4,096: 83.868 % (its document: 83.9 %); embedding and head, rounded up, leave 83.86 %.
        ("custom", 6_476_275_712, 8386),
    ],
)
def test_the_decoder_layers_have_their_share_of_all_parameters(
    model: str, layers: int, share: int, tmp_path: Path
) -> None:
    write_config(tmp_path, CUSTOM_MHA)
    report = inspect(str(tmp_path) if model == "custom" else model, access=Access(offline=True))
    by_name = {part.name: part for part in parts(report)}
    assert (by_name["layers"].parameters, by_name["layers"].share_basis_points) == (layers, share)
    assert sum(part.parameters for part in by_name.values()) == report.parameters.theory
    assert sum(part.share_basis_points for part in by_name.values()) == 10_000
    for component in report.components:
        if component.name in by_name:
            assert by_name[component.name].share_basis_points == component.share_basis_points


def test_scratch_on_a_cpu_is_explained_by_what_its_kernel_does() -> None:
    scratch = Message("cause_scratch", operator="aten::_scaled_dot_product_flash_attention_for_cpu", storages=5)
    difference = Difference(
        term="peak_allocated", predicted=0, measured=41_472, causes=(MemoryCause(message=scratch, size_bytes=41_472),)
    )

    def reason(device: str) -> str:
        (table,) = (block for block in causes([difference], Language("en"), device=device) if isinstance(block, Table))
        return table.rows[0][1]

    assert reason("cpu").startswith("the CPU's attention kernel keeps blocks and partial results for each thread")
    assert reason("NVIDIA H100").startswith("scratch memory of the kernel aten::_scaled_dot_product")

"""The table of GPUs: every figure has a source, every card is found by what people call it, and nothing else is."""

from __future__ import annotations

import json
import re

import pytest

from qwen_inspect.errors import UsageError
from qwen_inspect.loaders import gpus
from qwen_inspect.predicting.allocation.workspaces import WORKSPACE_BYTES_HOPPER, workspace_bytes
from qwen_inspect.results.fit import Gpu

from ..support.models import run
from ..support.schema import assert_keeps_to_the_schema

GIB = 1 << 30


@pytest.mark.parametrize("gpu", gpus.table(), ids=lambda gpu: gpu.name)
def test_figures_have_sources_and_do_not_contradict_each_other(gpu: Gpu) -> None:
    assert all(one.text and one.source for _, one in gpu.figures)
    told = [gpu.memory_bytes, gpu.reported_bytes, gpu.usable_bytes]
    known = [size_bytes for size_bytes in told if size_bytes is not None]
    assert known == sorted(known, reverse=True)
    assert gpu.available_bytes == known[-1]
    assert gpu.available_bytes > 0.9 * gpu.memory_bytes  # 48 GB with ECC on leave least


@pytest.mark.parametrize("gpu", gpus.table(), ids=lambda gpu: gpu.name)
def test_a_card_is_found_by_each_of_its_names_in_any_form(gpu: Gpu) -> None:
    for name in (gpu.name, *gpu.aliases, *gpu.device_names):
        for form in (name, name.upper(), name.lower().replace(" ", "-"), name.replace(" ", "")):
            assert gpus.find(form) is gpu


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("4090", "RTX 4090"),
        ("a100-80gb", "A100 80GB"),
        ("h100", "H100 SXM"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),  # as torch calls it
        ("geforce rtx 3060 12gb", "RTX 3060 12GB"),
        ("a10", "A10"),
        ("Tesla T4", "T4"),
        # What is sold in China and for the home.
        ("a800-80g", "A800 80GB"),
        ("h20-3e", "H20 141GB"),
        ("l20", "L20"),
        ("l2", "L2"),
        ("4090d", "RTX 4090 D"),
        ("2080ti", "RTX 2080 Ti"),
        ("2080 Ti 22G", "RTX 2080 Ti 22GB"),
        ("3090 ti", "RTX 3090 Ti"),
        ("5090D V2", "RTX 5090 D v2"),
        ("NVIDIA GB10", "DGX Spark"),
    ],
)
def test_what_people_call_a_card(name: str, card: str) -> None:
    assert gpus.find(name).name == card


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("a100", ["A100 80GB", "A100 40GB"]),
        ("v100", ["V100 32GB", "V100 16GB"]),
        ("5090ti", ["RTX 5090"]),
        ("4060 ti", ["RTX 4060 Ti 16GB", "RTX 4060 Ti 8GB"]),
        ("a800", ["A800 80GB", "A800 40GB"]),
        ("rtx 6000", ["RTX 6000 Ada", "RTX PRO 6000 Blackwell"]),
        ("h10O", ["H100 SXM"]),
    ],
)
def test_a_name_of_no_card_or_of_several_is_refused_with_the_nearest(name: str, offered: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        gpus.find(name)
    assert all(card in str(refused.value) for card in offered)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("5080 super", {"RTX 5080"}),
        ("h100 96", {"H100 SXM", "H100 NVL", "H100 PCIe", "GH200 96GB", "H20"}),
        ("h10O", {"H100 SXM", "H100 NVL", "H100 PCIe"}),
    ],
)
def test_a_near_name_has_the_same_number(name: str, nearest: set[str]) -> None:
    with pytest.raises(UsageError) as refused:
        gpus.find(name)
    assert set(str(refused.value.message.values["nearest"]).split(", ")) <= nearest


@pytest.mark.parametrize(
    ("name", "card", "count"), [("2x4090", "RTX-4090", "2"), ("8 × H20", "H20", "8"), ("RTX 4090*2", "RTX-4090", "2")]
)
def test_several_cards_in_one_name_are_answered_with_the_option_that_takes_them(
    name: str, card: str, count: str
) -> None:
    with pytest.raises(UsageError) as refused:
        gpus.find(name)
    assert refused.value.message.key == "gpu_several"
    assert refused.value.message.values == {"name": name, "card": card, "count": count}


@pytest.mark.parametrize("name", ["1080", "zzz", "7777"])
def test_a_name_like_no_other_has_no_nearest(name: str) -> None:
    with pytest.raises(UsageError) as refused:
        gpus.find(name)
    assert refused.value.message.key == "gpu_unheard_of"


@pytest.mark.parametrize(
    "name", ["M3 Max", "mi300x", "RX 7900 XTX", "7900xtx", "Radeon Pro", "Arc A770", "Ascend 910B", "910b"]
)
def test_a_card_of_another_maker_is_told_so(name: str) -> None:
    with pytest.raises(UsageError) as refused:
        gpus.find(name)
    assert refused.value.message.key == "gpu_other_maker"
    assert "--memory" in str(refused.value)


@pytest.mark.parametrize("name", ["", " ", "nvidia", "zzz", "–", "|<b>\x1b[31m", "4090" * 500])
def test_a_name_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        gpus.find(name)


def test_a_printed_size_is_read_as_the_least_that_is_printed_so() -> None:
    # torch prints 23.52 GiB for 23.515 GiB and more, llama.cpp 81151 MiB for that and up to a MiB more.
    assert gpus.find("4090").usable_bytes == 25_249_038_991  # 23.515 * 2**30 = 25,249,038,991.36
    assert gpus.find("A100 80GB").usable_bytes == 85_092_990_976  # 81,151 * 1,048,576


def test_compute_capability_tells_dtypes_and_the_workspace_of_cublas() -> None:
    # Published by NVIDIA: tensor cores for bfloat16 came with Ampere (8.0), for FP8 with Ada and Hopper (8.9, 9.0).
    supported = {name: (gpus.find(name).supports("bfloat16"), gpus.find(name).supports("fp8")) for name in
                 ("T4", "V100 16GB", "A100 80GB", "3090", "4090", "H100", "5090")}  # fmt: skip
    assert supported == {
        "T4": (False, False),
        "V100 16GB": (False, False),
        "A100 80GB": (True, False),
        "3090": (True, False),
        "4090": (True, True),
        "H100": (True, True),
        "5090": (True, True),
    }
    for gpu in gpus.table():
        assert (workspace_bytes(gpu.name) == WORKSPACE_BYTES_HOPPER) == (gpu.compute_capability == (9, 0))
    # A capability by itself, a Hopper card with another memory, and names that say nothing.
    names = ("sm_90", "NVIDIA H100 64GB HBM2", "sm_100", "A Card 24GB")
    assert [workspace_bytes(name) == WORKSPACE_BYTES_HOPPER for name in names] == [True, True, False, False]


def test_the_table_is_shown_in_every_format_and_both_languages() -> None:
    found = json.loads(run("gpus", "--format", "json").out)
    assert_keeps_to_the_schema(found)
    names = [gpu["name"] for gpu in found["gpus"]]
    assert len(names) == len(set(names)) == len(gpus.table())
    assert {"H200", "B200", "L40S", "RTX 5090"} <= set(names)
    for form in ("table", "md", "html"):
        for language in ("en", "zh"):
            shown = run("gpus", "--format", form, "--lang", language)
            assert shown.code == 0
            assert all(name in shown.out for name in names)
    assert re.search("[一-鿿]", shown.out)

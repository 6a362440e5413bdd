"""`--gpu auto` where no NVIDIA driver answers: AMD's files in sysfs, Apple's sysctl, a GPU that shares the host's memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qwen_inspect import library
from qwen_inspect.measuring import other_cards

from ..support.models import run

GIB = 1 << 30


def amd(root: Path, number: int, **files: str) -> None:
    """A card's folder as the kernel's amdgpu driver lays it out; the second name is a connector, which has no device."""
    device = root / f"card{number}" / "device"
    device.mkdir(parents=True)
    (root / f"card{number}-DP-1").mkdir()
    for name, text in files.items():
        (device / name).write_text(text + "\n", encoding="utf-8")


def test_amd_cards_are_read_from_sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = str(24 * GIB - 16 * (1 << 20))  # a Radeon RX 7900 XTX: 25,753,026,560 B
    amd(tmp_path, 0, vendor="0x1002", device="0x744c", mem_info_vram_total=total, mem_info_vram_used="1073741824")
    amd(tmp_path, 1, vendor="0x10de", device="0x2684")
    amd(
        tmp_path,
        2,
        vendor="0x1002",
        device="0x740f",
        product_name="AMD INSTINCT MI210",
        mem_info_vram_total="68702699520",
    )
    monkeypatch.setattr(other_cards, "SYSFS", tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    first, second = other_cards.cards()
    assert (first.name, first.memory_bytes, first.free_bytes) == ("AMD GPU 0x744c", 25_753_026_560, 24_679_284_736)
    assert (second.name, second.memory_bytes, second.free_bytes) == ("AMD INSTINCT MI210", 68_702_699_520, None)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    answers = library.fit("catalog:Qwen/Qwen3-0.6B", cards="auto").cards
    assert [answer.gpu for answer in answers] == [first, second]
    assert [[notice.key for notice in answer.notices] for answer in answers] == [
        ["card_in_use", "card_not_cuda"],
        ["card_not_cuda"],
    ]


@pytest.mark.parametrize(
    ("limit", "usable"), [("0", None), ("57344", 57_344 << 20), ("none", None), ("9" * 5000, None)]
)
def test_apples_memory_is_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, usable: int | None
) -> None:
    answers = f'case "$2" in hw.memsize) echo 68719476736;; machdep*) echo Apple M3 Max;; *) echo {limit};; esac'
    program = tmp_path / "sysctl"
    program.write_text(f"#!/bin/sh\n{answers}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(sys, "platform", "darwin")
    (card,) = other_cards.cards()
    assert (card.name, card.memory_bytes, card.usable_bytes, card.unified) == ("Apple M3 Max", 64 * GIB, usable, True)


def test_a_machine_without_any_card_names_the_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_cards, "SYSFS", tmp_path)
    shown = run("fit", "Qwen/Qwen3-0.6B", "--gpu", "auto", "--offline", "--lang", "en")
    assert shown.code == 8
    assert "--memory" in shown.err


def test_a_memory_alone_is_counted_as_a_cuda_card(tmp_path: Path) -> None:
    shown = run("fit", "Qwen/Qwen3-0.6B", "--memory", "16GiB", "--offline", "--lang", "en")
    assert shown.code == 0
    assert "Counted as a CUDA card" in shown.out

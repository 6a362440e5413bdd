"""`--gpu auto` against a driver's library: one built here stands in its place, with the functions and structs of nvml.h."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ..support.models import run
from ..support.prepared import Finished
from ..support.schema import assert_keeps_to_the_schema

MIB = 1 << 20

# Names and totals as nvidia-smi prints them (81559 MiB, 24564 MiB; the third card is none of the table). What is reserved and
# used is made up. Return values: 0 success, 2 invalid argument, 3 not supported, 18 driver/library version mismatch, 999
# unknown error.
SOURCE = r"""
#include <stdio.h>
#include <string.h>
#define MIB 1048576ULL
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2_t;
static struct { const char *name; unsigned long long total, reserved, used; int major, minor; } cards[] = {
  {"NVIDIA H100 80GB HBM3", 81559, 551, 30000, 9, 0},
  {"NVIDIA GeForce RTX 4090", 24564, 400, 0, 8, 9},
  {"NVIDIA Imaginary 12", 12288, 300, 88, 7, 0},
};
static long index_of(void *card) { return (long)card - 1; }
int nvmlInitWithFlags(unsigned int flags) { return INIT; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "Unknown Error"; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = COUNT; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **card) {
  if (index >= COUNT) return 2;
  *card = (void *)(long)(index + 1);
  return 0;
}
int nvmlDeviceGetName(void *card, char *name, unsigned int length) {
  snprintf(name, length, "%s", cards[index_of(card)].name);
  return NAME;
}
int nvmlDeviceGetCudaComputeCapability(void *card, int *major, int *minor) {
  *major = cards[index_of(card)].major;
  *minor = cards[index_of(card)].minor;
  return 0;
}
int nvmlDeviceGetMemoryInfo(void *card, memory_t *memory) {
  if (SHARED) return 3;
  memory->total = cards[index_of(card)].total * MIB;
  memory->used = (cards[index_of(card)].reserved + cards[index_of(card)].used) * MIB;
  memory->free = memory->total - memory->used;
  return 0;
}
#ifdef SECOND
int nvmlDeviceGetMemoryInfo_v2(void *card, memory_v2_t *memory) {
  if (memory->version != (sizeof(memory_v2_t) | 2 << 24)) return 25;
  if (SHARED) return 3;
  memory->total = cards[index_of(card)].total * MIB;
  memory->reserved = cards[index_of(card)].reserved * MIB;
  memory->used = cards[index_of(card)].used * MIB;
  memory->free = memory->total - memory->reserved - memory->used;
  return 0;
}
#endif
"""
WHOLE = {"INIT": "0", "NAME": "0", "COUNT": "3", "SECOND": "1", "SHARED": "0"}

Fit = Callable[..., Finished]


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """`fit --gpu auto` with a driver's library that is built with these macros."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    pytest.importorskip("pynvml")
    built: dict[tuple[tuple[str, str], ...], Path] = {}

    def asked(*options: str, macros: Mapping[str, str] = WHOLE) -> Finished:
        key = tuple(sorted(macros.items()))
        if key not in built:
            folder = built[key] = tmp_path_factory.mktemp("driver")
            (folder / "nvml.c").write_text(SOURCE)
            defined = [f"-D{name}={value}" for name, value in macros.items()]
            subprocess.run(
                [compiler, "-shared", "-fPIC", *defined, "-o", "libnvidia-ml.so.1", "nvml.c"], cwd=folder, check=True
            )
        environment = {"LD_LIBRARY_PATH": str(built[key]), "QWEN_INSPECT_CACHE": str(built[key] / "cache")}
        return run("fit", "catalog:Qwen/Qwen3-8B", "--gpu", "auto", *options, env=environment)

    return asked


def cards_of(shown: Finished) -> list[dict[str, Any]]:
    content = json.loads(shown.out)
    assert_keeps_to_the_schema(content)
    cards: list[dict[str, Any]] = content["cards"]
    return cards


def test_cards_are_told_in_the_drivers_order_with_what_is_free_of_them(fit: Fit) -> None:
    shown = fit("--format", "json")
    hopper, ada, other = cards_of(shown)
    assert [one["gpu"]["name"] for one in (hopper, ada, other)] == [
        "NVIDIA H100 80GB HBM3",
        "NVIDIA GeForce RTX 4090",
        "NVIDIA Imaginary 12",
    ]
    assert [one["gpu"]["memory_bytes"] for one in (hopper, ada, other)] == [81559 * MIB, 24564 * MIB, 12288 * MIB]
    assert {one["gpu"]["available_from"] for one in (hopper, ada, other)} == {"here"}
    # 81,559 MiB less 551 of the driver and 30,000 of others.
    assert hopper["available_bytes"] == 51_008 * MIB
    # 24,564 less 400 are 23.6 GiB, but torch told 23.52 GiB on such a card: 23.515 * 2**30 and more.
    assert ada["available_bytes"] == 25_249_038_991
    assert other["available_bytes"] == 11_900 * MIB
    assert [one["fits"] for one in (hopper, ada, other)] == [True, True, False]
    assert shown.code == 1
    assert len(hopper["notices"]) == 1
    # 81,559 MiB less 551 of the driver are 79.11 GiB, so that others hold that less 49.81 GiB.
    assert "29.30 GiB" in hopper["notices"][0]
    assert "49.81 GiB" in hopper["notices"][0]
    assert ada["notices"] == []
    # Compute capability 7.0: tensor cores for float16 alone.
    assert any("bfloat16" in sentence for sentence in other["notices"])
    terms = [{term["term"]: term["bytes"] for term in one["terms"]} for one in (hopper, ada)]
    assert [one["workspace"] for one in terms] == [33_554_432, 8_519_680]  # cuBLAS on Hopper and elsewhere


def test_a_gpu_that_shares_the_hosts_memory_has_the_hosts_total(fit: Fit) -> None:
    first, *_ = cards_of(fit("--format", "json", macros=WHOLE | {"SHARED": "1", "COUNT": "1"}))
    total_kib = next(
        int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line
    )
    assert first["gpu"]["memory_bytes"] == total_kib << 10
    assert any("shares its memory" in sentence for sentence in first["notices"])


def test_notices_are_shown_in_both_languages(fit: Fit) -> None:
    assert "49.81 GiB are assumed" in fit().out
    assert "此处按 49.81 GiB 计算" in fit("--lang", "zh", "--format", "md").out


def test_a_driver_of_before_reserved_memory_was_told_of_is_asked_the_old_way(fit: Fit) -> None:
    old = {name: value for name, value in WHOLE.items() if name != "SECOND"}
    _, ada, other = cards_of(fit("--format", "json", macros=old))
    assert ada["available_bytes"] == 25_249_038_991  # as the table knows it
    assert other["available_bytes"] == 11_900 * MIB  # free, of which the driver's part is gone


@pytest.mark.parametrize(
    ("macros", "words"),
    [
        ({"INIT": "18"}, "NVML/RM version mismatch"),
        ({"INIT": "999"}, "Unknown Error"),
        ({"NAME": "999"}, "Unknown Error"),
        ({"COUNT": "0"}, "no GPU"),
    ],
)
def test_a_driver_that_refuses_is_quoted(fit: Fit, macros: dict[str, str], words: str) -> None:
    shown = fit(macros={**WHOLE, **macros})
    assert (shown.code, shown.out, len(shown.err.splitlines())) == (8, "", 1)
    assert words in shown.err


def test_vllm_is_refused_where_others_hold_what_it_asks_for(fit: Fit) -> None:
    shown = fit("--engine", "vllm", "--context", "1k", macros={**WHOLE, "COUNT": "1"})
    assert (shown.code, shown.out) == (8, "")
    assert "does not start" in shown.err
    assert fit("--engine", "vllm", "--context", "1k", "--utilization", "0.5", macros={**WHOLE, "COUNT": "1"}).code == 0

"""Peaks of quantised models: traced where bitsandbytes multiplies, ranges of all else."""

from __future__ import annotations

import json

import pytest

from .conftest import run

pytest.importorskip("bitsandbytes")


def memory(model: str, *options: str) -> dict[str, object]:
    shown = run("memory", model, *options, "--format", "json")
    assert shown.code == 0, shown.err
    found: dict[str, object] = json.loads(shown.out)["predicted"]
    return found


@pytest.mark.parametrize("mode", ["generate", "forward"])
@pytest.mark.parametrize("scheme", ["bnb-nf4", "bnb-fp4", "bnb-nf4-double", "bnb-int8"])
def test_what_bitsandbytes_multiplies_has_a_peak(scheme: str, mode: str) -> None:
    found = memory("catalog:Qwen/Qwen3-0.6B", "--dtype", scheme, "--mode", mode, "--context", "64", "--new-tokens", "2")
    dense = memory("catalog:Qwen/Qwen3-0.6B", "--mode", mode, "--context", "64", "--new-tokens", "2")
    assert found["method"] == "trace"
    assert found["peak_allocated_bytes"] < dense["peak_allocated_bytes"]  # type: ignore[operator]
    assert found["required_bytes"] is not None


def test_a_fit_of_it_is_certain() -> None:
    asked = ("fit", "catalog:Qwen/Qwen3-0.6B", "--dtype", "bnb-nf4", "--context", "64", "--new-tokens", "2")
    shown = run(*asked, "--memory", "24GiB", "--format", "json")
    found = json.loads(shown.out)
    assert (shown.code, found["fits"], found["lower_bound_only"]) == (0, True, False)

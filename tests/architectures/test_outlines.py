"""Families known by their modules are, in every detail, what transformers builds on the meta device and keeps."""

from __future__ import annotations

import pytest

from ..support.outlines import VARIED, assert_is_what_transformers_builds, beside_transformers, mutated, varied


@pytest.mark.parametrize("model_type", VARIED)
def test_a_family_is_what_transformers_builds(model_type: str) -> None:
    for seed in range(2):
        assert_is_what_transformers_builds(varied(model_type, seed))


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(2, 40))
@pytest.mark.parametrize("model_type", VARIED)
def test_many_configurations_are_what_transformers_builds(model_type: str, seed: int) -> None:
    assert_is_what_transformers_builds(varied(model_type, seed))


@pytest.mark.exhaustive
@pytest.mark.parametrize("model_type", VARIED)
def test_no_change_of_a_configuration_gives_another_count_than_transformers(model_type: str) -> None:
    answers = [beside_transformers(mutated(varied(model_type, seed % 7), seed)[0]) for seed in range(300)]
    assert answers.count("equal") >= 60

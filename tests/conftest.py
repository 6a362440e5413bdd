"""What the tests share: running the command line, writing real model directories, sparse files of real sizes."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path

import pytest

from .support.browser import browser
from .support.models import TINY_QWEN3
from .support.prepared import Finished

__all__ = ["Finished", "browser"]  # of which the second is a fixture, for every test

# As in a job in the background, whose commands would ignore it too, and with them the tests of interruption.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Threads that wait for each other take most of the time of models so small, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

MANY_MODULES = 40
_frozen_modules = 0


def pytest_runtest_setup() -> None:
    """Keeps what imports have made out of garbage collections: with torch and transformers each full one takes 0.2 seconds."""
    global _frozen_modules
    if len(sys.modules) > _frozen_modules + MANY_MODULES:
        _frozen_modules = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that transformers itself saved: TINY_QWEN3 with random weights in one safetensors file."""
    import torch
    from transformers import AutoConfig, Qwen3ForCausalLM

    directory = tmp_path_factory.mktemp("tiny_qwen3")
    config = AutoConfig.for_model(**TINY_QWEN3)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory

"""Training's peaks against published ones, from the command line: writes benchmarks/training.md (`make training`).

Needs the torch and peft extras; a quarter of an hour, most of it for MemTracker.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from qwen_inspect.renderers import markdown
from qwen_inspect.renderers.blocks import Heading, Paragraph, Table
from qwen_inspect.structure.inspect import inspect

HERE = Path(__file__).parent
PAGE = HERE / "training.md"
GB = 10**9
# What the published runs have in common, as options, and what their training has besides.
CARD = ("--gpu", "RTX A6000", "--context", "2048", "--load", "per-tensor", "--transformers", "4.57")
LOOP = ("--keep-gradients", "--keep-logits")
ADAPTED = ("--lora-targets", "q_proj,k_proj,v_proj,o_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A published peak. options: of `memory`, without those of CARD, LOOP and ADAPTED."""

    model: str
    mode: str
    options: Sequence[str]
    published_gb: float
    vramcalc_gb: float

    def words(self, config: str) -> tuple[str, ...]:
        """The command line that predicts it."""
        loop = LOOP if self.mode == "train" else ()
        adapted = ADAPTED if "--lora" in self.options else ()
        return "memory", config, "--mode", self.mode, *CARD, *loop, *self.options, *adapted


def published() -> Iterator[Published]:
    with open(HERE / "published" / "training_a6000.csv", newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(line for line in stream if not line.startswith("#")):
            yield Published(
                model=row["model"],
                mode=row["mode"],
                options=row["options"].split(),
                published_gb=float(row["published_gb"]),
                vramcalc_gb=float(row["vramcalc_gb"]),
            )


def named(model: str, folder: Path) -> str:
    """The model as the command line takes it: of the catalog, or a folder with its configuration."""
    configs = json.loads((HERE / "published" / "llama_3_2.json").read_text(encoding="utf-8"))
    if model not in configs:
        return f"catalog:Qwen/{model}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(configs[model]), encoding="utf-8")
    return str(folder)


def predicted_bytes(row: Published, folder: Path) -> int:
    words = [*row.words(named(row.model, folder / row.model)), "--format", "json", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "qwen_inspect", *words], capture_output=True, text=True, check=True, cwd=HERE.parent
    )
    peak: int = json.loads(done.stdout)["predicted"]["peak_allocated_bytes"]
    return peak


def tracked(row: Published, folder: Path) -> tuple[int, str]:
    """The peak by torch's MemTracker, and the version of transformers that it was tracked with: the installed one's, or that in
    the folder MEMTRACKER_PACKAGES (`pip install --target`).
    """
    config = folder / "tracked.json"
    config.write_text(json.dumps(dict(inspect(named(row.model, folder / row.model)).config or {})), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.environ.get("MEMTRACKER_PACKAGES", "")}
    words = [sys.executable, str(HERE / "memtracker.py"), str(config), row.mode, *row.options]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    told = json.loads(done.stdout.splitlines()[-1])
    return told["peak_bytes"], told["transformers"]


def beside(gb: float, published_gb: float, *, places: int) -> list[str]:
    """A prediction and its error."""
    return [f"{gb:.{places}f}", f"{gb / published_gb - 1:+.2%}"]


def page() -> str:
    rows, versions = [], set()
    with tempfile.TemporaryDirectory() as folder:
        for row in published():
            gb = predicted_bytes(row, Path(folder)) / GB
            others, transformers = tracked(row, Path(folder))
            versions.add(transformers)
            rows.append(
                [
                    row.model,
                    " ".join(("--mode", row.mode, *row.options)),
                    f"{row.published_gb:.2f}",
                    *beside(gb, row.published_gb, places=3),
                    *beside(row.vramcalc_gb, row.published_gb, places=2),
                    *beside(others / GB, row.published_gb, places=3),
                ]
            )
    return markdown.render(
        [
            Heading("Training against published peaks", 1),
            Paragraph(
                "torch.cuda.max_memory_allocated of an RTX A6000 (torch 2.14.1, transformers 4.57.6, batch 1, 2,048 tokens, GB "
                "of 10^9 B, printed to 0.01), published by vramcalc 0.1.2 with its own predictions; nothing is fitted to them. "
                f"All rows with {' '.join(CARD)}; training with {' '.join(LOOP)}; adapters with {' '.join(ADAPTED)}. "
                f"MemTracker is torch's ({version('torch').partition('+')[0]}), around the published loop on fake CPU tensors, "
                f"with transformers {', '.join(sorted(versions))}; hooks on frozen parameters, at which it stops, are left out. "
                "Written by make training."
            ),
            Table(
                [
                    "Model",
                    "Options",
                    "Published",
                    "Predicted",
                    "Error",
                    "vramcalc",
                    "Its error",
                    "MemTracker",
                    "Its error",
                ],
                rows,
                "llrrrrrrr",
            ),
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

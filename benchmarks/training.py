"""Training's peaks against published ones, from the command line: writes benchmarks/training.md (`make training`).

Needs the torch and peft extras; two minutes.
"""

from __future__ import annotations

import csv
import json
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


def memtracker_bytes(row: Published, folder: Path) -> int:
    """The forward's peak by torch's MemTracker: the class of the installed transformers on fake CPU tensors."""
    import torch
    import transformers
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    config = dict(inspect(named(row.model, folder / row.model)).config or {})
    kernel = row.options[row.options.index("--attention") + 1]
    with FakeTensorMode():
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**config), dtype=torch.bfloat16, attn_implementation=kernel
        ).eval()
        tracker = MemTracker()
        tracker.track_external(model)
        with torch.no_grad(), tracker:
            outputs = model(input_ids=torch.zeros(1, 2048, dtype=torch.int64))
        del outputs
    return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


def beside(gb: float | None, published_gb: float, *, places: int) -> list[str]:
    """A prediction and its error; dashes without one."""
    return ["–", "–"] if gb is None else [f"{gb:.{places}f}", f"{gb / published_gb - 1:+.2%}"]


def page() -> str:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in published():
            gb = predicted_bytes(row, Path(folder)) / GB
            tracked = memtracker_bytes(row, Path(folder)) / GB if row.mode == "forward" else None
            rows.append(
                [
                    row.model,
                    " ".join(("--mode", row.mode, *row.options)),
                    f"{row.published_gb:.2f}",
                    *beside(gb, row.published_gb, places=3),
                    *beside(row.vramcalc_gb, row.published_gb, places=2),
                    *beside(tracked, row.published_gb, places=3),
                ]
            )
    return markdown.render(
        [
            Heading("Training against published peaks", 1),
            Paragraph(
                "torch.cuda.max_memory_allocated of an RTX A6000 (torch 2.14.1, transformers 4.57.6, batch 1, 2,048 tokens, GB "
                "of 10^9 B, printed to 0.01), published by vramcalc 0.1.2 with its own predictions; nothing is fitted to them. "
                f"All rows with {' '.join(CARD)}; training with {' '.join(LOOP)}; adapters with {' '.join(ADAPTED)}. "
                f"MemTracker is torch's ({version('torch').partition('+')[0]}), of forwards alone, on fake CPU tensors with the "
                f"class of transformers {version('transformers')}. Written by make training."
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

"""Every recorded run beside what is predicted for it: writes benchmarks/recorded/predicted.json (`make recorded`).

Needs torch, peft and bitsandbytes, and some minutes: most traces are taken anew. reports/accuracy.md shows the file, and
tests/predicting/test_recordings.py holds it to the recordings, to predictions of today (all of them under the slow mark), and to
its causes. Names as arguments: only these, the rest of the file stays.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.accuracy import (
    CATALOG,
    CAUSES,
    PREDICTED_FILE,
    recorded_model,
    recorded_peaks,
    recorded_run,
)
from benchmarks.recordings import Recording, each
from qwen_inspect.predicting.predict import predict
from qwen_inspect.results.media import Media, Medium, Shape, Typed
from qwen_inspect.results.memory import Run
from qwen_inspect.results.model import Report
from qwen_inspect.tracing import versions

CONFIGS = Path(__file__).parent / "gpu" / "configs"
PUBLISHED_MODELS = Path(__file__).parent.parent / "tests" / "support" / "published_models.json"
FOLDERS = ("h100", "h100-second")
# As the recorder asked BitsAndBytesConfig for them.
QUANTISED = {
    "nf4": {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "bfloat16",
    },
    "int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "nf4double": {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    },
}


def model_of(recording: Recording) -> Report:
    """The model of a recorded run. The recorder of `h100` asked AutoModelForCausalLM for it, which makes text classes."""
    config = _config(recording.model)
    if "text_config" in config and recording.workload != "image" and recording.name in _first():
        text_class = config["architectures"][0].replace("ForConditionalGeneration", "ForCausalLM")
        config = {**config["text_config"], "architectures": [text_class]}
    if recording.options["quant"]:
        config = {**config, "quantization_config": QUANTISED[recording.options["quant"]]}
    return recorded_model(recording, config)


def _config(model: str) -> dict[str, Any]:
    """The model's configuration without a quantisation: what was recorded was dense."""
    own = CONFIGS / f"{model.rpartition('/')[2]}.json"
    if own.is_file():
        config = json.loads(own.read_text(encoding="utf-8"))
    else:
        catalog = json.loads(CATALOG.read_text(encoding="utf-8"))
        published = json.loads(PUBLISHED_MODELS.read_text(encoding="utf-8"))
        config = (catalog.get(model) or published[model])["config"]
    return {key: value for key, value in config.items() if key != "quantization_config"}


def _first() -> set[str]:
    return {path.stem for path in (Path(__file__).parent / "recorded" / FOLDERS[0]).glob("*.xz")}


def unpredicted(recording: Recording) -> str | None:
    """Why there is no prediction of a run; None where there is one."""
    return CAUSES[recording.name] if recording.options["cache"] else None


def run_of(recording: Recording, report: Report) -> Run:
    """The recorded run; its images are square, their pixels in the model's dtype."""
    run = recorded_run(recording)
    if recording.workload != "image":
        return run
    options, patch = recording.options, dict(report.config or {})["vision_config"].get("patch_size", 14)
    sides = [int(side) for side in str(options.get("images") or options["side"]).split("+")]
    media = Media(items=tuple(_square(side, patch) for side in sides), images=None, videos=None, pixel_dtype="bfloat16")
    return replace(run, media=media)


def _square(side: int, patch: int) -> Medium:
    rows = side // patch
    shape = Shape(height=side, width=side, grid=(1, rows, rows), tokens=rows**2 // 4)
    return Medium(typed=Typed(text=f"{side}x{side}", width=side, height=side), shape=shape)


def row(recording: Recording) -> dict[str, Any]:
    """A run's peaks in bytes, [predicted, recorded] of each; predicted: None where there is no prediction."""
    allocated, reserved = recorded_peaks(recording)
    told: tuple[int | None, int | None] = (None, None)
    if unpredicted(recording) is None:
        report = model_of(recording)
        footprint = predict(report, run_of(recording, report)).predicted
        told = footprint.peak_allocated_bytes, footprint.peak_reserved
    options = recording.options
    return {
        "model": recording.model,
        "workload": recording.workload,
        **{key: options[key] for key in ("layers", "batch", "context", "new")},
        "allocated": [told[0], allocated],
        "reserved": [told[1], reserved],
    }


def runs(names: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for folder in FOLDERS:
        for recording in each(folder):
            if not names or recording.name in names:
                print(recording.name, file=sys.stderr, flush=True)
                yield recording.name, row(recording)


def main() -> int:
    names = set(sys.argv[1:])
    rows = json.loads(PREDICTED_FILE.read_text(encoding="utf-8"))["runs"] if names else {}
    content = {"versions": versions(), "runs": {**rows, **dict(runs(names))}}
    PREDICTED_FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The largest image, the most images and the longest video that fit are told apart from the next ones by whole traces."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.media.counting import media_of
from qwen_inspect.predicting import sources
from qwen_inspect.predicting.footprint import traced_footprint
from qwen_inspect.results.media import Request, Typed, TypedAudio
from qwen_inspect.results.memory import ANY_CONTEXT_BYTES, Run
from qwen_inspect.results.model import Report
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.tracing.trace import trace

from ..support.families import FAMILIES
from ..support.hearing import hearing
from ..support.invoking import Capture, invoke, refusal
from ..support.models import write_config
from ..support.schema import assert_keeps_to_the_schema

TEXT = 2048  # tokens beside the images, if --context is not given
TOKENS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}


def seeing(folder: Path, layers: int = 3) -> Path:
    """A small Qwen3-VL whose first layer adds features of the tower, with positions for long prompts."""
    config: dict[str, Any] = {**FAMILIES["qwen3_vl"], **TOKENS}
    text = {**config["text_config"], "num_hidden_layers": layers, "max_position_embeddings": 32_768}
    vision = {**config["vision_config"], "patch_size": 16, "spatial_merge_size": 2}
    return write_config(folder, {**config, "text_config": text, "vision_config": vision})


def whole_bytes(report: Report, *typed: Typed) -> int:
    """Reserved bytes and the largest CUDA context, by a trace of all layers."""
    media = media_of(report.config or {}, {}, Request(typed=typed))
    run = sources.with_kernel(Run(media=media, prompt_tokens=TEXT + media.context_tokens), report)
    timeline = trace(report.spec, report.config or {}, sources.trace_request(run))
    reserved = traced_footprint(timeline, run, provenance="").peak_reserved
    assert reserved is not None
    return reserved + ANY_CONTEXT_BYTES[1]


def sized(width: int, height: int) -> Typed:
    return Typed(text="", width=width, height=height)


def test_the_most_that_fits_does_and_the_next_does_not(tmp_path: Path, capsys: Capture) -> None:
    """Of a square image, which the tower takes in steps of 32 pixels, and of a number of equal ones."""
    folder = seeing(tmp_path)
    report = inspect(str(folder))
    room = whole_bytes(report, sized(800, 800))
    shown = invoke(capsys, "fit", folder, "--image", "512x512", "--memory", f"{room}B", "--format", "json")
    answer = json.loads(shown.out)
    assert_keeps_to_the_schema(answer)
    reaches = {reach["kind"]: reach for reach in answer["media"]}
    assert answer["fits"] is True
    assert {reach["bound"] for reach in reaches.values()} == {"memory"}

    side = reaches["square"]["width"]
    assert whole_bytes(report, sized(side, side)) == reaches["square"]["required_bytes"] <= room
    assert whole_bytes(report, sized(side + 32, side + 32)) > room
    many = reaches["images"]["count"]
    assert whole_bytes(report, *[sized(512, 512)] * many) == reaches["images"]["required_bytes"] <= room
    assert whole_bytes(report, *[sized(512, 512)] * (many + 1)) > room


@pytest.mark.exhaustive
def test_what_does_not_fit_is_told_its_most_pixels(tmp_path: Path, capsys: Capture) -> None:
    """With the suggested --max-pixels the command fits."""
    folder = seeing(tmp_path)
    room = f"{whole_bytes(inspect(str(folder)), sized(800, 800))}B"
    asked = ("fit", folder, "--image", "1600x1600", "--memory", room, "--format", "json")
    answer = json.loads(invoke(capsys, *asked).out)
    assert answer["fits"] is False
    pixels = next(change["change"] for change in answer["suggestions"] if change["kind"] == "max_pixels").split()[-1]
    fitting = json.loads(invoke(capsys, *asked, "--max-pixels", pixels.rstrip(")")).out)
    assert fitting["fits"] is True


@pytest.mark.exhaustive
def test_a_video_that_does_not_fit_is_told_its_most_pixels_and_frames(tmp_path: Path, capsys: Capture) -> None:
    """With the suggested --total-pixels or --fps the command fits; the longest video fits and one of a second more does not."""
    folder = seeing(tmp_path)
    report = inspect(str(folder))
    room = whole_bytes(report, video(6))
    asked = ("fit", folder, "--video", "512x384x20s@8fps", "--memory", f"{room}B", "--format", "json")
    answer = json.loads(invoke(capsys, *asked).out)
    assert answer["fits"] is False
    changes = {change["kind"]: change["change"] for change in answer["suggestions"]}
    for kind in ("total_pixels", "fps"):
        value = re.search(r"--[a-z-]+ ([0-9.]+)", changes[kind])
        assert value is not None
        fitting = json.loads(invoke(capsys, *asked, f"--{kind.replace('_', '-')}", value[1]).out)
        assert fitting["fits"] is True
    (longest,) = answer["media"]
    seconds = longest["seconds"]
    assert whole_bytes(report, video(seconds)) == longest["required_bytes"] <= room
    assert whole_bytes(report, video(seconds + 1)) > room


@pytest.mark.exhaustive
def test_the_longest_audio_fits_and_one_of_a_second_more_does_not(tmp_path: Path, capsys: Capture) -> None:
    config = hearing("qwen3_omni_moe_thinker")
    config["text_config"] |= {"num_hidden_layers": 2, "max_position_embeddings": 32_768}
    report = inspect(str(write_config(tmp_path, config)))

    def needed(seconds: int) -> int:
        audio = (TypedAudio(text="", samples=seconds, rate=1),)
        media = media_of(report.config or {}, {}, Request(audio=audio))
        run = sources.with_kernel(Run(media=media, prompt_tokens=TEXT + media.context_tokens), report)
        timeline = trace(report.spec, report.config or {}, sources.trace_request(run))
        reserved = traced_footprint(timeline, run, provenance="").peak_reserved
        assert reserved is not None
        return reserved + ANY_CONTEXT_BYTES[1]

    room = needed(40)
    asked = ("fit", tmp_path, "--audio", "5s", "--memory", f"{room}B")
    answer = json.loads(invoke(capsys, *asked, "--format", "json").out)
    assert_keeps_to_the_schema(answer)
    assert answer["fits"] is True
    (longest,) = answer["media"]
    seconds = longest["seconds"]
    assert (longest["kind"], longest["bound"], longest["width"]) == ("audio", "memory", None)
    assert needed(seconds) == longest["required_bytes"] <= room < needed(seconds + 1)
    assert longest["tokens"] == 13 * seconds  # of Qwen3-Omni, a second
    assert f"longest audio {seconds} s" in invoke(capsys, *asked).out


def video(seconds: int) -> Typed:
    return Typed(text="", width=512, height=384, seconds=Fraction(seconds), fps=Fraction(8))


@pytest.mark.parametrize("options", [("--engine", "vllm"), ("--padded",), ("--cache", "static")])
def test_images_are_for_transformers_without_padding(tmp_path: Path, capsys: Capture, options: tuple[str, ...]) -> None:
    folder = seeing(tmp_path)
    assert "--image" in refusal(capsys, 2, "fit", folder, "--image", "512x384", "--memory", "8GiB", *options)


def test_more_of_what_the_processor_shrinks_is_bounded_by_it(tmp_path: Path, capsys: Capture) -> None:
    """A token is of 32 x 32 pixels: 1,048,576 pixels are 1,024."""
    asked = ("--image", "512x512", "--memory", "64GiB", "--max-pixels", "1048576", "--context", "8k")
    square, images = json.loads(invoke(capsys, "fit", seeing(tmp_path), *asked, "--format", "json").out)["media"]
    assert (square["bound"], square["tokens"]) == ("processor", 1024)
    assert images["bound"] == "context"
    assert images["count"] == 8192 // 256

"""Which of a model's files set the numbers of its processors, and what the command says of images and videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.checkpoint import ModelRef
from qwen_inspect.errors import MalformedError, UnsupportedError
from qwen_inspect.loaders.processors import read_processors
from qwen_inspect.loaders.resolve import Access
from qwen_inspect.media.counting import media_of
from qwen_inspect.media.processors import PROCESSOR_FILES
from qwen_inspect.results.media import Request, Typed, TypedAudio

from ..hub.server import HubRepo, HubServer
from ..support.asking import ask_json
from ..support.families import TINY_QWEN3_VL
from ..support.invoking import Capture, invoke, refusal
from ..support.schema import assert_keeps_to_the_schema

HEARING = "catalog:Qwen/Qwen2-Audio-7B"
SEEING = "catalog:Qwen/Qwen3-VL-4B-Instruct"
CONFIG = {"model_type": "qwen3_vl", "vision_config": {"patch_size": 16, "spatial_merge_size": 2}}
SMALL = {"size": {"shortest_edge": 1024, "longest_edge": 256 * 256}, "patch_size": 16}
IMAGE = Request(typed=(Typed(text="", width=1024, height=1024),))


def tokens(files: dict[str, dict[str, Any]]) -> tuple[int, str | None]:
    media = media_of(CONFIG, files, IMAGE)
    assert media.images is not None
    return media.tokens, media.images.file


def test_the_file_of_the_whole_processor_comes_before_that_of_the_images() -> None:
    nested = {"image_processor": SMALL, "processor_class": "Qwen3VLProcessor"}
    # 256 x 256 pixels are 64 squares of 32. Source: get_image_processor_dict
    assert tokens({"processor_config.json": nested, "preprocessor_config.json": {}}) == (64, "processor_config.json")
    assert tokens({"processor_config.json": {}, "preprocessor_config.json": SMALL}) == (64, "preprocessor_config.json")


def test_without_a_file_the_numbers_are_those_of_the_releases() -> None:
    assert tokens({}) == (1024, None)  # within Qwen/Qwen3-VL-8B-Instruct's 65,536 to 16,777,216 pixels


def test_a_file_without_a_number_means_that_of_the_class() -> None:
    # Qwen2VLImageProcessor.size: at most 28 * 28 * 1280 = 1,003,520 pixels, so 992 x 992 and 31 x 31 tokens
    assert tokens({"preprocessor_config.json": {"patch_size": 16}}) == (961, "preprocessor_config.json")


def test_a_damaged_number_and_an_unknown_processor_are_refused() -> None:
    for value in (0, -1, "a", True, 1.5, [1]):
        with pytest.raises(MalformedError):
            tokens({"preprocessor_config.json": {"max_pixels": value}})
    with pytest.raises(UnsupportedError):
        tokens({"preprocessor_config.json": {"image_processor_type": "NewImageProcessor"}})
    assert tokens({"preprocessor_config.json": {**SMALL, "image_processor_type": "Qwen2VLImageProcessorFast"}})[0] == 64


def test_the_files_of_a_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SMALL))
    ref = ModelRef(source="local", id="model", path=tmp_path)
    assert read_processors(ref, PROCESSOR_FILES, Access()) == {"preprocessor_config.json": SMALL}


def test_the_files_of_a_repository_are_read_and_kept(tmp_path: Path) -> None:
    files = {"config.json": json.dumps(TINY_QWEN3_VL).encode(), "preprocessor_config.json": json.dumps(SMALL).encode()}
    with HubServer([HubRepo("org/seeing", files)]) as hub:
        asked = ("attention", "hf:org/seeing", "--image", "1024x1024")
        for more in ((), ("--offline",)):
            media = ask_json(hub, tmp_path, *asked, *more)["media"]
            assert (media["items"][0]["resized_width"], media["images"]["file"]) == (256, "preprocessor_config.json")


def test_attention_counts_images_in_the_answer_and_in_json(capsys: Capture) -> None:
    shown = invoke(capsys, "attention", SEEING, "--image", "1024x768", "--image", "32x32", "--format", "json")
    content = json.loads(shown.out)
    assert_keeps_to_the_schema(content)
    # 1024 x 768 in squares of 32 pixels; 32 x 32 is enlarged to the least of 65,536 pixels.
    assert [item["tokens"] for item in content["media"]["items"]] == [768, 64]
    assert "Images and videos take 832 tokens of the context (images: 2)." in content["answer"]


def test_attention_counts_audio_and_says_what_is_cut(capsys: Capture) -> None:
    asked = ("attention", HEARING, "--audio", "45.5s", "--audio", "3s")
    content = json.loads(invoke(capsys, *asked, "--format", "json").out)
    assert_keeps_to_the_schema(content)
    media = content["media"]
    # 25 tokens a second of at most 30 s; spectrograms of 128 x 3,000 float32 whatever the length.
    assert [(clip["taken_seconds"], clip["tokens"]) for clip in media["clips"]] == [(30, 750), (3, 75)]
    assert (media["context_tokens"], media["feature_bytes"]) == (825, 2 * 128 * 3000 * 4)
    assert "Images, videos and audio take 825 tokens of the context (clips of audio: 2)." in content["answer"]
    assert "Of 45.5s the processor takes the first 30 s and cuts the rest." in invoke(capsys, *asked).out


def test_the_audio_part_of_the_processors_file_comes_before_its_own_file() -> None:
    config, audio = {"model_type": "qwen2_audio", "audio_config": {}}, TypedAudio(text="", samples=50, rate=1)
    own: dict[str, Any] = {"chunk_length": 10}
    part: dict[str, Any] = {"feature_extractor": {"chunk_length": 20}}
    for files, tokens in (({"preprocessor_config.json": own}, 250), ({"processor_config.json": part}, 500)):
        both = {"preprocessor_config.json": own, **files}
        assert media_of(config, both, Request(audio=(audio,))).tokens == tokens  # 25 a second


def test_memory_has_a_prompt_beside_the_images_and_refuses_what_is_for_text_alone(capsys: Capture) -> None:
    memory = ("memory", SEEING, "--image", "1024x768")
    for more, words in ((("--tp", "2"), "--tp"), (("--device", "cpu"), "--device"), (("--padded",), "--padded")):
        assert words in refusal(capsys, 2, *memory, *more)
    assert "767" in refusal(capsys, 2, *memory, "--context", "767")


REFUSED = {
    (SEEING, "--image", "10x3000"): (2, "more than 200 times"),
    (SEEING, "--image", "absent.png"): (3, "absent.png"),
    (SEEING, "--image", "0x5"): (2, "no whole token"),
    (SEEING, "--image", "1024x1024", "--context", "100"): (2, "1,024 tokens"),
    (SEEING, "--image", "1024x1024", "--fps", "2"): (2, "--video"),
    (SEEING, "--image", "1024x1024", "--min-pixels", "99999999"): (2, "99,999,999"),
    (SEEING, "--video", "1280x720x0.5s@2fps"): (2, "at least 2 frames"),
    (SEEING, "--video", "1280x720"): (2, "not a video"),
    (SEEING, "--max-pixels", "1000"): (2, "needs --image or --video"),
    ("catalog:Qwen/Qwen3-4B", "--image", "10x10"): (7, "no vision tower"),
    (SEEING, "--audio", "30s"): (7, "no audio tower"),
    (HEARING, "--audio", "0.000s"): (2, "no whole token"),
    (HEARING, "--audio", "0.001s"): (2, "no whole token"),
    (HEARING, "--audio", "90000s"): (2, "86,400 seconds"),
    (HEARING, "--audio", "30"): (3, "seconds such as 30s"),
    (HEARING, "--audio", "30s", "--max-pixels", "9"): (2, "needs --image or --video"),
    (HEARING, "--audio", "30s", "--context", "749"): (2, "750 tokens"),
    (HEARING, "--image", "10x10"): (7, "no vision tower"),
    ("catalog:google/gemma-4-31B-it", "--audio", "30s"): (7, "no audio tower"),
    ("catalog:google/gemma-3-4b-it", "--video", "10x10x3s"): (7, "no videos"),
    ("catalog:google/gemma-3-4b-it", "--image", "10x10", "--max-pixels", "9"): (2, "--max-pixels"),
}


@pytest.mark.parametrize("part", [{}, {"vision_config": None}])
def test_gemma_4_without_a_tower_takes_no_images(part: dict[str, Any]) -> None:
    """Source: transformers 5.23, Gemma4Config, whose vision_config is then None"""
    with pytest.raises(UnsupportedError, match="no vision tower"):
        media_of({"model_type": "gemma4", **part}, {}, Request(typed=(Typed(text="", width=9, height=9),)))


@pytest.mark.parametrize("asked", REFUSED)
def test_what_cannot_be_counted_is_refused_in_one_sentence(asked: tuple[str, ...], capsys: Capture) -> None:
    code, words = REFUSED[asked]
    assert words in refusal(capsys, code, "attention", *asked)

"""Frames and tokens of audio are those of transformers' processors, for random lengths and for several clips together."""

from __future__ import annotations

import importlib
import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import pytest

from qwen_inspect.errors import MalformedError, UnsupportedError, UsageError
from qwen_inspect.media.counting import media_of
from qwen_inspect.media.extractors import FAMILIES
from qwen_inspect.media.hearing import RULES
from qwen_inspect.results.media import Clip, Request, TypedAudio

RATE = 16_000
CASES = 500
FILE = "preprocessor_config.json"
# The processor, and what a release's file says beside its class's own numbers.
PROCESSORS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "qwen2_audio": ("qwen2_audio", "Qwen2AudioProcessor", {"feature_size": 128, "chunk_length": 3}),
    "qwen2_5_omni_thinker": ("qwen2_5_omni", "Qwen2_5OmniProcessor", {"feature_size": 128, "chunk_length": 4}),
    "qwen3_omni_moe_thinker": ("qwen3_omni_moe", "Qwen3OmniMoeProcessor", {"feature_size": 128}),
    "qwen3_asr": ("qwen3_asr", "Qwen3ASRProcessor", {}),
    "gemma3n": ("gemma3n", "Gemma3nProcessor", {}),
    "gemma4": ("gemma4", "Gemma4Processor", {}),
    "phi4_multimodal": ("phi4_multimodal", "Phi4MultimodalProcessor", {}),
}
MASKS = ("feature_attention_mask", "input_features_mask")


def clips(model_type: str, file: Mapping[str, Any], samples: Sequence[int], rate: int = RATE) -> tuple[Clip, ...]:
    config = {"model_type": model_type, "audio_config": {}}
    audio = tuple(TypedAudio(text="", samples=number, rate=rate) for number in samples)
    return media_of(config, {FILE: file} if file else {}, Request(audio=audio)).clips


class Real:
    """A processor without its tokenizer, and its feature extractor. cheap: the spectrogram has its shape and no content."""

    def __init__(self, model_type: str, *, cheap: bool) -> None:
        for library in ("numpy", "torch", "transformers"):
            pytest.importorskip(library)
        folder, name, self.file = PROCESSORS[model_type]
        extracting = importlib.import_module(
            f"transformers.models.{'whisper' if FAMILIES[model_type][0].startswith('Whisper') else folder}"
            f".feature_extraction_{'whisper' if FAMILIES[model_type][0].startswith('Whisper') else folder}"
        )
        self.extractor = getattr(extracting, FAMILIES[model_type][0])(**self.file)
        if cheap:
            self._without_content()
        processing = getattr(importlib.import_module(f"transformers.models.{folder}.processing_{folder}"), name)
        self.processor = processing.__new__(processing)
        self.processor.feature_extractor = self.processor.audio_processor = self.extractor
        self.processor.audio_token = self.processor.audio_token_id = "A"
        self.processor.boa_token = self.processor.eoa_token = "|"
        self.processor.full_audio_sequence = f"||{'A' * 188}||"  # Gemma3nProcessor.__init__, with its default
        self.options = dict(getattr(processing, "audio_kwargs", None) or {})

    def _without_content(self) -> None:
        import numpy

        size, hop = self.extractor.feature_size, self.extractor.hop_length

        def features(waveform: Any, *_: Any) -> Any:
            if waveform.shape[1] <= self.extractor.n_fft // 2:
                raise RuntimeError("as torch.stft, which cannot mirror so much")
            return numpy.zeros((waveform.shape[0], size, waveform.shape[1] // hop), dtype=numpy.float32)

        if hasattr(self.extractor, "n_samples"):
            self.extractor._torch_extract_fbank_features = features

    def heard(self, samples: Sequence[int], *, noisy: bool = False) -> list[tuple[int, int | None, int, int]] | None:
        """Frames, those that count, tokens and marks of each clip; None if the processor fails, or finds no token."""
        import numpy

        chance = numpy.random.default_rng(len(samples))
        audio = [
            chance.standard_normal(number, dtype=numpy.float32) if noisy else numpy.zeros(number, dtype=numpy.float32)
            for number in samples
        ]
        try:
            made, texts = self.processor._process_audio(audio, **self.options)
        except (RuntimeError, IndexError, ValueError):
            return None
        features = made["audio_input_features" if "audio_input_features" in made else "input_features"]
        mask = next((made[name] for name in MASKS if name in made), None)
        across = 1 if "audio_input_features" in made or self.processor.boa_token in texts[0] else 2
        frames = [numpy.asarray(each).shape[across - 1] for each in features]
        valid = [None if mask is None else int(numpy.asarray(mask[index]).sum()) for index in range(len(samples))]
        tokens = [text.count("A") for text in texts]
        if min(tokens) < 1:
            return None
        return list(zip(frames, valid, tokens, (text.count("|") for text in texts), strict=True))


def ours(model_type: str, file: Mapping[str, Any], samples: Sequence[int]) -> list[tuple[int, int, int, int]] | None:
    try:
        found = clips(model_type, file, samples)
    except UsageError:
        return None
    return [(clip.frames, clip.valid, clip.tokens, clip.marks) for clip in found]


def lengths(seed: str, number: int, most: float = 21.0) -> list[list[int]]:
    """Of one to three clips, the shortest of a sample, the longest of more than 30 seconds; of one clip for Qwen3-ASR."""
    chance = random.Random(seed)
    several = 1 if "asr" in seed else 3
    return [[int(2 ** chance.uniform(0, most)) for _ in range(chance.randint(1, several))] for _ in range(number)]


def compare(model_type: str, cases: Sequence[Sequence[int]], real: Real, *, noisy: bool) -> None:
    for case in cases:
        expected, found = real.heard(case, noisy=noisy), ours(model_type, real.file, case)
        if expected is not None and expected[0][1] is None and found is not None:  # Phi-4 makes no mask of one clip
            expected = [(*real[:1], our[1], *real[2:]) for real, our in zip(expected, found, strict=True)]
        assert found == expected, case


@pytest.mark.parametrize("model_type", PROCESSORS)
def test_tokens_are_those_of_the_processor(model_type: str) -> None:
    """Lengths by the processor's own code; where the spectrogram's content is not needed, it has none."""
    real = Real(model_type, cheap=True)
    many = CASES if hasattr(real.extractor, "n_samples") else CASES // 10
    compare(model_type, lengths(model_type, many, 19.5), real, noisy=False)


@pytest.mark.parametrize("model_type", PROCESSORS)
def test_tokens_are_those_of_the_processor_that_hears_noise(model_type: str) -> None:
    """Lengths near where a frame, a chunk or the longest audio begins, too."""
    around = [[number + step] for number in (200, 400, 8000, 16_000, 480_000) for step in (-1, 0, 1, 161)]
    compare(model_type, [*around, *lengths(f"{model_type} noise", 6)], Real(model_type, cheap=False), noisy=True)


def test_seconds_of_releases() -> None:
    """Qwen2-Audio takes 25 tokens a second of at most 30 s, Qwen2.5-Omni of 300 s; Qwen3-Omni 13, and all of it."""
    seconds = {"qwen2_audio": (750, 480_000), "qwen2_5_omni_thinker": (7500, 4_800_000)}
    for model_type, (tokens, kept) in seconds.items():
        (clip,) = clips(model_type, {}, [400_000], rate=1000)
        assert (clip.tokens, clip.kept, clip.cut_seconds) == (tokens, kept, Fraction(kept, RATE))
    (clip,) = clips("qwen3_omni_moe_thinker", {}, [400_000], rate=1000)
    assert (clip.tokens, clip.cut_seconds) == (400 * 13, None)


def test_other_rates_are_resampled() -> None:
    """44,101 samples at 44.1 kHz are 16,000.4 at 16 kHz, rounded up. Source: librosa 0.11, core.audio.resample"""
    (clip,) = clips("qwen3_omni_moe_thinker", {}, [44_101], rate=44_100)
    assert clip.samples == 16_001


@pytest.mark.parametrize("stated", [{"model_type": "qwen2_5_omni_thinker"}, {}])
def test_a_whole_omni_model_hears_as_its_thinker(stated: Mapping[str, str]) -> None:
    config: dict[str, Any] = {"model_type": "qwen2_5_omni", "thinker_config": {**stated, "audio_config": {}}}
    request = Request(audio=(TypedAudio(text="", samples=RATE, rate=RATE),))
    assert media_of(config, {}, request).tokens == 25


def test_every_family_has_its_rule() -> None:
    assert FAMILIES.keys() == RULES.keys() == PROCESSORS.keys()


def test_damaged_numbers_and_other_extractors_are_refused() -> None:
    for file in ({"hop_length": 0}, {"sampling_rate": "a"}, {"chunk_length": True}):
        with pytest.raises(MalformedError):
            clips("qwen2_audio", file, [RATE])
    with pytest.raises(MalformedError):
        clips("gemma4", {"hop_length_ms": 0.001}, [RATE])
    with pytest.raises(UsageError, match="frames"):
        clips("qwen2_audio", {"chunk_length": 1 << 30, "sampling_rate": 1 << 30}, [RATE])
    for file in ({"feature_extractor_type": "New"}, {"padding_side": "left"}):
        with pytest.raises(UnsupportedError):
            clips("gemma4", file, [RATE])

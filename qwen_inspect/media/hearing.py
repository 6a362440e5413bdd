"""Audio -> its spectrogram's frames and its tokens, by the rules of the model's processor.

Source: transformers 5.23, models/*/processing_*.py and feature_extraction_*.py, SequenceFeatureExtractor.pad; torch.stft, which
has one frame more than whole hops, the last of which is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ..architectures.reading import whole_dtype
from ..errors import UsageError
from ..results.media import Clip, TypedAudio
from ..typed import Any
from ..values import dataclass
from .extractors import extractor_of
from .processors import WHOLE_FILE, Processor, checked_number

LONGEST_SECONDS = 24 * 3600
MOST_FRAMES = 100 * LONGEST_SECONDS  # of releases' processors, which make 100 a second
CHUNK = 100  # frames that Qwen3's encoders take together, n_window of their processors twice
CHUNK_TOKENS = 13  # of each
GEMMA_SAMPLES, GEMMA_MULTIPLE = 480_000, 128  # max_length and pad_to_multiple_of of the feature extractors' calls
GEMMA3N_TOKENS = 188  # audio_seq_length
Numbers = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Heard:
    """Of one of the clips that a processor takes together: samples kept, frames with padding, those marked as audio, tokens."""

    kept: int
    frames: int
    valid: int
    tokens: int


def clips_of(
    config: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]], audio: Sequence[TypedAudio]
) -> tuple[Processor, tuple[Clip, ...]]:
    """The feature extractor, and what it makes of a sequence's audio, all taken in one call.

    Of a file with another rate the samples are as librosa 0.11 resamples it (core.audio.resample: the length rounded up).
    """
    extractor = extractor_of(config, files)
    numbers, model_type = dict(extractor.numbers), str(config["model_type"])
    if model_type == "qwen3_asr" and len(audio) > 1:
        raise UsageError("audio_one", model_type=model_type)
    if model_type == "gemma3n":
        numbers["tokens"] = _of_whole(files, "audio_seq_length", GEMMA3N_TOKENS)
    rule, marks = RULES[model_type]
    rate = numbers["sampling_rate"]
    for typed in audio:
        if typed.seconds > LONGEST_SECONDS:
            raise UsageError("audio_long", text=typed.text, most=LONGEST_SECONDS)
    samples = [math.ceil(typed.samples * (float(rate) / typed.rate)) for typed in audio]
    clips = []
    for typed, number, heard in zip(audio, samples, rule(samples, numbers), strict=True):
        if heard is None or heard.tokens < 1:
            raise UsageError("audio_short", text=typed.text)
        if heard.frames > MOST_FRAMES:
            raise UsageError("audio_frames", text=typed.text, frames=heard.frames, most=MOST_FRAMES)
        clip = Clip(
            typed=typed,
            samples=number,
            kept=heard.kept,
            rate=rate,
            bins=numbers["feature_size"],
            frames=heard.frames,
            valid=heard.valid,
            tokens=heard.tokens,
            marks=marks,
        )
        clips.append(clip)
    return extractor, tuple(clips)


def feature_dtype(config: Mapping[str, Any]) -> str:
    """Of spectrograms on the card: float32, as they are made, but for a tower that does not cast them, so that callers do.

    Source: transformers 5.23, Qwen3ASREncoder.forward; its documentation, docs/source/en/model_doc/qwen3_asr.md
    """
    return whole_dtype(config).torch_name if config["model_type"] == "qwen3_asr" else "float32"


def _of_whole(files: Mapping[str, Mapping[str, Any]], key: str, default: int) -> int:
    """A number of the processor itself."""
    value = files.get(WHOLE_FILE, {}).get(key, default)
    return int(checked_number(key, value, WHOLE_FILE))


def _spectrogram(samples: int, padded: int, hop: int) -> tuple[int, int]:
    """Frames of `padded` samples, and those of them that the mask of `samples` marks. Source: WhisperFeatureExtractor.__call__"""
    frames = padded // hop
    return frames, min(-(-samples // hop), frames)


def _pooled(frames: int) -> int:
    """Tokens of an encoder with a convolution of stride 2 and a pooling of 2. Source: _get_feat_extract_output_lengths"""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def _chunked(frames: int) -> int:
    """Tokens of an encoder with three convolutions of stride 2, which take so many frames together. Source: the same of Qwen3."""
    rest = frames % CHUNK
    for _ in range(3):
        rest = (rest - 1) // 2 + 1
    return rest + frames // CHUNK * CHUNK_TOKENS


def _whisper(samples: Sequence[int], numbers: Numbers) -> list[Heard | None]:
    """All are cut and padded to one length. Source: Qwen2AudioProcessor and Qwen2_5OmniProcessor._process_audio"""
    whole = numbers["chunk_length"] * numbers["sampling_rate"]
    heard: list[Heard | None] = []
    for number in samples:
        kept = min(number, whole)
        frames, valid = _spectrogram(kept, whole, numbers["hop_length"])
        heard.append(Heard(kept, frames, valid, _pooled(valid)))
    return heard


def _omni(samples: Sequence[int], numbers: Numbers) -> list[Heard | None]:
    """None is cut, and all are padded to the longest. Source: Qwen3OmniMoeProcessor.audio_kwargs and _process_audio

    A spectrogram mirrors half a window at both ends, which shorter audio does not have.
    """
    longest = max(samples)
    if longest <= numbers["n_fft"] // 2:
        return [None] * len(samples)
    lengths = [_spectrogram(number, longest, numbers["hop_length"]) for number in samples]
    return [
        Heard(number, frames, valid, _chunked(valid)) for number, (frames, valid) in zip(samples, lengths, strict=True)
    ]


def _asr(samples: Sequence[int], numbers: Numbers) -> list[Heard | None]:
    """The same; the shortest get silence to `min_length`, frames padding to whole chunks. Source: Qwen3ASRFeatureExtractor"""
    filled = _omni([max(number, numbers["min_length"]) for number in samples], numbers)
    return [
        None if heard is None else Heard(number, -(-heard.frames // CHUNK) * CHUNK, heard.valid, heard.tokens)
        for number, heard in zip(samples, filled, strict=True)
    ]


def _gemma_lengths(samples: Sequence[int]) -> tuple[list[int], int]:
    """Samples kept, and to which number all are padded."""
    kept = [min(number, GEMMA_SAMPLES) for number in samples]
    return kept, -(-max(kept) // GEMMA_MULTIPLE) * GEMMA_MULTIPLE


def _frame_and_hop(numbers: Numbers) -> tuple[int, int]:
    """In samples."""
    rate = numbers["sampling_rate"]
    return round(rate * numbers["frame_length_ms"] / 1000.0), round(rate * numbers["hop_length_ms"] / 1000.0)


def _gemma4(samples: Sequence[int], numbers: Numbers) -> list[Heard | None]:
    """A frame counts if its last sample is of the audio, and every fourth frame is a token.

    Source: Gemma4AudioFeatureExtractor._extract_spectrogram, Gemma4Processor.replace_audio_token
    """
    (frame, hop), (kept, padded) = _frame_and_hop(numbers), _gemma_lengths(samples)
    before = frame // 2  # padding
    frames = max(0, (padded + before - frame - 1) // hop + 1)
    heard: list[Heard | None] = []
    for number in kept:
        valid = min(frames, max(0, -(-(number + before - frame) // hop)))
        heard.append(Heard(number, frames, valid, -(-valid // 4)))
    return heard


def _gemma3n(samples: Sequence[int], numbers: Numbers) -> list[Heard | None]:
    """As many tokens of any audio. Source: Gemma3nAudioFeatureExtractor._extract_spectrogram, Gemma3nProcessor"""
    (frame, hop), (kept, padded) = _frame_and_hop(numbers), _gemma_lengths(samples)
    frames = max(0, (padded - frame - 1) // hop + 1)
    return [Heard(number, frames, min(frames, -(-number // hop)), numbers["tokens"]) for number in kept]


def _phi4(samples: Sequence[int], numbers: Numbers) -> list[Heard | None]:
    """Source: Phi4MultimodalFeatureExtractor.__call__ and _compute_audio_embed_size"""
    window, hop = numbers["win_length"], numbers["hop_length"]
    frames = (max(samples) - window) // hop + 1
    heard: list[Heard | None] = []
    for number in samples:
        valid = (number - window) // hop + 1
        tokens = -(-valid * numbers["audio_feat_stride"] // numbers["audio_compression_rate"])
        tokens = -(-tokens // numbers["audio_downsample_rate"])
        heard.append(Heard(number, frames, valid, tokens) if valid > 0 else None)
    return heard


# By model_type: the rule, and the tokens that the processor writes around a clip: Gemma 4's begin and end; Gemma 3n's also a
# blank line before and after.
RULES: Mapping[str, tuple[Callable[[Sequence[int], Numbers], list[Heard | None]], int]] = {
    "qwen2_audio": (_whisper, 0),
    "qwen2_5_omni_thinker": (_whisper, 0),
    "qwen3_omni_moe_thinker": (_omni, 0),
    "qwen3_asr": (_asr, 0),
    "gemma3n": (_gemma3n, 4),
    "gemma4": (_gemma4, 2),
    "phi4_multimodal": (_phi4, 0),
}

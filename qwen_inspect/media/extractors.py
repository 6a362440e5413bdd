"""The feature extractors' numbers: those that a model's files set, else those of its family's releases.

Source: transformers 5.23, feature_extraction_auto.py for the classes, their own modules for their defaults,
get_feature_extractor_dict for the order of the files.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..architectures.reading import shown
from ..errors import MalformedError, UnsupportedError
from ..typed import Any
from .processors import IMAGE_FILE, WHOLE_FILE, Processor, checked_number

WHISPER, QWEN3_ASR = "WhisperFeatureExtractor", "Qwen3ASRFeatureExtractor"
GEMMA3N, GEMMA4 = "Gemma3nAudioFeatureExtractor", "Gemma4AudioFeatureExtractor"
PHI4 = "Phi4MultimodalFeatureExtractor"

_MEL: Mapping[str, Any] = {"feature_size": 128, "sampling_rate": 16_000, "hop_length": 160, "n_fft": 400}
_GEMMA: Mapping[str, Any] = {"feature_size": 128, "sampling_rate": 16_000, "hop_length_ms": 10.0}
# What a class takes for a number that its file lacks.
CLASSES: Mapping[str, Mapping[str, Any]] = {
    WHISPER: {**_MEL, "feature_size": 80, "chunk_length": 30},
    QWEN3_ASR: {**_MEL, "min_length": 8000},
    GEMMA3N: {**_GEMMA, "frame_length_ms": 32.0},
    GEMMA4: {**_GEMMA, "frame_length_ms": 20.0},
    PHI4: {
        "feature_size": 80, "sampling_rate": 16_000, "hop_length": 160, "win_length": 400, "audio_compression_rate": 8,
        "audio_downsample_rate": 1, "audio_feat_stride": 1,
    },
}  # fmt: skip
# By model_type: the class, and what the releases' files set (preprocessor_config.json of Qwen/Qwen2-Audio-7B-Instruct,
# Qwen/Qwen2.5-Omni-7B and Qwen/Qwen3-Omni-30B-A3B-Instruct; of the others they are the class's own numbers).
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "qwen2_audio": (WHISPER, {"feature_size": 128}),
    "qwen2_5_omni_thinker": (WHISPER, {"feature_size": 128, "chunk_length": 300}),
    "qwen3_omni_moe_thinker": (WHISPER, {"feature_size": 128}),
    "qwen3_asr": (QWEN3_ASR, {}),
    "gemma3n": (GEMMA3N, {}),
    "gemma4": (GEMMA4, {}),
    "phi4_multimodal": (PHI4, {}),
}
PARTS = ("feature_extractor", "audio_processor")  # of the processor's file


def extractor_of(config: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> Processor:
    """The feature extractor of a model. UnsupportedError if the model hears nothing, or by rules that are not known here."""
    model_type = str(config.get("model_type"))
    if not isinstance(config.get("audio_config", config.get("audio_processor")), Mapping):
        raise UnsupportedError("audio_no_tower", model_type=model_type)
    family = FAMILIES.get(model_type)
    if family is None:
        raise UnsupportedError("audio_family_unknown", model_type=model_type)
    name, released = family
    file, content = _content(files)
    if file is None:
        return Processor(name=name, numbers={**CLASSES[name], **released}, file=None)
    typed, side = content.get("feature_extractor_type", name), content.get("padding_side", "right")
    if typed != name or side != "right":
        raise UnsupportedError("media_processor_unknown", file=file, found=shown(typed if typed != name else side))
    given = {key: checked_number(key, content[key], file) for key in CLASSES[name] if content.get(key) is not None}
    numbers = {**CLASSES[name], **given}
    for key in ("frame_length_ms", "hop_length_ms"):
        if key in numbers and round(numbers["sampling_rate"] * numbers[key] / 1000.0) < 1:  # not one sample
            raise MalformedError("media_number", file=file, key=key, found=shown(numbers[key]))
    return Processor(name=name, numbers=numbers, file=file)


def _content(files: Mapping[str, Mapping[str, Any]]) -> tuple[str | None, Mapping[str, Any]]:
    whole = files.get(WHOLE_FILE, {})
    for part in PARTS:
        if isinstance(content := whole.get(part), Mapping):
            return WHOLE_FILE, content
    return (IMAGE_FILE, files[IMAGE_FILE]) if IMAGE_FILE in files else (None, {})

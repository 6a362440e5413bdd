"""Images, videos and audio: as they were typed, and what a model's processor makes of them."""

from __future__ import annotations

from ..checkpoint import DTYPE_OF_TORCH_NAME
from ..typed import TYPE_CHECKING, Literal
from ..values import dataclass

if TYPE_CHECKING:
    from fractions import Fraction

MediaKind = Literal["image", "video"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Typed:
    """An image or a video as it was typed; seconds: of a video; fps: its own frames per second, None for the processor's rate."""

    text: str
    width: int
    height: int
    seconds: Fraction | None = None
    fps: Fraction | None = None

    @property
    def kind(self) -> MediaKind:
        return "image" if self.seconds is None else "video"


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedAudio:
    """Audio as it was typed: samples of one channel, `rate` of them a second. Of a number of seconds they are milliseconds."""

    text: str
    samples: int
    rate: int

    @property
    def seconds(self) -> Fraction:
        from fractions import Fraction

        return Fraction(self.samples, self.rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The images, videos and audio of a prompt, and what replaces the processor's own numbers.

    min_pixels, max_pixels: of an image after resizing (of Qwen2-VL and Qwen2.5-VL also of a video's frame); total_pixels: of all
    frames of a video; fps: frames sampled per second of a video.
    """

    typed: tuple[Typed, ...] = ()
    audio: tuple[TypedAudio, ...] = ()
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None
    fps: Fraction | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the processor makes of an image or of a video's frames.

    height, width: in pixels, after resizing. grid: what passes through the tower one by one (pairs of frames, frames or tiles),
    and the rows and columns of patches of each. tokens: that the tower gives the decoder. marks: further tokens that the
    processor writes around and between them; None if their number depends on the tokenizer. pixels: numbers that the tower gets.
    """

    height: int
    width: int
    grid: tuple[int, int, int]
    tokens: int
    marks: int | None = 0
    pixels: int = 0

    @property
    def patches(self) -> int:
        slices, rows, columns = self.grid
        return slices * rows * columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Medium:
    """An image or a video of a prompt. frames: those that were sampled of a video."""

    typed: Typed
    shape: Shape
    frames: int | None = None

    @property
    def kind(self) -> MediaKind:
        return self.typed.kind

    @property
    def runs(self) -> tuple[int, ...]:
        """The lengths of the runs of its tokens in the context: of a video whose slices have timestamps, one for each."""
        slices = self.shape.grid[0]
        if self.frames is None or self.shape.marks is not None:
            return (self.shape.tokens,)
        return (self.shape.tokens // slices,) * slices


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Audio of a prompt, as the processor takes it.

    samples: at the processor's `rate`, of the whole audio; kept: those before the processor cuts it. frames: of the spectrogram
    that the tower gets, with padding, each of `bins` numbers; valid: those of them that the processor marks as audio. tokens:
    that the tower gives the decoder. marks: further tokens that the processor writes around them.
    """

    typed: TypedAudio
    samples: int
    kept: int
    rate: int
    bins: int
    frames: int
    valid: int
    tokens: int
    marks: int = 0

    @property
    def cut_seconds(self) -> Fraction | None:
        """What the processor takes of a longer audio; None if it takes all."""
        from fractions import Fraction

        return Fraction(self.kept, self.rate) if self.kept < self.samples else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """A processor's class in transformers, and the file that its numbers are from; None: the family's defaults."""

    processor: str
    file: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """The images, videos and audio of every sequence. images, videos, audio: by which rules; None where there are none.

    bounded: positions are told by a mark before and after each, which the chat template writes.
    pixel_dtype, feature_dtype: of the pixels and of the audio's spectrograms on the card; processors make float32.
    """

    items: tuple[Medium, ...]
    images: Rules | None
    videos: Rules | None
    pixel_dtype: str = "float32"
    clips: tuple[Clip, ...] = ()
    audio: Rules | None = None
    feature_dtype: str = "float32"
    bounded: bool = False

    @property
    def tokens(self) -> int:
        """The tokens that the towers give the decoder."""
        return sum(item.shape.tokens for item in self.items) + sum(clip.tokens for clip in self.clips)

    @property
    def marks(self) -> int:
        """The further tokens whose number is known."""
        return sum(item.shape.marks or 0 for item in self.items) + sum(clip.marks for clip in self.clips)

    @property
    def context_tokens(self) -> int:
        """The tokens of the context that all of it takes; at least, if the tokenizer decides how many more."""
        return self.tokens + self.marks

    @property
    def least_tokens(self) -> int:
        """Of a context with all of it: a token of text between two images or clips, and between slices with timestamps."""
        runs = sum(len(item.runs) for item in self.items) + len(self.clips)
        return self.tokens + (2 * runs if self.bounded else runs - 1)

    @property
    def pixel_bytes(self) -> int:
        """Of the tensors of pixels that go to the card."""
        width = DTYPE_OF_TORCH_NAME[self.pixel_dtype].bits // 8
        return width * sum(item.shape.pixels for item in self.items)

    @property
    def feature_bytes(self) -> int:
        """Of the audio's spectrograms that go to the card."""
        width = DTYPE_OF_TORCH_NAME[self.feature_dtype].bits // 8
        return width * sum(clip.bins * clip.frames for clip in self.clips)

    @property
    def input_bytes(self) -> int:
        return self.pixel_bytes + self.feature_bytes

    @property
    def marks_unknown(self) -> bool:
        return any(item.shape.marks is None for item in self.items)

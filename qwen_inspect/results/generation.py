"""A model's answer to a prompt."""

from __future__ import annotations

from ..typed import TYPE_CHECKING, Literal
from ..values import dataclass

if TYPE_CHECKING:
    from ..language import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A model's computed answer to a prompt. ended_by: "end_token", or "limit" of the requested tokens.

    text: the new text only. chat_template: whether the prompt was wrapped in the tokenizer's template, as a user's message.
    prefill_seconds: until the first new token; decode_seconds: from there to the last. peak_allocated_bytes,
    peak_reserved_bytes: of CUDA's allocator while generating. peak_resident_bytes: on a CPU, the process's peak since it started,
    libraries and loading included.
    """

    prompt: str
    chat_template: bool
    text: str
    prompt_tokens: int
    new_tokens: int
    ended_by: Literal["end_token", "limit"]
    device: str
    dtype: str
    prefill_seconds: float
    decode_seconds: float
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    peak_resident_bytes: int | None
    versions: str
    notices: tuple[Message, ...] = ()

    @property
    def prefill_tokens_per_second(self) -> float:
        return self.prompt_tokens / self.prefill_seconds

    @property
    def decode_tokens_per_second(self) -> float | None:
        """None if there was only one new token."""
        return None if self.new_tokens == 1 else (self.new_tokens - 1) / self.decode_seconds

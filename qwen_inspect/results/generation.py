"""A model's answer to a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ..language import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A model's answer to a prompt, really computed. ended_by: "end_token", or "limit" of the tokens asked for.

    text: what is new. chat_template: whether the prompt was put into the tokenizer's, as a user's message. prefill_seconds: until
    the first new token was there; decode_seconds: from then to the last. peak_allocated, peak_reserved: of CUDA's allocator while
    generating. peak_resident: of the whole process since it began, on a CPU, with the libraries and the loading.
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
        """None where the first new token was the only one."""
        return None if self.new_tokens == 1 else (self.new_tokens - 1) / self.decode_seconds

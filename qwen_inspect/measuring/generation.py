"""Real inference: the loaded model continues a prompt, with times and peak memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import MalformedError, NotFoundError, UnavailableError, UsageError
from ..language import Message
from ..loaders.resolve import Access
from ..loaders.weights import weights_directory
from ..progress import working
from ..results.generation import Generation
from ..results.model import Report
from ..spec import ModelSpec
from ..typed import Any
from ..values import replace
from .loading import check_device, first_line, load_model, quiet

# Any of these makes a tokenizer: all of it, a SentencePiece model, or the vocabulary of a byte-pair encoding.
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model", "vocab.json")
LONGEST_CHARACTER_BYTES = 4  # UTF-8, RFC 3629
Show = Callable[[str], None]


def check_prompt(prompt: str) -> None:
    """UsageError if `prompt` is empty or not valid text."""
    try:
        prompt.encode()
    except UnicodeEncodeError:  # command-line bytes that are not UTF-8
        raise UsageError("prompt_not_text") from None
    if not prompt.strip():
        raise UsageError("prompt_empty")


def with_generation(
    report: Report,
    prompt: str,
    *,
    max_new_tokens: int = 32,
    device: str = "cpu",
    trust_remote_code: bool = False,
    access: Access | None = None,
    show: Show | None = None,
) -> Report:
    """`report` with the model's answer to `prompt`. Loads the weights, and downloads them first if necessary.

    In the report's dtype. show: called with each piece of text as soon as it is complete. Needs the torch extra.
    """
    check_prompt(prompt)
    with working("working_start"):
        check_device(device)
    directory = weights_directory(report.ref, access or Access(), with_code=trust_remote_code)
    generation = generate(
        directory,
        report.spec,
        prompt,
        max_new_tokens=max_new_tokens,
        device=device,
        trust_remote_code=trust_remote_code,
        show=show,
    )
    return replace(report, generation=generation, notices=(*report.notices, *generation.notices))


def generate(
    directory: Path,
    spec: ModelSpec,
    prompt: str,
    *,
    max_new_tokens: int,
    dtype: str | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
    show: Show | None = None,
) -> Generation:
    """The answer of the model in `directory` to `prompt`: greedy decoding to an end token or `max_new_tokens`.

    The prompt is a user message if the tokenizer has a chat template, else the text to continue. show: called with each piece of
    text as soon as it is complete. Of the repository's generation settings only the end tokens are used.

    Errors of `load_model`, and MalformedError for weights with NaN or infinity or another model's tokenizer, NotFoundError
    without a tokenizer, UnavailableError if the device's memory does not suffice.
    """
    check_prompt(prompt)
    device = check_device(device)
    tokenizer = _tokenizer(directory, trust_remote_code=trust_remote_code)
    token_ids = _token_ids(tokenizer, prompt)
    import torch

    try:
        with working("working_load", model=directory.name, device=device):
            loaded = load_model(directory, spec, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        if loaded.not_finite:
            raise MalformedError("load_not_finite", tensor=loaded.not_finite[0], count=len(loaded.not_finite))
        rows = loaded.model.get_input_embeddings().num_embeddings
        # On a GPU an index out of range makes the device unusable for the rest of the process.
        if max(token_ids) >= rows:
            raise MalformedError("tokenizer_beyond", found=max(token_ids), rows=rows)
        notices = _notices(loaded.notices, spec, len(token_ids) + max_new_tokens)
        return _run(loaded.model, tokenizer, token_ids, prompt, max_new_tokens, device, show, notices)
    except torch.cuda.OutOfMemoryError as error:
        raise UnavailableError("device_memory", device=device, reason=first_line(error)) from None


def _notices(notices: tuple[Message, ...], spec: ModelSpec, tokens: int) -> tuple[Message, ...]:
    if spec.context_tokens is None or tokens <= spec.context_tokens:
        return notices
    return (*notices, Message("context_beyond", tokens=tokens, limit=spec.context_tokens))


def _tokenizer(directory: Path, *, trust_remote_code: bool) -> Any:
    if not any((directory / name).is_file() for name in TOKENIZER_NAMES):
        raise NotFoundError("tokenizer_missing", path=directory, names=", ".join(TOKENIZER_NAMES))
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise UnavailableError("extra_missing", package=error.name, extra="torch") from None
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # the Rust library tokenizers raises plain Exception
        raise MalformedError("tokenizer_damaged", path=directory, reason=first_line(error)) from None


def _token_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The prompt's tokens, in the chat template with its generation prompt if there is one."""
    from jinja2 import TemplateError

    try:
        if tokenizer.chat_template:
            messages = [{"role": "user", "content": prompt}]
            encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        else:
            encoded = tokenizer(prompt)
    except TemplateError as error:
        raise MalformedError("chat_template_failed", reason=first_line(error)) from None
    token_ids = [int(token) for token in encoded["input_ids"]]
    if not token_ids:
        raise UsageError("prompt_empty")
    return token_ids


def _run(
    model: Any,
    tokenizer: Any,
    token_ids: Sequence[int],
    prompt: str,
    max_new_tokens: int,
    device: str,
    show: Show | None,
    notices: tuple[Message, ...],
) -> Generation:
    import torch
    import transformers

    ends = _end_tokens(model)
    model.generation_config = transformers.GenerationConfig(eos_token_id=ends or None, pad_token_id=(ends or [0])[0])
    inputs = torch.tensor([token_ids], device=device)
    watch = _Stopwatch(tokenizer, show)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    with quiet(), torch.inference_mode():
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            streamer=watch,
        )
    new = output[0, len(token_ids) :].tolist()
    on_gpu = device != "cpu"
    return Generation(
        prompt=prompt,
        chat_template=bool(tokenizer.chat_template),
        text=tokenizer.decode(new, skip_special_tokens=True),
        prompt_tokens=len(token_ids),
        new_tokens=len(new),
        ended_by="end_token" if new[-1] in ends else "limit",
        device=device,
        dtype=str(model.dtype).removeprefix("torch."),
        prefill_seconds=watch.times[0] - began,
        decode_seconds=watch.times[-1] - watch.times[0],
        peak_allocated_bytes=torch.cuda.max_memory_allocated(device) if on_gpu else None,
        peak_reserved_bytes=torch.cuda.max_memory_reserved(device) if on_gpu else None,
        peak_resident_bytes=None if on_gpu else _peak_resident_bytes(),
        versions=f"transformers {transformers.__version__}, torch {torch.__version__}",
        notices=notices,
    )


def _end_tokens(model: Any) -> list[int]:
    """The end tokens, if any, of generation_config.json or else of the configuration."""
    named = model.generation_config.eos_token_id
    return [token for token in (named if isinstance(named, list) else [named]) if type(token) is int]


class _Stopwatch:
    """Records when each new token reaches the host, and shows text as soon as its characters are complete.

    A streamer in transformers' sense, but not its TextStreamer, which waits for a space and decodes the whole line each time.
    Source: transformers 5.23, generation/utils.py, _sample: a streamer gets the prompt, then each `next_tokens.cpu()`.
    """

    def __init__(self, tokenizer: Any, show: Show | None) -> None:
        self.times: list[float] = []
        self._tokenizer, self._show = tokenizer, show
        self._begun = False
        self._window: list[int] = []  # tokens with incomplete characters, after the last complete token
        self._shown = 0  # characters of the window's text

    def put(self, value: Any) -> None:
        if not self._begun:
            self._begun = True
            return
        self.times.append(time.perf_counter())
        if self._show is not None:
            self._window += value.tolist()
            self._tell(self._show, LONGEST_CHARACTER_BYTES)

    def end(self) -> None:
        if self._show is not None:
            self._tell(self._show, 0)
            self._show("\n")

    def _tell(self, show: Show, held_back: int) -> None:
        """Shows the window's text, except up to `held_back` incomplete characters at its end."""
        text = self._decoded()
        unclear = len(text) - len(text.rstrip("\ufffd"))
        whole = len(text) - min(unclear, held_back)
        if whole > self._shown:
            show(text[self._shown : whole])
            self._shown = whole
        if not unclear:
            self._window = self._window[-1:]
            self._shown = len(self._decoded())

    def _decoded(self) -> str:
        return str(self._tokenizer.decode(self._window, skip_special_tokens=True))


def _peak_resident_bytes() -> int | None:
    """This process's peak resident memory, imports included. Source: getrusage(2)."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes

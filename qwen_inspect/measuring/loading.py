"""The fourth witness: the model with its real weights, in memory, as transformers builds it; or with random weights.

This module opens the files by name and passes transformers tensors that it reads one by one. So nothing but safetensors is ever
opened (on its own, `from_pretrained` follows a repository's references to an adapter's base or to a distributed checkpoint, whose
metadata is a pickle), and the weights are copies in memory. `from_pretrained` would memory-map the file: pages that no allocator
counts, that change with the file, and that crash the process if it is truncated.
Source: transformers 5.23, modeling_utils.PreTrainedModel.from_pretrained and _load_pretrained_model; safetensors 0.8, safe_open.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import MalformedError, NotFoundError, QwenInspectError, UnavailableError, UnsupportedError, UsageError
from ..language import Message
from ..loaders.regular import read_regular
from ..loaders.strict_json import LONGEST_JSON_BYTES
from ..spec import ModelSpec
from ..tracing.instantiate import build
from ..typed import Any
from ..values import dataclass

CONFIG_NAME, GENERATION_CONFIG_NAME = "config.json", "generation_config.json"
SINGLE_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
DEVICE = re.compile(r"auto|cpu|cuda(?::(?P<index>\d{1,4}))?")
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model in eval mode, whole on one device. notices: stored tensors that it does not use, weights that are not finite.

    not_finite: names of parameters that contain NaN or infinity, which makes all results meaningless.
    """

    model: Any
    notices: tuple[Message, ...] = ()
    not_finite: tuple[str, ...] = ()


def check_device(device: str) -> str:
    """`device` as torch names it ("cpu", "cuda:0"), or "auto"; UnavailableError names what is missing: package, build, GPU."""
    match = DEVICE.fullmatch(device)
    if match is None:
        raise UsageError("device_malformed", device=device)
    torch = _torch()
    if device == "cpu":
        return device
    if not (torch.version.cuda or torch.version.hip):
        raise UnavailableError("cuda_not_built", version=torch.__version__)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about a missing or outdated driver
        device_count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device_count == 0:
        raise UnavailableError("cuda_no_device", version=torch.__version__)
    if device == "auto":
        return device
    index = int(match["index"] or 0)
    if index >= device_count:
        raise UnavailableError("cuda_no_index", device=device, count=device_count)
    return f"cuda:{index}"


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise UnavailableError("extra_missing", package=error.name, extra="torch") from None
    return torch


def load_model(
    directory: Path,
    spec: ModelSpec,
    *,
    dtype: str | None = None,
    attention: str | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> LoadedModel:
    """The model in `directory` with its weights, in `dtype` (as torch names it; None: the configuration's), on `device`.

    "auto": all GPUs, and the host's memory if they are too small, as accelerate places it. attention: None for the kernel that
    transformers chooses.

    Each parameter has a storage of exactly its own bytes. trust_remote_code: run the repository's own classes if it has any.
    NotFoundError without weights, MalformedError if they are damaged, another model's, or change while they are read,
    UnsupportedError for pickles and for what transformers refuses, UnavailableError without a package or the device.

    The check for NaN and infinity reads each weight once in place, and copies only 8-bit ones. On a CPU it takes one pass over
    the memory, 13 ms for 32 MB of bfloat16 on one core; on a GPU it allocates two numbers per tensor.
    """
    device = check_device(device)
    files = _weight_files(directory)
    before = {name: _signature(directory / name) for name in (CONFIG_NAME, INDEX_NAME, *files)}
    try:
        model, info = _read(
            directory,
            files,
            spec,
            dtype or spec.dtype.torch_name,
            attention,
            device,
            trust_remote_code=trust_remote_code,
        )
    except QwenInspectError:
        _refuse_changed(directory, before)  # a changed file explains any other error
        raise
    _refuse_changed(directory, before)
    _refuse_other_tensors(info)
    not_finite = _not_finite(model)
    return LoadedModel(model=model, notices=_notices(info, not_finite), not_finite=not_finite)


def _read(
    directory: Path,
    files: Sequence[str],
    spec: ModelSpec,
    dtype: str,
    attention: str | None,
    device: str,
    *,
    trust_remote_code: bool,
) -> tuple[Any, Mapping[str, Any]]:
    """The model, and transformers' report of missing, unexpected and mismatched tensors."""
    try:
        import safetensors
        import torch
        import transformers
        from huggingface_hub.errors import StrictDataclassError

        if device != "cpu":
            import accelerate  # noqa: F401 (transformers needs it for a device map)
    except ImportError as error:
        raise UnavailableError("extra_missing", package=error.name, extra="torch") from None
    try:
        with quiet(), ExitStack() as stack:
            model_class, config = _class_and_config(directory, spec, trust_remote_code=trust_remote_code)
            model, info = model_class.from_pretrained(
                None,
                config=config,
                state_dict=_slices(directory, files, stack),
                dtype=getattr(torch, dtype),
                attn_implementation=attention,
                device_map=None if device == "cpu" else "auto" if device == "auto" else {"": device},
                ignore_mismatched_sizes=True,  # `_refuse_other_tensors` raises for them
                output_loading_info=True,
            )
            if (directory / GENERATION_CONFIG_NAME).is_file():
                model.generation_config = transformers.GenerationConfig.from_pretrained(directory)
            return model.eval(), info
    except safetensors.SafetensorError as error:
        raise MalformedError("load_damaged", path=directory, reason=first_line(error)) from None
    except torch.cuda.OutOfMemoryError:
        raise
    except (
        AttributeError, ImportError, LookupError, OSError, RuntimeError, StrictDataclassError, TypeError, ValueError,
    ) as error:  # fmt: skip
        if "DefaultCPUAllocator" in str(error):  # torch has no exception class for exhausted host memory
            raise MemoryError from None
        reason, version = first_line(error), transformers.__version__
        raise UnsupportedError("load_failed", class_name=spec.class_name, version=version, reason=reason) from None


def random_model(
    spec: ModelSpec,
    config: Mapping[str, Any],
    *,
    dtype: str | None = None,
    attention: str | None = None,
    device: str = "cpu",
) -> LoadedModel:
    """The class with random weights, created on `device`: a model's memory without a download.

    The weights are the same every time; the caller's random state is restored.
    """
    torch, device = _torch(), check_device(device)
    if device == "auto":
        raise UsageError("random_on_one_device")
    with torch.random.fork_rng(devices=[device] if device != "cpu" else []), quiet():
        torch.manual_seed(SEED)
        model = build(spec, config, device=device, dtype=dtype, attn_implementation=attention)
    return LoadedModel(model=model.eval())


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' warnings, reports and progress bars; restores the settings on exit."""
    import transformers
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown, hub_shown = transformers.logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    verbosity = transformers.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity(transformers.logging.CRITICAL)
        transformers.logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers.logging.set_verbosity(verbosity)
            if shown:
                transformers.logging.enable_progress_bar()  # this enables the hub's too, which may have been off
            (enable_progress_bars if hub_shown else disable_progress_bars)()


# --- the files


def _weight_files(directory: Path) -> tuple[str, ...]:
    """The names of the weight files, in transformers' order of search: the single file, else the index's shards."""
    if (directory / SINGLE_NAME).is_file():
        return (SINGLE_NAME,)
    try:
        weight_map = json.loads(read_regular(directory / INDEX_NAME, cap=LONGEST_JSON_BYTES))["weight_map"]
        names = sorted(set(weight_map.values()))
    except FileNotFoundError:
        raise _no_weights(directory) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise MalformedError("index_malformed", file=INDEX_NAME) from None
    for name in names:
        if os.path.basename(name) != name or not name.endswith(".safetensors"):
            raise MalformedError("index_path_outside", file=INDEX_NAME, found=name)
        if not (directory / name).is_file():
            raise NotFoundError("shards_missing", missing=1, shards=len(names), file=name)
    return tuple(names)


def _no_weights(directory: Path) -> NotFoundError | UnsupportedError:
    names = sorted(os.listdir(directory)) if directory.is_dir() else []
    for key, suffixes in (("load_pickled", (".bin", ".pt", ".pth")), ("load_other_names", (".safetensors", ".gguf"))):
        if file := next((name for name in names if name.endswith(suffixes)), None):
            return UnsupportedError(key, path=directory, file=file)
    return NotFoundError("load_no_weights", path=directory)


def _signature(path: Path) -> tuple[int, ...] | None:
    """Device, inode, size and times, which change when a file is written, truncated or replaced; None if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _refuse_changed(directory: Path, before: Mapping[str, tuple[int, ...] | None]) -> None:
    for name, signature in before.items():
        if _signature(directory / name) != signature:
            raise MalformedError("load_changed", file=name)


def _slices(directory: Path, files: Sequence[str], stack: ExitStack) -> dict[str, Any]:
    """Every tensor of the files by name, read lazily with `pread`, so that a file truncated meanwhile raises an error."""
    from safetensors import safe_open

    slices: dict[str, Any] = {}
    for name in files:
        opened = stack.enter_context(safe_open(directory / name, framework="pt", device="cpu", backend="pread"))
        slices |= {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 (no mapping)
    return slices


# --- the model


def _class_and_config(directory: Path, spec: ModelSpec, *, trust_remote_code: bool) -> tuple[Any, Any]:
    """The class to build and its configuration: the repository's own if it has one and it is trusted, else transformers'."""
    import transformers

    if trust_remote_code:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=True, local_files_only=True)
        own = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
        if own is not None:
            return get_class_from_dynamic_module(own, directory, local_files_only=True), config
    model_class = getattr(transformers, spec.class_name)
    return model_class, model_class.config_class.from_pretrained(directory, local_files_only=True)


def _refuse_other_tensors(info: Mapping[str, Any]) -> None:
    """MalformedError if the files do not contain the whole model: missing tensors would be random."""
    if missing := sorted(info["missing_keys"]):
        raise MalformedError("load_missing", tensor=missing[0], count=len(missing))
    if mismatched := sorted(info["mismatched_keys"], key=str):
        name, stored, expected = mismatched[0]
        raise MalformedError(
            "load_mismatched", tensor=name, found=list(stored), expected=list(expected), count=len(mismatched)
        )


def _not_finite(model: Any) -> tuple[str, ...]:
    return tuple(name for name, parameter in model.named_parameters() if not _is_finite(parameter))


def _is_finite(parameter: Any) -> bool:
    """Whether every element is finite. Minimum and maximum suffice: NaN becomes both, infinity one of them."""
    import torch

    finite_only = getattr(torch, "float4_e2m1fn_x2", None)  # OCP Microscaling Formats 1.0, 5.3.3: FP4 has neither
    if not parameter.is_floating_point() or parameter.numel() == 0 or parameter.dtype == finite_only:
        return True
    values = parameter.detach()
    if values.dtype.itemsize == 1:
        values = values.float()  # no kernel compares 8-bit floats
    return bool(torch.stack(torch.aminmax(values)).isfinite().all())


def _notices(info: Mapping[str, Any], not_finite: Sequence[str]) -> tuple[Message, ...]:
    notices = []
    if unexpected := sorted(info["unexpected_keys"]):
        notices.append(Message("load_unexpected", tensor=unexpected[0], count=len(unexpected)))
    if not_finite:
        notices.append(Message("load_not_finite", tensor=not_finite[0], count=len(not_finite)))
    return tuple(notices)


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, shortened."""
    lines = str(error).strip().splitlines()
    return lines[0][:300].rstrip(".") if lines else type(error).__name__

"""What the real transformers class asks its allocator for, traced on fake tensors: no weights, no GPU.

Shapes, order and lifetimes are those that Python and PyTorch themselves give: the model runs, only its kernels compute nothing. A
storage is an allocation of its size when it is first seen, and is free when Python lets go of it. Fake tensors live on `cpu`, for
a build of torch without CUDA has no other that works; where CUDA would take another path, that path is taken (see `_as_on_cuda`).

Assumed: sequences of one length without padding, greedy sampling, and for linear-attention layers the reference code of
transformers, which runs where no kernels for them are installed. Kernels' own scratch is not traced, but for flash attention's
backward. Not counted: tensors of no bytes, for which no allocator is asked, and AdamW's step counters, which live on the host.
"""

from __future__ import annotations

import gc
import inspect
import re
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from ..errors import UnavailableError, UnsupportedError, UsageError
from ..ranks import Place
from ..spec import ModelSpec
from ..timeline import ADAPTER, FLASH_SCRATCH, GATHERED, SCALES_SCRATCH, Allocate, Event, Free, Stage, Timeline
from .adapting import (
    Adapters,
    Optimizer,
    adapt,
    checkpoint,
    hold_in_four_bits,
    is_matrix,
    optimizer_of,
    parts_of,
    prepare_for_training,
    to_device,
    without_moves,
)
from .one_rank import (
    cut,
    gathering,
    local,
    logits_told,
    made_real,
    parts_held,
    replaced,
    shapes_worked_out,
    shared_types,
    standing_at,
    unloaded,
)

Mode = Literal["generate", "forward", "train"]
AttentionKernel = Literal["sdpa", "eager", "flash_attention_2", "flash_attention_2_repeated"]

FLASH_ATTENTION_2 = "flash_attention_2"  # the operator of what the flash-attn package allocates

# The operators of bitsandbytes that multiply by a weight of 4 bits, and that make it dense.
GEMM_4BIT, DEQUANTISE = "bitsandbytes.gemm_4bit.default", "bitsandbytes.dequantize_4bit.default"

CHUNK_TURNS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """A workload, and the kernels it is traced with.

    attention: flash_attention_2_repeated is as before transformers 4.48, which repeated K and V for every query head beforehand.
    new_tokens: of `generate`; the last of them is not fed back, so that the cache ends at prompt_tokens + new_tokens - 1.
    optimizer, checkpointing, trained, steps, accumulate, lora: for `train`. trained: a regular expression; parameters train in
    whose names it is found. steps: optimizer states do not exist until the first step is over; 2 shows what every later one
    holds. accumulate: micro-batches, of `batch` sequences each, whose gradients a step adds up. lora: adapters train instead.
    layers: trace only so many of the model's layers.
    """

    mode: Mode
    prompt_tokens: int
    batch: int = 1
    new_tokens: int = 1
    attention: AttentionKernel = "sdpa"
    optimizer: Optimizer = "adamw_foreach"
    checkpointing: bool = False
    trained: str = ""
    steps: int = 1
    accumulate: int = 1
    lora: Adapters | None = None
    layers: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "prompt_tokens", "new_tokens", "steps", "accumulate", "layers"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise UsageError("trace_count", name=name, found=count)
        try:
            re.compile(self.trained)
        except re.error as error:
            raise UsageError("trace_pattern", pattern=self.trained, reason=error) from None


def trace(spec: ModelSpec, config: Mapping[str, Any], workload: TraceRequest, place: Place | None = None) -> Timeline:
    """The run of `spec.class_name` built from `config`, or what one rank of several does of it at its `place`. Its stages:

    load      an Allocate for each parameter and buffer (tied ones once; operator "parameter", "adapter" or "buffer"), of the
              module that owns it. Nothing else, and nothing is freed in it: a loader's own events may take the place of this
              stage.
    generate  prefill; decode: the last decode step alone, of which the first events bring the cache to its length then. There is
              no decode where new_tokens is 1.
    forward   forward: logits of every token, and a cache.
    train     for each step: forward (ends with the loss) and backward of each micro-batch, optimizer (ends with gradients
              dropped; none for `none`).

    What is alive at the end is what the run still holds: of `generate` cache and tokens, of `forward` the outputs.
    UnavailableError without torch, UnsupportedError for a model that transformers cannot run so.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UnavailableError("extra_missing", package=error.name, extra="torch") from None
    four_bits = workload.lora is not None and workload.lora.base is not None
    if "quantization_config" in config and not four_bits:
        raise UnsupportedError("trace_quantized", class_name=spec.class_name)
    if workload.attention.startswith("flash") and spec.dtype.torch_name not in ("bfloat16", "float16"):
        raise UnsupportedError("trace_flash_dtype", dtype=spec.dtype.torch_name)
    from huggingface_hub.errors import StrictDataclassError
    from torch._subclasses.fake_tensor import FakeTensorMode

    recorder = _Recorder()
    collecting = gc.isenabled()
    gc.disable()  # A cycle must not be freed at a moment of the collector's choice.
    try:
        with ExitStack() as stack:
            stack.enter_context(_as_on_cuda())
            if place is None:
                stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
                model = _build(spec, config, workload, recorder, stack)
            else:
                stack.enter_context(standing_at(place))
                with unloaded():
                    model = _build(spec, config, workload, recorder, stack)
                model = cut(model, place)
                stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
                made_real(model)
                stack.enter_context(gathering(partial(recorder.named, GATHERED), recorder.resize))
                stack.enter_context(shapes_worked_out(recorder.paused))
                stack.enter_context(logits_told(model, workload.batch))
            run = _runs(model, spec, workload)
            if workload.mode != "train":  # whose backward keeps something of every turn
                stack.enter_context(_few_turns(model))
            stack.enter_context(_recording(recorder, model, spec.class_name, () if place is None else shared_types()))
            recorder.stage("load")
            _load(model, recorder, spec.class_name)
            held = run(model, workload, recorder)
            recorder.rename(parts_held(model) if place is not None else model.parameters(), "parameter")
            recorder.closed = True
            del held
    except (
        ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError, StrictDataclassError, TypeError,
        ValueError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        raise UnsupportedError(
            "trace_failed", class_name=spec.class_name, mode=workload.mode, reason=reason, version=version
        ) from None
    finally:
        recorder.closed = True
        if collecting:
            gc.enable()
    return Timeline(events=tuple(recorder.events), stages=tuple(recorder.stages))


# --- the model


def _build(
    spec: ModelSpec, config: Mapping[str, Any], workload: TraceRequest, recorder: _Recorder, stack: ExitStack
) -> Any:
    """The model with fake parameters and buffers, in the state of its mode."""
    import torch
    import transformers
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    dense = {key: value for key, value in config.items() if key != "quantization_config"}
    configuration = transformers.AutoConfig.for_model(**deepcopy(dense))  # it changes nested parts
    if workload.layers is not None:
        text = configuration.get_text_config(decoder=True)
        text.num_hidden_layers = workload.layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[: workload.layers]
    model_class = getattr(transformers, spec.class_name)
    flash = workload.attention.startswith("flash")
    model = model_class._from_config(
        configuration,
        dtype=getattr(torch, spec.dtype.torch_name),
        attn_implementation="eager" if flash else workload.attention,
    )
    if flash:
        # Under its own name it needs its package. Any name with "flash" in it is treated as flash attention.
        name = "traced_flash_attention_2"
        ALL_ATTENTION_FUNCTIONS[name] = _flash_attention_2(recorder, repeated=workload.attention.endswith("repeated"))
        stack.callback(ALL_ATTENTION_FUNCTIONS.__delitem__, name)
        model.config._attn_implementation = name
    if workload.mode != "train":
        return model.eval()
    if workload.lora is not None and workload.lora.base is not None:
        hold_in_four_bits(model, workload.lora.base)
        prepare_for_training(model, checkpointing=workload.checkpointing)
    elif workload.checkpointing:
        checkpoint(model)
    if workload.lora is not None:
        with without_moves():
            adapt(model, workload.lora)
        return model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.search(workload.trained, name) is not None)
    return model.train()


@contextmanager
def _few_turns(model: Any) -> Iterator[None]:
    """Loops over the chunks of a prompt in linear attention's reference code end after CHUNK_TURNS turns.

    Each turn takes and gives back what the one before did, whose state it replaces: the allocator meets nothing new after the
    first few, and no trace's length grows with the prompt. Source: transformers 5.23, torch_chunk_gated_delta_rule.
    """
    code = sys.modules[type(model).__module__]
    if not hasattr(code, "torch_chunk_gated_delta_rule"):
        yield
        return
    code.range = lambda *bounds: range(*bounds)[:CHUNK_TURNS]  # type: ignore[attr-defined]  # before the built-in one
    try:
        yield
    finally:
        del code.range


def _load(model: Any, recorder: _Recorder, root: str) -> None:
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in named:
            operator = ADAPTER if is_matrix(name) else kind
            recorder.see(local(tensor), operator, module=name.rpartition(".")[0] or root)
    for name, module in model.named_modules():
        for tensor in parts_of(module):
            recorder.see(tensor, "parameter", module=name)


@contextmanager
def _as_on_cuda() -> Iterator[None]:
    """Decisions that transformers takes by device or by value, taken as on CUDA with unpadded sequences; and nothing printed."""
    import torch
    import transformers
    from transformers import masking_utils
    from transformers.integrations import moe, sdpa_attention

    find_packed_sequence_indices = masking_utils.find_packed_sequence_indices
    attend = torch.nn.functional.scaled_dot_product_attention

    def find_none(position_ids: Any) -> None:
        """On fake tensors it would find that sequences may be packed, and keep a mask."""
        find_packed_sequence_indices(position_ids)

    def as_dispatched(query: Any, key: Any, value: Any, *arguments: Any, **options: Any) -> Any:
        """Flash, or for a mask, float32 or a narrower V memory-efficient attention; both allocate what CPU's fused kernel does.
        The memory-efficient kernel has no GQA, so that float32 with GQA takes the math path.

        Source: torch 2.13, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp
        """
        from torch.nn.attention import SDPBackend, sdpa_kernel

        fused = not options.get("enable_gqa") or query.dtype in (torch.float16, torch.bfloat16)
        if fused:
            value_dim = value.shape[-1]  # CPU's kernel wants one width for all three, CUDA's only of Q and K.
            query, key = query[..., :value_dim], key[..., :value_dim]
            options["dropout_p"] = 0.0  # CPU's kernel has none, and CUDA's keeps no mask for it.
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION if fused else SDPBackend.MATH):
            return attend(query, key, value, *arguments, **options)

    replacements: tuple[tuple[Any, str, Any], ...] = (
        (masking_utils, "find_packed_sequence_indices", find_none),
        (torch.nn.functional, "scaled_dot_product_attention", as_dispatched),
        # Whether KV heads are repeated: on CUDA not for an unmasked call.
        (sdpa_attention, "_is_torch_mps_available", False),
        (sdpa_attention, "_is_torch_npu_available", False),
        (sdpa_attention, "_is_torch_xpu_available", False),
        # From compute capability 8.0 on.
        (moe, "_can_use_grouped_mm", lambda *_: True),
    )
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.callback(transformers.logging.set_verbosity, transformers.logging.get_verbosity())
        transformers.logging.set_verbosity_error()
        stack.enter_context(replaced(replacements))
        yield


def _flash_attention_2(recorder: _Recorder, *, repeated: bool) -> Callable[..., tuple[Any, None]]:
    """An attention function that allocates what the flash-attn package and transformers' wrapper allocate, and computes nothing.

    Sources: flash-attn 2.8, csrc/flash_attn/flash_api.cpp, mha_fwd and mha_bwd, and flash_attn_interface.py, which copies only
    tensors whose last dimension is not dense; transformers 5.23, integrations/flash_attention.py. Left out: the check for packed
    sequences, 8 bytes a token, and the parts of a split KV, as many as the GPU has room for.
    """
    import torch
    from torch.nn.functional import pad
    from transformers.integrations.sdpa_attention import repeat_kv

    class Attention(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(context: Any, query: Any, key: Any, value: Any) -> Any:
            batch, tokens, heads, _ = query.shape
            with recorder.named(FLASH_ATTENTION_2):
                output = torch.empty_like(query)
                log_sum_exp = query.new_empty((batch, heads, tokens), dtype=torch.float32)
                random_state = query.new_empty(2, dtype=torch.int64)
            context.save_for_backward(query, key, value, output, log_sum_exp, random_state)
            return output

        @staticmethod
        def backward(context: Any, gradient: Any) -> tuple[Any, Any, Any]:
            query, key, value, *_ = context.saved_tensors
            with recorder.named(FLASH_ATTENTION_2):
                gradient = gradient if gradient.stride(-1) == 1 else gradient.contiguous()
                gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
            with recorder.named(FLASH_SCRATCH):
                _flash_backward_scratch(query.transpose(1, 2), key.transpose(1, 2))
            return gradients

    def attend(module: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> tuple[Any, None]:
        head_dim, value_dim = query.shape[-1], value.shape[-1]
        if value_dim != head_dim:
            value = pad(value, [0, head_dim - value_dim])
        if repeated:
            key, value = (repeat_kv(tensor, query.shape[1] // tensor.shape[1]) for tensor in (key, value))
        tensors = [tensor.transpose(1, 2) for tensor in (query, key, value)]
        if padding := -head_dim % 8:
            tensors = [pad(tensor, [0, padding]) for tensor in tensors]
        tensors = [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in tensors]
        return Attention.apply(*tensors)[..., :value_dim], None

    return attend


def _flash_backward_scratch(query: Any, key: Any) -> list[Any]:
    """What flash attention's backward holds while it runs: row sums, the query's gradient in float32, and with GQA the gradients
    of K and V for every query head. The kernel rounds tokens up to blocks of 128, which is left out so that sizes grow evenly.

    query, key: (batch, heads, tokens, head_dim). Source: flash-attn 2.8 and torch 2.13, flash_api.cpp, mha_bwd.
    """
    import torch

    batch, heads, tokens, head_dim = query.shape
    rounded_dim = head_dim + -head_dim % (32 if head_dim <= 128 else 64)
    scratch = [
        query.new_empty((batch, heads, tokens), dtype=torch.float32),
        query.new_empty((batch, tokens, heads, rounded_dim), dtype=torch.float32),
    ]
    if key.shape[1] != heads:
        scratch += [key.new_empty((batch, key.shape[2], heads, head_dim)) for _ in ("key", "value")]
    return scratch


def _dequantised(
    inputs: Any, _: Any, shape: Any, absmax: Any, blocks: Any, kind: Any, bias: Any = None, codes: Any = None, *__: Any
) -> tuple[tuple[str, Any], ...]:
    """What bitsandbytes makes of a 4-bit weight before it multiplies, by operator: its scales where they are quantised too (on
    CUDA twice, without and with their offset), then the dense weight.

    Its fused kernels, which need none of this, take no more than 1,536 rows of inputs, and not on every card.
    Source: bitsandbytes 0.50, backends/cuda/ops.py, _dequant_linear_fallback; on CPU backends/default/ops.py.
    """
    import torch

    weight = (DEQUANTISE, inputs.new_empty(tuple(shape)))
    if codes is None:
        return (weight,)
    return *(
        (name, torch.empty_like(codes, dtype=torch.float32)) for name in (SCALES_SCRATCH, "aten.add.Tensor")
    ), weight


# --- the runs


def _runs(model: Any, spec: ModelSpec, workload: TraceRequest) -> Callable[[Any, TraceRequest, _Recorder], object]:
    headed = "labels" in inspect.signature(model.forward).parameters
    match workload.mode:
        case "generate" if headed and model.can_generate():
            return _generate
        case "train" if headed:
            return _train
        case "forward":
            return _forward
        case _:
            raise UnsupportedError("trace_no_head", class_name=spec.class_name, mode=workload.mode)


def _generate(model: Any, workload: TraceRequest, recorder: _Recorder) -> object:
    """The loop of `generate`, of which only the first and the last turn are run.

    Source: transformers 5.23, generation/utils.py, `generate` and `_sample`, which drop an attention mask that masks nothing.
    """
    import torch
    from transformers import DynamicCache, MaxLengthCriteria, StoppingCriteriaList

    recorder.stage("prefill")
    recorder.outside = "inputs"
    prompt = torch.zeros(workload.batch, workload.prompt_tokens, dtype=torch.int64)
    recorder.outside = "generate"
    attention_mask = torch.ones(prompt.shape, dtype=torch.int64)
    prompt_positions = model._prepare_position_ids_for_generation(prompt, {"attention_mask": attention_mask})
    del attention_mask
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    stops = StoppingCriteriaList([MaxLengthCriteria(workload.prompt_tokens + workload.new_tokens)])
    unfinished = torch.ones(workload.batch, dtype=torch.int64)
    options: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = 1
    input_ids, position_ids = prompt, prompt_positions  # The caller of the loop holds the first of them until it ends.
    for stage in ("prefill", "decode")[: workload.new_tokens]:
        if stage == "decode":
            recorder.stage("decode")
            tokens = workload.prompt_tokens + workload.new_tokens - 2
            _grow_cache(cache, tokens, recorder)
            input_ids = recorder.regrown(input_ids, (workload.batch, tokens + 1))
            position_ids = recorder.regrown(position_ids, (*position_ids.shape[:-1], tokens + 1))
        inputs = model.prepare_inputs_for_generation(
            input_ids,
            position_ids=position_ids,
            is_first_iteration=stage == "prefill",
            next_sequence_length=None if stage == "prefill" else 1,
            **options,
        )
        with torch.no_grad():
            outputs = model(**inputs, return_dict=True)
        if stage == "prefill":
            del inputs
        position_ids = torch.cat([position_ids, torch.arange(1).view(1, 1) + position_ids[..., -1:] + 1], dim=-1)
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)
        next_tokens = torch.argmax(logits, dim=-1)
        input_ids = torch.cat([input_ids, next_tokens[:, None]], dim=-1)
        unfinished = unfinished & ~stops(input_ids, None)
        del outputs
    return prompt, input_ids, cache


def _grow_cache(cache: Any, tokens: int, recorder: _Recorder) -> None:
    """Let every layer hold `tokens` tokens, as it does after a step of one token."""
    for layer in cache.layers:
        if getattr(layer, "keys", None) is None:
            continue  # A recurrent state: it does not grow.
        missing = tokens - layer.get_seq_length()
        if missing == 0:
            continue
        origins = recorder.origin(layer.keys), recorder.origin(layer.values)
        with recorder.paused():
            for count in (missing - 1, 1):
                keys, values = (
                    held.new_empty((*held.shape[:2], count, held.shape[3])) for held in (layer.keys, layer.values)
                )
                layer.update(keys, values)
        for held, (module, operator) in zip((layer.keys, layer.values), origins, strict=True):
            recorder.see(held, operator, module=module)


def _forward(model: Any, workload: TraceRequest, recorder: _Recorder) -> object:
    import torch

    recorder.stage("forward")
    recorder.outside = "inputs"
    input_ids = torch.zeros(workload.batch, workload.prompt_tokens, dtype=torch.int64)
    with torch.no_grad():
        return input_ids, model(input_ids=input_ids)


def _train(model: Any, workload: TraceRequest, recorder: _Recorder) -> object:
    """Steps as transformers' Trainer makes them: no cache, logits let go with the outputs, gradients dropped after the step."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise UsageError("trace_none_trained", pattern=workload.trained)
    optimizer = optimizer_of(workload.optimizer, trained)
    for _ in range(workload.steps):
        for _ in range(workload.accumulate):
            recorder.stage("forward")
            recorder.outside = "inputs"
            input_ids = torch.zeros(workload.batch, workload.prompt_tokens, dtype=torch.int64)
            labels = torch.zeros_like(input_ids)
            loss = model(input_ids=input_ids, labels=labels, use_cache=False).loss
            if workload.accumulate > 1:
                loss = loss / workload.accumulate
            recorder.stage("backward")
            recorder.outside = "backward"
            loss.backward()
            loss = loss.detach()  # and its graph goes
        if optimizer is not None:
            recorder.stage("optimizer")
            recorder.outside = "optimizer"
            to_device(optimizer)
            optimizer.step()
            optimizer.zero_grad()
    return loss, optimizer


# --- what is recorded


class _Recorder:
    """Turns storages that come and go into events."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.stages: list[Stage] = []
        self.modules: list[str] = []  # those being run, innermost last
        self.outside = ""  # what to name where none is
        self.operator: str | None = None  # what to name instead of torch's operators
        self.owner: str | None = None  # what to name instead of the module being run
        self.recording = True
        self.closed = False
        self._ids: dict[int, int] = {}  # of living storages, by their address
        self._left_out: set[int] = set()  # addresses of living storages that are not counted
        self._allocations: list[Allocate] = []

    def stage(self, name: str) -> None:
        self.stages.append(Stage(name=name, first_event=len(self.events)))

    def see(self, tensor: Any, operator: str, *, module: str) -> None:
        """Count the tensor's storage, if it is a new one."""
        if tensor.device.type == "meta":
            return  # where DTensor works out a shape
        storage = tensor.untyped_storage()
        address: int = storage._cdata
        if address in self._ids or address in self._left_out or self.closed or not (size_bytes := storage.nbytes()):
            return
        allocation = Allocate(len(self._allocations), size_bytes, module, operator)
        self._ids[address] = allocation.id
        self._allocations.append(allocation)
        self.events.append(allocation)
        weakref.finalize(storage, self._release, address, allocation.id).atexit = False

    def resize(self, tensor: Any, size_bytes: int) -> None:
        """The tensor's storage is about to be given back (0 bytes), or taken again, though Python holds it all the time."""
        storage = tensor.untyped_storage()
        address: int = storage._cdata
        if size_bytes == 0 and address in self._ids:
            self._release(address, self._ids[address])
        elif size_bytes and storage.nbytes() == 0:
            storage.resize_(size_bytes)
            self.see(tensor, GATHERED, module=self.owner or self.outside)

    def leave_out(self, tensor: Any, *_: Any, **__: Any) -> None:
        """Never count the tensor's storage: it is on the host."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._ids and storage._cdata not in self._left_out:
            self._left_out.add(storage._cdata)
            weakref.finalize(storage, self._left_out.discard, storage._cdata).atexit = False

    def rename(self, parameters: Iterable[Any], operator: str) -> None:
        """What has become a parameter since it was made is one: a bias that bitsandbytes cast to what it computes in."""
        for parameter in parameters:
            number = self._ids.get(parameter.untyped_storage()._cdata)
            if number is None:  # a rank's part may be nothing
                continue
            made = self._allocations[number]
            if made.operator not in (operator, ADAPTER, GATHERED):
                self._allocations[made.id] = made._replace(operator=operator)
                self.events[self.events.index(made)] = self._allocations[made.id]

    def origin(self, tensor: Any) -> tuple[str, str]:
        """Module and operator that allocated the tensor's storage."""
        allocation = self._allocations[self._ids[tensor.untyped_storage()._cdata]]
        return allocation.module, allocation.operator

    def regrown(self, tensor: Any, shape: tuple[int, ...]) -> Any:
        """The tensor, or one of another shape from the same origin."""
        if tensor.shape == shape:
            return tensor
        module, operator = self.origin(tensor)
        with self.paused():
            larger = tensor.new_zeros(shape)
        self.see(larger, operator, module=module)
        return larger

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Storages made here are no events; those that go here are."""
        self.recording = False
        try:
            yield
        finally:
            self.recording = True

    @contextmanager
    def named(self, operator: str, module: str | None = None) -> Iterator[None]:
        """Storages made here are this operator's, and this module's."""
        self.operator, self.owner = operator, module
        try:
            yield
        finally:
            self.operator = self.owner = None

    def _release(self, address: int, identity: int) -> None:
        if self._ids.get(address) != identity:
            return  # given back before, though Python held it still
        del self._ids[address]
        if not self.closed:
            self.events.append(Free(identity))


@contextmanager
def _recording(recorder: _Recorder, model: Any, root: str, shared: Sequence[type]) -> Iterator[None]:
    """Record every operator below autograd, with the module whose forward it is part of, or whose gradient it computes.

    shared: types of tensors whose operators are made of others, on this rank's parts.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    owners: dict[int, str] = {id(weight): name.rpartition(".")[0] or root for name, weight in model.named_parameters()}
    module_of_node: dict[int, str] = {}  # by the sequence number that autograd gives the nodes of its graph
    names: dict[Any, str] = {}
    aten = torch.ops.aten
    add = aten.add.Tensor
    # What autograd's engine does in place, but not where a dispatch mode is on. Sources: torch 2.13, torch/csrc/autograd,
    # input_buffer.cpp, can_accumulate_inplace; FunctionsManual.cpp, index_backward and value_selecting_reduction_backward
    in_place = {
        add: aten.add_.Tensor,
        aten.index_put.default: aten.index_put_.default,
        aten.scatter.src: aten.scatter_.src,
    }
    held_by_autograd: list[tuple[int, int]] = []
    flash_backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    on_host = {aten.lift_fresh.default, aten.scalar_tensor.default}
    arrived = torch.ops._c10d_functional.wait_tensor.default if shared else None

    def module_now() -> str:
        if recorder.modules:
            if torch.is_grad_enabled():
                module_of_node[torch.autograd._get_sequence_nr() - 1] = recorder.modules[-1]
            return recorder.modules[-1]
        node = torch._C._current_autograd_node()
        if node is None:
            return recorder.outside
        if hasattr(node, "variable"):
            return owners.get(id(node.variable), recorder.outside)
        return module_of_node.get(node._sequence_nr(), recorder.outside)

    def holders(tensor: Any) -> tuple[int, int]:
        return tensor._use_count(), torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)

    def in_backward() -> bool:
        """In autograd's own part of it, not where checkpointing runs a module again."""
        return not (recorder.modules or torch.is_grad_enabled()) and torch._C._current_autograd_node() is not None

    def sums_gradients(first: Any, second: Any) -> bool:
        """Whether autograd adds two gradients of a tensor, the first of which nobody else holds. Source: see `in_place`."""
        if not recorder.recording:
            held_by_autograd.append(holders(first))
        dense: bool = aten.is_non_overlapping_and_dense.default(first)
        return dense and first.shape == getattr(second, "shape", None) and holders(first) == held_by_autograd[0]

    class Recording(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if any(one in shared for one in types):
                return NotImplemented  # and its parts come here next
            if operator is arrived:
                return args[0]  # which is what it gives back, but not of fake tensors
            module = module_now()
            name = names.get(operator)
            if name is None:
                name = names[operator] = str(operator).replace("_for_cpu", "")
            if operator in in_place and in_backward() and (operator is not add or sums_gradients(*args)):
                operator = in_place[operator]
            if (
                operator is aten.convolution.default
            ):  # which begins by making its input so. Source: torch 2.13, Convolution.cpp
                args = (args[0].contiguous(), *args[1:])
                if recorder.recording:
                    recorder.see(args[0], name, module=module)
            scratch = _dequantised(*args, **(kwargs or {})) if name == GEMM_4BIT else ()
            for made_by, tensor in scratch:
                recorder.see(tensor, made_by, module=module)
                del tensor
            outputs = operator(*args, **(kwargs or {}))
            if recorder.recording:
                # AdamW counts its steps on the host, unless it is fused; and what a rank's part of an embedding is masked with.
                masking = shared and module.endswith("embed_tokens")
                left_out = operator in on_host and (module == "optimizer" or masking)
                see = recorder.leave_out if left_out else recorder.see
                for tensor in _tensors(outputs):
                    see(tensor, recorder.operator or name, module=recorder.owner or module)
            del scratch
            if operator is flash_backward:
                for tensor in _flash_backward_scratch(args[1], args[2]):
                    recorder.see(tensor, FLASH_SCRATCH, module=module)
            return outputs

    for name, module in model.named_modules():
        module.register_forward_pre_hook(partial(_enter, recorder.modules, name or root))
        module.register_forward_hook(partial(_leave, recorder.modules), always_call=True)
    with Recording():
        if model.training:
            with recorder.paused():  # A sum of two gradients of which autograd holds the first alone.
                twice = torch.zeros(1, requires_grad=True) * 2
                (twice.sigmoid() * twice).sum().backward()
        yield


def _enter(modules: list[str], name: str, *_: Any) -> None:
    modules.append(name)


def _leave(modules: list[str], *_: Any) -> None:
    modules.pop()


def _tensors(outputs: Any) -> Iterator[Any]:
    if hasattr(outputs, "untyped_storage"):
        yield outputs
    elif isinstance(outputs, (list, tuple)):
        for output in outputs:
            yield from _tensors(output)

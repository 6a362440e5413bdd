"""Traces the memory requests of the real transformers class on fake tensors: no weights, no GPU.

Shapes, order and lifetimes come from Python and PyTorch themselves: the model runs, only its kernels compute nothing. A storage
is allocated when it is first seen, and freed when Python frees it. Fake tensors are on `cpu`, the only device that works in a
build of torch without CUDA; where CUDA would take another path, the trace takes CUDA's (see `as_on_cuda`).

Assumed: sequences of equal length or padded to it, greedy sampling, and for linear-attention layers the reference code of
transformers, which runs if no kernels for them are installed. Of kernels' scratch only that of flash attention's backward is
traced. Not counted: empty tensors, for which nothing is allocated, and AdamW's step counters, which are on the host.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from functools import partial

from ..architectures.generic.building import as_loaded, in_float32
from ..architectures.patterns import search, selects
from ..architectures.reading import shown
from ..architectures.thinkers import thinker_of
from ..errors import MalformedError, UnavailableError, UnsupportedError, UsageError
from ..results.media import Media
from ..results.memory import Mode, Optimizer
from ..results.ranks import Place
from ..results.timeline import ADAPTER, Timeline
from ..results.training import Loop
from ..spec import ModelSpec
from ..typed import Any, Literal
from ..values import dataclass, replace
from .adapting import (
    Adapters,
    adapt,
    checkpoint,
    fake_parameters,
    hold_in_four_bits,
    is_added,
    parts_of,
    prepare_for_training,
    shared_codes,
    without_moves,
)
from .alike_calls import alike_calls
from .autocast import autocast, cuda_lists, let_go_in_order, scaler_of
from .bases import Base, hold
from .cached import CACHE_NAMES, is_state, tensors_of
from .configuring import configuration_of
from .few_turns import few_turns
from .fused_losses import fuse_loss
from .kernels import as_on_cuda, flash_attention_2, masks_of_ones, replaced
from .known_values import known_values, turns_by_length
from .media import media_inputs, refuse_a_trained_tower, stages_of, tower_that_hears
from .offloading import offloaded
from .one_rank import (
    cut,
    cut_by_accelerate,
    gathering,
    local,
    logits_shape_known,
    materialise,
    shapes_worked_out,
    shared_types,
    standing_at,
    unloaded,
)
from .one_row import one_row
from .optimizers import move_tables, optimizer_of, page
from .partitioned import Partitioning
from .partitioned_modules import linear_without_weight
from .recorder import Recorder, recording
from .scoring import score
from .selecting import known_selections
from .steps import train, train_by_engine
from .towers import with_few_layers
from .unsloth_loss import TILED_FROM
from .without_data import fake_mode
from .zero import in_one_dtype
from .zero_3 import Partitioned

AttentionKernel = Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_2_repeated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """A workload, and the kernels it is traced with.

    attention: "auto" as in `Run`; flash_attention_2_repeated as before transformers 4.48, which repeated K and V for every query
    head first.
    new_tokens: of `generate`; the last is not fed back, so the cache ends at prompt_tokens + new_tokens - 1.
    optimizer, checkpointing, trained, frozen, steps, accumulate, lora: for `train`. trained, frozen: regular expressions searched
    in names; those parameters train that match the first and, unless it is empty, not the second. steps: optimizer states do not
    exist in the first step; the second shows the steady state. accumulate: micro-batches of `batch` sequences whose gradients are
    summed in a step. lora: train adapters instead. layers: trace only the first so many layers. tower_layers: of a tower's layers
    trace only these.
    device: "cuda" or "cpu", which compute experts differently while decoding.
    base: the layout of quantised weights, if not training. static_tokens: capacity of a static cache of `generate`; None: the
    cache grows. padded: there is a mask with padding. cudnn: masked 16-bit attention uses cuDNN, as on Hopper, else the
    memory-efficient kernel. autocast: the dtype of torch.autocast around each forward (of `generate` around the whole loop);
    float16 trains with a gradient scaler. mixed: the dtype of accelerate's FSDP2, which `trace` puts in autocast's place.
    loop: what is around a training step.
    media: images, videos and audio that every sequence begins with.
    packed: a batch without a mask gets one of packed sequences, as in transformers 4.53 to 4.57.
    scored: of `train`: no step, but log-probabilities without gradients.
    few_chunks: of `train` too, linear attention's loop over the prompt ends after CHUNK_TURNS turns.
    tiled_from: as in `unsloth_loss`.
    by_deepspeed: of `train`, DeepSpeed's engine runs the forward and the backward; its optimizer is left out (`zero.on_rank`).
    reduces_each: of `by_deepspeed`, gradients are reduced after each micro-batch. partitioned: stage 3 on one rank, with its
    optimizer.
    """

    mode: Mode
    prompt_tokens: int
    batch: int = 1
    new_tokens: int = 1
    attention: AttentionKernel = "auto"
    optimizer: Optimizer = "adamw_foreach"
    checkpointing: bool = False
    trained: str = ""
    frozen: str = ""
    steps: int = 1
    accumulate: int = 1
    lora: Adapters | None = None
    layers: int | None = None
    tower_layers: tuple[int, ...] | None = None
    device: str = "cuda"
    base: Base | None = None
    static_tokens: int | None = None
    padded: bool = False
    cudnn: bool = False
    autocast: str | None = None
    mixed: str | None = None
    loop: Loop = Loop()
    packed: bool = False
    media: Media | None = None
    scored: bool = False
    few_chunks: bool = False
    tiled_from: int = TILED_FROM
    by_deepspeed: bool = False
    reduces_each: bool = False
    partitioned: Partitioning | None = None

    @property
    def prepared(self) -> bool:
        """Whether adapters are trained beside a base in 4 bits, which PEFT prepares if one device holds it."""
        return self.lora is not None and self.lora.base is not None

    def __post_init__(self) -> None:
        for name in ("batch", "prompt_tokens", "new_tokens", "steps", "accumulate", "layers"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise UsageError("trace_count", name=name, found=count)
        try:
            search(self.trained)
        except (MalformedError, UnsupportedError):
            raise UsageError("trace_pattern", pattern=shown(self.trained)) from None


def trace(spec: ModelSpec, config: Mapping[str, Any], workload: TraceRequest, place: Place | None = None) -> Timeline:
    """The run of `spec.class_name` built from `config`, or one rank's part of it at `place`. Its stages:

    load      one Allocate for each parameter and buffer (tied ones once; operator "parameter", "adapter" or "buffer"), with
              the module that owns it. Nothing else, and no Free: a loader's own events can replace this stage.
    generate  prefill; decode: the last decode step alone, whose first events grow the cache to its length then. No decode
              if new_tokens is 1. Before prefill, with images or videos, vision: their tower; with audio, audio: the prompt's
              embeddings and its tower.
    forward   forward: logits of every token, and a cache.
    train     for each step: forward (ends with the loss) and backward of each micro-batch, optimizer (ends with gradients
              dropped; none for `none`).

    Alive at the end: for `generate` the cache and the tokens, for `forward` the outputs.
    UnavailableError without torch, UnsupportedError if transformers cannot run the model this way.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UnavailableError("extra_missing", package=error.name, extra="torch") from None
    base = workload.base if workload.lora is None else workload.lora.base
    if "quantization_config" in config and base is None:
        raise UnsupportedError("trace_quantized", class_name=spec.class_name)
    attended = workload.autocast or spec.dtype.torch_name
    if workload.attention.startswith("flash") and attended not in ("bfloat16", "float16"):
        raise UnsupportedError("trace_flash_dtype", dtype=spec.dtype.torch_name)
    if workload.attention.startswith("flash") and workload.padded:
        raise UnsupportedError("trace_flash_padded")
    if workload.attention.startswith("flash") and workload.media is not None:
        raise UnsupportedError("trace_flash_media")
    from huggingface_hub.errors import StrictDataclassError

    if _is_by_accelerate(workload, place):
        workload = replace(workload, autocast=None, mixed=workload.autocast)
    recorder = Recorder(workload.device)
    collecting = gc.isenabled()
    gc.disable()  # A cycle must not be freed at a moment of the collector's choice.
    try:
        with ExitStack() as stack:
            packed = workload.packed or (workload.loop.in_one_row(workload.batch) or 1) > 1
            may_mask = workload.padded or packed or workload.media is not None
            masked = may_mask and workload.device == "cuda"
            stack.enter_context(
                as_on_cuda(
                    recorder if masked else None,
                    cudnn=workload.cudnn,
                    device=workload.device,
                    packed=packed,
                )
            )
            if workload.autocast is not None:
                stack.enter_context(let_go_in_order(recorder.events))
                stack.enter_context(nullcontext() if workload.device == "cpu" else cuda_lists())
            if workload.lora is not None:
                stack.enter_context(fake_parameters())
            model = _fake_model(spec, config, workload, place, recorder, stack)
            if workload.media is not None and workload.mode == "train":
                refuse_a_trained_tower(model)
            partitioned = None
            if workload.by_deepspeed:
                in_one_dtype(model, getattr(torch, spec.dtype.torch_name))
            if workload.partitioned is not None:
                partitioned = Partitioned(model, workload.partitioned, recorder)
                stack.enter_context(replaced([(torch.nn.functional, "linear", linear_without_weight())]))
            thinker = thinker_of(model)
            run = _runs(thinker, spec, workload, partitioned)
            labelled = workload.loop.labelled_tokens(workload.batch, workload.prompt_tokens)
            fuse_loss(model, workload.loop, labelled, workload.tiled_from)
            if workload.mode != "train" or workload.few_chunks:
                stack.enter_context(few_turns(model))
            if workload.mode != "train":
                stack.enter_context(alike_calls(recorder) if workload.media is not None else nullcontext())
            elif (workload.loop.masked or workload.scored) and not workload.padded:
                stack.enter_context(masks_of_ones(model))
            if workload.media is not None or turns_by_length(model):
                stack.enter_context(known_values(recorder, workload.device))
            stack.enter_context(recording(recorder, model, spec.class_name, () if place is None else shared_types()))
            if workload.static_tokens is None:
                stack.enter_context(known_selections(model, recorder))
            recorder.stage("load")
            if partitioned is not None:
                partitioned.load()
            _load(model, recorder, spec.class_name)
            if workload.mode != "train":  # training's backward runs outside autocast
                stack.enter_context(autocast(workload.autocast, "cpu"))
            if workload.mode == "generate" and workload.media is not None and workload.media.clips:
                recorder.after[tower_that_hears(model)] = "prefill"
            alive = run(thinker, workload, recorder)
            if place is None and partitioned is None:
                recorder.rename(model.parameters(), "parameter")
            recorder.closed = True
            del alive
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
    return Timeline(
        events=tuple(recorder.events),
        stages=tuple(recorder.stages),
        kept=tuple(recorder.kept.items()),
        sums=tuple(recorder.sums.items()),
        cast=workload.prepared and place is None and spec.dtype.torch_name != "float32",
        owners=tuple(recorder.owners.items()),
        ready=tuple(recorder.ready),
    )


# --- the model


def settings_of_layers(config: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """What transformers' configuration lists layer by layer of a decoder.

    UnavailableError without torch.
    """
    text = configuration_of(config).get_text_config(decoder=True)
    layers = text.num_hidden_layers
    values = (value for _, value in sorted(text.to_dict().items()))
    lists = [value for value in values if isinstance(value, (list, tuple)) and len(value) == layers]
    return [tuple(repr(value[layer]) for value in lists) for layer in range(layers)]


def _fake_model(
    spec: ModelSpec,
    config: Mapping[str, Any],
    workload: TraceRequest,
    place: Place | None,
    recorder: Recorder,
    stack: ExitStack,
) -> Any:
    """The model on fake tensors, whole or one rank's shard; enters the fake mode for what follows."""
    import torch

    without_data = fake_mode()
    if place is None:
        stack.enter_context(without_data)
        return _build(spec, config, workload, place, recorder, stack)
    stack.enter_context(standing_at(place))
    by_accelerate = _is_by_accelerate(workload, place)
    with torch.device("meta") if by_accelerate else unloaded():
        model = _build(spec, config, workload, place, recorder, stack)
    model = (
        cut_by_accelerate(model, place, dtype=workload.mixed, by_peft=workload.lora is not None)
        if by_accelerate
        else cut(model, place)
    )
    stack.enter_context(without_data)
    materialise(model)
    if workload.prepared:
        stack.enter_context(shared_codes(model))
    stack.enter_context(gathering(recorder.named, recorder.resize))
    if place.how.offload:
        stack.enter_context(offloaded(model, recorder))
    stack.enter_context(shapes_worked_out(recorder.paused))
    stack.enter_context(logits_shape_known(model, workload.batch))
    return model


def _is_by_accelerate(workload: TraceRequest, place: Place | None) -> bool:
    """Whether accelerate applies FSDP2, with a mixed precision that takes autocast's place."""
    return place is not None and place.how.fsdp > 1 and workload.mode == "train" and workload.loop.accelerated


def _build(
    spec: ModelSpec,
    config: Mapping[str, Any],
    workload: TraceRequest,
    place: Place | None,
    recorder: Recorder,
    stack: ExitStack,
) -> Any:
    """The model with fake parameters and buffers, in the state of its mode; whole, whatever the place."""
    import torch
    import transformers
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    configuration = configuration_of(config)
    if workload.layers is not None:
        text = configuration.get_text_config(decoder=True)
        text.num_hidden_layers = workload.layers
        # In some classes they follow from the number.
        if len(getattr(text, "layer_types", None) or ()) > workload.layers:
            text.layer_types = text.layer_types[: workload.layers]
    if workload.tower_layers is not None:
        with_few_layers(configuration, workload.tower_layers)
    model_class = getattr(transformers, spec.class_name)
    flash = workload.attention.startswith("flash")
    # None for transformers' own choice, so that each part of a composite model makes its own.
    implementation = None if workload.attention in ("auto", spec.kernel) else workload.attention
    # Some classes read the values that they draw, which fake tensors do not have; some cast parts, and torch cannot swap those.
    unread = [
        (transformers.PreTrainedModel, "initialize_weights", lambda _: None),
        (torch.nn.Module, "float", in_float32),
    ]
    with replaced(unread):
        dtype = getattr(torch, spec.dtype.torch_name)
        model = model_class._from_config(
            configuration, dtype=dtype, attn_implementation="eager" if flash else implementation
        )
        as_loaded(model, dtype)
    for module in model.modules():
        if isinstance(types := getattr(module, "unique_layer_types", None), set):
            module.unique_layer_types = sorted(
                types
            )  # Gemma 4's tables of RoPE, in an order that Python draws for each process
    if flash:
        # The real name requires the package. transformers treats any name with "flash" in it as flash attention.
        name = "traced_flash_attention_2"
        ALL_ATTENTION_FUNCTIONS[name] = flash_attention_2(
            recorder,
            repeated=workload.attention.endswith("repeated"),
            sequences=workload.loop.in_one_row(workload.batch),
        )
        stack.callback(ALL_ATTENTION_FUNCTIONS.__delitem__, name)
        model.config._attn_implementation = name
    if workload.mode != "train":
        if workload.base is not None:
            hold(model, workload.base)
        return model.eval()
    if workload.lora is not None and workload.lora.base is not None:
        hold_in_four_bits(model, workload.lora.base)
    if workload.prepared and place is None:
        prepare_for_training(model, checkpointing=workload.checkpointing)
    elif workload.checkpointing:
        checkpoint(model)
    if workload.lora is not None:
        with without_moves():
            adapt(model, workload.lora)
        return model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(selects(workload.trained, workload.frozen)(name))
    return model.train()


def _load(model: Any, recorder: Recorder, root: str) -> None:
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in named:
            operator = ADAPTER if is_added(name) else kind
            recorder.see(local(tensor), operator, module=name.rpartition(".")[0] or root)
    for name, module in model.named_modules():
        for tensor in parts_of(module):
            recorder.see(tensor, "parameter", module=name)


# --- the runs


def _runs(
    model: Any, spec: ModelSpec, workload: TraceRequest, partitioned: Partitioned | None
) -> Callable[[Any, TraceRequest, Recorder], object]:
    parameters = inspect.signature(model.forward).parameters
    if workload.padded and "attention_mask" not in parameters:
        raise UnsupportedError("trace_no_mask", class_name=spec.class_name)
    if workload.mode == "generate" and getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedError("memory_encoder_decoder")
    headed = "labels" in parameters
    match workload.mode:
        case "generate" if headed and model.can_generate():
            return _generate
        case "train" if workload.scored:
            return score
        case "train" if headed and workload.by_deepspeed:
            return partial(_train_by_deepspeed, partitioned=partitioned)
        case "train" if headed:
            return _train
        case "forward":
            return _forward
        case _:
            raise UnsupportedError("trace_no_head", class_name=spec.class_name, mode=workload.mode)


def _inputs(model: Any, workload: TraceRequest) -> dict[str, Any]:
    """What the caller passes and keeps: tokens, images, videos and audio, and the mask of a padded batch."""
    import torch

    masked = workload.padded or (workload.mode == "train" and workload.loop.masked)
    if workload.media is not None:
        size = {"batch": workload.batch, "prompt_tokens": workload.prompt_tokens}
        return media_inputs(model, workload.media, **size, masked=masked)
    if (sequences := workload.loop.in_one_row(workload.batch)) is not None:
        return one_row(workload.batch * workload.prompt_tokens, sequences)
    input_ids = torch.zeros(workload.batch, workload.prompt_tokens, dtype=torch.int64)
    return {"input_ids": input_ids, **({"attention_mask": torch.ones_like(input_ids)} if masked else {})}


def _generate(model: Any, workload: TraceRequest, recorder: Recorder) -> object:
    """The loop of `generate`, only its first and its last step.

    Source: transformers 5.23, generation/utils.py, `generate` and `_sample`, which drop an attention mask that masks nothing.
    """
    import torch
    from transformers import MaxLengthCriteria, StoppingCriteriaList

    stages = stages_of(workload.media)
    recorder.stage(stages[0])
    recorder.outside = "inputs"
    inputs = _inputs(model, workload)
    prompt, padding_mask = inputs["input_ids"], inputs.get("attention_mask")
    further = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    recorder.outside = "generate"
    attention_mask = torch.ones(prompt.shape, dtype=torch.int64) if padding_mask is None else padding_mask
    prompt_positions = model._prepare_position_ids_for_generation(prompt, {"attention_mask": attention_mask, **further})
    del attention_mask
    if workload.media is not None:
        with torch.no_grad():
            further = model._maybe_prepare_encoder_kwargs_for_generation(prompt, further, "input_ids", None)
        if stages[1:]:
            recorder.stage(stages[1])
    cache = _empty_cache(model, workload)
    _check_recomputed(model, workload)
    stops = StoppingCriteriaList([MaxLengthCriteria(workload.prompt_tokens + workload.new_tokens)])
    unfinished = torch.ones(workload.batch, dtype=torch.int64)
    name = CACHE_NAMES["mamba" in type(model).__name__.lower()]  # as in `_prepare_cache_for_generation`
    options: dict[str, Any] = {name: cache, "use_cache": True}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = 1
    # The loop's caller keeps these initial tensors until the end.
    input_ids, position_ids, attention_mask = prompt, prompt_positions, padding_mask
    for stage in ("prefill", "decode")[: workload.new_tokens]:
        if stage == "decode":
            recorder.stage("decode")
            _decode_experts(model, workload.device)
            tokens = workload.prompt_tokens + workload.new_tokens - 2
            if workload.static_tokens is None:
                _grow_cache(cache, tokens, recorder)
                _keep(cache, recorder)
            input_ids = recorder.regrown(input_ids, (workload.batch, tokens + 1))
            position_ids = recorder.regrown(position_ids, (*position_ids.shape[:-1], tokens + 1))
            if turns_by_length(model):
                with recorder.paused():
                    position_ids.copy_(torch.arange(tokens + 1))
            if attention_mask is not None:
                attention_mask = recorder.regrown(attention_mask, (workload.batch, tokens + 1))
        prepared = model.prepare_inputs_for_generation(
            input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            is_first_iteration=stage == "prefill",
            next_sequence_length=None if stage == "prefill" else 1,
            **options,
            **further,
        )
        with torch.no_grad():
            outputs = model(**prepared, return_dict=True)
        if stage == "prefill":
            del prepared
        if (own := getattr(outputs, name, None)) is not None:  # another one than before if the class made its own
            options[name] = cache = own
            del own
        position_ids, attention_mask = _one_token_longer(position_ids, attention_mask)
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)
        next_tokens = torch.argmax(logits, dim=-1)
        input_ids = torch.cat([input_ids, next_tokens[:, None]], dim=-1)
        unfinished = unfinished & ~stops(input_ids, None)
        del outputs
        _keep(cache, recorder)
    return inputs, input_ids, cache


def _check_recomputed(model: Any, workload: TraceRequest) -> None:
    """Raises UnsupportedError for a run in whose middle the class computes all tokens again: a step that is not traced.

    Source: transformers 5.23, Phi3ForCausalLM.prepare_inputs_for_generation
    """
    original = getattr(model.config, "original_max_position_embeddings", None)
    if type(original) is not int or "prepare_inputs_for_generation" not in vars(type(model)):
        return
    cached = workload.prompt_tokens + workload.new_tokens - 1
    if workload.prompt_tokens <= original and cached > original + 1:
        raise UnsupportedError("trace_recomputed", class_name=type(model).__name__, tokens=original)


def _one_token_longer(position_ids: Any, attention_mask: Any) -> tuple[Any, Any]:
    """Positions and mask for the next step.

    Source: transformers 5.23, generation/utils.py, _update_model_kwargs_for_generation
    """
    import torch

    positions = torch.cat([position_ids, torch.arange(1).view(1, 1) + position_ids[..., -1:] + 1], dim=-1)
    if attention_mask is None:
        return positions, None
    ones = attention_mask.new_ones((attention_mask.shape[0], 1))
    return positions, torch.cat([attention_mask, ones], dim=-1)


def _empty_cache(model: Any, workload: TraceRequest) -> Any:
    """The cache that `generate` makes. Each layer of a static one has a counter, allocated on CUDA with the first tokens.

    Source: transformers 5.23, generation/utils.py, _prepare_static_cache; cache_utils.py, StaticLayer.lazy_initialization
    """
    from transformers import DynamicCache, StaticCache

    config = model.config.get_text_config(decoder=True)
    if workload.static_tokens is None:
        return DynamicCache(config=config)
    return StaticCache(config=config, max_cache_len=workload.static_tokens)


def _decode_experts(model: Any, device: str) -> None:
    """Selects the experts' implementation for decoding as `generate` does: on CUDA each token's experts are gathered first.

    Source: transformers 5.23, generation/utils.py, _optimize_model_for_decode
    """
    chosen = model.get_experts_implementation()
    if device != "cpu" and "grouped_mm" in chosen.values():
        model.set_experts_implementation(
            {part: "batched_mm" if kind == "grouped_mm" else kind for part, kind in chosen.items()}
        )


def _grow_cache(cache: Any, tokens: int, recorder: Recorder) -> None:
    """Grows every layer's cache to `tokens` tokens, with the last one added in its own step."""
    for layer in cache.layers:
        if getattr(layer, "keys", None) is None:
            continue  # A recurrent state: it does not grow.
        missing = tokens - layer.get_seq_length()
        if missing == 0:
            continue
        index = getattr(layer, "indexer_keys", None)
        origins = [recorder.origin(tensor) if tensor.numel() else ("", "") for tensor in (layer.keys, layer.values)]
        with recorder.paused():
            for count in (missing - 1, 1):
                keys, values = (
                    tensor.new_empty((*tensor.shape[:2], count, tensor.shape[3]))
                    for tensor in (layer.keys, layer.values)
                )
                layer.update(keys, values)
        for tensor, (module, operator) in zip((layer.keys, layer.values), origins, strict=True):
            recorder.see(tensor, operator, module=module)
        if index is not None:
            layer.indexer_keys = recorder.regrown(index, (index.shape[0], tokens, index.shape[2]))


def _forward(model: Any, workload: TraceRequest, recorder: Recorder) -> object:
    import torch

    recorder.stage("forward")
    recorder.outside = "inputs"
    inputs = _inputs(model, workload)
    with torch.no_grad():
        outputs = model(**inputs)
    for name in CACHE_NAMES:
        _keep(getattr(outputs, name, None), recorder)
    return inputs, outputs


def _keep(cache: Any, recorder: Recorder) -> None:
    """Marks the cache's current storages in the record."""
    for name, tensor in tensors_of(cache):
        recorder.keep(local(tensor), "state" if is_state(name) else "cache")


def _train(model: Any, workload: TraceRequest, recorder: Recorder) -> object:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise UsageError("trace_none_trained", pattern=workload.trained)
    with recorder.paused():  # An 8-bit optimizer makes its tables on the host.
        optimizer = optimizer_of(workload.optimizer, model, workload.loop)
        scaler = scaler_of(workload.autocast or workload.mixed, "cpu")

    def on_host(parameter: Any, dtype: Any) -> Any:
        with recorder.paused():
            state = parameter.new_empty(parameter.shape, dtype=dtype)
        recorder.leave_out(state)
        return state

    if workload.device == "cuda":
        page(optimizer, on_host)
    move_tables(optimizer)

    def stage(name: str) -> None:
        recorder.stage(name)
        recorder.outside = "inputs" if name == "forward" else name
        if name == "optimizer":
            recorder.own((name.rpartition(".")[0], parameter) for name, parameter in model.named_parameters())

    def average() -> object:
        """torch.optim.swa_utils.AveragedModel: a deep copy, which `update_parameters` then changes in place (torch 2.13)."""
        tensors = (tensor for module in model.modules() for tensor in _own_tensors(module))
        with recorder.named("aten.clone.default", module="optimizer"):
            return [tensor.detach().clone() for tensor in dict.fromkeys(tensors)]

    return train(
        model,
        lambda: _inputs(model, workload),
        stage,
        optimizer=optimizer,
        scaler=scaler,
        steps=workload.steps,
        accumulate=workload.accumulate,
        autocast_dtype=workload.autocast,
        device="cpu",
        loop=workload.loop,
        average=average,
    )


def _train_by_deepspeed(
    model: Any, workload: TraceRequest, recorder: Recorder, *, partitioned: Partitioned | None
) -> object:
    if partitioned is None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(recorder.gradient)

    def stage(name: str) -> None:
        first = len(recorder.stages) == 1
        recorder.stage(name)
        if first and partitioned is not None:
            partitioned.make_states()
        recorder.outside = "inputs" if name == "forward" else name
        if name == "optimizer" and partitioned is not None:
            partitioned.step()

    return train_by_engine(
        model if partitioned is None else partitioned.module,
        lambda: _inputs(model, workload),
        stage,
        recorder.reduced if partitioned is None else partitioned.reduced,
        last_alone=partitioned is None and not workload.reduces_each,
        loop=workload.loop,
        steps=workload.steps,
        accumulate=workload.accumulate,
    )


def _own_tensors(module: Any) -> tuple[Any, ...]:
    return (*module.parameters(recurse=False), *module.buffers(recurse=False))

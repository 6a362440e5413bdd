"""Makes the traces of families in the package, for installs without torch: `keep_traces.py MODEL_TYPE ...`, or the catalog's.

With `--more`, only what the kept traces do not cover is learnt.

Each is learnt from traces of random configurations, of the structures that releases have and of some more, and is held against
traces of others, event by event. Needs the torch extra.
"""

from __future__ import annotations

import inspect as python
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice, permutations
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.learning import NotLearnt, Sample, learn
from benchmarks.sampling import EXPERTS, PER_TOKEN, SIZES, WINDOWS, sampled, sampled_point, turned_share
from qwen_inspect.architectures.families import CLASSES
from qwen_inspect.checkpoint import Checkpoint, ModelRef
from qwen_inspect.errors import QwenInspectError, UnsupportedError
from qwen_inspect.loaders import catalog
from qwen_inspect.predicting.family_file import SHIPPED, dump, read
from qwen_inspect.predicting.family_trace import FamilyTrace, NotCovered, Variant, loaded_of
from qwen_inspect.predicting.kept_trace import Point
from qwen_inspect.predicting.outline import (
    MOST_SINGLES,
    UNRELATED,
    Outline,
    decoder_of,
    options_of,
    outline_of,
    regime_of,
)
from qwen_inspect.predicting.predict import family_file, sample_request
from qwen_inspect.predicting.segments import apart, fixed
from qwen_inspect.results.model import Report
from qwen_inspect.structure.inspect import analyse
from qwen_inspect.tracing import versions
from qwen_inspect.tracing.trace import trace

# transformers before 4.48 repeated K and V for flash attention: the published peaks of Qwen2.5 were measured so.
KERNELS = {"qwen2": ("sdpa", "flash_attention_2_repeated")}
FLAGS = ("attention_bias", "mlp_bias", "use_bias", "qk_layernorm", "use_qk_norm", "attention_out_bias")
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SECTIONS = {**ROPE, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
SCALED = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 8192}
LATE_QUERIES = {**ROPE, **SCALED, "llama_4_scaling_beta": 0.1}
# What releases have that the class's defaults lack.
STRUCTURES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "falcon": (  # 7B, 40B, 11B, RW
        {},
        {"new_decoder_architecture": True, "num_kv_heads": 2},
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False},
    ),
    "gpt_neox": tuple(
        {"use_parallel_residual": parallel, "rope_parameters": {**ROPE, "partial_rotary_factor": share}}
        for parallel in (True, False)
        for share in (0.25, 1.0)
    ),
    "glm4v": ({"rope_parameters": SECTIONS},),
    "glm4v_moe": ({"rope_parameters": SECTIONS},),
    "lfm2_moe": ({"layer_types": 2 * ["conv", "conv", "full_attention", "conv"]},),
    "mistral3": ({}, {"model_type": "ministral3", "rope_parameters": LATE_QUERIES}),
    "mpt": ({"max_seq_len": 2048}, {"max_seq_len": 8192}),
    "phi3": tuple(
        {
            "rope_scaling": {"type": "longrope", "short_factor": pairs * [1.0], "long_factor": pairs * [2.0]},
            "partial_rotary_factor": pairs / 8,
            "original_max_position_embeddings": 4096,
            "sliding_window": 32,
        }
        for pairs in (8, 6)
    ),
    "opt": ({}, {"do_layer_norm_before": False, "word_embed_proj_dim": 32}),  # 350M is the second
}
RENAMED = ("hidden_size", "num_hidden_layers", "num_attention_heads")
SAMPLES, CHECKS = 8, 2  # of each regime, and samples of each sequence of layers
SLOW = {"linear_num_key_heads", "index_topk", "global_head_dim", "attention_chunk_size"}  # keys of slow runs
TRIES = 300  # workloads among which regimes are looked for
DIMENSIONS = {*SIZES, *EXPERTS, *PER_TOKEN, "hidden_size", "num_attention_heads", "num_key_value_heads"} | {
    "linear_num_key_heads", "linear_num_value_heads", "linear_conv_kernel_dim", "index_head_dim", "index_n_heads",
    "conv_L_cache", "global_head_dim", "num_global_key_value_heads", "rotary_dim",
}  # fmt: skip
DERIVED = {"num_kv_heads", "ffn_hidden_size", "word_embed_proj_dim"}  # from others, if they are not stated


def report_of(config: Mapping[str, Any]) -> Report:
    return analyse(Checkpoint(ref=ModelRef(source="local", id="sample"), config=config, tensors=None))


def outline(report: Report) -> Outline | None:
    if not report.settled:
        return None
    return outline_of(report.spec, report.tree, report.attention.by_config, report.cache, report.config or {})


# --- configurations


def bases(model_type: str) -> Iterator[dict[str, Any]]:
    """The released configurations of a family, and some with other options, heads, layers and another dtype."""
    known = catalog.entries()
    released = [dict(catalog.configuration(model, known)) for model in known]
    own = [config for config in released if config.get("model_type") == model_type]
    configs = own or [alone(config) for config in released if decoder_of(config).get("model_type") == model_type]
    for config in configs:
        for part in (config, decoder_of(config)):
            part.pop("quantization_config", None)  # type: ignore[attr-defined]
    if not model_type.startswith("qwen") or not own:
        configs += [small(model_type, changes) for changes in STRUCTURES.get(model_type, [{}])]
    for config in map(stated, configs):
        yield from _other_heads(config)
        yield from _other_layers(config)
        text = decoder_of(config)
        for flag in FLAGS:
            if isinstance(value := text.get(flag), bool) and not SLOW & {*text}:
                yield _with(config, {flag: not value})
    if not SLOW & {*decoder_of(configs[0])}:
        yield _with(configs[0], {"dtype": "float32", "torch_dtype": "float32"})


def alone(config: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder of a release of several parts, as a model of its own."""
    text = dict(decoder_of(config))
    dtype = text.get("dtype") or config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    return {**text, "architectures": [CLASSES[text["model_type"]][0]], "dtype": dtype}


def small(model_type: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A small configuration with the options of the class, but for `changes`."""
    import transformers

    from tests.support.small_models import SMALL, small_config

    config = renamed(small_config(model_type))
    config.setdefault("architectures", [CLASSES[model_type][0]])
    text = decoder_of(config)
    assert isinstance(text, dict)
    text["num_hidden_layers"] = 8
    for key, value in text.items():
        if isinstance(value, list) and len(value) == 4:
            text[key] = 2 * value
    if "kv_lora_rank" in text and (text.get("rope_parameters") or {}).pop("partial_rotary_factor", None):
        del text["head_dim"]  # both follow from the widths of its parts
    own = transformers.AutoConfig.for_model(model_type).get_text_config(decoder=True).to_dict()
    text.update({key: SMALL[key] for key in ("head_dim", "num_key_value_heads") if own.get(key, 0) is None})
    for key in DERIVED:
        text.pop(key, None)
    text.update(changes)
    return config


def renamed(config: dict[str, Any]) -> dict[str, Any]:
    """With the names that all classes know for what they have names of their own."""
    import transformers

    text = decoder_of(config)
    assert isinstance(text, dict)
    own = type(transformers.AutoConfig.for_model(config["model_type"]).get_text_config(decoder=True)).attribute_map
    text.update({key: text.pop(own[key]) for key in RENAMED if own.get(key) in text})
    return config


def stated(config: dict[str, Any]) -> dict[str, Any]:
    """With the sizes that a release leaves to its class."""
    import transformers

    completed = renamed(deepcopy(config))
    text = decoder_of(completed)
    own = transformers.AutoConfig.for_model(**config).get_text_config(decoder=True)
    own = {**own.to_dict(), **{key: getattr(own, key, None) for key in RENAMED}}
    wanted = DIMENSIONS - DERIVED | {"num_hidden_layers"}
    sizes = {key: own[key] for key in wanted if key not in text and isinstance(own.get(key), int)}
    derived = (None, own["hidden_size"] // own["num_attention_heads"])
    if not {"head_dim", "kv_lora_rank"} & {*text} and own.get("head_dim") not in derived:
        sizes["head_dim"] = own["head_dim"]
    text.update(sizes)  # type: ignore[attr-defined]
    return completed


def _with(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    changed = deepcopy(dict(config))
    text = decoder_of(changed)
    for part in (changed, text):
        part.update({key: value for key, value in changes.items() if key in part})  # type: ignore[attr-defined]
    return changed


def _other_heads(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    heads = decoder_of(config)["num_attention_heads"]
    yield config
    if not {"kv_lora_rank", "linear_num_key_heads"} & {*decoder_of(config)}:
        for kv_heads in (heads, heads // 2, 1):
            yield _with(config, {"num_key_value_heads": kv_heads})


def _other_layers(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """With every other layer of another kind, beginning with each, where the class has a key for that."""
    import transformers

    text = decoder_of(config)
    layers = text["num_hidden_layers"]
    configuration = transformers.AutoConfig.for_model(config["model_type"]).get_text_config(decoder=True)
    types = [*dict.fromkeys(getattr(configuration, "layer_types", None) or ())]
    if "mlp_only_layers" in configuration.to_dict() and not config["model_type"].startswith("qwen3_5"):
        for dense in ([1, 3], [0, 1, 3]):
            yield _changed(config, mlp_only_layers=dense)
    if text.get("first_k_dense_replace") and "mlp_layer_types" not in text:
        yield _changed(config, num_hidden_layers=8, first_k_dense_replace=8)
    if "sliding_window" in text and not types:  # all layers have a window, or none
        yield _changed(config, sliding_window=None if text["sliding_window"] else 32)
        types = ["sliding_attention", "full_attention"]
    elif "use_sliding_window" in text:
        types = ["sliding_attention", "full_attention"]
        yield _changed(config, use_sliding_window=True, sliding_window=32, layer_types=["sliding_attention"] * layers)
    if len(types) < 2:
        return
    for order in permutations(types):
        changed = _changed(config, layer_types=[order[index % len(order)] for index in range(layers)])
        if "sliding_window" in text:
            changed = _changed(changed, sliding_window=text["sliding_window"] or 32)
        if "use_sliding_window" in text:
            changed = _changed(changed, use_sliding_window=True)
        yield changed


def _changed(config: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    changed = deepcopy(dict(config))
    decoder_of(changed).update(changes)  # type: ignore[attr-defined]
    return changed


def layers_needed(outline: Outline) -> int:
    """The first so many layers: of each kind that the model has, one that is not the first layer."""
    kinds = [layer.structure for layer in outline.layers]
    wanted = set(kinds[1:])
    return next((count for count in range(2, len(kinds)) if set(kinds[1:count]) == wanted), len(kinds))


def defaults_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the class that its code may read and a design does not show, each with its default."""
    import transformers

    configuration = transformers.AutoConfig.for_model(config["model_type"])
    text = configuration.get_text_config(decoder=True)
    own = text.to_dict()
    model_class = getattr(transformers, CLASSES[config["model_type"]][0])
    code = python.getsource(sys.modules[model_class.__module__])
    read = set(re.findall(r"config\.([a-z_0-9]+)", code)) | set(re.findall(r"getattr\([a-z_.]*config, \"(\w+)\"", code))
    shown = UNRELATED | DIMENSIONS | {*WINDOWS, *text.attribute_map.values()}
    names = sorted({*own, *read} - shown)
    return {name: own.get(name) for name in names if name in own or not callable(getattr(type(text), name, None))}


# --- learning


@dataclass
class Group:
    """Configurations of one variant. layers: with how many layers each is traced."""

    kernel: str
    options: dict[str, Any]
    outline: Outline
    layers: dict[tuple[Any, ...], tuple[dict[str, Any], int]]
    singles: int = 0

    def regime(self, design: Outline, point: Point) -> str:
        return regime_of(design.thresholds, point, singles=self.singles)


def groups(model_type: str, defaults: Mapping[str, Any]) -> Iterator[Group]:
    found: dict[Any, Group] = {}
    for config in bases(model_type):
        try:
            report = report_of(config)
        except QwenInspectError:
            continue
        if (design := outline(report)) is None:
            continue
        options = options_of(config, defaults)
        kinds = tuple(sorted({layer.structure for layer in design.layers}))
        heads = decoder_of(config).get("num_key_value_heads") == 1
        count = layers_needed(design)
        shape = tuple(layer.structure for layer in design.layers[:count])
        for kernel in KERNELS.get(model_type, (report.spec.kernel,)):
            usual = kernel == report.spec.kernel and report.spec.dtype.bits == 16
            if design.thresholds and not usual:  # of which there are too many regimes
                continue
            if kernel.startswith("flash") and report.spec.dtype.bits != 16:
                continue
            key = kernel, repr(options), design.outside.structure, kinds, heads
            group = found.setdefault(key, Group(kernel, options, design, {}))
            group.layers.setdefault((*related(config), shape[0], *sorted(set(shape[1:]))), (config, count))
    yield from found.values()


def related(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """What sizes of a configuration and of all samples of it have in common: how they follow from others."""
    text = decoder_of(config)
    return text.get("head_dim") is None, turned_share(text), text.get("n_shared_experts")


def sample(
    group: Group, base: dict[str, Any], count: int, random: Random, regime: str, number: int = 3
) -> tuple[Sample, Report] | None:
    """A random configuration like `base`, traced; None if it has another structure or the workload another regime.

    number: of four samples one has a single sequence of a single token, one a single sequence, one single tokens, if it may be.
    """
    config = sampled(base, random)
    report = report_of(config)
    design = outline(report)
    assert design is not None
    kinds = {layer.structure for layer in design.layers}
    if design.outside.structure != group.outline.outside.structure or kinds != {
        layer.structure for layer in group.outline.layers
    }:
        return None
    tries = (sampled_point(design.thresholds, random) for _ in range(TRIES))
    points = [point for point in tries if group.regime(design, point) == regime]
    if not points:
        return None
    singles = ((True, True), (True, False), (False, True), (False, False))[number % 4]
    wanted = [point for point in points if (point.batch == 1, point.prompt_tokens == 1) == singles]
    point = (wanted or points)[0]
    request = replace(sample_request(point, group.kernel), layers=count)
    try:
        _, rest = apart(fixed(trace(report.spec, config, request)))
    except UnsupportedError:  # nor can transformers run it
        return None
    return Sample(replace(design, layers=design.layers[:count]), point, rest), report


def regimes(group: Group, random: Random) -> list[str]:
    names = set()
    base, _ = next(iter(group.layers.values()))
    for _ in range(20):
        design = outline(report_of(sampled(base, random)))
        assert design is not None
        for _ in range(TRIES // 20):
            names.add(group.regime(design, sampled_point(design.thresholds, random)))
    return sorted(names)


def learnt(group: Group, random: Random) -> Variant:
    samples: dict[str, list[Sample]] = defaultdict(list)
    for name in regimes(group, random):
        for base, count in group.layers.values():
            tries = (sample(group, base, count, random, name, number) for number in range(4 * SAMPLES))
            samples[name] += [made[0] for made in islice(filter(None, tries), SAMPLES)]
    by_regime, variables = learn(samples)
    variant = Variant(
        kernel=group.kernel,
        options=group.options,
        outside=group.outline.outside.structure,
        kinds=tuple(sorted({layer.structure for layer in group.outline.layers})),
        variables=variables,
        regimes=by_regime,
        singles=group.singles,
        least_tokens=min(sample.point.prompt_tokens for many in samples.values() for sample in many),
    )
    checks = 0
    while checks < CHECKS * len(by_regime):
        name = sorted(by_regime)[checks % len(by_regime)]
        if (made := sample(group, *random.choice([*group.layers.values()]), random, name, checks)) is None:
            continue
        unseen, report = made
        check(variant, unseen, report)
        checks += 1
    return variant


def learnt_somehow(group: Group, random: Random) -> Variant:
    """With as few regimes as suffice."""
    while True:
        try:
            return learnt(group, random)
        except NotLearnt:
            if group.singles == MOST_SINGLES:
                raise
            group.singles += 1


def check(variant: Variant, sample: Sample, report: Report) -> None:
    """Holds what is composed for an unseen configuration against its own trace."""
    _, composed = apart(variant.at(sample.outline, sample.point, loaded_of(report.tree)))
    expected, made = sample.trace.at(sample.point), composed.at(sample.point)
    if (made.events, made.stages, made.kept) != (expected.events, expected.stages, expected.kept):
        raise NotLearnt(f"{sample.point}: another run")


def covers(variant: Variant, config: Mapping[str, Any], group: Group) -> bool:
    report = report_of(config)
    design = outline(report)
    assert design is not None
    kinds = tuple(sorted({layer.structure for layer in design.layers}))
    same = (variant.kernel, variant.outside, variant.kinds) == (group.kernel, design.outside.structure, kinds)
    if not same or variant.options != group.options:
        return False
    for point in (Point(2, 50, 90), Point(2, 500, 90_000)):
        with suppress(NotCovered):
            variant.at(design, point, loaded_of(report.tree))
            return True
    return False


def main() -> None:
    known = catalog.entries()
    more = "--more" in sys.argv  # beside what is kept
    types = [name for name in sys.argv[1:] if name != "--more"]
    for model_type in types or sorted({str(catalog.configuration(model, known)["model_type"]) for model in known}):
        began = time.perf_counter()
        random = Random(model_type)
        path = SHIPPED / family_file(model_type)
        kept = read(path) if more else None
        defaults = defaults_of(next(bases(model_type))) if kept is None else kept.defaults
        variants: list[Variant] = [] if kept is None else [*kept.variants]
        print(f"{model_type}: {defaults}", flush=True)
        for group in groups(model_type, defaults):
            configs = [config for config, _ in group.layers.values()]
            older = [variant for variant in variants if any(covers(variant, config, group) for config in configs)]
            if all(any(covers(variant, config, group) for variant in older) for config in configs):
                continue
            names = {layer.structure for layer in group.outline.layers}
            try:
                variant = learnt_somehow(group, random)
                variants = [*(other for other in variants if other not in older), variant]
                family = FamilyTrace(made_by=versions(), defaults=defaults, variants=tuple(variants))
                path.write_bytes(dump(family))
                told = f"{len(variant.regimes)} regimes"
            except (NotLearnt, NotCovered, QwenInspectError) as error:
                told = f"{type(error).__name__} {error}"[:600]
            print(
                f"  {group.kernel} {group.options} {len(names)} kinds: {told}, {time.perf_counter() - began:.0f} s",
                flush=True,
            )
        size = path.stat().st_size if variants else 0
        print(f"{model_type}: {len(variants)} variants, {size:,} B, {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()

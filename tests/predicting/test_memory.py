"""GPU memory predicted with no GPU and no weights, against what others measured, and what must hold of any prediction."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wcwidth import wcswidth

from benchmarks.accuracy import GIB, Row, transformers_rows
from qwen_inspect.checkpoint import Checkpoint, ModelRef
from qwen_inspect.errors import MalformedError
from qwen_inspect.predicting.allocation.workspaces import workspace_bytes
from qwen_inspect.predicting.families.family_file import SHIPPED, dump, load
from qwen_inspect.predicting.footprint import formula_footprint, traced_footprint
from qwen_inspect.predicting.predict import predict
from qwen_inspect.predicting.sources import _traced_once, sample_request, symbolic_trace, timeline_of, trace_request
from qwen_inspect.predicting.traces.kept_trace import WITNESS, Point
from qwen_inspect.predicting.traces.turns import with_all_turns
from qwen_inspect.results.memory import Footprint, Run
from qwen_inspect.results.timeline import Allocate, Event
from qwen_inspect.structure.inspect import analyse, inspect
from qwen_inspect.tracing.trace import trace

from ..support.families import FAMILIES
from ..support.invoking import Capture, invoke
from ..support.models import TINY_QWEN3, run, write_config
from ..support.outlines import varied
from ..support.runs import a_run, without_torch
from ..support.schema import assert_keeps_to_the_schema

ROOT = Path(__file__).parents[2]
ROWS = list(transformers_rows())


def of(model: str, **changes: Any) -> Footprint:
    return predict(inspect(model, source="catalog"), a_run(**changes)).predicted


def allowed(row: Row) -> float:
    """The error that a prediction may have: nothing was fitted to these figures."""
    if row.quantity == "steady":
        return 0.001
    if "0.5B" in row.model:
        return 0.008
    return 0.0015 if row.stage == "prefill" else 0.003


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.model}-{row.input_tokens}")
def test_a_published_figure_is_met(row: Row) -> None:
    assert abs(row.predicted - row.published) <= max(allowed(row) * row.published, row.resolution)


def test_the_peak_of_long_inputs_is_the_prefill() -> None:
    assert {row.stage for row in ROWS if row.quantity == "peak" and row.input_tokens > 1} == {"prefill"}


def test_the_accuracy_page_is_what_the_tool_predicts() -> None:
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "accuracy.py", "--check"], check=False)
    assert done.returncode == 0


POINTS = (Point(1, 100, 400), Point(5, 2048, 2600), Point(2, 17, 18), Point(1, 1, 40))
KEPT_OF = ("Qwen/Qwen3-0.6B", "Qwen/Qwen2.5-0.5B", "Qwen/Qwen3-VL-2B-Instruct")


def kept_cases() -> Iterator[Any]:
    """Each model at each point; in every run the first model at all of them, and each other model at one."""
    for row, model in enumerate(KEPT_OF):
        for column, point in enumerate(POINTS):
            marks = () if row in (0, column) else pytest.mark.exhaustive
            yield pytest.param(model, point, id=f"{model}-{point}", marks=marks)


@pytest.mark.parametrize(("model", "point"), list(kept_cases()))
def test_a_kept_trace_equals_a_trace_of_a_workload_that_it_was_not_made_from(model: str, point: Point) -> None:
    from qwen_inspect.tracing.trace import trace

    report = inspect(model, source="catalog")
    kept = symbolic_trace(report, a_run(attention="sdpa"))
    assert kept is not None
    workload = a_run(
        batch=point.batch, prompt_tokens=point.prompt_tokens, new_tokens=point.total_tokens - point.prompt_tokens + 1
    )
    direct = trace(report.spec, report.config or {}, trace_request(workload))
    mine, theirs = (traced_footprint(one, workload, provenance="") for one in (kept.at(point), direct))
    assert mine == theirs


@pytest.mark.parametrize(
    "path", sorted(set(Path(SHIPPED).glob("*.gz")) - set(Path(SHIPPED).glob("*-images.*"))), ids=lambda path: path.name
)
def test_a_shipped_trace_reads_back_to_the_same_bytes(path: Path) -> None:
    content = path.read_bytes()
    assert dump(load(content, file=path.name)) == content


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\x1f\x8b\x08\x00", dump(load(next(Path(SHIPPED).glob("*.gz")).read_bytes(), file=""))[:-9]]
)
def test_a_damaged_trace_is_refused(content: bytes) -> None:
    with pytest.raises(MalformedError):
        load(content, file="x")


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 16),
    prompt=st.integers(16, 8192),
    new=st.integers(2, 512),
    loader=st.sampled_from(["warmup", "per-tensor"]),
    gpu=st.sampled_from(["sm_80", "H100"]),
)
def test_terms_add_up_and_grow_with_the_workload(batch: int, prompt: int, new: int, loader: str, gpu: str) -> None:
    model = "Qwen/Qwen3-0.6B"
    found = of(model, batch=batch, prompt_tokens=prompt, new_tokens=new, loader=loader, gpu=gpu)
    assert found.peak is not None
    assert found.peak_reserved is not None
    assert found.peak.weights == found.steady.weights == 596_049_920 * 2
    # transformers keeps the prompt and every new token but the last.
    assert found.steady.cache == 114_688 * batch * (prompt + new - 1)
    assert found.steady.workspace == workspace_bytes(gpu)
    assert known(found.steady.allocated) <= known(found.peak.allocated) <= found.peak_reserved
    assert min(known(found.peak.rounding), known(found.steady.rounding)) >= 0
    more = of(model, batch=batch, prompt_tokens=prompt + 512, new_tokens=new, loader=loader, gpu=gpu)
    assert more.peak is not None
    assert known(more.steady.allocated) > known(found.steady.allocated)
    assert known(more.peak.allocated) >= known(found.peak.allocated)


@pytest.mark.parametrize("model", ["Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-235B-A22B"])
def test_mixtures_of_experts_are_predicted_from_shipped_traces_too(model: str) -> None:
    found = of(model, prompt_tokens=2048, new_tokens=64)
    report = inspect(model, source="catalog")
    assert found.method == "trace"
    assert found.steady.weights == 2 * report.parameters.theory
    assert found.steady.cache == report.cache.size_bytes(tokens=2048 + 63)


def traced_cases() -> Iterator[Any]:
    """Each family in each mode; in every run to generate, and in one of the other modes by turns."""
    for row, family in enumerate(name for name in FAMILIES if "without its head" not in name):
        for mode, in_every_run in (("generate", True), ("forward", row % 2 == 0), ("train", row % 2 == 1)):
            marks = () if in_every_run else pytest.mark.exhaustive
            yield pytest.param(family, mode, id=f"{family}-{mode}", marks=marks)


@pytest.mark.parametrize(("family", "mode"), list(traced_cases()))
def test_every_family_is_traced_in_every_mode(family: str, mode: str, tmp_path: Path) -> None:
    write_config(tmp_path, FAMILIES[family])
    report = inspect(str(tmp_path))
    found = predict(report, a_run(mode=mode)).predicted
    assert found.peak is not None
    assert found.peak.weights == report.tree.size_bytes
    assert found.peak.buffers == report.tree.buffer_bytes
    if mode == "generate":
        tokens = 64 + 8 - 1
        if any(layer.window_tokens for layer in report.cache.layers):
            # A sliding layer keeps window - 1 tokens, as a view of the storage that held one more.
            more = [8 if layer.window_tokens else tokens for layer in report.cache.layers]
            pairs = zip(report.cache.layers, more, strict=True)
            assert found.steady.cache == sum(layer.bytes_per_token * held for layer, held in pairs)
        else:
            held = known(found.steady.cache) + known(found.steady.state)
            assert held == report.cache.size_bytes(tokens=tokens)
            assert found.steady.state == report.cache.fixed_bytes


def test_the_formula_knows_no_peak_and_agrees_with_the_trace_on_the_rest() -> None:
    report = inspect("Qwen/Qwen3-0.6B", source="catalog")
    workload = a_run(prompt_tokens=2048, new_tokens=128)
    formula = formula_footprint(report.tree, report.cache, workload)
    traced = predict(report, workload).predicted
    assert (formula.peak, formula.peak_reserved, formula.alive) == (None, None, ())
    assert formula.steady.activations is None  # unknown, and never 0
    for term in ("weights", "buffers", "cache", "workspace"):
        assert getattr(formula.steady, term) == getattr(traced.steady, term)


def known(value: int | None) -> int:
    assert value is not None
    return value


def test_a_plain_install_predicts_from_shipped_traces_and_says_what_it_does_not_know(tmp_path: Path) -> None:
    shipped = without_torch("memory", "catalog:Qwen/Qwen3-8B", "--format", "json")
    assert json.loads(shipped.stdout)["predicted"]["method"] == "trace"
    write_config(tmp_path, {**TINY_QWEN3, "hidden_act": "relu"})  # which no release of the family has
    unknown = without_torch("memory", tmp_path, "--format", "json")
    predicted = json.loads(unknown.stdout)["predicted"]
    assert predicted["method"] == "formula"
    assert predicted["peak_allocated_bytes"] is predicted["activation_bytes"] is predicted["total_bytes"] is None
    assert "activations and the peak are unknown" in without_torch("memory", tmp_path, "--lang", "en").stdout
    trained = json.loads(without_torch("memory", tmp_path, "--mode", "train", "--format", "json").stdout)["predicted"]
    assert trained["moments"]["steady"]["optimizer_bytes"] == 2 * trained["weights_bytes"]
    assert trained["peak_allocated_bytes"] is None


@pytest.mark.parametrize(
    ("model", "code", "fits"),
    [
        ("openai/gpt-oss-20b", 0, None),  # in MXFP4, whose peak is a range
        ("MiniMaxAI/MiniMax-M2", 1, False),  # only transformers knows how several cards share it
    ],
)
def test_a_plain_install_fits_what_only_transformers_could_trace_or_share(
    model: str, code: int, fits: bool | None
) -> None:
    done = without_torch("fit", f"catalog:{model}", "--gpu", "h100", "--format", "json")
    assert (done.returncode, json.loads(done.stdout)["fits"]) == (code, fits), done.stderr


def test_what_cannot_be_traced_is_refused_but_what_the_formula_knows_is_said(tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, {**TINY_QWEN3, "architectures": ["Qwen3Model"]})  # no head: nothing to generate with
    shown = invoke(capsys, "memory", tmp_path, "--format", "json", "--lang", "en")
    assert shown.code == 7
    assert "no language-modeling head" in shown.err
    content = json.loads(shown.out)
    assert content["predicted"]["method"] == "formula"
    assert content["predicted"]["peak_allocated_bytes"] is None
    import torch
    import transformers

    with torch.device("meta"):
        model = transformers.Qwen3Model(transformers.AutoConfig.for_model(**TINY_QWEN3))
    assert content["predicted"]["weights_bytes"] == 2 * sum(one.numel() for one in model.parameters())


def test_of_an_unknown_architecture_the_stored_weights_are_said(tmp_path: Path, capsys: Capture) -> None:
    import torch
    from safetensors.torch import save_file

    write_config(tmp_path, {"model_type": "of_tomorrow", "architectures": ["TomorrowForCausalLM"]})
    save_file({"w": torch.zeros(3, 5, dtype=torch.float16), "v": torch.zeros(7)}, str(tmp_path / "model.safetensors"))
    shown = invoke(capsys, "memory", tmp_path, "--format", "json", "--lang", "en")
    assert shown.code == 7
    assert "of_tomorrow" in shown.err
    predicted = json.loads(shown.out)["predicted"]
    assert (predicted["method"], predicted["weights_bytes"]) == ("stored", 3 * 5 * 2 + 7 * 4)
    assert {predicted[name] for name in ("cache_bytes", "steady_allocated_bytes", "peak_allocated_bytes")} == {None}
    assert invoke(capsys, "memory", tmp_path).code == 7


def test_a_cache_that_transformers_does_not_hold_is_counted_by_formula() -> None:
    shown = json.loads(run("memory", "--cache-dtype", "fp8", "--context", "1k", "--format", "json").out)
    assert shown["workload"]["cache_dtype"] == "fp8"
    # Qwen3-0.6B: 28 layers, 8 heads of 128, K and V, one byte each; the last new token is not fed back.
    assert shown["predicted"]["cache_bytes"] == 28 * 2 * 8 * 128 * (1024 + 127)
    assert shown["predicted"]["peak_allocated_bytes"] is None


@pytest.mark.parametrize(
    "options", [[], ["--batch", "4", "--context", "6k", "--gpu", "H100"], ["--load", "per-tensor", "--lang", "zh"]]
)
def test_the_command_line_shows_terms_that_add_up(options: list[str]) -> None:
    shown = run("memory", "--format", "json", *options)
    assert shown.code == 0, shown.err
    content = json.loads(shown.out)
    assert_keeps_to_the_schema(content)
    for moment in content["predicted"]["moments"].values():
        kept = ("weights", "buffers", "cache", "state", "gradients", "optimizer")
        terms = (*kept, "activations", "workspace", "rounding")
        assert sum(moment[f"{term}_bytes"] for term in terms) == moment["allocated_bytes"]
    assert content["predicted"]["peak_allocated_bytes"] == content["predicted"]["moments"]["peak"]["allocated_bytes"]
    assert content["predicted"]["context_bytes"] is None  # nobody measured it
    assert run("memory", *options).code == 0


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_line_of_a_table_is_as_wide_as_its_border(language: str) -> None:
    shown = run("memory", "--lang", language)
    tables = re.findall(r"(?:^[+|].*\n)+", shown.out, re.MULTILINE)
    assert len(tables) == 2
    for table in tables:
        assert {wcswidth(line) for line in table.splitlines()} == {len(table.splitlines()[0])}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--context", "0"], 2),
        (["--batch", "-1"], 2),
        (["--new-tokens", "0"], 2),
        (["--dtype", "int3"], 2),
        (["--attention", "magic"], 2),
        (["--mode", "dream"], 2),
        (["--batch", "999999999999999999"], 2),
    ],
)
def test_a_workload_that_is_none_is_refused(options: list[str], code: int) -> None:
    shown = run("memory", *options)
    assert (shown.code, shown.out, shown.err.count("\n")) == (code, "", 1)


def test_a_context_beyond_the_models_positions_is_a_notice() -> None:
    shown = run("memory", "--context", "64k")
    assert shown.code == 0
    assert "65,664 tokens are more than the 40,960" in shown.out


def test_a_model_in_another_dtype_takes_other_bytes(capsys: Capture) -> None:
    shown = json.loads(invoke(capsys, "memory", "--dtype", "float32", "--format", "json").out)
    assert shown["predicted"]["weights_bytes"] == 4 * 596_049_920


def test_published_figures_are_printed_to_a_hundredth_of_a_gib() -> None:
    assert {row.resolution for row in ROWS if row.quantity == "peak"} == {0.005 * GIB}


@pytest.mark.parametrize(
    "model", ["Qwen/Qwen3-0.6B", "Qwen/Qwen2.5-7B", "Qwen/Qwen1.5-MoE-A2.7B", "Qwen/Qwen3-30B-A3B"]
)
def test_a_trace_of_the_family_is_that_of_the_whole_model_event_by_event(model: str) -> None:
    from qwen_inspect.tracing.trace import trace

    report = inspect(model, source="catalog")
    kept = symbolic_trace(report, a_run(attention="sdpa"))
    assert kept is not None
    whole = trace(report.spec, report.config or {}, sample_request(WITNESS, "sdpa"))
    mine = kept.at(WITNESS)
    assert mine.stages == whole.stages

    def told(event: object) -> object:
        return (event.size_bytes, event.module, event.operator) if isinstance(event, Allocate) else None

    assert [told(event) for event in mine.events] == [told(event) for event in whole.events]


def test_a_model_without_a_shipped_trace_is_traced_once_and_kept(tmp_path: Path) -> None:
    config = {**TINY_QWEN3, "num_hidden_layers": 5, "hidden_act": "relu"}  # which no release of the family has
    write_config(tmp_path / "model", config)
    environment = {"QWEN_INSPECT_CACHE": str(tmp_path / "kept")}
    first = run("memory", tmp_path / "model", "--format", "json", env=environment)
    assert first.code == 0, first.err
    assert len(list((tmp_path / "kept" / "traces").iterdir())) == 1
    script = (
        "import sys\nfrom qwen_inspect.cli import main\ncode = main(sys.argv[1:])\n"
        "assert 'torch' not in sys.modules\nsys.exit(code)\n"
    )
    command = [sys.executable, "-c", script, "memory", str(tmp_path / "model"), "--format", "json", "--lang", "en"]
    again = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["predicted"] == json.loads(first.out)["predicted"]
    write_config(tmp_path / "other", {**config, "return_dict": False})  # which transformers cannot run
    other = json.loads(run("memory", tmp_path / "other", "--format", "json", env=environment).out)["predicted"]
    assert other["method"] == "formula" != json.loads(first.out)["predicted"]["method"]


def test_training_is_a_sum_of_weights_gradients_states_and_activations(capsys: Capture) -> None:
    found = of("Qwen/Qwen3-0.6B", mode="train", prompt_tokens=256)
    assert found.peak is not None
    # AdamW holds two states in the parameters' dtype for each of them; gradients are dropped after the step.
    assert found.steady.optimizer == 2 * found.steady.weights
    assert found.steady.gradients == 0
    assert 0 < known(found.peak.gradients) <= found.peak.weights
    lean = of("Qwen/Qwen3-0.6B", mode="train", prompt_tokens=256, checkpointing=True, optimizer="none")
    assert lean.peak is not None
    assert lean.peak.optimizer == 0
    assert known(lean.peak.allocated) < known(found.peak.allocated)


@pytest.mark.parametrize(
    ("family", "batch", "prompt"),
    [
        ("qwen3_next", 1, 64 * 9 - 1),
        ("qwen3_next", 2, 64 * 17),
        pytest.param("qwen3_next", 1, 64 * 70 + 1, marks=pytest.mark.exhaustive),
        pytest.param("bailing_hybrid", 1, 64 * 9 - 1, marks=pytest.mark.exhaustive),
    ],
)
def test_turns_that_a_trace_leaves_out_of_linear_attentions_loop_are_added(
    family: str, batch: int, prompt: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Event by event as where the loop over chunks of 64 tokens runs to its end."""
    write_config(tmp_path, FAMILIES[family] if family in FAMILIES else varied(family, 1))
    report = inspect(str(tmp_path))
    workload = a_run(mode="generate", batch=batch, prompt_tokens=prompt, new_tokens=2)
    predicted = predict(report, workload).predicted
    completed = with_all_turns(timeline_of(report, workload)[0], workload)
    for module in ("tracing.few_turns", "predicting.traces.turns"):
        monkeypatch.setattr(f"qwen_inspect.{module}.CHUNK_TURNS", 1 << 20)
    _traced_once.cache_clear()
    assert numbered(timeline_of(report, workload)[0].events) == numbered(completed.events)
    assert predict(report, workload).predicted == predicted
    _traced_once.cache_clear()


def test_what_a_trace_takes_for_granted_of_hybrid_and_seeing_models_is_said(tmp_path: Path) -> None:
    write_config(tmp_path, FAMILIES["qwen3_5"])
    found = predict(inspect(str(tmp_path)), a_run(mode="generate")).predicted
    assert {"assume_linear_reference", "assume_text_only"} <= {message.key for message in found.assumptions}


@pytest.mark.parametrize(
    "family", ["qwen3_next", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("qwen3_5", "qwen3_5_moe"))]
)
@pytest.mark.parametrize("options", [{"new_tokens": 9}, {"new_tokens": 1, "batch": 2}, {"mode": "forward"}], ids=str)
def test_the_first_layers_of_a_hybrid_stand_for_all(family: str, options: Mapping[str, Any]) -> None:
    """Event by event, against the trace of the whole model."""
    config = json.loads(json.dumps(FAMILIES[family]))
    text = config.get("text_config", config)
    text |= {"num_hidden_layers": 20, "mlp_only_layers": [], "decoder_sparse_step": 1}
    if text.get("layer_types"):
        text["layer_types"] = ([*["linear_attention"] * 3, "full_attention"]) * 5
    report = analyse(Checkpoint(ref=ModelRef(source="local", id="x"), config=config, tensors=None))
    workload = Run(**{"prompt_tokens": 70, **options})
    deep, _ = timeline_of(report, workload)
    whole = trace(report.spec, config, trace_request(workload))
    assert deep.stages == whole.stages
    assert numbered(deep.events) == numbered(whole.events)


def numbered(events: Iterable[Event]) -> list[tuple[object, ...]]:
    """Events with allocations numbered as they come, for ids only have to be unique in a run."""
    numbers: dict[int, int] = {}
    rows: list[tuple[object, ...]] = []
    for event in events:
        if isinstance(event, Allocate):
            numbers[event.id] = len(numbers)
            rows.append((numbers[event.id], event.size_bytes, event.module, event.operator))
        else:
            rows.append((-1 - numbers[event.id],))
    return rows

"""`report`: the other commands' sections as one document, from the model's identity to the command that reproduces it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from itertools import groupby

from ... import __version__
from ...language import Language, Message
from ...results.counts import Check
from ...results.memory import MemoryReport, Moment
from ...results.model import Report
from ...results.whole import WholeReport
from ...spec import each_tensor
from ...units import UNKNOWN, count, percent, signed, size
from ...values import replace
from ..blocks import Block, Code, Fields, Figure, Heading, Items, Paragraph, Table, Tree
from ..cache_plot import NARROW_WIDTH, cache_plot
from ..figure import architecture_figure
from . import View, conclusions
from .attention import cache_table, worked_through
from .common import (
    about_both,
    active_values,
    check_blocks,
    component_table,
    identity,
    parameter_fields,
    part_table,
    prompt_label,
    size_range,
)
from .config import explained, techniques, worked_sums
from .measured import causes, difference_table
from .memory import allocated_text, live_blocks, required_rows, terms_of
from .params import grouping, layer_breakdown, witness_table
from .structure import attention_table, cache_fields, cache_notes, tree_node
from .weights import arranged, tensor_table

# Notices on how this run reached the model (cache, mirror, offline). They may differ between runs, so reports skip them.
ACCESS_NOTICES = ("from_client_cache", "from_recent", "from_kept", "offline_catalog", "unreachable_catalog", "mirror")


def blocks(whole: WholeReport, say: Language, view: View) -> Sequence[Block]:
    report = whole.report
    return [
        Heading(say("heading_report", name=report.ref.id), 1),
        Heading(say("heading_identity")),
        *provenance(whole, say),
        Heading(say("heading_findings")),
        Items(findings(whole, say)),
        Heading(say("heading_config_explained")),
        *nested(explained(report, report.written or {}, say)),
        *([] if report.spec.built else nested(techniques(report, say))),
        Heading(say("heading_figure")),
        architecture(whole, say),
        Heading(say("heading_tree")),
        Tree(tree_node(report.tree, say, view, depth=0)),
        Heading(say("heading_report_parameters")),
        witness_table(report, say),
        parameter_fields(report, say),
        *([Heading(say("heading_checks"), 3), *nested(check_blocks(report.checks, say))] if report.checks else []),
        Heading(say("heading_breakdown"), 3),
        Paragraph(say("origin_of_parts")),
        component_table(report, say),
        *part_table(report, say),
        *([] if report.spec.built else nested(worked_sums(report, say))),
        *layer_breakdown(report, say),
        Heading(say("heading_report_attention")),
        *attention_blocks(whole, say, view),
        Heading(say("heading_report_memory")),
        *memory_blocks(whole, say),
        *measured_blocks(whole, say),
        *conclusions.blocks(whole, say),
        *(page_blocks(whole, say) if view.live else []),
        Heading(say("heading_reproduce")),
        Paragraph(say("reproduce_note", version=__version__)),
        Code(command(whole), "sh"),
    ]


def attention_blocks(whole: WholeReport, say: Language, view: View) -> list[Block]:
    """Attention and KV cache in detail; if the cache is unknown, the reason."""
    report = whole.report
    if not report.settled:
        assert report.known.cache_refusal is not None
        return [Paragraph(say(report.known.cache_refusal.message))]
    return [
        attention_table(report, say, view),
        *grouping(report, say),
        *nested(worked_through(report, say)),
        Heading(say("heading_kv_cache")),
        Paragraph(say("origin_of_cache", source=_origin_of_heads(report, say))),
        cache_table(report, say, view),
        cache_fields(report, say),
        Heading(say("heading_cache_contexts"), 3),
        cache_figure(whole, say),
        contexts_table(whole, say),
        Heading(say("heading_cache_notes"), 3),
        Items(cache_notes(report, say), numbered=True),
    ]


def page_blocks(whole: WholeReport, say: Language) -> list[Block]:
    """HTML pages only: the memory explorer, the treemap, and a searchable table of all tensors."""
    report = whole.report
    tensors, origin = tuple(each_tensor(report.tree)), say("origin_of_parts")
    if report.tensors is not None:
        tensors, origin = report.tensors, say(f"origin_tensors_{report.tensors_origin}", files=len(report.files))
    return [
        *(live_blocks(whole.memory[0], say) if whole.memory else []),
        Heading(say("heading_tensors")),
        Paragraph(origin),
        tensor_table(arranged(tensors, "name"), say),
    ]


def nested(content: Iterable[Block]) -> list[Block]:
    """The blocks with every heading one level lower."""
    return [replace(block, level=block.level + 1) if isinstance(block, Heading) else block for block in content]


def lasting(messages: Iterable[Message]) -> list[Message]:
    """The notices about the model itself, without those in ACCESS_NOTICES."""
    return [message for message in messages if message.key not in ACCESS_NOTICES]


def provenance(whole: WholeReport, say: Language) -> list[Block]:
    """The model's identity, the files read and the versions used. Only facts that repeat on every run."""
    report, release = whole.report, whole.report.release
    rows = list(identity(report, say).rows)
    if report.ref.revision is not None:
        rows.append((say("field_revision"), report.ref.revision))
    if release is not None:
        rows.append((say("field_config_source"), f"{say(f'catalog_kind_{release.kind}')} ({release.config_source})"))
        rows.append((say("field_counts_source"), release.source or "–"))
    rows.append((say("field_config_digest"), whole.config_sha256))
    rows.append((say("field_tensors_digest"), whole.tensors_sha256 or say("origin_not_stored")))
    rows.append((say("field_tool"), ", ".join(filter(None, (f"qwen-inspect {__version__}", whole.built_by)))))
    content: list[Block] = [Fields(rows)]
    if report.files:
        columns = [say("column_file"), say("column_bytes"), say("column_digest")]
        files = [[file.name, count(file.size_bytes), file.sha256 or "–"] for file in report.files]
        total = [say("total"), count(sum(file.size_bytes for file in report.files)), ""]
        content.append(Table(columns, [*files, total], "lrl", totals=1))
    return content


def architecture(whole: WholeReport, say: Language) -> Figure:
    return Figure(
        architecture_figure(whole.report, say),
        say("report_figure", name=whole.report.ref.id),
        f"{whole.name}.{say.code}.svg",
        [architecture_figure(whole.report, say, in_a_column=True)],
    )


def cache_figure(whole: WholeReport, say: Language) -> Figure:
    name = say("cache_figure", name=whole.report.ref.id)
    narrower = [cache_plot(whole.report, say, width=NARROW_WIDTH)]
    return Figure(cache_plot(whole.report, say), name, f"{whole.name}.cache.{say.code}.svg", narrower)


def pictures(whole: WholeReport, say: Language) -> tuple[Figure, ...]:
    """The document's figures, in order."""
    return (architecture(whole, say), *([cache_figure(whole, say)] if whole.report.settled else []))


# --- findings


def findings(whole: WholeReport, say: Language) -> list[str]:
    """The main findings on this model, as sentences computed from its figures."""
    report = whole.report
    return [
        *(say(message) for message in lasting(report.notices)),
        *(say(message) for message in (report.attention.findings if report.settled else ())),
        *(_verdict(check, say) for check in report.checks),
        _largest(report, say),
        *_head(report, say),
        *_experts(report, say),
        *(_attention(report, say) if report.settled else ()),
        *_peak(whole, say),
    ]


def _verdict(check: Check, say: Language) -> str:
    if not check.agrees:
        unexplained = {"residual": signed(check.residual), "tensors": len(check.unexplained)}
        return about_both(say, "finding_disagrees", check, **unexplained)
    if check.difference == 0:
        return about_both(say, "finding_equal", check, parameters=check.left_parameters)
    causes = say("comma").join(
        f"{say(f'cause_name_{cause.name}')} {signed(cause.parameters)}" for cause in check.causes if cause.parameters
    )
    return about_both(say, "finding_explained", check, difference=signed(check.difference), causes=causes)


def _largest(report: Report, say: Language) -> str:
    part = max(report.components, key=lambda component: component.parameters)
    share = percent(part.share_basis_points)
    return say("finding_largest", component=say(f"component_{part.name}"), parameters=part.parameters, share=share)


def _head(report: Report, say: Language) -> list[str]:
    """Whether the output layer is tied to the embedding; empty for a decoder without an output layer."""
    spec = report.spec
    if not spec.class_name.endswith("ForCausalLM"):
        return []
    table = spec.vocab_size * spec.hidden_size
    return [say("finding_tied" if spec.tied_embeddings else "finding_untied", parameters=table)]


def _experts(report: Report, say: Language) -> list[str]:
    counts = report.parameters
    if counts.active in (None, counts.theory):
        return []
    share = percent(report.tree.active_parameters * 10_000 // counts.theory)
    return [say("finding_active", **active_values(report), share=share)]


def _attention(report: Report, say: Language) -> list[str]:
    groups = [item for block in grouping(report, say) if isinstance(block, Items) for item in block.items]
    return [*groups, *_cache(report, say)]


def _cache(report: Report, say: Language) -> list[str]:
    """Cache per token; if every token adds equally, also the context at which the cache is as large as the weights."""
    cache, weights = report.cache, report.tree.size_bytes
    if cache.keeps_nothing:
        return [say("cache_note_encoder")]
    sentences = [say("finding_cache", size=size(cache.bytes_per_token), bytes=cache.bytes_per_token)]
    if report.known.unread is None and not cache.fixed_bytes and not any(layer.window_tokens for layer in cache.layers):
        tokens = -(-weights // cache.bytes_per_token)
        sentences.append(say("finding_cache_weights", tokens=tokens, size=size(weights)))
    return sentences


def _peak(whole: WholeReport, say: Language) -> list[str]:
    memories = [memory for memory in whole.memory if memory.predicted.required_bytes is not None]
    if not memories:
        return [say("finding_no_peak")]
    last = max(memories, key=lambda memory: memory.run.prompt_tokens)
    peak, between = last.predicted.peak, last.predicted.peak_range
    if between is not None:
        assert last.predicted.required_bytes is not None
        return [
            say(
                "finding_peak_range",
                prompt=last.run.prompt_tokens,
                new=last.run.new_tokens,
                batch=last.run.batch,
                required=size_range(*last.predicted.required_bytes, say),
                reserved=size_range(*between.reserved_bytes, say),
            )
        ]
    assert peak is not None
    assert last.predicted.required_bytes is not None
    return [
        say(
            "finding_peak",
            prompt=last.run.prompt_tokens,
            new=last.run.new_tokens,
            batch=last.run.batch,
            required=size_range(*last.predicted.required_bytes, say),
            reserved=size(last.predicted.peak_reserved),
            allocated=size(peak.allocated),
            weights=percent(peak.weights * 10_000 // (peak.allocated or 1)),
        )
    ]


# --- cache and memory


def _origin_of_heads(report: Report, say: Language) -> str:
    return say("origin_heads_shapes" if report.attention.by_shapes else "origin_heads_config")


def contexts_table(whole: WholeReport, say: Language) -> Table:
    cache = whole.report.cache
    rows = [
        [count(tokens), *(size(cache.size_bytes(tokens=tokens, batch=batch)) for _, batch in points)]
        for tokens, points in groupby(whole.cache_points, key=lambda point: point[0])
    ]
    batches = sorted({batch for _, batch in whole.cache_points})
    columns = [say("column_context"), *(say("column_batch", batch=batch) for batch in batches)]
    return Table(columns, rows, "r" * len(columns))


def memory_blocks(whole: WholeReport, say: Language) -> list[Block]:
    """The same run with several prompt lengths: terms at the peak and at the end, and the assumptions."""
    if not whole.memory:
        assert whole.report.known.unread is not None
        return [Paragraph(say(whole.report.known.unread.message))]
    memories, first = whole.memory, whole.memory[0]
    before = whole.report.notices
    notices = dict.fromkeys(
        say(message) for memory in memories for message in memory.report.notices if message not in before
    )
    rows = [
        (say("field_mode"), say(f"mode_{first.run.mode}")),
        (say("field_batch"), count(first.run.batch)),
        (say("field_new"), count(first.run.new_tokens)),
        (say("field_kernel"), first.run.attention),
        (say("field_gpu"), first.run.gpu),
        (say("field_method"), f"{say(f'method_{first.predicted.method}')} ({first.predicted.provenance})"),
    ]
    content: list[Block] = [Fields(rows)]
    if notices:
        content.append(Items(list(notices)))
    if all(memory.predicted.peak is not None for memory in memories):
        content += [Heading(say("heading_at_peak"), 3), moments_table(memories, say, "peak")]
    elif any(memory.predicted.peak_range is not None for memory in memories):
        content += [Heading(say("heading_at_peak"), 3), _ranges_table(memories, say)]
    else:
        content.append(Paragraph(say("report_no_peak")))
    # Each assumption once; if it depends on the prompt's length, as stated for the first run.
    every = [message for memory in reversed(memories) for message in reversed(memory.predicted.assumptions)]
    assumptions = {message.key: say(message) for message in every}
    return [
        *content,
        Heading(say("heading_at_end"), 3),
        moments_table(memories, say, "steady"),
        Heading(say("heading_assumptions"), 3),
        Items(list(reversed(assumptions.values()))),
    ]


def _ranges_table(memories: Sequence[MemoryReport], say: Language) -> Table:
    """The range of the peak for each prompt length; the assumptions give the reason."""
    rows = []
    for memory in memories:
        between, required = memory.predicted.peak_range, memory.predicted.required_bytes
        ends = (None, None, None) if between is None else (between.allocated_bytes, between.reserved_bytes, required)
        cells = [UNKNOWN if end is None else size_range(*end, say) for end in ends]
        rows.append([count(memory.run.prompt_tokens), *cells])
    names = ("term_allocated", "term_reserved", "term_required")
    return Table([say("column_prompt_tokens"), *(say(name) for name in names)], rows, "rrrr")


def moments_table(memories: Sequence[MemoryReport], say: Language, name: str) -> Table:
    """A column per prompt length: the terms, their sum (allocated) and, at the peak, reserved and required bytes.

    name: "peak" or "steady".
    """
    moments: list[Moment] = [getattr(memory.predicted, name) for memory in memories]
    rows = [[say(f"term_{term}"), *(count(getattr(moment, term)) for moment in moments)] for term in terms_of(*moments)]
    allocated = say("term_allocated")
    sums = [[allocated, *(allocated_text(moment, shown, say) for moment in moments)] for shown in (count, size)]
    if name == "peak":
        rows.insert(0, [say("column_stage"), *(say(f"stage_{moment.stage}") for moment in moments)])
        reserved = [memory.predicted.peak_reserved for memory in memories]
        sums += [[say("term_reserved"), *map(shown, reserved)] for shown in (count, size)]
        required = [required_rows(memory.predicted, say) for memory in memories]
        for ends in zip(*required, strict=True):
            sums += [[ends[0][0], *(shown(size_bytes) for _, size_bytes in ends)] for shown in (count, size)]
    columns = [say("column_term"), *(say("column_prompt", tokens=memory.run.prompt_tokens) for memory in memories)]
    return Table(columns, [*rows, *sums], "l" + "r" * len(memories), totals=len(sums))


def measured_blocks(whole: WholeReport, say: Language) -> list[Block]:
    """For each measured run: every term beside its prediction, and the causes of the differences."""
    if not whole.measured:
        return []
    content: list[Block] = [Heading(say("heading_report_measured")), Paragraph(say("report_measured_origin"))]
    for measurement in whole.measured:
        run = measurement.run
        rows = [
            (say("field_file"), measurement.path),
            (say("field_device"), measurement.device),
            (say("field_mode"), say(f"mode_{run.mode}")),
            (say("field_batch"), count(run.batch)),
            (say(prompt_label(run)), count(run.prompt_tokens)),
            *([(say("field_new"), count(run.new_tokens))] if run.mode == "generate" else []),
            (say("field_kernel"), run.attention),
            *([(say("field_padding"), say("padded"))] if run.padded else []),
            *([(say("field_autocast"), run.autocast)] if run.autocast else []),
            *measurement.versions,
        ]
        content += [
            Heading(say("heading_measured_run", device=measurement.device, tokens=run.prompt_tokens), 3),
            Fields(rows),
            *([Paragraph(say("report_measured_partial"))] if measurement.is_partial else []),
            difference_table(measurement.differences, say),
            *nested(causes(measurement.differences, say, device=measurement.device)),
        ]
    return content


# --- the command


def command(whole: WholeReport) -> str:
    """The command line that reproduces this document, pinned to the source and revision that were read."""
    request, ref = whole.request, whole.report.ref
    words = [
        "qwen-inspect",
        "report",
        conclusions.model_argument(whole),
        "--lang",
        request.language,
        "--format",
        request.form,
    ]
    if ref.file is not None:
        words += ["--file", ref.file]
    if request.context_tokens is not None:
        words += ["--context", str(request.context_tokens)]
    words += ["--batch", str(request.batch), "--new-tokens", str(request.new_tokens)]
    if request.instantiate:
        words.append("--instantiate")
    for path in request.measured:
        words += ["--measured", path]
    if request.gpus is not None:
        words += ["--gpu", request.gpus]
    return " ".join(map(_quoted, [*words, "-o", "reports"]))


def _quoted(word: str) -> str:
    """Quotes a word for bash and zsh; a word with unprintable characters as `$'...'` with `\\U` escapes."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = (
        character if character.isprintable() and character not in "\\'" else f"\\U{ord(character):08x}"
        for character in word
    )
    return f"$'{''.join(escaped)}'"

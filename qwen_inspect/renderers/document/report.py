"""`report`: the other commands' sections as one document, from a model's identity to the command that makes it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from ... import __version__
from ...language import Language, Message
from ...results.counts import Check
from ...results.memory import MemoryReport, Moment
from ...results.model import Report
from ...results.whole import WholeReport
from ...spec import MoeMlp, each_tensor
from ...units import UNKNOWN, count, percent, signed, size
from ..blocks import Block, Code, Fields, Figure, Heading, Items, Paragraph, Table, Tree
from ..cache_plot import cache_plot
from ..figure import architecture_figure
from . import View
from .attention import cache_table, worked_through
from .common import active_values, check_blocks, component_table, identity, parameter_fields, size_range
from .config import explained, techniques, worked_sums
from .measured import causes, difference_table
from .memory import allocated_text, live_blocks, required_rows, terms_of
from .params import grouping, layer_breakdown, witness_table
from .structure import attention_table, cache_fields, cache_notes, tree_node
from .weights import arranged, tensor_table

# How a model was reached on this run, which another run may do otherwise: no property of the model.
OF_THE_WAY = ("from_client_cache", "from_recent", "from_kept", "offline_catalog", "unreachable_catalog", "mirror")


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
        *([] if report.spec.built else nested(worked_sums(report, say))),
        *layer_breakdown(report, say),
        Heading(say("heading_report_attention")),
        *attention_blocks(whole, say, view),
        Heading(say("heading_report_memory")),
        *memory_blocks(whole, say),
        *measured_blocks(whole, say),
        *(page_blocks(whole, say) if view.live else []),
        Heading(say("heading_reproduce")),
        Paragraph(say("reproduce_note", version=__version__)),
        Code(command(whole), "sh"),
    ]


def attention_blocks(whole: WholeReport, say: Language, view: View) -> list[Block]:
    """Attention and the cache, worked through; of a model whose cache is not known, why it is not."""
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
    """What only a page can show: sliders and a map, and every tensor, of which a page shows the ones looked for."""
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


def nested(made: Iterable[Block]) -> list[Block]:
    """A command's sections as parts of one of the report's."""
    return [replace(block, level=block.level + 1) if isinstance(block, Heading) else block for block in made]


def lasting(messages: Iterable[Message]) -> list[Message]:
    """The notices that say something of the model."""
    return [message for message in messages if message.key not in OF_THE_WAY]


def provenance(whole: WholeReport, say: Language) -> list[Block]:
    """Who the model is, what was read of it and by what: nothing that another run of the same would tell otherwise."""
    report, release = whole.report, whole.report.release
    rows = list(identity(report, say).rows)
    if report.ref.revision is not None:
        rows.append((say("field_revision"), report.ref.revision))
    if release is not None:
        rows.append((say("field_config_source"), release.config_source))
        rows.append((say("field_counts_source"), release.source or "–"))
    rows.append((say("field_config_digest"), whole.config_sha256))
    rows.append((say("field_tensors_digest"), whole.tensors_sha256 or say("origin_not_stored")))
    rows.append((say("field_tool"), ", ".join(filter(None, (f"qwen-inspect {__version__}", whole.built_by)))))
    made: list[Block] = [Fields(rows)]
    if report.files:
        columns = [say("column_file"), say("column_bytes"), say("column_digest")]
        files = [[file.name, count(file.size_bytes), file.sha256 or "–"] for file in report.files]
        total = [say("total"), count(sum(file.size_bytes for file in report.files)), ""]
        made.append(Table(columns, [*files, total], "lrl", totals=1))
    return made


def architecture(whole: WholeReport, say: Language) -> Figure:
    return Figure(
        architecture_figure(whole.report, say),
        say("report_figure", name=whole.report.ref.id),
        f"{whole.name}.{say.code}.svg",
    )


def cache_figure(whole: WholeReport, say: Language) -> Figure:
    name = say("cache_figure", name=whole.report.ref.id)
    return Figure(cache_plot(whole.report, say), name, f"{whole.name}.cache.{say.code}.svg")


def pictures(whole: WholeReport, say: Language) -> tuple[Figure, ...]:
    """The figures of the document, in its order."""
    return (architecture(whole, say), *([cache_figure(whole, say)] if whole.report.settled else []))


# --- findings


def findings(whole: WholeReport, say: Language) -> list[str]:
    """What is worth knowing of this model, each sentence from its own figures."""
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
    names = {"left": say(f"witness_{check.left}"), "right": say(f"witness_{check.right}")}
    if not check.agrees:
        return say("finding_disagrees", residual=signed(check.residual), tensors=len(check.unexplained), **names)
    if check.difference == 0:
        return say("finding_equal", parameters=check.left_parameters, **names)
    causes = say("comma").join(
        f"{say(f'cause_name_{cause.name}')} {signed(cause.parameters)}" for cause in check.causes if cause.parameters
    )
    return say("finding_explained", difference=signed(check.difference), causes=causes, **names)


def _largest(report: Report, say: Language) -> str:
    part = max(report.components, key=lambda one: one.parameters)
    share = percent(part.share_basis_points)
    return say("finding_largest", component=say(f"component_{part.name}"), parameters=part.parameters, share=share)


def _head(report: Report, say: Language) -> list[str]:
    """Whether the output layer shares the embedding; nothing of a decoder that has no output layer."""
    spec = report.spec
    if not spec.class_name.endswith("ForCausalLM"):
        return []
    table = spec.vocab_size * spec.hidden_size
    return [say("finding_tied" if spec.tied_embeddings else "finding_untied", parameters=table)]


def _experts(report: Report, say: Language) -> list[str]:
    counts = report.parameters
    if not any(isinstance(layer.mlp, MoeMlp) for layer in report.spec.layers):
        return []
    share = percent(report.tree.active_parameters * 10_000 // counts.theory)
    return [say("finding_active", **active_values(report), share=share)]


def _attention(report: Report, say: Language) -> list[str]:
    groups = [item for block in grouping(report, say) if isinstance(block, Items) for item in block.items]
    return [*groups, *_cache(report, say)]


def _cache(report: Report, say: Language) -> list[str]:
    """The context at which the cache is as large as the weights; only where each token adds the same."""
    cache, weights = report.cache, report.tree.size_bytes
    told = [say("finding_cache", size=size(cache.bytes_per_token), bytes=cache.bytes_per_token)]
    if report.known.unread is None and not cache.fixed_bytes and not any(layer.window_tokens for layer in cache.layers):
        tokens = -(-weights // cache.bytes_per_token)
        told.append(say("finding_cache_weights", tokens=tokens, size=size(weights)))
    return told


def _peak(whole: WholeReport, say: Language) -> list[str]:
    known = [one for one in whole.memory if one.predicted.required_bytes is not None]
    if not known:
        return [say("finding_no_peak")]
    last = max(known, key=lambda one: one.run.prompt_tokens)
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
    """The same run with prompts of several lengths: each term at the peak and at the end, and what the prediction rests on."""
    if not whole.memory:
        assert whole.report.known.unread is not None
        return [Paragraph(say(whole.report.known.unread.message))]
    memories, first = whole.memory, whole.memory[0]
    before = whole.report.notices
    told = dict.fromkeys(
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
    made: list[Block] = [Fields(rows)]
    if told:
        made.append(Items(list(told)))
    if all(memory.predicted.peak is not None for memory in memories):
        made += [Heading(say("heading_at_peak"), 3), moments_table(memories, say, "peak")]
    elif any(memory.predicted.peak_range is not None for memory in memories):
        made += [Heading(say("heading_at_peak"), 3), _ranges_table(memories, say)]
    else:
        made.append(Paragraph(say("report_no_peak")))
    # Each once: what one says of a prompt's length, the first says.
    every = [message for memory in reversed(memories) for message in reversed(memory.predicted.assumptions)]
    assumptions = {message.key: say(message) for message in every}
    return [
        *made,
        Heading(say("heading_at_end"), 3),
        moments_table(memories, say, "steady"),
        Heading(say("heading_assumptions"), 3),
        Items(list(reversed(assumptions.values()))),
    ]


def _ranges_table(memories: Sequence[MemoryReport], say: Language) -> Table:
    """Between what the peak lies with each prompt's length; the assumptions say why."""
    rows = []
    for memory in memories:
        between, required = memory.predicted.peak_range, memory.predicted.required_bytes
        ends = (None, None, None) if between is None else (between.allocated_bytes, between.reserved_bytes, required)
        cells = [UNKNOWN if end is None else size_range(*end, say) for end in ends]
        rows.append([count(memory.run.prompt_tokens), *cells])
    names = ("term_allocated", "term_reserved", "term_required")
    return Table([say("column_prompt_tokens"), *(say(name) for name in names)], rows, "rrrr")


def moments_table(memories: Sequence[MemoryReport], say: Language, name: str) -> Table:
    """A column for each prompt's length; the terms add up to what is allocated, which is part of what a card must have."""
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
    """What was measured of the model, run by run, each term beside its prediction and with the causes of the difference."""
    if not whole.measured:
        return []
    made: list[Block] = [Heading(say("heading_report_measured")), Paragraph(say("report_measured_origin"))]
    for kept in whole.measured:
        run = kept.run
        rows = [
            (say("field_file"), kept.path),
            (say("field_device"), kept.device),
            (say("field_mode"), say(f"mode_{run.mode}")),
            (say("field_batch"), count(run.batch)),
            (say("field_prompt"), count(run.prompt_tokens)),
            *([(say("field_new"), count(run.new_tokens))] if run.mode == "generate" else []),
            (say("field_kernel"), run.attention),
            *([(say("field_padding"), say("padded"))] if run.padded else []),
            *([(say("field_autocast"), run.autocast)] if run.autocast else []),
            *kept.versions,
        ]
        made += [
            Heading(say("heading_measured_run", device=kept.device, tokens=run.prompt_tokens), 3),
            Fields(rows),
            *([Paragraph(say("report_measured_partial"))] if kept.is_partial else []),
            difference_table(kept.differences, say),
            *nested(causes(kept.differences, say)),
        ]
    return made


# --- the command


def command(whole: WholeReport) -> str:
    """The command line that writes this document again, with the source and revision that were found."""
    request, ref = whole.request, whole.report.ref
    pinned = ref.source in ("hf", "ms", "catalog")
    model = f"{ref.source}:{ref.id}{f'@{ref.revision}' if ref.revision else ''}" if pinned else request.model
    words = ["qwen-inspect", "report", model, "--lang", request.language, "--format", request.form]
    if ref.file is not None:
        words += ["--file", ref.file]
    if request.context_tokens is not None:
        words += ["--context", str(request.context_tokens)]
    words += ["--batch", str(request.batch), "--new-tokens", str(request.new_tokens)]
    if request.instantiate:
        words.append("--instantiate")
    for path in request.measured:
        words += ["--measured", path]
    return " ".join(map(_quoted, [*words, "-o", "reports"]))


def _quoted(word: str) -> str:
    """A word for a shell; what does not print as itself in bash's and zsh's `$'...'`, by its number."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = (one if one.isprintable() and one not in "\\'" else f"\\U{ord(one):08x}" for one in word)
    return f"$'{''.join(escaped)}'"

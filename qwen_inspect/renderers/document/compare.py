"""`compare`: whether two hubs hold the same files."""

from __future__ import annotations

from collections.abc import Sequence

from ...language import Language
from ...report import FilePair, FilesComparison
from ...units import count
from ..blocks import Block, Heading, Paragraph, Table
from . import View


def blocks(comparison: FilesComparison, say: Language, view: View) -> Sequence[Block]:
    left, right = (f"{ref.source}:{ref.id}" for ref in (comparison.left, comparison.right))
    columns = [say("column_file"), f"{left} ({say('column_bytes')})", f"{right} ({say('column_bytes')})"]
    columns += [say("column_digest"), say("column_same")]
    return [
        Heading(say("heading_compare", left=left, right=right), 1),
        Table(columns, [_row(pair, left, right, say) for pair in comparison.pairs], "lrrll"),
        Heading(say("heading_verdict")),
        Paragraph(_verdict(comparison, say)),
    ]


def _row(pair: FilePair, left: str, right: str, say: Language) -> list[str]:
    if not pair.on_right:
        same = say("same_left", left=left)
    elif not pair.on_left:
        same = say("same_right", right=right)
    else:
        same = say({True: "same_yes", False: "same_no", None: "same_unknown"}[pair.same])
    digests = dict.fromkeys(digest[:12] for digest in (pair.left_sha256, pair.right_sha256) if digest)
    return [pair.name, count(pair.left_bytes), count(pair.right_bytes), " ≠ ".join(digests) or "–", same]


def _verdict(comparison: FilesComparison, say: Language) -> str:
    weights = comparison.weights
    match comparison.identical:
        case True:
            return say("compare_identical", files=len(weights))
        case False:
            return say("compare_different", files=sum(pair.same is False for pair in weights))
        case None:
            return say("compare_unknown", files=sum(pair.same is None for pair in weights))

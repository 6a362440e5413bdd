"""Runs the fuzzers: `make fuzz`, `make fuzz SEED=7 INPUTS=50000`. Counts go to reports/fuzzing.md; exit 1 if anything fell.

Every input is made from the seed, its kind and its number: `run.py --seed 7 --only "GGUF header:1234"` reads one again.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from importlib.metadata import version
from multiprocessing import get_context
from operator import itemgetter
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.fuzz import answers, files, headers, stores
from benchmarks.fuzz.trial import ERRORS, LONGEST_SECONDS, MOST_BYTES, Bounds, Case, Kind
from qwen_inspect import __version__

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "reports" / "fuzzing.md"
CHUNK = 500  # inputs that a process reads in a row
CHUNK_SECONDS = 900.0  # after which a process is given up
SHOWN_BYTES = 600
KINDS: Sequence[Kind] = (
    Kind("safetensors header", 0.45, headers.make_safetensors, headers.read_safetensors),
    Kind("GGUF header", 0.288, headers.make_gguf, headers.read_gguf),
    Kind("hub answer", 0.1, answers.make, answers.read, answers.prepare),
    Kind("configuration", 0.06, files.make_configuration, files.read_configuration),
    Kind("GGUF file", 0.02, headers.make_gguf_file, headers.read_gguf_file),
    Kind("adapter", 0.04, files.make_adapter, files.read_adapter, files.prepare_adapter),
    Kind("index of shards", 0.02, files.make_index, files.read_index, files.prepare_index),
    Kind("measurement", 0.008, files.make_measurement, files.read_measurement, files.prepare_model),
    Kind("Ollama store", 0.006, stores.make_ollama, stores.read_ollama, stores.prepare_ollama),
    Kind("LM Studio folder", 0.002, stores.make_lm_studio, stores.read_lm_studio),
    Kind("llama.cpp command", 0.004, stores.make_llama_cpp, stores.read_llama_cpp),
    Kind("record of a report", 0.002, files.make_record, files.read_record, files.prepare_record),
)


@dataclass
class Tally:
    """What came of inputs. faults: each with the number of the input of fewest bytes, and how often it was met."""

    codes: Counter[int] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    shortest: dict[str, tuple[int, int]] = field(default_factory=dict)  # of a fault: bytes, number
    slowest_seconds: float = 0.0
    most_bytes: int = 0
    processor_seconds: float = 0.0

    def add(self, other: Tally) -> None:
        self.codes += other.codes
        self.notes += other.notes
        self.faults += other.faults
        for fault, place in other.shortest.items():
            self.shortest[fault] = min(place, self.shortest.get(fault, place))
        self.slowest_seconds = max(self.slowest_seconds, other.slowest_seconds)
        self.most_bytes = max(self.most_bytes, other.most_bytes)
        self.processor_seconds += other.processor_seconds


def case_of(seed: int, kind: Kind, number: int) -> Case:
    return kind.make(Random(f"{seed} {kind.name} {number}"))


@cache
def _folder(kind: Kind) -> Path:
    """This process's folder for a kind, prepared."""
    folder = Path(tempfile.mkdtemp(dir=os.environ["FUZZ_FOLDER"]))
    kind.prepare(folder)
    return folder


def read_chunk(seed: int, index: int, numbers: range) -> Tally:
    """Reads inputs of a kind, in the process that this is called in."""
    kind, tally, began = KINDS[index], Tally(), time.process_time()
    folder = _folder(kind)
    bounds = Bounds()
    for number in numbers:
        case = case_of(seed, kind, number)
        outcome = bounds.outcome(kind, case, folder)
        tally.slowest_seconds = max(tally.slowest_seconds, outcome.seconds)
        tally.most_bytes = max(tally.most_bytes, outcome.bytes_taken)
        if outcome.fault:
            tally.faults[outcome.fault] += 1
            place = (len(case.content), number)
            tally.shortest[outcome.fault] = min(place, tally.shortest.get(outcome.fault, place))
            continue
        tally.codes[outcome.verdict.code] += 1
        if outcome.verdict.note is not None:
            tally.notes[outcome.verdict.note] += 1
    tally.processor_seconds = time.process_time() - began
    return tally


def tallies(seed: int, counts: Sequence[int], processes: int) -> list[Tally]:
    """Of every kind, so many inputs; fewer, in the same proportions, if interrupted."""
    sums = [Tally() for _ in KINDS]
    chunks = [
        (start / count, index, range(start, min(start + CHUNK, count)))
        for index, count in enumerate(counts)
        for start in range(0, count, CHUNK)
    ]
    chunks.sort(key=itemgetter(0, 1))
    with ProcessPoolExecutor(processes, get_context("fork"), signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        futures = [(index, pool.submit(read_chunk, seed, index, numbers)) for _, index, numbers in chunks]
        try:
            for done, (index, future) in enumerate(futures, 1):
                tally = future.result(CHUNK_SECONDS)
                sums[index].add(tally)
                for line in faults(seed, KINDS[index], tally):
                    print(line, file=sys.stderr)
                if sys.stderr.isatty():
                    print(f"\r{done} of {len(chunks)} chunks", end="", file=sys.stderr)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
    return sums


def page(seed: int, sums: Sequence[Tally], seconds: float, processes: int) -> Iterator[str]:
    inputs, spent = sum(map(_inputs, sums)), sum(tally.processor_seconds for tally in sums)
    yield "# Fuzzing"
    yield ""
    yield f"Written by `make fuzz SEED={seed}` on {date.today()}: {inputs:,} inputs in {seconds / 60:.1f} minutes"
    yield f"in {processes} processes ({spent / 60:.1f} minutes of processor time), Python {platform.python_version()},"
    yield f"qwen-inspect {__version__} without torch, safetensors {version('safetensors')}."
    yield "An error is one sentence with its documented exit code. Bounds:"
    yield f"{LONGEST_SECONDS:g} s of a processor and {MOST_BYTES // 1_000_000} MB more than before, for every input."
    yield ""
    named = [f"exit {code}" for code in ERRORS]
    yield from _row(
        "Kind", "inputs", "results", *named, "tracebacks", "over a bound", "ms each", "slowest, ms", "most, MB"
    )
    yield f"|{'---|' * (len(named) + 8)}"
    for kind, tally in zip(KINDS, sums, strict=True):
        over = sum(count for fault, count in tally.faults.items() if fault.startswith("over"))
        codes = [tally.codes[code] for code in ERRORS]
        each = f"{1000 * tally.processor_seconds / max(1, _inputs(tally)):.2f}"
        peaks = round(1000 * tally.slowest_seconds), round(tally.most_bytes / 1e6)
        fallen = sum(tally.faults.values()) - over
        yield from _row(kind.name, _inputs(tally), tally.codes[0] + tally.codes[1], *codes, fallen, over, each, *peaks)
    notes = sum((tally.notes for tally in sums), Counter[str]())
    yield ""
    yield "Safetensors headers that the safetensors library reads and we refuse (`docs/security.md` has the reasons); every other"
    yield "header is read alike, or refused by both:"
    yield ""
    yield from (f"- {note}: {count:,}" for note, count in sorted(notes.items()))


def _row(*cells: str | int) -> Iterator[str]:
    yield f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else cell for cell in cells)} |"


def _inputs(tally: Tally) -> int:
    return tally.codes.total() + tally.faults.total()


def faults(seed: int, kind: Kind, tally: Tally) -> Iterator[str]:
    """Each fault of a kind with its shortest input."""
    for fault, count in tally.faults.most_common():
        _, number = tally.shortest[fault]
        case = case_of(seed, kind, number)
        yield f"{count} x {fault}"
        yield f"  --seed {seed} --only '{kind.name}:{number}' {' '.join(case.words)}: {case.content[:SHOWN_BYTES]!r}"


def counts_of(inputs: int, each: int | None) -> list[int]:
    return [round(kind.share * inputs) if each is None else each for kind in KINDS]


def show(seed: int, name: str, number: int) -> None:
    """One input again, with its traceback if it has one."""
    (index,) = (index for index, kind in enumerate(KINDS) if kind.name == name)
    case = case_of(seed, KINDS[index], number)
    print(case.words, case.content[:SHOWN_BYTES])
    print(KINDS[index].read(case, _folder(KINDS[index])))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of all kinds together")
    parser.add_argument("--each", type=int, help="of every kind, in place of its share")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", metavar="KIND:NUMBER", help="shows this input and reads it")
    parser.add_argument("--write", action="store_true", help=f"writes {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background too
    sys.modules.update(dict.fromkeys(("torch", "transformers")))  # type: ignore[arg-type]  # a plain install has none
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ |= {"FUZZ_FOLDER": folder, "HOME": folder, "QWEN_INSPECT_CACHE": f"{folder}/kept"}
        os.environ |= {"LC_ALL": "C.UTF-8", "COLUMNS": "120", "HF_HUB_OFFLINE": "1"}
        if options.only:
            name, _, number = options.only.rpartition(":")
            show(options.seed, name, int(number))
            return 0
        began = time.monotonic()
        sums = tallies(options.seed, counts_of(options.inputs, options.each), options.processes)
    text = "\n".join([*page(options.seed, sums, time.monotonic() - began, options.processes), ""])
    print(text)
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
    return 1 if any(tally.faults for tally in sums) else 0


if __name__ == "__main__":
    sys.exit(main())

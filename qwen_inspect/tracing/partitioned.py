"""Weights of DeepSpeed's ZeRO stage 3 on one rank of a traced model: which are gathered and let go of, and when.

Its own code runs here on fake tensors, class by class, with a rank's own requests and without communication, which is in place.
Nothing is written to the memory that other ranks would fill.
Source: DeepSpeed 0.19.8, runtime/zero: partition_parameters.py and partitioned_param_coordinator.py, whose names stand at each
class and function.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from ..errors import UnsupportedError
from ..results.timeline import ADAPTER, GATHERED
from ..typed import Any, Literal
from ..values import dataclass
from .adapting import is_added
from .recorder import Recorder

PARAMETER = "parameter"
NEVER = -(10**10)
# Modules that gather all that is below them at once. Source: leaf_module_config.py, DEFAULT_LEAF_MODULE_CLASSES
LEAVES = ("MixtralSparseMoeBlock", "Qwen2MoeSparseMoeBlock", "Qwen3MoeSparseMoeBlock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Partitioning:
    """Stage 3 on one of `ranks`, with the optimizer or the parts of weights on the host. Numbers of elements, of DeepSpeed's
    configuration: bucket (reduce_bucket_size), ahead (stage3_prefetch_bucket_size), reuse (stage3_max_reuse_distance), live
    (stage3_max_live_parameters), persistent (stage3_param_persistence_threshold), group (sub_group_size).

    Source: config.py, its defaults
    """

    ranks: int
    rank: int
    optimizer: str
    accumulate: int = 1
    offload_optimizer: bool = False
    bucket: int = 5 * 10**8
    ahead: int = 5 * 10**7
    reuse: int = 10**9
    live: int = 10**9
    persistent: int = 10**5
    group: int = 10**9


class Part:
    """A parameter, and this rank's part of it: `size` elements, of which `real` are not padding.

    held: this rank's part. users: the modules that run with it. Source: Init._convert_to_deepspeed_param, _partition_param
    """

    def __init__(self, number: int, name: str, parameter: Any, how: Partitioning) -> None:
        self.number, self.module, self.parameter = number, name.rpartition(".")[0], parameter
        self.use = ADAPTER if is_added(name) else PARAMETER
        self.shape, self.elements = parameter.shape, parameter.numel()
        self.size = -(-self.elements // how.ranks)
        self.real = max(0, min(self.size, self.elements - how.rank * self.size))
        self.persistent = self.elements <= how.persistent
        self.held: Any = None
        self.state: Literal["gone", "coming", "there"] = "gone"
        self.users: set[Any] = set()


class Gathering:
    """Parameters that one call gathers. Source: _all_gather_sequential, _all_gather_coalesced, AllGatherCoalescedHandle"""

    def __init__(self, parts: Sequence[Part], ranks: int, recorder: Recorder) -> None:
        import torch

        self.parts, self.ranks, self.recorder = sorted(parts, key=lambda part: part.number), ranks, recorder
        self.flat: Any = None
        self.complete = False
        for part in self.parts:
            part.state = "coming"
        if ranks == 1:
            for part in self.parts:
                part.parameter.data = part.held.view(part.shape)
        elif len(self.parts) == 1:
            (part,) = self.parts
            part.parameter.data = gathered(part, ranks, recorder)
        else:
            first = self.parts[0]
            with recorder.named(None, module=first.module):
                self.flat = torch.empty(sum(part.size for part in self.parts) * ranks, dtype=first.held.dtype)
            recorder.keep(self.flat, GATHERED)

    def wait(self) -> None:
        import torch

        if self.complete:
            return
        if self.flat is not None:
            begins, all_sizes = 0, self.flat.numel() // self.ranks
            for part in self.parts:
                starts = range(0, part.elements, part.size)
                pieces = [
                    self.flat.narrow(0, rank * all_sizes + begins, min(part.size, part.elements - start))
                    for rank, start in enumerate(starts)
                ]
                with self.recorder.named(None, module=part.module):
                    whole = torch.cat(pieces)
                self.recorder.keep(whole, GATHERED)
                part.parameter.data = whole.view(part.shape)
                begins += part.size
        for part in self.parts:
            part.state = "there"
        self.complete = True


def gathered(part: Part, ranks: int, recorder: Recorder, *, use: str = GATHERED) -> Any:
    """One parameter by itself. Source: _all_gather_sequential, _allgather_params_sequential"""
    import torch

    with recorder.named(None, module=part.module):
        flat = torch.empty(part.size * ranks, dtype=part.held.dtype)
    recorder.keep(flat, use)
    return flat.narrow(0, 0, part.elements).view(part.shape)


class Weights:
    """Which parameters are whole, and when. Source: PartitionedParameterCoordinator"""

    def __init__(self, parts: Iterable[Part], how: Partitioning, recorder: Recorder) -> None:
        self.parts = list(parts)
        self.by_parameter = {id(part.parameter): part for part in self.parts}
        self.how, self.recorder = how, recorder
        self.state: Literal["invalid", "record", "complete"] = "invalid"
        self.modules: list[Any] = []  # in the order of a forward and a backward
        self.order: list[tuple[Part, int]] = []  # and their parameters, with the step that uses them
        self.queue: deque[tuple[Part, int]] = deque()
        self.coming: dict[Part, Gathering] = {}
        self.asked: dict[Part, int] = {}  # the last step for which a parameter was gathered
        self.steps_of: dict[Any, deque[int]] = {}
        self.kept_back: dict[tuple[Any, int], frozenset[Part]] = {}
        self.in_backward: dict[Any, None] = {}
        self.recomputed: dict[Any, dict[Part, None]] = {}
        self.step = self.available = 0
        self.running: list[Any] = []  # modules whose forward runs, innermost last
        self.taken_by: dict[Any, dict[Part, None]] = {}  # parameters of others, by the module that uses them

    def of(self, module: Any, *, below: bool | None = None) -> list[Part]:
        """The module's own parameters, and those that it takes from others. below: also those of modules below it; None: if it is
        a leaf.
        """
        below = is_leaf(module) if below is None else below
        found = {self.by_parameter[id(parameter)] for parameter in module.parameters(recurse=below)}
        found |= {*self.taken_by.get(module, ())}
        return sorted(found, key=lambda part: part.number)

    def begin(self) -> None:
        """Source: reset_step"""
        self._let_coming_go()
        if self.state != "complete":
            _compare([0] * len(self.modules))
            if self.state == "record":
                for module in self.modules:
                    step = self.steps_of[module].popleft()
                    self.order += [(part, step) for part in self.of(module)]
                _compare([0] * len(self.order))
                _compare([0] * len(self.order))
                self.state = "complete"
            else:
                self.state = "record"
        self.queue = deque(self.order)
        self.asked, self.steps_of = {}, {}
        self.step = self.available = 0

    def take(self, part: Part) -> None:
        """Gathers a parameter for the module that runs, which does not own it.

        Source: ZeROOrderedDict.__getitem__, register_external_parameter
        """
        self.taken_by.setdefault(self.running[-1], {})[part] = None
        part.parameter.data = gathered(part, self.how.ranks, self.recorder)
        part.state = "there"

    def _let_coming_go(self) -> None:
        """Source: _clean_inflight_param_registry"""
        for part, gathering in self.coming.items():
            gathering.wait()
            self._let_go(part)
        self.coming.clear()

    def fetch(self, module: Any, *, forward: bool) -> None:
        """Source: trace_prologue, record_module, fetch_sub_module"""
        import torch

        if self.state == "complete" and (len(self.modules) <= self.step or self.modules[self.step] is not module):
            raise UnsupportedError("ranks_deepspeed_peak_modules")
        if self.state == "record":
            self.modules.append(module)
            self.steps_of.setdefault(module, deque()).append(self.step)
        if not forward:
            self.in_backward[module] = None
        wanted = self.of(module)
        self._gather([part for part in wanted if part.state == "gone"])
        recomputing = forward and torch._C._current_graph_task_id() != -1
        put_together: set[int] = set()
        for part in wanted:
            part.users.add(module)
            if recomputing and self.in_backward and not part.parameter.requires_grad:
                owner = next(reversed(self.in_backward))
                self.recomputed.setdefault(owner, {})[part] = None
                part.users.add(owner)
            gathering = self.coming.pop(part, None)
            if gathering is not None:
                if not gathering.complete and gathering.flat is not None:
                    put_together.add(id(gathering))
                gathering.wait()
            del gathering
        if len(put_together) > 1:  # one after the other, as Python draws the order of a set for each process
            raise UnsupportedError("ranks_deepspeed_peak_order", class_name=type(module).__name__)
        if self.state == "complete":
            self._look_ahead(wanted)
        self.step += 1

    def _look_ahead(self, wanted: Sequence[Part]) -> None:
        new = {part for part in wanted if self.asked.get(part, NEVER) < self.step}
        passed: set[Part] = set()
        while self.queue and len(passed) < len(new):
            part, step = self.queue.popleft()
            self.asked[part] = step
            passed.add(part)
        if passed != new:
            raise UnsupportedError("ranks_deepspeed_peak_modules")
        if self.how.ahead <= 0:
            return
        most = min(self.how.live - self.available, self.how.ahead)
        ahead: dict[Part, None] = {}
        elements = 0
        while self.queue and elements < most:
            part, step = self.queue.popleft()
            self.asked[part] = max(self.asked.get(part, NEVER), step)
            if part.state == "gone" and part not in ahead:
                ahead[part] = None
                elements += part.elements
        if elements:
            self._gather(list(ahead))

    def _gather(self, parts: Sequence[Part]) -> None:
        """Source: __all_gather_params_"""
        parts = [part for part in parts if part.state == "gone"]
        if not parts:
            return
        self.available += sum(part.elements for part in parts)
        gathering = Gathering(parts, self.how.ranks, self.recorder)
        for part in parts:
            self.coming[part] = gathering

    def release(self, module: Any, *, forward: bool) -> None:
        """Source: release_sub_module"""
        own = dict.fromkeys(self.of(module))
        free = self._to_release(module) if self.state == "complete" else frozenset(own)
        if not forward:
            recomputed = self.recomputed.pop(module, {})
            free |= {part for part in recomputed if not part.persistent}
            own |= recomputed
            self.in_backward.pop(module, None)
        for part in own:
            part.users.discard(module)
            if part in free:
                self._let_go(part)

    def release_left(self) -> None:
        """Source: release_backward_leftovers"""
        while self.in_backward:
            module, _ = self.in_backward.popitem()
            for part in {**dict.fromkeys(self.of(module)), **self.recomputed.pop(module, {})}:
                part.users.discard(module)
                if not part.persistent:
                    self._let_go(part)

    def release_all(self) -> None:
        """Source: release_and_reset_all"""
        for part in self.parts:
            if (gathering := self.coming.pop(part, None)) is not None:
                gathering.wait()
            del gathering
            part.users.clear()
            self._let_go(part)

    def gather_persistent(self) -> None:
        """Those that stay whole, after the step. Source: stage3.py, _post_step; _all_gather, _allgather_params_coalesced"""
        missing = [part for part in self.parts if part.persistent and part.state == "gone"]
        if self.how.ranks == 1 and len(missing) > 1:
            wholes = [part.held.view(part.shape) for part in missing]
        else:
            wholes = [gathered(part, self.how.ranks, self.recorder, use=part.use) for part in missing]
        for part, whole in zip(missing, wholes, strict=True):
            part.parameter.data = whole
            part.state = "there"

    def _let_go(self, part: Part) -> None:
        """Source: __release_param, free_param"""
        import torch

        if part.state == "there" and not part.users:
            part.parameter.data = torch.empty(0, dtype=part.held.dtype)
            part.state = "gone"
            self.available -= part.elements

    def _to_release(self, module: Any) -> frozenset[Part]:
        """Source: __params_to_release, which keeps its answers"""
        key = (module, self.step)
        if key not in self.kept_back:
            found = {part for part in self.of(module) if not part.persistent}
            found -= {part for part in self.of(module) if self.asked.get(part, NEVER) > self.step}
            passed = 0
            for later in self.modules[self.step :]:
                if passed >= self.how.reuse:
                    break
                for part in self.of(later, below=is_leaf(module)):
                    found.discard(part)
                    passed += part.elements
            self.kept_back[key] = frozenset(found)
        return self.kept_back[key]


def _compare(numbers: list[int]) -> None:
    """Source: utils.py, assert_ints_same_as_other_ranks"""
    import torch

    torch.tensor(numbers, dtype=torch.int64)


def is_leaf(module: Any) -> bool:
    return type(module).__name__ in LEAVES

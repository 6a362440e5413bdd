"""LoRA on a tensor-parallel model: which modules PEFT can train there, and how their matrices are cut.

Of a module that is cut by columns every rank has A whole and its own rows of B; forward and gradients are those of one process.
A module that is cut by rows fails in its forward: PEFT makes A for the local width, which transformers takes for the whole one.
Under any other style PEFT adds whole matrices, whose outputs do not fit the module's.
Source: PEFT 0.21.2, tuners/lora/model.py (add_lora_tp_hooks_dtensor) and tuners/tuners_utils.py (_get_in_out_features);
transformers 5.23, distributed/tensor_parallel.py, RowwiseParallel.transform_inputs_pre_forward. Run on 2 processes (gloo).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..checkpoint import Tensor
from ..errors import UnsupportedError
from ..results.memory import Run

COLUMNS = "colwise"
ROWS_OF_B = ".lora_B.weight"


def check_adapters(adapters: Sequence[Tensor], styles: Mapping[str, str | None], run: Run) -> None:
    """UnsupportedError unless all are matrices of modules that are cut by columns. styles: of each parameter of the model."""
    if run.dora or run.lora_parameters or run.saved_modules:
        raise UnsupportedError("ranks_adapters_kind")
    for tensor in adapters:
        module = tensor.name.rpartition(".lora_")[0]
        style = styles.get(f"{module}.weight")
        if style != COLUMNS:
            known = dict.fromkeys(name.split(".")[-2] for name, style in styles.items() if style == COLUMNS)
            targets = ",".join(known) or "–"
            raise UnsupportedError("ranks_adapters_style", module=module, style=style or "–", targets=targets)


def rows_are_cut(tensor: Tensor) -> bool:
    """Whether ranks share the rows of an adapter's tensor, whose module is cut by columns."""
    return tensor.name.endswith(ROWS_OF_B)

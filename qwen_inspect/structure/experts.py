"""Experts that files hold singly and that no name tells apart: the first one's matrices, and how many each stands for."""

from __future__ import annotations

from collections.abc import Iterable

from ..architectures import StoredForm
from ..checkpoint import Tensor

EXPERTS = ".experts."  # in the name of an expert's matrix
MOST_REMEMBERED = 8  # parts of a tensor's form; more are all experts' matrices, too many to hold


def is_of_expert(name: str) -> bool:
    """Whether a tensor of this name is of one expert."""
    number, dot, _ = name.partition(EXPERTS)[2].partition(".")
    return bool(dot) and number.isdecimal()


def first_experts_name(name: str) -> str:
    """The name of a tensor, of the first expert instead of another one."""
    before, experts, after = name.partition(EXPERTS)
    number, dot, rest = after.partition(".")
    return f"{before}{experts}0.{rest}" if dot and number.isdecimal() else name


def first_form(tensor: Tensor, form: StoredForm) -> tuple[Tensor, ...]:
    """How files hold the first expert of a tensor that has them all; empty for any other tensor."""
    if len(tensor.shape) != 3 or tensor.shape[0] < 2:
        return ()
    first = form(Tensor(tensor.name, (1, *tensor.shape[1:]), tensor.dtype, tensor.file))
    return first if all(is_of_expert(matrix.name) for matrix in first) else ()


def remembered(form: StoredForm) -> StoredForm:
    """`form`, worked out once for each tensor: packed weights are asked for it a dozen times."""
    forms: dict[tuple[str, tuple[int, ...]], tuple[Tensor, tuple[Tensor, ...]]] = {}

    def found(tensor: Tensor) -> tuple[Tensor, ...]:
        key = tensor.name, tensor.shape
        known = forms.get(key)
        if known is not None and known[0].dtype is tensor.dtype and known[0].file == tensor.file:
            return known[1]
        parts = form(tensor)
        if len(parts) <= MOST_REMEMBERED:
            forms[key] = tensor, parts
        return parts

    return found


def of_first_experts(form: StoredForm) -> StoredForm:
    """`form` without all experts but the first."""
    return lambda tensor: first_form(tensor, form) or form(tensor)


def expert_counts(tensors: Iterable[Tensor], form: StoredForm) -> dict[str, int]:
    """By the name of a matrix of `of_first_experts(form)`, how many experts it stands for, if several."""
    return {matrix.name: tensor.shape[0] for tensor in tensors for matrix in first_form(tensor, form)}

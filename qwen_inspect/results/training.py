"""What a training run trains, which `predicting.training` computes, and the loop that trains it."""

from __future__ import annotations

from collections.abc import Mapping

from ..typed import TYPE_CHECKING, Literal
from ..values import dataclass, replace

if TYPE_CHECKING:
    from .stored import KeptModules

LoopName = Literal["trainer", "sft", "accelerate", "plain"]
KeptLogits = Literal["no", "backward", "step"]
Loss = Literal["model", "liger", "torch", "trl", "unsloth"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """The training loop around a model's forward and backward.

    name: whose loop; None is one that holds nothing but a micro-batch's tokens and labels. keep_gradients: they are zeroed in
    place after a step, else dropped. keep_logits: the forward's outputs live until it returns ("no"), until the end of its
    backward, or until the next forward has returned ("step"). clip: gradients are scaled to a largest norm. loss: that of
    the model's class, or a library's that makes no logits of all tokens. completion_tokens: only so many
    tokens at the end of each sequence have labels; None: all have. hits: TRL's head also says which predictions are right, which
    SFTTrainer reports and GRPOTrainer does not ask for. ema: a copy of all weights follows them as their moving
    average. padding_free: a micro-batch is one row, with the positions of each token in its sequence instead of a mask.
    packing: sequences in each of the micro-batch's rows before; only if padding_free.
    """

    name: LoopName | None = None
    keep_gradients: bool = False
    keep_logits: KeptLogits = "no"
    clip: bool = False
    loss: Loss = "model"
    completion_tokens: int | None = None
    hits: bool = True
    ema: bool = False
    padding_free: bool = False
    packing: int = 1

    @property
    def accelerated(self) -> bool:
        """Whether accelerate runs the forward and the backward."""
        return self.by_trainer or self.name == "accelerate"

    @property
    def by_trainer(self) -> bool:
        """Whether it is transformers' Trainer's, or that of TRL's SFTTrainer, which is one."""
        return self.name in ("trainer", "sft")

    @property
    def masked(self) -> bool:
        """Whether micro-batches have an attention mask, as data collators make them."""
        return self.name is not None and not self.padding_free

    def in_one_row(self, batch: int) -> int | None:
        """How many sequences the row of a micro-batch of `batch` has; None if each is a row of its own."""
        return batch * self.packing if self.padding_free else None

    def labelled_tokens(self, batch: int, tokens: int) -> int:
        """Tokens of a micro-batch of `batch` times `tokens` tokens that are predicted: all but the first of each sequence, or its
        completion.
        """
        sequences = batch * self.packing
        if self.completion_tokens is None:
            return batch * tokens - sequences
        return sequences * min(self.completion_tokens, tokens // self.packing - 1)


# Sources: transformers 5.23, trainer.py and training_args.py (max_grad_norm); TRL 1.16, sft_trainer.py; accelerate 1.15, the loop
# of its README and of examples/nlp_example.py; the plain loop of Hugging Face's course, chapter 3. The last two name the outputs,
# so they outlive the step.
LOOPS: Mapping[LoopName | None, Loop] = {
    None: Loop(),
    "trainer": Loop(name="trainer", clip=True),
    "sft": Loop(name="sft", clip=True, loss="trl"),
    "accelerate": Loop(name="accelerate", keep_logits="step"),
    "plain": Loop(name="plain", keep_logits="step"),
}


def loop_of(
    name: LoopName | None,
    *,
    keep_gradients: bool | None = None,
    keep_logits: bool | None = None,
    clip: bool | None = None,
    loss: Loss | None = None,
    completion_tokens: int | None = None,
    ema: bool = False,
    padding_free: bool = False,
    packing: int | None = None,
) -> Loop:
    """The loop of this name, with the facts that are given replaced. keep_logits: at least in the backward. packing: so many
    sequences in a row, which makes it padding-free.
    """
    loop = LOOPS[name]
    logits: KeptLogits = loop.keep_logits
    if keep_logits is not None and keep_logits is (logits == "no"):
        logits = "backward" if keep_logits else "no"
    return replace(
        loop,
        keep_gradients=loop.keep_gradients if keep_gradients is None else keep_gradients,
        keep_logits=logits,
        clip=loop.clip if clip is None else clip,
        loss=loss or loop.loss,
        completion_tokens=completion_tokens,
        ema=ema,
        padding_free=padding_free or packing is not None,
        packing=packing or 1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The parameters that get gradients, derived from shapes.

    trainable: their number. adapters: whether they are LoRA matrices, with all of the model's own parameters frozen.
    base_parameters: the model's own, tied ones once. trained_bytes, frozen_bytes: as the run holds them. modules: the trained
    modules, all layers under one name.
    """

    trainable: int
    base_parameters: int
    adapters: bool
    trained_bytes: int
    frozen_bytes: int
    modules: tuple[KeptModules, ...]

    @property
    def all_parameters(self) -> int:
        """As PEFT's print_trainable_parameters counts them."""
        return self.base_parameters + (self.trainable if self.adapters else 0)

    @property
    def share(self) -> float:
        """Trainable parameters as a fraction of all: PEFT's "trainable%" / 100."""
        return self.trainable / self.all_parameters

"""A micro-batch without padding: its sequences in one row, one behind the other."""

from __future__ import annotations

from ..typed import Any


def one_row(tokens: int, sequences: int) -> dict[str, Any]:
    """What TRL's collator gives the model for a row of `tokens` tokens: tokens, labels and positions, (1, tokens) of 8 B each,
    the bounds of the sequences twice, (sequences + 1,), and the sequence of each token, both of 4 B.

    The two bounds are one tensor on the host, and two on the device. Source: TRL 1.16, trainer/sft_trainer.py,
    DataCollatorForLanguageModeling; transformers 5.23, trainer.py, _prepare_input
    """
    import torch

    of_tokens = ("input_ids", "labels", "position_ids")
    bounds = ("cu_seq_lens_q", "cu_seq_lens_k")
    return {
        **{name: torch.zeros(1, tokens, dtype=torch.int64) for name in of_tokens},
        **{name: torch.zeros(sequences + 1, dtype=torch.int32) for name in bounds},
        "max_length_q": tokens // sequences,
        "max_length_k": tokens // sequences,
        "seq_idx": torch.zeros(1, tokens, dtype=torch.int32),
    }

"""Logits -> tokens: greedy CTC (best path; merge repeats, then drop blanks)."""

from __future__ import annotations

import torch
from torch import Tensor


def greedy(logits: Tensor, frame_lengths: Tensor, blank: int = 0) -> list[list[int]]:
    """Most likely token per frame, collapsed.

    Parameters
    ----------
    logits : Tensor
        (batch, frames, vocab), before or after softmax.
    frame_lengths : Tensor
        (batch,) valid frames; what follows them is not read.
    blank : int
        Index of the CTC blank.

    Returns
    -------
    list of list of int
        Tokens of each utterance.

    Example
    -------
    >>> logits = torch.eye(3)[[1, 1, 0, 1, 2, 2]][None]
    >>> greedy(logits, torch.tensor([5]))
    [[1, 1, 2]]
    """
    best = logits.argmax(-1).cpu()
    tokens = []
    for row, length in zip(best, frame_lengths.tolist(), strict=True):
        merged = torch.unique_consecutive(row[:length])
        tokens.append(merged[merged != blank].tolist())
    return tokens

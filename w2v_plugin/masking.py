"""Span masks over time (pretraining and fine-tuning) and channels (fine-tuning only).

Wav2vec 2.0, section 3.1: with prob = 0.65 and length = 10, about prob / length of all frames start
a span; spans overlap, so 49 % of a 15 s utterance is masked, in runs of 14.7 frames on average.
Everything is drawn on the device of the input, without a loop over utterances.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w2v_plugin.frames import valid_frames


def span_mask(
    frame_lengths: Tensor,
    size: int,
    *,
    prob: float,
    length: int,
    min_spans: int = 2,
    equal_counts: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw spans of `length` frames in every utterance.

    Per utterance of T frames, floor(prob * T / length + U[0, 1)) starts are drawn without
    replacement, at least `min_spans`. Utterances shorter than `length` + 1 get spans of T - 1
    frames. Where the spans cover everything, one random frame stays as context, so that a single
    frame is never masked.

    Parameters
    ----------
    frame_lengths : Tensor
        (batch,) valid frames; nothing beyond them is masked.
    size : int
        Frames of the padded batch.
    prob : float
        Share of frames that would be masked if spans did not overlap; 0 masks nothing.
    length : int
        Frames per span.
    min_spans : int
        Lower bound on the number of spans per utterance (if prob > 0).
    equal_counts : bool
        Unmask random single frames until every utterance has as many masked frames as the
        poorest one (fairseq's `require_same_masks`).
    generator : torch.Generator, optional
        Source of randomness, on the device of `frame_lengths`.

    Returns
    -------
    Tensor
        (batch, size) bool, True = masked.

    Example
    -------
    >>> mask = span_mask(torch.tensor([50, 30]), 50, prob=0.65, length=10)
    >>> mask.shape, bool(mask[1, 30:].any())
    (torch.Size([2, 50]), False)
    """
    device, batch = frame_lengths.device, len(frame_lengths)
    if prob <= 0:
        return torch.zeros(batch, size, dtype=torch.bool, device=device)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, device=device, generator=generator)

    spans = (prob * frame_lengths / length + uniform(batch)).floor().clamp(min=min_spans)
    lengths = torch.minimum(frame_lengths - 1, torch.full_like(frame_lengths, length)).clamp(min=0)
    can_start = valid_frames(frame_lengths - lengths + 1, size) & (lengths > 0)[:, None]
    keys = uniform(batch, size)
    starts = random_subset(can_start, spans, keys)
    # frame t is masked if a span starts in (t - length, t]: a difference of running counts
    begun = torch.nn.functional.pad(starts.cumsum(1), (1, 0))  # (batch, size + 1)
    now = torch.arange(1, size + 1, device=device).expand(batch, size)
    before = (now - lengths[:, None]).clamp(min=0)
    mask = begun.gather(1, now) > begun.gather(1, before)
    mask = random_subset(mask, frame_lengths - 1, keys)  # spans that cover all leave one frame
    if equal_counts:
        mask = random_subset(mask, mask.sum(1).amin().expand(batch), uniform(batch, size))
    return mask


def random_subset(candidates: Tensor, counts: Tensor, keys: Tensor) -> Tensor:
    """Choose `counts` (batch,) of the True entries in each row of `candidates` by random `keys`."""
    order = keys.masked_fill(~candidates, -1.0).argsort(dim=1, descending=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return candidates & (rank < counts[:, None])


def most_masked(size: int, *, prob: float, length: int, min_spans: int = 2) -> int:
    """Upper bound on the masked frames of an utterance of `size` frames, as `span_mask` draws them.

    Known without looking at the mask, so that an accelerator need not be waited for; about a third
    more than the usual number where spans overlap as published.

    Example
    -------
    >>> most_masked(781, prob=0.65, length=10)
    510
    """
    if prob <= 0:
        return 0
    spans = max(int(prob * size / length) + 1, min_spans)
    return max(min(spans * length, size - 1), 0)


def masked_indices(mask: Tensor, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Positions of the masked frames, packed to the left.

    Parameters
    ----------
    mask : Tensor
        (batch, frames) bool.
    limit : int, optional
        Width of the result, at most `frames`; by default the largest count in the batch.

    Returns
    -------
    tuple of Tensor
        Indices (batch, width) int64 in temporal order, and (batch, width) bool, True where the
        entry is a masked frame (rows with fewer masked frames are padded).

    Example
    -------
    >>> masked_indices(torch.tensor([[False, True, True], [False, False, True]]))[0].tolist()
    [[1, 2], [2, 0]]
    """
    counts = mask.sum(1)
    width = int(counts.max()) if limit is None else limit
    order = (~mask).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
    return order, valid_frames(counts, width)

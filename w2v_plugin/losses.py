"""Negatives and the contrastive loss (wav2vec 2.0, section 3.2), without the big tensors.

For every masked frame, the context must tell the true target from K targets of *other masked
frames of the same utterance*. The textbook form gathers K vectors per frame, (K + 1, batch,
frames, dim); here all cosine similarities of an utterance are one matrix product and only numbers
are gathered. Losses are sums over masked frames together with their count, so that accumulation
steps and ranks can be divided once by the global count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Contrastive:
    """Sums over masked frames; divide by `count`."""

    loss: Tensor  # scalar, nats
    correct: Tensor  # scalar, frames whose true target scored best
    count: Tensor  # scalar, frames that had at least one negative
    shared: Tensor  # scalar in [0, 1], negatives dropped for having the positive's codes


def sample_negatives(
    counts: Tensor, width: int, n: int, generator: torch.Generator | None = None
) -> Tensor:
    """For masked frame i of an utterance, draw `n` others, uniformly and with replacement.

    Parameters
    ----------
    counts : Tensor
        (batch,) masked frames per utterance.
    width : int
        Masked frames of the padded batch.
    n : int
        Negatives per frame; published: 100.
    generator : torch.Generator, optional
        Source of randomness, on the device of `counts`.

    Returns
    -------
    Tensor
        (batch, width, n) int64 indices into the masked frames, never the frame itself where an
        utterance has two or more.

    Example
    -------
    >>> negatives = sample_negatives(torch.tensor([3]), width=3, n=50)
    >>> sorted(set(negatives[0, 1].tolist()))
    [0, 2]
    """
    others = (counts - 1).clamp(min=1)[:, None, None]
    draw = torch.rand(len(counts), width, n, device=counts.device, generator=generator)
    draw = (draw * others).long().clamp(max=others - 1)  # rand * n can round up to n
    own = torch.arange(width, device=counts.device)[None, :, None]
    return torch.where(draw >= own, draw + 1, draw).clamp(max=width - 1)


def contrastive_loss(
    context: Tensor,
    targets: Tensor,
    negatives: Tensor,
    *,
    valid: Tensor,
    codes: Tensor | None = None,
    temperature: float = 0.1,
) -> Contrastive:
    """Cross-entropy of the true target among its negatives, by cosine similarity.

    Parameters
    ----------
    context, targets : Tensor
        (batch, masked, dim) predictions and quantized targets at the masked frames. Both keep
        their gradient: detaching the targets is a known bug of other implementations.
    negatives : Tensor
        (batch, masked, n) indices from `sample_negatives`.
    valid : Tensor
        (batch, masked) bool, False for padding entries.
    codes : Tensor, optional
        (batch, masked, groups); negatives with the positive's codes are no negatives and are
        left out (fairseq compares the vectors themselves).
    temperature : float
        Divides the similarities.

    Returns
    -------
    Contrastive
        Sums and counts. A frame whose negatives all equal the positive counts as wrong: a
        collapsed codebook has loss 0 but accuracy 0.
    """
    masked = context.shape[1]
    similarity = cosines(context, targets) / temperature  # (batch, masked, masked)
    positive = similarity.diagonal(dim1=1, dim2=2)[..., None]
    negative = similarity.gather(2, negatives)
    own = torch.arange(masked, device=context.device)[None, :, None]
    same = negatives == own  # only in utterances with a single masked frame
    if codes is not None:
        same = same | same_codes(codes).gather(2, negatives)
    negative = negative.masked_fill(same, float("-inf"))
    frames = valid & (valid.sum(1, keepdim=True) > 1)
    logits = torch.cat([positive, negative], dim=2)
    loss = torch.logsumexp(logits, dim=2) - positive[..., 0]
    rivals = negative.amax(2)
    correct = (positive[..., 0] > rivals) & ~same.all(2)
    count = frames.sum()
    return Contrastive(
        loss=loss.masked_fill(~frames, 0.0).sum(),
        correct=(correct & frames).sum(),
        count=count,
        shared=(same & frames[..., None]).sum() / (count * negatives.shape[2]).clamp(min=1),
    )


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """All pairs: (batch, n, dim) x (batch, m, dim) -> (batch, n, m), never in half precision."""
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        x, y = F.normalize(x.to(wide), dim=-1), F.normalize(y.to(wide), dim=-1)
        return torch.bmm(x, y.transpose(1, 2))


def same_codes(codes: Tensor) -> Tensor:
    """(batch, masked, groups) -> (batch, masked, masked) bool: all groups agree."""
    return (codes[:, :, None] == codes[:, None]).all(-1)


def feature_penalty(latents: Tensor, valid: Tensor | None) -> Tensor:
    """Mean square of the extractor's output over valid frames (before its LayerNorm)."""
    wide = latents.to(torch.promote_types(latents.dtype, torch.float32))
    square = wide.square().mean(-1)  # (batch, frames)
    return square.mean() if valid is None else square[valid].mean()

"""Negatives and the contrastive loss (wav2vec 2.0, section 3.2), without the big tensors.

For every masked frame, the context must tell the true target from K targets of *other masked
frames of the same utterance*. The textbook form gathers K vectors per frame, (K + 1, batch,
frames, dim); here all cosine similarities of an utterance are one matrix product, in which each
counts as often as it was drawn. Losses are sums over masked frames together with their count, so
that accumulation steps and ranks can be divided once by the global count.
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
    similarity = cosines(context, targets) / temperature  # (batch, masked, masked)
    positive = similarity.diagonal(dim1=1, dim2=2)
    drawn = torch.zeros_like(similarity, requires_grad=False)
    drawn.scatter_add_(2, negatives, torch.ones_like(negatives, dtype=drawn.dtype))
    own = torch.eye(context.shape[1], dtype=torch.bool, device=context.device)
    same = own if codes is None else own | same_codes(codes)
    times = drawn.masked_fill(same, 0.0)  # how often each target is a negative of each frame
    frames = valid & (valid.sum(1, keepdim=True) > 1)
    # one that is drawn twice counts twice: + log 2; one that is not drawn: + log 0 = -inf
    logits = similarity + times.masked_fill(own, 1.0).log()
    loss = torch.logsumexp(logits, dim=2) - positive
    beaten = ((similarity >= positive[..., None]) & (times > 0)).any(2)
    correct = ~beaten & (times > 0).any(2)
    count = frames.sum()
    dropped = (drawn - times).sum(2).masked_fill(~frames, 0.0).sum()
    return Contrastive(
        loss=loss.masked_fill(~frames, 0.0).sum(),
        correct=(correct & frames).sum(),
        count=count,
        shared=dropped / (count * negatives.shape[2]).clamp(min=1),
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
    """Mean square of the extractor's output (before its LayerNorm), by utterance.

    Parameters
    ----------
    latents : Tensor
        (batch, frames, channels).
    valid : Tensor or None
        (batch, frames) bool, False for padding; None when there is none.

    Returns
    -------
    Tensor
        (batch,), 0 for an utterance without frames. Weighted with their masked frames, these add
        up over any cut of a batch; over utterances of equal length that is the published mean.

    Example
    -------
    >>> latents = torch.tensor([[[1.0, 3.0], [9.0, 9.0]]])
    >>> feature_penalty(latents, torch.tensor([[True, False]])).tolist()
    [5.0]
    """
    wide = latents.to(torch.promote_types(latents.dtype, torch.float32))
    square = wide.square().mean(-1)  # (batch, frames)
    if valid is None:
        return square.mean(1)
    return square.masked_fill(~valid, 0.0).sum(1) / valid.sum(1).clamp(min=1)

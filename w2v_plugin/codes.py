"""What product quantizers share: chosen codes and what they say (wav2vec 2.0, section 3.2).

Code perplexity is computed from the codes that are best *without noise*: a Gumbel quantizer whose
logits went flat still looks diverse in its sampled codes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from w2v_plugin.ranks import all_sum, distributed


@dataclass
class Quantized:
    """What a quantizer makes of (..., channels); statistics over the valid entries.

    Example
    -------
    >>> none = torch.zeros(())
    >>> counts = torch.tensor([[2.0, 2.0, 0.0, 0.0]])
    >>> out = Quantized(none, none, counts, prob_perplexity=torch.tensor([3.0]), commitment=none)
    >>> out.shares.tolist(), round(out.code_perplexity.item(), 4), out.usage.item()
    ([[0.5, 0.5, 0.0, 0.0]], 2.0, 0.5)
    >>> out.diversity.item()
    0.25
    """

    vectors: Tensor  # (..., dim) codevectors of all groups, concatenated
    codes: Tensor  # (..., groups) int64, the code used in each group
    counts: Tensor  # (groups, V) how many entries each code is the best one of, noise-free
    prob_perplexity: Tensor  # (groups,) exp(entropy) of the mean probability, differentiable
    commitment: Tensor  # scalar, sum over entries; 0 for Gumbel
    projected: Tensor | None = None  # (..., groups, dim / groups) what was compared; not Gumbel
    valid: Tensor | None = None  # (...) bool, the entries that count

    @property
    def shares(self) -> Tensor:
        """(groups, V) share of each code; zeros when nothing counts."""
        return self.counts / self.counts.sum(1, keepdim=True).clamp(min=1)

    @property
    def code_perplexity(self) -> Tensor:
        """(groups,) exp(entropy) of the codes: between 1 (collapsed) and V."""
        return perplexity(self.shares)

    @property
    def usage(self) -> Tensor:
        """(groups,) share of the V codes that occur at least once."""
        return (self.counts > 0).float().mean(1)

    @property
    def diversity(self) -> Tensor:
        """Diversity loss (GV - sum of perplexities) / GV, between 0 and (V - 1) / V."""
        return 1.0 - self.prob_perplexity.mean() / self.counts.shape[1]


def perplexity(probs: Tensor) -> Tensor:
    """exp(entropy) over the last axis, with 0 log 0 = 0.

    Example
    -------
    >>> perplexity(torch.full((4,), 0.25)).item()
    4.0
    """
    # clamped: log(0) has an infinite gradient, which even a loss weight of 0 turns into NaN
    logs = torch.log(probs.clamp(min=torch.finfo(probs.dtype).tiny))
    return torch.exp(-(probs * logs).sum(-1))


def code_counts(codes: Tensor, size: int, valid: Tensor) -> Tensor:
    """How often each code occurs among valid entries: (..., groups) int64 -> (groups, size).

    Example
    -------
    >>> codes, valid = torch.tensor([[0], [2], [2]]), torch.tensor([True, True, False])
    >>> code_counts(codes, 3, valid).tolist()
    [[1.0, 0.0, 1.0]]
    """
    index = codes.flatten(0, -2).t()
    counts = torch.zeros(len(index), size, device=codes.device)
    return counts.scatter_add_(1, index, valid.flatten().expand(index.shape).to(counts.dtype))


def total(x: Tensor, valid: Tensor) -> Tensor:
    """Sum of (..., *rest) over the valid (...) entries: (*rest)."""
    return torch.tensordot(valid.to(x.dtype), x, dims=valid.dim())


def mean_of_all(x: Tensor, valid: Tensor, *, over_ranks: bool) -> Tensor:
    """Mean of (..., *rest) over the valid (...) entries; zeros when there are none.

    With `over_ranks`, the value is the mean over the entries of all ranks and the gradient that of
    this rank's mean. A loss that every rank weights with its own number of entries has then, summed
    over ranks, the value and the gradient of one process with all entries: with n of N entries,
    n f(mean) has the gradient n f' (1 / n) per entry here, N f(mean) has N f' (1 / N) there.
    """
    summed, count = total(x, valid), valid.sum()
    mean = summed / count.clamp(min=1)
    if not (over_ranks and distributed()):
        return mean
    everything = all_sum(torch.cat([summed.flatten(), count[None].to(summed.dtype)]))
    everywhere = everything[:-1].view_as(mean) / everything[-1].clamp(min=1)
    return mean + (everywhere - mean).detach()


def widen(x: Tensor) -> Tensor:
    """At least float32: entropies, distances and Gumbel noise do not survive half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def random_projections(count: int, latents: Tensor, directions: Tensor | None) -> Tensor:
    """`count` random mixtures of `directions` (k, channels), by default principal components."""
    if directions is None:
        directions = principal_components(latents)
    k = len(directions)
    mixtures = torch.randn(count, k, dtype=directions.dtype, device=directions.device)
    return mixtures @ directions / k**0.5


def principal_components(latents: Tensor, share: float = 0.95) -> Tensor:
    """The fewest directions that hold `share` of the variance of (n, channels) latents.

    Returns (k, channels), scaled so that the latents have unit variance along each.

    Example
    -------
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch...
    >>> latents = torch.randn(500, 3) * torch.tensor([5.0, 1.0, 0.1])
    >>> directions = principal_components(latents)
    >>> directions.shape, round((latents @ directions.t()).var().item(), 2)
    (torch.Size([1, 3]), 1.0)
    """
    centered = (latents - latents.mean(0)).cpu().double()  # not every device has eigenvectors
    variances, axes = torch.linalg.eigh(centered.t() @ centered / max(len(centered) - 1, 1))
    variances, axes = variances.clamp(min=1e-12).flip(0), axes.flip(1)
    keep = int((variances.cumsum(0) < share * variances.sum()).sum()) + 1
    return (axes[:, :keep] / variances[:keep].sqrt()).t().to(latents)


class ProductQuantizer(nn.Module, ABC):
    """What both quantizers share: their shape, and the number of updates they have seen."""

    updates: Tensor

    def __init__(self, channels: int, groups: int, codes: int, dim: int) -> None:
        if groups < 1 or dim < 1 or dim % groups:
            raise ValueError(
                f"dim={dim} is not divisible by groups={groups}: the codevectors of a group have "
                "dim / groups numbers. Change one of them."
            )
        if codes < 2:
            raise ValueError(f"codes={codes}, expected at least 2: a single code says nothing.")
        super().__init__()
        self.channels, self.groups, self.codes, self.dim = channels, groups, codes, dim
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def forward(self, latents: Tensor, valid: Tensor | None = None) -> Quantized:
        """Quantize (..., channels); statistics and losses over `valid` (...) entries only."""
        if valid is None:
            valid = torch.ones(latents.shape[:-1], dtype=torch.bool, device=latents.device)
        with torch.autocast(latents.device.type, enabled=False):
            return self.quantize(widen(latents), valid)

    @abstractmethod
    def quantize(self, latents: Tensor, valid: Tensor) -> Quantized:
        """As `forward`, in at least float32; `valid` is given."""

    def mean_probs(self, probs: Tensor, valid: Tensor) -> Tensor:
        """(..., groups, codes) -> (groups, codes); in training over all ranks."""
        learning = self.training and torch.is_grad_enabled()
        return mean_of_all(probs, valid, over_ranks=learning)

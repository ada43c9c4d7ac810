"""Latents -> discrete targets: product quantizers (wav2vec 2.0, section 3.2; vq-wav2vec).

A product quantizer picks one of V codevectors in each of G groups and concatenates them. Two
choices that are interchangeable in the model:

- `GumbelQuantizer`: scores all codes, picks the best (with Gumbel noise in training), passes the
  gradient straight through the softmax. Kept alive by the diversity loss.
- `NearestQuantizer`: picks the nearest codevector, passes the gradient straight through to its
  input. Kept alive by restarting dead codes.

Code perplexity is computed from the codes actually chosen *without noise*: a Gumbel quantizer
whose logits went flat still looks diverse in its sampled codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Quantized:
    """What a quantizer makes of (..., channels)."""

    vectors: Tensor  # (..., dim) codevectors of all groups, concatenated
    codes: Tensor  # (..., groups) int64, the code used in each group
    shares: Tensor  # (groups, V) how often each code is the best one, noise-free
    prob_perplexity: Tensor  # (groups,) exp(entropy) of the mean probability, differentiable
    commitment: Tensor  # scalar; 0 for Gumbel

    @property
    def code_perplexity(self) -> Tensor:
        """(groups,) exp(entropy) of the codes: between 1 (collapsed) and V."""
        return perplexity(self.shares)

    @property
    def usage(self) -> Tensor:
        """(groups,) share of the V codes that occur at least once."""
        return (self.shares > 0).float().mean(1)

    @property
    def diversity(self) -> Tensor:
        """Diversity loss (GV - sum of perplexities) / GV, between 0 and (V - 1) / V."""
        return 1.0 - self.prob_perplexity.mean() / self.shares.shape[1]


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


def code_histogram(codes: Tensor, size: int) -> Tensor:
    """Share of each code per group: (n, groups) int64 -> (groups, size)."""
    counts = torch.zeros(codes.shape[1], size, device=codes.device)
    counts.scatter_add_(1, codes.t(), torch.ones_like(codes.t(), dtype=counts.dtype))
    return counts / max(len(codes), 1)


def mean(x: Tensor) -> Tensor:
    """Mean over the first axis; zeros, not NaN, when there is nothing to average."""
    return x.sum(0) / max(len(x), 1)


def mean_square(x: Tensor) -> Tensor:
    """Mean of squares; zero for no elements."""
    return x.square().sum() / max(x.numel(), 1)


def widen(x: Tensor) -> Tensor:
    """At least float32: entropies, distances and Gumbel noise do not survive half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_groups(groups: int, dim: int) -> None:
    if dim % groups:
        raise ValueError(f"dim={dim} is not divisible by groups={groups}.")


class GumbelQuantizer(nn.Module):
    """Product quantizer trained by straight-through Gumbel-softmax.

    Parameters
    ----------
    channels : int
        Width of the latents.
    groups, codes : int
        G groups of V codevectors; published: 2 x 320.
    dim : int
        Width of all groups together; published: 256 (BASE), 768 (LARGE).
    temperature : tuple of float
        Start, end and decay per update; published: (2, 0.5, 0.999995), which takes 277 000
        updates to get there. Shorter runs need a faster decay.

    Example
    -------
    >>> quantizer = GumbelQuantizer(8, groups=2, codes=5, dim=6)
    >>> out = quantizer(torch.randn(3, 7, 8))
    >>> out.vectors.shape, out.codes.shape
    (torch.Size([3, 7, 6]), torch.Size([3, 7, 2]))
    """

    def __init__(
        self,
        channels: int = 512,
        *,
        groups: int = 2,
        codes: int = 160,
        dim: int = 256,
        temperature: tuple[float, float, float] = (2.0, 0.5, 0.999995),
    ) -> None:
        super().__init__()
        check_groups(groups, dim)
        self.groups, self.codes, self.dim = groups, codes, dim
        self.schedule = tuple(temperature)
        self.logits = nn.Linear(channels, groups * codes)
        nn.init.normal_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)
        self.codebook = nn.Parameter(torch.rand(1, groups * codes, dim // groups))
        self.updates: Tensor
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @property
    def temperature(self) -> float:
        """Gumbel-softmax temperature at this update."""
        start, end, decay = self.schedule
        return max(start * decay ** int(self.updates), end)

    def after_update(self) -> None:
        """Advance the temperature schedule; call once per optimizer step."""
        self.updates += 1

    @torch.no_grad()
    def init_from_data(self, latents: Tensor, directions: Tensor, scale: float = 10.0) -> None:
        """Scores become random projections of `directions`, zero mean, `scale` standard deviation.

        latents (n, channels) are normed latents; directions (k, channels) say what matters in
        them. Random scores of raw latents would mostly follow loudness.
        """
        weight = random_projections(self.logits.out_features, directions)
        centered = latents - latents.mean(0)
        weight = weight * (scale / (centered @ weight.t()).std(0).clamp(min=1e-6))[:, None]
        self.logits.weight.copy_(weight)
        self.logits.bias.copy_(-(weight @ latents.mean(0)))

    def forward(self, latents: Tensor, valid: Tensor | None = None) -> Quantized:
        """Quantize (..., channels); statistics over `valid` (...) entries only."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.quantize(widen(latents), valid)

    def quantize(self, latents: Tensor, valid: Tensor | None) -> Quantized:
        scores = widen(self.logits(latents)).unflatten(-1, (self.groups, self.codes))
        best = scores.argmax(-1)
        if self.training:
            choice = F.gumbel_softmax(scores, tau=self.temperature, hard=True)
        else:
            choice = F.one_hot(best, self.codes).to(scores.dtype)
        codebook = self.codebook.view(self.groups, self.codes, -1)
        vectors = torch.einsum("...gv,gvd->...gd", choice.to(codebook.dtype), codebook).flatten(-2)
        chosen = best if valid is None else best[valid]
        probs = scores.softmax(-1)
        probs = probs if valid is None else probs[valid]
        shares = code_histogram(chosen.reshape(-1, self.groups), self.codes)
        return Quantized(
            vectors=vectors,
            codes=choice.argmax(-1),
            shares=shares,
            prob_perplexity=perplexity(mean(probs.reshape(-1, self.groups, self.codes))),
            commitment=vectors.new_zeros(()),
        )


class NearestQuantizer(nn.Module):
    """Product quantizer that picks the nearest codevector, straight-through.

    The projected latents of each group are normalized (LayerNorm without parameters), compared
    with the codebook by Euclidean distance, and replaced by the nearest codevector; the gradient
    passes to the projection unchanged. Codebook and projection are drawn together by
    |q - sg(z)|^2 + commitment * |z - sg(q)|^2 (van den Oord 2017; vq-wav2vec, section 3.2).

    Parameters
    ----------
    channels, groups, codes, dim
        As in `GumbelQuantizer`.
    commitment : float
        Weight of the commitment term.
    restart_every : int
        Every so many updates, codes that are hardly used move onto random latents of the
        current batch; 0 never does.

    Example
    -------
    >>> quantizer = NearestQuantizer(8, groups=2, codes=5, dim=6)
    >>> quantizer(torch.randn(3, 7, 8)).vectors.shape
    torch.Size([3, 7, 6])
    """

    DECAY = 0.95  # of the running usage, per update: a memory of about 20 updates
    DEAD = 0.05  # running usage, relative to 1 / V, below which a code is dead

    def __init__(
        self,
        channels: int = 512,
        *,
        groups: int = 2,
        codes: int = 160,
        dim: int = 256,
        commitment: float = 0.25,
        restart_every: int = 25,
    ) -> None:
        super().__init__()
        check_groups(groups, dim)
        self.groups, self.codes, self.dim = groups, codes, dim
        self.commitment, self.restart_every = commitment, restart_every
        self.projection = nn.Linear(channels, dim)
        self.codebook = nn.Parameter(torch.randn(groups, codes, dim // groups))
        self.running_usage: Tensor
        self.updates: Tensor
        self.register_buffer("running_usage", torch.ones(groups, codes))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.recent: Tensor | None = None  # (n, groups, d) latents of the last forward

    @property
    def temperature(self) -> float:
        """Nothing is sampled; 0 in the log."""
        return 0.0

    def project(self, latents: Tensor) -> Tensor:
        """(..., channels) -> (..., groups, dim / groups), normalized per group."""
        z = widen(self.projection(latents)).unflatten(-1, (self.groups, -1))
        return F.layer_norm(z, z.shape[-1:])

    def distances(self, z: Tensor) -> Tensor:
        """Squared distance of (..., groups, d) to every codevector: (..., groups, codes).

        |z|^2 - 2 z.e + |e|^2, so that no (..., codes, d) difference is ever stored.
        """
        cross = torch.einsum("...gd,gvd->...gv", z, self.codebook.to(z.dtype))
        return z.square().sum(-1, keepdim=True) - 2 * cross + self.codebook.square().sum(-1)

    @torch.no_grad()
    def init_from_data(self, latents: Tensor, directions: Tensor) -> None:
        """Project onto random mixtures of `directions`; codebook = randomly chosen latents.

        latents (n, channels) are normed latents, at least as many as codes.
        """
        weight = random_projections(self.projection.out_features, directions)
        self.projection.weight.copy_(weight)
        self.projection.bias.copy_(-(weight @ latents.mean(0)))
        z = self.project(latents)
        for group in range(self.groups):
            self.codebook[group] = z[torch.randperm(len(z))[: self.codes], group]

    @torch.no_grad()
    def after_update(self) -> None:
        """Count the update and restart dead codes when it is time; call once per optimizer step."""
        self.updates += 1
        due = self.restart_every and int(self.updates) % self.restart_every == 0
        if not due:
            return
        if self.recent is not None and len(self.recent):
            self.restart_dead(self.recent)
        if dist.is_available() and dist.is_initialized():  # every rank drew its own latents
            dist.broadcast(self.codebook.data, src=0)
            dist.broadcast(self.running_usage, src=0)

    def restart_dead(self, latents: Tensor) -> None:
        """Move codes that are hardly used onto random rows of (n, groups, d) latents."""
        dead = self.running_usage < self.DEAD  # (groups, codes)
        pick = torch.randint(len(latents), dead.shape, device=dead.device)
        fresh = latents.transpose(0, 1).gather(1, pick[..., None].expand(-1, -1, latents.shape[-1]))
        self.codebook.copy_(torch.where(dead[..., None], fresh, self.codebook))
        self.running_usage.masked_fill_(dead, 0.5)

    def forward(self, latents: Tensor, valid: Tensor | None = None) -> Quantized:
        """Quantize (..., channels); statistics and losses over `valid` (...) entries only."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.quantize(widen(latents), valid)

    def quantize(self, latents: Tensor, valid: Tensor | None) -> Quantized:
        z = self.project(latents)  # (..., groups, d)
        distances = self.distances(z)
        codes = distances.argmin(-1)
        group = torch.arange(self.groups, device=codes.device)
        q = self.codebook[group, codes]  # (..., groups, d)
        keep = slice(None) if valid is None else valid
        z_kept, q_kept = z[keep].flatten(0, -3), q[keep].flatten(0, -3)
        shares = code_histogram(codes[keep].reshape(-1, self.groups), self.codes)
        if self.training:
            self.recent = z_kept.detach()
            relative = (shares * self.codes).to(self.running_usage.dtype)
            self.running_usage.lerp_(relative, 1 - self.DECAY)
        probs = mean((-distances[keep]).reshape(-1, self.groups, self.codes).softmax(-1))
        return Quantized(
            vectors=(z + (q - z).detach()).flatten(-2).to(latents.dtype),
            codes=codes,
            shares=shares,
            prob_perplexity=perplexity(probs),
            commitment=mean_square(q_kept - z_kept.detach())
            + self.commitment * mean_square(z_kept - q_kept.detach()),
        )


def random_projections(count: int, directions: Tensor) -> Tensor:
    """`count` random mixtures of the rows of `directions` (k, channels)."""
    k = len(directions)
    mixtures = torch.randn(count, k, dtype=directions.dtype, device=directions.device)
    return mixtures @ directions / k**0.5

"""Latents -> discrete targets: product quantizers (wav2vec 2.0, section 3.2; vq-wav2vec).

A product quantizer picks one of V codevectors in each of G groups and concatenates them. Two
choices that are interchangeable in the model:

- `GumbelQuantizer`: scores all codes, picks the best (with Gumbel noise in training), passes the
  gradient straight through the softmax. Kept alive by the diversity loss.
- `NearestQuantizer`: picks the nearest codevector, passes the gradient straight through to its
  input. Kept alive by restarting dead codes.

`forward` changes nothing in the quantizer, so that it may be computed twice (activation
checkpointing). Training calls `observe` once for each micro-batch and `after_update` once for each
optimizer step; what they change is the same on all ranks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v_plugin.codebooks import LivingCodebook
from w2v_plugin.codes import (
    ProductQuantizer,
    Quantized,
    code_counts,
    perplexity,
    random_projections,
    total,
    widen,
)


class GumbelQuantizer(ProductQuantizer):
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
        Start and end; published: 2 to 0.5 (BASE), 2 to 0.1 (LARGE). Exponential in between.
    anneal_updates : float
        Updates from start to end. Published: a factor of 0.999995 per update, which takes 277 258
        of 400 000 updates (BASE) and 599 145 (LARGE). A shorter run needs fewer, in proportion,
        or the temperature hardly moves.

    Raises
    ------
    ValueError
        For a shape that does not divide, or a schedule that does not fall.

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
        temperature: tuple[float, float] = (2.0, 0.5),
        anneal_updates: float = 277_258.18,
    ) -> None:
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__(channels, groups, codes, dim)
        if len(temperature) != 2:
            raise ValueError(
                f"temperature={tuple(temperature)}, expected (start, end); how fast it falls is "
                "anneal_updates."
            )
        start, end = temperature
        if not start >= end > 0 or anneal_updates <= 0:
            raise ValueError(
                f"temperature={start, end}, anneal_updates={anneal_updates}: expected start >= end "
                "> 0, and more than 0 updates."
            )
        self.config: dict[str, Any] = config  # all it takes to build this quantizer again
        self.schedule, self.anneal_updates = tuple(temperature), anneal_updates
        self.logits = nn.Linear(channels, groups * codes)
        nn.init.normal_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)
        self.codebook = nn.Parameter(torch.rand(1, groups * codes, dim // groups))

    def annealed(self) -> Tensor:
        """Temperature at this update; a tensor, so that an accelerator need not be waited for."""
        start, end = self.schedule
        progress = widen(self.updates.to(self.codebook.dtype)) / self.anneal_updates
        return start * (end / start) ** progress.clamp(max=1.0)

    @property
    def temperature(self) -> float:
        """Gumbel-softmax temperature at this update."""
        return self.annealed().item()

    def observe(self, quantized: Quantized) -> None:
        """Nothing: all that is learned here is learned by gradient."""

    def after_update(self) -> None:
        """Advance the temperature schedule; call once per optimizer step."""
        self.updates += 1

    @torch.no_grad()
    def init_from_data(
        self, latents: Tensor, directions: Tensor | None = None, scale: float = 10.0
    ) -> None:
        """Scores become random projections of `directions`, zero mean, `scale` standard deviation.

        latents (n, channels) are normed latents; directions (k, channels) say what matters in
        them, by default their principal components. Random scores of raw latents would mostly
        follow loudness.
        """
        weight = random_projections(self.logits.out_features, latents, directions)
        centered = latents - latents.mean(0)
        weight = weight * (scale / (centered @ weight.t()).std(0).clamp(min=1e-6))[:, None]
        self.logits.weight.copy_(weight)
        self.logits.bias.copy_(-(weight @ latents.mean(0)))

    def quantize(self, latents: Tensor, valid: Tensor) -> Quantized:
        scores = widen(self.logits(latents)).unflatten(-1, (self.groups, self.codes))
        best = scores.argmax(-1)
        if self.training:
            choice = gumbel_choice(scores, self.annealed())
        else:
            choice = one_hot(best, self.codes, scores.dtype)
        codebook = self.codebook.view(self.groups, self.codes, -1)
        vectors = torch.einsum("...gv,gvd->...gd", choice.to(codebook.dtype), codebook).flatten(-2)
        probs = self.mean_probs(scores.softmax(-1), valid)
        return Quantized(
            vectors=vectors,
            codes=choice.argmax(-1),
            counts=code_counts(best, self.codes, valid),
            prob_perplexity=perplexity(probs),
            commitment=vectors.new_zeros(()),
            valid=valid,
        )


class NearestQuantizer(LivingCodebook):
    """Product quantizer that picks the nearest codevector, straight-through.

    The projected latents of each group are normalized (LayerNorm without parameters), compared
    with the codebook by Euclidean distance, and replaced by the nearest codevector; the gradient
    passes to the projection unchanged. The projection is drawn to the codebook by
    commitment * |z - sg(q)|^2, and the codebook to the projection in one of two ways (van den Oord
    et al. 2017, section 3.2 and appendix A.1; vq-wav2vec, section 3.2): by the loss
    |q - sg(z)|^2, or as a running mean of the latents that chose it.

    Parameters
    ----------
    channels, groups, codes, dim
        As in `GumbelQuantizer`.
    commitment : float
        Weight of the commitment term.
    codebook : {"loss", "ema"}
        How codevectors follow their latents: by gradient, or as an exponential moving average
        over updates, all micro-batches and ranks in one. "ema" needs no learning rate.
    restart_every : int
        Every so many updates, codes that are hardly used move onto random latents of the
        current batch, of all micro-batches and ranks; 0 never does.

    Raises
    ------
    ValueError
        For a shape that does not divide, or an unknown `codebook`.

    Example
    -------
    >>> quantizer = NearestQuantizer(8, groups=2, codes=5, dim=6, codebook="ema")
    >>> out = quantizer(torch.randn(3, 7, 8))
    >>> out.vectors.shape
    torch.Size([3, 7, 6])
    >>> quantizer.observe(out)
    >>> quantizer.after_update()
    """

    def __init__(
        self,
        channels: int = 512,
        *,
        groups: int = 2,
        codes: int = 160,
        dim: int = 256,
        commitment: float = 0.25,
        codebook: str = "loss",
        restart_every: int = 25,
    ) -> None:
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__(channels, groups, codes, dim, follow=codebook, restart_every=restart_every)
        if commitment < 0:
            raise ValueError(f"commitment={commitment}, expected 0 or more.")
        self.config: dict[str, Any] = config  # all it takes to build this quantizer again
        self.commitment = commitment
        self.projection = nn.Linear(channels, dim)
        self.start_from(torch.randn(groups, codes, dim // groups))

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
    def init_from_data(self, latents: Tensor, directions: Tensor | None = None) -> None:
        """Project onto random mixtures of `directions`; codebook = randomly chosen latents.

        latents (n, channels) are normed latents, at least as many as codes; directions as in
        `GumbelQuantizer.init_from_data`.
        """
        if len(latents) < self.codes:
            raise ValueError(
                f"{len(latents)} frames, expected at least codes={self.codes} of them to start "
                "from. Give more audio, or take fewer codes."
            )
        weight = random_projections(self.projection.out_features, latents, directions)
        self.projection.weight.copy_(weight)
        self.projection.bias.copy_(-(weight @ latents.mean(0)))
        z = self.project(latents)
        draws = [torch.randperm(len(z))[: self.codes] for _ in range(self.groups)]
        self.start_from(torch.stack([z[draw, group] for group, draw in enumerate(draws)]))

    def quantize(self, latents: Tensor, valid: Tensor) -> Quantized:
        z = self.project(latents)  # (..., groups, d)
        distances = self.distances(z)
        codes = distances.argmin(-1)
        group = torch.arange(self.groups, device=codes.device)
        q = self.codebook[group, codes]  # (..., groups, d)
        gap = self.commitment * (z - q.detach()).square()
        if self.follow == "loss":
            gap = gap + (q - z.detach()).square()
        probs = self.mean_probs((-distances).softmax(-1), valid)
        return Quantized(
            vectors=(z + (q - z).detach()).flatten(-2).to(latents.dtype),
            codes=codes,
            counts=code_counts(codes, self.codes, valid),
            prob_perplexity=perplexity(probs),
            commitment=total(gap.mean((-2, -1)), valid),
            projected=z.detach(),
            valid=valid,
        )


def one_hot(codes: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """(...) int64 -> (..., size), without an integer tensor of that size."""
    zeros = torch.zeros(*codes.shape, size, dtype=dtype, device=codes.device)
    return zeros.scatter_(-1, codes[..., None], 1.0)


def gumbel_choice(scores: Tensor, temperature: Tensor) -> Tensor:
    """One-hot sample of softmax(scores), with the gradient of the softmax at `temperature`.

    Jang, Gu and Poole 2017. The noise comes from uniform numbers, which are drawn in a fifth of the
    time of exponential ones on a CPU.
    """
    tiny = torch.finfo(scores.dtype).tiny
    noise = torch.rand_like(scores).clamp_(min=tiny).log_().neg_().log_().neg_()
    soft = ((scores + noise) / temperature).softmax(-1)
    hard = one_hot(soft.detach().argmax(-1), scores.shape[-1], scores.dtype)
    return hard - soft.detach() + soft


def anneal_updates(start: float, end: float, decay: float) -> float:
    """How many updates fairseq's three numbers for a temperature take from start to end.

    Example
    -------
    >>> round(anneal_updates(2.0, 0.5, 0.999995))
    277258
    """
    constant = start == end or decay == 1.0
    return math.inf if constant else math.log(end / start) / math.log(decay)

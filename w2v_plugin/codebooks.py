"""A codebook that stays alive: codevectors follow their latents, dead ones start anew.

Van den Oord et al. 2017, section 3.2 and appendix A.1 for the two ways to follow.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v_plugin.codes import ProductQuantizer, Quantized
from w2v_plugin.ranks import all_sum, mixed


@dataclass
class Seen:
    """What a micro-batch did to the codes."""

    counts: Tensor  # (groups, codes)
    sums: Tensor  # (groups, codes, d) of the latents that chose each code; zeros for "loss"
    latents: Tensor  # (n, groups, d)


class LivingCodebook(ProductQuantizer):
    """Codebook, how much each code is used, and what happens to it after an update.

    Parameters
    ----------
    channels, groups, codes, dim
        As in `GumbelQuantizer`.
    follow : {"loss", "ema"}
        Whether codevectors are parameters, or running means of the latents that chose them.
    restart_every : int
        Updates between restarts of dead codes; 0 for none.
    """

    USAGE_DECAY = 0.95  # of the running usage, per update: a memory of about 20 updates
    DEAD = 0.05  # running usage, relative to 1 / V, below which a code is dead
    FOLLOW_DECAY = 0.99  # of counts and sums of an "ema" codebook, per update
    SMOOTHING = 1e-5  # of its counts (Laplace)

    codebook: Tensor  # (groups, codes, d)
    running_usage: Tensor  # (groups, codes), relative to 1 / V
    code_counts: Tensor  # (groups, codes), "ema" only: running mean per update
    code_sums: Tensor  # (groups, codes, d), "ema" only: running mean per update

    def __init__(
        self,
        channels: int,
        groups: int,
        codes: int,
        dim: int,
        *,
        follow: str,
        restart_every: int,
    ) -> None:
        super().__init__(channels, groups, codes, dim)
        if follow not in ("loss", "ema"):
            raise ValueError(f"codebook={follow!r}, expected 'loss' or 'ema'.")
        if restart_every < 0:
            raise ValueError(f"restart_every={restart_every}, expected 0 or more updates.")
        self.follow, self.restart_every = follow, restart_every
        vectors = torch.zeros(groups, codes, dim // groups)
        if follow == "loss":
            self.codebook = nn.Parameter(vectors)
        else:
            self.register_buffer("codebook", vectors)
            self.register_buffer("code_counts", torch.ones(groups, codes))
            self.register_buffer("code_sums", vectors.clone())
        self.register_buffer("running_usage", torch.ones(groups, codes))
        self.seen: list[Seen] = []  # micro-batches since the last update

    @torch.no_grad()
    def start_from(self, vectors: Tensor) -> None:
        """Begin with these codevectors (groups, codes, d)."""
        self.codebook.copy_(vectors)
        if self.follow == "ema":
            self.code_counts.fill_(1.0)
            self.code_sums.copy_(vectors)

    @torch.no_grad()
    def observe(self, quantized: Quantized) -> None:
        """Remember what a micro-batch chose; call once for each, in training."""
        assert quantized.projected is not None and quantized.valid is not None
        z, valid = quantized.projected, quantized.valid
        sums = torch.zeros_like(self.codebook)
        if self.follow == "ema":
            # a product with one-hot rows: unlike scattered sums, the same bits every time
            chosen = F.one_hot(quantized.codes, self.codes).to(z.dtype) * valid[..., None, None]
            sums = torch.einsum("ngv,ngd->gvd", chosen.flatten(0, -3), z.flatten(0, -3))
        self.seen.append(Seen(quantized.counts, sums, z[valid]))

    @torch.no_grad()
    def after_update(self) -> None:
        """Move the codebook by what was observed; call once per optimizer step, on all ranks."""
        self.updates += 1
        if not self.seen:
            return
        counts = all_sum(torch.stack([seen.counts for seen in self.seen]).sum(0))
        if self.follow == "ema":
            sums = all_sum(torch.stack([seen.sums for seen in self.seen]).sum(0))
            self.follow_latents(counts, sums)
        entries = counts.sum(1, keepdim=True)
        relative = (counts * self.codes / entries.clamp(min=1)).to(self.running_usage.dtype)
        usage = self.running_usage.lerp(relative, 1 - self.USAGE_DECAY)
        self.running_usage.copy_(torch.where(entries > 0, usage, self.running_usage))
        due = self.restart_every and int(self.updates) % self.restart_every == 0
        if due and entries[0] > 0:
            self.restart_dead(torch.cat([seen.latents for seen in self.seen]))
        self.seen = []

    def follow_latents(self, counts: Tensor, sums: Tensor) -> None:
        """Codevectors become the running mean of the latents that chose them."""
        self.code_counts.lerp_(counts.to(self.code_counts.dtype), 1 - self.FOLLOW_DECAY)
        self.code_sums.lerp_(sums.to(self.code_sums.dtype), 1 - self.FOLLOW_DECAY)
        everything = self.code_counts.sum(1, keepdim=True)
        share = (self.code_counts + self.SMOOTHING) / (everything + self.codes * self.SMOOTHING)
        self.codebook.copy_(self.code_sums / (share * everything)[..., None])

    def restart_dead(self, latents: Tensor) -> None:
        """Move codes that are hardly used onto random rows of all ranks' (n, groups, d) latents."""
        dead = self.running_usage < self.DEAD  # (groups, codes)
        rows = latents if len(latents) else latents.new_zeros(1, *latents.shape[1:])
        pick = torch.randint(len(rows), dead.shape, device=dead.device)
        fresh = rows.transpose(0, 1).gather(1, pick[..., None].expand(-1, -1, rows.shape[-1]))
        fresh = mixed(fresh, weight=len(latents)).to(self.codebook.dtype)
        self.codebook.copy_(torch.where(dead[..., None], fresh, self.codebook))
        self.running_usage.masked_fill_(dead, 0.5)
        if self.follow == "ema":  # as though half the average number of latents had chosen it
            half = (0.5 * self.code_counts.mean(1, keepdim=True)).expand(dead.shape)
            sums = torch.where(dead[..., None], half[..., None] * fresh, self.code_sums)
            self.code_sums.copy_(sums)
            self.code_counts.copy_(torch.where(dead, half, self.code_counts))

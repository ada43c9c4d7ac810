"""Contrastive pretraining (wav2vec 2.0, sections 3.1 and 3.2): one batch to its losses.

wavs ─ extract ─► latents ─ project ─ mask ─ encoder ─► context ─► contrastive loss
                     └─ quantizer ─► targets ───────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.codes import Quantized
from w2v_plugin.frames import valid_frames
from w2v_plugin.losses import Contrastive, contrastive_loss, feature_penalty, sample_negatives
from w2v_plugin.masking import masked_indices, most_masked, span_mask
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.quantizer import GumbelQuantizer, NearestQuantizer


@dataclass
class PretrainingOutput:
    """Losses of one batch. All but `diversity` are *sums* over `contrastive.count` masked frames.

    Sums add up, over micro-batches and over ranks, however the batch is cut. The diversity of
    several ranks is that of all their frames; of several micro-batches, the mean of each one's.
    """

    loss: Tensor  # contrastive + weighted count * diversity + weighted penalty + commitment
    contrastive: Contrastive
    quantized: Quantized
    penalty: Tensor  # mean square of the latents of the utterance, for each masked frame
    mask: Tensor  # (batch, frames) bool
    frame_lengths: Tensor  # (batch,)
    chance: Tensor | None = None  # frames that a *random* context gets right, if asked for


class Wav2Vec2Pretraining(nn.Module):
    """Contrastive pretraining with a product quantizer (sections 3.1 and 3.2).

    Parameters
    ----------
    wav2vec2 : Wav2Vec2
        The model to train.
    quantizer : GumbelQuantizer or NearestQuantizer
        Makes the targets from the normed latents.
    dim : int
        Width in which context and targets are compared; published: 256 (BASE), 768 (LARGE).
    negatives : int
        Distractors per masked frame.
    temperature : float
        Of the cosine similarities.
    mask_prob, mask_length
        See `span_mask`.
    equal_masks : bool
        As many masked frames in every utterance of a batch as in its poorest one, as published;
        meant for batches of equal length.
    diversity_weight, penalty_weight : float
        Published: 0.1 and 10.
    quantizer_dropout : float
        On the latents that are quantized.

    Raises
    ------
    ValueError
        For settings that no training can have, and a quantizer for other latents.

    Example
    -------
    >>> wav2vec2 = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    >>> model = Wav2Vec2Pretraining(wav2vec2, GumbelQuantizer(8, codes=20, dim=8), dim=8)
    >>> out = model(torch.randn(2, 16000))
    >>> out.loss.requires_grad, out.mask.shape
    (True, torch.Size([2, 49]))
    """

    def __init__(
        self,
        wav2vec2: Wav2Vec2,
        quantizer: GumbelQuantizer | NearestQuantizer,
        *,
        dim: int = 256,
        negatives: int = 100,
        temperature: float = 0.1,
        mask_prob: float = 0.65,
        mask_length: int = 10,
        equal_masks: bool = False,
        diversity_weight: float = 0.1,
        penalty_weight: float = 10.0,
        quantizer_dropout: float = 0.0,
    ) -> None:
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        self.config: dict[str, Any] = config  # all it takes to build the rest of it again
        del config["wav2vec2"], config["quantizer"]
        check_settings(config)
        if quantizer.channels != (channels := wav2vec2.projection.linear.in_features):
            raise ValueError(
                f"The quantizer expects channels={quantizer.channels}, but the extractor makes "
                f"latents of {channels}. Give both the same."
            )
        self.wav2vec2, self.quantizer = wav2vec2, quantizer
        self.project_targets = nn.Linear(quantizer.dim, dim)
        self.project_context = nn.Linear(wav2vec2.dim, dim)
        self.quantizer_dropout = nn.Dropout(quantizer_dropout)
        self.negatives, self.temperature = negatives, temperature
        self.mask_prob, self.mask_length = mask_prob, mask_length
        self.equal_masks = equal_masks
        self.diversity_weight, self.penalty_weight = diversity_weight, penalty_weight

    def forward(
        self,
        wavs: Tensor,
        wav_lens: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        negatives: Tensor | None = None,
        chunk: ChunkConfig | None = None,
        chance: bool = False,
        generator: torch.Generator | None = None,
    ) -> PretrainingOutput:
        """Losses of a batch.

        Parameters
        ----------
        wavs, wav_lens
            As in `Wav2Vec2`.
        mask : Tensor, optional
            (batch, frames) bool; drawn by `span_mask` when not given.
        negatives : Tensor, optional
            (batch, masked, n) indices among the masked frames; drawn when not given.
        chunk : ChunkConfig, optional
            Train the context in chunks.
        chance : bool
            Also measure what a random context would get right.
        generator : torch.Generator, optional
            For mask and negatives; makes evaluation repeatable.
        """
        latents, lengths = self.wav2vec2.extract(wavs, wav_lens)
        normed = self.wav2vec2.projection.norm(latents)
        size, counts, width = latents.shape[1], lengths, None
        if counts is None:
            counts = torch.full((len(latents),), size, device=latents.device)
        if mask is None:
            mask = span_mask(
                counts,
                size,
                prob=self.mask_prob,
                length=self.mask_length,
                equal_counts=self.equal_masks,
                generator=generator,
            )
            if mask.device.type != "cpu":  # where asking for the largest count means waiting
                width = most_masked(size, prob=self.mask_prob, length=self.mask_length)
        out = self.wav2vec2.contextualize(latents, lengths, mask=mask, chunk=chunk, normed=normed)
        index, valid = masked_indices(mask, width)  # (batch, masked)
        valid = valid & (mask.sum(1) > 1)[:, None]  # a single one has no negatives
        quantized = self.quantizer(self.quantizer_dropout(take(normed, index)), valid)
        masked = valid.sum(1)
        if negatives is None:
            negatives = sample_negatives(masked, index.shape[1], self.negatives, generator)
        context = self.project_context(take(out.context, index))
        score = partial(
            contrastive_loss,
            targets=self.project_targets(quantized.vectors),
            negatives=negatives,
            valid=valid,
            codes=quantized.codes,
            temperature=self.temperature,
        )
        contrastive = score(context)
        guessed = None
        if chance:  # not 1 in 101: negatives repeat and share codes
            noise = torch.randn(context.shape, device=context.device, generator=generator)
            guessed = score(noise.to(context.dtype).detach()).correct
        squares = feature_penalty(latents, None if lengths is None else valid_frames(lengths, size))
        penalty = (masked * squares).sum()
        loss = (
            contrastive.loss
            + self.diversity_weight * (contrastive.count * quantized.diversity)
            + self.penalty_weight * penalty
            + quantized.commitment
        )
        return PretrainingOutput(loss, contrastive, quantized, penalty, mask, counts, guessed)

    @torch.no_grad()
    def init_codes(
        self,
        wavs: Tensor,
        wav_lens: Tensor | None = None,
        directions: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Start the codes from the latents of some speech, instead of at random.

        Parameters
        ----------
        wavs, wav_lens
            As in `Wav2Vec2`; with more frames than codes.
        directions : callable, optional
            From normed latents (n, channels) to what matters in them (k, channels), such as
            `MelRegression.directions`; by default their principal components.

        Example
        -------
        >>> wav2vec2 = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
        >>> model = Wav2Vec2Pretraining(wav2vec2, NearestQuantizer(8, codes=20, dim=8), dim=8)
        >>> model.init_codes(torch.randn(2, 16000))
        """
        latents, lengths = self.wav2vec2.extract(wavs, wav_lens)
        normed = self.wav2vec2.projection.norm(latents)
        keep = slice(None) if lengths is None else valid_frames(lengths, latents.shape[1])
        normed = normed[keep].reshape(-1, normed.shape[-1])
        self.quantizer.init_from_data(normed, None if directions is None else directions(normed))


def check_settings(settings: dict[str, Any]) -> None:
    """Refuse what no training can have."""
    for name, least in (("dim", 1), ("negatives", 1), ("mask_length", 1)):
        if settings[name] < least:
            raise ValueError(f"{name}={settings[name]}, expected at least {least}.")
    for name in ("diversity_weight", "penalty_weight"):
        if settings[name] < 0:
            raise ValueError(f"{name}={settings[name]}, expected 0 or more.")
    if not 0 <= settings["mask_prob"] <= 1:
        raise ValueError(
            f"mask_prob={settings['mask_prob']}, expected a share of frames between 0 and 1 "
            "(published: 0.65; fairseq's 0.065 is the share that starts a span)."
        )
    if settings["temperature"] <= 0:
        raise ValueError(f"temperature={settings['temperature']}, expected more than 0.")


def take(x: Tensor, index: Tensor) -> Tensor:
    """Frames of (batch, frames, dim) at (batch, n) -> (batch, n, dim)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))

"""Contrastive pretraining (wav2vec 2.0, sections 3.1 and 3.2): one batch to its losses.

wavs ─ extract ─► latents ─ project ─ mask ─ encoder ─► context ─► contrastive loss
                     └─ quantizer ─► targets ───────────────────────────┘
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.frames import valid_frames
from w2v_plugin.losses import Contrastive, contrastive_loss, feature_penalty, sample_negatives
from w2v_plugin.masking import masked_indices, span_mask
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.quantizer import GumbelQuantizer, NearestQuantizer, Quantized


@dataclass
class PretrainingOutput:
    """Losses of one batch. `loss` is a *sum* over `contrastive.count` masked frames."""

    loss: Tensor  # contrastive + count * (weighted diversity, penalty, commitment)
    contrastive: Contrastive
    quantized: Quantized
    penalty: Tensor  # mean square of the latents
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
        super().__init__()
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
        size = latents.shape[1]
        counts = lengths
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
        out = self.wav2vec2.contextualize(latents, lengths, mask=mask, chunk=chunk, normed=normed)
        index, valid = masked_indices(mask)  # (batch, masked)
        quantized = self.quantizer(self.quantizer_dropout(take(normed, index)), valid)
        if negatives is None:
            negatives = sample_negatives(valid.sum(1), index.shape[1], self.negatives, generator)
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
        penalty = feature_penalty(latents, None if lengths is None else valid_frames(lengths, size))
        extra = (
            self.diversity_weight * quantized.diversity
            + self.penalty_weight * penalty
            + quantized.commitment
        )
        loss = contrastive.loss + contrastive.count * extra
        return PretrainingOutput(loss, contrastive, quantized, penalty, mask, counts, guessed)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Frames of (batch, frames, dim) at (batch, n) -> (batch, n, dim)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))

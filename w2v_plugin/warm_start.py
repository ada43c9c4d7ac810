"""A label-free warm start of the extractor: predict the log-mel spectrum of what it hears.

Not part of the paper. With minutes instead of GPU-days of compute, contrastive pretraining from
random convolutions stays at chance; regressing 40 log-mel energies of the same 25 ms window for a
minute gives it something to quantize. The regression also says which directions of the latents
carry the spectrum: the quantizer starts from those.
"""

from __future__ import annotations

import math

import torch
import torchaudio
from torch import Tensor, nn

from w2v_plugin.features import normalize_wavs
from w2v_plugin.frames import HOP, RECEPTIVE_FIELD, SAMPLE_RATE, absolute_lengths, valid_frames
from w2v_plugin.model import Wav2Vec2


class MelRegression(nn.Module):
    """Linear prediction of normalized log-mel energies from the normed latents.

    Parameters
    ----------
    wav2vec2 : Wav2Vec2
        Its extractor and projection norm are trained; the rest is frozen until `release`.
    mels : int
        Mel bands.

    Example
    -------
    >>> wav2vec2 = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    >>> MelRegression(wav2vec2)(torch.randn(2, 16000)).shape
    torch.Size([])
    """

    def __init__(self, wav2vec2: Wav2Vec2, mels: int = 40) -> None:
        super().__init__()
        # not everything: a conformer has parameters that never learn
        self.trainable = [p for p in wav2vec2.parameters() if p.requires_grad]
        self.wav2vec2 = wav2vec2.requires_grad_(False)
        wav2vec2.extractor.requires_grad_(True)
        wav2vec2.projection.norm.requires_grad_(True)
        channels = wav2vec2.projection.linear.in_features
        self.head = nn.Linear(channels, mels)
        # one window per frame, no padding: window t hears samples [320 t, 320 t + 400)
        self.mel = torchaudio.transforms.MelSpectrogram(
            SAMPLE_RATE, n_fft=RECEPTIVE_FIELD, hop_length=HOP, n_mels=mels, center=False
        )
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(mels))
        self.register_buffer("std", torch.zeros(mels))

    @torch.no_grad()
    def spectrum(self, wavs: Tensor) -> Tensor:
        """(batch, samples) -> (batch, frames, mels) log energies."""
        with torch.autocast(wavs.device.type, enabled=False):  # energies overflow float16
            return torch.log(self.mel(wavs.float()).transpose(1, 2) + 1e-2)

    def forward(self, wavs: Tensor, wav_lens: Tensor | None = None) -> Tensor:
        """Mean squared error, in units of the variance of the targets."""
        latents, lengths = self.wav2vec2.extract(wavs, wav_lens)
        if self.wav2vec2.normalize:
            samples = None if wav_lens is None else absolute_lengths(wav_lens, wavs.shape[1])
            wavs = normalize_wavs(wavs, samples, self.wav2vec2.normalize_eps)
        targets = self.spectrum(wavs)
        error = self.head(self.wav2vec2.projection.norm(latents)).float()
        keep = slice(None) if lengths is None else valid_frames(lengths, targets.shape[1])
        if not self.std.any():  # the first batch sets the scale, unless it is a single frame
            self.mean.copy_(targets[keep].reshape(-1, targets.shape[-1]).mean(0))
            self.std.copy_(targets[keep].reshape(-1, targets.shape[-1]).std(0, correction=0))
        targets = (targets - self.mean) / self.std.clamp(min=1e-3)
        return (error - targets)[keep].square().mean()

    def release(self) -> None:
        """Make trainable again what was so before."""
        for parameter in self.trainable:
            parameter.requires_grad_(True)

    @torch.no_grad()
    def directions(self, latents: Tensor, coefficients: int = 13) -> Tensor:
        """What matters in the latents: (coefficients, channels), unit variance on `latents`.

        The cosine transform of the predicted log-mel spectrum, that is cepstra. `latents`
        (n, channels) are normed latents.
        """
        mels = self.head.out_features
        band = torch.arange(mels, device=latents.device) + 0.5
        order = torch.arange(coefficients, device=latents.device)[:, None]
        cepstra = torch.cos(math.pi * order * band / mels) @ self.head.weight
        centered = latents - latents.mean(0)
        return cepstra / (centered @ cepstra.t()).std(0).clamp(min=1e-6)[:, None]

"""Waveform -> latents: normalization, strided convolutions, projection (wav2vec 2.0, section 2).

    wavs (batch, samples) ─ normalize ─ 7 convolutions ─► latents (batch, frames, channels)
    latents ─ LayerNorm ─► normed (the quantizer reads these) ─ Linear ─► (batch, frames, dim)

Activations are channels-last, so that each convolution is a matrix product on a *view* of its
input (no im2col copy) and LayerNorm needs no transpose. Parameters keep `Conv1d`'s shape
(out, in, kernel). What that costs and saves is in `benchmarks/RESULTS.md`.

Two published families: `norm="group"` (BASE: instance norm over *time* after the first
convolution, so each frame depends on the whole utterance) and `norm="layer"` (LARGE LV-60, XLSR:
LayerNorm over channels after every convolution).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v_plugin.frames import KERNELS, STRIDES, frame_lengths, valid_frames
from w2v_plugin.products import gelu


def normalize_wavs(wavs: Tensor, lengths: Tensor | None, eps: float) -> Tensor:
    """Zero mean and unit variance per utterance; padding neither counts nor survives.

    Parameters
    ----------
    wavs : Tensor
        (batch, samples).
    lengths : Tensor or None
        (batch,) valid samples; None when there is no padding.
    eps : float
        Added to the variance: 1e-7 in transformers, 1e-5 in fairseq and torchaudio. It matters
        for quiet audio only (rms below about 0.01).
    """
    if lengths is None:
        var, mean = torch.var_mean(wavs, dim=1, keepdim=True, unbiased=False)
        return (wavs - mean) * torch.rsqrt(var + eps)
    valid = valid_frames(lengths, wavs.shape[1])
    wavs = wavs.masked_fill(~valid, 0.0)
    count = lengths.clamp(min=1)[:, None]
    mean = wavs.sum(1, keepdim=True) / count
    centered = (wavs - mean).masked_fill(~valid, 0.0)
    var = centered.square().sum(1, keepdim=True) / count
    return centered * torch.rsqrt(var + eps)


def strided_product(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Unpadded convolution of (batch, time, in) as matrix products on views: (batch, frames, out).

    The kernel is cut into blocks of `stride` taps. Block i of all windows together is the input
    itself, shifted by i * stride and reshaped to (frames, stride * in): no sample is copied. Taps
    left over (1 of a kernel of 3 with stride 2) are a strided view.
    """
    outputs, inputs, kernel = weight.shape
    frames = (x.shape[1] - kernel) // stride + 1
    if inputs == 1:  # the waveform: one product over all taps beats several over few
        return F.linear(x[..., 0].unfold(1, kernel, stride), weight[:, 0], bias)
    result = None
    for start in range(0, kernel, stride):
        width = min(stride, kernel - start)
        taps = weight[:, :, start : start + width].transpose(1, 2).reshape(outputs, width * inputs)
        if width == stride:
            block = x[:, start : start + frames * stride].reshape(len(x), frames, stride * inputs)
        else:
            windows = x[:, start:].unfold(1, width, stride)[:, :frames]
            block = windows.transpose(2, 3).reshape(len(x), frames, width * inputs)
        if result is None:
            result = F.linear(block, taps, bias)
        else:
            result = result.add_(F.linear(block, taps))
    assert result is not None
    return result


class TimeGroupNorm(nn.Module):
    """Per-channel norm over time (GroupNorm with as many groups as channels), channels-last.

    With `lengths`, statistics are taken over valid frames only, so that the result does not
    depend on padding. The variance is two-pass and in float32: E[x^2] - E[x]^2 loses everything
    in half precision.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        dtype = x.dtype
        wide = x if dtype == torch.float64 else x.float()
        if lengths is None:
            var, mean = torch.var_mean(wide, dim=1, keepdim=True, unbiased=False)
        else:
            valid = valid_frames(lengths, x.shape[1])[..., None]
            count = lengths.clamp(min=1)[:, None, None]
            mean = wide.masked_fill(~valid, 0.0).sum(1, keepdim=True) / count
            var = (wide - mean).masked_fill(~valid, 0.0).square().sum(1, keepdim=True) / count
        scale = self.weight * torch.rsqrt(var + self.eps)
        return (wide * scale + (self.bias - mean * scale)).to(dtype)


class ConvLayer(nn.Module):
    """Convolution, norm (time | channels | none), GELU on (batch, time, channels)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, *, bias: bool, norm: str | None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, bias=bias)
        nn.init.kaiming_normal_(self.conv.weight)
        self.norm: nn.Module | None = None
        if norm == "group":
            self.norm = TimeGroupNorm(outputs)
        elif norm == "layer":
            self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        x = strided_product(x, self.conv.weight, self.conv.bias, self.conv.stride[0])
        if isinstance(self.norm, TimeGroupNorm):
            x = self.norm(x, lengths)
        elif self.norm is not None:
            x = self.norm(x)
        return gelu(x)


class ConvExtractor(nn.Module):
    """Raw waveform to latents, 50 frames a second.

    Parameters
    ----------
    channels : sequence of int
        Width of each convolution.
    norm : {"group", "layer"}
        "group": norm over time after the first convolution (BASE). "layer": LayerNorm over
        channels after every convolution (LARGE LV-60, XLSR, and everything that must stream).
    bias : bool
        Whether the convolutions have a bias.
    kernels, strides : sequence of int
        One per convolution.

    Example
    -------
    >>> extractor = ConvExtractor(channels=(8,) * 7, norm="layer", bias=True)
    >>> extractor(torch.randn(2, 16000)).shape
    torch.Size([2, 49, 8])
    """

    def __init__(
        self,
        channels: Sequence[int] = (512,) * 7,
        *,
        norm: str = "group",
        bias: bool = False,
        kernels: Sequence[int] = KERNELS,
        strides: Sequence[int] = STRIDES,
    ) -> None:
        super().__init__()
        if norm not in ("group", "layer"):
            raise ValueError(f"norm={norm!r}, expected 'group' or 'layer'.")
        if not len(channels) == len(kernels) == len(strides):
            raise ValueError(
                f"{len(channels)} channels, {len(kernels)} kernels and {len(strides)} strides: "
                "give one of each per convolution."
            )
        self.kernels, self.strides, self.norm = tuple(kernels), tuple(strides), norm
        self.layers = nn.ModuleList()
        width = 1
        for i, (out, kernel, stride) in enumerate(zip(channels, kernels, strides, strict=True)):
            kind = "layer" if norm == "layer" else ("group" if i == 0 else None)
            self.layers.append(ConvLayer(width, out, kernel, stride, bias=bias, norm=kind))
            width = out

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames of utterances with `lengths` valid samples."""
        return frame_lengths(lengths, self.kernels, self.strides)

    def forward(self, wavs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(batch, samples) -> (batch, frames, channels).

        `lengths`, valid samples per row, matter to `norm="group"` only: without them its
        statistics include the padding.
        """
        x = wavs[..., None]
        for layer, kernel, stride in zip(self.layers, self.kernels, self.strides, strict=True):
            if lengths is not None:
                lengths = frame_lengths(lengths, (kernel,), (stride,))
            x = layer(x, lengths)
        return x


class ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by `scale` (`feature_grad_mult` in fairseq)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, scale: float) -> Tensor:  # type: ignore[override]
        ctx.scale = scale  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * ctx.scale, None  # type: ignore[attr-defined]


class FeatureProjection(nn.Module):
    """LayerNorm over channels, then Linear to the width of the encoder.

    The normed latents are a value of their own: pretraining quantizes them.
    """

    def __init__(self, channels: int, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, normed: Tensor) -> Tensor:
        return self.dropout(self.linear(normed))

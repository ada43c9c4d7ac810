"""Waveform -> latents: normalization, strided convolutions, projection (wav2vec 2.0, section 2).

    wavs (batch, samples) ─ normalize ─ 7 convolutions ─► latents (batch, frames, channels)
    latents ─ LayerNorm ─► normed (the quantizer reads these) ─ Linear ─► (batch, frames, dim)

Activations are channels-last, so that each convolution can be a matrix product on a *view* of its
input (no im2col copy) and LayerNorm needs no transpose. Parameters keep `Conv1d`'s shape
(out, in, kernel). What that costs and saves is in `benchmarks/RESULTS.md`.

Two published families: `norm="group"` (BASE: instance norm over *time* after the first
convolution, so each frame depends on the whole utterance) and `norm="layer"` (LARGE LV-60, XLSR:
LayerNorm over channels after every convolution). And `norm="none"`, what becomes of the first one
when it must stream (streamable.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from w2v_plugin.frames import KERNELS, STRIDES, frame_lengths, valid_frames
from w2v_plugin.linear import Dropout, Linear, fast, linear
from w2v_plugin.products import gelu, product


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

    The kernel is cut into blocks of `stride` taps, see `block`.
    """
    kernel = weight.shape[2]
    frames = (x.shape[1] - kernel) // stride + 1
    result = None
    for start in range(0, kernel, stride):
        taps = weight[:, :, start : start + stride].transpose(1, 2).flatten(1)
        inputs = block(x, start, min(stride, kernel - start), stride, frames)
        if result is None:
            result = F.linear(inputs, taps, bias)
        else:
            result = result.add_(F.linear(inputs, taps))
    assert result is not None
    return result


def block(x: Tensor, start: int, width: int, stride: int, frames: int) -> Tensor:
    """What `width` taps of all windows hear: (batch, time, in) -> (batch, frames, width * in).

    A block of `stride` taps is the input itself, shifted by `start` and reshaped: no sample is
    copied. Taps left over (1 of a kernel of 3 with stride 2) are a strided view.
    """
    if width == stride:
        return x[:, start : start + frames * stride].reshape(len(x), frames, -1)
    windows = x[:, start:].unfold(1, width, stride)[:, :frames]
    return windows.transpose(2, 3).reshape(len(x), frames, -1)


class _GeluConv(torch.autograd.Function):
    """Convolution of GELU(x). Each product by what does it best: oneDNN's convolution forward and
    for the inputs, matrix products for the weights, where its convolution is six times slower."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride  # type: ignore[attr-defined]
        return image_conv(F.gelu(x), weight, bias, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        stride, kernel = ctx.stride, weight.shape[2]  # type: ignore[attr-defined]
        needed, grad = ctx.needs_input_grad, grad.contiguous()  # type: ignore[attr-defined]
        active, frames = F.gelu(x), grad.shape[1]
        grad_x = grad_weight = None
        if needed[1]:
            grad_weight = torch.empty_like(weight)
            for start in range(0, kernel, stride):
                width = min(stride, kernel - start)
                for i, (a, g) in enumerate(zip(active.split(1), grad, strict=True)):
                    heard = block(a, start, width, stride, frames)[0].contiguous()
                    taps = product(g.t(), heard.t()).unflatten(1, (width, -1)).mT
                    view = grad_weight[:, :, start : start + width]
                    view.copy_(taps) if i == 0 else view.add_(taps)
        if needed[0]:
            image = torch.ops.aten.convolution_backward(
                as_image(grad), as_image(active), weight_image(weight), None,
                (1, stride), (0, 0), (1, 1), False, (0, 0), 1, (True, False, False),
            )[0]  # fmt: skip
            grad_x = image.permute(0, 2, 3, 1)[:, 0]
            torch.ops.aten.gelu_backward.grad_input(grad_x, x, grad_input=grad_x)
        return grad_x, grad_weight, grad.sum((0, 1)) if needed[2] else None, None


def as_image(x: Tensor) -> Tensor:
    """(batch, time, channels) -> (batch, channels, 1, time) in channels-last memory, not copied."""
    return x[:, None].permute(0, 3, 1, 2)


def weight_image(weight: Tensor) -> Tensor:
    """(out, in, kernel) -> (out, in, 1, kernel) in channels-last memory."""
    return weight[:, :, None].contiguous(memory_format=torch.channels_last)


def image_conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Unpadded convolution of (batch, time, in) by oneDNN: (batch, frames, out)."""
    y = F.conv2d(as_image(x), weight_image(weight), bias, stride=(1, stride))
    return y.permute(0, 2, 3, 1)[:, 0]


def gelu_conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Unpadded convolution of GELU(x): (batch, time, in) -> (batch, frames, out).

    In training on a CPU only x is kept for the backward pass, and GELU is computed again.

    Example
    -------
    >>> x, weight = torch.randn(2, 9, 4), torch.randn(8, 4, 3)
    >>> expected = F.conv1d(F.gelu(x).transpose(1, 2), weight, stride=2).transpose(1, 2)
    >>> torch.allclose(gelu_conv(x, weight, None, 2), expected, atol=1e-4)
    True
    """
    if not fast(x):
        return strided_product(gelu(x), weight, bias, stride)
    if torch.is_grad_enabled():
        return _GeluConv.apply(x, weight, bias, stride)
    return image_conv(gelu(x), weight, bias, stride)


class TimeGroupNorm(nn.Module):
    """Per-channel norm over time after the first convolution (GroupNorm, one channel a group).

    Nothing is normalized: the outputs of that convolution are linear in the windows of 10 samples,
    so their moments follow from the mean and the 10 x 10 covariance of the windows, and the norm is
    folded into weights and bias. Forward and backward passes over the widest layer of the model
    are saved that way.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def fold(self, weight: Tensor, windows: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weights and bias of the convolution with the norm in them, for each utterance.

        Parameters
        ----------
        weight : Tensor
            (channels, kernel) of the convolution. Its bias does not matter: the norm takes it off.
        windows : Tensor
            (batch, frames, kernel) of the waveforms.
        valid : Tensor or None
            (batch, frames) bool: frames that count, so that padding does not; None for all.

        Returns
        -------
        tuple of Tensor
            (batch, channels, kernel) and (batch, channels), of the type of `weight`.
        """
        # float64: a channel that hears little of a loud waveform is a small difference of large
        # numbers here, and a variance that rounds to less than zero has no square root
        wide = torch.float32 if windows.device.type == "mps" else torch.float64
        weight, windows, dtype = weight.to(wide), windows.to(wide), weight.dtype
        keep = torch.ones_like(windows[..., :1]) if valid is None else valid[..., None]
        count = keep.sum(1).clamp(min=1)  # (batch, 1)
        mean = (windows * keep).sum(1) / count  # (batch, kernel)
        centered = (windows - mean[:, None]) * keep
        covariance = centered.transpose(1, 2) @ centered / count[..., None]
        variance = ((weight @ covariance) * weight).sum(-1).clamp(min=0)  # (batch, channels)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        bias = self.bias - (mean @ weight.t()) * scale
        return (weight * scale[..., None]).to(dtype), bias.to(dtype)


class ConvLayer(nn.Module):
    """GELU, convolution, norm (time | channels | none) on (batch, time, channels).

    The first one takes the waveform as it is; GELU of the last one's output follows outside.
    """

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

    def listen(self, wavs: Tensor, lengths: Tensor | None) -> Tensor:
        """As the first layer: (batch, samples) -> (batch, time, channels).

        `lengths` are valid outputs, for the norm over time.
        """
        conv, (kernel,), (stride,) = self.conv, self.conv.kernel_size, self.conv.stride
        windows = wavs.unfold(1, kernel, stride)
        if isinstance(self.norm, TimeGroupNorm):
            valid = None if lengths is None else valid_frames(lengths, windows.shape[1])
            weight, bias = self.norm.fold(conv.weight[:, 0], windows, valid)
            if conv.bias is not None:  # cancels; DDP wants its gradient, zero
                bias = bias + 0 * conv.bias
            return torch.baddbmm(bias[:, None], windows, weight.transpose(1, 2))
        x = linear(windows.contiguous(), conv.weight[:, 0], conv.bias)
        return x if self.norm is None else self.norm(x)

    def forward(self, x: Tensor) -> Tensor:
        """As a later layer: (batch, time, inputs) before GELU -> (batch, frames, outputs)."""
        x = gelu_conv(x, self.conv.weight, self.conv.bias, self.conv.stride[0])
        return x if self.norm is None else self.norm(x)


class ConvExtractor(nn.Module):
    """Raw waveform to latents, 50 frames a second.

    Parameters
    ----------
    channels : sequence of int
        Width of each convolution.
    norm : {"group", "layer", "none"}
        "group": norm over time after the first convolution (BASE), which cannot stream. "layer":
        LayerNorm over channels after every convolution (LARGE LV-60, XLSR). "none": no norms; no
        published model has that.
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
        if norm not in ("group", "layer", "none"):
            raise ValueError(f"norm={norm!r}, expected 'group', 'layer' or 'none'.")
        if not len(channels) == len(kernels) == len(strides):
            raise ValueError(
                f"{len(channels)} channels, {len(kernels)} kernels and {len(strides)} strides: "
                "give one of each per convolution."
            )
        self.kernels, self.strides, self.norm = tuple(kernels), tuple(strides), norm
        self.layers = nn.ModuleList()
        width = 1
        for i, (out, kernel, stride) in enumerate(zip(channels, kernels, strides, strict=True)):
            kind = norm if norm == "layer" or (norm == "group" and i == 0) else None
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
        first, *others = self.layers
        if lengths is not None:
            lengths = frame_lengths(lengths, self.kernels[:1], self.strides[:1])
        x = first.listen(wavs, lengths)  # type: ignore[operator]
        for layer in others:
            x = layer(x)
        return gelu(x)


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
        self.linear = Linear(channels, dim)
        self.dropout = Dropout(dropout)

    def forward(self, normed: Tensor) -> Tensor:
        return self.dropout(self.linear(normed))

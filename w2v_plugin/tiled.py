"""The convolutional extractor without gradients on a CPU: in tiles of time, never storing a layer.

The first convolutions of BASE write 65 MB per 10 s, which costs more in memory traffic and page
faults than in arithmetic. A tile of a few hundred milliseconds passes all seven while it is in the
cache; tiles overlap by what a frame hears beyond its hop. Utterances are taken one by one, up to
their own length: nothing is computed for padding.

A group-norm extractor needs mean and variance over the whole utterance before the first tile. They
follow from the waveform without running the convolution, see `TimeGroupNorm`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from w2v_plugin.features import ConvExtractor, ConvLayer, TimeGroupNorm
from w2v_plugin.frames import frame_lengths, receptive_field
from w2v_plugin.products import Int8Linear, gelu

TILE = 32  # frames; 4 MB of the widest layer at BASE's width


class PackedConv(nn.Module):
    """Unpadded strided convolution of (frames, inputs) with packed weights."""

    def __init__(self, conv: nn.Conv1d, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        weight = conv.weight.detach()[:, :, None].to(dtype)
        self.stride = [1, conv.stride[0]]
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight.contiguous(memory_format=torch.channels_last),
            [0, 0], self.stride, [1, 1], 1, [1, conv.in_channels, 1, 8 * TILE],
        )  # fmt: skip
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype, copy=True)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        image = x.to(self.dtype)[None, None].permute(0, 3, 1, 2)  # channels-last without a copy
        y = torch.ops.mkldnn._convolution_pointwise(
            image, self.weight, self.bias, [0, 0], self.stride, [1, 1], 1, "none", [], ""
        )
        return y.permute(0, 2, 3, 1)[0, 0]


class Int8Conv(nn.Module):
    """Unpadded strided convolution of (frames, inputs) with int8 weights and activations.

    Each window of frames is a row with a scale of its own, see `Int8Linear`.
    """

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self.kernel, self.stride = conv.kernel_size[0], conv.stride[0]
        weight = conv.weight.detach().transpose(1, 2).flatten(1)
        self.linear = Int8Linear(weight, conv.bias, after_gelu=True)

    def forward(self, x: Tensor) -> Tensor:
        x, width = x.float().contiguous(), x.shape[1]
        peaks = x.abs().amax(1).unfold(0, self.kernel, self.stride).amax(1, keepdim=True)
        windows = x.as_strided((len(peaks), self.kernel * width), (self.stride * width, 1))
        return self.linear.product(windows, peaks)


class TiledExtractor(nn.Module):
    """A trained `ConvExtractor`, same call and same answer, for inference on a CPU.

    Parameters
    ----------
    extractor : ConvExtractor
        On the CPU, float32.
    convs : callable
        Makes what replaces the convolution of a number (1 to 6) from it, as `PackedConv`. The
        first one stays: it has ten weights per channel.

    Example
    -------
    >>> extractor = ConvExtractor(channels=(8,) * 7, norm="group")
    >>> wavs = torch.randn(2, 16000)
    >>> with torch.inference_mode():
    ...     tiled = TiledExtractor(extractor, lambda number, conv: Int8Conv(conv))
    ...     bool((tiled(wavs) - extractor(wavs)).abs().max() < 0.1)
    True
    """

    def __init__(
        self, extractor: ConvExtractor, convs: Callable[[int, nn.Conv1d], nn.Module]
    ) -> None:
        super().__init__()
        self.kernels, self.strides = extractor.kernels, extractor.strides
        self.norm = extractor.norm
        self.hop, self.field = math.prod(self.strides), receptive_field(self.kernels, self.strides)
        layers: list[ConvLayer] = list(extractor.layers)  # type: ignore[arg-type]
        self.channels = layers[-1].conv.out_channels
        self.first = layers[0].conv
        self.convs = nn.ModuleList(
            convs(number, layer.conv) for number, layer in enumerate(layers[1:], start=1)
        )
        self.norms = nn.ModuleList(layer.norm or nn.Identity() for layer in layers)

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames of utterances with `lengths` valid samples."""
        return frame_lengths(lengths, self.kernels, self.strides)

    def forward(self, wavs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(batch, samples) -> (batch, frames, channels), as `ConvExtractor`.

        Frames that are padding are zero if `lengths` are given.
        """
        frames = frame_lengths(wavs.shape[1], self.kernels, self.strides)
        ends = [wavs.shape[1]] * len(wavs) if lengths is None else lengths.tolist()
        result = wavs.new_zeros(len(wavs), frames, self.channels)
        for row, wav, end in zip(result, wavs, ends, strict=True):
            self.fill(row, wav[:end])
        return result

    def fill(self, out: Tensor, wav: Tensor) -> None:
        """Write the latents of one utterance (samples,) to the beginning of `out`."""
        frames = frame_lengths(len(wav), self.kernels, self.strides)
        weight, bias = self.fold(wav)
        for start in range(0, frames, TILE):
            stop = min(start + TILE, frames)
            samples = wav[start * self.hop : (stop - 1) * self.hop + self.field]
            out[start:stop] = self.chain(samples, weight, bias)

    def windows(self, wav: Tensor) -> Tensor:
        """What the first convolution hears: (frames, kernel)."""
        return wav.unfold(0, self.kernels[0], self.strides[0])

    def fold(self, wav: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights and bias of the first convolution with the norm over time folded in."""
        weight, norm = self.first.weight[:, 0], self.norms[0]
        if not isinstance(norm, TimeGroupNorm) or len(wav) < self.kernels[0]:
            return weight, self.first.bias
        weight, bias = norm.fold(weight, self.windows(wav)[None], None)
        return weight[0], bias[0]

    def chain(self, samples: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(samples,) -> (frames, channels) through all convolutions."""
        windows = self.windows(samples).contiguous()
        x = torch.ops.mkldnn._linear_pointwise(windows, weight, bias, "none", [], "")
        x = gelu(self.norms[0](x) if self.norm == "layer" else x)
        for conv, norm in zip(self.convs, self.norms[1:], strict=True):  # type: ignore[arg-type]
            x = gelu(norm(conv(x)))
        return x


def packed_extractor(extractor: ConvExtractor) -> TiledExtractor:
    """A float32 `ConvExtractor` as it is now, for a batch; packing takes 8 ms at BASE's size.

    Example
    -------
    >>> extractor, wavs = ConvExtractor(channels=(8,) * 7), torch.randn(2, 16000)
    >>> with torch.no_grad():
    ...     torch.allclose(packed_extractor(extractor)(wavs), extractor(wavs), atol=1e-5)
    True
    """
    return TiledExtractor(extractor, lambda number, conv: PackedConv(conv))

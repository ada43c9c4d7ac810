"""Long convolutions on a CPU: products of spectra, block by block (overlap-save).

The positional convolution has 128 taps, and a direct convolution pays for each. Here a block of
256 frames gives 129 outputs for two transforms and a product, in an eighth of the operations. There
are few frames and many weights, so the spectra of the weights are what costs: they come from a
matrix product, faster than a transform that is mostly of zeros.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v_plugin.linear import linear

BLOCK = 256  # samples of a transform; twice the published kernel


def fourier_conv(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Grouped convolution without padding or stride, as `F.conv1d`; gradients are PyTorch's.

    Parameters
    ----------
    x : Tensor
        (batch, inputs, frames), at least as many frames as taps.
    weight : Tensor
        (outputs, inputs / groups, kernel).
    groups : int
        As in `F.conv1d`.

    Returns
    -------
    Tensor
        (batch, outputs, frames - kernel + 1).

    Example
    -------
    >>> x, weight = torch.randn(1, 8, 400), torch.randn(8, 4, 5)
    >>> torch.allclose(fourier_conv(x, weight, 2), F.conv1d(x, weight, groups=2), atol=1e-4)
    True
    """
    kernel = weight.shape[2]
    block = block_size(kernel)
    return overlap_save(x, spectra(weight, groups, block), kernel, block)


def block_size(kernel: int) -> int:
    return max(BLOCK, 2 * kernel)


def spectra(weight: Tensor, groups: int, block: int) -> Tensor:
    """(outputs, inputs / groups, kernel) -> (bins, groups, inputs / groups, outputs / groups)."""
    angle = torch.outer(torch.arange(block // 2 + 1), torch.arange(weight.shape[2]))
    angle = 2 * math.pi / block * (angle % block).double()
    waves = torch.cat([angle.cos(), angle.sin()]).to(weight)  # conjugate: outputs look ahead
    real, imaginary = linear(waves, weight.flatten(0, 1)).chunk(2)
    return (
        torch.complex(real, imaginary).view(-1, groups, len(weight) // groups, weight.shape[1]).mT
    )


def overlap_save(x: Tensor, spectra: Tensor, kernel: int, block: int) -> Tensor:
    """(batch, inputs, frames) and `spectra` -> (batch, outputs, frames - kernel + 1)."""
    step = block - kernel + 1  # outputs of a block that do not wrap around
    frames = x.shape[2] - kernel + 1
    blocks = -(-frames // step)
    x = F.pad(x, (0, (blocks - 1) * step + block - x.shape[2])).unfold(2, block, step)
    x = torch.fft.rfft(x).unflatten(1, (spectra.shape[1], -1))  # (batch, group, input, block, bin)
    x = x.permute(4, 1, 0, 3, 2).flatten(2, 3)  # (bins, groups, batch * blocks, inputs)
    y = (x @ spectra).unflatten(2, (-1, blocks))
    y = torch.fft.irfft(y.permute(2, 1, 4, 3, 0), block)[..., :step]
    return y.flatten(3).flatten(1, 2)[..., :frames]


class FourierConv(nn.Module):
    """Grouped convolution without padding or stride, as `nn.Conv1d`, for inference.

    The spectra of the weights are computed once, and take twice the room of the weights.

    Parameters
    ----------
    weight : Tensor
        (outputs, inputs / groups, kernel), float32.
    bias : Tensor
        (outputs,).
    groups : int
        As in `nn.Conv1d`.

    Example
    -------
    >>> conv = nn.Conv1d(8, 8, 5, groups=2)
    >>> x = torch.randn(1, 8, 400)
    >>> with torch.inference_mode():
    ...     torch.allclose(FourierConv(conv.weight, conv.bias, 2)(x), conv(x), atol=1e-5)
    True
    """

    def __init__(self, weight: Tensor, bias: Tensor, groups: int) -> None:
        super().__init__()
        self.kernel = weight.shape[2]
        self.block = block_size(self.kernel)
        self.spectra = spectra(weight.detach(), groups, self.block).contiguous()
        self.bias = bias.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, frames) -> (batch, outputs, frames - kernel + 1)."""
        return overlap_save(x, self.spectra, self.kernel, self.block) + self.bias[:, None]

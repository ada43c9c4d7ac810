"""Long convolutions for inference: products of spectra, block by block (overlap-save)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 256  # samples of a transform; twice the published kernel


class FourierConv(nn.Module):
    """Grouped convolution without padding or stride, as `nn.Conv1d`, for inference.

    The positional convolution has 128 taps, and a direct convolution pays for each. Here a block
    of 256 frames gives 129 outputs for two transforms and a product, in an eighth of the
    operations. The spectra of the weights take twice the room of the weights.

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
        outputs, inputs, self.kernel = weight.shape
        self.groups, self.block = groups, max(BLOCK, 2 * self.kernel)
        spectra = torch.fft.rfft(weight.detach(), self.block).conj()
        spectra = spectra.view(groups, outputs // groups, inputs, -1).permute(0, 3, 2, 1)
        self.spectra = spectra.contiguous()  # (groups, bins, inputs, outputs)
        self.bias = bias.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, frames) -> (batch, outputs, frames - kernel + 1)."""
        step = self.block - self.kernel + 1  # outputs of a block that do not wrap around
        frames = x.shape[2] - self.kernel + 1
        blocks = -(-frames // step)
        x = F.pad(x, (0, (blocks - 1) * step + self.block - x.shape[2])).unfold(2, self.block, step)
        x = torch.fft.rfft(x).unflatten(1, (self.groups, -1))  # (batch, group, input, block, bin)
        x = x.permute(1, 4, 0, 3, 2).flatten(2, 3)  # (groups, bins, batch * blocks, inputs)
        y = (x @ self.spectra).unflatten(2, (-1, blocks))
        y = torch.fft.irfft(y.permute(2, 0, 4, 3, 1), self.block)[..., :step]
        return y.flatten(3).flatten(1, 2)[..., :frames] + self.bias[:, None]

"""Convolutional positions (wav2vec 2.0, section 2): one operator, chunk = infinity is published.

A grouped convolution of 128 taps, centered: output t reads frames t-64 .. t+63. In chunks, each
output reads the true frames to its left but zeros beyond the end of its chunk; with one chunk as
long as the utterance that is exactly the published zero padding, so the same weights serve both.
A `causal` one reads t-127 .. t, whatever the chunk; no published model has it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

# Channels per group. On processors with AMX, oneDNN's bfloat16 convolution of fewer ones is wrong
# by as much as its values, at many kernel sizes (3.10.2, `brg_conv_fwd:avx10_1_512_amx`).
# Published models have 48 and more.
NARROW = 16


class GroupedConv(nn.Conv1d):
    """A convolution that computes narrow groups in float32 on a CPU, whatever its input's type.

    It costs models of such a size nothing; float64 stays.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or self.weight.shape[1] >= NARROW:
            return super().forward(x)
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast("cpu", enabled=False):
            bias = None if self.bias is None else self.bias.to(wide)
            return F.conv1d(x.to(wide), self.weight.to(wide), bias, groups=self.groups).to(x.dtype)


class ConvPositions(nn.Module):
    """Relative positions by a weight-normalized grouped convolution and GELU.

    Parameters
    ----------
    dim : int
        Width of the encoder.
    kernel : int
        Taps (frames); 128 in all published models.
    groups : int
        Groups of the convolution; 16 in all published models.
    causal : bool
        Read only frames to the left and the frame itself.

    Example
    -------
    >>> ConvPositions(16, kernel=8, groups=4)(torch.randn(2, 30, 16)).shape
    torch.Size([2, 30, 16])
    """

    def __init__(
        self, dim: int, kernel: int = 128, groups: int = 16, *, causal: bool = False
    ) -> None:
        super().__init__()
        if dim % groups:
            raise ValueError(f"dim={dim} is not divisible by groups={groups}.")
        conv = GroupedConv(dim, dim, kernel, groups=groups)
        # before the parametrization is put on: afterwards `weight` is computed, not stored
        nn.init.normal_(conv.weight, mean=0.0, std=math.sqrt(4 / (kernel * dim)))
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.conv = weight_norm(conv, dim=2)  # one norm per tap
        self.past = kernel - 1 if causal else kernel // 2  # frames that an output reads before it
        self.future = kernel - 1 - self.past

    def forward(self, x: Tensor, chunk: int | None = None) -> Tensor:
        """x (batch, frames, dim), padded frames zero -> positions to add, same shape."""
        batch, frames, _ = x.shape
        chunk = frames if chunk is None or not self.future else min(chunk, frames)
        short = -frames % chunk  # frames missing in the last chunk
        x = F.pad(x.transpose(1, 2), (self.past, short))
        windows = x.unfold(2, self.past + chunk, chunk)  # (batch, dim, chunks, past + chunk)
        y = self.convolve(windows.transpose(1, 2).flatten(0, 1))  # (batch * chunks, dim, chunk)
        y = y.unflatten(0, (batch, -1)).transpose(2, 3).flatten(1, 2)
        return y[:, :frames]

    def step(self, past: Tensor, x: Tensor) -> Tensor:
        """As `forward`, of one chunk x (batch, chunk, dim) after `past` (batch, self.past, dim)."""
        return self.convolve(torch.cat([past, x], dim=1).transpose(1, 2)).transpose(1, 2)

    def convolve(self, windows: Tensor) -> Tensor:
        """(batch, dim, past + chunk) -> (batch, dim, chunk); nothing is heard after the end."""
        return F.gelu(self.conv(F.pad(windows, (0, self.future))))

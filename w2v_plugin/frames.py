"""Samples and frames: how long a waveform is once the extractor has heard it.

The published extractor hears 400 samples (25 ms) per frame and moves by 320 (20 ms), without
padding, so n samples give floor((n - 400) / 320) + 1 frames. Surprising: n * 320 samples give
only n - 1 frames, and rounding a *relative* length times the number of frames is off by one for
about a third of all lengths; frame counts are therefore always computed from samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

SAMPLE_RATE = 16_000
KERNELS = (10, 3, 3, 3, 3, 2, 2)
STRIDES = (5, 2, 2, 2, 2, 2, 2)
HOP = 320  # samples between frames: the product of the strides
RECEPTIVE_FIELD = 400  # samples that one frame hears
SHORTEST_S = 0.1  # of utterances to train with

Length = TypeVar("Length", int, Tensor)


def frame_lengths(
    lengths: Length,
    kernels: Sequence[int] = KERNELS,
    strides: Sequence[int] = STRIDES,
) -> Length:
    """Frames that come out of unpadded convolutions over `lengths` samples.

    Parameters
    ----------
    lengths : int or Tensor
        Number of samples; a tensor of any shape is treated element by element.
    kernels, strides : sequence of int
        One pair per convolution, first layer first.

    Returns
    -------
    int or Tensor
        Number of frames, never negative: 0 for less than one receptive field.

    Example
    -------
    >>> frame_lengths(16000), frame_lengths(400), frame_lengths(399)
    (49, 1, 0)
    """
    for kernel, stride in zip(kernels, strides, strict=True):
        if isinstance(lengths, Tensor):
            lengths = (torch.div(lengths - kernel, stride, rounding_mode="floor") + 1).clamp(min=0)
        else:
            lengths = max((lengths - kernel) // stride + 1, 0)
    return lengths


def receptive_field(kernels: Sequence[int] = KERNELS, strides: Sequence[int] = STRIDES) -> int:
    """Samples that one frame hears.

    Example
    -------
    >>> receptive_field()
    400
    """
    field = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        field = (field - 1) * stride + kernel
    return field


def absolute_lengths(wav_lens: Tensor, samples: int) -> Tensor:
    """Number of valid samples from SpeechBrain's relative lengths.

    Parameters
    ----------
    wav_lens : Tensor
        (batch,) valid part of each row, in (0, 1].
    samples : int
        Padded length of the batch.

    Returns
    -------
    Tensor
        (batch,) int64.

    Example
    -------
    >>> absolute_lengths(torch.tensor([1.0, 0.5]), 16001).tolist()
    [16001, 8000]
    """
    # float64: rel * samples in float32 loses single samples beyond about 8 million. On the CPU
    # where the device has no float64
    exact = (wav_lens.cpu() if wav_lens.device.type == "mps" else wav_lens).double()
    return torch.round(exact * samples).long().clamp(0, samples).to(wav_lens.device)


def valid_frames(lengths: Tensor, size: int) -> Tensor:
    """Boolean (batch, size), True where a frame belongs to the utterance.

    Example
    -------
    >>> valid_frames(torch.tensor([1, 3]), 3).tolist()
    [[True, False, False], [True, True, True]]
    """
    return torch.arange(size, device=lengths.device) < lengths[:, None]

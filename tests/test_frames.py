"""Samples <-> frames: the formula, the convolutions and the relative lengths agree."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from w2v_plugin.frames import (
    HOP,
    KERNELS,
    RECEPTIVE_FIELD,
    STRIDES,
    absolute_lengths,
    frame_lengths,
    valid_frames,
)


def test_frames_follow_the_closed_form() -> None:
    """floor((n - 400) / 320) + 1 for every n from one receptive field up."""
    for samples in range(400, 5001):
        assert frame_lengths(samples) == (samples - 400) // 320 + 1


def test_less_than_a_receptive_field_is_no_frame() -> None:
    """Zero, never negative: nothing at all included."""
    assert {frame_lengths(samples) for samples in range(RECEPTIVE_FIELD)} == {0}


def test_constants_follow_from_the_convolutions() -> None:
    """Hop and receptive field are not free: the kernels and strides say what they are."""
    hop, field = 1, 1
    for kernel, stride in zip(KERNELS, STRIDES, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    assert (hop, field) == (HOP, RECEPTIVE_FIELD)


@pytest.mark.parametrize("samples", [400, 401, 719, 720, 1039, 1040, 4999, 16000, 16079, 16080])
def test_frames_are_what_convolutions_give(samples: int) -> None:
    """Length of a chain of unpadded `conv1d`s, around the steps of the formula."""
    x = torch.zeros(1, 1, samples)
    for kernel, stride in zip(KERNELS, STRIDES, strict=True):
        x = F.conv1d(x, torch.zeros(1, 1, kernel), stride=stride)
    assert frame_lengths(samples) == x.shape[2]


@pytest.mark.parametrize(
    ("kernels", "strides"), [(KERNELS, STRIDES), ((5,), (3,)), ((2, 7), (4, 1)), ((), ())]
)
def test_tensors_and_ints_agree(kernels: tuple[int, ...], strides: tuple[int, ...]) -> None:
    """Element by element, any shape, any stack of convolutions."""
    samples = torch.arange(3000).view(3, 10, 100)
    frames = frame_lengths(samples, kernels, strides)
    assert frames.shape == samples.shape and frames.dtype == torch.int64
    assert frames.flatten().tolist() == [frame_lengths(n, kernels, strides) for n in range(3000)]


def test_kernels_without_strides_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        frame_lengths(16000, (3, 3), (2,))


@pytest.mark.parametrize(
    ("dtype", "longest"),
    [
        (torch.float32, 2**24),  # 17 minutes: beyond, float32 cannot tell n / N from (n + 1) / N
        (torch.float64, 2**40),
    ],
)
def test_relative_lengths_give_the_samples_back(dtype: torch.dtype, longest: int) -> None:
    """round(n / N * N) == n, for batches of any length up to what the dtype can tell apart."""
    generator = torch.Generator().manual_seed(0)
    for exponent in torch.linspace(9, 1, 200, dtype=torch.float64):
        samples = int(longest ** (1 / exponent.item()) * 1.0)
        lengths = torch.randint(1, samples + 1, (500,), generator=generator)
        lengths[0], lengths[1] = samples, 1
        relative = (lengths.double() / samples).to(dtype)
        assert torch.equal(absolute_lengths(relative, samples), lengths)


def test_no_length_exceeds_the_batch() -> None:
    """Rounding errors of relative lengths never point outside the tensor."""
    relative = torch.tensor([1.0 + 1e-6, 1.0, 0.0])
    assert absolute_lengths(relative, 10_000_000).tolist() == [10_000_000, 10_000_000, 0]


def test_relative_frames_would_be_off_by_one() -> None:
    """The trap that `frame_lengths(absolute_lengths(...))` avoids: it is common, not a corner."""
    lengths = torch.arange(400, 16001)
    relative = lengths / 16000
    rounded = torch.round(relative * frame_lengths(16000)).long()
    wrong = rounded != frame_lengths(absolute_lengths(relative, 16000))
    assert 0.2 < wrong.float().mean() < 0.5  # "about a third"


@pytest.mark.parametrize("size", [1, 5, 9])
def test_valid_frames_come_first(size: int) -> None:
    """Row i has min(length, size) True entries, all at the left."""
    lengths = torch.arange(12)
    valid = valid_frames(lengths, size)
    expected = [[t < n for t in range(size)] for n in range(12)]
    assert valid.dtype == torch.bool and valid.tolist() == expected

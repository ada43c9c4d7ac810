"""FourierConv: the same convolution by another way, at all lengths and shapes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from w2v_plugin.fourier import BLOCK, FourierConv
from w2v_plugin.positions import ConvPositions


@pytest.fixture(autouse=True)
def inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def check(x: Tensor, weight: Tensor, groups: int) -> None:
    """Errors of a transform spread over its block: eps times the norms, times its few stages."""
    bias = torch.randn(len(weight))
    y = FourierConv(weight, bias, groups)(x)
    expected = F.conv1d(x.double(), weight.double(), bias.double(), groups=groups)
    assert y.dtype == torch.float32 and y.shape == expected.shape
    norms = float(x.norm(dim=(1, 2)).max() * weight.norm(dim=(1, 2)).max())
    eps = torch.finfo(torch.float32).eps
    assert float((y - expected).abs().max()) <= 4 * eps * (norms + 10)


STEP = BLOCK - 128 + 1  # outputs of a block with the published kernel


@pytest.mark.parametrize("outputs", [1, 2, STEP - 1, STEP, STEP + 1, 2 * STEP, 2 * STEP + 1, 500])
def test_every_length(outputs) -> None:
    """Up to, at and beyond the borders of blocks."""
    check(torch.randn(2, 8, outputs + 127), torch.randn(8, 2, 128), 4)


@pytest.mark.parametrize("kernel", [1, 2, 3, 16, 127, 129, 300])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_every_shape(kernel, groups) -> None:
    """Kernels longer than half a block lengthen it; inputs and outputs may differ in number."""
    check(torch.randn(3, 12, 311), torch.randn(18, 12 // groups, kernel), groups)


@pytest.mark.parametrize("level", [1e-6, 1e6])
def test_every_level(level) -> None:
    """Errors scale with the input."""
    weight, x = torch.randn(4, 4, 16), torch.randn(1, 4, 100)
    conv = FourierConv(weight, torch.zeros(4), 1)
    torch.testing.assert_close(conv(level * x), level * conv(x), rtol=1e-4, atol=1e-5 * level)


def test_a_batch_gives_what_its_rows_give() -> None:
    """Rows share a product of spectra, nothing else."""
    conv, x = FourierConv(torch.randn(8, 4, 16), torch.zeros(8), 2), torch.randn(3, 8, 400)
    for row, y in zip(x, conv(x), strict=True):
        torch.testing.assert_close(conv(row[None])[0], y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [None, 1, 7, 64])
def test_positions_whole_and_in_chunks(chunk) -> None:
    """As it is used: in place of the weight-normalized convolution."""
    positions, x = ConvPositions(16, kernel=32, groups=4), torch.randn(2, 150, 16)
    expected = positions(x, chunk)
    old = positions.conv
    positions.conv = FourierConv(old.weight, old.bias, old.groups)
    torch.testing.assert_close(positions(x, chunk), expected, rtol=0, atol=1e-5)


def test_parameters_are_copies_and_spectra_take_twice_the_room() -> None:
    """129 complex numbers for 128 taps."""
    weight, bias, x = torch.randn(8, 2, 128), torch.randn(8), torch.randn(1, 8, 200)
    conv = FourierConv(weight, bias, 4)
    y = conv(x)
    weight.zero_(), bias.zero_()
    assert torch.equal(conv(x), y)
    assert conv.spectra.nbytes == weight.nbytes * 129 // 64

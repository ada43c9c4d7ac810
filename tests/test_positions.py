"""Convolutional positions: the published operator, and what a chunk may read."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from w2v_plugin.positions import ConvPositions

SHAPES = [(16, 128, 16), (12, 8, 3), (8, 5, 4), (4, 1, 1)]  # dim, kernel, groups; odd kernels too


def positions(dim: int, kernel: int, groups: int) -> ConvPositions:
    """Weights large enough that every tap matters."""
    torch.manual_seed(0)
    module = ConvPositions(dim, kernel, groups).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    return module


def published(module: ConvPositions, x: Tensor) -> Tensor:
    """fairseq: pad by kernel // 2 on both sides, drop the last frame of an even kernel, GELU."""
    conv = module.conv
    pad = module.conv.kernel_size[0] // 2
    y = F.conv1d(x.transpose(1, 2), conv.weight, conv.bias, padding=pad, groups=conv.groups)
    return F.gelu(y[:, :, : x.shape[1]]).transpose(1, 2)


@pytest.mark.parametrize("frames", [1, 7, 63, 64, 150])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_without_chunks_it_is_the_published_operator(
    shape: tuple[int, int, int], frames: int
) -> None:
    module = positions(*shape)
    x = torch.randn(2, frames, shape[0], dtype=torch.float64)
    # float64 sums of up to 128 products in another order
    torch.testing.assert_close(module(x), published(module, x), rtol=0.0, atol=1e-12)


def test_weight_norm_has_one_norm_per_tap() -> None:
    """weight = g * v / |v|, the norm over both channel axes (dim=2), as in every checkpoint."""
    module = positions(12, 8, 3)
    g, v = (getattr(module.conv.parametrizations.weight, f"original{i}") for i in (0, 1))
    assert g.shape == (1, 1, 8)
    expected = g * v / v.square().sum((0, 1), keepdim=True).sqrt()
    torch.testing.assert_close(module.conv.weight, expected, rtol=0.0, atol=1e-12)  # roundings


def test_fresh_weights_have_the_published_spread() -> None:
    """Standard deviation sqrt(4 / (kernel * dim)), also after weight norm; no bias."""
    torch.manual_seed(0)
    module = ConvPositions(64, 128, 4)
    std = float(module.conv.weight.detach().std())
    assert abs(std / (4 / (128 * 64)) ** 0.5 - 1) < 0.02  # 131072 weights: standard error 0.002
    assert not module.conv.bias.any()


@pytest.mark.parametrize("frames", [1, 30, 64])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_a_chunk_that_holds_everything_changes_nothing(
    shape: tuple[int, int, int], frames: int
) -> None:
    """Bitwise: a chunked model with infinite chunks is the published one."""
    module = positions(*shape)
    x = torch.randn(2, frames, shape[0], dtype=torch.float64)
    for chunk in (frames, frames + 1, 10**6):
        assert torch.equal(module(x, chunk), module(x))


@pytest.mark.parametrize("chunk", [1, 3, 4, 7, 11, 30])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_output_reads_from_half_a_kernel_back_to_the_end_of_its_chunk(
    shape: tuple[int, int, int], chunk: int
) -> None:
    """Output t depends on input s exactly for t - kernel // 2 <= s < min(t + future, end) + 1."""
    module, frames = positions(*shape), 25
    x = torch.randn(frames, shape[0], dtype=torch.float64).repeat(frames, 1, 1)
    touched = x + torch.eye(frames, dtype=torch.float64)[:, :, None]  # row s: input s is another
    moved = (module(touched, chunk) - module(x, chunk)).abs().sum(2)  # (s, t)
    s, t = torch.arange(frames)[:, None], torch.arange(frames)
    future = module.conv.kernel_size[0] - 1 - module.conv.kernel_size[0] // 2
    end = t - t % chunk + chunk
    reads = (s >= t - module.conv.kernel_size[0] // 2) & (s < end) & (s <= t + future)
    assert not moved[~reads].any()  # exactly 0.0
    assert bool((moved[reads] > 0).all())


@pytest.mark.parametrize("chunk", [2, 7, 10])
@torch.no_grad()
def test_a_chunk_is_the_published_operator_on_its_past(chunk: int) -> None:
    """Cut the utterance at the end of a chunk: that chunk's outputs stay; so with a ragged last."""
    module = positions(12, 8, 3)
    x = torch.randn(2, 24, 12, dtype=torch.float64)
    y = module(x, chunk)
    assert y.shape == x.shape
    for begin in range(0, 24, chunk):
        cut = module(x[:, : begin + chunk])[:, begin:]
        torch.testing.assert_close(y[:, begin : begin + chunk], cut, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("kernel", [1, 5, 8])
@torch.no_grad()
def test_causal_positions_never_look_ahead(kernel: int) -> None:
    """Output t reads t - kernel + 1 .. t, whatever the chunk: a convolution padded at the left."""
    torch.manual_seed(0)
    module = ConvPositions(12, kernel, 3, causal=True).double()
    x = torch.randn(2, 20, 12, dtype=torch.float64)
    conv = module.conv
    padded = F.pad(x.transpose(1, 2), (kernel - 1, 0))
    expected = F.gelu(F.conv1d(padded, conv.weight, conv.bias, groups=3)).transpose(1, 2)
    for chunk in (None, 1, 7):
        torch.testing.assert_close(module(x, chunk), expected, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", [1, 5, 8])
@torch.no_grad()
def test_step_by_step(kernel: int, causal: bool) -> None:
    """A chunk after its past: as in one go."""
    torch.manual_seed(0)
    module = ConvPositions(12, kernel, 3, causal=causal).double()
    x = torch.randn(2, 21, 12, dtype=torch.float64)
    heard = F.pad(x, (0, 0, module.past, 0))
    parts = [
        module.step(heard[:, at : at + module.past], x[:, at : at + 7]) for at in range(0, 21, 7)
    ]
    torch.testing.assert_close(torch.cat(parts, 1), module(x, 7), rtol=0.0, atol=1e-12)


def test_groups_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="dim=10 is not divisible by groups=4"):
        ConvPositions(10, 8, 4)


@pytest.mark.parametrize("kernel", [7, 24, 64, 128])
@pytest.mark.parametrize("width", [1, 4, 8, 12, 16, 20])
@pytest.mark.parametrize("cast", [True, False])
@torch.no_grad()
def test_bfloat16_is_rounding_and_no_more(cast: bool, width: int, kernel: int) -> None:
    """8 bits: 2 %. On processors with AMX, oneDNN's own kernels miss it by 70 %."""
    module, x = positions(4 * width, kernel, 4).float(), torch.randn(2, 150, 4 * width)
    expected = module(x)
    if cast:
        with torch.autocast("cpu", torch.bfloat16):
            found = module(x)
    else:
        found = module.bfloat16()(x.bfloat16())
        assert found.dtype == torch.bfloat16
    assert float((found.float() - expected).abs().max()) <= 0.02 * float(expected.abs().max())

"""The extractor: products on views are convolutions, and padding is never heard."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v_plugin.features import (
    ConvExtractor,
    FeatureProjection,
    ScaleGradient,
    TimeGroupNorm,
    gelu_conv,
    normalize_wavs,
    strided_product,
)
from w2v_plugin.frames import KERNELS, STRIDES, valid_frames

ROUNDING = 1e-12  # float64 sums in another order; values are of order 1
PAIRS = sorted({*zip(KERNELS, STRIDES, strict=True), (1, 1), (7, 3), (4, 5), (5, 5), (6, 4)})


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# --- convolutions --------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inputs", [1, 3])
@pytest.mark.parametrize(("kernel", "stride"), PAIRS)
def test_strided_product_is_conv1d(kernel: int, stride: int, inputs: int, bias: bool) -> None:
    """Values and all gradients, for every remainder of the input length."""
    weight = randn(4, inputs, kernel).requires_grad_()
    offset = randn(4).requires_grad_() if bias else None
    parameters = [weight] if offset is None else [weight, offset]
    for time in range(kernel, kernel + 2 * stride + 2):
        x = randn(2, time, inputs).requires_grad_()
        ours = strided_product(x, weight, offset, stride)
        theirs = F.conv1d(x.transpose(1, 2), weight, offset, stride).transpose(1, 2)
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=ROUNDING)
        direction = randn(*ours.shape)
        gradients = (torch.autograd.grad(y, [x, *parameters], direction) for y in (ours, theirs))
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=0.0, atol=10 * ROUNDING)  # sums over time


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride"), PAIRS)
def test_gelu_conv_is_conv1d_of_gelu(
    kernel: int, stride: int, bias: bool, dtype: torch.dtype
) -> None:
    """Values and all gradients; float32 goes through oneDNN where there is oneDNN."""
    weight = randn(8, 4, kernel).to(dtype).requires_grad_()
    offset = randn(8).to(dtype).requires_grad_() if bias else None
    parameters = [weight] if offset is None else [weight, offset]
    rounding = 100 * torch.finfo(dtype).eps  # sums of up to 80 products of order 1
    for time in range(kernel, kernel + 2 * stride + 2):
        x = randn(3, time, 4).to(dtype).requires_grad_()
        ours = gelu_conv(x, weight, offset, stride)
        theirs = F.conv1d(F.gelu(x).transpose(1, 2), weight, offset, stride).transpose(1, 2)
        torch.testing.assert_close(ours, theirs, rtol=rounding, atol=rounding)
        direction = randn(*ours.shape).to(dtype)
        gradients = (torch.autograd.grad(y, [x, *parameters], direction) for y in (ours, theirs))
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=rounding, atol=rounding)
        with torch.no_grad():
            again = gelu_conv(x.clone(), weight, offset, stride)
        torch.testing.assert_close(again, theirs, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("bias", [True, False])
def test_extractor_is_the_published_stack(norm: str, bias: bool) -> None:
    """Conv1d, norm, GELU, written with PyTorch's channels-first modules."""
    ours = ConvExtractor((6, 5, 4), norm=norm, bias=bias, kernels=(10, 3, 2), strides=(5, 2, 2))
    ours = ours.double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    wavs = randn(2, 200)
    x = wavs[:, None]
    for layer in ours.layers:
        x = layer.conv(x)
        if norm == "layer":
            x = layer.norm(x.transpose(1, 2)).transpose(1, 2)
        elif layer.norm is not None:
            x = F.group_norm(x, x.shape[1], layer.norm.weight, layer.norm.bias)
        x = F.gelu(x)
    torch.testing.assert_close(ours(wavs), x.transpose(1, 2), rtol=0.0, atol=ROUNDING)
    assert sum(layer.norm is not None for layer in ours.layers) == (3 if norm == "layer" else 1)


def test_extractors_that_cannot_be_built_are_refused() -> None:
    """What was got, and what was expected."""
    with pytest.raises(ValueError, match="norm='batch', expected 'group', 'layer' or 'none'"):
        ConvExtractor((8,) * 7, norm="batch")
    with pytest.raises(ValueError, match="3 channels, 7 kernels and 7 strides"):
        ConvExtractor((8,) * 3)


# --- norms ---------------------------------------------------------------------------------------


def folded(norm: TimeGroupNorm, weight: Tensor, windows: Tensor, valid: Tensor | None) -> Tensor:
    """The convolution with the norm in it."""
    taps, bias = norm.fold(weight, windows, valid)
    return torch.baddbmm(bias[:, None], windows, taps.transpose(1, 2))


@pytest.mark.parametrize(("batch", "time", "channels"), [(1, 2, 1), (2, 50, 6), (3, 17, 16)])
def test_folded_norm_is_group_norm(batch: int, time: int, channels: int) -> None:
    """One group per channel after a product, with any weight and bias, gradients included."""
    ours, theirs = TimeGroupNorm(channels).double(), nn.GroupNorm(channels, channels).double()
    with torch.no_grad():
        for parameter in (ours.weight, ours.bias):
            parameter.normal_()
    theirs.load_state_dict(ours.state_dict())
    weight, windows = randn(channels, 10).requires_grad_(), 3 + 2 * randn(batch, time, 10)
    windows.requires_grad_()
    plain = theirs(F.linear(windows, weight).transpose(1, 2)).transpose(1, 2)
    pair = folded(ours, weight, windows, None), plain
    torch.testing.assert_close(*pair, rtol=0.0, atol=10 * ROUNDING)  # of order 10 inside
    direction = randn(batch, time, channels)
    for norm, y in zip((ours, theirs), pair, strict=True):
        norm.grads = torch.autograd.grad(y, [weight, windows, *norm.parameters()], direction)
    for a, b in zip(ours.grads, theirs.grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1000 * ROUNDING)  # of order 100, and sums


def test_statistics_leave_the_padding_out() -> None:
    """A row with garbage behind it equals the row alone, also when nothing is left of a row."""
    norm, weight = TimeGroupNorm(4).double(), randn(4, 10)
    windows, lengths = randn(3, 20, 10), torch.tensor([20, 13, 1])
    for row, length in zip(windows, lengths, strict=True):
        row[length:] = 1e6
    y = folded(norm, weight, windows, valid_frames(lengths, 20))
    for i, length in enumerate(lengths.tolist()):
        alone = folded(norm, weight, windows[i : i + 1, :length], None)
        torch.testing.assert_close(y[i : i + 1, :length], alone, rtol=0.0, atol=10 * ROUNDING)
    nothing = folded(norm, weight, windows, valid_frames(torch.tensor([0, 20, 20]), 20))
    assert bool(nothing.isfinite().all())


def test_variance_survives_a_large_offset() -> None:
    """A loud offset that a channel does not hear: its variance is 1e-8 of the waveform's."""
    weight = torch.tensor([[1.0, -1.0] * 5, [1.0] * 10])  # the first is blind to offsets
    windows = 1e3 * torch.randn(1, 4000, 1) + torch.randn(1, 4000, 10)
    norm = TimeGroupNorm(2)
    exact = folded(TimeGroupNorm(2).double(), weight.double(), windows.double(), None).float()
    # float32 numbers around 1e3 are 6e-5 apart, and ten of them are added
    torch.testing.assert_close(folded(norm, weight, windows, None), exact, rtol=0.0, atol=2e-3)


def test_statistics_are_wide_under_autocast() -> None:
    """What is folded is the same as without, in the type of the weights."""
    norm, weight, windows = TimeGroupNorm(2), torch.randn(2, 10), 5 + torch.randn(1, 5000, 10)
    with torch.autocast("cpu", torch.bfloat16):
        inside = norm.fold(weight, windows, None)
    for a, b in zip(inside, norm.fold(weight, windows, None), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)


# --- waveforms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-7, 1e-5])
@pytest.mark.parametrize("level", [1.0, 1e-3])
def test_every_utterance_is_normalized_alone(eps: float, level: float) -> None:
    """(x - mean) / sqrt(var + eps) over valid samples; padding does not count and becomes 0."""
    wavs, lengths = 0.3 + level * randn(3, 900), torch.tensor([900, 500, 400])
    clean = wavs.clone()
    wavs[1, 500:], wavs[2, 400:] = 1e6, float("nan")
    out = normalize_wavs(wavs, lengths, eps)
    for row, wav, length in zip(out, clean, lengths.tolist(), strict=True):
        wav = wav[:length]
        expected = (wav - wav.mean()) / (wav.var(correction=0) + eps).sqrt()
        torch.testing.assert_close(row[:length], expected, rtol=0.0, atol=1e-9)  # 1 / 1e-3 larger
        assert not row[length:].any()
        alone = normalize_wavs(wav[None], None, eps)[0]
        torch.testing.assert_close(alone, expected, rtol=0.0, atol=1e-9)


def test_eps_matters_for_quiet_audio_only() -> None:
    """The two conventions differ by 5 ppm at full level and by a factor of 3 at rms 1e-3."""
    wav = randn(1, 4000)
    loud, quiet = (
        normalize_wavs(level * wav, None, 1e-7).std()
        / normalize_wavs(level * wav, None, 1e-5).std()
        for level in (1.0, 1e-3)
    )
    assert abs(loud - 1) < 1e-5 and 2 < quiet < 4


def test_silence_stays_silent() -> None:
    """No division by a variance of zero."""
    for lengths in (None, torch.tensor([800, 400])):
        assert not normalize_wavs(torch.zeros(2, 800), lengths, 1e-7).any()


# --- gradient scale, projection ------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.1, 0.0, 2.0])
def test_scale_gradient_is_an_identity_with_another_gradient(scale: float) -> None:
    x, direction = randn(3, 4).requires_grad_(), randn(3, 4)
    y = ScaleGradient.apply(x, scale)
    assert torch.equal(y, x)
    assert torch.equal(torch.autograd.grad(y, x, direction)[0], scale * direction)


def test_projection_takes_normed_latents() -> None:
    """The norm is not applied twice: `forward` is dropout and linear only."""
    projection = FeatureProjection(6, 4, dropout=0.5).double().eval()
    normed = randn(2, 5, 6)
    expected = F.linear(normed, projection.linear.weight, projection.linear.bias)
    assert torch.equal(projection(normed), expected)
    projection.train()
    assert 0.2 < (projection(randn(200, 5, 6)) == 0).double().mean() < 0.8

"""TiledExtractor: what `ConvExtractor` hears, at all lengths, levels and shapes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from w2v_plugin import products, tiled
from w2v_plugin.features import ConvExtractor
from w2v_plugin.products import Int8Linear
from w2v_plugin.tiled import TILE, Int8Conv, PackedConv, TiledExtractor

pytestmark = pytest.mark.skipif(not products.available(), reason="needs oneDNN on x86")
FAMILIES = [("group", False), ("group", True), ("layer", False), ("layer", True)]
OTHER = [((8, 4, 4), (4, 4, 2)), ((5, 3, 1), (5, 1, 1)), ((3, 2, 5), (2, 3, 2)), ((10,), (5,))]


@pytest.fixture(autouse=True)
def inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def make(norm: str, bias: bool = False, width: int = 12, **shape) -> ConvExtractor:
    layers = len(shape.get("kernels", range(7)))
    extractor = ConvExtractor((width,) * layers, norm=norm, bias=bias, **shape)
    for name, parameter in extractor.named_parameters():
        if "conv.weight" not in name:  # biases are zero and norms are 1 in a new model
            parameter.add_(0.3 * torch.randn_like(parameter))
    return extractor


def packed(extractor: ConvExtractor) -> TiledExtractor:
    return TiledExtractor(extractor, lambda number, conv: PackedConv(conv))


def deviation(
    fast: nn.Module, extractor: ConvExtractor, wavs: Tensor, lengths: Tensor | None = None
) -> float:
    """Largest difference from float64; values are of order 1."""
    y = fast(wavs, lengths)
    expected = copy.deepcopy(extractor).double()(wavs.double(), lengths)
    assert y.dtype == torch.float32 and y.shape == expected.shape
    frames = [y.shape[1]] * len(y)
    if lengths is not None:
        frames = extractor.frame_lengths(lengths).tolist()
    rows = zip(y, expected, frames, strict=True)
    return max(float((a[:n] - b[:n]).abs().max()) for a, b, n in rows)


# float32 rounding, seven layers deep
TOLERANCE = 1e-5


@pytest.mark.parametrize(("norm", "bias"), FAMILIES)
@pytest.mark.parametrize("frames", [1, 2, TILE - 1, TILE, TILE + 1, 2 * TILE, 2 * TILE + 1])
def test_every_length(norm, bias, frames) -> None:
    """One frame, and around the borders of tiles; samples that fill no frame count in the norm."""
    extractor = make(norm, bias)
    for extra in (0, 1, 319):
        wavs = 0.1 * torch.randn(1, (frames - 1) * 320 + 400 + extra)
        assert deviation(packed(extractor), extractor, wavs) < TOLERANCE


@pytest.mark.parametrize(("norm", "bias"), FAMILIES)
@pytest.mark.parametrize(("kernels", "strides"), OTHER)
def test_other_kernels_and_strides(norm, bias, kernels, strides) -> None:
    """Also strides beyond the kernel, kernels of 1, and a single convolution."""
    extractor = make(norm, bias, 7, kernels=kernels, strides=strides)
    wavs = torch.randn(2, 45 * math.prod(strides) + 3)
    assert deviation(packed(extractor), extractor, wavs) < TOLERANCE


TIME = torch.arange(24000) / 16000
SOUNDS = {
    "quiet": 1e-4 * torch.randn(24000),
    "loud": 1e4 * torch.randn(24000),
    "offset": 0.1 * torch.randn(24000) + 1.0,
    "silence": torch.zeros(24000),
    "constant": torch.full((24000,), 0.3),
    "click": torch.nn.functional.one_hot(torch.tensor(7000), 24000).float(),
    "hum": torch.sin(2 * math.pi * 50 * TIME),
    "loud hum": 1e3 * torch.sin(2 * math.pi * 50 * TIME),
}


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("sound", SOUNDS)
def test_every_sound(norm, sound) -> None:
    """Levels, offsets, silence, and a hum in channels that hear only high frequencies.

    What those channels hear is a thousandth of the waveform or less, so that they amplify
    float32's rounding by as much, with `ConvExtractor`, too; that the variance of a covariance
    amplifies by a million is not heard.
    """
    extractor = make(norm, bias=True)
    first = extractor.layers[0].conv.weight
    first[:8] = 0
    first[:8, 0, 2:6] = torch.tensor([-1.0, 3.0, -3.0, 1.0]) + 1e-4 * torch.randn(8, 4)
    wavs = SOUNDS[sound][None]
    slow = deviation(extractor, extractor, wavs)
    assert deviation(packed(extractor), extractor, wavs) < TOLERANCE + 10 * slow


@pytest.mark.parametrize(("norm", "bias"), FAMILIES)
def test_a_batch_is_its_utterances(norm, bias) -> None:
    """With lengths padding is never heard, even NaN; without lengths it is part of the sound."""
    extractor, lengths = make(norm, bias), torch.tensor([16000, 400, 10719, 719])
    wavs = 0.1 * torch.randn(4, 16000)
    fast = packed(extractor)
    assert deviation(fast, extractor, wavs) < TOLERANCE
    assert deviation(fast, extractor, wavs, lengths) < TOLERANCE
    dirty = wavs.masked_fill(torch.arange(16000) >= lengths[:, None], float("nan"))
    y = fast(dirty, lengths)
    for row, wav, n in zip(y, wavs, lengths.tolist(), strict=True):
        alone = fast(wav[None, :n])[0]
        assert torch.equal(row[: len(alone)], alone) and not row[len(alone) :].any()
    assert torch.equal(fast.frame_lengths(lengths), extractor.frame_lengths(lengths))


def test_tiles_bound_what_is_stored(monkeypatch) -> None:
    """No more than a tile passes at a time, and its length does not matter to the answer."""
    fast, wavs, seen = packed(make("group")), torch.randn(1, 40000), []
    chain = fast.chain
    monkeypatch.setattr(fast, "chain", lambda x, *fold: seen.append(len(x)) or chain(x, *fold))
    y = fast(wavs)
    assert max(seen) == (TILE - 1) * 320 + 400 and len(seen) == 4
    monkeypatch.setattr(tiled, "TILE", 5)
    torch.testing.assert_close(fast(wavs), y, rtol=0, atol=TOLERANCE)
    assert max(seen[4:]) == 4 * 320 + 400


@pytest.mark.parametrize(("inputs", "outputs", "kernel", "stride"), [(5, 9, 3, 2), (16, 3, 1, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_convolutions(inputs, outputs, kernel, stride, bias) -> None:
    """PackedConv is the convolution; Int8Conv is Int8Linear on its windows, bit for bit."""
    conv = nn.Conv1d(inputs, outputs, kernel, stride, bias=bias)
    x = torch.nn.functional.gelu(torch.randn(50, inputs))
    expected = conv(x.T)
    torch.testing.assert_close(PackedConv(conv)(x), expected.T, rtol=0, atol=1e-6)
    windows = x.unfold(0, kernel, stride).transpose(1, 2).flatten(1)
    weight = conv.weight.transpose(1, 2).flatten(1)
    assert torch.equal(Int8Conv(conv)(x), Int8Linear(weight, conv.bias, after_gelu=True)(windows))


@pytest.mark.parametrize(("norm", "bias"), FAMILIES)
def test_int8_is_close_and_alone_as_in_a_batch(norm, bias) -> None:
    """8 bits in six layers cost some percent; utterances stay apart, bit for bit."""
    extractor, lengths = make(norm, bias, width=32), torch.tensor([12345, 5000])
    int8 = TiledExtractor(extractor, lambda number, conv: Int8Conv(conv))
    wavs = 0.1 * torch.randn(2, 12345)
    y, expected = int8(wavs, lengths), extractor(wavs, lengths)
    for row, right, wav, n in zip(y, expected, wavs, lengths.tolist(), strict=True):
        alone = int8(wav[None, :n])[0]
        assert torch.equal(row[: len(alone)], alone)
        error = (alone - right[: len(alone)]).norm() / right[: len(alone)].norm()
        assert 1e-5 < float(error) < 0.1

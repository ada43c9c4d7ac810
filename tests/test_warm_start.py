"""The warm start: one mel window per frame, a loss that falls, directions that carry it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from w2v_plugin.frames import frame_lengths
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.quantizer import NearestQuantizer
from w2v_plugin.warm_start import MelRegression


def make(**kwargs: bool) -> MelRegression:
    torch.manual_seed(0)
    wav2vec2 = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(16,) * 7, **kwargs)
    return MelRegression(wav2vec2)


def sweeps(batch: int = 4, samples: int = 8000) -> Tensor:
    """Tones whose pitch and loudness move: their spectra differ from frame to frame."""
    time = torch.arange(samples) / 16000
    pitch = torch.linspace(200, 1200, batch)[:, None] * (1 + time)
    return (0.1 + 0.1 * torch.sin(9 * time)) * torch.sin(2 * math.pi * pitch * time)


@pytest.mark.parametrize("samples", [400, 401, 719, 720, 721, 1039, 1040, 9999, 16000, 16079])
def test_one_window_per_frame(samples: int) -> None:
    """The spectrum has exactly the extractor's frames, without padding."""
    model, wavs = make(), torch.randn(2, samples)
    assert model.spectrum(wavs).shape == (2, frame_lengths(samples), 40)
    assert model.wav2vec2.extract(wavs)[0].shape[1] == frame_lengths(samples)
    assert bool(model(wavs).isfinite())


def test_windows_hear_what_frames_hear() -> None:
    """A click at sample s is in the windows of the frames [320 t, 320 t + 400) that hold s."""
    model, frames = make(), frame_lengths(3200)
    silence = model.spectrum(torch.zeros(1, 3200))
    for sample in (30, 350, 1000, 2900):
        wavs = torch.zeros(1, 3200)
        wavs[0, sample] = 10.0
        moved = (model.spectrum(wavs) - silence).abs().amax((0, 2)) > 0
        assert moved.tolist() == [320 * t <= sample < 320 * t + 400 for t in range(frames)]


def test_the_loss_falls() -> None:
    """From about 1, the variance of the targets, to well below it in 20 steps."""
    model, wavs = make(), sweeps()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(wavs)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert 0.8 < losses[0] < 2.0 and losses[-1] < 0.6 * losses[0]


def test_padding_is_not_predicted() -> None:
    """The loss of a batch is the mean over the frames of its utterances, garbage behind them."""
    model, dirty = make(), sweeps()
    model(sweeps())  # sets the scale
    samples = [8000, 4000, 2000, 800]
    alone = [model(row[None, :n]).item() for row, n in zip(dirty, samples, strict=True)]
    for row, n in zip(dirty, samples, strict=True):
        row[n:] = 100.0
    frames = [frame_lengths(n) for n in samples]
    expected = sum(x * n for x, n in zip(alone, frames, strict=True)) / sum(frames)
    # float32: the logarithm of quiet bands enlarges roundings
    assert model(dirty, torch.tensor(samples) / 8000).item() == pytest.approx(expected, rel=1e-3)


def test_the_first_batch_sets_the_scale() -> None:
    """Once: later batches are measured with it, so that their losses can be compared."""
    model = make()
    model(sweeps())
    mean, std = model.mean.clone(), model.std.clone()
    model(0.1 * torch.randn(2, 4000))
    assert torch.equal(model.mean, mean) and torch.equal(model.std, std) and bool((std > 0).any())


def test_a_batch_of_nothing_does_not_set_the_scale() -> None:
    """`collate` gives one frame of silence when no file can be read: it has no spread."""
    model = make()
    assert math.isfinite(model(torch.zeros(1, 400)).item())
    model(sweeps())
    assert bool(model.std.isfinite().all()) and model.std.any()
    assert 0.5 < model(sweeps()).item() < 3.0


def test_directions_have_unit_variance_and_start_a_quantizer() -> None:
    """13 cepstra of the prediction, each of standard deviation 1 on the latents."""
    model = make()
    latents = 2 + torch.randn(500, 16)
    directions = model.directions(latents)
    assert directions.shape == (13, 16)
    std = (latents @ directions.t()).std(0)
    torch.testing.assert_close(std, torch.ones(13), rtol=1e-4, atol=0.0)  # float32
    quantizer = NearestQuantizer(16, groups=2, codes=12, dim=16)
    with torch.no_grad():
        quantizer.init_from_data(latents, directions)
        assert bool((quantizer(latents).code_perplexity > 4).all())


def test_what_never_learns_stays_frozen() -> None:
    """The idle positions of a conformer, as before the warm start; the rest learns again."""
    torch.manual_seed(0)
    shape = {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "channels": (16,) * 7}
    wav2vec2 = Wav2Vec2(**shape, conformer="relative", norm_first=True)
    before = {name: p.requires_grad for name, p in wav2vec2.named_parameters()}
    regression = MelRegression(wav2vec2)
    assert not wav2vec2.mask_embedding.requires_grad
    regression.release()
    assert {name: p.requires_grad for name, p in wav2vec2.named_parameters()} == before
    assert not all(before.values()) and any(before.values())

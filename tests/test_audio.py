"""Reading piece by piece: the same samples and the same errors as reading everything at once."""

from __future__ import annotations

import io
import random

import pytest
import soundfile
import torch
from torch import Tensor

from w2v_plugin import audio
from w2v_plugin.audio import (
    BLOCK_S,
    Resampler,
    check_batch,
    read_audio,
    read_blocks,
    read_window,
    resample,
    unpad_batch,
)
from w2v_plugin.errors import BadAudio


def noise(samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def feed(wav: Tensor, rate: int, sizes: list[int]) -> Tensor:
    """Packets of random ones of these sizes."""
    resampler, pieces, at, draw = Resampler(rate), [], 0, random.Random(0)
    while at < len(wav):
        size = draw.choice(sizes)
        pieces.append(resampler.feed(wav[at : at + size]))
        at += size
    return torch.cat([*pieces, resampler.finish()])


# --- resampling ----------------------------------------------------------------------------------

RATES = [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000, 12340]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("seconds", [0.001, 0.019, 0.02, 0.0401, 0.5, 1.2345])
def test_packets_are_resampled_as_the_whole(rate, seconds) -> None:
    """To the sample, at every length; float32 sums of other neighbors in the same filter."""
    wav = noise(int(rate * seconds))
    expected = resample(wav, rate)
    for sizes in ([1, 3, rate // 50], [rate // 50 - 1, rate // 50 + 1, 0], [rate], [rate // 3]):
        y = feed(wav, rate, sizes)
        assert y.dtype == torch.float32 and y.shape == expected.shape
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_single_samples(rate) -> None:
    """The smallest packets there are."""
    wav = noise(rate // 8)
    torch.testing.assert_close(feed(wav, rate, [1]), resample(wav, rate), rtol=0, atol=1e-6)


def test_a_rate_that_shares_nothing_with_ours() -> None:
    """997 Hz: the filter repeats after a second only, and its unit is as long."""
    resampler, wav = Resampler(997), noise(2499)
    assert (resampler.unit, resampler.out_unit) == (997, 16000)
    torch.testing.assert_close(feed(wav, 997, [200]), resample(wav, 997), rtol=0, atol=1e-6)


def test_a_filter_that_fits_nowhere_is_refused() -> None:
    """A damaged header may claim any rate; its filter would take 25 GB."""
    with pytest.raises(BadAudio, match=r"399989 Hz has too little in common with 16000 Hz"):
        Resampler(399989)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_samples_come_as_soon_as_they_are_certain(rate) -> None:
    """At most two units (40 ms) are held back."""
    resampler, given = Resampler(rate), 0
    for packets in range(1, 50):
        given += len(resampler.feed(noise(rate // 50)))
        assert given >= 320 * packets - 2 * resampler.out_unit
        assert len(resampler.pending) <= 3 * resampler.unit + rate // 50


def test_nothing_gives_nothing() -> None:
    """No packets, empty packets, and a second use after the end."""
    for rate in (8000, 16000):
        resampler = Resampler(rate)
        assert len(resampler.finish()) == 0
        assert len(resampler.feed(torch.zeros(0))) == 0 == len(resampler.finish())
        wav = noise(rate)
        y = torch.cat([resampler.feed(wav), resampler.finish()])
        torch.testing.assert_close(y, resample(wav, rate), rtol=0, atol=1e-6)


# --- blocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 16000, 22050])
@pytest.mark.parametrize("seconds", [0.025, 9.99, 10.0, 20.0, 23.456])
def test_blocks_are_the_file(tmp_path, rate, seconds) -> None:
    """Around whole blocks, in stereo, at rates that must be resampled."""
    left, right = noise(round(rate * seconds), 1), noise(round(rate * seconds), 2)
    path = tmp_path / "a.wav"
    soundfile.write(path, torch.stack([left, right], 1).numpy(), rate, "FLOAT")
    expected = resample((left + right) / 2, rate)
    blocks = list(read_blocks(path))
    assert max(map(len, blocks)) <= (BLOCK_S + 0.1) * 16000
    torch.testing.assert_close(torch.cat(blocks), expected, rtol=0, atol=1e-6)
    assert torch.equal(read_audio(path), torch.cat(blocks))


def test_a_block_at_a_time_is_decoded(tmp_path, monkeypatch) -> None:
    """The first block is there before the second is read, and the file is closed in the end."""
    path, reads = tmp_path / "a.flac", []
    soundfile.write(path, noise(35 * 16000).numpy(), 16000)

    class Spy(soundfile.SoundFile):
        def read(self, *args, **kwargs):
            reads.append(args)
            return super().read(*args, **kwargs)

    monkeypatch.setattr(audio.soundfile, "SoundFile", Spy)
    blocks = read_blocks(path)
    for count in range(1, 4):
        next(blocks)
        assert len(reads) == count
    blocks.close()
    assert len(reads) == 3


def broken(folder, kind: str):
    """A file of 30 s whose first blocks are good, and what is said about it."""
    path = folder / ("a.flac" if kind == "garbage" else "a.wav")
    wav = noise(30 * 16000)
    if kind == "nan":
        wav[22 * 16000] = float("nan")
    soundfile.write(path, wav.numpy(), 16000, "PCM_16" if kind == "garbage" else "FLOAT")
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        del data[len(data) * 3 // 4 :]
    elif kind == "garbage":
        data[len(data) * 3 // 4 :] = bytes(len(data) // 4)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "a.wav: holds NaN"),
        ("truncated", "a.wav: truncated: 3[56]....* samples were read, its header promises 480000"),
        ("garbage", "a.flac: (cannot be decoded|truncated)"),
    ],
)
def test_errors_after_the_first_block(tmp_path, kind, message) -> None:
    """What comes before is given; then the error, the same as for the whole."""
    path = broken(tmp_path, kind)
    blocks = read_blocks(path)
    assert len(next(blocks)) == len(next(blocks)) == 160000
    with pytest.raises(BadAudio, match=message):
        list(blocks)
    with pytest.raises(BadAudio, match=message):
        read_audio(path)


@pytest.mark.parametrize("name", ["missing.wav", "x" * 5000, "a\0b.wav", ""])
def test_names_that_are_no_file(tmp_path, name) -> None:
    """Also those that the system refuses to look up, as from a manifest with shifted columns."""
    with pytest.raises(BadAudio, match="no such file"):
        read_audio(tmp_path / name)


@pytest.mark.parametrize(("rate", "samples"), [(16000, 399), (8000, 199), (48000, 1190)])
def test_less_than_a_frame(tmp_path, rate, samples) -> None:
    """Counted at 16 kHz, whatever the rate."""
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(samples).numpy(), rate)
    with pytest.raises(BadAudio, match=r"a\.wav: 39[789] samples at 16 kHz.*400"):
        read_audio(path)


# --- windows -------------------------------------------------------------------------------------


def sound(folder, kind: str, rate: int, seconds: float = 7.0):
    """A file of noise; `kind` as in its name."""
    path = folder / f"a.{'ogg' if kind in ('opus', 'vorbis') else kind}"
    settings = {
        "wav": {"subtype": "FLOAT"},
        "opus": {"format": "OGG", "subtype": "OPUS"},
        "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    }
    wav = noise(round(rate * seconds) + 13)
    soundfile.write(path, wav.numpy(), rate, **settings.get(kind, {}))
    return path


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000, 12340])
def test_windows_are_parts_of_the_file(tmp_path, rate) -> None:
    """Anywhere, also over the end; float32 sums in other blocks of the same filter."""
    path = sound(tmp_path, "wav", rate)
    whole = read_audio(path)
    places = [(0, 1000), (0, 10**6), (1, 399), (12345, 16000), (50000, 3), (len(whole) - 500, 900)]
    for start, samples in [*places, (len(whole) + 10, 50)]:
        window = read_window(path, start, samples)
        assert len(window) == len(whole[start : start + samples])
        torch.testing.assert_close(window, whole[start : start + samples], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "tolerance"), [("flac", 0.0), ("vorbis", 1e-6), ("opus", 0.01)])
def test_windows_of_compressed_files(tmp_path, kind, tolerance) -> None:
    """Opus predicts from what came before: after the run-up, it is far below its own noise."""
    path = sound(tmp_path, kind, 16000)
    whole = read_audio(path)
    with path.open("rb") as file:
        for start in range(0, len(whole) - 4000, 7777):
            expected = whole[start : start + 4000]
            torch.testing.assert_close(
                read_window(path, start, 4000), expected, rtol=0, atol=tolerance
            )
            assert torch.equal(read_window(file, start, 4000), read_window(path, start, 4000))


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_a_window_of_ten_minutes_costs_a_window(tmp_path, kind, monkeypatch) -> None:
    """Of 600 s, less than three are decoded for two."""
    path, decoded = sound(tmp_path, kind, 16000, 600), []

    class Spy(soundfile.SoundFile):
        def read(self, *args, **kwargs):
            data = super().read(*args, **kwargs)
            decoded.append(len(data))
            return data

    monkeypatch.setattr(audio.soundfile, "SoundFile", Spy)
    assert len(read_window(path, 500 * 16000 + 77, 32000)) == 32000
    assert sum(decoded) < 3 * 16000


def test_errors_of_windows(tmp_path) -> None:
    """Missing, not audio, and NaN where it is read; a name for what has none."""
    with pytest.raises(BadAudio, match=r"b\.wav: no such file"):
        read_window(tmp_path / "b.wav", 0, 100)
    with pytest.raises(BadAudio, match="bytes of u7: cannot be decoded"):
        read_window(io.BytesIO(b"no audio"), 0, 100, "bytes of u7")
    path = broken(tmp_path, "nan")
    assert len(read_window(path, 0, 1000)) == 1000
    with pytest.raises(BadAudio, match=r"a\.wav: holds NaN"):
        read_window(path, 22 * 16000 - 10, 20)


# --- batches -------------------------------------------------------------------------------------


def test_unpadded_rows_are_the_valid_samples() -> None:
    """With and without lengths, NaN in the padding included; the checks are those of a batch."""
    wavs = torch.stack([noise(1000, i) for i in range(3)])
    wavs[1, 400:] = float("nan")
    wavs[2, 777:] = float("inf")
    rows = unpad_batch(wavs, torch.tensor([1.0, 0.4, 0.777]))
    assert [len(row) for row in rows] == [1000, 400, 777]
    assert all(torch.equal(row, wav[: len(row)]) for row, wav in zip(rows, wavs, strict=True))
    assert all(map(torch.equal, unpad_batch(wavs[:1]), wavs[:1]))
    for call in (unpad_batch, check_batch):
        with pytest.raises(BadAudio, match="row 1: holds NaN"):
            call(wavs)
        with pytest.raises(BadAudio, match="row 2: 399 samples"):
            call(wavs, torch.tensor([1.0, 0.4, 0.399]))

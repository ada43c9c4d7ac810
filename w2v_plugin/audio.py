"""Files -> 16 kHz mono waveforms, or one clear error.

soundfile decodes (wav, flac, ogg/opus, mp3), torchaudio resamples. Files are decoded in blocks, so
that hours of speech need no more memory than seconds, unless all of it is asked for at once.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import soundfile
import torch
import torchaudio
from torch import Tensor

from w2v_plugin.errors import BadAudio
from w2v_plugin.frames import HOP, RECEPTIVE_FIELD, SAMPLE_RATE, absolute_lengths, valid_frames

BLOCK_S = 10  # seconds that are decoded at a time
RUN_UP_MS = 200  # decoded before a window: mp3 and Opus need what was before to get going
LARGEST_FILTER = 3 * 10**8  # values
UNKNOWN_SIZE = 0x7FFF0000  # what programs that write wav into a pipe claim, and more


def read_audio(path: str | Path) -> Tensor:
    """Read one file as the models want it.

    Parameters
    ----------
    path : str or Path
        Any format that libsndfile decodes, any sample rate, any number of channels
        (they are averaged).

    Returns
    -------
    Tensor
        (samples,) float32 at 16 kHz, about in [-1, 1].

    Raises
    ------
    BadAudio
        The file is missing, not audio, truncated, empty, shorter than one frame (25 ms), or
        holds NaN or infinite samples.
    """
    return torch.cat(list(read_blocks(path)))


def read_blocks(path: str | Path) -> Iterator[Tensor]:
    """Read one file piece by piece, in bounded memory; together they are what `read_audio` gives.

    Parameters
    ----------
    path : str or Path
        As for `read_audio`, which also says what is raised; truncation is noticed at the end.

    Yields
    ------
    Tensor
        (samples,) float32 at 16 kHz, about ten seconds; the last one may be shorter.
    """
    path = Path(path)
    if not os.path.isfile(path):  # unlike Path.is_file, False for a name that cannot be one
        raise BadAudio(f"{path}: no such file. Check the path or the manifest that names it.")
    samples = 0
    for wav in _decode(path):
        samples += len(wav)
        yield _finite(wav, str(path))
    if samples < RECEPTIVE_FIELD:
        raise BadAudio(_too_short(str(path), samples))


def read_window(source: str | Path | BinaryIO, start: int, samples: int, name: str = "") -> Tensor:
    """Read a part of a file; what lies before it is not decoded.

    Parameters
    ----------
    source : str, Path or binary file
        As for `read_audio`, or an open file that can seek.
    start, samples : int
        In samples at 16 kHz.
    name : str
        What errors call the source; by default its path.

    Returns
    -------
    Tensor
        (at most `samples`,) float32, as cut out of all of it; fewer where the file ends.

    Raises
    ------
    BadAudio
        As `read_audio`, of what was read; a file that is damaged elsewhere is not noticed.

    Example
    -------
    >>> import io
    >>> file = io.BytesIO()
    >>> soundfile.write(file, torch.arange(4800).div(4800).numpy(), 48000, format="WAV")
    >>> read_window(file, 1000, 200).shape
    torch.Size([200])
    """
    name = name or str(source)
    if isinstance(source, (str, Path)) and not os.path.isfile(source):
        raise BadAudio(f"{name}: no such file. Check the path or the manifest that names it.")
    with _decoding(name):
        if not isinstance(source, (str, Path)):
            source.seek(0)
        with soundfile.SoundFile(source if hasattr(source, "read") else str(source)) as sound:
            rate = sound.samplerate
            unit = Resampler(rate).unit * (RUN_UP_MS // 20)
            out_unit = unit * SAMPLE_RATE // rate
            first = max(start // out_unit - 1, 0)  # whole units: times that both rates have
            last = -(-(start + samples) // out_unit) + 1
            sound.seek(min(first * unit, sound.frames))
            data = sound.read((last - first) * unit, "float32", always_2d=True)
    wav = resample(torch.from_numpy(data).mean(dim=1), rate)
    return _finite(wav[start - first * out_unit :][:samples], name)


def _decode(path: Path) -> Iterator[Tensor]:
    """Decoded and resampled blocks."""
    with _decoding(str(path)), soundfile.SoundFile(str(path)) as sound:
        expected, read = _promised(sound), 0
        resampler = Resampler(sound.samplerate)
        while len(data := sound.read(BLOCK_S * sound.samplerate, "float32", always_2d=True)):
            read += len(data)
            yield resampler.feed(torch.from_numpy(data).mean(dim=1))
        yield resampler.finish()
    if 0 < read < expected < 2**62:
        raise BadAudio(
            f"{path}: truncated: {read} samples were read, its header promises {expected}. "
            "Copy or download it again."
        )


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """What decoders raise -> BadAudio."""
    try:
        yield
    except BadAudio as error:
        raise BadAudio(f"{name}: {error}") from error
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        reason = str(error).split(": ")[-1].strip().rstrip(".") or "its data breaks off"
        raise BadAudio(
            f"{name}: cannot be decoded ({reason}). Expected wav, flac, ogg or mp3; "
            "is the file complete and really audio?"
        ) from error


def _promised(sound: soundfile.SoundFile) -> int:
    """Frames that the header promises; libsndfile quietly cuts those of a truncated wav."""
    size = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    if size is None or int(size[1]) >= UNKNOWN_SIZE:
        return sound.frames
    return sound.frames * int(size[1]) // max(int(size[2]), 1)


class Resampler:
    """To 16 kHz, packet by packet: the same samples as resampling everything at once.

    A packet is held back by one unit, the shortest time that is a whole number of samples at both
    rates (and at least 20 ms): then each piece has its true neighbors on both sides, and the filter
    (some 6 samples to each side) sees no edge that is not there.

    Example
    -------
    >>> wav, resampler = torch.randn(8000), Resampler(8000)
    >>> pieces = [resampler.feed(wav[:3333]), resampler.feed(wav[3333:]), resampler.finish()]
    >>> torch.allclose(torch.cat(pieces), resample(wav, 8000), atol=1e-6)
    True
    """

    def __init__(self, rate: int) -> None:
        common = math.gcd(rate, SAMPLE_RATE)
        if rate // common * SAMPLE_RATE // common > LARGEST_FILTER:
            raise BadAudio(
                f"{rate} Hz has too little in common with 16000 Hz to be resampled here (the "
                "filter would not fit into memory). Bring it to 16, 44.1 or 48 kHz first."
            )
        times = -(-HOP * common // SAMPLE_RATE)  # so that a unit is a frame or longer
        self.rate, self.unit = rate, rate // common * times
        self.out_unit = SAMPLE_RATE // common * times
        self.filter = torchaudio.transforms.Resample(rate, SAMPLE_RATE, dtype=torch.float32)
        self.pending = torch.zeros(0)  # not yet given out, after one unit of `past`
        self.past = 0  # samples at the beginning of `pending` that are context only

    def feed(self, wav: Tensor) -> Tensor:
        """Samples at the given rate -> those at 16 kHz that no later sample can change."""
        if self.rate == SAMPLE_RATE:
            return wav
        self.pending = torch.cat([self.pending, wav])
        units = (len(self.pending) - self.past) // self.unit - 1  # one stays, as context
        if units < 1:
            return wav[:0]
        done = self.past + units * self.unit
        ready = self.filter(self.pending[: done + self.unit])
        begin = self.past // self.unit * self.out_unit
        self.pending, self.past = self.pending[done - self.unit :], self.unit
        return ready[begin : begin + units * self.out_unit]

    def finish(self) -> Tensor:
        """What was held back."""
        ready = self.filter(self.pending) if len(self.pending) else self.pending
        begin = self.past // self.unit * self.out_unit
        self.pending, self.past = self.pending[:0], 0
        return ready[begin:]


def resample(wav: Tensor, rate: int) -> Tensor:
    """Bring (..., samples) from `rate` to 16 kHz with a windowed-sinc filter."""
    if rate == SAMPLE_RATE or wav.shape[-1] == 0:
        return wav
    return torchaudio.functional.resample(wav, rate, SAMPLE_RATE)


def check_wav(wav: Tensor, name: str = "waveform") -> Tensor:
    """Return `wav` (samples,) unchanged, or raise `BadAudio` saying why it is unusable."""
    if wav.numel() < RECEPTIVE_FIELD:
        raise BadAudio(_too_short(name, wav.numel()))
    return _finite(wav, name)


def _too_short(name: str, samples: int) -> str:
    return (
        f"{name}: {samples} samples at 16 kHz, but one frame needs {RECEPTIVE_FIELD} "
        "(25 ms). Leave it out or join it with its neighbor."
    )


def _finite(wav: Tensor, name: str) -> Tensor:
    if not torch.isfinite(wav).all():
        raise BadAudio(f"{name}: holds NaN or infinite samples. Export it again as 16-bit PCM.")
    return wav


def check_batch(
    wavs: Tensor, wav_lens: Tensor | None = None, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor | None]:
    """Bring a padded batch into the form that the models want, or raise `BadAudio`.

    Parameters
    ----------
    wavs : Tensor
        (batch, samples) floats at 16 kHz, about in [-1, 1]. Integers are refused: only the
        caller knows whether to divide by 32768 or by something else.
    wav_lens : Tensor, optional
        (batch,) relative lengths in (0, 1]. A row with less than 400 valid samples (25 ms) has
        no frame and is refused.
    device : str or torch.device
        Where the result shall be.

    Returns
    -------
    tuple
        float32 waveforms with padding set to zero, and `wav_lens`, or None if nothing is padding.

    Example
    -------
    >>> wavs, wav_lens = check_batch(torch.ones(2, 800), torch.tensor([1.0, 0.5]))
    >>> wavs.sum(1).tolist()
    [800.0, 400.0]
    """
    _check_shape(wavs, wav_lens)
    samples = wavs.shape[1]
    if wav_lens is None:
        wav_lens = torch.ones(len(wavs))
    lengths = absolute_lengths(wav_lens.cpu(), samples)
    for i, (row, length) in enumerate(zip(wavs, lengths.tolist(), strict=True)):
        check_wav(row[:length], name=f"row {i}")
    wavs, lengths = wavs.to(device, torch.float32), lengths.to(device)
    if bool((lengths == samples).all()):
        return wavs, None
    return wavs.masked_fill(~valid_frames(lengths, samples), 0.0), wav_lens.to(device)


def unpad_batch(wavs: Tensor, wav_lens: Tensor | None = None) -> list[Tensor]:
    """The checked waveforms (samples,) of a padded batch; see `check_batch`.

    Example
    -------
    >>> [len(wav) for wav in unpad_batch(torch.ones(2, 800), torch.tensor([1.0, 0.5]))]
    [800, 400]
    """
    wavs, wav_lens = check_batch(wavs, wav_lens)
    if wav_lens is None:
        return list(wavs)
    lengths = absolute_lengths(wav_lens, wavs.shape[1]).tolist()
    return [wav[:length] for wav, length in zip(wavs, lengths, strict=True)]


def _check_shape(wavs: Tensor, wav_lens: Tensor | None) -> None:
    if not isinstance(wavs, Tensor) or wavs.dim() != 2 or not wavs.is_floating_point():
        got = f"{wavs.dtype} {tuple(wavs.shape)}" if isinstance(wavs, Tensor) else type(wavs)
        raise BadAudio(
            f"wavs: got {got}, expected a tensor of floats (batch, samples) at 16 kHz. Use "
            "wav[None] for one waveform, and divide 16-bit integers by 32768."
        )
    if len(wavs) == 0:
        raise BadAudio("wavs: the batch has no rows. Leave out empty batches.")
    if wav_lens is None:
        return
    if wav_lens.shape != wavs.shape[:1]:
        raise BadAudio(
            f"wav_lens: got {tuple(wav_lens.shape)}, expected one length for each of the "
            f"{len(wavs)} rows of wavs."
        )
    for i, length in enumerate(wav_lens.tolist()):
        if not 0 < length <= 1:
            raise BadAudio(
                f"row {i}: wav_lens is {length}, expected a relative length in (0, 1]. Divide "
                "numbers of samples by the padded length."
            )

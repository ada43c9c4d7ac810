"""Files -> 16 kHz mono waveforms, or one clear error.

soundfile decodes (wav, flac, ogg/opus, mp3), torchaudio resamples. A file is read whole: 25 minutes
of speech are 96 MB.
"""

from __future__ import annotations

import re
from pathlib import Path

import soundfile
import torch
import torchaudio
from torch import Tensor

from w2v_plugin.errors import BadAudio
from w2v_plugin.frames import RECEPTIVE_FIELD, SAMPLE_RATE, absolute_lengths, valid_frames

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
    path = Path(path)
    if not path.is_file():
        raise BadAudio(f"{path}: no such file. Check the path or the manifest that names it.")
    try:
        with soundfile.SoundFile(str(path)) as sound:
            rate, expected = sound.samplerate, _promised(sound)
            data = sound.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        reason = str(error).split(": ")[-1].strip().rstrip(".") or "its data breaks off"
        raise BadAudio(
            f"{path}: cannot be decoded ({reason}). Expected wav, flac, ogg or mp3; "
            "is the file complete and really audio?"
        ) from error
    if 0 < len(data) < expected < 2**62:
        raise BadAudio(
            f"{path}: truncated: {len(data)} samples were read, its header promises {expected}. "
            "Copy or download it again."
        )
    wav = torch.from_numpy(data).mean(dim=1)
    return check_wav(resample(wav, rate), name=str(path))


def _promised(sound: soundfile.SoundFile) -> int:
    """Frames that the header promises; libsndfile quietly cuts those of a truncated wav."""
    size = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    if size is None or int(size[1]) >= UNKNOWN_SIZE:
        return sound.frames
    return sound.frames * int(size[1]) // max(int(size[2]), 1)


def resample(wav: Tensor, rate: int) -> Tensor:
    """Bring (..., samples) from `rate` to 16 kHz with a windowed-sinc filter."""
    if rate == SAMPLE_RATE or wav.shape[-1] == 0:
        return wav
    return torchaudio.functional.resample(wav, rate, SAMPLE_RATE)


def check_wav(wav: Tensor, name: str = "waveform") -> Tensor:
    """Return `wav` (samples,) unchanged, or raise `BadAudio` saying why it is unusable."""
    if wav.numel() < RECEPTIVE_FIELD:
        raise BadAudio(
            f"{name}: {wav.numel()} samples at 16 kHz, but one frame needs {RECEPTIVE_FIELD} "
            "(25 ms). Leave it out or join it with its neighbor."
        )
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

"""What programs feed -> samples, or one clear error.

Microphones, pipes, sockets and other libraries have samples in arrays of many types and in bytes.
What only the caller can know, such as the scale of 32-bit integers, is asked for and not guessed.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from w2v_plugin.errors import BadAudio

LOWEST_RATE, LOUDEST = 1000, 100.0  # beyond, it is kHz or 16-bit integers

Packet: TypeAlias = Tensor | np.ndarray | bytes | bytearray | memoryview


def check_rate(rate: int) -> int:
    """Return a sample rate unchanged, or raise `BadAudio`.

    Example
    -------
    >>> check_rate(44100)
    44100
    """
    if not isinstance(rate, int | np.integer) or rate < LOWEST_RATE:
        raise BadAudio(
            f"sample_rate={rate!r}, expected a whole number of Hz from {LOWEST_RATE}, as 16000."
        )
    return int(rate)


def to_wav(packet: Packet) -> Tensor:
    """Samples of any kind -> (samples,) float32, or `BadAudio`.

    Example
    -------
    >>> to_wav(np.array([0, 16384], np.int16)).tolist(), to_wav(b"\\0\\x40").tolist()
    ([0.0, 0.5], [0.5])
    """
    if isinstance(packet, bytes | bytearray | memoryview):
        packet = bytes(packet)
        if len(packet) % 2:
            raise BadAudio(f"{len(packet)} bytes are no whole number of 16-bit samples.")
        packet = np.frombuffer(packet, "<i2")
    if isinstance(packet, np.ndarray) and packet.dtype.kind == "f":
        packet = torch.from_numpy(packet.astype(np.float64))  # of any precision and byte order
    elif isinstance(packet, np.ndarray) and packet.dtype.newbyteorder("=") == np.int16:
        packet = torch.from_numpy(packet.astype(np.int16))
    kind, shape = getattr(packet, "dtype", type(packet).__name__), getattr(packet, "shape", ())
    if (
        not isinstance(packet, Tensor)
        or packet.dim() != 1
        or not (packet.is_floating_point() or packet.dtype == torch.int16)
    ):
        raise BadAudio(
            f"packet: got {kind} {tuple(shape)}, expected a tensor or an array (samples,) of "
            "floats about in [-1, 1] or 16-bit integers. Average channels first."
        )
    wav = packet.detach().to("cpu", torch.float32)
    wav = wav / 32768 if packet.dtype == torch.int16 else wav
    if not bool(wav.isfinite().all()):
        raise BadAudio("packet: holds NaN or infinite samples. It was not heard.")
    if len(wav) and (peak := wav.abs().max().item()) > LOUDEST:
        raise BadAudio(
            f"packet: samples up to {peak:.6g}, expected floats about in [-1, 1]. Divide what were "
            "16-bit integers by 32768."
        )
    return wav

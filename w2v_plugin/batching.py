"""Files -> batches of waveforms that waste nothing -> results in the order of the files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from w2v_plugin.audio import read_blocks
from w2v_plugin.errors import BadAudio
from w2v_plugin.frames import SAMPLE_RATE

PathLike = str | Path
Result = TypeVar("Result")
AHEAD = 16  # batches that are read before they are sorted by length


def read_up_to(path: PathLike, samples: float) -> Tensor | Iterator[Tensor]:
    """The waveform of a file if it has at most so many samples at 16 kHz, else its blocks."""
    head: list[Tensor] = []
    blocks = read_blocks(path)
    for block in blocks:
        head.append(block)
        if sum(map(len, head)) > samples:
            return chain(head, blocks)
    return torch.cat(head)


def by_budget(wavs: dict[int, Tensor], batch_s: float, *, padded: bool) -> Iterator[list[int]]:
    """Keys of waveforms, in batches of at most `batch_s` seconds.

    Parameters
    ----------
    wavs : dict of int to Tensor
        (samples,) each.
    batch_s : float
        Seconds of audio per batch; a longer waveform is a batch by itself.
    padded : bool
        Padding counts, and waveforms are sorted by length so that there is little of it.

    Example
    -------
    >>> wavs = {0: torch.zeros(16000), 1: torch.zeros(48000), 2: torch.zeros(16000)}
    >>> list(by_budget(wavs, 3.0, padded=True)), list(by_budget(wavs, 4.0, padded=False))
    ([[1], [0, 2]], [[0, 1], [2]])
    """
    keys = sorted(wavs, key=lambda key: -len(wavs[key])) if padded else list(wavs)
    batch: list[int] = []
    for key in keys:
        sizes = [len(wavs[k]) for k in (*batch, key)]
        cost = max(sizes) * len(sizes) if padded else sum(sizes)
        if batch and cost > batch_s * SAMPLE_RATE:
            yield batch
            batch = []
        batch.append(key)
    if batch:
        yield batch


def over_files(
    paths: Iterable[PathLike],
    short: Callable[[list[Tensor]], list[Result]],
    long: Callable[[Iterator[Tensor]], Result],
    *,
    longest_s: float,
    batch_s: float,
    padded: bool,
) -> Iterator[tuple[PathLike, Result | BadAudio]]:
    """Work on files in batches; results come in the order of the files.

    Parameters
    ----------
    paths : iterable of str or Path
        Read as they are needed.
    short : callable
        A batch of waveforms (samples,) -> their results.
    long : callable
        The blocks of a file longer than `longest_s` -> its result.
    longest_s, batch_s : float
        In seconds.
    padded : bool
        See `by_budget`; sixteen batches are read ahead then.

    Yields
    ------
    tuple
        The path, and its result or the `BadAudio` that says what is wrong with it.
    """
    capacity = batch_s * SAMPLE_RATE * (AHEAD if padded else 1)
    held: list[tuple[PathLike, Tensor | Iterator[Tensor] | BadAudio]] = []
    size = 0
    for path in paths:
        audio = _read_or_error(path, longest_s * SAMPLE_RATE)
        samples = len(audio) if isinstance(audio, Tensor) else 0
        if held and size + samples > capacity:
            yield from _finish(held, short, long, batch_s, padded)
            held, size = [], 0
        held.append((path, audio))
        size += samples
        if not isinstance(audio, Tensor):  # an error is told at once; a long file is open
            yield from _finish(held, short, long, batch_s, padded)
            held, size = [], 0
    yield from _finish(held, short, long, batch_s, padded)


def _finish(
    held: list[tuple[PathLike, Tensor | Iterator[Tensor] | BadAudio]],
    short: Callable[[list[Tensor]], list[Result]],
    long: Callable[[Iterator[Tensor]], Result],
    batch_s: float,
    padded: bool,
) -> Iterator[tuple[PathLike, Result | BadAudio]]:
    wavs = {i: audio for i, (_, audio) in enumerate(held) if isinstance(audio, Tensor)}
    results: dict[int, Result] = {}
    for batch in by_budget(wavs, batch_s, padded=padded):
        results |= zip(batch, short([wavs[i] for i in batch]), strict=True)
    for i, (path, audio) in enumerate(held):
        if isinstance(audio, BadAudio):
            yield path, audio
        elif isinstance(audio, Tensor):
            yield path, results[i]
        else:
            try:
                yield path, long(audio)
            except BadAudio as error:
                yield path, error


def _read_or_error(path: PathLike, samples: float) -> Tensor | Iterator[Tensor] | BadAudio:
    try:
        return read_up_to(path, samples)
    except BadAudio as error:
        return error

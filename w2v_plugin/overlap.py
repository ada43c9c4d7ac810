"""Long audio in overlapping windows; what is joined is frames (logits or vectors), never text.

A model that attends to everything needs memory and time quadratic in the length, and was trained
on utterances of half a minute at most. Windows of 40 s that overlap by 8 s cost a quarter more
than their audio and bounded memory, however long that is. Frames near the edge of a window lack
context, so two windows are joined in the middle half of what they share, where they agree best: a
character that one of them hears a frame later than the other is neither lost nor doubled.

Window k begins at a whole frame, so frame i of it is frame k * step + i of the whole, and audio
that fits into one window gives what it gives without windows. Waveform normalization and the norm
over time of group-norm models take their statistics from the window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from w2v_plugin.frames import HOP, SAMPLE_RATE

SMOOTH = 5  # frames over which agreement is measured


@dataclass(frozen=True)
class Windows:
    """Length of windows and what neighbors share, in seconds (whole frames of 20 ms).

    Example
    -------
    >>> windows = Windows(2.0, 0.5)
    >>> [len(wav) for wav in windows.cut([torch.zeros(40000), torch.zeros(20000)])]
    [32000, 32000, 12000]
    """

    length_s: float = 40.0
    overlap_s: float = 8.0

    def __post_init__(self) -> None:
        if not 0.2 <= self.overlap_s <= self.length_s / 2:
            raise ValueError(
                f"Windows of {self.length_s} s with {self.overlap_s} s of overlap: expected an "
                "overlap of at least 0.2 s and at most half of the length."
            )

    @property
    def length(self) -> int:
        """Samples of a window."""
        return round(self.length_s * SAMPLE_RATE / HOP) * HOP

    @property
    def step(self) -> int:
        """Samples from a window to the next."""
        return self.length - round(self.overlap_s * SAMPLE_RATE / HOP) * HOP

    def cut(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Blocks of a waveform (samples,) -> its windows; the last one may be shorter."""
        pending = torch.zeros(0)
        for block in blocks:
            pending = torch.cat([pending, block])
            while len(pending) > self.length:
                yield pending[: self.length]
                pending = pending[self.step :].clone()
        yield pending

    def join(self, windows: Iterable[Tensor]) -> Iterator[Tensor]:
        """Frames of the windows (frames, …) -> those of the whole, piece by piece.

        Two windows must be at hand at a time, not more.

        Example
        -------
        >>> windows, frames = Windows(2.0, 0.5), torch.randn(199, 4)
        >>> pieces = windows.join([frames[:99], frames[75:174], frames[150:]])
        >>> torch.equal(torch.cat(list(pieces)), frames)
        True
        """
        step, last, begin = self.step // HOP, None, 0
        for frames in windows:
            if last is not None:
                cut = _agreement(last[step:], frames)
                yield last[begin : step + cut]
                begin = cut
            last = frames
        if last is not None:
            yield last[begin:]


def _agreement(left: Tensor, right: Tensor) -> int:
    """Frame of the shared ones (both begin there) where to go over from `left` to `right`."""
    shared = min(len(left), len(right))
    first, last = shared // 4, shared - shared // 4
    difference = (left[first:last] - right[first:last]).float().flatten(1).abs().mean(1)
    around = torch.nn.functional.avg_pool1d(
        difference[None], SMOOTH, stride=1, padding=SMOOTH // 2, count_include_pad=False
    )[0]
    return first + int(around.argmin())

"""Audio -> logits while it comes: chunks with a state, or windows that overlap.

`OverlapEncoder` serves models that need to see both sides, which is every published one. Window
k computes the frames from k core - left to (k + 1) core + right and keeps those of the core:

    |-- left --|-- core --|- right -|
               |-- left --|-- core --|- right -|       (here left = core)

At both ends of the stream a window ends where the audio does, so a stream that is shorter than
core and right gives exactly what the whole gives. In between there is no such promise: look at the
words, not at the logits. Everything is computed (left + core + right) / core times, and a text
waits for core and right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.frames import HOP, RECEPTIVE_FIELD, frame_lengths
from w2v_plugin.streaming import EncoderState

TAIL_MS = 1000 * (RECEPTIVE_FIELD - HOP) / 16_000  # that a frame hears beyond its 20 ms


class LiveEncoder(ABC):
    """What a session needs of an encoder."""

    @staticmethod
    @abstractmethod
    def run(encoders: Sequence[LiveEncoder], wavs: Sequence[Tensor], last: bool) -> list[Tensor]:
        """The next samples of each, (samples,), to its next logits, (frames, vocab) on the CPU."""

    @property
    @abstractmethod
    def latency_ms(self) -> float:
        """Time from a sound to the end of what must be heard before its frame comes out: worst
        case, computing not counted."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory that the stream takes."""


class ChunkEncoder(LiveEncoder):
    """A model that streams, and what one stream remembers.

    Parameters
    ----------
    model : Wav2Vec2CTC
        In evaluation mode.
    chunk : ChunkConfig
        What a frame sees.
    """

    def __init__(self, model: Wav2Vec2CTC, chunk: ChunkConfig) -> None:
        self.model, self.chunk = model, chunk
        self.state = model.init_state()

    @property
    def latency_ms(self) -> float:
        return self.chunk.ms + TAIL_MS

    @property
    def nbytes(self) -> int:
        return self.state.nbytes

    @staticmethod
    def run(  # type: ignore[override]
        encoders: Sequence[ChunkEncoder], wavs: Sequence[Tensor], last: bool
    ) -> list[Tensor]:
        first = encoders[0]
        if any(e.model is not first.model or e.chunk != first.chunk for e in encoders):
            raise ValueError("Sessions that are fed together need one model and one ChunkConfig.")
        for encoder, wav in zip(encoders, wavs, strict=True):
            encoder.state = encoder.state.hear(wav[None], [len(wav)])
        body, chunk = first.model.wav2vec2, first.chunk.chunk
        ready = [e for e in encoders if last or body.frames_known(e.state)[0] >= chunk]
        found: dict[int, Tensor] = {}
        if ready:
            states = [encoder.state for encoder in ready]
            state = EncoderState.stack(states)
            out, state = first.model.step(torch.zeros(len(ready), 0), state, first.chunk, last)
            parts = state.unstack() if len(states) > 1 else [state]
            for encoder, part, row in zip(ready, parts, out.rows(), strict=True):
                assert row.logits is not None
                encoder.state, found[id(encoder)] = part, row.logits[0].float().cpu()
        nothing = torch.zeros(0, first.model.head.out_features)
        return [found.get(id(encoder), nothing) for encoder in encoders]


@dataclass(frozen=True)
class Overlap:
    """Windows in frames of 20 ms.

    Parameters
    ----------
    left, core, right : int
        Frames before those that are kept, kept, and after them.

    Example
    -------
    >>> Overlap(25, 50, 25).cost
    2.0
    """

    left: int
    core: int
    right: int

    def __post_init__(self) -> None:
        if self.core < 1 or self.left < 0 or self.right < 0:
            raise ValueError(f"{self}: expected core >= 1, left >= 0 and right >= 0.")

    @property
    def cost(self) -> float:
        """How often every frame is computed."""
        return (self.left + self.core + self.right) / self.core


OVERLAPS = {
    "half": Overlap(25, 50, 25),  # 50 % overlap, a quarter is cut off at each side
    "accurate": Overlap(200, 32, 16),
    "fast": Overlap(100, 16, 16),
}


class OverlapEncoder(LiveEncoder):
    """Any model, in overlapping windows.

    Parameters
    ----------
    compute : callable
        List of waveforms (samples,) -> list of logits (frames, vocab) on the CPU.
    overlap : Overlap
        The windows.
    """

    def __init__(self, compute: Callable[[list[Tensor]], list[Tensor]], overlap: Overlap) -> None:
        self.compute, self.overlap = compute, overlap
        self.wav = torch.zeros(0)
        self.begin = 0  # frame at which `wav` begins
        self.done = 0  # frames that were given out

    @property
    def latency_ms(self) -> float:
        return 20 * (self.overlap.core + self.overlap.right) + TAIL_MS

    @property
    def nbytes(self) -> int:
        return self.wav.untyped_storage().nbytes()

    @staticmethod
    def run(  # type: ignore[override]
        encoders: Sequence[OverlapEncoder], wavs: Sequence[Tensor], last: bool
    ) -> list[Tensor]:
        first = encoders[0]
        if any(encoder.compute != first.compute for encoder in encoders):
            raise ValueError("Sessions that are fed together need one model.")
        for encoder, wav in zip(encoders, wavs, strict=True):
            encoder.wav = torch.cat([encoder.wav, wav])
        found: dict[int, list[Tensor]] = {id(encoder): [] for encoder in encoders}
        while ready := [encoder for encoder in encoders if encoder.is_ready(last)]:
            windows = [encoder.window(last) for encoder in ready]
            for encoder, logits in zip(ready, first.compute(windows), strict=True):
                found[id(encoder)].append(encoder.keep(logits))
        for encoder in encoders:
            if found[id(encoder)]:
                encoder.wav = encoder.wav.clone()  # without the memory of what is forgotten
        nothing = torch.zeros(0, 1)
        return [torch.cat(parts) if (parts := found[id(e)]) else nothing for e in encoders]

    @property
    def known(self) -> int:
        """Frames up to the last sample that was heard."""
        return self.begin + frame_lengths(len(self.wav))

    def is_ready(self, last: bool) -> bool:
        """Whether there is enough audio for the next window."""
        missing = 1 if last else self.overlap.core + self.overlap.right
        return self.known >= self.done + missing

    def window(self, last: bool) -> Tensor:
        """Samples of the next window; at the end of the stream, all that is left."""
        end = self.done + self.overlap.core + self.overlap.right - self.begin
        if last and self.begin + end >= self.known:
            return self.wav
        return self.wav[: (end - 1) * HOP + RECEPTIVE_FIELD]

    def keep(self, logits: Tensor) -> Tensor:
        """Those of the core, and forget what no later window hears."""
        start = self.done - self.begin
        core = logits[start : start + self.overlap.core]
        self.done += len(core)
        begin = max(self.done - self.overlap.left, 0)
        self.wav = self.wav[(begin - self.begin) * HOP :]
        self.begin = begin
        return core

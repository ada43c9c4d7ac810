"""One speaker, one session: packets of audio in, what was said out.

    feed(packet) ─ Resampler ─► 16 kHz ─ encoder ─► logits ─ decoder, endpointer ─► [LiveTranscript]

The encoder works on whole chunks (`ChunkEncoder`, for models that stream) or overlapping windows
(`OverlapEncoder`, for all others). Many sessions of one model can be fed together: those that have
a chunk ready go through the model as one batch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from w2v_plugin.audio import Resampler
from w2v_plugin.endpoint import Endpointer, EndpointRules
from w2v_plugin.errors import BadAudio
from w2v_plugin.frames import HOP, SAMPLE_RATE
from w2v_plugin.live import BeamDecoder, GreedyDecoder, LiveTranscript
from w2v_plugin.live_encoders import LiveEncoder
from w2v_plugin.transcripts import Transcript

VAD: TypeAlias = Callable[[Tensor], bool]  # (samples,) at 16 kHz -> whether somebody speaks
Packet: TypeAlias = Tensor | np.ndarray | bytes


class Session:
    """Speech to text while it is spoken. Made by `Wav2Vec2StreamingASR.stream`.

    Not to be shared between threads; one model serves any number of sessions.

    Parameters
    ----------
    encoder : LiveEncoder
        Audio to logits.
    decoder : GreedyDecoder or BeamDecoder
        Logits to text.
    rules : EndpointRules or None
        When an utterance is over; None: only at `finish`.
    vad : callable, optional
        Waveform (samples,) at 16 kHz -> bool, whether it holds speech. Where it does, there is no
        silence for `rules`.
    """

    def __init__(
        self,
        encoder: LiveEncoder,
        decoder: GreedyDecoder | BeamDecoder,
        rules: EndpointRules | None,
        vad: VAD | None = None,
    ) -> None:
        self.encoder, self.decoder, self.vad = encoder, decoder, vad
        self.endpointer = None if rules is None else Endpointer(rules)
        self.segment, self.frames = 0, 0
        self.finished = False
        self._resampler: Resampler | None = None
        self._shown = ("", "")
        self._unheard: list[Tensor] = []  # by the VAD
        labels = decoder.vocabulary.lab2ind
        self._characters = {labels[letter] for letter in decoder.vocabulary.letters}
        self._lock = threading.Lock()

    def feed(self, packet: Packet, sample_rate: int = SAMPLE_RATE) -> list[LiveTranscript]:
        """The next samples, any number of them.

        Parameters
        ----------
        packet : Tensor, ndarray or bytes
            (samples,) floats about in [-1, 1], or 16-bit integers; bytes are 16-bit PCM, little
            endian, mono.
        sample_rate : int
            Always the same one.

        Returns
        -------
        list of LiveTranscript
            Utterances that ended, and what is new in the one that goes on; often nothing.

        Raises
        ------
        BadAudio
            NaN, more than one channel, another rate than before, 8-bit integers: nothing of the
            packet was heard.
        RuntimeError
            The session is finished, or in use by another thread.
        """
        return feed([self], [packet], sample_rate)[0]

    def finish(self) -> list[LiveTranscript]:
        """The stream ends: what is left of the last utterance."""
        rate = SAMPLE_RATE if self._resampler is None else self._resampler.rate
        return feed([self], [np.zeros(0, np.float32)], rate, last=True)[0]

    @property
    def audio_s(self) -> float:
        """Seconds of audio that the text is based on so far."""
        return self.frames * HOP / SAMPLE_RATE

    # --- what `feed` does with it --------------------------------------------------------------

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(
                "Two threads feed one session. Use a session per speaker; they share the model."
            )
        try:
            if self.finished:
                raise RuntimeError("This session is finished. Make a new one: asr.stream(...).")
            yield
        finally:
            self._lock.release()

    def _check_rate(self, rate: int) -> None:
        if self._resampler is None:
            self._resampler = Resampler(rate)
        if rate != self._resampler.rate:
            raise BadAudio(
                f"sample_rate={rate}, but {self._resampler.rate} before. Make a new session."
            )

    def _resample(self, wav: Tensor, last: bool) -> Tensor:
        assert self._resampler is not None  # by `_check_rate`
        wav = self._resampler.feed(wav)
        wav = torch.cat([wav, self._resampler.finish()]) if last else wav
        if self.vad is not None:
            self._unheard.append(wav)
        return wav

    def _read(self, logits: Tensor, ms: float, last: bool) -> list[LiveTranscript]:
        """Decode new frames (frames, vocab)."""
        events, begin = [], 0
        for end in self._endpoints(logits):
            self.decoder.read(logits[begin:end])
            self.frames += end - begin
            events += self._end_segment(ms)
            begin = end
        if begin < len(logits):
            self.decoder.read(logits[begin:])
            self.frames += len(logits) - begin
        if last:
            self.finished = True
            return events + self._end_segment(ms)
        return events + self._news(ms) if len(logits) else events

    def _endpoints(self, logits: Tensor) -> list[int]:
        if self.endpointer is None or not len(logits):
            return []
        blanks = logits.softmax(-1)[:, self.decoder.vocabulary.get_blank_index()]
        said = [token in self._characters for token in logits.argmax(-1).tolist()]
        heard = torch.cat([torch.zeros(0), *self._unheard])  # may be nothing, where windows end
        self._unheard.clear()
        speech = self.vad is not None and len(heard) > 0 and bool(self.vad(heard))
        return self.endpointer.feed(blanks.tolist(), said, speech)

    def _end_segment(self, ms: float) -> list[LiveTranscript]:
        transcript = self.decoder.cut()
        self._shown = ("", "")
        if not transcript.text:
            return []
        event = self._event(transcript, len(transcript.words), ms, is_final=True)
        self.segment += 1
        return [event]

    def _news(self, ms: float) -> list[LiveTranscript]:
        event = self._event(*self.decoder.read_so_far(), ms)
        if (event.stable, event.tentative) == self._shown:
            return []
        self._shown = (event.stable, event.tentative)
        return [event]

    def _event(
        self, transcript: Transcript, stable: int, ms: float, is_final: bool = False
    ) -> LiveTranscript:
        values: dict[str, Any] = {f.name: getattr(transcript, f.name) for f in fields(Transcript)}
        words = [word.text for word in transcript.words]
        return LiveTranscript(
            **values,
            stable=" ".join(words[:stable]),
            tentative=" ".join(words[stable:]),
            segment=self.segment,
            is_final=is_final,
            audio_s=self.audio_s,
            compute_ms=ms,
        )


def feed(
    sessions: Sequence[Session],
    packets: Sequence[Packet],
    sample_rate: int = SAMPLE_RATE,
    *,
    last: bool = False,
) -> list[list[LiveTranscript]]:
    """Feed many sessions of one model at once, which takes less time than one by one.

    Parameters
    ----------
    sessions : sequence of Session
        Different ones, made by the same `Wav2Vec2StreamingASR.stream` call or calls alike.
    packets : sequence of Tensor, ndarray or bytes
        One for each, of any length, see `Session.feed`.
    sample_rate : int
        Of all packets.
    last : bool
        Whether all of the sessions end here.

    Returns
    -------
    list of list of LiveTranscript
        What `Session.feed` returns, for each.
    """
    with ExitStack() as stack:
        for session in sessions:
            stack.enter_context(session._in_use())
        start = time.perf_counter()
        wavs = [to_wav(packet) for packet in packets]
        for session in sessions:
            session._check_rate(sample_rate)  # all of them, before anything is heard
        wavs = [s._resample(wav, last) for s, wav in zip(sessions, wavs, strict=True)]
        encoders = [session.encoder for session in sessions]
        logits = type(encoders[0]).run(encoders, wavs, last)
        ms = 1000 * (time.perf_counter() - start)
        return [s._read(frames, ms, last) for s, frames in zip(sessions, logits, strict=True)]


def to_wav(packet: Packet) -> Tensor:
    """Samples of any kind -> (samples,) float32, or `BadAudio`.

    Example
    -------
    >>> to_wav(np.array([0, 16384], np.int16)).tolist(), to_wav(b"\\0\\x40").tolist()
    ([0.0, 0.5], [0.5])
    """
    if isinstance(packet, bytes):
        if len(packet) % 2:
            raise BadAudio(f"{len(packet)} bytes are no whole number of 16-bit samples.")
        packet = np.frombuffer(packet, "<i2")
    wav = torch.from_numpy(packet.copy()) if isinstance(packet, np.ndarray) else packet
    if wav.dim() != 1 or not (wav.is_floating_point() or wav.dtype == torch.int16):
        raise BadAudio(
            f"packet: got {wav.dtype} {tuple(wav.shape)}, expected (samples,) floats about in "
            "[-1, 1] or 16-bit integers. Average the channels first."
        )
    wav = wav.to("cpu", torch.float32) / 32768 if wav.dtype == torch.int16 else wav.float().cpu()
    if not bool(wav.isfinite().all()):
        raise BadAudio("packet: holds NaN or infinite samples. It was not heard.")
    return wav

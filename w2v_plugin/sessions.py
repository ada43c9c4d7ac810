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

import torch
from torch import Tensor

from w2v_plugin.audio import Resampler
from w2v_plugin.endpoint import Endpointer, EndpointRules
from w2v_plugin.errors import BadAudio
from w2v_plugin.frames import HOP, SAMPLE_RATE
from w2v_plugin.live import BeamDecoder, GreedyDecoder, LiveTranscript
from w2v_plugin.live_encoders import LiveEncoder
from w2v_plugin.packets import Packet, check_rate, to_wav
from w2v_plugin.text import WORD_BOUNDARY, CharVocabulary
from w2v_plugin.transcripts import Transcript

VAD: TypeAlias = Callable[[Tensor], float]  # (samples,) at 16 kHz -> probability of speech
VAD_FRAMES = 16  # at most at once: 320 ms, of which usual chunks are a multiple


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
        When an utterance is over; None: only at `finish`, and all of it is remembered until then.
    vad : callable, optional
        Waveform (samples,) at 16 kHz -> probability of speech, or a bool. Hears what the new frames
        stand for, 320 ms at most at a time. Where it hears speech, `rules` hear no silence.
    spoken : callable, optional
        What the model speaks now, a vocabulary: once it is not the decoder's, nothing can be read.
    """

    def __init__(
        self,
        encoder: LiveEncoder,
        decoder: GreedyDecoder | BeamDecoder,
        rules: EndpointRules | None,
        vad: VAD | None = None,
        spoken: Callable[[], CharVocabulary] | None = None,
    ) -> None:
        self.encoder, self.decoder, self.vad, self._spoken = encoder, decoder, vad, spoken
        self.endpointer = None if rules is None else Endpointer(rules)
        self.segment, self.frames = 0, 0
        self.finished = False
        self._resampler: Resampler | None = None
        self._shown = ("", "")
        self._unheard = torch.zeros(0)  # by the VAD
        labels = decoder.vocabulary.lab2ind
        self._characters = torch.tensor([labels[letter] for letter in decoder.vocabulary.letters])
        self._boundary = labels.get(WORD_BOUNDARY)
        self._lock = threading.Lock()

    def feed(self, packet: Packet, sample_rate: int = SAMPLE_RATE) -> list[LiveTranscript]:
        """The next samples, any number of them.

        Parameters
        ----------
        packet : Tensor, ndarray, bytes, bytearray or memoryview
            (samples,) floats about in [-1, 1], or 16-bit integers; bytes are 16-bit PCM, little
            endian, mono.
        sample_rate : int
            In Hz; always the same one.

        Returns
        -------
        list of LiveTranscript
            Utterances that ended, and what is new in the one that goes on; often nothing.

        Raises
        ------
        BadAudio
            NaN, more than one channel, another rate than before, 8-bit integers.
        RuntimeError
            The session is finished, or in use by another thread, or the model was set to another
            language.

        After these errors, and those of the model and of `vad`, the session is as it was before:
        nothing of the packet was heard.
        """
        return feed([self], [packet], sample_rate)[0]

    def finish(self) -> list[LiveTranscript]:
        """The stream ends: what is left of the last utterance."""
        rate = SAMPLE_RATE if self._resampler is None else self._resampler.rate
        return feed([self], [torch.zeros(0)], rate, last=True)[0]

    @property
    def audio_s(self) -> float:
        """Seconds of audio that the text is based on so far."""
        return self.frames * HOP / SAMPLE_RATE

    def check_language(self) -> None:
        """RuntimeError if the model was set to a language since the session began."""
        if self._spoken is not None and self._spoken() is not self.decoder.vocabulary:
            raise RuntimeError(
                "The model was set to another language since this session began. Make a new one: "
                "asr.stream(...)."
            )

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
            self.check_language()
            yield
        finally:
            self._lock.release()

    def _resample(self, wav: Tensor, rate: int, last: bool) -> Tensor:
        if self._resampler is None:
            self._resampler = Resampler(check_rate(rate))
        if rate != self._resampler.rate:
            raise BadAudio(
                f"sample_rate={rate}, but {self._resampler.rate} before. Make a new session."
            )
        wav = self._resampler.feed(wav)
        wav = torch.cat([wav, self._resampler.finish()]) if last else wav
        if self.vad is not None and self.endpointer is not None:
            self._unheard = torch.cat([self._unheard, wav])
        return wav

    def _endpoints(self, logits: Tensor) -> list[int]:
        """Frames, counted within new ones (frames, vocab), at which utterances end."""
        ends: list[int] = []
        if self.endpointer is None or not len(logits):
            return ends
        tokens = logits.argmax(-1)
        said = torch.isin(tokens, self._characters)
        gaps = ~said if self._boundary is None else tokens == self._boundary
        quiet = 1 - logits.softmax(-1)[:, self._characters].sum(-1)
        for begin in range(0, len(logits), VAD_FRAMES):
            q, s, g = (
                values[begin : begin + VAD_FRAMES].tolist() for values in (quiet, said, gaps)
            )
            found = self.endpointer.feed(q, s, g, speech=self._hear(len(q) * HOP))
            ends += [begin + end for end in found]
        self._unheard = self._unheard.clone()  # without the memory of what was heard
        return ends

    def _hear(self, samples: int) -> float:
        if self.vad is None:
            return 0.0
        heard, self._unheard = self._unheard[:samples], self._unheard[samples:]
        return float(self.vad(heard))

    def _read(
        self, logits: Tensor, ends: Sequence[int], start: float, last: bool
    ) -> list[LiveTranscript]:
        """Decode new frames (frames, vocab), in which utterances end."""
        events, begin = [], 0
        for end in ends:
            self._decode(logits[begin:end])
            events += self._end_segment(start)
            begin = end
        self._decode(logits[begin:])
        if last:
            self.finished = True
            return events + self._end_segment(start)
        return events + self._news(start) if len(logits) else events

    def _decode(self, logits: Tensor) -> None:
        if len(logits):
            self.decoder.read(logits)
            self.frames += len(logits)

    def _end_segment(self, start: float) -> list[LiveTranscript]:
        transcript = self.decoder.cut()
        shown, self._shown = self._shown, ("", "")
        if transcript.text:
            event = self._event(transcript, len(transcript.words), start, is_final=True)
            self.segment += 1
            return [event]
        return [self._event(transcript, 0, start)] if any(shown) else []  # it was nothing

    def _news(self, start: float) -> list[LiveTranscript]:
        event = self._event(*self.decoder.read_so_far(), start)
        if (event.stable, event.tentative) == self._shown:
            return []
        self._shown = (event.stable, event.tentative)
        return [event]

    def _event(
        self, transcript: Transcript, stable: int, start: float, is_final: bool = False
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
            compute_ms=1000 * (time.perf_counter() - start),
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
    packets : sequence
        One for each, of any kind and length that `Session.feed` takes.
    sample_rate : int
        Of all packets.
    last : bool
        Whether all of the sessions end here.

    Returns
    -------
    list of list of LiveTranscript
        What `Session.feed` returns, for each.
    """
    if len(packets) != len(sessions) or len({id(session) for session in sessions}) < len(sessions):
        raise ValueError(
            f"{len(packets)} packets for {len(sessions)} sessions: expected one each, and no "
            "session twice."
        )
    if len({type(session.encoder) for session in sessions}) > 1:
        raise ValueError(
            "Sessions that are fed together work in chunks, or all of them in windows."
        )
    if not sessions:
        return []
    with ExitStack() as stack:
        for session in sessions:
            stack.enter_context(session._in_use())
        start = time.perf_counter()
        with _all_or_nothing(sessions):
            wavs = [to_wav(packet) for packet in packets]
            pairs = zip(sessions, wavs, strict=True)
            wavs = [session._resample(wav, sample_rate, last) for session, wav in pairs]
            encoders = [session.encoder for session in sessions]
            found = type(encoders[0]).run(encoders, wavs, last)
            pairs = zip(sessions, found, strict=True)
            ends = [session._endpoints(logits) for session, logits in pairs]
        done = zip(sessions, found, ends, strict=True)
        return [session._read(logits, cuts, start, last) for session, logits, cuts in done]


@contextmanager
def _all_or_nothing(sessions: Sequence[Session]) -> Iterator[None]:
    """With an error in here, nobody has heard anything. States are replaced, never changed."""
    parts = [
        part
        for one in sessions
        for part in (one, one.encoder, one.endpointer, one._resampler)
        if part is not None
    ]
    before = [dict(vars(part)) for part in parts]
    try:
        yield
    except BaseException:
        for part, values in zip(parts, before, strict=True):
            vars(part).update(values)
        raise

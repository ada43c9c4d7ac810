"""How long a speaker waits for text, and what the words mean.

    algorithmic      from a sound to the end of what must be heard before its frame comes out: chunk
                     (or core and right context of a window) + 5 ms at worst, half a chunk less on
                     average. No computer makes it shorter
    compute          of a packet that completes a chunk, until its text is there
    RTF              time of computing / time of audio; above 1 a stream falls behind
    user-perceived   from the end of a word to the moment when it is shown: waiting for the rest of
                     the chunk, computing, and how late the model says it
    emission         from the end of a word to the frame that ends it in the model's output
    first text       from the beginning of the first word to the first text on the screen
    finalization     from the end of the last word to the final text: mostly the silence that
                     endpoint rules wait for; or, where the end of the audio is known, one last step
    unstable words   of those shown as stable, the share that changed; 0 for greedy decoding

Words begin and end where the model itself, hearing the whole utterance, aligns the true text. CTC
says a character at one moment inside its sound, so these times are early by some frames.

Playing needs no real time: packets come when their last sample was spoken, computing begins when
they have come and what was before is done, and takes as long as it took.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from torch import Tensor

from w2v_plugin.frames import SAMPLE_RATE
from w2v_plugin.live import LiveTranscript
from w2v_plugin.sessions import Session
from w2v_plugin.transcripts import Span


@dataclass
class Playback:
    """What a session did with an utterance, and when.

    Parameters
    ----------
    events : list of tuple
        Seconds at which it was shown, and what.
    compute_ms : list of float
        Of each packet that completed a chunk.
    audio_s, compute_s : float
        Spoken, and computed in all.
    state_bytes : int
        Most that the encoder's state held.
    """

    events: list[tuple[float, LiveTranscript]] = field(default_factory=list)
    compute_ms: list[float] = field(default_factory=list)
    audio_s: float = 0.0
    compute_s: float = 0.0
    state_bytes: int = 0

    @property
    def finals(self) -> list[LiveTranscript]:
        """Utterances, as they ended."""
        return [event for _, event in self.events if event.is_final]

    @property
    def words(self) -> list[Span]:
        """Of all utterances."""
        return [word for event in self.finals for word in event.words]


def play(session: Session, wav: Tensor, packet_ms: int = 100, *, finish: bool = True) -> Playback:
    """Let a session hear a waveform (samples,) at 16 kHz, in packets, on a clock of its own.

    Example
    -------
    >>> import torch
    >>> from w2v_plugin.live import GreedyDecoder
    >>> from w2v_plugin.live_encoders import Overlap, OverlapEncoder
    >>> from w2v_plugin.text import CharVocabulary
    >>> def compute(wavs):
    ...     return [9 * torch.eye(32)[[11, 10][:1] * (len(wav) // 320)] for wav in wavs]
    >>> encoder = OverlapEncoder(compute, Overlap(0, 10, 0))
    >>> done = play(Session(encoder, GreedyDecoder(CharVocabulary()), None), torch.zeros(6400))
    >>> done.audio_s, [event.text for event in done.finals]
    (0.4, ['H'])
    """
    done, free = Playback(), 0.0
    packets: Sequence[Tensor | None] = wav.split(SAMPLE_RATE * packet_ms // 1000)
    for packet in (*packets, None) if finish else packets:
        frames, start = session.frames, time.perf_counter()
        events = session.finish() if packet is None else session.feed(packet)
        passed = time.perf_counter() - start
        done.audio_s += 0.0 if packet is None else len(packet) / SAMPLE_RATE
        free = max(free, done.audio_s) + passed
        done.events += [(free, event) for event in events]
        done.compute_s += passed
        done.state_bytes = max(done.state_bytes, session.encoder.nbytes)
        if session.frames > frames:
            done.compute_ms.append(1000 * passed)
    return done


def shown_at(done: Playback) -> list[float]:
    """When each of `done.words` was on the screen, to stay."""
    times = []
    for final in done.finals:
        history = [(at, e.words) for at, e in done.events if e.segment == final.segment]
        for number, word in enumerate(final.words):
            since = None
            for at, words in history:
                there = len(words) > number and words[number].text == word.text
                since = (at if since is None else since) if there else None
            assert since is not None  # the final one has it
            times.append(since)
    return times


@dataclass(frozen=True)
class Delays:
    """Seconds; of words that were recognized, one each."""

    perceived: list[float]
    emission: list[float]
    first: float | None
    final: float | None


def delays(done: Playback, truth: Sequence[Span]) -> Delays:
    """Against the words that were said, with their times.

    Example
    -------
    >>> from w2v_plugin.live import LiveTranscript
    >>> heard = LiveTranscript("HI", words=(Span("HI", 0.0, 0.3, 1.0),), is_final=True)
    >>> found = delays(Playback(events=[(0.75, heard)]), [Span("HI", 0.0, 0.25, 1.0)])
    >>> found.perceived, round(found.emission[0], 2), found.final
    ([0.5], 0.05, 0.5)
    """
    words, shown = done.words, shown_at(done)
    matcher = SequenceMatcher(None, [w.text for w in words], [w.text for w in truth], False)
    pairs = [
        (block.a + i, block.b + i)
        for block in matcher.get_matching_blocks()
        for i in range(block.size)
    ]
    first = min((at for at, event in done.events if event.text), default=None)
    last = max((at for at, event in done.events if event.is_final), default=None)
    return Delays(
        [shown[mine] - truth[true].end for mine, true in pairs],
        [words[mine].end - truth[true].end for mine, true in pairs],
        first - truth[0].start if first is not None and truth else None,
        last - truth[-1].end if last is not None and truth else None,
    )


def unstable(done: Playback) -> tuple[int, int]:
    """Words that were shown as stable and changed, and words in all."""
    changed = 0
    for final in done.finals:
        words = [word.text for word in final.words]
        wrong = set()
        for _, event in done.events:
            if event.segment == final.segment:
                stable = event.stable.split()
                wrong |= {i for i, word in enumerate(stable) if words[i : i + 1] != [word]}
        changed += len(wrong)
    return changed, len(done.words)

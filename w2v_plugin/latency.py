"""How long a speaker waits for text, and what the words mean.

    algorithmic      from a sound to the end of what must be heard before its frame comes out: chunk
                     (or core and right context of a window) + 5 ms at worst, half a chunk less on
                     average. No computer makes it shorter
    compute          of a packet that completes a chunk, until its text is there
    RTF              time of computing / time of audio; above 1 a stream falls behind
    user-perceived   from the end of a word to the moment from which on it is shown: waiting for the
                     packet and for the rest of the chunk, computing, what is still being computed
                     when the packet comes, and how late the model says it
    emission         from the end of a word to the frame that ends it in the model's output
    first text       from the beginning of the first word to the first text on the screen
    finalization     from the end of the last word to the final text: mostly the silence that
                     endpoint rules wait for; or, where the end of the audio is known, what is left
                     of it and one last step
    unstable words   words of a text that was shown in whose place the next one has another word or
                     none, per word of the final texts: the unstable partial word ratio (UPWR) of
                     Shangguan et al., *Analyzing the Quality and Stability of a Streaming
                     End-to-End On-Device Speech Recognizer*, 2020. A last word that was shown in
                     part and only grew is counted apart; without it greedy decoding has 0

All but the last two rows are taken while the stream goes on: who knows the end of the audio need
not wait for the last chunk to fill. Only words that were recognized have a delay, which are those
that an alignment by edit distance calls equal; how many they are is counted, and so are the
utterances whose end the rules found.

Words begin and end where the model itself, hearing the whole utterance, aligns the true text. CTC
says a character at one moment inside its sound, so words begin too late and end too early, by a
frame or two. So the first text takes a little longer than measured, and words a little less.

Playing needs no real time: packets come when their last sample was spoken, computing begins when
they have come and what was before is done, and takes as long as it took.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import jiwer
import numpy as np
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
    def segments(self) -> list[list[tuple[float, LiveTranscript]]]:
        """Events of each utterance, also of one that did not end."""
        numbers = dict.fromkeys(event.segment for _, event in self.events)
        return [[shown for shown in self.events if shown[1].segment == n] for n in numbers]

    @property
    def words(self) -> list[Span]:
        """Of all utterances, as they were shown last."""
        return [word for segment in self.segments for word in segment[-1][1].words]


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
    for segment in done.segments:
        for number, word in enumerate(segment[-1][1].words):
            since = None
            for at, event in segment:
                there = len(event.words) > number and event.words[number].text == word.text
                since = (at if since is None else since) if there else None
            assert since is not None  # the last one has it
            times.append(since)
    return times


@dataclass(frozen=True)
class Delays:
    """Seconds.

    Parameters
    ----------
    perceived, emission : list of float
        Of words that were recognized, one each.
    first : float or None
        None where nothing was shown or said.
    final : float or None
        None, too, where the utterance did not end.
    """

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
    texts = [(at, event) for at, event in done.events if event.text]
    if not texts or not truth:
        return Delays([], [], None, None)
    words, shown = done.words, shown_at(done)
    pairs = recognized([word.text for word in words], [word.text for word in truth])
    (first, _), (last, event) = texts[0], texts[-1]
    return Delays(
        [shown[mine] - truth[true].end for mine, true in pairs],
        [words[mine].end - truth[true].end for mine, true in pairs],
        first - truth[0].start,
        last - truth[-1].end if event.is_final else None,
    )


def recognized(words: Sequence[str], truth: Sequence[str]) -> list[tuple[int, int]]:
    """Which word is which one of the truth, in an alignment with the fewest errors.

    Example
    -------
    >>> recognized(["IN", "A", "TO"], ["TO", "ME", "TO"])  # not the first one
    [(2, 2)]
    """
    (chunks,) = jiwer.process_words(" ".join(truth), " ".join(words)).alignments
    return [
        (chunk.hyp_start_idx + i, chunk.ref_start_idx + i)
        for chunk in chunks
        if chunk.type == "equal"
        for i in range(chunk.ref_end_idx - chunk.ref_start_idx)
    ]


@dataclass(frozen=True)
class Changes:
    """Words that were shown and changed, last words that grew, and words in the end."""

    unstable: int
    grown: int
    words: int


def changes(done: Playback) -> Changes:
    """What a reader saw change.

    Example
    -------
    >>> from w2v_plugin.live import LiveTranscript
    >>> texts = ["A WO", "A WORD", "THE WORD"]
    >>> done = Playback(events=[(0.1, LiveTranscript(text)) for text in texts])
    >>> changes(done).unstable, changes(done).grown
    (1, 1)
    """
    unstable = grown = 0
    for segment in done.segments:
        texts = [event.text.split() for _, event in segment]
        for before, after in pairwise(texts):
            for place, word in enumerate(before):
                now = after[place] if place < len(after) else ""
                if now != word and now.startswith(word) and place == len(before) - 1:
                    grown += 1
                elif now != word:
                    unstable += 1
    return Changes(unstable, grown, len(done.words))


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """50, 95 and 99 %, and of how many; None of nothing.

    Example
    -------
    >>> percentiles([1.0, 2.0, 3.0])["p50"]
    2.0
    """
    if not len(values):
        return None
    found = {f"p{p}": round(float(np.percentile(values, p)), 1) for p in (50, 95, 99)}
    return {**found, "n": len(values)}


def summary(
    ongoing: Sequence[Playback], ended: Sequence[Playback], truths: Sequence[Sequence[Span]]
) -> dict[str, Any]:
    """All that a speaker waits for, in milliseconds, over utterances.

    Parameters
    ----------
    ongoing : sequence of Playback
        Of each utterance with silence after it, not finished, with endpoint rules.
    ended : sequence of Playback
        Of each utterance, finished, without rules.
    truths : sequence of sequence of Span
        Its words, or nothing where their times are not known.

    Example
    -------
    >>> from w2v_plugin.live import LiveTranscript
    >>> heard = LiveTranscript("HI", words=(Span("HI", 0.0, 0.3, 1.0),), is_final=True)
    >>> done = Playback(events=[(0.75, heard)], compute_ms=[50.0], audio_s=0.7, compute_s=0.05)
    >>> found = summary([done], [done], [[Span("HI", 0.0, 0.25, 1.0)]])
    >>> found["perceived_ms"]["p50"], found["words"], found["unstable_words"]
    (500.0, {'said': 1, 'timed': 1}, 0.0)
    """
    waited = [delays(done, truth) for done, truth in zip(ongoing, truths, strict=True)]
    flushed = [delays(done, truth) for done, truth in zip(ended, truths, strict=True)]
    changed = [changes(done) for done in ongoing]
    words = max(sum(c.words for c in changed), 1)

    def ms(seconds: Sequence[float | None]) -> dict[str, float] | None:
        return percentiles([1000 * s for s in seconds if s is not None])

    return {
        "compute_ms": percentiles([took for done in ongoing for took in done.compute_ms]),
        "rtf": round(sum(d.compute_s for d in ongoing) / sum(d.audio_s for d in ongoing), 4),
        "perceived_ms": ms([s for w in waited for s in w.perceived]),
        "emission_ms": ms([s for w in waited for s in w.emission]),
        "first_text_ms": ms([w.first for w in waited]),
        "final_ms": ms([w.final for w in waited]),
        "final_known_end_ms": ms([f.final for f in flushed]),
        "words": {"said": sum(map(len, truths)), "timed": sum(len(w.perceived) for w in waited)},
        "ends": {
            "said": sum(w.first is not None for w in waited),
            "found": sum(w.final is not None for w in waited),
        },
        "unstable_words": round(sum(c.unstable for c in changed) / words, 4),
        "grown_words": round(sum(c.grown for c in changed) / words, 4),
        "state_mib": round(max(done.state_bytes for done in ongoing) / 2**20, 3),
    }

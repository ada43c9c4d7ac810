"""What a speaker waits for: on a clock where everything is known."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from w2v_plugin import latency
from w2v_plugin.endpoint import EndpointRules
from w2v_plugin.latency import Playback, delays, play, shown_at, unstable
from w2v_plugin.live import GreedyDecoder, LiveTranscript
from w2v_plugin.live_encoders import LiveEncoder
from w2v_plugin.sessions import Session
from w2v_plugin.text import CharVocabulary
from w2v_plugin.transcripts import Span

LETTERS = CharVocabulary()


class Clock:
    """Instead of `time.perf_counter`: computing takes what the test says."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Script(LiveEncoder):
    """Chunks of 10 frames that are known already; each takes `took` seconds."""

    latency_ms, nbytes = 205.0, 7

    def __init__(self, frames: str, clock: Clock, took: float) -> None:
        symbols = [LETTERS.lab2ind[{".": "<pad>", " ": "|"}.get(x, x)] for x in frames]
        self.logits, self.heard = 20 * torch.eye(32)[symbols], 0
        self.clock, self.took = clock, took

    @staticmethod
    def run(encoders, wavs, last) -> list[Tensor]:
        (one,), (wav,) = encoders, wavs
        one.heard += len(wav)
        chunks = one.heard // 3200
        one.heard -= 3200 * chunks
        frames = len(one.logits) if last else 10 * chunks
        part, one.logits = one.logits[:frames], one.logits[frames:]
        one.clock.now += one.took * -(-len(part) // 10)
        return [part]


def played(
    monkeypatch: pytest.MonkeyPatch, frames: str, took: float, rules: EndpointRules | None = None
) -> Playback:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    one = Session(Script(frames, clock, took), GreedyDecoder(LETTERS), rules)
    return play(one, torch.zeros(320 * len(frames)))


def test_text_is_there_when_its_chunk_was_heard_and_computed(monkeypatch) -> None:
    """Packets of 100 ms, chunks of 200 ms, 50 ms each."""
    done = played(monkeypatch, "..HI.." + "." * 14 + "YO" + "." * 8, 0.05)
    shown = [(round(at, 6), event.text, event.is_final) for at, event in done.events]
    assert shown == [(0.25, "HI", False), (0.65, "HIYO", False), (0.65, "HIYO", True)]
    assert done.audio_s == pytest.approx(0.6) and done.compute_s == pytest.approx(0.15)
    assert done.compute_ms == pytest.approx([50, 50, 50]) and done.state_bytes == 7


def test_whoever_is_too_slow_falls_behind(monkeypatch) -> None:
    """300 ms for each chunk of 200 ms: chunk n is done at 0.2 + 0.3 n."""
    done = played(monkeypatch, "H" + "." * 9 + "I" + "." * 9 + "A" + "." * 9, 0.3)
    times = [at for at, event in done.events if not event.is_final]
    assert times == pytest.approx([0.5, 0.8, 1.1])


def heard(text: str, stable: int = 0, final: bool = False, segment: int = 0) -> LiveTranscript:
    words = text.split()
    spans = tuple(Span(word, 0.1 * i, 0.1 * i + 0.1, 1.0) for i, word in enumerate(words))
    stable = len(words) if final else stable
    return LiveTranscript(
        text,
        spans,
        stable=" ".join(words[:stable]),
        tentative=" ".join(words[stable:]),
        segment=segment,
        is_final=final,
    )


def test_a_word_counts_when_it_is_there_to_stay() -> None:
    """Not when it is half there, nor when it went away again."""
    done = Playback(
        events=[
            (1.0, heard("A WOR")),
            (2.0, heard("A WORD")),
            (3.0, heard("THE WORD")),
            (4.0, heard("A WORD", final=True)),
            (5.0, heard("B", segment=1)),
            (6.0, heard("B", segment=1, final=True)),
        ]
    )
    assert shown_at(done) == [4.0, 2.0, 5.0]


def truth(text: str) -> Sequence[Span]:
    return [Span(word, i, i + 0.5, 1.0) for i, word in enumerate(text.split())]


def test_delays_are_those_of_words_that_were_understood() -> None:
    """Of "one two three", "two" was missed and "too" means nothing."""
    done = Playback(events=[(2.0, heard("ONE TOO")), (4.0, heard("ONE TOO THREE", final=True))])
    found = delays(done, truth("ONE TWO THREE"))
    assert found.perceived == pytest.approx([2.0 - 0.5, 4.0 - 2.5])
    assert found.emission == pytest.approx([0.1 - 0.5, 0.3 - 2.5])
    assert (found.first, found.final) == (2.0, 1.5)


def test_nothing_was_heard_or_said() -> None:
    assert delays(Playback(), truth("A")) == latency.Delays([], [], None, None)
    found = delays(Playback(events=[(1.0, heard("A", final=True))]), [])
    assert found == latency.Delays([], [], None, None)


def test_words_that_changed_although_they_were_stable() -> None:
    events = [
        (1.0, heard("A B", stable=1)),
        (2.0, heard("C B", stable=2)),
        (3.0, heard("C B D", final=True)),
    ]
    assert unstable(Playback(events=events)) == (1, 3)


def test_endpoint_rules_make_the_final_text_wait(monkeypatch) -> None:
    """A second of silence, to the end of the chunk in which it is over."""
    frames = "HI" + "." * 98
    known = played(monkeypatch, frames, 0.0)
    waited = played(monkeypatch, frames, 0.0, EndpointRules())
    assert [at for at, e in known.events if e.is_final] == pytest.approx([2.0])
    assert [at for at, e in waited.events if e.is_final] == pytest.approx([1.2])

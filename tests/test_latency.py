"""What a speaker waits for: on a clock where everything is known."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from w2v_plugin import latency
from w2v_plugin.attention import ChunkConfig
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.endpoint import EndpointRules
from w2v_plugin.latency import Changes, Playback, changes, delays, play, shown_at, summary
from w2v_plugin.live import GreedyDecoder, LiveTranscript
from w2v_plugin.live_encoders import ChunkEncoder, LiveEncoder
from w2v_plugin.model import Wav2Vec2
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
    monkeypatch: pytest.MonkeyPatch,
    frames: str,
    took: float,
    rules: EndpointRules | None = None,
    finish: bool = True,
) -> Playback:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    one = Session(Script(frames, clock, took), GreedyDecoder(LETTERS), rules)
    return play(one, torch.zeros(320 * len(frames)), finish=finish)


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


def test_a_word_is_timed_by_its_own_place() -> None:
    """Only the last word of four was understood; it also was the first one that was said."""
    done = Playback(events=[(5.0, heard("SO WE SEE ONE", final=True))])
    found = delays(done, truth("ONE TWO THREE ONE"))
    assert found.perceived == pytest.approx([5.0 - 3.5])


def test_an_utterance_that_goes_on_has_no_final_text() -> None:
    """Its words are timed all the same, also after an end that came too early."""
    events = [(1.0, heard("ONE", final=True)), (3.0, heard("TWO", segment=1))]
    found = delays(Playback(events=events), truth("ONE TWO"))
    assert found.perceived == pytest.approx([1.0 - 0.5, 3.0 - 1.5]) and found.final is None


def test_what_a_reader_sees_change() -> None:
    """A became C, D went away, B went and came; the last word grew once, which is no change."""
    texts = ["A", "A B", "C BEE", "C BEE D", "C", "C BEE"]
    events = [(float(at), heard(text)) for at, text in enumerate(texts)]
    events += [(9.0, heard("C BEE", final=True)), (10.0, heard("E", segment=1))]
    assert changes(Playback(events=events)) == Changes(unstable=3, grown=1, words=3)


def test_a_word_in_the_middle_does_not_grow() -> None:
    done = Playback(events=[(1.0, heard("A B")), (2.0, heard("AN B"))])
    assert changes(done) == Changes(unstable=1, grown=0, words=2)


def test_summary_by_hand(monkeypatch) -> None:
    """Chunks of 200 ms, 50 ms each, packets of 100 ms; "HI" ends at 0.08 s, "YO" at 0.64 s.

    While it goes on, YO waits for the chunk that ends at 0.8 s. The second utterance was not
    understood, and has no end.
    """
    rules, frames = EndpointRules(), "..HI" + "." * 24 + " .YO" + "." * 3
    ongoing = [played(monkeypatch, frames + "." * 85, 0.05, rules, finish=False)]
    ended = [played(monkeypatch, frames, 0.05)]
    ongoing.append(played(monkeypatch, "A" * 20, 0.05, rules, finish=False))
    ended.append(played(monkeypatch, "A" * 20, 0.05))
    words = [Span("HI", 0.04, 0.08, 1.0), Span("YO", 0.6, 0.64, 1.0)]
    found = summary(ongoing, ended, [words, [Span("B", 0.1, 0.3, 1.0)]])
    waited = [250 - 80, 850 - 640]
    assert found["perceived_ms"] == {"p50": 190.0, "p95": 208.0, "p99": 209.6, "n": len(waited)}
    assert found["perceived_ms"]["p50"] == sum(waited) / 2
    assert found["first_text_ms"]["n"] == 2 and found["emission_ms"]["p99"] == 0.0
    assert found["final_known_end_ms"]["n"] == 2
    assert found["final_ms"] == {"p50": 1210.0, "p95": 1210.0, "p99": 1210.0, "n": 1}
    assert found["words"] == {"said": 3, "timed": 2} and found["ends"] == {"said": 2, "found": 1}
    assert found["compute_ms"] == {"p50": 50.0, "p95": 50.0, "p99": 50.0, "n": 14}


def test_nothing_known_is_no_figure(monkeypatch) -> None:
    done = [played(monkeypatch, "." * 20, 0.05)]
    found = summary(done, done, [[]])
    assert found["perceived_ms"] is None and found["final_ms"] is None
    assert found["unstable_words"] == 0.0 and found["rtf"] == pytest.approx(0.25)


def test_endpoint_rules_make_the_final_text_wait(monkeypatch) -> None:
    """A second of silence, to the end of the chunk in which it is over."""
    frames = "HI" + "." * 98
    known = played(monkeypatch, frames, 0.0)
    waited = played(monkeypatch, frames, 0.0, EndpointRules())
    assert [at for at, e in known.events if e.is_final] == pytest.approx([2.0])
    assert [at for at, e in waited.events if e.is_final] == pytest.approx([1.2])


@pytest.mark.slow  # a minute of audio through a real model, on a real clock
def test_figures_of_a_real_stream_agree() -> None:
    """No speed is asked for: whatever it is, the figures must fit each other and the clock."""
    torch.manual_seed(0)
    shape = {"dim": 64, "layers": 2, "heads": 2, "ffn_dim": 128, "channels": (32,) * 7}
    body = Wav2Vec2(**shape, extractor_norm="layer", normalize=False)
    model = Wav2Vec2CTC(body, vocab_size=len(LETTERS)).eval()
    torch.nn.init.normal_(model.head.weight)
    session = Session(ChunkEncoder(model, ChunkConfig(16, 256)), GreedyDecoder(LETTERS), None)
    start = time.perf_counter()
    done = play(session, 0.1 * torch.randn(60 * 16_000))
    passed = time.perf_counter() - start
    chunks = 2999 // 16 + 1  # the last one is short
    assert len(done.compute_ms) == chunks and min(done.compute_ms) > 0
    assert sum(done.compute_ms) / 1000 <= done.compute_s <= passed
    assert done.audio_s == pytest.approx(60) and done.events and done.events[-1][1].is_final
    times = [at for at, _ in done.events]
    assert times == sorted(times) and times[-1] <= done.audio_s + done.compute_s
    for at, event in done.events[:-1]:  # nothing is shown before its chunk was heard
        assert at > event.audio_s + 0.005
    heard = delays(done, done.words)  # against itself: only waiting and computing are left
    assert len(heard.perceived) == len(done.words) and set(heard.emission) == {0.0}
    assert min(heard.perceived) > 0

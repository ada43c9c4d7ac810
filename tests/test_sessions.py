"""Sessions: what goes in, what comes out, and who may be in there at the same time."""

from __future__ import annotations

import threading
from itertools import pairwise
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.beam import BeamSearch
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.decoding import greedy_transcripts
from w2v_plugin.endpoint import EndpointRules
from w2v_plugin.errors import BadAudio
from w2v_plugin.live import BeamDecoder, GreedyDecoder, LiveTranscript
from w2v_plugin.live_encoders import ChunkEncoder, LiveEncoder, Overlap, OverlapEncoder
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.sessions import Session, feed
from w2v_plugin.text import CharVocabulary

CHUNK = ChunkConfig(16, 32)


def make() -> Wav2Vec2CTC:
    """Random, and talkative: it says something in most frames."""
    torch.manual_seed(0)
    shape = {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    shape |= {"positions_kernel": 8, "positions_groups": 4}
    body = Wav2Vec2(**shape, extractor_norm="layer", normalize=False)
    model = Wav2Vec2CTC(body, vocab_size=32).eval()
    torch.nn.init.normal_(model.head.weight)
    return model


MODEL, LETTERS = make(), CharVocabulary()


def session(rules: EndpointRules | None = None, **options) -> Session:
    return Session(ChunkEncoder(MODEL, CHUNK), GreedyDecoder(LETTERS), rules, **options)


def noise(samples: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, generator=generator) * 0.1


class Script(LiveEncoder):
    """An encoder that has its logits already: each packet takes as many as it has samples."""

    def __init__(self, frames: str) -> None:
        symbols = [LETTERS.lab2ind[{".": "<pad>", " ": "|"}.get(x, x)] for x in frames]
        self.logits = 20 * torch.eye(32)[symbols]

    latency_ms = 0.0
    nbytes = 0

    @staticmethod
    def run(encoders, wavs, last) -> list[Tensor]:
        parts = []
        for encoder, wav in zip(encoders, wavs, strict=True):
            parts.append(encoder.logits[: len(wav)])
            encoder.logits = encoder.logits[len(wav) :]
        return parts


def script(frames: str, *packets: int, beam: bool = False, **options) -> list[LiveTranscript]:
    """Events of a session that hears `frames`, packet by packet."""
    rules = EndpointRules(nothing_s=0.5, after_word_s=0.2, longest_s=1.0, pause_s=0.1)
    decoder = BeamDecoder(BeamSearch(LETTERS)) if beam else GreedyDecoder(LETTERS)
    one = Session(Script(frames), decoder, rules, **options)
    events = []
    for samples in packets or (len(frames),):
        events += one.feed(torch.zeros(samples))
    return events + one.finish()


# --- what comes out ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_text_is_that_of_the_masked_pass(seed: int) -> None:
    """Whole pipeline, any packets: text, times, confidences."""
    random = Random(seed)
    wav = noise(random.randint(400, 60_000), seed)
    with torch.no_grad():
        logits = MODEL(wav[None], chunk=CHUNK).logits
    [expected] = greedy_transcripts(logits, torch.tensor([logits.shape[1]]), LETTERS)
    one, rest, events = session(), wav, []
    while len(rest):
        size = random.choice((0, 1, 160, 5000, 20_000))
        events += one.feed(rest[:size])
        rest = rest[size:]
    events += one.finish()
    assert events[-1].is_final and events[-1].text == expected.text == events[-1].stable
    for mine, theirs in zip(events[-1].words, expected.words, strict=True):
        assert (mine.text, mine.start, mine.end) == (theirs.text, theirs.start, theirs.end)
        assert mine.confidence == pytest.approx(theirs.confidence, abs=1e-5)
    texts = [event.stable for event in events]
    assert all(later.startswith(text) for text, later in pairwise(texts))
    assert all(f"{e.stable} {e.tentative}".strip() == e.text for e in events)
    assert all(event.compute_ms > 0 for event in events)


@pytest.mark.parametrize("beam", [False, True])
def test_utterances_end_and_others_begin(beam: bool) -> None:
    """Numbered, with times of the stream; within a packet, too."""
    frames = "HI" + "." * 12 + "YES NO" + "." * 30 + "AH"
    for packets in ((), (1,) * len(frames), (20, 20, 20)):
        finals = [e for e in script(frames, *packets, beam=beam) if e.is_final]
        assert [(e.segment, e.text, e.tentative) for e in finals] == [
            (0, "HI", ""), (1, "YES NO", ""), (2, "AH", ""),
        ]  # fmt: skip
        assert [e.words[0].start for e in finals] == [0.0, 0.28, 1.0]
        assert [e.audio_s for e in finals] == [0.24, 0.6, 1.04]


def test_what_is_new_is_said_once() -> None:
    events = script("H" + "I" * 3 + " YO.", 1, 1, 1, 1, 1, 1, 1, 1)
    said = [(e.stable, e.tentative, e.is_final) for e in events]
    assert said == [
        ("", "H", False), ("", "HI", False), ("HI", "", False), ("HI", "Y", False),
        ("HI", "YO", False), ("HI YO", "", True),
    ]  # fmt: skip


def test_silence_says_nothing() -> None:
    """No events, and nothing that grows."""
    assert script("." * 5000, *(100,) * 50) == []


def test_last_words_are_not_lost() -> None:
    """Without zeros at the end: the last chunk is short, and is run."""
    wav = noise(16_000)
    whole, cut = session(), session()
    events = whole.feed(wav) + whole.finish()
    frames = (len(wav) - 400) // 320 + 1
    assert events[-1].audio_s == pytest.approx(frames * 0.02)
    assert cut.feed(wav[:4000]) == []  # not one chunk
    assert cut.finish()[-1].text


def test_a_vad_has_a_veto() -> None:
    """And hears all of the audio, once."""
    heard = []

    def vad(wav: Tensor) -> bool:
        heard.append(len(wav))
        return True

    frames = "HI" + "." * 40
    assert [e.text for e in script(frames, 30, 12, vad=vad)] == ["HI", "HI"]
    assert heard == [30, 12]
    assert len([e for e in script(frames + "HI") if e.is_final]) == 2


def test_a_vad_is_not_asked_about_nothing() -> None:
    """At the end of overlapping windows frames come out that were heard before."""
    heard = []

    def vad(wav: Tensor) -> bool:
        heard.append(len(wav))
        return False

    encoder = OverlapEncoder(
        lambda wavs: [MODEL(wav[None]).logits[0] for wav in wavs], Overlap(5, 5, 5)
    )
    one = Session(encoder, GreedyDecoder(LETTERS), EndpointRules(), vad)
    with torch.no_grad():
        one.feed(noise(16_000))
        one.finish()
    assert heard == [16_000]


# --- what goes in --------------------------------------------------------------------------------


def test_kinds_of_samples() -> None:
    """Tensors, arrays, 16-bit integers and bytes are the same sound."""
    integers = (noise(20_000) * 32768).short()
    texts = set()
    for packet in (
        integers,
        integers.numpy(),
        integers.numpy().astype("<i2").tobytes(),
        integers.float() / 32768,
        integers.double().numpy() / 32768,
    ):
        one = session()
        one.feed(packet)
        texts.add(one.finish()[-1].text)
    assert len(texts) == 1


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
def test_other_rates(rate: int) -> None:
    """Resampled with memory: packets do not matter."""
    wav = noise(rate)
    one, other = session(), session()
    expected = one.feed(wav, rate) + one.finish()
    for packet in wav.split(777):
        other.feed(packet, rate)
    found = other.finish()
    assert found[-1].text == expected[-1].text
    assert found[-1].audio_s == expected[-1].audio_s


@pytest.mark.parametrize(
    ("packet", "said"),
    [
        (torch.tensor([0.0, float("nan")]), "NaN"),
        (np.array([np.inf], np.float32), "NaN or infinite"),
        (torch.zeros(2, 100), r"expected \(samples,\) floats"),
        (torch.zeros(100, dtype=torch.uint8), "torch.uint8"),
        (b"\0\0\0", "3 bytes are no whole number"),
    ],
)
def test_bad_packets_are_not_heard(packet, said: str) -> None:
    """The session goes on as if there had been none."""
    wav, one, other = noise(20_000), session(), session()
    one.feed(wav[:9000])
    with pytest.raises(BadAudio, match=said):
        one.feed(packet)
    found = one.feed(wav[9000:]) + one.finish()
    other.feed(wav)
    assert found[-1].text == other.finish()[-1].text


def test_one_bad_packet_among_many_is_heard_by_nobody() -> None:
    wav = noise(9000)
    both = [session(), session()]
    with pytest.raises(BadAudio):
        feed(both, [wav, torch.tensor([float("nan")])])
    assert [len(one.encoder.state.wavs[0]) for one in both] == [0, 0]


def test_the_rate_stays() -> None:
    one = session()
    one.feed(noise(8000), 8000)
    with pytest.raises(BadAudio, match="8000 before"):
        one.feed(noise(8000), 16_000)


def test_nothing_at_all() -> None:
    one = session()
    assert one.feed(torch.zeros(0)) == [] and one.finish() == []
    assert session().finish() == []


def test_after_the_end() -> None:
    one = session()
    one.finish()
    for act in (lambda: one.feed(torch.zeros(1)), one.finish):
        with pytest.raises(RuntimeError, match="is finished"):
            act()


def test_two_threads() -> None:
    """The second one is told; the first one's text is that of a session alone."""
    begun, go_on = threading.Event(), threading.Event()

    class Slow(ChunkEncoder):
        @staticmethod
        def run(encoders, wavs, last):
            begun.set()
            go_on.wait(10)
            return ChunkEncoder.run(encoders, wavs, last)

    wav, alone = noise(20_000), session()
    alone.feed(wav)
    one = Session(Slow(MODEL, CHUNK), GreedyDecoder(LETTERS), None)
    thread = threading.Thread(target=one.feed, args=(wav,))
    thread.start()
    begun.wait(10)
    with pytest.raises(RuntimeError, match="Two threads"):
        one.feed(noise(100, seed=5))
    go_on.set()
    thread.join(10)
    assert one.finish()[-1].text == alone.finish()[-1].text


# --- many ----------------------------------------------------------------------------------------


def test_sessions_that_are_fed_together() -> None:
    """Of any age, with packets of any size: as alone."""
    random, wavs = Random(0), [noise(n, seed=n) for n in (50_000, 9000, 31_000)]
    expected = []
    for wav in wavs:
        one = session()
        one.feed(wav)
        expected.append(one.finish()[-1].text)
    together, rest = [session() for _ in wavs], wavs
    together[0].feed(wavs[0][:12_345])
    rest = [wavs[0][12_345:], *wavs[1:]]
    while any(len(wav) for wav in rest):
        sizes = [random.choice((0, 333, 8000)) for _ in rest]
        feed(together, [wav[:n] for wav, n in zip(rest, sizes, strict=True)])
        rest = [wav[n:] for wav, n in zip(rest, sizes, strict=True)]
    finals = feed(together, [torch.zeros(0)] * 3, last=True)
    assert [events[-1].text for events in finals] == expected


def test_sessions_of_two_kinds_do_not_go_together() -> None:
    other = Session(ChunkEncoder(MODEL, ChunkConfig(8)), GreedyDecoder(LETTERS), None)
    with pytest.raises(ValueError, match="one model and one ChunkConfig"):
        feed([session(), other], [noise(100)] * 2)

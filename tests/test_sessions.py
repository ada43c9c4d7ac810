"""Sessions: what goes in, what comes out, and who may be in there at the same time."""

from __future__ import annotations

import pickle
import threading
import time
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.audio import resample
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
from w2v_plugin.transcripts import Transcript

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
GREEDY = GreedyDecoder(LETTERS)


def session(rules: EndpointRules | None = None, **options) -> Session:
    return Session(ChunkEncoder(MODEL, CHUNK), GreedyDecoder(LETTERS), rules, **options)


def noise(samples: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, generator=generator) * 0.1


class Script(LiveEncoder):
    """An encoder that has its logits already: each packet takes as many as it has hops."""

    def __init__(self, frames: str) -> None:
        symbols = [LETTERS.lab2ind[{".": "<pad>", " ": "|"}.get(x, x)] for x in frames]
        self.logits = 20 * torch.eye(32)[symbols]

    latency_ms = 0.0
    nbytes = 0

    @staticmethod
    def run(encoders, wavs, last) -> list[Tensor]:
        parts = []
        for encoder, wav in zip(encoders, wavs, strict=True):
            parts.append(encoder.logits[: len(wav) // 320])
            encoder.logits = encoder.logits[len(wav) // 320 :]
        return parts


class Ear(LiveEncoder):
    """An encoder that keeps what it hears and says nothing."""

    latency_ms = 0.0
    nbytes = 0

    def __init__(self) -> None:
        self.heard = torch.zeros(0)

    @staticmethod
    def run(encoders, wavs, last) -> list[Tensor]:
        for encoder, wav in zip(encoders, wavs, strict=True):
            encoder.heard = torch.cat([encoder.heard, wav])
        return [torch.zeros(0, 32) for _ in encoders]


def compute(wavs: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [MODEL(wav[None]).logits[0] for wav in wavs]


def decoder_of(kind: str) -> GreedyDecoder | BeamDecoder:
    if kind == "greedy":
        return GreedyDecoder(LETTERS)
    return BeamDecoder(BeamSearch(LETTERS, hot_words=["HI"] if kind == "hot words" else ()))


def remembered(one: Session) -> int:
    """Bytes that a session would write into a file, but for what its model and vocabulary take."""
    parts = dict(vars(one.decoder)) | dict(vars(one.endpointer)) | {"unheard": one._unheard}
    reader = parts.pop("_reader", None)
    parts |= {} if reader is None else vars(reader)
    for name in ("search", "vocabulary", "rules"):
        parts.pop(name, None)
    return len(pickle.dumps({name: part for name, part in parts.items() if name != "frame"}))


def said(events: list[LiveTranscript]) -> list[tuple]:
    """What of events depends neither on the clock nor on the order of sums."""
    said = []
    for e in events:
        words = [(word.text, word.start, word.end) for word in e.words]
        said.append((e.stable, e.tentative, e.is_final, e.segment, e.audio_s, words))
    return said


def script(frames: str, *packets: int, beam: bool = False, **options) -> list[LiveTranscript]:
    """Events of a session that hears `frames`, in packets of that many."""
    rules = EndpointRules(nothing_s=0.5, after_word_s=0.2, longest_s=1.0, pause_s=0.1)
    decoder = BeamDecoder(BeamSearch(LETTERS)) if beam else GreedyDecoder(LETTERS)
    one = Session(Script(frames), decoder, rules, **options)
    events = []
    for count in packets or (len(frames),):
        events += one.feed(torch.zeros(320 * count))
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


def test_long_utterances_end_between_words() -> None:
    """Not at blanks within one, although these are as long; boundaries are silence."""
    frames = "A" * 60 + "." * 6 + "B" + " " * 3 + "." * 2 + "O"
    finals = [(e.text, e.audio_s) for e in script(frames) if e.is_final]
    assert finals == [("AB", 1.44), ("O", 1.46)]


def test_long_utterances_without_word_boundaries() -> None:
    """In a vocabulary that has none, all blanks are between words."""
    letters = CharVocabulary()
    del letters.lab2ind["|"]
    rules = EndpointRules(longest_s=1.0, pause_s=0.1)
    one = Session(Script("A" * 60 + "." * 5 + "B"), GreedyDecoder(letters), rules)
    events = one.feed(torch.zeros(66 * 320)) + one.finish()
    assert [(e.text, e.audio_s) for e in events if e.is_final] == [("A", 1.3), ("B", 1.32)]


def test_what_is_new_is_said_once() -> None:
    events = script("H" + "I" * 3 + " YO.", 1, 1, 1, 1, 1, 1, 1, 1)
    said = [(e.stable, e.tentative, e.is_final) for e in events]
    assert said == [
        ("", "H", False), ("", "HI", False), ("HI", "", False), ("HI", "Y", False),
        ("HI", "YO", False), ("HI YO", "", True),
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "minutes"), [("greedy", 60), ("beam", 6), ("hot words", 6)])
def test_an_hour_of_silence(kind: str, minutes: int) -> None:
    """No events, and nothing that grows."""
    one = Session(Script("."), decoder_of(kind), EndpointRules(), vad=lambda wav: 0.0)
    minute, sizes = torch.zeros(3000, 32), []
    minute[:, 0] = 20
    for _ in range(minutes):
        one.encoder.logits = minute
        assert one.feed(torch.zeros(3000 * 320)) == []
        sizes.append(remembered(one))
    assert one.audio_s == 60 * minutes and one.segment == 0
    assert max(sizes) < sizes[0] + 100  # numbers become longer
    assert one.finish() == []


@pytest.mark.parametrize(
    ("kind", "frames"), [("greedy", 20_000), ("beam", 4000), ("hot words", 4000)]
)
@pytest.mark.parametrize("said", ["HI THERE   ", "YO.YO ....."])
def test_speech_that_never_pauses(kind: str, frames: int, said: str) -> None:
    """To a VAD, besides: what is remembered does not grow, and no word is lost."""
    rules, packet = EndpointRules(longest_s=2.5), said * 10
    one = Session(Script(packet), decoder_of(kind), rules, vad=lambda wav: 1.0)
    logits, finals, sizes = one.encoder.logits, [], []
    rounds = frames // len(logits)
    for _ in range(rounds):
        one.encoder.logits = logits
        events = one.feed(torch.zeros(len(logits) * 320))
        finals += [event for event in events if event.is_final]
        sizes.append(remembered(one))
    half = len(sizes) // 2
    assert max(sizes[half:]) <= 1.1 * max(sizes[:half])  # numbers become longer
    text = " ".join(event.text for event in (*finals, *one.finish()))
    assert text.split() == said.replace(".", "").split() * (10 * rounds)


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
    """And hears all of the audio, once: that of the frames that it is asked about."""
    heard = []

    def vad(wav: Tensor) -> bool:
        heard.append(len(wav) // 320)
        return True

    frames = "HI" + "." * 40
    assert [e.text for e in script(frames, 30, 12, vad=vad)] == ["HI", "HI"]
    assert heard == [16, 14, 12]
    assert len([e for e in script(frames + "HI") if e.is_final]) == 2


@pytest.mark.parametrize("overlapping", [False, True])
def test_a_vad_hears_what_the_frames_stand_for(overlapping: bool) -> None:
    """In its place, although windows and packets run ahead of the frames."""
    heard = []

    def vad(wav: Tensor) -> float:
        heard.append(wav)
        return 0.0

    encoder: LiveEncoder = ChunkEncoder(MODEL, CHUNK)
    if overlapping:
        encoder = OverlapEncoder(compute, Overlap(5, 5, 5))
    one = Session(encoder, GreedyDecoder(LETTERS), EndpointRules(), vad)
    wav = noise(16_000)
    ring = torch.empty(1000)  # as a sound card's, which is written again
    for packet in wav.split(1000):
        one.feed(ring.copy_(packet))
        assert sum(map(len, heard)) == one.frames * 320
        assert one._unheard.untyped_storage().nbytes() == 4 * len(one._unheard)
    one.finish()
    assert torch.equal(torch.cat(heard), wav[: 49 * 320])


def test_long_packets_are_no_reason_to_hear_no_silence() -> None:
    """Speech at their beginning is no veto on their end."""
    frames = "HI" + "." * 46 + "YO" + "." * 46
    wav = torch.zeros(len(frames) * 320)
    wav[: 2 * 320] = wav[48 * 320 : 50 * 320] = 1.0
    rules = EndpointRules(after_word_s=0.2)
    for size in (320 * 16, len(wav)):
        one = Session(Script(frames), GreedyDecoder(LETTERS), rules, lambda wav: wav.max() > 0)
        events = [event for packet in wav.split(size) for event in one.feed(packet)]
        finals = [(event.text, event.audio_s) for event in events if event.is_final]
        assert finals == [("HI", 0.52), ("YO", 1.48)]


def test_without_rules_a_vad_is_not_asked() -> None:
    one = session(vad=lambda wav: 1 / 0)
    one.feed(noise(20_000))
    assert len(one._unheard) == 0 and one.finish()[-1].text


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["greedy", "beam"])
def test_no_word_is_lost_or_said_twice(kind: str, seed: int) -> None:
    """Endpoints anywhere, any packets: the words, times and confidences of the whole stream; only
    a word without a boundary after it may have become two."""
    random = Random(seed)
    frames = "".join(
        random.choice(("A", "B", "AA", "B.B", " ", " ", ". ", "..", "." * 15)) for _ in range(120)
    )
    rules = EndpointRules(nothing_s=0.3, after_word_s=0.2, longest_s=0.5, pause_s=0.1)
    decoder = BeamDecoder(BeamSearch(LETTERS)) if kind == "beam" else GreedyDecoder(LETTERS)
    one, events, rest = Session(Script(frames), decoder, rules), [], len(frames)
    [whole] = greedy_transcripts(one.encoder.logits[None], torch.tensor([rest]), LETTERS)
    while rest:
        size = min(random.choice((0, 1, 5, 40)), rest)
        events += one.feed(torch.zeros(320 * size))
        rest -= size
    events += one.finish()
    finals = [event for event in events if event.is_final]
    assert [event.segment for event in finals] == [*range(len(finals))] and len(finals) > 3
    found = [character for event in finals for character in event.characters]
    assert [c.text for c in found] == [c.text for c in whole.characters]
    words = [word for event in finals for word in event.words]
    if kind == "greedy":  # beam search aligns a text without the boundaries around it
        assert found == [*whole.characters]
        assert {word.end for word in whole.words} <= {word.end for word in words}
        assert {word.start for word in whole.words} <= {word.start for word in words}
    assert " ".join(event.text for event in finals) == " ".join(word.text for word in words)
    for segment, final in enumerate(finals):
        shown = [e for e in events if e.segment == segment]
        assert all(b.stable.startswith(a.stable) for a, b in pairwise(shown))
        assert shown[-1] is final and final.stable == final.text


def test_what_turns_out_to_be_nothing_is_taken_back() -> None:
    """A tentative text that its end rules out does not stay on the screen."""

    class Doubtful(GreedyDecoder):
        def cut(self) -> Transcript:
            super().cut()
            return Transcript("")

    one = Session(Script("HI" + "." * 60), Doubtful(LETTERS), EndpointRules())
    events = one.feed(torch.zeros(10 * 320)) + one.feed(torch.zeros(52 * 320))
    assert [(e.text, e.is_final, e.segment) for e in events] == [("HI", False, 0), ("", False, 0)]
    assert one.finish() == []


def test_time_of_decoding_counts() -> None:
    """As what it takes to compute."""
    naps = []

    class Slow(GreedyDecoder):
        def read(self, logits: Tensor) -> None:
            start = time.perf_counter()
            time.sleep(0.01)
            super().read(logits)
            naps.append(1000 * (time.perf_counter() - start))

    [event] = Session(Script("HI"), Slow(LETTERS), None).feed(torch.zeros(640))
    assert event.compute_ms >= naps[0]  # all of it is within


# --- what goes in --------------------------------------------------------------------------------


def test_kinds_of_samples() -> None:
    """Tensors, arrays, 16-bit integers and bytes are the same sound."""
    integers = (noise(20_000) * 32768).short()
    array = integers.numpy()
    texts = set()
    for packet in (
        integers,
        integers.numpy(),
        array.astype(">i2"),
        np.stack([array, array], axis=1)[:, 0],  # not contiguous
        array[::-1].copy()[::-1],
        array.astype("<i2").tobytes(),
        bytearray(array.astype("<i2").tobytes()),
        memoryview(array.astype("<i2").tobytes()),
        integers.float() / 32768,
        (integers.float() / 32768).requires_grad_(),
        integers.double().numpy() / 32768,
        (array / 32768).astype(">f8"),
        (array / 32768).astype(np.longdouble),
    ):
        one = session()
        one.feed(packet[:9000])
        one.feed(packet[9000:9100])
        assert not one.encoder.state.wavs.requires_grad
        one.feed(packet[9100:])
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
        (torch.zeros(2, 100), r"\(2, 100\), expected .*\(samples,\)"),
        (torch.zeros(100, dtype=torch.uint8), "torch.uint8"),
        (b"\0\0\0", "3 bytes are no whole number"),
        (np.array([1e300]), "NaN or infinite"),  # in float32
        (np.zeros((100, 2), np.float32), r"\(100, 2\), expected .*channels"),
        (np.zeros(100, np.int32), "int32"),
        (np.zeros(100, np.complex64), "complex64"),
        (np.array([None]), "object"),
        ([0.0, 0.0], "got list"),
        (None, "NoneType"),
        (torch.tensor(0.0), r"torch.float32 \(\)"),
        (torch.tensor([0.0, -3000.0]), "up to 3000, expected floats"),
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
    assert one.feed(noise(8000, seed=1), np.int64(8000))  # goes on


@pytest.mark.parametrize("rate", [0, -16_000, 16, 16_000.0, None, "16000", True])
def test_rates_that_make_no_sense(rate: Any) -> None:
    """Among them kHz."""
    one = session()
    with pytest.raises(BadAudio, match="whole number of Hz"):
        one.feed(noise(100), rate)
    one.feed(noise(100), 8000)  # nothing was decided


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000])
def test_no_sample_is_lost_at_other_rates(rate: int) -> None:
    """Any packets: as many as at once, to the last one, and equal."""
    random, one = Random(rate), session(EndpointRules(), vad=lambda wav: 0.0)
    one.encoder = Ear()
    wav, begin = noise(5 * rate + 77), 0
    while begin < len(wav):
        size = random.choice((0, 1, 2, 441, 4410, rate))
        one.feed(wav[begin : begin + size], rate)
        begin += size
    one.finish()
    expected = resample(wav, rate)
    assert len(one.encoder.heard) == len(expected)
    # the same filter over pieces: sums in float32 in another order
    torch.testing.assert_close(one.encoder.heard, expected, atol=1e-5, rtol=0)


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


def broken(at: str) -> Session:
    """A session whose model or VAD fails in its third call, and in no other."""
    calls = []

    def fail() -> None:
        calls.append(at)
        if len(calls) == 3:
            raise MemoryError("for example")

    class Model(ChunkEncoder):
        @staticmethod
        def run(encoders, wavs, last):
            logits = ChunkEncoder.run(encoders, wavs, last)
            if at == "model":
                fail()
            return logits

    def vad(wav: Tensor) -> float:
        if at == "vad":
            fail()
        return 0.0

    return Session(Model(MODEL, CHUNK), GreedyDecoder(LETTERS), EndpointRules(), vad)


@pytest.mark.parametrize("at", ["model", "vad"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("others", [0, 1])
def test_what_fails_can_be_fed_again(at: str, rate: int, others: int) -> None:
    """An error in the model or the VAD leaves all sessions as they were."""
    wav, alone, expected = noise(2 * rate), session(EndpointRules()), []
    packets = (*wav.split(rate // 4), wav[:0])
    for packet in packets[:-1]:
        expected += alone.feed(packet, rate)
    expected += alone.finish()
    bad = broken(at)
    sessions = [Session(type(bad.encoder)(MODEL, CHUNK), GreedyDecoder(LETTERS), EndpointRules())]
    sessions = [*sessions[:others], bad]
    failed, events = 0, [[] for _ in sessions]
    for packet in packets:
        last = len(packet) == 0
        for _ in range(2):
            try:
                found = feed(sessions, [packet] * len(sessions), rate, last=last)
            except MemoryError:
                failed += 1
                continue
            events = [a + b for a, b in zip(events, found, strict=True)]
            break
    assert failed == 1
    for mine in events:
        assert said(mine) == said(expected)


def test_silence_before_a_failure_counts_once() -> None:
    """The VAD fails at the second part of a packet, when the rules know the first one."""
    parts = []

    def vad(wav: Tensor) -> float:
        parts.append(len(wav))
        if len(parts) == 3:
            raise OSError("for example")
        return 0.0

    script = Script("HI" + "." * 60)
    one = Session(script, GreedyDecoder(LETTERS), EndpointRules(), vad)
    assert [event.text for event in one.feed(torch.zeros(2 * 320))] == ["HI"]
    logits = script.logits
    with pytest.raises(OSError, match="for example"):
        one.feed(torch.zeros(32 * 320))
    assert script.logits is logits and one.frames == 2
    events = one.feed(torch.zeros(60 * 320))
    assert [event.audio_s for event in events] == [1.04]


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
    for act in (lambda: one.feed(noise(100, seed=5)), one.finish):
        with pytest.raises(RuntimeError, match="Two threads"):
            act()
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


def test_windows_that_are_fed_together() -> None:
    """As alone, with windows of different sizes."""
    overlaps, wavs = [Overlap(5, 5, 5), Overlap(3, 7, 2)], [noise(20_000, 1), noise(31_000, 2)]

    def make(overlap: Overlap) -> Session:
        return Session(OverlapEncoder(compute, overlap), GreedyDecoder(LETTERS), None)

    alone = [make(overlap) for overlap in overlaps]
    expected = [one.feed(wav) + one.finish() for one, wav in zip(alone, wavs, strict=True)]
    together = [make(overlap) for overlap in overlaps]
    feed(together, wavs)
    found = feed(together, [torch.zeros(0)] * 2, last=True)
    assert [said(events[-1:]) for events in found] == [said(events[-1:]) for events in expected]


def test_sessions_that_do_not_go_together() -> None:
    """And are as they were."""
    wav, model = noise(9000), make()
    one, window = session(), Session(OverlapEncoder(compute, Overlap(5, 5, 5)), GREEDY, None)
    smaller = Session(ChunkEncoder(MODEL, ChunkConfig(8)), GREEDY, None)
    another = Session(ChunkEncoder(model, CHUNK), GREEDY, None)
    foreign = Session(OverlapEncoder(lambda wavs: compute(wavs), Overlap(5, 5, 5)), GREEDY, None)
    ended, slower = session(), session()
    ended.finish()
    slower.feed(wav[:0], 8000)
    for sessions, error, message in (
        ([one, smaller], ValueError, "one model and one ChunkConfig"),
        ([one, another], ValueError, "one model and one ChunkConfig"),
        ([window, foreign], ValueError, "one model"),
        ([one, window], ValueError, "in chunks, or all of them in windows"),
        ([window, one], ValueError, "in chunks, or all of them in windows"),
        ([one, one], ValueError, "no session twice"),
        ([one, ended], RuntimeError, "is finished"),
        ([one, slower], BadAudio, "8000 before"),
    ):
        with pytest.raises(error, match=message):
            feed(sessions, [wav] * 2)
    for packets in ([wav], [wav] * 3):
        with pytest.raises(ValueError, match=f"{len(packets)} packets for 2 sessions"):
            feed([one, smaller], packets)
    assert one.encoder.state.samples == (0,) and len(window.encoder.wav) == 0
    one.feed(wav, 8000)  # no rate was decided
    assert feed([], []) == []

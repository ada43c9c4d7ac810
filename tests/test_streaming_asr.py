"""The interface: its own names, SpeechBrain's names, models that cannot stream."""

from __future__ import annotations

import inspect
from itertools import islice, repeat
from pathlib import Path

import pytest
import soundfile
import torch
from speechbrain.inference.ASR import StreamingASR
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

from w2v_plugin import ChunkConfig, Wav2Vec2StreamingASR, streaming_asr
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import BadAudio, NotStreamable
from w2v_plugin.folders import save_asr
from w2v_plugin.language_folders import save_language
from w2v_plugin.live import BeamDecoder, LiveTranscript
from w2v_plugin.live_encoders import Overlap
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.text import CharVocabulary


def build(folder: Path, **options) -> Wav2Vec2StreamingASR:
    torch.manual_seed(0)
    shape = {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    body = Wav2Vec2(**shape | {"positions_kernel": 8, "positions_groups": 4} | options)
    model = Wav2Vec2CTC(body, vocab_size=32).eval()
    torch.nn.init.normal_(model.head.weight)
    save_asr(folder, model, CharVocabulary())
    return Wav2Vec2StreamingASR.from_hparams(source=folder, run_opts={"device": "cpu"})


@pytest.fixture(scope="module")
def asr(tmp_path_factory: pytest.TempPathFactory) -> Wav2Vec2StreamingASR:
    folder = tmp_path_factory.mktemp("model")
    return build(folder, extractor_norm="layer", normalize=False)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Wav2Vec2StreamingASR:
    """As BASE: norm over time, normalized waveforms."""
    return build(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "a.wav"
    torch.manual_seed(1)
    soundfile.write(path, (0.1 * torch.randn(45_678)).numpy(), 16_000, subtype="FLOAT")
    return path


CONFIG = ChunkConfig(16, 32)


def test_a_stream_says_what_the_masked_pass_says(asr, file) -> None:
    """Packets of a file against `transcribe_file` with the same chunk."""
    session = asr.stream(CONFIG, rules=None)
    wav = torch.from_numpy(soundfile.read(file, dtype="float32")[0])
    for packet in wav.split(1234):
        session.feed(packet)
    assert session.finish()[-1].text == asr.transcribe_file(file, chunk=CONFIG)


@pytest.mark.parametrize("overlap", [None, "half"])
@pytest.mark.parametrize("beam", [False, True])
def test_a_stream_ends_where_another_language_begins(tmp_path, overlap, beam) -> None:
    """Its frames would mean other letters, of which there may be fewer; new ones can begin."""
    streams = {"extractor_norm": "layer", "normalize": False, "norm_first": True}
    shape = {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    body = Wav2Vec2(**shape, **streams, adapter_dim=4)
    for language, letters in (("mal", "abcdefghijklm"), ("deu", "aäz")):
        model = Wav2Vec2CTC(body, vocab_size=len(letters) + 5)
        save_language(tmp_path, model, CharVocabulary(letters), language)
    options = {"language": "mal", "run_opts": {"device": "cpu"}}
    asr = Wav2Vec2StreamingASR.from_hparams(tmp_path, **options)
    if beam:
        asr.decode_with()
    wav, chunk = 0.1 * torch.randn(32_000), CONFIG if overlap is None else None
    session, context = asr.stream(chunk, overlap=overlap), asr.make_streaming_context(CONFIG)
    session.feed(wav)
    asr.encode_chunk(context, wav[None])
    with pytest.raises(ValueError, match="no adapters for language='eng'"):
        asr.set_language("eng")
    session.feed(wav)
    asr.set_language("deu")
    for go_on in (lambda: session.feed(wav), session.finish):
        with pytest.raises(RuntimeError, match=r"another language .* asr\.stream\("):
            go_on()
    with pytest.raises(RuntimeError, match="another language"):
        asr.encode_chunk(context, wav[None])
    asr.stream(chunk, overlap=overlap).feed(wav)


def test_by_default_chunks_of_640_ms(asr) -> None:
    assert asr.stream().encoder.chunk == ChunkConfig(32, 256)


def test_speechbrain_counts_left_context_in_chunks(asr) -> None:
    assert asr.stream(DynChunkTrainConfig(16, 2)).encoder.chunk == ChunkConfig(16, 32)
    assert asr.stream(DynChunkTrainConfig(16)).encoder.chunk == ChunkConfig(16)
    assert asr.get_chunk_size_frames(DynChunkTrainConfig(16, 2)) == 5120


def test_transcribe_file_streaming(asr, file) -> None:
    """What the pieces add up to; utterances are joined by blanks."""
    pieces = list(asr.transcribe_file_streaming(file, DynChunkTrainConfig(16, 2)))
    assert len(pieces) == -(-45_678 // 5120) + 1
    session = asr.stream(CONFIG)
    events = session.feed(torch.from_numpy(soundfile.read(file, dtype="float32")[0]))
    texts = [event.text for event in events + session.finish() if event.is_final]
    assert "".join(pieces) == " ".join(texts)


def test_text_of_many_utterances(asr, monkeypatch) -> None:
    """A blank between them, wherever chunks end; nothing twice."""

    def event(text: str, segment: int, is_final: bool = False) -> LiveTranscript:
        return LiveTranscript(text, segment=segment, is_final=is_final)

    heard = iter(
        [
            [[event("HE", 0)], []],
            [[event("HELLO", 0, is_final=True), event("YO", 1)], [event("A", 0, is_final=True)]],
            [[event("YOU", 1)], [event("B", 1, is_final=True), event("C", 2, is_final=True)]],
            [[event("YOU TOO", 1, is_final=True)], []],
        ]
    )
    monkeypatch.setattr(streaming_asr, "feed", lambda sessions, wavs, last: next(heard))
    context = asr.make_streaming_context(CONFIG)
    texts = [asr.transcribe_chunk(context, torch.zeros(2, 5120)) for _ in range(4)]
    assert texts == [["HE", ""], ["LLO YO", "A"], ["U", " B C"], [" TOO", ""]]


def test_a_vad_is_passed_on(asr) -> None:
    asked: list[int] = []
    session = asr.stream(CONFIG, vad=lambda wav: bool(asked.append(len(wav))))
    session.feed(torch.zeros(5200))
    assert sum(asked) > 0


def test_transcribe_chunk_of_a_batch(asr) -> None:
    """Rows of different lengths, relative lengths as everywhere in SpeechBrain."""
    torch.manual_seed(2)
    wavs = 0.1 * torch.randn(2, 20_480)
    context = asr.make_streaming_context(DynChunkTrainConfig(16, 2))
    texts = ["", ""]
    for i, chunk in enumerate(wavs.split(5120, dim=1)):
        lens = torch.tensor([1.0, 0.5]) if i == 3 else None
        news = asr.transcribe_chunk(context, chunk, lens, last=i == 3)
        texts = [text + new for text, new in zip(texts, news, strict=True)]
    whole = [wavs[0], wavs[1, : 3 * 5120 + 2560]]
    assert texts == [asr.transcribe_batch(wav[None], chunk=CONFIG)[0][0] for wav in whole]
    with pytest.raises(RuntimeError, match="This context is finished"):
        asr.transcribe_chunk(context, torch.zeros(2, 10))


def test_encode_chunk(asr) -> None:
    torch.manual_seed(3)
    wavs = 0.1 * torch.randn(1, 12_000)
    context = asr.make_streaming_context(DynChunkTrainConfig(16, 2))
    parts = [asr.encode_chunk(context, x, last=i == 2) for i, x in enumerate(wavs.split(5000, 1))]
    with torch.inference_mode():
        expected = asr.mods["model"](wavs, chunk=CONFIG).logits[0]
    # float32 sums of other shapes
    assert float((torch.cat([rows[0] for rows in parts]) - expected).abs().max()) < 2e-5
    with pytest.raises(RuntimeError, match="This context is finished"):
        asr.encode_chunk(context, wavs)


@pytest.mark.parametrize(
    "name",
    [
        "make_streaming_context",
        "get_chunk_size_frames",
        "encode_chunk",
        "transcribe_chunk",
        "transcribe_file_streaming",
        "transcribe_file",
    ],
)
def test_calls_are_those_of_speechbrain(name: str) -> None:
    """Its parameters come first, with their names; what it does not have is optional."""
    theirs = [
        p for p in inspect.signature(getattr(StreamingASR, name)).parameters.values() if p.kind < 4
    ]
    ours = [*inspect.signature(getattr(Wav2Vec2StreamingASR, name)).parameters.values()]
    assert [p.name for p in ours[: len(theirs)]] == [p.name for p in theirs]
    assert all(p.default is not p.empty for p in ours[len(theirs) :])


def test_transcribe_file_as_speechbrain_does(asr, file) -> None:
    config = DynChunkTrainConfig(16, 2)
    pieces = asr.transcribe_file_streaming(file, dynchunktrain_config=config)
    assert asr.transcribe_file(file, config, use_torchaudio_streaming=False) == "".join(pieces)
    assert asr.transcribe_file(file) == super(Wav2Vec2StreamingASR, asr).transcribe_file(file)
    with pytest.raises(ValueError, match="exclude each other"):
        asr.transcribe_file(file, config, chunk=CONFIG)


def test_a_file_is_read_as_its_text_is_asked_for(asr, monkeypatch) -> None:
    """Text comes from a file that never ends."""
    monkeypatch.setattr(streaming_asr, "read_blocks", lambda path: repeat(torch.zeros(16_000)))
    assert len(list(islice(asr.transcribe_file_streaming("radio", CONFIG), 9))) == 9


@pytest.mark.parametrize("method", ["encode_chunk", "transcribe_chunk"])
@pytest.mark.parametrize(
    ("chunk", "chunk_len", "said"),
    [
        (torch.zeros(100), None, r"got \(100,\), expected \(batch, samples\)"),
        (torch.zeros(0, 100), None, r"got \(0, 100\), expected \(batch, samples\)"),
        (torch.zeros(2, 100), torch.ones(1), "expected a relative length"),
        (torch.zeros(2, 100), torch.tensor([1.0, 50.0]), "expected a relative length"),
        (torch.zeros(2, 100), torch.tensor([1.0, float("nan")]), "expected a relative length"),
        (torch.full((2, 100), float("nan")), None, "NaN or infinite"),
        (torch.zeros(2, 100, dtype=torch.int64), None, "16-bit integers"),
        (torch.zeros(3, 100), None, "3 rows, but 2"),
    ],
)
def test_bad_chunks_are_not_heard(method, chunk, chunk_len, said, asr) -> None:
    """The streams go on as if they had not been."""
    torch.manual_seed(4)
    wavs = 0.1 * torch.randn(2, 12_000)
    results = []
    for bad in (False, True):
        context = asr.make_streaming_context(CONFIG)
        parts = [getattr(asr, method)(context, wavs[:, :6000])]
        if bad:
            with pytest.raises(ValueError, match=said):  # BadAudio is one
                getattr(asr, method)(context, chunk, chunk_len)
        parts.append(getattr(asr, method)(context, wavs[:, 6000:], last=True))
        results.append([part[row] for part in parts for row in (0, 1)])
    for good, after in zip(*results, strict=True):
        assert good == after if isinstance(good, str) else torch.equal(good, after)


def test_a_bad_first_chunk_decides_nothing(asr) -> None:
    """Neither about the rows nor about the end."""
    context = asr.make_streaming_context(CONFIG)
    with pytest.raises(BadAudio):
        asr.transcribe_chunk(context, torch.zeros(5120), last=True)
    assert asr.transcribe_chunk(context, torch.zeros(2, 5120)) == ["", ""]


def test_what_is_no_configuration(asr) -> None:
    with pytest.raises(TypeError, match="got 32, expected a ChunkConfig"):
        asr.make_streaming_context(32)


def test_models_that_need_both_sides(published, file) -> None:
    """Refused in chunks, with a remedy that works."""
    with pytest.raises(NotStreamable, match="overlap"):
        published.stream()
    with pytest.raises(NotStreamable, match="overlap"):
        published.make_streaming_context(CONFIG)
    session = published.stream(overlap="half", rules=None)
    events = session.feed(torch.from_numpy(soundfile.read(file, dtype="float32")[0]))
    assert session.encoder.latency_ms == 1505
    assert (events + session.finish())[-1].is_final
    whole = published.stream(overlap=Overlap(0, 1000, 0), rules=None)
    whole.feed(torch.from_numpy(soundfile.read(file, dtype="float32")[0]))
    assert whole.finish()[-1].text == published.transcribe_file(file)


def test_options_that_exclude_each_other(asr) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        asr.stream(CONFIG, overlap="half")
    with pytest.raises(ValueError, match="expected one of half, accurate, fast"):
        asr.stream(overlap="best")


def test_beam_search(asr, file) -> None:
    """As `decode_with` asked; not through methods that cannot take text back."""
    wav = torch.from_numpy(soundfile.read(file, dtype="float32")[0])
    asr.decode_with(n_best=2, hot_words=["ravel"])
    try:
        session = asr.stream(CONFIG)
        assert isinstance(session.decoder, BeamDecoder)
        finals = [e for e in session.feed(wav) + session.finish() if e.is_final]
        assert finals and all(len(event.alternatives) == 1 for event in finals)
        with pytest.raises(ValueError, match="needs rules"):
            asr.stream(CONFIG, rules=None)
        with pytest.raises(ValueError, match="take none back"):
            list(asr.transcribe_file_streaming(file, CONFIG))
    finally:
        asr.search = None

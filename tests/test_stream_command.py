"""`w2v stream`: text that grows, from files, pipes and microphones."""

from __future__ import annotations

import io
import json
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from w2v_plugin import ChunkConfig, Wav2Vec2, Wav2Vec2ASR, Wav2Vec2CTC, stream_command
from w2v_plugin.cli import OVERLAPS as OFFERED
from w2v_plugin.cli import main
from w2v_plugin.folders import save_asr
from w2v_plugin.live_encoders import OVERLAPS
from w2v_plugin.stream_command import CLEAR, GRAY, PLAIN
from w2v_plugin.text import CharVocabulary

CPU = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return _save(tmp_path_factory.mktemp("model"), extractor_norm="layer", normalize=False)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> str:
    return _save(tmp_path_factory.mktemp("published"))


def _save(folder: Path, **options) -> str:
    torch.manual_seed(0)
    shape = {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    body = Wav2Vec2(**shape | {"positions_kernel": 8, "positions_groups": 4} | options)
    ctc = Wav2Vec2CTC(body, vocab_size=32).eval()
    torch.nn.init.normal_(ctc.head.weight)
    save_asr(folder, ctc, CharVocabulary())
    return str(folder)


@pytest.fixture(scope="module")
def pcm() -> np.ndarray:
    return (np.random.default_rng(0).normal(0, 3000, 40_000)).astype("<i2")


@pytest.fixture(scope="module")
def file(tmp_path_factory, pcm) -> str:
    path = tmp_path_factory.mktemp("audio") / "a.wav"
    soundfile.write(path, pcm, 16_000)
    return str(path)


@pytest.fixture(scope="module")
def said(model, file) -> str:
    """The masked offline pass."""
    asr = Wav2Vec2ASR.from_hparams(model, run_opts={"device": "cpu"})
    return asr.transcribe_file(file, chunk=ChunkConfig(16, 64))


CHUNKS = ("--chunk-ms", "320", "--left-s", "1.28")


def test_a_file(model, file, said, capsys) -> None:
    """Into a pipe: finished utterances; the summary is for people."""
    assert main(["stream", file, "--model", model, *CPU, *CHUNKS]) == 0
    out, err = capsys.readouterr()
    assert out == f"{said}\n"
    assert "2.5 s audio, computed in 0." in err and "a sound waits 325 ms at most" in err


def test_json(model, file, said, capsys) -> None:
    """Both clocks go on, stable text only grows, and the last line is all of it."""
    assert main(["stream", file, "--model", model, *CPU, *CHUNKS, "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert records[-1]["text"] == records[-1]["stable"] == said and records[-1]["is_final"]
    assert [r["audio_s"] for r in records[:-1]] == [0.32 * (i + 1) for i in range(len(records) - 1)]
    assert records[-1]["audio_s"] == 2.48
    for one, other in pairwise(records):
        assert other["stable"].startswith(one["stable"]) and other["wall_s"] >= one["wall_s"]
        assert f"{one['stable']} {one['tentative']}".strip() == one["text"]
    assert all(r["compute_ms"] > 0 and r["words"] for r in records)


def test_a_terminal(model, file, said, capsys, monkeypatch) -> None:
    """One line that is written again; long ones show their end."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    assert main(["stream", file, "--model", model, *CPU, *CHUNKS]) == 0
    *growing, last = capsys.readouterr().out.split(CLEAR)[1:]
    assert last == f"{said}\n" and len(growing) > 3
    for line in growing:
        assert line.endswith(PLAIN) and line.count(GRAY) == 1
        assert 0 < len(line.replace(GRAY, "").replace(PLAIN, "")) < 20


def test_real_time(model, file, said, capsys, monkeypatch) -> None:
    """Each packet waits until it would have been spoken; on a clock that only sleeping moves."""
    slept: list[float] = []
    clock = SimpleNamespace(perf_counter=lambda: sum(slept), sleep=slept.append)
    monkeypatch.setattr(stream_command, "time", clock)
    assert main(["stream", file, "--model", model, *CPU, *CHUNKS, "--real-time"]) == 0
    assert slept == pytest.approx([0.1] * 25)
    assert capsys.readouterr().out == f"{said}\n"


def test_stdin(model, pcm, said, capsys, monkeypatch) -> None:
    """Bytes in odd numbers."""

    class Odd(io.BytesIO):
        def read1(self, size: int = -1) -> bytes:
            return super().read1(min(size, 1001))

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Odd(pcm.tobytes())))
    assert main(["stream", "-", "--model", model, *CPU, *CHUNKS]) == 0
    assert capsys.readouterr().out == f"{said}\n"


def test_a_wav_file_on_stdin(model, file, capsys, monkeypatch) -> None:
    """Its header would be heard as a click."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(Path(file).read_bytes())))
    assert main(["stream", "-", "--model", model, *CPU]) == 2
    assert "looks like a wav file" in capsys.readouterr().err


class Microphone:
    """What sounddevice does, with audio of ours."""

    class PortAudioError(Exception):
        pass

    def __init__(self, pcm: np.ndarray) -> None:
        self.pcm = pcm

    def query_devices(self, kind: str) -> dict:
        return {"name": "a microphone", "default_samplerate": 16_000.0}

    def RawInputStream(self, *, blocksize, callback, **options):
        assert options == {"samplerate": 16_000, "channels": 1, "dtype": "int16"}
        for begin in range(0, len(self.pcm), blocksize):
            data = self.pcm[begin : begin + blocksize]
            callback(memoryview(data.tobytes()), len(data), None, None)
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


def test_a_microphone(model, pcm, said, capsys, monkeypatch) -> None:
    """Until Ctrl-C, which ends the last utterance."""
    import queue

    class Impatient(queue.SimpleQueue):
        def get(self, *_: object):
            if self.empty():
                raise KeyboardInterrupt
            return super().get()

    monkeypatch.setattr(queue, "SimpleQueue", Impatient)
    monkeypatch.setitem(sys.modules, "sounddevice", Microphone(pcm))
    assert main(["stream", "mic", "--model", model, *CPU, *CHUNKS]) == 0
    out, err = capsys.readouterr()
    assert out == f"{said}\n" and "listening to a microphone" in err


def test_without_a_microphone(model, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert main(["stream", "mic", "--model", model, *CPU]) == 2
    assert 'pip install "w2v_plugin[mic]"' in capsys.readouterr().err
    none = Microphone(np.zeros(0, "<i2"))
    monkeypatch.setattr(none, "query_devices", lambda kind: 1 / 0, raising=False)
    none.query_devices = lambda kind: (_ for _ in ()).throw(none.PortAudioError("no device"))
    monkeypatch.setitem(sys.modules, "sounddevice", none)
    assert main(["stream", "mic", "--model", model, *CPU]) == 2
    assert "no microphone: no device" in capsys.readouterr().err


def test_models_that_need_both_sides(published, file, capsys) -> None:
    """Refused with the remedy, which works."""
    assert main(["stream", file, "--model", published, *CPU]) == 2
    err = capsys.readouterr().err
    assert "w2v: error: cannot stream" in err and "overlap" in err
    assert main(["stream", file, "--model", published, *CPU, "--overlap", "half"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() and "a sound waits 1505 ms at most" in err


def test_beam_search(model, file, capsys) -> None:
    options = ("--hot-words", "RAVEL", "--n-best", "2", "--json")
    assert main(["stream", file, "--model", model, *CPU, *CHUNKS, *options]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["is_final"] and len(last["alternatives"]) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--chunk-ms", "330"), "expected a multiple of 20"),
        (("--left-s", "-1"), "expected 0 or more, or all"),
        (("--silence-s", "0"), "expected 0.1 or more"),
        (("--overlap", "best"), "invalid choice"),
    ],
)
def test_wrong_options(options, said, model, file, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["stream", file, "--model", model, *options])
    assert stop.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("-", ("--real-time",), "--real-time is for files"),
        (None, ("--overlap", "half", "--left-s", "all"), "--overlap has windows of its own"),
        ("missing.wav", (), "missing.wav: no such file"),
    ],
)
def test_what_cannot_be_done(source, options, said, model, file, capsys) -> None:
    assert main(["stream", source or file, "--model", model, *CPU, *options]) == 2
    assert "w2v: error: " in (err := capsys.readouterr().err) and said in err


def test_presets_are_those_of_the_library() -> None:
    """cli.py does not import it, to be fast."""
    assert tuple(OVERLAPS) == OFFERED


@pytest.mark.parametrize("left", ["all", "0"])
def test_left_context(left, model, file, capsys) -> None:
    assert main(["stream", file, "--model", model, *CPU, "--left-s", left]) == 0
    chunk = ChunkConfig(32, None if left == "all" else 0)
    asr = Wav2Vec2ASR.from_hparams(model, run_opts={"device": "cpu"})
    assert capsys.readouterr().out == f"{asr.transcribe_file(file, chunk=chunk)}\n"

"""`w2v stream`: text that grows, from files, pipes and microphones."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from tqdm.utils import disp_len

from w2v_plugin import ChunkConfig, Wav2Vec2, Wav2Vec2ASR, Wav2Vec2CTC, stream_command
from w2v_plugin.cli import OVERLAPS as OFFERED
from w2v_plugin.cli import main
from w2v_plugin.folders import save_asr
from w2v_plugin.live import LiveTranscript
from w2v_plugin.live_encoders import OVERLAPS
from w2v_plugin.sessions import Session
from w2v_plugin.stream_command import CLEAR, GRAY, PLAIN, Clock
from w2v_plugin.text import CharVocabulary

CPU = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return _save(tmp_path_factory.mktemp("model"), extractor_norm="layer", normalize=False)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> str:
    return _save(tmp_path_factory.mktemp("published"))


def _save(folder: Path, vocabulary: CharVocabulary | None = None, **options) -> str:
    torch.manual_seed(0)
    shape = {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    body = Wav2Vec2(**shape | {"positions_kernel": 8, "positions_groups": 4} | options)
    ctc = Wav2Vec2CTC(body, vocab_size=32).eval()
    torch.nn.init.normal_(ctc.head.weight)
    save_asr(folder, ctc, vocabulary or CharVocabulary())
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
    assert re.search(r"2\.5 s audio, computed in \d+\.\d{3} of real time", err)
    assert "a sound waits 325 ms at most" in err


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


def test_every_event_is_out_at_once(model, file, capsys, monkeypatch) -> None:
    """A line each, whole, before the next packet is heard."""
    lines: list[int] = []
    feed = Session.feed

    def counted(self, *packet):
        lines.append(capsys.readouterr().out.count("\n"))
        return feed(self, *packet)

    monkeypatch.setattr(Session, "feed", counted)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(_Unbuffered(sys.stdout), "utf-8"))
    assert main(["stream", file, "--model", model, *CPU, *CHUNKS, "--json"]) == 0
    assert lines[:2] == [0, 0] and lines[2:] == [1] * (len(lines) - 2)


class _Unbuffered(io.RawIOBase):
    """What reaches it, was flushed."""

    def __init__(self, to) -> None:
        self.to = to

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.to.write(bytes(data).decode())
        return len(data)


@pytest.fixture
def shown(capsys, monkeypatch) -> Callable[[str, str], list[str]]:
    """What a terminal of 20 columns is told, line by line as it is written anew."""

    def run(model: str, file: str) -> list[str]:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", "20")
        assert main(["stream", file, "--model", model, *CPU, *CHUNKS]) == 0
        return capsys.readouterr().out.split(CLEAR)[1:]

    return run


def test_a_terminal(model, file, said, shown) -> None:
    """One line that is written again; long ones show their end."""
    *growing, last, nothing = shown(model, file)
    assert last == f"{said}\n" and nothing == "" and len(growing) > 3
    for line in growing:
        assert line.endswith(PLAIN) and line.count(GRAY) == 1
        text = line.replace(GRAY, "").replace(PLAIN, "")
        assert 0 < len(text) < 20 and text in said
    assert len(text) == 19  # all of the room


@pytest.mark.parametrize(
    ("stable", "tentative", "line"),
    [
        ("HELLO", "WOR", f"HELLO {GRAY}WOR{PLAIN}"),
        ("HELLO", "", f"HELLO{GRAY}{PLAIN}"),
        ("", "WOR", f"{GRAY}WOR{PLAIN}"),
        ("A MAN OVER THERE", "HELLO", f"AN OVER THERE {GRAY}HELLO{PLAIN}"),
        ("HELLO", "SOMEBODY ELSE SAID WHAT", f"{GRAY}BODY ELSE SAID WHAT{PLAIN}"),
    ],
)
def test_what_may_change_is_gray(stable, tentative, line, capsys, monkeypatch) -> None:
    """Also where only the end of it has room."""
    monkeypatch.setenv("COLUMNS", "20")
    event = LiveTranscript(f"{stable} {tentative}".strip(), stable=stable, tentative=tentative)
    clock = SimpleNamespace(session=SimpleNamespace(finished=False))
    stream_command._show_on_terminal([event], clock)
    assert capsys.readouterr().out == f"{CLEAR}{line}"


def test_wide_characters_on_a_terminal(file, tmp_path, shown) -> None:
    """They take two columns; a line that wraps could not be cleared."""
    letters = tuple(chr(0x4E00 + i) for i in range(27))
    wide = _save(tmp_path, CharVocabulary(letters), extractor_norm="layer", normalize=False)
    *growing, last, _ = shown(wide, file)
    widths = [disp_len(line) for line in growing]
    assert disp_len(last.strip()) > 20 and max(widths) in (18, 19)


def test_a_terminal_after_all_was_taken_back(model, file, shown, monkeypatch) -> None:
    """As beam search may: nothing is left of the line that grew."""
    monkeypatch.setattr(Session, "finish", lambda self: setattr(self, "finished", True) or [])
    *_, growing, last = shown(model, file)
    assert growing and last == ""


def test_real_time(model, file, said, capsys, monkeypatch) -> None:
    """Each packet waits until it would have been spoken; on a clock that only sleeping moves."""
    slept: list[float] = []
    clock = SimpleNamespace(perf_counter=lambda: sum(slept), sleep=slept.append)
    monkeypatch.setattr(stream_command, "time", clock)
    assert main(["stream", file, "--model", model, *CPU, *CHUNKS, "--real-time"]) == 0
    assert slept == pytest.approx([0.1] * 25)
    assert capsys.readouterr().out == f"{said}\n"


def test_two_clocks(model, file, capsys, monkeypatch) -> None:
    """Chunks of 320 ms and 5 ms are complete with the packets of 400, 700, 1000 ms, ...."""
    slept: list[float] = []
    clock = SimpleNamespace(perf_counter=lambda: sum(slept), sleep=slept.append)
    monkeypatch.setattr(stream_command, "time", clock)
    options = ("--real-time", "--json")
    assert main(["stream", file, "--model", model, *CPU, *CHUNKS, *options]) == 0
    *records, _ = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["audio_s"] for r in records] == [0.32, 0.64, 0.96, 1.28, 1.6, 1.92, 2.24]
    assert [r["wall_s"] for r in records] == [0.4, 0.7, 1.0, 1.3, 1.7, 2.0, 2.3]


def test_the_summary() -> None:
    """Of times that are known."""
    encoder = SimpleNamespace(latency_ms=325.0)
    clock = Clock(SimpleNamespace(encoder=encoder))
    clock.audio_s, clock.compute_s, clock.took = 4.0, 1.0, [float(100 - i) for i in range(100)]
    assert str(clock) == (
        "4.0 s audio, computed in 0.250 of real time; a sound waits 325 ms at most, then 51 ms "
        "(median), 96 ms (95 %) for the computing"
    )
    assert "0.0 s audio, computed in 0.000" in str(Clock(SimpleNamespace(encoder=encoder)))


def test_stdin(model, pcm, said, capsys, monkeypatch) -> None:
    """Bytes in odd numbers."""

    class Odd(io.BytesIO):
        def read1(self, size: int = -1) -> bytes:
            return super().read1(min(size, 1001))

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Odd(pcm.tobytes())))
    assert main(["stream", "-", "--model", model, *CPU, *CHUNKS]) == 0
    assert capsys.readouterr().out == f"{said}\n"


class _Pipe(io.BytesIO):
    """Gives two bytes at first, as a slow program may."""

    def read1(self, size: int = -1) -> bytes:
        return super().read1(size if self.tell() else 2)


@pytest.mark.parametrize("head", [b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3\x03"])
def test_a_file_on_stdin(head, model, pcm, capsys, monkeypatch) -> None:
    """Its header, or what is compressed, would be heard as noise."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=_Pipe(head + pcm.tobytes())))
    assert main(["stream", "-", "--model", model, *CPU]) == 2
    out, err = capsys.readouterr()
    assert "this is a file with a header" in err and not out


def test_samples_that_look_like_a_file(model, pcm, said, capsys, monkeypatch) -> None:
    """Only the beginning of a stream can be a header."""

    class Pipe(io.BytesIO):
        def read1(self, size: int = -1) -> bytes:
            return super().read1(3200 - self.tell() % 3200)

    pcm = pcm.copy()
    pcm[1600:1602] = np.frombuffer(b"RIFF", "<i2")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Pipe(pcm.tobytes())))
    assert main(["stream", "-", "--model", model, *CPU, *CHUNKS]) == 0
    assert capsys.readouterr().out.strip()


def test_nothing_on_stdin(model, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO()))
    assert main(["stream", "-", "--model", model, *CPU]) == 2
    assert "no audio came" in capsys.readouterr().err


def test_stdin_at_another_rate(model, pcm, capsys, monkeypatch) -> None:
    """Half of the rate is twice the time."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(pcm.tobytes())))
    assert main(["stream", "-", "--model", model, *CPU, "--rate", "8000"]) == 0
    assert "5.0 s audio" in capsys.readouterr().err


def test_a_file_that_breaks_off(model, file, tmp_path, capsys) -> None:
    """What was said until then is not lost."""
    data = Path(file).read_bytes()
    broken = tmp_path / "broken.wav"
    broken.write_bytes(data[: len(data) // 2])
    assert main(["stream", str(broken), "--model", model, *CPU, *CHUNKS]) == 2
    out, err = capsys.readouterr()
    asr = Wav2Vec2ASR.from_hparams(model, run_opts={"device": "cpu"})
    wav = torch.from_numpy(np.frombuffer(data[44 : len(data) // 2], "<i2") / 32768).float()
    assert out == f"{asr.transcribe_batch(wav[None], chunk=ChunkConfig(16, 64))[0][0]}\n"
    assert "broken.wav: truncated" in err and "Traceback" not in err


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Means what it does in a terminal, also where tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _interrupt_feed(monkeypatch, times: int) -> list[int]:
    """Ctrl-C while the third packet is worked on; returns the packets that were."""
    done: list[int] = []
    feed = Session.feed

    def interrupted(self, *packet):
        if len(done) == 2:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        events = feed(self, *packet)
        done.append(1)
        return events

    monkeypatch.setattr(Session, "feed", interrupted)
    return done


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c(model, file, said, capsys, monkeypatch) -> None:
    """The packet is worked on to its end, and its words and those before are not lost."""
    done = _interrupt_feed(monkeypatch, 1)
    assert main(["stream", file, "--model", model, *CPU, *CHUNKS]) == 130
    out, err = capsys.readouterr()
    asr = Wav2Vec2ASR.from_hparams(model, run_opts={"device": "cpu"})
    wav = torch.from_numpy(soundfile.read(file, dtype="float32")[0][: 3 * 5120])
    assert len(done) == 3 and "w2v: interrupted" in err
    assert out == f"{asr.transcribe_batch(wav[None], chunk=ChunkConfig(16, 64))[0][0]}\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_twice(model, file, capsys, monkeypatch) -> None:
    """Who is in a hurry does not wait for the packet."""
    done = _interrupt_feed(monkeypatch, 2)
    assert main(["stream", file, "--model", model, *CPU, *CHUNKS]) == 130
    assert len(done) == 2 and "w2v: interrupted" in capsys.readouterr().err


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_where_it_means_nothing(model, file, said, capsys, monkeypatch) -> None:
    """As with nohup: who ignores it goes on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _interrupt_feed(monkeypatch, 1)
    assert main(["stream", file, "--model", model, *CPU, *CHUNKS]) == 0
    assert capsys.readouterr().out == f"{said}\n"


def test_a_reader_who_has_had_enough(model, file, capsys, monkeypatch) -> None:
    """`w2v stream … --json | head -1`: no traceback."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["stream", file, "--model", model, *CPU, *CHUNKS, "--json"]) == 1
    assert "Traceback" not in capsys.readouterr().err


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
        (("--rate", "16"), "expected 1000 or more samples per second"),
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
        (None, ("--rate", "8000"), "--rate is for stdin"),
        (None, ("--overlap", "half", "--left-s", "all"), "--overlap has windows of its own"),
        (None, ("--overlap", "half", "--chunk-ms", "320"), "--overlap has windows of its own"),
        ("missing.wav", (), "missing.wav: no such file"),
        ("mic", (), 'pip install "w2v_plugin[mic]"'),
    ],
)
def test_what_cannot_be_done(source, options, said, model, file, capsys, monkeypatch) -> None:
    """Said before a model is loaded, which takes time."""
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    monkeypatch.setattr(stream_command, "open_interface", None)
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

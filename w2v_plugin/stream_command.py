"""`w2v stream`: a file, a pipe or a microphone -> text that grows."""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tqdm.utils import disp_len

from w2v_plugin.commands import open_interface, refused, search_options
from w2v_plugin.inputs import CannotStart
from w2v_plugin.outputs import say
from w2v_plugin.transcripts import to_json

if TYPE_CHECKING:
    from w2v_plugin.live import LiveTranscript
    from w2v_plugin.sessions import Session

PACKET_MS = 100  # of real time
STDIN_RATE = 16_000
FILES = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3")  # what they begin with
GRAY, PLAIN, CLEAR = "\033[90m", "\033[0m", "\r\033[K"

Packets = Iterator[tuple[Any, int]]  # samples, and their rate


def stream(arguments: argparse.Namespace) -> int:
    """`w2v stream`."""
    _check(arguments)
    options = search_options(arguments)
    asr = open_interface("Wav2Vec2StreamingASR", arguments)
    with refused("cannot stream"):
        if options:
            asr.decode_with(**options)
        session = asr.stream(**_how(arguments))
    clock = Clock(session)
    show = _show_json if arguments.json else _show_on_terminal if sys.stdout.isatty() else _show
    from w2v_plugin.errors import BadAudio

    try:
        with refused("cannot listen", (BadAudio,)):
            for packet, rate in _packets(arguments, clock):
                with _undivided():
                    show(clock.feed(packet, rate), clock)
    except KeyboardInterrupt:
        if arguments.source != "mic":  # whose only end it is
            raise
    finally:  # the last words, also of what was broken off
        with _undivided():
            show(clock.finish(), clock)
    print(f"w2v: {clock}", file=sys.stderr)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused before a model is loaded."""
    source, ms, left_s = arguments.source, arguments.chunk_ms, arguments.left_s
    if arguments.overlap is not None and (ms is not None or left_s is not None):
        raise CannotStart("--overlap has windows of its own: leave out --chunk-ms, --left-s.")
    if arguments.real_time and source in ("-", "mic"):
        raise CannotStart("--real-time is for files: stdin and microphone are as fast as they are.")
    if arguments.rate is not None and source != "-":
        raise CannotStart("--rate is for stdin: files and microphones know theirs.")
    if source == "mic":
        _sounddevice()
    elif source != "-" and not os.path.isfile(source):
        raise CannotStart(f"{source}: no such file. Expected a file, - for stdin, or mic.")


def _how(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of `Wav2Vec2StreamingASR.stream`."""
    from w2v_plugin.streaming_asr import DEFAULT_CHUNK, DEFAULT_RULES

    how: dict[str, Any] = {"rules": replace(DEFAULT_RULES, after_word_s=arguments.silence_s)}
    if arguments.overlap is not None:
        return how | {"overlap": arguments.overlap}
    chunk = DEFAULT_CHUNK
    if arguments.chunk_ms is not None:
        chunk = replace(chunk, chunk=arguments.chunk_ms // 20)
    if arguments.left_s is not None:
        left = None if math.isinf(arguments.left_s) else round(arguments.left_s * 50)
        chunk = replace(chunk, left=left)
    return how | {"chunk": chunk}


@contextmanager
def _undivided() -> Iterator[None]:
    """Ctrl-C waits for the end: half a packet would leave a session in between. Twice does not."""
    pressed: list[int] = []

    def wait(number: int, frame: Any) -> None:
        if pressed:
            signal.default_int_handler(number, frame)
        pressed.append(number)

    before = signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        signal.raise_signal(signal.SIGINT)


class Clock:
    """Feeds a session and keeps the times: of the audio, of the wall, and of computing."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.start = time.perf_counter()
        self.audio_s = 0.0  # that was fed
        self.took: list[float] = []  # milliseconds, of packets that completed a chunk
        self.compute_s = 0.0

    @property
    def wall_s(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self.start

    def feed(self, packet: Any, rate: int) -> list[LiveTranscript]:
        """As `Session.feed`."""
        size = len(packet) // 2 if isinstance(packet, bytes) else len(packet)
        self.audio_s += size / rate
        return self._timed(lambda: self.session.feed(packet, rate))

    def finish(self) -> list[LiveTranscript]:
        """As `Session.finish`."""
        return self._timed(self.session.finish)

    def _timed(self, act: Callable[[], list[LiveTranscript]]) -> list[LiveTranscript]:
        frames, start = self.session.frames, time.perf_counter()
        events = act()
        passed = time.perf_counter() - start
        self.compute_s += passed
        if self.session.frames > frames:
            self.took.append(1000 * passed)
        return events

    def __str__(self) -> str:
        took = sorted(self.took) or [0.0]
        worst = self.session.encoder.latency_ms
        factor = self.compute_s / self.audio_s if self.audio_s else 0.0
        return (
            f"{self.audio_s:.1f} s audio, computed in {factor:.3f} of real time; a sound waits "
            f"{worst:.0f} ms at most, then {_at(took, 0.5):.0f} ms (median), "
            f"{_at(took, 0.95):.0f} ms (95 %) for the computing"
        )


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


# --- where audio comes from ----------------------------------------------------------------------


def _packets(arguments: argparse.Namespace, clock: Clock) -> Packets:
    if arguments.source == "mic":
        return _from_microphone()
    if arguments.source == "-":
        return _from_stdin(arguments.rate or STDIN_RATE)
    return _from_file(arguments, clock)


def _from_file(arguments: argparse.Namespace, clock: Clock) -> Packets:
    """As fast as it goes, or packets of 100 ms when they are due."""
    from w2v_plugin.audio import read_blocks
    from w2v_plugin.frames import SAMPLE_RATE

    ms = PACKET_MS if arguments.real_time else arguments.chunk_ms or 640
    for block in filter(len, read_blocks(arguments.source)):
        for packet in block.split(SAMPLE_RATE * ms // 1000):
            if arguments.real_time:
                due = clock.audio_s + len(packet) / SAMPLE_RATE
                time.sleep(max(due - clock.wall_s, 0.0))
            yield packet, SAMPLE_RATE


def _from_stdin(rate: int) -> Packets:
    """16-bit samples; half of one waits for its other half."""
    data = sys.stdin.buffer.read(4)
    if not data:
        raise CannotStart("-: no audio came. Does the command before the pipe work?")
    if data.startswith(FILES):
        raise CannotStart(
            "-: this is a file with a header. Give its name, or samples without one: "
            "ffmpeg -i FILE -f s16le -ac 1 -ar 16000 - | w2v stream - …"
        )
    while True:
        whole = len(data) // 2 * 2
        if whole:
            yield data[:whole], rate
        more = sys.stdin.buffer.read1(rate * PACKET_MS // 1000 * 2)  # type: ignore[union-attr]
        if not more:
            return
        data = data[whole:] + more


def _sounddevice() -> Any:
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: without its PortAudio library
        raise CannotStart(
            f'the microphone needs sounddevice and PortAudio: pip install "w2v_plugin[mic]" '
            f"({error})"
        ) from error
    return sounddevice


def _from_microphone() -> Packets:
    """Until Ctrl-C."""
    sounddevice = _sounddevice()
    heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    try:
        device = sounddevice.query_devices(kind="input")
        rate = int(device["default_samplerate"])
        stream = sounddevice.RawInputStream(
            samplerate=rate,
            channels=1,
            dtype="int16",
            blocksize=rate * PACKET_MS // 1000,
            callback=lambda data, frames, times, status: heard.put(bytes(data)),
        )
    except (sounddevice.PortAudioError, ValueError) as error:
        raise CannotStart(f"no microphone: {error}") from error
    print(f"w2v: listening to {device['name']}, Ctrl-C ends", file=sys.stderr)
    with stream:
        while True:
            yield heard.get(), rate


# --- where text goes -----------------------------------------------------------------------------


def _show(events: list[LiveTranscript], clock: Clock) -> None:
    """Finished utterances, each a line."""
    for event in events:
        if event.is_final:
            say(f"{event.text}\n")


def _show_json(events: list[LiveTranscript], clock: Clock) -> None:
    """Every event as a line."""
    for event in events:
        record = {
            "segment": event.segment,
            "is_final": event.is_final,
            "stable": event.stable,
            "tentative": event.tentative,
            "audio_s": round(event.audio_s, 3),
            "wall_s": round(clock.wall_s, 3),
            "compute_ms": round(event.compute_ms, 1),
        }
        known = json.loads(to_json("", event, event.audio_s))
        keys = ("text", "confidence", "score", "words", "alternatives")
        record |= {key: known[key] for key in keys}
        say(json.dumps(record, ensure_ascii=False) + "\n")


def _show_on_terminal(events: list[LiveTranscript], clock: Clock) -> None:
    """Text that grows on the last line, what may change in gray; finished utterances stay."""
    for event in events:
        if event.is_final:
            say(f"{CLEAR}{event.text}\n")
            continue
        shown = _fitting(event.text, shutil.get_terminal_size().columns - 1)
        stable = shown[: max(len(shown) - len(event.tentative), 0)]
        say(f"{CLEAR}{stable}{GRAY}{shown[len(stable) :]}{PLAIN}")
    if clock.session.finished:
        say(CLEAR)  # beam search may have taken back all that the line says


def _fitting(text: str, columns: int) -> str:
    """The end of a text, as much as a line holds: wide characters take two columns."""
    text = text[-max(columns, 1) :]
    while disp_len(text) > columns and len(text) > 1:
        text = text[1:]
    return text

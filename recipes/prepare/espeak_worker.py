"""Helper process of commands.py: JSON requests on stdin -> 16 kHz wav files and phone times.

espeak-ng is GPL-licensed, keeps global state and draws from a global random generator. It is
therefore loaded here, in a process of its own that shares nothing with w2v_plugin but text and
files. The first line of stdin is the job, every further line one utterance; one JSON line per
finished utterance comes back. Surprising: espeak-ng's state carries over between utterances, so
audio is reproducible only for the same list in the same order from a fresh, seeded process.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import shutil
import sys
import tempfile
import wave
from pathlib import Path
from typing import Any

import espeakng_loader
import numpy as np

SYNCHRONOUS, PHONEME_EVENTS, IPA_NAMES, DO_NOT_EXIT = 2, 1, 2, 0x8000
RATE, VOLUME, PITCH, PITCH_RANGE = 1, 2, 3, 4  # espeak_PARAMETER
END_OF_EVENTS, PHONEME = 0, 7  # espeak_EVENT_TYPE
UTF8 = 1
LONGEST_PATH = 150  # espeak-ng keeps the data path in a fixed buffer and fails from about 160
ESPEAK_RATE, SAMPLE_RATE = 22_050, 16_000
UP, DOWN = 320, 441  # 22050 * 320 / 441 = 16000; another DOWN also shifts pitch and formants
STRESS_AND_LENGTH = str.maketrans("", "", "ˈˌː")


class EventId(ctypes.Union):
    """espeak_EVENT.id; the phone name lies in the struct itself, cut to eight bytes."""

    _fields_ = (
        ("number", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("string", ctypes.c_char * 8),
    )


class Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", EventId),
    )


OnAudio = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event)
)


class Espeak:
    """The library, initialized once; `say` returns samples at 22.05 kHz and phones."""

    def __init__(self, seed: int) -> None:
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        data, flags = short_data_path(), PHONEME_EVENTS | IPA_NAMES | DO_NOT_EXIT
        rate = self.library.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), flags)
        if rate != ESPEAK_RATE:
            raise RuntimeError(f"espeak_Initialize gave {rate}, expected {ESPEAK_RATE}")
        self.library.espeak_ng_SetRandSeed.argtypes = (ctypes.c_long,)
        self.library.espeak_ng_SetRandSeed(seed)
        self.on_audio = OnAudio(self.collect)  # held: ctypes does not keep callbacks alive
        self.library.espeak_SetSynthCallback(self.on_audio)
        self.audio: list[np.ndarray] = []
        self.phones: list[tuple[int, str]] = []

    def collect(self, samples: Any, count: int, events: Any) -> int:
        """Callback: one block of audio and the events in it; 0 means go on."""
        if samples and count > 0:
            self.audio.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events and events[index].type != END_OF_EVENTS:
            event = events[index]
            if event.type == PHONEME:
                self.phones.append((event.sample, event.id.string.decode("utf-8", "replace")))
            index += 1
        return 0

    def choose(self, voice: str) -> None:
        """Select "language+variant"; espeak-ng itself accepts an unknown variant in silence."""
        _, _, variant = voice.partition("+")
        known = (Path(espeakng_loader.get_data_path()) / "voices" / "!v" / variant).is_file()
        if not known or self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {voice!r}")

    def say(self, request: dict[str, Any]) -> tuple[np.ndarray, list[tuple[int, str]]]:
        """Synthesize one request."""
        self.audio, self.phones = [], []
        self.choose(request["voice"])
        settings = {RATE: "rate", VOLUME: "volume", PITCH: "pitch", PITCH_RANGE: "pitch_range"}
        for parameter, name in settings.items():
            self.library.espeak_SetParameter(parameter, request[name], 0)
        text = request["spoken"].encode()
        size, nothing = ctypes.c_size_t(len(text) + 1), ctypes.c_void_p(None)
        self.library.espeak_Synth(text, size, 0, 1, 0, UTF8, nothing, nothing)
        self.library.espeak_Synchronize()
        return np.concatenate([np.zeros(0, np.int16), *self.audio]), self.phones


def short_data_path() -> str:
    """espeak-ng's data folder, through a link in the temporary folder where its path is long."""
    data = espeakng_loader.get_data_path()
    if len(data.encode()) < LONGEST_PATH:
        return data
    folder = tempfile.mkdtemp(prefix="espeak-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    link = Path(folder) / "espeak-ng-data"
    link.symlink_to(data, target_is_directory=True)
    return str(link)


def resample(audio: np.ndarray, down: int) -> np.ndarray:
    """Band-limited resampling by 320 / down: cut the spectrum and transform back."""
    blocks = -(-len(audio) // down) + 1  # one block of silence keeps the ends from wrapping around
    spectrum = np.fft.rfft(audio, blocks * down)
    size = blocks * UP
    wave_form = np.fft.irfft(spectrum[: size // 2 + 1], size) * (UP / down)
    return wave_form[: len(audio) * UP // down]


def phone_times(
    phones: list[tuple[int, str]], down: int, seconds: float
) -> list[tuple[float, str]]:
    """(start in the resampled file of `seconds`, IPA symbol); pauses are "_"."""
    factor = UP / down / SAMPLE_RATE
    bare = [(sample * factor, name.translate(STRESS_AND_LENGTH)) for sample, name in phones]
    # "(en)" announces a change of language and is no sound; the last pause may start at the end
    return [(round(t, 4), n or "_") for t, n in bare if not n.startswith("(") and t < seconds]


def write_wav(path: Path, audio: np.ndarray) -> None:
    """16-bit mono at 16 kHz."""
    pcm = np.clip(np.rint(audio), -32768, 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(pcm.tobytes())


def main() -> int:
    """Answer requests until the job has its seconds of audio."""
    job = json.loads(sys.stdin.readline())
    voice, total = Espeak(job["seed"]), 0.0
    for line in sys.stdin:
        request = json.loads(line)
        audio, phones = voice.say(request)
        audio = resample(audio, request["down"])
        seconds = len(audio) / SAMPLE_RATE
        if seconds > job["max_s"]:
            continue
        write_wav(Path(job["folder"]) / f"{request['id']}.wav", audio)
        times = phone_times(phones, request["down"], seconds)
        answer = {"id": request["id"], "seconds": seconds, "phones": times}
        print(json.dumps(answer), flush=True)
        total += seconds
        if total >= job["seconds"]:
            return 0
    print(f"only {total:.1f} of {job['seconds']:.1f} s from all requests", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

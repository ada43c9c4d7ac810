"""Listed utterances -> verdicts: every file decoded from beginning to end, all cores at work.

Stands between what a corpus lists and the manifest: length, rate, level and a hash of the samples
come from one pass over the audio; parts of longer recordings are cut to files of their own on the
way. There are two kinds of findings. A *reason* says why an utterance cannot be used and is left
out; a *flag* says what looks wrong (silence, clipping, the same audio twice) and decides nothing.
Surprising: headers alone do not tell; a truncated FLAC opens normally and promises its full length.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import soundfile
import torch
from tqdm import tqdm

from w2v_plugin.audio import read_blocks, read_window
from w2v_plugin.errors import BadAudio
from w2v_plugin.frames import HOP, SAMPLE_RATE
from w2v_plugin.text import clean_text
from w2v_plugin.text_checks import damage

FULL_SCALE = 0.999  # of samples that count as clipped
CLIPPED_SHARE = 1e-3  # more of them are a recording that was too loud, not a peak
SILENT_PEAK = 1e-3  # -60 dB of full scale: no microphone is that quiet while somebody speaks
PROMISE_S = 0.1  # a listed length may be off by so much (codecs pad) ...
PROMISE_SHARE = 0.02  # ... or by this share of it
BEYOND_END_S = 0.1  # by which a part may reach beyond the end of its recording
UNSAFE = re.compile(r"[^\w.-]")  # in file names
NAME = 50  # characters of an id in a file name, which in any script has room for so many
UNKNOWN = 2**62  # samples: a length that libsndfile does not know
OGG_PAGE = 65307  # bytes at most
FLAGS = ("silent", "clipped", "length", "incomplete", "text", "duplicate")


@dataclass(frozen=True)
class Utterance:
    """One recording, or a part of one, as a corpus lists it; not yet checked.

    Parameters
    ----------
    id : str
        Unique within the manifest.
    wav : Path
        The audio file.
    speaker : str
        Any name that tells speakers apart; empty where the corpus does not say.
    text : str
        The transcript; empty for unlabelled audio.
    source : str
        "file:line" where the corpus lists it, so that errors can point there.
    start, end : float
        Seconds, for a part of a longer recording; `end=None` is the end of the file.
    promised : float, optional
        Seconds that the corpus says it is long; compared with what is decoded.
    problem : str
        Why it cannot be used, where reading the list was enough to know.
    """

    id: str
    wav: Path
    speaker: str
    text: str = ""
    source: str = ""
    start: float = 0.0
    end: float | None = None
    promised: float | None = None
    problem: str = ""

    @property
    def is_part(self) -> bool:
        """Whether it has to be cut out of its file."""
        return self.start > 0 or self.end is not None


@dataclass(frozen=True)
class AudioFacts:
    """What decoding a whole file tells: `seconds` at 16 kHz, and the file's own rate and channels.

    `peak` is relative to full scale, `clipped` the share of samples there; `digest` is the same for
    the same samples, whatever the file is called; `whole` is what the file says of its end.
    """

    seconds: float
    rate: int
    channels: int
    peak: float
    clipped: float
    digest: str
    whole: bool = True


@dataclass(frozen=True)
class Verdict:
    """An utterance that was checked; `reason` says why it is left out ("" = it is kept)."""

    utterance: Utterance
    facts: AudioFacts | None = None
    reason: str = ""


@dataclass(frozen=True)
class Flag:
    """Something about a kept utterance that a person should look at; `kind` is one of `FLAGS`."""

    utterance: Utterance
    kind: str
    words: str


def examine(path: str | Path) -> AudioFacts:
    """Decode all of a file; raises `BadAudio` where that is not possible.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     soundfile.write(f"{folder}/a.wav", [0.5, -0.5] * 8000, 8000)
    ...     facts = examine(f"{folder}/a.wav")
    >>> facts.seconds, facts.rate, facts.channels
    (2.0, 8000, 1)
    """
    samples, clipped, peak = 0, 0, 0.0
    content = hashlib.blake2b(digest_size=16)
    for wav in read_blocks(path):
        if len(wav):
            loudest = float(torch.linalg.vector_norm(wav, float("inf")))
            if loudest >= FULL_SCALE:
                clipped += int((wav.abs() >= FULL_SCALE).sum())
            samples, peak = samples + len(wav), max(peak, loudest)
            content.update(wav.numpy().data)
    info = soundfile.info(str(path))
    share, seconds, whole = clipped / samples, samples / SAMPLE_RATE, ogg_ends(path)
    digest = content.hexdigest()
    return AudioFacts(seconds, info.samplerate, info.channels, peak, share, digest, whole)


def ogg_ends(path: str | Path) -> bool:
    """Whether an Ogg file has its last page, marked as such (RFC 3533); True for other files.

    Nothing else tells: it promises no length, and what is left of it decodes.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"OggS":
            return True
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - OGG_PAGE, 0))
        _, mark, page = file.read().rpartition(b"OggS")
    header, segments = page[:23], page[23:]  # flags in byte 1, the number of segments in the last
    if not mark or len(header) < 23 or len(segments) < header[22]:
        return False
    return bool(header[1] & 4) and len(segments) >= header[22] + sum(segments[: header[22]])


def header_seconds(wav: Path) -> float:
    """Length that a file's header promises, cheaply; 0 for a broken file, or where it does not."""
    try:
        info = soundfile.info(str(wav))
    except (soundfile.SoundFileError, RuntimeError, TypeError, UnicodeEncodeError):
        return 0.0
    return float(info.duration) if info.frames < UNKNOWN else 0.0


def heard_seconds(utterance: Utterance, whole: float) -> float:
    """Its length in a file of `whole` seconds; 0 where it ends so far beyond it that `cut` refuses.

    Example
    -------
    >>> part = Utterance("a", Path("a.wav"), "", start=1.0, end=3.0)
    >>> heard_seconds(part, 9.0), heard_seconds(part, 2.0)
    (2.0, 0.0)
    """
    end = whole if utterance.end is None else utterance.end
    return max(end - utterance.start, 0.0) if end <= whole + BEYOND_END_S else 0.0


def as_promised(promised: float, seconds: float) -> bool:
    """Whether a file may be as long as its corpus says.

    Example
    -------
    >>> as_promised(2.0, 2.01), as_promised(2.0, 6.0)
    (True, False)
    """
    return abs(promised - seconds) <= max(PROMISE_S, PROMISE_SHARE * promised)


def check_all(
    listed: Iterable[Utterance],
    *,
    title: str = "audio",
    workers: int | None = None,
    max_s: float | None = None,
    min_s: float | None = None,
    need_text: bool = False,
    cut_to: Path | None = None,
) -> list[Verdict]:
    """Check every utterance, in parallel, with a progress bar; verdicts in the given order.

    Parameters
    ----------
    listed : iterable of Utterance
        What the corpus lists.
    title : str
        Of the progress bar, which is shown on terminals only.
    workers : int, optional
        Files decoded at a time; one per processor if not given.
    max_s, min_s : float, optional
        Longest and shortest utterance to accept, in seconds.
    need_text : bool
        Give a reason to utterances with an empty transcript.
    cut_to : Path, optional
        Folder for parts of longer recordings, as 16 kHz FLAC files; see `cut`.

    Returns
    -------
    list of Verdict
    """
    utterances = list(listed)

    def judge(utterance: Utterance) -> Verdict:
        if problem := utterance.problem or _not_unicode(utterance):
            return Verdict(utterance, reason=clean_text(problem))
        if need_text and not clean_text(utterance.text):
            return Verdict(utterance, reason="empty transcript")
        try:
            heard = cut(utterance, cut_to) if cut_to and utterance.is_part else utterance
            facts = examine(heard.wav)
        except BadAudio as error:
            return Verdict(utterance, reason=clean_text(str(error)))
        return Verdict(heard, facts, length_reason(facts.seconds, max_s, min_s))

    return in_parallel(judge, utterances, title=title, workers=workers)


def length_reason(seconds: float, max_s: float | None, min_s: float | None) -> str:
    """Why it is left out for its length; "" where it is not."""
    if max_s is not None and seconds > max_s:
        return f"{seconds:.2f} s long, the longest accepted is {max_s:g} s"
    if min_s is not None and seconds < min_s:
        return f"{seconds:.2f} s long, the shortest accepted is {min_s:g} s"
    return ""


def in_parallel(
    judge: Callable[[Utterance], Verdict],
    utterances: Sequence[Utterance],
    *,
    title: str,
    workers: int | None,
) -> list[Verdict]:
    """Apply `judge` to all of them, keeping the order; threads do, decoding releases the GIL."""
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    try:
        done = pool.map(judge, utterances)
        return list(tqdm(done, total=len(utterances), desc=title, unit="file", disable=None))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C shall not wait for the rest of the corpus


def cut(utterance: Utterance, folder: Path) -> Utterance:
    """Write a part of a recording to `folder` and return the utterance that is this new file.

    A hash of the samples stands in its name: what other manifests name is never replaced by other
    audio, whatever is called the same or has changed.

    Raises
    ------
    BadAudio
        The recording cannot be decoded there, or ends before the part does.
    """
    first = round(utterance.start * SAMPLE_RATE)
    end = header_seconds(utterance.wav) if utterance.end is None else utterance.end
    samples = max(round(end * SAMPLE_RATE) - first, 0)
    wav = read_window(utterance.wav, first, samples)
    if samples <= 0 or len(wav) < samples - BEYOND_END_S * SAMPLE_RATE:
        raise BadAudio(
            f"{utterance.wav}: the part from {utterance.start:g} s on should be "
            f"{samples / SAMPLE_RATE:.2f} s long, but the recording has only "
            f"{len(wav) / SAMPLE_RATE:.2f} s there. Is it the right recording, and complete?"
        )
    target = folder / cut_name(utterance.id, wav.numpy().tobytes())
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    soundfile.write(part, wav.numpy(), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    part.replace(target)
    return replace(utterance, wav=target, start=0.0, end=None)


def cut_name(name: str, samples: bytes) -> str:
    """What the file of a part is called, by its id, which never leads out of the folder.

    Example
    -------
    >>> cut_name("../ann/1 a", bytes(2))
    'ann_1_a-77342176be65.flac'
    """
    content = hashlib.blake2b(name.encode(), digest_size=6)
    content.update(samples)
    return f"{UNSAFE.sub('_', name).lstrip('._')[:NAME]}-{content.hexdigest()}.flac"


def find_flags(verdicts: Iterable[Verdict], elsewhere: Mapping[str, str]) -> list[Flag]:
    """What looks wrong among the kept utterances of one manifest.

    Parameters
    ----------
    verdicts : iterable of Verdict
        Of the manifest.
    elsewhere : mapping of str to str
        Digests of other manifests' audio, and where it stands there ("test.csv: id").
    """
    flags: list[Flag] = []
    first: dict[str, Utterance] = {}
    for verdict in verdicts:
        utterance, facts = verdict.utterance, verdict.facts
        if verdict.reason or facts is None:
            continue
        found = [*_level(facts), *_promise(utterance, facts), *_text(utterance.text, facts.seconds)]
        other = first.setdefault(facts.digest, utterance)
        if other is not utterance:
            text = "" if clean_text(other.text) == clean_text(utterance.text) else ", other text"
            found.append(("duplicate", f"same audio as {other.id} ({other.source}){text}"))
        if facts.digest in elsewhere:
            found.append(("duplicate", f"same audio as {elsewhere[facts.digest]}"))
        flags += [Flag(utterance, kind, words) for kind, words in found]
    return flags


def drop_flagged(
    verdicts: Iterable[Verdict], flags: Iterable[Flag], kinds: Collection[str]
) -> list[Verdict]:
    """Verdicts in which flags of these kinds have become reasons."""
    reasons = {
        flag.utterance.id: f"{flag.kind}: {flag.words}" for flag in flags if flag.kind in kinds
    }
    return [
        replace(verdict, reason=verdict.reason or reasons.get(verdict.utterance.id, ""))
        for verdict in verdicts
    ]


def _not_unicode(utterance: Utterance) -> str:
    """What of it no manifest can hold."""
    for what in ("id", "wav", "speaker", "text"):
        try:
            str(getattr(utterance, what)).encode()
        except UnicodeEncodeError as error:
            name = {"wav": "the file's name"}.get(what, f"its {what}")
            return f"{name} is no valid Unicode ({error.object!a}). Rename it."
    return ""


def _level(facts: AudioFacts) -> Iterable[tuple[str, str]]:
    if facts.peak == 0:
        yield "silent", "every sample is zero"
    elif facts.peak < SILENT_PEAK:
        yield "silent", f"its loudest sample is {facts.peak:.6f} of full scale"
    if facts.clipped > CLIPPED_SHARE:
        yield "clipped", f"{100 * facts.clipped:.1f} % of its samples are at full scale"
    if not facts.whole:
        yield "incomplete", "the file has no last page (Ogg): was all of it copied?"


def _promise(utterance: Utterance, facts: AudioFacts) -> Iterable[tuple[str, str]]:
    promised = utterance.promised
    if promised is None:
        return
    if not as_promised(promised, facts.seconds):
        yield "length", f"{facts.seconds:.2f} s long, but the corpus says {promised:.2f} s"


def _text(raw: str, seconds: float) -> Iterable[tuple[str, str]]:
    text = clean_text(raw)
    if odd := sorted({c for c in text if c == "\ufffd" or (ord(c) < 32 or 127 <= ord(c) < 160)}):
        names = ", ".join(f"U+{ord(character):04X}" for character in odd)
        yield "text", f"holds {names}, which a wrong decoding leaves behind"
    elif damaged := damage(raw):
        yield "text", damaged
    frames = int(seconds * SAMPLE_RATE) // HOP
    if len(text) > frames:
        yield "text", f"{len(text)} characters in {frames} frames of 20 ms: more than CTC can say"

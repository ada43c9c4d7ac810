"""What decoding finds: a text with times and confidences, and the formats to write it in.

Every decoder returns a `Transcript`, plain data that knows neither the model nor the audio.
Writers take one transcript and return a string: a line of plain text or JSON, NIST CTM records, or
a whole SRT or WebVTT file.

Surprising: CTC says a character at one moment inside its sound, so a word ends with its last
character and not with its last sound. Subtitles therefore stay for a second where there is room.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape

LINE, LINES = 42, 2  # of a cue: characters in a line, lines
PAUSE, LONGEST, SHORTEST = 0.8, 7.0, 1.0  # seconds: new cue after, longest cue, kept on screen


@dataclass(frozen=True)
class Span:
    """A word or a character, and when it was said.

    Parameters
    ----------
    text : str
        What was said.
    start, end : float
        Seconds from the beginning of the audio.
    confidence : float
        In [0, 1]; see `path_transcript`.
    """

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Transcript:
    """A text and what is known about it.

    Parameters
    ----------
    text : str
        The words with single spaces.
    words, characters : tuple of Span
        In order; spaces are no characters.
    score : float
        Natural logarithm; what it measures depends on the decoder, so compare only scores of one
        decoder and one utterance.
    alternatives : tuple of Transcript
        What else it could be, best first, without the text itself; only beam search has any.

    Example
    -------
    >>> said = Transcript("HI", (Span("HI", 0.5, 0.7, 0.9),))
    >>> said.confidence, Transcript("").confidence
    (0.9, 0.0)
    """

    text: str
    words: tuple[Span, ...] = ()
    characters: tuple[Span, ...] = ()
    score: float = 0.0
    alternatives: tuple[Transcript, ...] = ()

    @property
    def confidence(self) -> float:
        """Mean over the words, in [0, 1]; 0 if there are none."""
        return sum(word.confidence for word in self.words) / max(len(self.words), 1)


def to_json(name: str, transcript: Transcript, duration: float) -> str:
    """One line of JSON: text, confidence, score, words with times, alternatives.

    Parameters
    ----------
    name : str
        Path of the audio, or what else identifies it.
    transcript : Transcript
        What was said in it.
    duration : float
        Of the audio, in seconds.

    Example
    -------
    >>> to_json("a.wav", Transcript("HI", (Span("HI", 0.5, 0.7, 0.9),)), 1.0)[:50]
    '{"path": "a.wav", "duration": 1.0, "text": "HI", "'
    """
    others = [
        {"text": other.text, "confidence": round(other.confidence, 4), "score": other.score}
        for other in transcript.alternatives
    ]
    words = [
        asdict(word)
        | {"start": round(word.start, 3), "end": round(word.end, 3)}
        | {"confidence": round(word.confidence, 4)}
        for word in transcript.words
    ]
    record = {
        "path": name,
        "duration": round(duration, 3),
        "text": transcript.text,
        "confidence": round(transcript.confidence, 4),
        "score": transcript.score,
        "words": words,
        "alternatives": others,
    }
    return json.dumps(record, ensure_ascii=False)


def to_ctm(name: str, transcript: Transcript, channel: str = "1") -> str:
    """Time-marked words as NIST's sclite reads them: name, channel, start, duration, word, score.

    Parameters
    ----------
    name : str
        Of the recording; blanks become `_`, for they separate the fields.
    transcript : Transcript
        What was said in it.
    channel : str
        Of the recording.

    Returns
    -------
    str
        One line per word, each ended; empty without words.

    Example
    -------
    >>> to_ctm("a talk", Transcript("HI", (Span("HI", 0.5, 0.7, 0.9),)))
    'a_talk 1 0.500 0.200 HI 0.900\\n'
    """
    name = "_".join(name.split())
    return "".join(
        f"{name} {channel} {word.start:.3f} {word.end - word.start:.3f} {word.text} "
        f"{word.confidence:.3f}\n"
        for word in transcript.words
    )


def to_srt(transcript: Transcript) -> str:
    """SubRip subtitles.

    Example
    -------
    >>> print(to_srt(Transcript("HI", (Span("HI", 3600.5, 3602, 0.9),))))
    1
    01:00:00,500 --> 01:00:02,000
    HI
    <BLANKLINE>
    """
    return "\n".join(
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n"
        for number, (start, end, text) in enumerate(_cues(transcript.words), 1)
    )


def to_vtt(transcript: Transcript) -> str:
    """WebVTT subtitles (W3C); `&`, `<` and `>` are escaped.

    Example
    -------
    >>> print(to_vtt(Transcript("R&B", (Span("R&B", 0.5, 2, 0.9),))))
    WEBVTT
    <BLANKLINE>
    00:00:00.500 --> 00:00:02.000
    R&amp;B
    <BLANKLINE>
    """
    return "\n".join(
        [
            "WEBVTT\n",
            *(
                f"{_clock(start, '.')} --> {_clock(end, '.')}\n{escape(text, quote=False)}\n"
                for start, end, text in _cues(transcript.words)
            ),
        ]
    )


def _cues(words: Sequence[Span]) -> Iterator[tuple[float, float, str]]:
    """Start, end and lines of each subtitle."""
    groups: list[list[Span]] = []
    for word in words:
        if groups and _fits(groups[-1], word):
            groups[-1].append(word)
        else:
            groups.append([word])
    for number, group in enumerate(groups):
        start, end = group[0].start, group[-1].end
        later = groups[number + 1][0].start if number + 1 < len(groups) else float("inf")
        yield start, max(end, min(start + SHORTEST, later)), "\n".join(_lines(group))


def _fits(group: Sequence[Span], word: Span) -> bool:
    """Whether a word may follow in the same cue."""
    return (
        word.start - group[-1].end <= PAUSE
        and word.end - group[0].start <= LONGEST
        and len(_lines([*group, word])) <= LINES
    )


def _lines(words: Sequence[Span]) -> list[str]:
    return textwrap.wrap(" ".join(word.text for word in words), LINE, break_on_hyphens=False)


def _clock(seconds: float, point: str) -> str:
    """HH:MM:SS and milliseconds."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return (
        f"{minutes // 60:02d}:{minutes % 60:02d}:"
        f"{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"
    )

"""Formats: every time, name and text as the format demands, and subtitles that can be read."""

from __future__ import annotations

import json
import re

import pytest

from w2v_plugin.transcripts import Span, Transcript, to_ctm, to_json, to_srt, to_vtt


def said(*words: tuple[str, float, float]) -> Transcript:
    spans = tuple(Span(text, start, end, 0.5) for text, start, end in words)
    return Transcript(" ".join(span.text for span in spans), spans, (), -1.5)


def cues(srt: str) -> list[tuple[str, str, list[str]]]:
    """Start, end and lines of every cue."""
    found = []
    for block in srt.strip().split("\n\n"):
        _, times, *lines = block.split("\n")
        found.append((*times.split(" --> "), lines))
    return found


def test_confidence_is_the_mean_of_the_words() -> None:
    words = (Span("A", 0, 1, 0.25), Span("B", 1, 2, 0.75))
    assert Transcript("A B", words).confidence == 0.5
    assert Transcript("").confidence == 0.0


def test_json_holds_everything_in_one_line() -> None:
    best = said(("NAÏVE", 0.1, 0.30000000000000004))
    other = said(("NAIVE", 0.1, 0.3))
    line = to_json("a b.wav", Transcript(best.text, best.words, (), -1.0, (other,)), 1.23456)
    assert "\n" not in line and "NAÏVE" in line
    record = json.loads(line)
    assert record["path"] == "a b.wav" and record["duration"] == 1.235
    assert record["words"] == [{"text": "NAÏVE", "start": 0.1, "end": 0.3, "confidence": 0.5}]
    assert record["alternatives"] == [{"text": "NAIVE", "confidence": 0.5, "score": -1.5}]
    assert (record["text"], record["score"], record["confidence"]) == ("NAÏVE", -1.0, 0.5)


def test_json_of_nothing() -> None:
    record = json.loads(to_json("a", Transcript(""), 0.5))
    assert record["text"] == "" and record["words"] == [] and record["confidence"] == 0.0


def test_ctm_has_six_fields_a_word() -> None:
    ctm = to_ctm("my talk\t1", said(("ONE", 0.5, 0.75), ("TWO", 4000, 4000.5)), channel="A")
    assert ctm == "my_talk_1 A 0.500 0.250 ONE 0.500\nmy_talk_1 A 4000.000 0.500 TWO 0.500\n"
    assert to_ctm("a", Transcript("")) == ""


@pytest.mark.parametrize(
    ("seconds", "clock"),
    [
        (0.0, "00:00:00,000"),
        (59.9996, "00:01:00,000"),  # rounded up through the minute
        (3599.9999, "01:00:00,000"),
        (3661.5, "01:01:01,500"),
        (360_000.0, "100:00:00,000"),
    ],
)
def test_clock(seconds: float, clock: str) -> None:
    assert cues(to_srt(said(("A", seconds, seconds + 2))))[0][0] == clock
    assert (
        to_vtt(said(("A", seconds, seconds + 2))).split("\n")[2].startswith(clock.replace(",", "."))
    )


def test_srt_numbers_its_cues_and_separates_them() -> None:
    srt = to_srt(said(("ONE", 0, 1), ("TWO", 5, 6.5)))
    assert srt == (
        "1\n00:00:00,000 --> 00:00:01,000\nONE\n\n2\n00:00:05,000 --> 00:00:06,500\nTWO\n"
    )


def test_vtt_escapes_and_begins_with_its_name() -> None:
    vtt = to_vtt(said(("<R&B>", 0, 1), ("B", 5, 6)))
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.000\n&lt;R&amp;B&gt;\n\n00:00:05")


@pytest.mark.parametrize("gap", [0.02, 0.5])
def test_cues_are_short_enough_to_read(gap: float) -> None:
    """Two lines of 42 characters, 7 seconds; no word lost, none twice, no overlap."""
    words = [(f"WORD{'X' * (i % 12)}{i}", i * gap, i * gap + 0.02) for i in range(200)]
    found = cues(to_srt(said(*words)))
    assert " ".join(" ".join(lines) for _, _, lines in found) == said(*words).text
    times = [seconds(clock) for start, end, _ in found for clock in (start, end)]
    assert times == sorted(times)
    assert max(end - start for start, end in zip(times[::2], times[1::2], strict=True)) <= 7.0
    assert all(len(lines) <= 2 and max(map(len, lines)) <= 42 for _, _, lines in found)
    assert 200 / len(found) > 4  # and not one cue a word


def seconds(clock: str) -> float:
    hours, minutes, rest = re.split(":", clock.replace(",", "."))
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)


def test_a_pause_begins_a_cue() -> None:
    assert len(cues(to_srt(said(("A", 0, 1), ("B", 1.7, 2))))) == 1
    assert len(cues(to_srt(said(("A", 0, 1), ("B", 1.9, 2))))) == 2


def test_a_short_cue_stays_for_a_second_where_there_is_room() -> None:
    alone, pressed = said(("A", 1, 1.02)), said(("A", 1, 1.02), ("B" * 40, 1.1, 9), ("C", 9.9, 10))
    assert cues(to_srt(alone))[0][1] == "00:00:02,000"
    assert cues(to_srt(pressed))[0][1] == "00:00:01,100"


def test_a_word_without_end_is_broken_into_lines() -> None:
    assert cues(to_srt(said(("A" * 100, 0, 1))))[0][2] == ["A" * 42, "A" * 42, "A" * 16]


def test_no_words_no_cues() -> None:
    assert to_srt(Transcript("")) == "" and to_vtt(Transcript("")) == "WEBVTT\n"

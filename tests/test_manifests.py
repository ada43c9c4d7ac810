"""Manifests: what is accepted, what is left out and why, and that errors point at file and line."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from w2v_plugin.checks import Verdict, examine, find_flags, ogg_ends
from w2v_plugin.errors import BadAudio, BadManifest
from w2v_plugin.manifests import (
    COLUMNS,
    Utterance,
    read_manifest,
    skipped_path,
    write_manifest,
)


def tone(seconds: float, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    """A quiet 200 Hz tone, (samples, channels)."""
    wav = 0.1 * np.sin(2 * np.pi * 200 * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wav[:, None], channels, axis=1)


def listed(wav: Path, line: int = 1, text: str = "hello", name: str = "") -> Utterance:
    """An utterance as line `line` of corpus.txt lists it."""
    return Utterance(name or wav.stem, wav, "ann", text, f"corpus.txt:{line}")


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """One second of usable audio."""
    soundfile.write(tmp_path / "good.wav", tone(1.0), 16_000)
    return tmp_path / "good.wav"


def missing(path: Path) -> Path:
    """A path that leads nowhere."""
    return path / "missing.wav"


def truncated(path: Path) -> Path:
    """A FLAC file cut in the middle; its header still promises everything."""
    wav = path / "cut.flac"
    noise = np.random.default_rng(0).normal(0, 0.1, 32_000)
    soundfile.write(wav, noise, 16_000)
    wav.write_bytes(wav.read_bytes()[: wav.stat().st_size // 2])
    return wav


def text_named_wav(path: Path) -> Path:
    """Text under the name of a wav file."""
    wav = path / "text.wav"
    wav.write_text("this is no audio at all " * 50)
    return wav


def empty_file(path: Path) -> Path:
    """Zero bytes."""
    (path / "empty.wav").touch()
    return path / "empty.wav"


def nan_samples(path: Path) -> Path:
    """A float wav with one NaN in it."""
    wav, data = path / "nan.wav", tone(1.0)
    data[100] = np.nan
    soundfile.write(wav, data, 16_000, subtype="FLOAT")
    return wav


def too_short(path: Path) -> Path:
    """399 samples: one less than a frame hears."""
    wav = path / "short.wav"
    soundfile.write(wav, tone(399 / 16_000), 16_000)
    return wav


BAD = {
    missing: "no such file",
    truncated: "truncated|cannot be decoded",
    text_named_wav: "cannot be decoded",
    empty_file: "cannot be decoded",
    nan_samples: "NaN or infinite",
    too_short: "399 samples",
}


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_bad_audio_is_left_out_with_line_file_and_reason(make, good: Path, tmp_path: Path) -> None:
    """The others stay; the list of skipped files names the line, the file and the reason."""
    bad, out = make(tmp_path), tmp_path / "out" / "train.csv"
    summary = write_manifest(out, [listed(bad, 7), listed(good, 8)])
    assert (summary.utterances, summary.skipped) == (1, 1)
    assert "1 skipped (see " in str(summary)
    header, row = skipped_path(out).read_text().splitlines()
    assert header.split("\t") == ["source", "wav", "reason"]
    source, wav, reason = row.split("\t")
    assert (source, wav) == ("corpus.txt:7", str(bad))
    assert re.search(BAD[make], reason) and str(bad) in reason
    with pytest.raises(BadAudio, match=BAD[make]):
        examine(bad)


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_nothing_left_is_an_error_with_the_reasons(make, tmp_path: Path) -> None:
    """An empty manifest is never written."""
    with pytest.raises(BadManifest, match=f"(?s)none of 1 .*corpus.txt:7: .*({BAD[make]})"):
        write_manifest(tmp_path / "train.csv", [listed(make(tmp_path), 7)])
    assert not (tmp_path / "train.csv").exists()


def test_nothing_listed_is_an_error(tmp_path: Path) -> None:
    """Filters that drop everything do not pass in silence."""
    with pytest.raises(BadManifest, match="no utterances were listed"):
        write_manifest(tmp_path / "train.csv", [])


def test_stereo_at_44100_hz_is_accepted(tmp_path: Path) -> None:
    """Its duration is the one after resampling to 16 kHz mono."""
    wav = tmp_path / "stereo.wav"
    soundfile.write(wav, tone(1.5, 44_100, 2), 44_100)
    assert examine(wav).seconds == pytest.approx(1.5, abs=1e-3)


def test_duplicate_ids_name_both_lines(good: Path, tmp_path: Path) -> None:
    """Neither line is silently dropped."""
    with pytest.raises(
        BadManifest, match=r"corpus.txt:4: id 'good'.*used at corpus.txt:3"
    ) as found:
        write_manifest(tmp_path / "train.csv", [listed(good, line) for line in range(3, 12)])
    assert "corpus.txt:8: " in str(found.value) and "... and 3 more." in str(found.value)


def test_a_place_where_nothing_can_be_written_is_told_before_any_audio_is_read(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder instead of a manifest, a file instead of a folder."""
    monkeypatch.setattr("w2v_plugin.manifests.check_all", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(BadManifest, match=r"a folder. Name the manifest in it"):
        write_manifest(tmp_path, [listed(good, 1)])
    with pytest.raises(BadManifest, match="but that is a file"):
        write_manifest(good / "train.csv", [listed(good, 1)])


@pytest.mark.parametrize("what", ["wav", "text", "speaker", "id"])
def test_names_and_texts_that_are_no_unicode_are_left_out(
    good: Path, tmp_path: Path, what: str
) -> None:
    """Linux allows any bytes in names, JSON half of a pair; UTF-8 does not."""
    odd = {"wav": Path("name\udce9.wav")}.get(what, "name\udce9")
    out = tmp_path / "train.csv"
    summary = write_manifest(
        out, [replace(listed(good, 1, name="odd"), **{what: odd}), listed(good, 2)]
    )
    assert (summary.utterances, summary.skipped) == (1, 1)
    assert r"is no valid Unicode ('name\udce9" in skipped_path(out).read_text(encoding="utf-8")


def test_an_ogg_file_without_its_end_is_told(tmp_path: Path) -> None:
    """It decodes, and promises no length."""
    whole, cut, bare = (tmp_path / f"{name}.ogg" for name in ("whole", "cut", "bare"))
    soundfile.write(whole, tone(5.0), 16_000, format="OGG", subtype="OPUS")
    content = whole.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    bare.write_bytes(content[: content.rindex(b"OggS")])
    assert 0 < examine(cut).seconds < 4.9
    assert [ogg_ends(path) for path in (whole, cut, bare)] == [True, False, False]
    verdicts = [Verdict(listed(path, 1), examine(path)) for path in (whole, cut)]
    assert [(f.utterance.wav, f.kind) for f in find_flags(verdicts, {})] == [(cut, "incomplete")]


@pytest.mark.parametrize("text", ["", " \t\n "])
def test_empty_transcripts_are_left_out_where_text_is_needed(
    text: str, good: Path, tmp_path: Path
) -> None:
    """They are fine for pretraining."""
    out = tmp_path / "train.csv"
    rows = [listed(good, 1, name="a"), listed(good, 2, text, name="b")]
    assert write_manifest(out, rows).utterances == 2
    assert write_manifest(out, rows, need_text=True).utterances == 1
    assert f"corpus.txt:2\t{good}\tempty transcript" in skipped_path(out).read_text()


def test_length_limits_are_applied_and_told(tmp_path: Path) -> None:
    """Too long and too short utterances are counted like broken ones."""
    rows = []
    for line, seconds in enumerate((0.5, 1.0, 2.0), start=1):
        soundfile.write(tmp_path / f"{line}.wav", tone(seconds), 16_000)
        rows.append(listed(tmp_path / f"{line}.wav", line))
    summary = write_manifest(tmp_path / "m.csv", rows, min_s=0.6, max_s=1.5)
    assert (summary.utterances, summary.skipped, summary.seconds) == (1, 2, 1.0)
    reasons = skipped_path(tmp_path / "m.csv").read_text()
    assert "shortest accepted is 0.6 s" in reasons and "longest accepted is 1.5 s" in reasons


def test_what_is_written_is_read_back_in_order(good: Path, tmp_path: Path) -> None:
    """Order, text (NFC, single spaces) and absolute paths survive; twice gives the same bytes."""
    out = tmp_path / "train.csv"
    texts = ['Zwei,  "Wörter"\n', "", "u\u0308ber", "മുൻവിള പൊൻവിള."]
    rows = [listed(good, n, text, name=f"u{9 - n}") for n, text in enumerate(texts)]
    write_manifest(out, rows)
    first = out.read_bytes()
    write_manifest(out, rows, workers=1)
    assert out.read_bytes() == first
    assert not skipped_path(out).exists()
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*.part"))
    read = read_manifest(out)
    assert [row["ID"] for row in read] == ["u9", "u8", "u7", "u6"]
    assert [row["wrd"] for row in read] == ['Zwei, "Wörter"', "", "über", "മുൻവിള പൊൻവിള."]
    assert {row["wav"] for row in read} == {str(good.resolve())}
    assert {row["duration"] for row in read} == {1.0}
    assert out.read_text(encoding="utf-8").splitlines()[0] == ",".join(COLUMNS)


def test_a_stale_list_of_skipped_files_is_removed(good: Path, tmp_path: Path) -> None:
    """Otherwise it would speak of files that are fine by now."""
    out = tmp_path / "train.csv"
    write_manifest(out, [listed(good), listed(tmp_path / "later.wav", 2)])
    assert skipped_path(out).exists()
    write_manifest(out, [listed(good)])
    assert not skipped_path(out).exists()


def test_relative_paths_start_at_the_manifest(tmp_path: Path) -> None:
    """A manifest written by hand can travel with its audio."""
    path = tmp_path / "m.csv"
    path.write_text("ID,duration,wav,spk_id,wrd\na,1.5,wavs/a.wav,ann,hello\n")
    assert read_manifest(path)[0]["wav"] == str(tmp_path / "wavs" / "a.wav")


HEADER = "ID,duration,wav,spk_id,wrd\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"m.csv:1: no column ID, duration, wav, spk_id, wrd; expected the header ID,dur"),
        ("ID,duration,wav,wrd\n", r"m.csv:1: no column spk_id"),
        (HEADER, "a header and no utterances"),
        (HEADER + "a,1,a.wav,s,x\nb,long,b.wav,s,x\n", r"m.csv:3: duration 'long'"),
        (HEADER + "a,0,a.wav,s,x\n", r"m.csv:2: duration '0' is not a positive"),
        (HEADER + "a,nan,a.wav,s,x\n", r"m.csv:2: duration 'nan'"),
        (HEADER + "a,1,a.wav,s\n", r"m.csv:2: no value for wrd"),
        (HEADER + "a,1,a.wav,s,well, yes\n", r"m.csv:2: too many values.*needs quotes"),
        (HEADER + "a,1,a.wav,s,x\na,1,b.wav,s,x\n", r"m.csv:3: id 'a'.*on line 2"),
    ],
)
def test_bad_manifests_are_refused_naming_the_line(
    content: str, message: str, tmp_path: Path
) -> None:
    """Every refusal says where it stands."""
    (tmp_path / "m.csv").write_text(content)
    with pytest.raises(BadManifest, match=message):
        read_manifest(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            (HEADER + "a,1,a.wav,s,x\nb,1,b.wav,s,schön\n").encode("cp1252"),
            "m.csv:3: not UTF-8.*iconv",
        ),
        ((HEADER + "a,1,a.wav,s,x\n").encode("utf-16"), "m.csv:1: not UTF-8"),
        ((HEADER + "a,1,a.wav,s,x\nb\0,1,b.wav,s,x\n").encode(), "m.csv:3: holds NUL bytes"),
        ((HEADER + 'a,1,a.wav,s,"' + 200_000 * "x").encode(), "m.csv:2: no CSV file"),
    ],
    ids=["cp1252", "utf-16", "NUL", "open quotation mark"],
)
def test_what_is_no_csv_in_utf8_is_refused_naming_the_line(
    content: bytes, message: str, tmp_path: Path
) -> None:
    """Spreadsheet programs save in other encodings."""
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(BadManifest, match=message):
        read_manifest(tmp_path / "m.csv")


def test_a_missing_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    """The remedy is in the message."""
    with pytest.raises(BadManifest, match=r"no such manifest.*recipes/prepare"):
        read_manifest(tmp_path / "none.csv")

"""Transcripts on disk: every cut through a file of records can be resumed to the same bytes."""

import json
from pathlib import Path

import pytest

from w2v_plugin.inputs import CannotStart, Input
from w2v_plugin.outputs import FORMATS, Records, open_output
from w2v_plugin.transcripts import Span, Transcript

ITEMS = [Input(Path(f"in/{name}.wav"), name) for name in ("a b", "tab\t", "empty", "é", "e\udcff")]
SAID = {
    item.name: Transcript("ജീ JA", (Span("ജീ", 0.1, 0.3, 0.5), Span("JA", 0.5, 0.9, 1.0)))
    for item in ITEMS
} | {"empty": Transcript("")}


def finish(format: str, out: Path | None, **options: bool) -> int:
    """Write what is not there yet; how much that is."""
    with open_output(ITEMS, format, out, **options) as output:
        missing = [item for item in ITEMS if not output.has(item)]
        for item in missing:
            output.write(item, SAID[item.name], 1.0)
    return len(missing)


@pytest.mark.parametrize("format", ["text", "json", "ctm"])
def test_a_file_cut_anywhere_is_resumed_to_the_same_bytes(tmp_path, format):
    """Whole records stay; the last half of one is written again."""
    out = tmp_path / "new" / "out"
    finish(format, out)
    whole = out.read_bytes()
    written = []
    for size in range(len(whole) + 1):
        out.write_bytes(whole[:size])
        written.append(finish(format, out, resume=True))
        assert out.read_bytes() == whole
    # in CTM one cannot see that the last record is whole, nor that a file had no words
    assert (written[0], written[-1]) == (len(ITEMS), 2 if format == "ctm" else 0)
    assert set(written) >= set(range(2, len(ITEMS)))


def test_records_are_on_disk_at_once(tmp_path):
    """Not before the first: a run that cannot begin leaves nothing."""
    with Records(ITEMS, "text", tmp_path / "out") as records:
        assert not (tmp_path / "out").exists()
        records.write(ITEMS[0], SAID["a b"], 1.0)
        assert (tmp_path / "out").read_text() == "in/a b.wav\tജീ JA\n"


def test_a_file_that_failed_is_appended(tmp_path):
    """A later run that succeeds with it adds its record at the end."""
    (tmp_path / "out").write_text("in/tab\t.wav\tX\n")
    assert finish("text", tmp_path / "out", resume=True) == len(ITEMS) - 1
    lines = (tmp_path / "out").read_bytes().split(b"\n")
    assert lines[0] == b"in/tab\t.wav\tX" and lines[1].startswith(b"in/a b.wav\t")


@pytest.mark.parametrize("format", ["srt", "vtt"])
def test_subtitles_are_a_file_each(tmp_path, format):
    """With the names of the audio; resumed, those that are there stay as they are."""
    assert finish(format, tmp_path) == len(ITEMS)
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {f"{item.name}.{format}" for item in ITEMS}
    (tmp_path / f"a b.{format}").write_text("edited")
    (tmp_path / f"é.{format}").unlink()
    assert finish(format, tmp_path, resume=True) == 1
    assert (tmp_path / f"a b.{format}").read_text() == "edited"
    assert "ജീ JA\n" in (tmp_path / f"é.{format}").read_text(encoding="utf-8")


def test_subtitles_of_one_file_may_go_to_a_file(tmp_path):
    """Which the suffix tells; several files need a folder."""
    out = tmp_path / "talk.srt"
    with open_output(ITEMS[:1], "srt", out) as output:
        output.write(ITEMS[0], SAID["a b"], 1.0)
    assert out.read_text(encoding="utf-8").startswith("1\n00:00:00,100 --> ")
    with pytest.raises(CannotStart, match="one file for the subtitles of 5 files"):
        open_output(ITEMS, "srt", out, resume=True)


@pytest.mark.parametrize("format", FORMATS)
def test_one_file_on_stdout(capsys, format):
    """Text alone; everything else as in a file."""
    with open_output(ITEMS[:1], format, None) as output:
        output.write(ITEMS[0], SAID["a b"], 1.0)
    got = capsys.readouterr().out
    begins = {"text": "ജീ JA\n", "json": '{"path": "in/a b.wav"', "ctm": "a_b 1 0.100 0.200 ജീ"}
    assert got.startswith(begins.get(format, "1\n" if format == "srt" else "WEBVTT\n"))


@pytest.mark.parametrize("format", FORMATS)
def test_what_exists_is_never_overwritten(tmp_path, format):
    """Not even an empty file."""
    out = tmp_path / "out"
    finish(format, out)
    with pytest.raises(CannotStart, match="exists already and is not overwritten"):
        finish(format, out)
    if format in ("text", "json", "ctm"):
        out.write_bytes(b"")
        with pytest.raises(CannotStart, match="exists already"):
            finish(format, out)


def test_what_cannot_be_written_is_refused_first(tmp_path):
    """Before a model is loaded."""
    with pytest.raises(CannotStart, match="a folder, but --format json goes to one file"):
        open_output(ITEMS, "json", tmp_path)
    with pytest.raises(CannotStart, match="--resume goes on with the file or folder of --out"):
        open_output(ITEMS, "text", None, resume=True)
    with pytest.raises(CannotStart, match="for each of these 5: give --out FOLDER"):
        open_output(ITEMS, "vtt", None)
    same = [Input(Path("a.wav"), "a"), Input(Path("a.mp3"), "a")]
    for format in ("srt", "ctm"):
        with pytest.raises(CannotStart, match="would both be written as a"):
            open_output(same, format, tmp_path / "out")


@pytest.mark.parametrize(
    ("format", "content"),
    [
        ("text", "no tab\n"),
        ("json", "a.wav\tHI\n"),
        ("json", "[1]\n"),
        ("json", '{"text": "HI"}\n'),
        ("ctm", json.dumps({"path": "a.wav"}) + "\n"),
    ],
)
def test_resuming_something_else_is_refused(tmp_path, format, content):
    """It is named with its line and left as it is."""
    out = tmp_path / "out"
    out.write_text(content)
    with pytest.raises(CannotStart, match=f"out:1: no record as --format {format}"):
        open_output(ITEMS, format, out, resume=True)
    assert out.read_text() == content

"""Whatever names audio files on a command line becomes the same list every time, each file once."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from w2v_plugin.inputs import CannotStart, by_name, find_inputs, groups, header_seconds
from w2v_plugin.table_lists import audio_files


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Audio (by name), and what is none."""
    audio = ("b.wav", "a.flac", "x/a.wav", "x/y/c d.MP3", "x/é.v2.opus")
    for name in (*audio, "notes.txt", "x/n.csv"):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "corpus" / "folder.wav").mkdir()
    return tmp_path / "corpus"


def names(*given: object) -> list[str]:
    return [item.name for item in find_inputs(map(str, given))]


def test_a_folder_is_searched_and_sorted(corpus):
    """Names keep its structure; only the last suffix goes."""
    found = find_inputs([str(corpus)])
    assert [item.name for item in found] == ["a", "b", "x/a", "x/y/c d", "x/é.v2"]
    assert [item.path for item in found] == sorted(item.path for item in found)
    assert all(item.path.is_file() for item in found)


def test_a_folder_has_the_files_that_preparation_finds(corpus, tmp_path, capsys):
    """All kinds, links to folders, nothing hidden; what cannot be decoded is counted once."""
    for name in ("c.AIFF", "d.oga", "e.w64", "f.au", "g.wave", "._b.wav", "h.m4a", "x/i.aac"):
        (corpus / name).touch()
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "z.sph").touch()
    (corpus / "linked").symlink_to(tmp_path / "more")
    found = [item.path for item in find_inputs([str(corpus)])]
    assert {path.name for path in found} > {"c.AIFF", "d.oga", "e.w64", "f.au", "g.wave", "z.sph"}
    assert found == [p for p in audio_files(corpus) if p.suffix not in (".m4a", ".aac")]
    told = ".m4a cannot be decoded here; convert it: ffmpeg -i h.m4a h.flac"
    assert capsys.readouterr().err == f"{corpus}: 2 files passed over; {told}\n"
    assert names(corpus / "*.au") == ["f"]


def test_files_are_taken_as_they_are(corpus):
    """In the order given, whatever they are called and whether they exist."""
    given = [corpus / "b.wav", corpus / "notes.txt", corpus / "nowhere.wav", corpus / "a.flac"]
    assert [item.path for item in find_inputs(map(str, given))] == given
    assert names(*given) == ["b", "notes", "nowhere", "a"]


def test_every_file_comes_once(corpus, monkeypatch):
    """However it is spelled; the first naming counts."""
    monkeypatch.chdir(corpus)
    found = find_inputs(["x/a.wav", ".", "x", str(corpus / "b.wav"), "x/../b.wav", "**/*.wav"])
    assert [item.name for item in found] == ["a", "a", "b", "x/y/c d", "x/é.v2"]
    assert len({os.path.abspath(item.path) for item in found}) == 5


def test_patterns(corpus, monkeypatch):
    """`**` goes into folders; names begin where it does; an existing file is none."""
    assert names(corpus / "*") == ["a", "b"]
    assert names(corpus / "**" / "*.wav") == ["b", "x/a"]
    assert names(corpus / "?" / "a.*") == ["x/a"]
    monkeypatch.chdir(corpus)
    assert names("*.wav") == ["b"]
    (corpus / "[b].wav").touch()
    assert [item.path.name for item in find_inputs(["[b].wav"])] == ["[b].wav"]


def test_stdin_is_a_list_of_paths(corpus, monkeypatch):
    """Empty lines do not matter; names begin at the folder that all files share."""
    lines = [corpus / "x/y/c d.MP3", "", corpus / "x/a.wav", corpus / "x/a.wav"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(map(str, lines))))
    assert names("-") == ["y/c d", "a"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(CannotStart, match="no paths on standard input"):
        find_inputs(["-"])


def test_manifests(corpus):
    """The column `wav`, seen from the manifest; names are the IDs, if there are any."""
    manifest = corpus / "x" / "n.csv"
    manifest.write_text(f"\ufeffID,duration,wav\nspk/1,1.0,a.wav\n,1.0,{corpus / 'b.wav'}\n")
    found = find_inputs([str(manifest)])
    assert [item.path for item in found] == [corpus / "x" / "a.wav", corpus / "b.wav"]
    assert [item.name for item in found] == ["spk/1", "b"]
    manifest.write_text("wav\na.wav\ny/c d.MP3\n")
    assert names(manifest) == ["a", "y/c d"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"ID,path\na,a.wav\n", "row 1 has none"),
        (b"ID,wav\na,a.wav\nb\n", "row 2 has none"),
        (b"ID,wav\n", "there are no rows"),
        (b"", "there are no rows"),
        (b"\xff\xfe\x00", "cannot be read as a manifest"),
        (None, "cannot be read as a manifest"),
    ],
)
def test_bad_manifests_say_what_is_wrong(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(CannotStart, match=f"list.csv: .*{complaint}"):
        find_inputs([str(tmp_path / "list.csv")])


def test_nothing_found_is_an_error(tmp_path):
    """A folder and a pattern without audio: a typing mistake, not a job that is done."""
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CannotStart, match="no audio files in this folder"):
        find_inputs([str(tmp_path)])
    with pytest.raises(CannotStart, match=r"\*\.txt: no audio files match"):
        find_inputs([str(tmp_path / "*.txt")])


def test_names_tell_results_apart(corpus):
    """No two results with one name, and none outside of their folder."""
    assert list(by_name(find_inputs([str(corpus)]))) == names(corpus)
    with pytest.raises(CannotStart, match=r"b\.wav and .*b\.wav would both be written as b"):
        by_name(find_inputs([str(corpus / "b.wav"), str(corpus / "x" / "b.wav")]))
    for unsafe in ("../b", "/b"):
        (corpus / "x" / "n.csv").write_text(f"ID,wav\n{unsafe},a.wav\n")
        with pytest.raises(CannotStart, match="leaves the folder of the results"):
            by_name(find_inputs([str(corpus / "x" / "n.csv")]))


def test_groups_are_cut_by_length(tmp_path):
    """In order, nothing lost, none longer than allowed unless one file is; broken files cost 0."""
    seconds = [1, 2, 0.5, 9, 1, 1, 1]
    for number, duration in enumerate(seconds):
        wav = np.zeros(round(8000 * duration))
        soundfile.write(tmp_path / f"{number}.flac", wav, 8000)
    (tmp_path / "1b.wav").write_text("not audio")
    items = find_inputs([str(tmp_path)])
    cut = [[item.name for item in group] for group in groups(items, 3.0)]
    assert cut == [["0", "1", "1b"], ["2"], ["3"], ["4", "5", "6"]]
    assert [header_seconds(item.path) for item in items] == [1, 2, 0, 0.5, 9, 1, 1, 1]
    assert header_seconds(tmp_path / "nowhere.wav") == 0

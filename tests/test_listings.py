"""What people have: folders, tables, lists of other toolkits; and what is wrong with them."""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile

from w2v_plugin.checks import Utterance
from w2v_plugin.errors import BadManifest
from w2v_plugin.listings import Listing, list_any
from w2v_plugin.manifests import flagged_path, read_manifest, skipped_path, write_manifest
from w2v_plugin.preparation import prepare
from w2v_plugin.splits import Limits, balanced_subset, split_by_speaker

SEEDS = iter(range(10**6))


def sound(path: Path, seconds: float = 0.5, rate: int = 16_000) -> Path:
    """Quiet noise in a new file, other noise each time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(next(SEEDS)).normal(0, 0.05, round(seconds * rate))
    soundfile.write(path, noise, rate)
    return path


def write(path: Path, content: str | bytes) -> Path:
    """A text file, with the bytes as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def seen(listing: Listing) -> list[tuple[str, str, str, str]]:
    """(id, file name, speaker, text) of each."""
    return [(each.id, each.wav.name, each.speaker, each.text) for each in listing]


# --- folders and texts -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("a\tyes\nb\tno, no\n", "lines.txt"),
        ("a yes\nb no, no\n", "lines.txt"),
        ("ann/a.wav|yes\nbob/b.wav|no, no\n", "metadata.txt"),
        ("\ufeffa\tyes\r\nb\tno, no\r\n", "windows.txt"),
        ('file,said by,text\na.wav,x,yes\nb.wav,y,"no, no"\n', "table.csv"),
        ("file;text\nann/a.wav;yes\nbob/b.wav;no, no\n", "excel.csv"),
    ],
)
def test_texts_in_one_file_find_their_recordings(content: str, name: str, tmp_path: Path) -> None:
    """By path, file name or stem; a BOM and CRLF leave nothing behind."""
    sound(tmp_path / "audio" / "ann" / "a.wav")
    sound(tmp_path / "audio" / "bob" / "b.wav")
    if name == "table.csv":  # its paths are relative to the audio
        content = content.replace("a.wav", "ann/a.wav").replace("b.wav", "bob/b.wav")
    listing = list_any(tmp_path / "audio", write(tmp_path / name, content))
    assert seen(listing)[0] == (listing[0].id, "a.wav", "ann", "yes")
    assert seen(listing)[1][1:] == ("b.wav", "bob", "no, no")
    assert [each.problem for each in listing] == ["", ""]


def test_a_folder_of_texts_elsewhere(tmp_path: Path) -> None:
    sound(tmp_path / "audio" / "ann" / "a.wav")
    write(tmp_path / "texts" / "ann" / "a.txt", "yes\n")
    (utterance,) = list_any(tmp_path / "audio", tmp_path / "texts")
    assert utterance.text.strip() == "yes" and utterance.source.endswith("a.txt:1")


def test_nothing_between_recordings_and_lines_is_lost(tmp_path: Path) -> None:
    """Lines without a recording, with two of them, recordings without a line: all are there."""
    for name in ("ann/a.wav", "ann/x.wav", "bob/x.wav", "bob/silent.wav"):
        sound(tmp_path / "audio" / name)
    lines = write(tmp_path / "said.txt", "a yes\nx which\ngone no\n")
    listing = list_any(tmp_path / "audio", lines)
    problems = {each.id: each.problem for each in listing if each.problem}
    assert problems[f"{lines}:2"] == "'x' is the name of 2 recordings: ann/x.wav, bob/x.wav"
    assert problems[f"{lines}:3"].startswith("no recording 'gone' in ")
    assert {"bob-silent", "a"} <= {each.id for each in listing if not each.problem}
    assert listing.kind.endswith(
        "; 3 recordings that it does not name, such as x.wav; speakers by folder (ann, bob)"
    )
    prepare({tmp_path / "m.csv": listing}, need_text=True)
    skipped = skipped_path(tmp_path / "m.csv").read_text()
    assert f"{lines}:2\t" in skipped and f"{lines}:3\t" in skipped and "silent.wav" in skipped
    assert len(read_manifest(tmp_path / "m.csv")) == 1


def test_a_line_that_fails_takes_no_recording_its_name(tmp_path: Path) -> None:
    """Nor does a row with an id of its own; the others are used."""
    sound(tmp_path / "audio" / "a.flac")
    sound(tmp_path / "audio" / "b.wav")
    lines = write(tmp_path / "said.txt", "a.wav yes\nb.wav no\n")
    table = write(tmp_path / "said.csv", "id,path,text\nx,a.wav,yes\nx,b.wav,no\n")
    for texts, name in ((lines, "b"), (table, "x")):
        listing = list_any(tmp_path / "audio", texts)
        manifest = tmp_path / f"{texts.suffix[1:]}.csv"
        (summary,) = prepare({manifest: listing}, need_text=True)
        assert [row["ID"] for row in read_manifest(manifest)] == [name]
        assert summary.skipped == 2
        skipped = skipped_path(manifest).read_text()
        assert f"{texts}:" in skipped and f"{tmp_path}/audio/a.flac\tempty transcript" in skipped


def test_recordings_that_a_table_does_not_name_are_told(tmp_path: Path) -> None:
    """Under an id that no row has; not where a table is all that was asked for."""
    for name in ("ann/a.wav", "ann/b.wav", "bob/c.wav", "bob/d.m4a"):
        sound(tmp_path / "audio" / name.replace("m4a", "wav"))
    (tmp_path / "audio" / "bob" / "d.wav").rename(tmp_path / "audio" / "bob" / "d.m4a")
    wav = tmp_path / "audio" / "ann" / "a.wav"
    for speaker in ("", ",speaker"):
        content = f"id,path,text{speaker}\nb,{wav},yes{speaker and ',eva'}\n"
        table = write(tmp_path / "said.csv", content)
        listing = list_any(tmp_path / "audio", table)
        assert [(each.id, each.text) for each in listing] == [
            *(("b", "yes"), (f"{tmp_path}/audio/ann/b.wav", ""), ("c", ""), ("d", "")),
        ]
        voices = ("eva", "", "", "") if speaker else ("ann", "ann", "bob", "")
        assert tuple(each.speaker for each in listing) == voices
        assert "; 3 recordings that it does not name, such as b.wav" in listing.kind
        assert "ffmpeg" in listing[-1].problem
        assert len(list_any(table, audio_root=tmp_path / "audio")) == 1
    rows = [{"audio": str(wav), "text": "yes"}, {"audio": "\0", "text": "no"}]
    assert len(list_any(tmp_path / "audio", jsonl(tmp_path / "said.jsonl", rows))) == 5


def test_exact_repetitions_are_left_out_and_counted(tmp_path: Path) -> None:
    """In any list; the same name with other words is an error."""
    for name in "ab":
        sound(tmp_path / f"{name}.wav")
    again = "path,text\na.wav,yes\nb.wav,no\na.wav,yes\na.wav,yes\n"
    for content, first in ((again, 2), ("a yes\nb no\na yes\na yes\n", 1)):
        path = write(tmp_path / "list.csv", content)
        (summary,) = prepare({tmp_path / "m.csv": list_any(tmp_path, path)})
        assert (summary.utterances, summary.skipped) == (2, 2)
        skipped = skipped_path(tmp_path / "m.csv").read_text()
        assert f"{path}:{first + 3}\t{tmp_path}/a.wav\tsays the same as {path}:{first}" in skipped
    with pytest.raises(BadManifest, match="id 'a' was already used"):
        prepare({tmp_path / "m.csv": list_any(write(path, f"{again}a.wav,no\n"))})


def test_librispeech_is_recognized(tmp_path: Path) -> None:
    """Its texts are not beside the audio; taken for a plain folder, they would be missed."""
    sound(tmp_path / "19" / "198" / "19-198-0000.flac")
    write(tmp_path / "19" / "198" / "19-198.trans.txt", "19-198-0000 WORDS\n")
    assert "recipes/prepare/librispeech.py reads them" in list_any(tmp_path).kind


def test_texts_of_other_recordings_are_an_error(tmp_path: Path) -> None:
    sound(tmp_path / "audio" / "a.wav")
    with pytest.raises(BadManifest, match=r"said.txt:1: no line begins with .* \('one'|'one'\)"):
        list_any(tmp_path / "audio", write(tmp_path / "said.txt", "one text\ntwo text\n"))


def test_audio_that_cannot_be_decoded_here_is_named(tmp_path: Path) -> None:
    """m4a is what telephones record; hidden files of file managers are nothing."""
    sound(tmp_path / "a.wav")
    write(tmp_path / "b.m4a", b"....ftypM4A")
    write(tmp_path / "._a.wav", b"resource fork")
    listing = list_any(tmp_path)
    assert [each.wav.name for each in listing] == ["a.wav", "b.m4a"]
    assert "ffmpeg -i b.m4a b.flac" in listing[1].problem
    assert listing.kind.endswith("2 audio files, 0 with a .txt of the same name beside it")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a yes\nb sch\xf6n\n".encode("latin-1"), r"said.txt:2: not utf-8 \(byte 0xf6.*schön"),
        ("a yes\n".encode("utf-16"), r"said.txt:1: not utf-8 but UTF-16\. Convert it to UTF-8 \("),
        ("a yes\nb no\n".encode("utf-16-le"), "said.txt:1: holds a NUL character"),
    ],
)
def test_other_encodings_are_named_with_the_line(content, message: str, tmp_path: Path) -> None:
    sound(tmp_path / "audio" / "a.wav")
    sound(tmp_path / "audio" / "b.wav")
    with pytest.raises(BadManifest, match=message):
        list_any(tmp_path / "audio", write(tmp_path / "said.txt", content))


def test_the_encoding_can_be_given(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav")
    text = write(tmp_path / "a.txt", "schön".encode("cp1252"))
    with pytest.raises(BadManifest, match=r"1 of 1 texts cannot be read. .*a.txt:1: not utf-8"):
        list_any(tmp_path)
    assert list_any(tmp_path, encoding="cp1252")[0].text == "schön"
    with pytest.raises(BadManifest, match="--encoding klingon: Python knows no such encoding"):
        list_any(tmp_path, encoding="klingon")
    assert text.exists()


def test_some_of_several_damaged_texts_are_named(tmp_path: Path) -> None:
    for name in "abcdef":
        sound(tmp_path / f"{name}.wav")
        write(tmp_path / f"{name}.txt", "yes" if name == "a" else "sch\xf6n".encode("latin-1"))
    expected = (
        r"^5 of 6 texts cannot .*b\.txt:1: not utf-8 .* Others: c.txt, d.txt, e.txt and 1 more$"
    )
    with pytest.raises(BadManifest, match=expected):
        list_any(tmp_path)
    (tmp_path / "f.txt").unlink()
    with pytest.raises(BadManifest, match=r"^4 of 5 .* Others: c.txt, d.txt, e.txt$"):
        list_any(tmp_path)


# --- speakers by folder ----------------------------------------------------------------------


def speakers(listing: Listing) -> list[tuple[str, str]]:
    """(id, speaker) of each."""
    return [(each.id, each.speaker) for each in listing]


def test_the_first_folder_names_the_speaker_and_not_the_session(tmp_path: Path) -> None:
    """Everybody's sessions are called the same; they would be mixed."""
    for name in ("ann", "bob", "cyd", "dan"):
        for session in (1, 2):
            sound(tmp_path / "sess" / name / f"session{session}" / "x.wav")
    found = list_any(tmp_path / "sess")
    assert speakers(found) == [
        (f"{name}-session{session}-x", name)
        for name in ("ann", "bob", "cyd", "dan")
        for session in (1, 2)
    ]
    assert found.kind.endswith("; speakers by folder (ann, bob, cyd, ...)")


def test_librispeech_chapters_are_no_speakers(tmp_path: Path) -> None:
    for speaker, chapter in (("19", "198"), ("19", "227"), ("26", "495")):
        sound(tmp_path / "audio" / speaker / chapter / f"{speaker}-{chapter}-0000.flac")
    lines = write(tmp_path / "said.txt", "19-198-0000 yes\n19-227-0000 no\n")
    for found in (list_any(tmp_path / "audio"), list_any(tmp_path / "audio", lines)):
        assert [each.speaker for each in found] == ["19", "19", "26"]
        assert "; speakers by folder (19, 26)" in found.kind


@pytest.mark.parametrize("top", ["", "corpus/clips/"])
@pytest.mark.parametrize("absolute", [False, True])
def test_folders_that_all_paths_of_a_table_share_are_no_speakers(
    top: str, absolute: bool, tmp_path: Path
) -> None:
    """Nor does a line that cannot be used change whom the others are taken for."""
    names = [f"{top}{name}" for name in ("ann/1/a.wav", "ann/2/b.wav", "bob/1/c.wav", "d.wav")]
    paths = [f"{sound(tmp_path / 'data' / name) if absolute else name}" for name in names]
    for name in names:
        sound(tmp_path / "data" / name)
    rows = "".join(f"{path},yes\n" for path in [*paths, "/gone/e.wav", ""])
    found = list_any(write(tmp_path / "data" / "t.csv", f"path,text\n{rows}"))
    rest = "clips" if top else "data"
    assert [each.speaker for each in found] == ["ann", "ann", "bob", rest, "", ""]
    assert [each.id for each in found][:4] == ["a", "b", "c", "d"]
    assert found.kind.endswith(f"text = text; speakers by folder (ann, bob, {rest})")


def test_one_folder_for_all_is_one_speaker(tmp_path: Path) -> None:
    """Of its name; and a column says more than a folder."""
    for name in ("clips/a.wav", "clips/b.wav"):
        sound(tmp_path / name)
    for path in (tmp_path, tmp_path / "clips"):
        found = list_any(path)
        assert speakers(found) == [("a", "clips"), ("b", "clips")]
        assert "speakers" not in found.kind
    table = write(tmp_path / "t.csv", "path,speaker\nclips/a.wav,eva\nclips/b.wav,\n")
    found = list_any(table)
    assert speakers(found) == [("a", "eva"), ("b", "")] and "by folder" not in found.kind


# --- tables ----------------------------------------------------------------------------------


def test_ljspeech(tmp_path: Path) -> None:
    """metadata.csv is no CSV: name|text|text with numbers spelled out, and quotes as letters."""
    root = tmp_path / "LJSpeech-1.1"
    sound(root / "wavs" / "LJ001-0001.wav", rate=22_050)
    sound(root / "wavs" / "LJ001-0002.wav", rate=22_050)
    lines = 'LJ001-0001|in 1455, "so|in fourteen, "so\nLJ001-0002|just this|\n'
    write(root / "metadata.csv", lines)
    listing = list_any(root)
    assert seen(listing) == [
        ("LJ001-0001", "LJ001-0001.wav", "wavs", 'in fourteen, "so'),
        ("LJ001-0002", "LJ001-0002.wav", "wavs", "just this"),
    ]
    assert "lines of 'name text'" in listing.kind


def test_a_line_separator_inside_a_sentence_is_no_new_row(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav")
    write(tmp_path / "t.tsv", "path\tsentence\na.wav\tone\u2028two\x85three\n")
    (utterance,) = list_any(tmp_path / "t.tsv")
    assert utterance.text == "one\u2028two\x85three" and not utterance.problem


def test_bad_rows_are_kept_as_problems_with_their_lines(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav")
    table = write(
        tmp_path / "t.tsv", "path\ttext\tspeaker\na.wav\tyes\n\tno\tbob\na.wav\tyes\tann\n"
    )
    found = {each.source: each.problem for each in list_any(table)}
    assert found[f"{table}:2"] == "2 values, but there are 3 columns (path, text, speaker)"
    assert found[f"{table}:3"] == "column 'path' is empty"
    assert found[f"{table}:4"] == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            'path,text\na.wav,"never closed\n',
            r"t.csv:2: unexpected end of data. Is a quote missing",
        ),
        ("path,path\na.wav,b\n", "t.csv:1: two columns have the same name"),
    ],
)
def test_broken_tables_are_refused(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match=message):
        list_any(write(tmp_path / "t.csv", content))


def test_columns_that_do_not_exist_are_named(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "path,text\na.wav,yes\n")
    with pytest.raises(BadManifest, match=r"t.csv:1: no column 'clip'; it has path, text"):
        list_any(table, columns={"audio": "clip"})


def test_a_column_without_a_name_is_nothing(tmp_path: Path) -> None:
    """pandas writes one, with the numbers of the rows."""
    for name in "ab":
        sound(tmp_path / f"{name}.wav")
    found = list_any(write(tmp_path / "t.csv", ",path,text\n0,a.wav,yes\n1,b.wav,no\n"))
    assert [(each.id, each.is_part, each.promised, each.problem) for each in found] == [
        ("a", False, None, ""),
        ("b", False, None, ""),
    ]


def test_our_own_manifests_are_tables(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.csv", [Utterance("x", sound(tmp_path / "a.wav"), "ann", "yes")])
    assert seen(list_any(tmp_path / "m.csv")) == [("x", "a.wav", "ann", "yes")]


def test_what_an_earlier_run_wrote_is_not_read_again(tmp_path: Path) -> None:
    """It would hide what was added since; named by the user, it is read."""
    wav = sound(tmp_path / "a.wav")
    bad = Utterance("bad", tmp_path / "gone.wav", "ann")
    prepare({tmp_path / "train.csv": [Utterance("x", wav, "ann", "yes"), bad]})
    assert skipped_path(tmp_path / "train.csv").exists()
    write(flagged_path(tmp_path / "train.csv"), "source\tpath\tkind\twhat\n")
    sound(tmp_path / "new.wav")
    for encoding in ("utf-8", "utf-16"):  # ours are always UTF-8
        found = list_any(tmp_path, encoding=encoding)
        assert [each.id for each in found] == ["a", "new"]
    assert found.kind.endswith("; not read, unless named: the manifest train.csv")
    assert [each.id for each in list_any(tmp_path / "train.csv")] == ["x"]
    write(tmp_path / "list.tsv", "path\ttext\na.wav\tyes\n")
    assert [each.text for each in list_any(tmp_path)] == ["yes"]
    only = tmp_path / "only"
    write(only / "train.csv", (tmp_path / "train.csv").read_bytes())
    with pytest.raises(BadManifest, match=r"no audio .* not read, .* manifest train.csv\.$"):
        list_any(only)


def test_several_tables_in_a_folder_are_not_guessed_at(tmp_path: Path) -> None:
    for name in ("train.tsv", "dev.tsv"):
        write(tmp_path / name, "path\ttext\na.wav\tyes\n")
    with pytest.raises(BadManifest, match=r"several lists: dev.tsv, train.tsv. Name the one"):
        list_any(tmp_path)


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ('path,text\nu0.wav,"hello\nu1.wav,there\nu2.wav,bye"\nu3.wav,"x"\n', [2, 3, 4]),
        ('path,text,who\nu0.wav,"a,b\nu1.wav,there",bob\nu3.wav,"x",ann\n', [2, 3]),
        ('text;path\n"hello;u0.wav\nthere;u1.wav\nbye";u2.wav\n"x";u3.wav\n', [2, 3, 4]),
        ('path,text\nu0.wav,"hello\nu1.wav,there\nu2.wav,bye",more\nu3.wav,x\n', [2, 3, 4]),
    ],
)
def test_rows_between_stray_quotes_are_counted(
    content: str, lines: list[int], tmp_path: Path
) -> None:
    """A CSV reader sees a text of several lines; each of them is named."""
    for number in range(4):
        sound(tmp_path / f"u{number}.wav")
    table = write(tmp_path / "t.csv", content)
    *bad, good = list_any(table)
    assert [each.source for each in bad] == [f"{table}:{line}" for line in lines]
    where = f"lines {lines[0]} to {lines[-1]} are between two quotes, but "
    assert all(each.problem.startswith(where) for each in bad)
    assert (good.wav.name, good.text, good.problem) == ("u3.wav", "x", "")


def test_texts_of_several_lines_are_read(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav")
    said = 'Dear Sir,\nyes, no: "so"\n1,5\n\nthe end'
    for header, row in (("path,text", "a.wav,{}"), ("text,path", "{},a.wav")):
        quoted = '"' + said.replace('"', '""') + '"'
        table = write(tmp_path / "t.csv", f"{header}\n{row.format(quoted)}\n")
        (utterance,) = list_any(table)
        assert (utterance.text, utterance.problem) == (said, "")


def test_a_stray_quote_in_the_header_is_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", 'path,"text\na.wav,yes\nb.wav,"\nc.wav,no\n')
    with pytest.raises(BadManifest, match=r"t.csv:1: a header of several lines. Is a quote miss"):
        list_any(table, columns={"text": ""})


@pytest.mark.parametrize("separator", ["\t", "|"])
def test_one_odd_line_does_not_change_how_the_others_are_read(
    separator: str, tmp_path: Path
) -> None:
    names = [f"take {number}" for number in range(4)]
    for name in names:
        sound(tmp_path / "audio" / f"{name}.wav")
    good = [f"{name}{separator}said, no {name}" for name in names[:3]]
    for place in (0, 3):
        lines = [*good[:place], "take 3 Hello there", *good[place:]]
        path = write(tmp_path / "said.txt", "\n".join(lines))
        listing = list_any(tmp_path / "audio", path)
        texts = {each.id: each.text for each in listing if not each.problem}
        assert texts == {**{name: f"said, no {name}" for name in names[:3]}, "take 3": ""}
        (odd,) = [each for each in listing if each.problem]
        assert odd.source == f"{path}:{place + 1}"
        assert odd.problem == f"no {separator!r} between name and text, which most lines have"


def test_one_line_with_a_separator_in_its_text_is_like_the_others(tmp_path: Path) -> None:
    for name in "abc":
        sound(tmp_path / "audio" / f"{name}.wav")
    lines = write(tmp_path / "said.txt", "a yes | no\nb so\nc go\n")
    assert [each.text for each in list_any(tmp_path / "audio", lines)] == ["yes | no", "so", "go"]


def test_a_cell_that_is_no_file_name_stops_nothing(tmp_path: Path) -> None:
    """A text in the wrong column is longer than any name may be."""
    sound(tmp_path / "a.wav")
    table = write(tmp_path / "t.tsv", f"path\ttext\na.wav\tyes\n{'no ' * 1500}\tb.wav\n")
    good, bad = list_any(table)
    assert (good.text, good.problem, bad.source) == ("yes", "", f"{table}:3")
    assert bad.problem.startswith("no such file: ") and len(bad.problem) < 250
    (summary,) = prepare({tmp_path / "m.csv": [good, bad]})
    assert summary.skipped == 1
    long = write(tmp_path / "said.txt", f"a yes\n{'n' * 5000} no\n")
    assert [bool(each.problem) for each in list_any(tmp_path, long)] == [False, True]


@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "utf_8", "U8"])
def test_no_spelling_of_utf_8_keeps_the_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    sound(tmp_path / "a.wav")
    table = write(tmp_path / "t.csv", "\ufeffpath,text\na.wav,yes\n")
    assert list_any(table, encoding=encoding)[0].text == "yes"


@pytest.mark.parametrize("delimiter", [";", "|", ","])
def test_blank_lines_before_a_header_are_nothing(delimiter: str, tmp_path: Path) -> None:
    """The delimiter is that of the header; lines are counted from the top of the file."""
    sound(tmp_path / "a.wav")
    content = "\n \npath;text\na.wav;yes\n".replace(";", delimiter)
    table = write(tmp_path / "t.csv", content)
    (utterance,) = list_any(table)
    assert (utterance.text, utterance.problem) == ("yes", "")
    assert utterance.source == f"{table}:4"
    with pytest.raises(BadManifest, match=r"t.csv:3: two columns have the same name"):
        list_any(write(table, content.replace("text", "path")))


# --- JSON lines, NeMo, lhotse ----------------------------------------------------------------


def jsonl(path: Path, rows: list[dict]) -> Path:
    """One object a line; packed where the name ends in .gz."""
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return write(path, gzip.compress(content) if path.suffix == ".gz" else content)


def test_nemo_manifests_with_offsets(tmp_path: Path) -> None:
    """An offset makes a part; without one, the duration is what the corpus promises."""
    wav = sound(tmp_path / "talk.wav", 3.0)
    rows = [
        {"audio_filepath": "talk.wav", "offset": 0.0, "duration": 3.0, "text": "all"},
        {"audio_filepath": "talk.wav", "offset": 1.0, "duration": 0.5, "text": "some"},
        {"audio_filepath": str(wav), "offset": -1, "duration": 0.5, "text": "bad"},
    ]
    manifest = jsonl(tmp_path / "train.json", rows)
    manifest.write_text(manifest.read_text() + "{broken\n")
    whole, part, bad, broken = list_any(manifest)
    assert (whole.promised, whole.is_part) == (3.0, False)
    assert (part.start, part.end, part.text) == (1.0, 1.5, "some")
    assert "0 <= start < end" in bad.problem and bad.source.endswith("train.json:3")
    assert broken.problem.startswith("not JSON") and broken.source.endswith("train.json:4")


def test_the_first_part_of_a_recording_is_not_all_of_it(tmp_path: Path) -> None:
    """An offset of 0 says nothing; the length of the file does. A broken one is told as such."""
    sound(tmp_path / "long.wav", 6.0)
    sound(tmp_path / "all.wav", 2.0)
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    rows = [
        *({"audio": "long.wav", "offset": at, "duration": 2.0} for at in (0, 2, 4)),
        *({"audio": f"{name}.wav", "offset": 0, "duration": 2.1} for name in ("all", "bad")),
        {"audio": "long.wav", "duration": 2.0},
    ]
    listing = list_any(jsonl(tmp_path / "train.jsonl", rows))
    assert [(each.start, each.end) for each in listing][:3] == [(0.0, 2.0), (2.0, 4.0), (4.0, 6.0)]
    assert len({each.id for each in listing}) == len(rows)
    assert [each.promised for each in listing] == [None, None, None, 2.1, 2.1, 2.0]


def test_times_with_a_comma_and_times_that_are_none(tmp_path: Path) -> None:
    """Columns are named; a duration that nothing depends on is told and not compared."""
    sound(tmp_path / "a.wav", 6.0)
    rows = ("0,5;3,25", "0:01;2", "1;inf", "1;")
    content = "".join(f"a.wav;{row}\n" for row in rows)
    good, clock, endless, rest = list_any(write(tmp_path / "t.csv", f"path;start;end\n{content}"))
    assert (good.start, good.end, rest.start, rest.end) == (0.5, 3.25, 1.0, None)
    assert clock.problem == "column 'start' is '0:01', expected seconds, such as 3.25"
    assert endless.problem == "from 1.0 to inf s: a part needs 0 <= start < end"
    lengths = "id;path;dur\n1;a.wav;6,0\n2;a.wav;0:06\n3;a.wav;six\n4;a.wav;\n"
    listing = list_any(write(tmp_path / "t.csv", lengths))
    assert [each.promised for each in listing] == [6.0, None, None, None]
    assert not any(each.problem for each in listing)
    odd = "; 2 'dur' without a number of seconds ({}/t.csv:3: '0:06'), not compared"
    assert odd.format(tmp_path) in listing.kind
    both = lengths.replace("dur", "start;dur").replace("a.wav;", "a.wav;0;")
    listing = list_any(write(tmp_path / "t.csv", both))
    assert "column 'dur' is '0:06', expected" in listing[1].problem and "dur'" not in listing.kind


def test_a_json_text_that_is_none_is_a_problem(tmp_path: Path) -> None:
    """Not a transcript with brackets in it; a number is one."""
    sound(tmp_path / "a.wav")
    texts = (["a", "b"], {"text": "a"}, 7, None, "yes")
    rows = [{"id": f"{n}", "audio": "a.wav", "text": text} for n, text in enumerate(texts)]
    listing = list_any(jsonl(tmp_path / "t.jsonl", rows))
    assert [each.text for each in listing][2:] == ["7", "", "yes"]
    assert [each.problem for each in listing] == [
        *("column 'text' is a list, expected text", "column 'text' is an object, expected text"),
        *("", "", ""),
    ]


def test_json_that_is_nested_too_deeply_is_not_json(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav")
    deep = '{"text": ' + 100_000 * "["
    good, bad = list_any(write(tmp_path / "t.jsonl", f'{{"audio": "a.wav"}}\n{deep}\n'))
    assert not good.problem and bad.problem.startswith("not JSON (")
    assert bad.source.endswith("t.jsonl:2")
    for content in (100_000 * "[", '[{"audio": "a.wav"},\n {"audio": ]'):
        with pytest.raises(BadManifest, match=r"t.jsonl:[12]: not JSON \("):
            list_any(write(tmp_path / "t.jsonl", content))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_lhotse_recordings_and_supervisions(suffix: str, tmp_path: Path) -> None:
    """A supervision is a part of its recording, or all of it."""
    sound(tmp_path / "wavs" / "r1.wav", 2.0)
    source = {"type": "file", "channels": [0], "source": "wavs/r1.wav"}
    recording = {"id": "r1", "sources": [source], "sampling_rate": 16000, "duration": 2.0}
    supervision = {"id": "s1", "recording_id": "r1", "start": 0.0, "duration": 2.0, "channel": 0}
    rows = [
        {**supervision, "text": "all", "speaker": "ann"},
        {**supervision, "id": "s2", "start": 0.5, "duration": 1.0, "text": "some"},
        {**supervision, "id": "s3", "recording_id": "r9"},
        {**supervision, "id": "s4", "text": ["all"]},
    ]
    jsonl(tmp_path / f"my_recordings_train{suffix}", [recording | {"num_samples": 32000}])
    path = jsonl(tmp_path / f"my_supervisions_train{suffix}", rows)
    for asked in (path, tmp_path):
        first, second, third, fourth = list_any(asked)
        assert (first.id, first.speaker, first.text, first.is_part) == ("s1", "ann", "all", False)
        assert (second.start, second.end, second.speaker) == (0.5, 1.5, "")
        assert third.problem == "its recording 'r9' is not listed"
        assert fourth.problem == "its text is a list or an object, expected text"
    assert "lhotse supervisions" in list_any(tmp_path).kind


def test_lhotse_cuts(tmp_path: Path) -> None:
    """A supervision's time counts from the cut, the cut's from the recording."""
    sound(tmp_path / "r.wav", 4.0)
    source = {"type": "file", "channels": [0], "source": str(tmp_path / "r.wav")}
    recording = {"id": "r", "sources": [source], "duration": 4.0}
    supervision = {"id": "s", "recording_id": "r", "start": 0.5, "duration": 1.0, "text": "yes"}
    cut = {"id": "c", "start": 2.0, "duration": 2.0, "channel": 0, "type": "MonoCut"}
    command = {"type": "command", "channels": [0], "source": "touch /tmp/never"}
    rows = [
        {**cut, "supervisions": [supervision], "recording": recording},
        {**cut, "id": "m", "type": "MixedCut", "tracks": [], "supervisions": []},
        {**cut, "supervisions": [supervision], "recording": {**recording, "sources": [command]}},
    ]
    transforms = [{"name": "Speed", "kwargs": {"factor": 1.1}}]
    rows.append({**rows[0], "recording": {**recording, "transforms": transforms}})
    good, mixed, run, faster = list_any(jsonl(tmp_path / "cuts.jsonl.gz", rows))
    assert (good.start, good.end, good.text) == (2.5, 3.5, "yes")
    assert "MixedCut" in mixed.problem and "'command'" in run.problem
    assert faster.problem == "a recording that lhotse changes when it is read (Speed)"


# --- Kaldi -----------------------------------------------------------------------------------


@pytest.fixture
def kaldi(tmp_path: Path) -> Path:
    """Two recordings of one and two utterances."""
    folder = tmp_path / "data" / "train"
    sound(folder / "wav" / "r1.wav", 1.0)
    sound(tmp_path / "r2.flac", 3.0)
    write(folder / "wav.scp", f"r1 wav/r1.wav\nr2 {tmp_path}/r2.flac\n")
    write(folder / "text", "ann-1 ONE WORD\nbob-1 TWO\nbob-2 THREE\n")
    write(folder / "utt2spk", "ann-1 ann\nbob-1 bob\nbob-2 bob\n")
    write(folder / "segments", "ann-1 r1 0 1.0\nbob-1 r2 0.25 1.25\nbob-2 r2 2.0 2.5\n")
    return folder


def test_kaldi_segments_are_cut_to_files(kaldi: Path, tmp_path: Path) -> None:
    """To the sample, as 16 kHz FLAC; without a folder for them it says what to do."""
    listing = list_any(kaldi)
    assert "Kaldi" in listing.kind
    with pytest.raises(BadManifest, match=r"text:1: 'ann-1' is a part of .*r1.wav. .*--cut-to"):
        prepare({tmp_path / "m.csv": listing})
    assert not (tmp_path / "m.csv").exists()
    prepare({tmp_path / "m.csv": listing}, cut_to=tmp_path / "cut")
    rows = {row["ID"]: row for row in read_manifest(tmp_path / "m.csv")}
    assert [(row["spk_id"], row["wrd"]) for row in rows.values()] == [
        *(("ann", "ONE WORD"), ("bob", "TWO"), ("bob", "THREE")),
    ]
    assert [row["duration"] for row in rows.values()] == [1.0, 1.0, 0.5]
    part, rate = soundfile.read(rows["bob-1"]["wav"])
    whole, _ = soundfile.read(tmp_path / "r2.flac")
    assert rate == 16_000 and Path(rows["bob-1"]["wav"]).parent == tmp_path / "cut"
    # 16-bit samples stay 16-bit samples: no tolerance
    np.testing.assert_array_equal(part, whole[4000:20_000])


def test_kaldi_segments_to_the_end_and_of_one_channel(kaldi: Path) -> None:
    """-1 is the end; a channel of a stereo file is not the mean of both."""
    soundfile.write(kaldi.parent.parent / "r2.flac", np.zeros((48_000, 2)), 16_000)
    write(kaldi / "segments", "ann-1 r1 0.5 -1 0\nbob-1 r2 0.25 1 1\nbob-2 r2 2.0 2.5\n")
    found = {each.id: each for each in list_any(kaldi)}
    assert (found["ann-1"].start, found["ann-1"].end, found["ann-1"].problem) == (0.5, None, "")
    assert "segments:2: channel 1 of a recording with 2; write it" in found["bob-1"].problem
    assert not found["bob-2"].problem


def test_kaldi_commands_are_refused_and_not_run(kaldi: Path, tmp_path: Path) -> None:
    write(kaldi / "wav.scp", f"r1 touch {tmp_path}/ran; cat x.wav |\n")
    with pytest.raises(BadManifest, match=r"wav.scp:1: a command, not a file: 'touch .*'. Comm"):
        list_any(kaldi)
    assert not (tmp_path / "ran").exists()
    write(kaldi / "wav.scp", "r1 raw/wav.ark:1234\n")
    with pytest.raises(BadManifest, match=r"wav.scp:1: .* lies in a Kaldi archive"):
        list_any(kaldi)


def test_kaldi_lists_that_do_not_agree(kaldi: Path, tmp_path: Path) -> None:
    """Named by file and line, and counted among what is left out."""
    write(kaldi / "segments", "ann-1 r1 0.5 9.5\nbob-1 r7 0 1\nbob-2 r2 2.5 2.0\ncat-1 r2 0 1\n")
    write(kaldi / "text", "ann-1 ONE\nbob-1 TWO\nbob-2 THREE\ndog-1 FOUR\ncat-1 FIVE\n")
    prepare({tmp_path / "m.csv": list_any(kaldi)}, cut_to=tmp_path / "cut")
    skipped = skipped_path(tmp_path / "m.csv").read_text().splitlines()[1:]
    reasons = {line.split("\t")[0].rpartition("/")[2]: line.split("\t")[2] for line in skipped}
    assert "should be 9.00 s long, but the recording has only 0.50 s" in reasons["text:1"]
    assert reasons["text:2"] == "its recording 'r7' is not in wav.scp"
    assert "0 <= start < end" in reasons["text:3"]
    assert reasons["text:4"] == "dog-1 is in no wav.scp or segments beside it"
    assert [row["ID"] for row in read_manifest(tmp_path / "m.csv")] == ["cat-1"]


def test_kaldi_segments_that_are_not_whole(kaldi: Path) -> None:
    """The utterances say so, with the line; the others are read."""
    write(kaldi / "segments", "ann-1\nbob-1 r2 0.25\nbob-2 r2 2.0 2.5\n")
    found = {each.id: each.problem for each in list_any(kaldi)}
    for line, name in enumerate(("ann-1", "bob-1"), start=1):
        assert (
            found[name] == f"{kaldi}/segments:{line}: expected utterance, recording, start and end"
        )
    assert found["bob-2"] == ""


def test_ids_never_lead_out_of_the_folder(kaldi: Path, tmp_path: Path) -> None:
    write(kaldi / "segments", "../../evil r2 0 1\n")
    write(kaldi / "text", "../../evil WORD\n")
    prepare({tmp_path / "m.csv": list_any(kaldi)}, cut_to=tmp_path / "cut")
    (row,) = read_manifest(tmp_path / "m.csv")
    assert re.fullmatch(r"evil-[0-9a-f]{12}\.flac", Path(row["wav"]).name)
    assert Path(row["wav"]).parent == tmp_path / "cut" and Path(row["wav"]).is_file()


def test_a_name_that_is_used_twice_is_refused(kaldi: Path) -> None:
    write(kaldi / "text", "ann-1 ONE\nann-1 TWO\n")
    with pytest.raises(BadManifest, match=r"text:2: 'ann-1' was already used at .*text:1"):
        list_any(kaldi)


def test_two_parts_are_not_cut_to_one_file(kaldi: Path, tmp_path: Path) -> None:
    """Nor does a long name end up as an error of the file system."""
    long = 300 * "ß"
    write(kaldi / "segments", f"a/1 r2 0 1\na_1 r2 1 2\n{long} r2 0 1\n{long}2 r2 0 1\n")
    write(kaldi / "text", f"a/1 ONE\na_1 TWO\n{long} THREE\n{long}2 FOUR\n")
    prepare({tmp_path / "m.csv": list_any(kaldi)}, cut_to=tmp_path / "cut")
    rows = read_manifest(tmp_path / "m.csv")
    whole, _ = soundfile.read(tmp_path / "r2.flac")
    assert len({row["wav"] for row in rows}) == 4
    for row, start in zip(rows, (0, 1, 0, 0), strict=True):
        part, _ = soundfile.read(row["wav"])
        np.testing.assert_array_equal(part, whole[16_000 * start : 16_000 * (start + 1)])


def test_cuts_of_an_earlier_manifest_stay_as_they_are(kaldi: Path, tmp_path: Path) -> None:
    """Another recording of the same name, other times, a run that is refused: nothing replaces."""
    first, cuts = tmp_path / "first.csv", tmp_path / "cut"
    prepare({first: list_any(kaldi)}, cut_to=cuts)
    before = {path: path.read_bytes() for path in cuts.iterdir()}
    prepare({first: list_any(kaldi)}, cut_to=cuts)
    assert sorted(cuts.iterdir()) == sorted(before)  # the same once more is the same
    sound(tmp_path / "r2.flac", 3.0)
    prepare({tmp_path / "second.csv": list_any(kaldi)}, cut_to=cuts)
    write(kaldi / "segments", "bob-1 r2 0.25 0.75\n")
    broken = [Utterance("x", tmp_path / "x.wav", "eva")]
    with pytest.raises(BadManifest, match="none of 1"):
        prepare({first: list_any(kaldi), tmp_path / "dev.csv": broken}, cut_to=cuts)
    assert all(path.read_bytes() == content for path, content in before.items())
    names = [
        {row["wav"] for row in read_manifest(tmp_path / f"{m}.csv")} for m in ("first", "second")
    ]
    assert len(names[0] & names[1]) == 1 and len(names[0] | names[1]) == 5  # r1 is the same


def test_a_text_without_audio_is_listed_with_its_problem(tmp_path: Path) -> None:
    """Where texts lie beside audio, or in a folder of their own; not a README by bare audio."""
    wav = sound(tmp_path / "a" / "1.WAV")
    readme = write(tmp_path / "a" / "README.txt", "recorded in May")
    assert [each.wav for each in list_any(tmp_path / "a")] == [wav]
    write(wav.with_suffix(".TXT"), "yes")
    lost = write(tmp_path / "a" / "2.txt", "no")
    listing = list_any(tmp_path / "a")
    assert [each.text for each in listing] == ["yes", "", ""]
    assert [each.source for each in listing[1:]] == [f"{lost}:1", f"{readme}:1"]
    assert all("no recording of this name" in each.problem for each in listing[1:])
    assert listing.kind.endswith(
        "1 audio file, 1 with a .txt of the same name beside it, 2 .txt without audio"
    )
    write(tmp_path / "texts" / "1.txt", "well")
    write(tmp_path / "texts" / "3.txt", "lost")
    apart = list_any(tmp_path / "a", tmp_path / "texts")
    assert [(each.text, bool(each.problem)) for each in apart] == [("well", False), ("", True)]


def test_texts_of_other_forms_of_a_name_are_found(tmp_path: Path) -> None:
    """macOS takes letters apart; some tools write a.wav.txt; lists are written elsewhere."""
    name = "grün"
    wav = sound(tmp_path / "a" / f"{unicodedata.normalize('NFD', name)}.wav")
    sound(tmp_path / "a" / "b.wav")
    write(tmp_path / "a" / f"{name}.txt", "yes")
    write(tmp_path / "a" / "b.wav.txt", "no")
    assert [(each.text, each.problem) for each in list_any(tmp_path / "a")] == [
        *(("no", ""), ("yes", "")),
    ]
    lines = write(tmp_path / "said.txt", f"b no\n{name} yes\n")
    assert list_any(tmp_path / "a", lines)[1].wav == wav


def test_texts_of_no_recording_are_told(tmp_path: Path) -> None:
    """Beside the audio it may be a list, which is offered; in a folder of texts it is an error."""
    sound(tmp_path / "a" / "1.wav")
    write(tmp_path / "a" / "metadata.txt", "1 yes\n")
    listing = list_any(tmp_path / "a")
    assert len(listing) == 1 and listing.kind.endswith(
        "; 1 .txt, none with the name of a recording, such as metadata.txt (a list of texts goes "
        "with --text)"
    )
    write(tmp_path / "texts" / "2.txt", "no")
    with pytest.raises(
        BadManifest, match=r"texts: none of its \.txt has the name of a recording in"
    ):
        list_any(tmp_path / "a", tmp_path / "texts")


def test_linked_folders_are_entered_once_and_circles_are_not(tmp_path: Path) -> None:
    for place in ("root/ann", "elsewhere/bob"):
        sound(tmp_path / place / "a.wav")
    (tmp_path / "root" / "dir.wav").mkdir()
    links = {"bob": "elsewhere/bob", "same": "elsewhere/bob", "up": ".", "ann2": "root/ann"}
    for name, target in links.items():
        (tmp_path / "root" / name).symlink_to(tmp_path / target, target_is_directory=True)
    (tmp_path / "elsewhere" / "bob" / "round").symlink_to(tmp_path / "elsewhere" / "bob")
    found = [each.wav.relative_to(tmp_path).as_posix() for each in list_any(tmp_path / "root")]
    assert found == ["root/ann/a.wav", "root/bob/a.wav"]


def test_a_recording_is_no_list(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match=r"one recording\. Expected the folder"):
        list_any(sound(tmp_path / "a.wav"))


# --- splits ----------------------------------------------------------------------------------


@pytest.fixture
def minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """x.wav, a minute long, in the working directory."""
    soundfile.write(tmp_path / "x.wav", np.zeros(60_000), 1000)
    monkeypatch.chdir(tmp_path)


def people(counts: dict[str, int], seconds: float = 60.0) -> list[Utterance]:
    """So many minutes of each, with a text that everybody says as their first."""
    return [
        Utterance(f"{name}{n}", Path("x.wav"), name, f"{name} {n}" if n else "prompt", end=seconds)
        for name, count in counts.items()
        for n in range(count)
    ]


@pytest.mark.usefixtures("minute")
def test_splits_share_no_speaker_and_lose_nobody() -> None:
    listed = people(dict.fromkeys("abcdefghij", 10))
    split = split_by_speaker(listed, dev=20, test=10, unit="minutes", seed=3)
    assert split.by_speaker and not split.warnings
    assert [len(side) for side in split[:3]] == [70, 20, 10]
    speakers = [{each.speaker for each in side} for side in split[:3]]
    assert not (speakers[0] & speakers[1] or speakers[0] & speakers[2] or speakers[1] & speakers[2])
    assert sorted((*split.train, *split.dev, *split.test), key=listed.index) == listed
    assert split_by_speaker(listed, dev=20, test=10, unit="minutes", seed=3) == split


@pytest.mark.usefixtures("minute")
def test_one_dominant_speaker_stays_in_train() -> None:
    """Sizes are met with the others; where that is impossible, it is said."""
    listed = people({"much": 90, "a": 5, "b": 5})
    split = split_by_speaker(listed, dev=0.05, test=0.05)
    assert {each.speaker for each in split.train} == {"much"}
    split = split_by_speaker(people({"a": 50, "b": 50, "c": 50}), dev=0.01)
    assert len(split.dev) == 50 and "dev is 50.0 minutes instead of 1.5" in split.warnings[0]


@pytest.mark.usefixtures("minute")
def test_the_speakers_that_fit_best_are_set_aside() -> None:
    """Whatever the order in which they are drawn."""
    for seed in range(5):
        split = split_by_speaker(
            people({"a": 9, "b": 8, "c": 5, "d": 40}), dev=5, unit="minutes", seed=seed
        )
        assert {each.speaker for each in split.dev} == {"c"} and not split.warnings


@pytest.mark.usefixtures("minute")
@pytest.mark.parametrize("listed", [people({"a": 30, "b": 30}), people({"": 60})])
def test_few_speakers_are_split_by_utterance_with_a_warning(listed: list[Utterance]) -> None:
    split = split_by_speaker(listed, dev=0.1, test=0.1)
    assert not split.by_speaker and [len(side) for side in split[:3]] == [48, 6, 6]
    assert "measure known voices" in split.warnings[0]


def test_what_cannot_be_used_decides_nothing_about_a_split(tmp_path: Path) -> None:
    """A broken line has no speaker, a folder without texts is no dev set; train tells of both."""
    good = [
        Utterance(f"{name}{n}", sound(tmp_path / name / f"{n}.wav"), name, "yes")
        for name in "abc"
        for n in range(3)
    ]
    broken = Utterance("t.tsv:9", tmp_path, "", "", "t.tsv:9", problem="2 values")
    silent = Utterance("d", sound(tmp_path / "d.wav"), "d", "")
    split = split_by_speaker([broken, *good, silent], dev=0.1, test=0.1, need_text=True)
    assert split.by_speaker and broken in split.train and silent in split.train
    assert [len(side) for side in split[:3]] == [5, 3, 3]
    unlabelled = split_by_speaker([*good, silent], dev=0.1, test=0.1)
    assert silent in unlabelled.dev + unlabelled.test


def test_what_will_be_left_out_for_its_length_is_nothing_to_split(tmp_path: Path) -> None:
    """It is told with its speaker; ends that no recording has give no sizes."""
    listed = [
        Utterance(f"{name}{n}", sound(tmp_path / name / f"{n}.wav", 1.0), name, "yes")
        for name in "abcdef"
        for n in range(5)
    ]
    long = Utterance("g", sound(tmp_path / "g.wav", 9.0), "g", "yes")
    short = Utterance("h", sound(tmp_path / "h.wav", 0.1), "h", "yes")
    mixed = Utterance("i", long.wav, "a", "yes")
    wrong = [Utterance(f"w{n}", listed[n].wav, "b", "yes", end=9999.0) for n in range(2)]
    beyond = Utterance("e", listed[0].wav, "a", "yes", end=1.05)  # as `cut` takes it
    gone = Utterance("o", tmp_path / "gone.wav", "o", "yes", end=7.0)
    every = [long, short, mixed, *listed, *wrong, beyond, gone]
    for seed in range(9):
        split = split_by_speaker(every, dev=0.2, test=0.2, seed=seed, max_s=5.0, min_s=0.5)
        assert [len({*side} & {*listed}) for side in split[:3]] == [20, 5, 5]
        assert {long, short, gone} <= {*split.train} and not split.warnings
        sides = [{each.speaker for each in side} for side in split[:3]]
        assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
        assert sum(map(len, split[:3])) == len(every)
    for one, why in (
        (long, "9.00 s long, the longest"),
        (wrong[0], "it ends beyond its recording"),
    ):
        with pytest.raises(BadManifest, match=f"none of 1 utterances can be used.*{why}"):
            split_by_speaker([one], max_s=5.0)
    chosen = balanced_subset([long, *listed], 0.1, 0, Limits(max_s=5.0))
    assert len({*chosen} & {*listed}) == 6


@pytest.mark.usefixtures("minute")
def test_an_utterance_without_a_speaker_does_not_mix_the_others() -> None:
    """It is told, and heard in training; its text is told, too, where texts are kept apart."""
    nobody = Utterance("n", Path("x.wav"), "", "a 1", "t.csv:7")
    listed = [nobody, *people(dict.fromkeys("abcdef", 5))]
    split = split_by_speaker(listed, dev=0.2, test=0.2)
    assert split.by_speaker and nobody in split.train
    assert split.warnings[0].startswith(
        "1 utterance has no speaker (first: t.csv:7): kept in train"
    )
    assert not {each.speaker for each in split.dev} & {each.speaker for each in split.train}
    another = Utterance("m", Path("x.wav"), "", "b 1", "t.csv:8")
    two = split_by_speaker([another, nobody, *people({"a": 9, "b": 9})], dev=0.2)
    assert not two.by_speaker
    assert two.warnings[0].startswith(
        "2 speakers (a, b) and 2 utterances without one: split by utt"
    )
    more = split_by_speaker([another, *listed], dev=0.2)
    assert more.warnings[0].startswith("2 utterances have no speaker (first: t.csv:8)")


@pytest.mark.usefixtures("minute")
def test_splits_refuse_equal_names_and_say_why_nothing_can_be_split() -> None:
    """Otherwise the line with the same name would be on two sides, or on none."""
    twice = [*people({"a": 2, "b": 2, "c": 2}), Utterance("a0", Path("x.wav"), "d", end=60.0)]
    with pytest.raises(BadManifest, match="'a0' was already used"):
        split_by_speaker(twice)
    mute = [Utterance("a", Path("x.wav"), "d", "", "t.csv:2", end=60.0)]
    with pytest.raises(BadManifest, match=r"t\.csv:2: no text.*--text-column"):
        split_by_speaker(mute, need_text=True)
    with pytest.raises(BadManifest, match="no utterances were listed"):
        split_by_speaker([])


@pytest.mark.usefixtures("minute")
def test_texts_can_be_kept_apart() -> None:
    """Always by utterance; by speaker as far as possible, with a warning about the rest."""
    listed = [
        Utterance(f"{n}", Path("x.wav"), "ann", f"text {n % 10}", end=1.0) for n in range(100)
    ]
    split = split_by_speaker(listed, dev=0.2, apart_texts=True)
    assert len(split.dev) == 20
    assert not {each.text for each in split.train} & {each.text for each in split.dev}
    by_speaker = split_by_speaker(people(dict.fromkeys("abcdef", 5)), apart_texts=True)
    assert "1 texts stand in two of train, dev and test: prompt" in by_speaker.warnings[-1]


@pytest.mark.usefixtures("minute")
@pytest.mark.parametrize(("dev", "test"), [(0.0, 0.0), (0.6, 0.4), (-0.1, 0.2)])
def test_impossible_sizes_are_refused(dev: float, test: float) -> None:
    with pytest.raises(BadManifest, match="leave something to train on"):
        split_by_speaker(people({"a": 3, "b": 3, "c": 3}), dev=dev, test=test)


def test_shared_speakers_and_recordings_are_told(tmp_path: Path) -> None:
    """A warning with names, or an error that comes before anything is written."""
    same = sound(tmp_path / "same.wav")
    train = [Utterance("a", same, "ann"), Utterance("b", sound(tmp_path / "b.wav"), "bob")]
    test = [Utterance("t", same, "ann")]
    parts = {tmp_path / "train.csv": train, tmp_path / "test.csv": test}
    with pytest.raises(BadManifest, match=r"train.csv and test.csv share 1 speaker: ann"):
        prepare(parts, refuse_overlap=True)
    assert not list(tmp_path.glob("*.csv"))
    first, second = prepare(parts)
    assert first.warnings[0] == "train.csv and test.csv share 1 speaker: ann."
    assert "a: same audio as test.csv: t" in first.warnings[1]
    assert "warning: " in str(first) and not second.warnings
    assert "same audio as train.csv: a" in flagged_path(tmp_path / "test.csv").read_text()


def test_nothing_is_written_half(tmp_path: Path) -> None:
    """One good and one unusable split: neither manifest is written, nor a card."""
    parts = {
        tmp_path / "train.csv": [Utterance("a", sound(tmp_path / "a.wav"), "ann")],
        tmp_path / "dev.csv": [Utterance("b", tmp_path / "b.wav", "bob", source="list:1")],
    }
    with pytest.raises(BadManifest, match=r"(?s)dev.csv: none of 1 .*list:1: .*no such file"):
        prepare(parts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "dev.skipped.tsv"]

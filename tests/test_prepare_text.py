"""Preparation of texts: what is kept, what is left out and named, and that nothing is half done."""

# ruff: noqa: RUF001 (letters that look alike are what this is about)

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from w2v_plugin.errors import BadManifest
from w2v_plugin.manifests import COLUMNS, read_manifest
from w2v_plugin.normalization import TextRules
from w2v_plugin.text_checks import damage, mixed_words
from w2v_plugin.text_preparation import prepare_texts
from w2v_plugin.vocabularies import read_vocabulary

RECIPE = Path(__file__).parent.parent / "recipes" / "prepare" / "text.py"
GOOD = ["Das war gut.", "War das gut?", "Gut war das!", "Das „Gut“ war das."]
BAD = {  # kind -> text, reason
    "unread": ("Das war 20 % gut.", "2 0 %"),
    "rare": ("Das war gut, Zoë.", "o z ë"),
    "empty": ("?!", "no letters"),
    "damaged": ("Das war schÃ¶n.", "schÃ¶n. looks like schön. in UTF-8, read as cp1252"),
    "too long": ("das war gut " * 9, "needs 107 frames, the audio has 99"),
}


def manifest(path: Path, texts: list[str], speaker: str = "eva", encoding: str = "utf-8") -> Path:
    """Two seconds each, with a column of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "accent"])
        for i, text in enumerate(texts):
            name = f"{path.stem}{i}"
            writer.writerow([name, "2.0", f"{name}.wav", speaker, text, "none"])
    return path


def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare_text", RECIPE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_manifests_vocabulary_and_report(tmp_path: Path) -> None:
    """What comes out is what training reads; other columns and the audio stay."""
    train = manifest(tmp_path / "train.csv", [*GOOD, *(text for text, _ in BAD.values())])
    test = manifest(tmp_path / "test.csv", ["Das war neu: 7.", "Gut!", "..."], "max")
    report = prepare_texts(train, tmp_path / "out", also=[test])
    rows = read_manifest(tmp_path / "out" / "train.csv")
    assert [row["wrd"] for row in rows] == [TextRules().normalize(text) for text in GOOD]
    assert rows[0]["wav"] == str(tmp_path / "train0.wav") and rows[0]["accent"] == "none"
    vocabulary = read_vocabulary(report.vocabulary)
    assert not any(vocabulary.unknown(row["wrd"]) for row in rows)
    assert set(vocabulary.letters) == set("daswrgut") == set(report.letters)
    assert report.letters["g"] == (4, 4) and report.letters["s"] == (5, 4)
    assert (report.kept, report.lost) == (4, 5)
    assert [row["wrd"] for row in read_manifest(tmp_path / "out" / "test.csv")] == [
        "das war neu 7",
        "gut",
        "",
    ]


def test_everything_left_out_is_named_by_file_and_line(tmp_path: Path) -> None:
    train = manifest(tmp_path / "train.csv", [*GOOD, *(text for text, _ in BAD.values())])
    report = prepare_texts(train, tmp_path / "out")
    found = [(r.source, r.id, r.kind, r.reason, r.text) for r in report.left_out]
    assert found == [
        (f"{train}:{line}", f"train{line - 2}", kind, reason, text)
        for line, (kind, (text, reason)) in enumerate(BAD.items(), len(GOOD) + 2)
    ]
    listed = (tmp_path / "out" / "left_out.tsv").read_text(encoding="utf-8").splitlines()
    assert len(listed) == len(BAD) + 1 and "unread\t2 0 %" in listed[1]
    content = json.loads((tmp_path / "out" / "text_report.json").read_text(encoding="utf-8"))
    assert content["sha256"].keys() == {str(train)} and len(content["left_out"]) == len(BAD)
    page = (tmp_path / "out" / "text_report.md").read_text(encoding="utf-8")
    for text, reason in BAD.values():
        assert text.strip() in page and reason in page
    for kind in BAD:
        assert f"1 {kind} (" in str(report)


def test_nothing_of_a_test_set_is_dropped(tmp_path: Path) -> None:
    """What a model cannot say of it is named, and stays in the text."""
    train = manifest(tmp_path / "train.csv", GOOD)
    texts = ["Zu neu", "7 %", "?", "das war gut " * 9, "gut"]
    test = manifest(tmp_path / "test.csv", texts, "max")
    report = prepare_texts(train, tmp_path / "out", also=[test], min_count=1)
    assert len(read_manifest(tmp_path / "out" / "test.csv")) == len(texts)
    found = [(r.source, r.kind) for r in report.unsayable]
    kinds = ["unknown", "unread", "empty", "too long"]
    assert found == [(f"{test}:{line}", kind) for line, kind in enumerate(kinds, 2)]
    assert report.unsayable[0].reason == "e n z"
    assert "3 that the model cannot say completely, counted as errors; 1 without" in str(report)


def test_rare_characters_are_rare_among_what_remains(tmp_path: Path) -> None:
    """y is in three texts, but two of them are left out for their x and their q."""
    texts = ["aby", "abyx", "abyq", *["ab"] * 3]
    report = prepare_texts(manifest(tmp_path / "train.csv", texts), tmp_path / "out", min_count=3)
    assert set(report.letters) == set("ab")
    assert [(r.id, r.reason) for r in report.left_out] == [
        ("train0", "y"),
        ("train1", "x"),
        ("train2", "q"),
    ]
    whole = prepare_texts(tmp_path / "train.csv", tmp_path / "all", min_count=1)
    assert set(whole.letters) == set("abxyq") and not whole.lost
    assert not (tmp_path / "all" / "left_out.tsv").exists()


def test_pieces_may_be_shorter_than_their_audio(tmp_path: Path) -> None:
    """A text with more characters than frames fits if its pieces do; the old vocabulary goes."""
    texts = ["anananas banane " * 8, "anananas", "banane", "banane anananas"]
    train = manifest(tmp_path / "train.csv", texts)
    assert prepare_texts(train, tmp_path / "out", min_count=1).left_out[0].kind == "too long"
    report = prepare_texts(train, tmp_path / "out", units="bpe", size=14, min_count=1)
    assert not report.lost and report.vocabulary.name == "pieces.model"
    assert not (tmp_path / "out" / "vocab.json").exists()
    assert read_vocabulary(report.vocabulary).letters == list(report.letters)


def test_what_is_in_two_places_is_said(tmp_path: Path) -> None:
    train = manifest(tmp_path / "train.csv", [*GOOD, "m\u0430ma m\u0430ma m\u0430ma"])
    test = manifest(tmp_path / "test.csv", ["Neu", "das war gut"])
    report = prepare_texts(train, tmp_path / "out", also=[test], min_count=1)
    assert report.warnings == [
        f"{test}: speakers that are in {train}, too: 1 (eva)",
        f"{test}:3: texts that are in {train}, too: 1 of 2",
    ]
    assert len(report.mixed) == 3 and report.mixed[0].source == f"{train}:6"
    assert "3 words mix scripts" in str(report) and "Cyrillic" in str(report)


def test_letters_that_are_dropped_are_told_apart(tmp_path: Path) -> None:
    train = manifest(tmp_path / "train.csv", [*GOOD, "Das w\u02bcar gut."])
    report = prepare_texts(train, tmp_path / "out", rules=TextRules(inside=""))
    assert "Dropped letters: \u02bc\n" in str(report) and "Dropped: . ?" in str(report)


def test_what_training_does_not_hear_is_not_shared(tmp_path: Path) -> None:
    """Texts that are left out of it, their speakers and recordings, and no text at all."""
    left_out = manifest(tmp_path / "7.csv", ["7 gut", "?"], "max").read_text(encoding="utf-8")
    train = manifest(tmp_path / "train.csv", GOOD)
    rows = left_out.splitlines(keepends=True)[1:]
    train.write_text(train.read_text(encoding="utf-8") + "".join(rows), encoding="utf-8")
    test = manifest(tmp_path / "test.csv", ["7 gut", "!", "gut"], "max")
    test.write_text(test.read_text().replace("test0.wav", "70.wav"), encoding="utf-8")
    report = prepare_texts(train, tmp_path / "out", also=[test], min_count=1)
    assert report.lost == 2 and report.warnings == []
    assert "1 that the model cannot say completely, counted as errors; 1 without" in str(report)


def test_texts_of_the_test_set_are_not_trained_on(tmp_path: Path) -> None:
    """As they are after normalization; each is named with the place that has it, too."""
    train = manifest(tmp_path / "train.csv", [*GOOD, "Neu!"])
    test = manifest(tmp_path / "test.csv", ["neu", "das"])
    report = prepare_texts(train, tmp_path / "out", also=[test], min_count=1, apart=True)
    assert [(r.source, r.kind, r.reason) for r in report.left_out] == [
        (f"{train}:6", "elsewhere", f"the text of {test}:2, too")
    ]
    assert not [warning for warning in report.warnings if "texts that are" in warning]
    assert "neu" not in [row["wrd"] for row in read_manifest(tmp_path / "out" / "train.csv")]


def test_byte_order_marks_and_windows_lines_are_read(tmp_path: Path) -> None:
    train = manifest(tmp_path / "train.csv", GOOD, encoding="utf-8-sig")
    train.write_bytes(train.read_bytes().replace(b"\n", b"\r\n").replace(b"\r\r", b"\r"))
    assert prepare_texts(train, tmp_path / "out").kept == len(GOOD)


@pytest.mark.parametrize(
    ("encoding", "texts", "message"),
    [
        ("latin-1", ["gut", "schön"], r"train\.csv:3: not UTF-8"),
        ("utf-16", ["gut"], r"train\.csv:1: not UTF-8"),
        (
            "utf-8",
            ["7", "!"],
            r"none of 2 texts can be learned \(1 unread: .*--digits.*; 1 empty: ",
        ),
        ("utf-8", ["das", "war"], r"none of 2 texts can be learned \(2 rare: .*--min-count"),
    ],
)
def test_nothing_is_written_where_nothing_can_be(
    tmp_path: Path, encoding: str, texts: list[str], message: str
) -> None:
    train = manifest(tmp_path / "train.csv", texts, encoding=encoding)
    with pytest.raises(BadManifest, match=message):
        prepare_texts(train, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_manifests_are_not_overwritten(tmp_path: Path) -> None:
    train = manifest(tmp_path / "train.csv", GOOD)
    before = train.read_bytes()
    with pytest.raises(BadManifest, match="would be overwritten"):
        prepare_texts(train, tmp_path)
    other = manifest(tmp_path / "other" / "train.csv", GOOD)
    with pytest.raises(BadManifest, match=r"Two manifests are called train\.csv"):
        prepare_texts(train, tmp_path / "out", also=[other])
    assert train.read_bytes() == before and not (tmp_path / "out").exists()


def test_a_failed_run_leaves_the_one_before(tmp_path: Path) -> None:
    train = manifest(tmp_path / "train.csv", GOOD)
    prepare_texts(train, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match="No 500 pieces"):
        prepare_texts(train, tmp_path / "out", units="bpe")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("text", "damaged"),
    [
        ("schÃ¶n", True),
        ("donâ€™t", True),
        ("sch\ufffdn", True),
        ("Ð¼Ð°Ð¼Ð°", True),
        ("schön don’t São Ã €", False),
        ("മലയാളം мама", False),
        ("„Viel Spaß“, »groß«, weiß…", False),
        ("Strauß´ Walzer, Voß’sche, Spaß–Vogel, Groß\u00adstadt", False),
        ("onde está você…” AMANHÃ… CAFÉ”", False),
        ("«\u00a0l'été\u00a0», está»… NIÑ…", False),
        ("GÜNEŞ’İN “ÇÖZÜ”, PÅ… på… BLÅ”", False),
    ],
)
def test_wrong_encodings_show(text: str, damaged: bool) -> None:
    """Letters with closing punctuation behind them are UTF-8 by chance."""
    assert bool(damage(text)) == damaged


TWICE = (
    "Ärger Öl FRÖHLICH schöne weiße “ – … à Où así índice amanhã słaba są řeka çağrı şu på și nő "
    "мама нет και الس זה क्या വിള 今天"
)


@pytest.mark.parametrize("word", TWICE.split())
def test_words_that_were_encoded_twice_are_found(word: str) -> None:
    """Each on its own, though a text has many."""
    for encoding in ("cp1252", "latin-1"):
        try:
            wrong = word.encode().decode(encoding)
        except UnicodeError:
            continue
        assert damage(wrong).startswith(f"{wrong} looks like {word} in UTF-8, read as ")


@pytest.mark.parametrize(
    ("text", "mixed"),
    [
        ("м\u0430мa", ["м\u0430мa (Cyrillic м\u0430м, Latin a)"]),
        ("今日はコーヒー ʻōlelo o'neill", []),
        ("abc где", []),
        ("αb", ["αb (Greek α, Latin b)"]),
    ],
)
def test_mixed_scripts_are_found_in_words(text: str, mixed: list[str]) -> None:
    assert mixed_words(text) == mixed


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All options arrive; errors are one line and 2."""
    main = recipe().main
    train = manifest(tmp_path / "train.csv", ["A = B & C-d", "É, b? c", "=ab"])
    options = ["--manifest", str(train), "--out", str(tmp_path / "out"), "--min-count", "1"]
    maps = ["--map", "&= und ", "--map", "==gleich", "--map", "é=e"]
    assert main([*options, *maps, "--inside", "-", "--case", "upper", "--drop", "b"]) == 0
    rows = read_manifest(tmp_path / "out" / "train.csv")
    assert [row["wrd"] for row in rows] == ["A GLEICH UND C-D", "E C", "GLEICHA"]
    assert "3 of 3 utterances" in capsys.readouterr().out
    for wrong, message in (
        (["--map", "abc"], "expected OLD=NEW"),
        (["--map", "a=b", "--map", "a=c"], "'a' is already written as 'b'"),
        (["--also", str(tmp_path / "absent.csv")], "no such manifest"),
        (["--units", "bpe"], "No 500 pieces"),
    ):
        assert main([*options, *wrong]) == 2
        error = capsys.readouterr().err
        assert error.startswith("text.py: ") and message in error


@pytest.mark.parametrize("option", ["--min-count", "--size"])
@pytest.mark.parametrize("value", ["-5", "0", "x"])
def test_counts_begin_at_one(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        recipe().main(["--manifest", "a.csv", "--out", "out", f"{option}={value}"])
    assert f"{option}: {value!r}: expected a whole number, 1 or more" in capsys.readouterr().err


def test_an_interrupted_run_says_so_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing half done."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("w2v_plugin.text_preparation.build_vocabulary", interrupt)
    train = manifest(tmp_path / "train.csv", GOOD)
    assert recipe().main(["--manifest", str(train), "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "\ntext.py: interrupted, nothing was written.\n"
    assert not (tmp_path / "out").exists()


def test_whoever_reads_the_report_may_have_enough(tmp_path: Path) -> None:
    """`text.py … | head` ends quietly."""
    train, out = manifest(tmp_path / "train.csv", GOOD), tmp_path / "out"
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, RECIPE, "--manifest", train, "--out", out]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "") and (out / "text_report.md").is_file()
